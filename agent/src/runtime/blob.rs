//! Fetching what an order names by digest, at the agent's own pace.
#![forbid(unsafe_code)]

use std::time::Duration;

use sally_common::id::{Digest, Nonce};
use sally_common::limit::BLOB_MAX;
use sally_common::subject::Channel;
use sally_common::wire::report::{Ask, Question};
use sally_common::wire::{Kind, Refusal, VERSION};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::run::files::Note;
use super::shared::Shared;

/// Pieces that one question allows to be on the way: 16 of 15 KiB, a quarter of a MiB.
pub const PIECES_IN_FLIGHT: usize = 16;

/// How long to wait for the next piece before asking again.
const PATIENCE: Duration = Duration::from_secs(2);

/// A verified piece of a blob.
#[derive(Debug)]
pub struct Piece {
    /// Where it begins.
    pub offset: u64,
    /// Bytes of the whole; 0 if the controller does not hold it.
    pub total: u64,
    /// The bytes.
    pub bytes: Vec<u8>,
}

/// Why a blob is not to be had.
#[derive(Debug)]
pub enum Problem {
    /// It never will be.
    Refused(Refusal, String),
    /// The order expired meanwhile.
    Expired,
}

/// Fetches a blob, asking again from where it is until the order expires.
pub async fn fetch(
    shared: &Shared,
    note: &Note,
    digest: Digest,
    size: u64,
    mut pieces: mpsc::Receiver<Piece>,
) -> Result<Vec<u8>, Problem> {
    if size > BLOB_MAX {
        let message = format!("{size} bytes are more than the {BLOB_MAX} that an order may name");
        return Err(Problem::Refused(Refusal::TooLarge, message));
    }
    let mut bytes: Vec<u8> = Vec::with_capacity(usize::try_from(size).unwrap_or(0));
    while (bytes.len() as u64) < size {
        if shared.now_ms() >= note.expires_ms {
            return Err(Problem::Expired);
        }
        ask(shared, note, digest, bytes.len() as u64).await;
        for _ in 0..PIECES_IN_FLIGHT {
            let Ok(Some(piece)) = timeout(PATIENCE, pieces.recv()).await else { break };
            if piece.total == 0 {
                return Err(Problem::Refused(
                    Refusal::WrongDigest,
                    format!("the controller does not hold the content {digest} that the order names"),
                ));
            }
            if piece.offset == bytes.len() as u64 && bytes.len() as u64 + piece.bytes.len() as u64 <= size {
                bytes.extend_from_slice(&piece.bytes);
            }
            if bytes.len() as u64 == size {
                break;
            }
        }
    }
    if Digest::of(&bytes) != digest {
        return Err(Problem::Refused(Refusal::WrongDigest, format!("what was fetched is not {digest}")));
    }
    Ok(bytes)
}

async fn ask(shared: &Shared, note: &Note, digest: Digest, offset: u64) {
    let question = Question::Blob { run: note.run.clone(), digest, offset, chunks: PIECES_IN_FLIGHT as u32 };
    let ask = Ask { v: VERSION, from: shared.from(), nonce: Nonce::generate(), question };
    shared.report(Channel::Ask, Kind::Ask, &ask).await;
}
