//! Messages from the controller: checked whole before any of it is used.
#![forbid(unsafe_code)]

use std::sync::Arc;

use sally_common::clock::now_ms;
use sally_common::id::{Digest, Nonce, RunId};
use sally_common::limit::{LIVE_MESSAGE_MAX, ORDER_MAX};
use sally_common::wire::command::{Answer, Cancel, Chunk, Dispatch, Probe, Receipt, Stored, To};
use sally_common::wire::order::Order;
use sally_common::wire::{self, Kind, Refusal};

use super::blob::Piece;
use super::shared::Shared;

/// A message that was signed by a controller and meant for this agent.
pub enum Command {
    /// A dispatch with its order, the order's signatures checked.
    Dispatch {
        /// The dispatch.
        dispatch: Box<Dispatch>,
        /// The order.
        order: CheckedOrder,
    },
    /// A dispatch for this agent whose order is not to be believed.
    BadOrder(Box<Dispatch>, Refusal),
    /// A dispatch whose order must be fetched.
    OrderMissing(Box<Dispatch>),
    /// End a run.
    Cancel(Box<Cancel>),
    /// Part of a stream is stored.
    Stored {
        /// The run.
        run: RunId,
        /// The attempt.
        attempt: u32,
        /// The stream.
        stream: String,
        /// How much.
        bytes: u64,
    },
    /// A result is committed.
    Receipt {
        /// The run.
        run: RunId,
        /// The attempt.
        attempt: u32,
        /// The digest of its body.
        digest: Digest,
    },
    /// The answer to a question.
    Answer(Box<Answer>),
    /// Are you there?
    Probe(Nonce),
    /// A piece of a blob.
    Chunk {
        /// The blob.
        digest: Digest,
        /// The piece.
        piece: Piece,
    },
}

/// An order whose signatures and bounds have been checked.
#[derive(Debug, Clone)]
pub struct CheckedOrder {
    /// The order.
    pub order: Arc<Order>,
}

impl CheckedOrder {
    /// Whether this agent is among the order's targets. A selector is satisfied by the agent's own labels only.
    pub fn is_for(&self, shared: &Shared) -> Result<(), Refusal> {
        let config = shared.policy();
        if self.order.targets.matches(&config.zone, &config.name, &config.labels) {
            Ok(())
        } else {
            Err(Refusal::NotATarget)
        }
    }
}

/// A chunk's head line and the envelope's overhead beside its payload.
const HEAD_ROOM: usize = 2 * 1024;

/// Checks and reads a message from the live subject.
pub fn read(shared: &Shared, message: &async_nats::Message) -> Result<Command, Refusal> {
    let headers = message.headers.as_ref();
    let body = &message.payload;
    let kind = wire::claimed_kind(headers)?;
    let policy = shared.policy();
    let trust = &policy.trust;
    let now = now_ms();
    wire::verify(kind, headers, body, LIVE_MESSAGE_MAX + HEAD_ROOM, |key| trust.is_controller(key, now))?;
    match kind {
        Kind::Dispatch => {
            let dispatch: Dispatch = wire::read(body)?;
            mine(shared, &dispatch.to)?;
            match &dispatch.order {
                Some(text) => Ok(match check_order(shared, &dispatch, text.as_bytes()) {
                    Ok(order) => Command::Dispatch { dispatch: Box::new(dispatch), order },
                    Err(refusal) => Command::BadOrder(Box::new(dispatch), refusal),
                }),
                None if dispatch.order_bytes > ORDER_MAX as u64 => Err(Refusal::TooLarge),
                None => Ok(Command::OrderMissing(Box::new(dispatch))),
            }
        }
        Kind::Cancel => {
            let cancel: Cancel = wire::read(body)?;
            mine(shared, &cancel.to)?;
            Ok(Command::Cancel(Box::new(cancel)))
        }
        Kind::Receipt => {
            let Receipt { to, run, attempt, stored, .. } = wire::read(body)?;
            mine(shared, &to)?;
            Ok(match stored {
                Stored::Result { digest } => Command::Receipt { run, attempt, digest },
                Stored::Stream { stream, bytes } => Command::Stored { run, attempt, stream, bytes },
            })
        }
        Kind::Answer => {
            let answer: Answer = wire::read(body)?;
            mine(shared, &answer.to)?;
            Ok(Command::Answer(Box::new(answer)))
        }
        Kind::Probe => {
            let probe: Probe = wire::read(body)?;
            mine(shared, &probe.to)?;
            Ok(Command::Probe(probe.nonce))
        }
        Kind::Chunk => {
            let (head, bytes) = wire::split_head::<Chunk>(body)?;
            mine(shared, &head.to)?;
            let piece = Piece { offset: head.offset, total: head.total, bytes: bytes.to_vec() };
            Ok(Command::Chunk { digest: head.digest, piece })
        }
        _ => Err(Refusal::WrongKind),
    }
}

/// Whether a command is for this agent. The incarnation matters for dispatches alone, which are refused later
/// in words that the controller gets; a cancel, receipt or answer for an older one does no harm.
fn mine(shared: &Shared, to: &To) -> Result<(), Refusal> {
    let me = &shared.config;
    if to.zone != me.zone || to.agent != me.name || to.agent_key != *me.key.public() {
        return Err(Refusal::Misdirected);
    }
    Ok(())
}

/// Checks an order's digest, signatures and bounds.
pub fn check_order(shared: &Shared, dispatch: &Dispatch, bytes: &[u8]) -> Result<CheckedOrder, Refusal> {
    if bytes.len() > ORDER_MAX {
        return Err(Refusal::TooLarge);
    }
    if Digest::of(bytes) != dispatch.order_digest {
        return Err(Refusal::WrongDigest);
    }
    shared.policy().trust.check_order(bytes, &dispatch.order_signatures, now_ms())?;
    let order: Order = wire::read(bytes)?;
    order.check().map_err(|_| Refusal::Malformed)?;
    Ok(CheckedOrder { order: Arc::new(order) })
}
