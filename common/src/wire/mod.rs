//! Every byte that crosses the broker. `docs/wire.md` is this module in prose.
//!
//! In reading order: this file has the envelope (kind, key and signature in headers, the exact
//! bytes as the body) and why a message is refused; [`order`] is what a caller signs, [`command`]
//! what a controller tells an agent, [`report`] what an agent tells a controller, [`record`] what
//! people and programs are shown, [`artifact`] the files that scripts leave behind, [`api`] the requests of callers to a controller,
//! [`enrol`] how a host becomes an agent.
//!
//! The types here are the wire's and nobody else's: rooms turn them into their own. A body names
//! its version `v`; unknown fields are tolerated, so a new field is no new version. `golden/` pins
//! the bytes.

pub mod api;
pub mod artifact;
pub mod command;
pub mod enrol;
pub mod order;
pub mod record;
pub mod report;
pub mod retry;
#[cfg(debug_assertions)]
mod versions;

#[cfg(test)]
mod golden;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::fmt;

use crate::key::{PublicKey, Signature, SigningKey};

pub use order::OrderSignature;

/// The version that this code writes and reads.
pub const VERSION: u32 = 1;

/// Header that names the message's kind.
pub const HEADER_KIND: &str = "Sally-Kind";
/// Header with the signer's public key.
pub const HEADER_KEY: &str = "Sally-Key";
/// Header with the signature.
pub const HEADER_SIGNATURE: &str = "Sally-Signature";

/// What a message is. Each kind signs in a domain of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Caller: what may run where. Travels inside requests and dispatches.
    Order,
    /// Controller: an order bound to one agent and attempt.
    Dispatch,
    /// Controller: stop a run.
    Cancel,
    /// Controller: a result or a part of a stream is stored.
    Receipt,
    /// Controller: answer to an agent's question.
    Answer,
    /// Controller: a piece of a blob.
    Chunk,
    /// Controller: are you there?
    Probe,
    /// Agent: a run was accepted, started or refused.
    State,
    /// Agent: how an attempt ended.
    Result,
    /// Agent: a statement about itself.
    Heartbeat,
    /// Agent: a question.
    Ask,
    /// Caller: a request to the controller.
    Request,
    /// Controller: the reply to a caller.
    Reply,
    /// Controller: something a caller watches has changed.
    Event,
    /// Host: it asks to be enrolled; signed by a token's key.
    Enrol,
    /// Host: who it wants to be; signed by the key that it made. Travels inside an enrolment.
    Identity,
    /// Controller: the answer to a host that asked to be enrolled.
    Enrolled,
}

impl Kind {
    /// Every kind.
    pub const ALL: [Kind; 17] = [
        Kind::Order,
        Kind::Dispatch,
        Kind::Cancel,
        Kind::Receipt,
        Kind::Answer,
        Kind::Chunk,
        Kind::Probe,
        Kind::State,
        Kind::Result,
        Kind::Heartbeat,
        Kind::Ask,
        Kind::Request,
        Kind::Reply,
        Kind::Event,
        Kind::Enrol,
        Kind::Identity,
        Kind::Enrolled,
    ];

    /// The kind's word in the header.
    pub fn word(self) -> &'static str {
        // The domain is `sally/<word>/v1`.
        let domain = self.domain();
        &domain["sally/".len()..domain.len() - "/v1".len()]
    }

    /// What is signed before the body.
    pub fn domain(self) -> &'static str {
        match self {
            Kind::Order => "sally/order/v1",
            Kind::Dispatch => "sally/dispatch/v1",
            Kind::Cancel => "sally/cancel/v1",
            Kind::Receipt => "sally/receipt/v1",
            Kind::Answer => "sally/answer/v1",
            Kind::Chunk => "sally/chunk/v1",
            Kind::Probe => "sally/probe/v1",
            Kind::State => "sally/state/v1",
            Kind::Result => "sally/result/v1",
            Kind::Heartbeat => "sally/heartbeat/v1",
            Kind::Ask => "sally/ask/v1",
            Kind::Request => "sally/request/v1",
            Kind::Reply => "sally/reply/v1",
            Kind::Event => "sally/event/v1",
            Kind::Enrol => "sally/enrol/v1",
            Kind::Identity => "sally/identity/v1",
            Kind::Enrolled => "sally/enrolled/v1",
        }
    }

    fn of_word(word: &str) -> Option<Kind> {
        Kind::ALL.into_iter().find(|k| k.word() == word)
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.word())
    }
}

/// Why a message was not believed or an order not run. The word is stable: it stands in records,
/// counters and heartbeats.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize, thiserror::Error,
)]
#[serde(rename_all = "kebab-case", from = "String")]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum Refusal {
    #[error("the message carries no signature")]
    Unsigned,
    #[error("the signature does not match the message")]
    BadSignature,
    #[error("the signing key is not on the trust list")]
    UnknownKey,
    #[error("fewer callers signed the order than the trust list demands")]
    TooFewSignatures,
    #[error("the trust list has expired")]
    TrustExpired,
    #[error("a message of another kind was expected here")]
    WrongKind,
    #[error("the message is larger than its kind may be")]
    TooLarge,
    #[error("the message cannot be read")]
    Malformed,
    #[error("the message is of a version this program does not know")]
    UnsupportedVersion,
    #[error("the message is for another agent")]
    Misdirected,
    #[error("the message is for another incarnation of this agent")]
    WrongIncarnation,
    #[error("the order does not name this agent among its targets")]
    NotATarget,
    #[error("the order has expired")]
    Expired,
    #[error("this attempt was already taken")]
    Replayed,
    #[error("a newer attempt of this run is known")]
    StaleAttempt,
    #[error("the order's bytes do not have the digest that the dispatch names")]
    WrongDigest,
    #[error("the agent's policy does not allow it")]
    Policy,
    #[error("the agent lacks a sandbox layer that the task requires")]
    LayerMissing,
    #[error("a sealed secret cannot be opened by this agent")]
    SecretsUnreadable,
    #[error("the program cannot run here")]
    BadProgram,
    #[error("the run was cancelled before it started")]
    Cancelled,
    #[error("the agent has no room")]
    NoRoom,
    #[error("the agent is draining: it finishes what runs and takes nothing new")]
    Draining,
    #[error("the agent could not start it now and gave it back")]
    GivenBack,
    #[error("the agent is not connected")]
    NotConnected,
    /// A word of a newer program. Never written.
    #[error("a reason that this program does not know")]
    Other,
}

impl From<String> for Refusal {
    fn from(word: String) -> Self {
        Refusal::ALL.into_iter().find(|r| r.code() == word).unwrap_or(Refusal::Other)
    }
}

impl Refusal {
    /// Every reason.
    pub const ALL: [Refusal; 26] = [
        Refusal::Unsigned,
        Refusal::BadSignature,
        Refusal::UnknownKey,
        Refusal::TooFewSignatures,
        Refusal::TrustExpired,
        Refusal::WrongKind,
        Refusal::TooLarge,
        Refusal::Malformed,
        Refusal::UnsupportedVersion,
        Refusal::Misdirected,
        Refusal::WrongIncarnation,
        Refusal::NotATarget,
        Refusal::Expired,
        Refusal::Replayed,
        Refusal::StaleAttempt,
        Refusal::WrongDigest,
        Refusal::Policy,
        Refusal::LayerMissing,
        Refusal::SecretsUnreadable,
        Refusal::BadProgram,
        Refusal::Cancelled,
        Refusal::NoRoom,
        Refusal::Draining,
        Refusal::GivenBack,
        Refusal::NotConnected,
        Refusal::Other,
    ];

    /// The stable word, as in `bad-signature`.
    pub fn code(self) -> String {
        serde_json::to_value(self).ok().and_then(|v| v.as_str().map(str::to_owned)).unwrap_or_default()
    }
}

/// A signed message, ready to be published: headers and the exact body.
#[derive(Debug, Clone)]
pub struct Envelope {
    /// What it is.
    pub kind: Kind,
    /// Who signed it.
    pub key: PublicKey,
    /// The signature over domain and body.
    pub signature: Signature,
    /// The signed bytes.
    pub body: Vec<u8>,
}

impl Envelope {
    /// Writes and signs a message.
    pub fn seal<T: Serialize>(kind: Kind, key: &SigningKey, message: &T) -> Self {
        Self::seal_bytes(kind, key, to_bytes(message))
    }

    /// Signs bytes that are already written.
    pub fn seal_bytes(kind: Kind, key: &SigningKey, body: Vec<u8>) -> Self {
        Self { kind, key: key.public().clone(), signature: key.sign(kind, &body), body }
    }

    /// The headers to publish with the body.
    pub fn headers(&self) -> async_nats::HeaderMap {
        let mut headers = async_nats::HeaderMap::new();
        headers.insert(HEADER_KIND, self.kind.word());
        headers.insert(HEADER_KEY, self.key.to_string());
        headers.insert(HEADER_SIGNATURE, self.signature.to_string());
        headers
    }
}

/// The kind that a message claims to be.
pub fn claimed_kind(headers: Option<&async_nats::HeaderMap>) -> Result<Kind, Refusal> {
    let word = headers.and_then(|h| h.get(HEADER_KIND)).ok_or(Refusal::Unsigned)?;
    Kind::of_word(word.as_str()).ok_or(Refusal::WrongKind)
}

/// Checks a received message: size, kind, key, signature, in this order, and returns the signer.
/// Nothing of the body is parsed before.
///
/// `trusted` says whether a key may sign this kind. `max` bounds the body in bytes.
pub fn verify(
    kind: Kind,
    headers: Option<&async_nats::HeaderMap>,
    body: &[u8],
    max: usize,
    trusted: impl Fn(&PublicKey) -> bool,
) -> Result<PublicKey, Refusal> {
    if body.len() > max {
        return Err(Refusal::TooLarge);
    }
    let headers = headers.ok_or(Refusal::Unsigned)?;
    if claimed_kind(Some(headers))? != kind {
        return Err(Refusal::WrongKind);
    }
    let key = headers.get(HEADER_KEY).ok_or(Refusal::Unsigned)?.as_str();
    let key: PublicKey = key.parse().map_err(|_| Refusal::UnknownKey)?;
    let signature = headers.get(HEADER_SIGNATURE).ok_or(Refusal::Unsigned)?.as_str();
    let signature: Signature = signature.parse().map_err(|_| Refusal::BadSignature)?;
    if !trusted(&key) {
        return Err(Refusal::UnknownKey);
    }
    if !key.verify(kind, body, &signature) {
        return Err(Refusal::BadSignature);
    }
    Ok(key)
}

/// Reads a verified body. A version this code does not know is told apart from nonsense.
pub fn read<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    #[derive(Deserialize)]
    struct Versioned {
        v: u32,
    }
    let version = serde_json::from_slice::<Versioned>(body).map_err(|_| Refusal::Malformed)?;
    if version.v != VERSION {
        return Err(Refusal::UnsupportedVersion);
    }
    serde_json::from_slice(body).map_err(|_| Refusal::Malformed)
}

/// Writes a body. The wire types hold only what JSON can: text keys, finite numbers.
pub fn to_bytes<T: Serialize>(message: &T) -> Vec<u8> {
    let bytes = serde_json::to_vec(message).unwrap_or_default();
    #[cfg(debug_assertions)]
    let bytes = versions::body(bytes);
    bytes
}

/// A body of one JSON line, a line feed, and raw bytes: how chunks travel without base64.
pub fn join_head(head: &impl Serialize, payload: &[u8]) -> Vec<u8> {
    let mut body = to_bytes(head);
    body.reserve(payload.len() + 1);
    body.push(b'\n');
    body.extend_from_slice(payload);
    body
}

/// Splits what [`join_head`] joined.
pub fn split_head<T: DeserializeOwned>(body: &[u8]) -> Result<(T, &[u8]), Refusal> {
    let end = body.iter().take(HEAD_MAX).position(|b| *b == b'\n').ok_or(Refusal::Malformed)?;
    Ok((read(&body[..end])?, &body[end + 1..]))
}

/// Longest head line, in bytes.
const HEAD_MAX: usize = 4096;

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, PartialEq, Serialize, Deserialize)]
    struct Note {
        v: u32,
        text: String,
    }

    fn key(n: u8) -> SigningKey {
        SigningKey::from_secret([n; 32])
    }

    fn note(v: u32) -> Note {
        Note { v, text: "hello".into() }
    }

    fn check(
        envelope: &Envelope,
        kind: Kind,
        change: impl Fn(&mut async_nats::HeaderMap, &mut Vec<u8>),
    ) -> Result<(), Refusal> {
        let (mut headers, mut body) = (envelope.headers(), envelope.body.clone());
        change(&mut headers, &mut body);
        verify(kind, Some(&headers), &body, 100, |k| k == key(1).public()).map(|_| ())
    }

    #[test]
    fn only_the_signed_message_is_believed() {
        let sealed = Envelope::seal(Kind::State, &key(1), &note(1));
        assert_eq!(check(&sealed, Kind::State, |_, _| ()), Ok(()));
        assert_eq!(check(&sealed, Kind::Result, |_, _| ()), Err(Refusal::WrongKind));
        let relabel = check(&sealed, Kind::Result, |h, _| {
            h.insert(HEADER_KIND, "result");
        });
        assert_eq!(relabel, Err(Refusal::BadSignature), "a state is no result under another label");
        assert_eq!(check(&sealed, Kind::State, |_, b| b.push(b' ')), Err(Refusal::BadSignature));
        assert_eq!(check(&sealed, Kind::State, |_, b| b.extend([b' '; 200])), Err(Refusal::TooLarge));
        for (header, expected) in [
            (HEADER_KIND, Refusal::WrongKind),
            (HEADER_KEY, Refusal::UnknownKey),
            (HEADER_SIGNATURE, Refusal::BadSignature),
        ] {
            let garbled = check(&sealed, Kind::State, |h, _| {
                h.insert(header, "nonsense");
            });
            assert_eq!(garbled, Err(expected), "{header}");
        }
        let stranger = Envelope::seal(Kind::State, &key(2), &note(1));
        assert_eq!(check(&stranger, Kind::State, |_, _| ()), Err(Refusal::UnknownKey));
        assert_eq!(verify(Kind::State, None, b"{}", 100, |_| true), Err(Refusal::Unsigned));
    }

    #[test]
    fn every_single_bit_counts() {
        let sealed = Envelope::seal(Kind::Dispatch, &key(1), &note(1));
        for bit in 0..sealed.body.len() * 8 {
            let flipped = check(&sealed, Kind::Dispatch, |_, b| b[bit / 8] ^= 1 << (bit % 8));
            assert_eq!(flipped, Err(Refusal::BadSignature), "bit {bit}");
        }
    }

    #[test]
    fn versions_and_unknown_fields() {
        assert_eq!(read::<Note>(br#"{"v":1,"text":"hello"}"#), Ok(note(1)));
        assert_eq!(read::<Note>(br#"{"v":1,"text":"hello","new":[1]}"#), Ok(note(1)));
        assert_eq!(read::<Note>(br#"{"v":2,"words":[]}"#), Err(Refusal::UnsupportedVersion));
        for bad in
            ["", "{", "[]", "null", r#"{"v":1}"#, r#"{"v":1,"v":1,"text":"a"}"#, r#"{"v":1,"text":"a"}x"#]
        {
            assert_eq!(read::<Note>(bad.as_bytes()), Err(Refusal::Malformed), "{bad}");
        }
    }

    #[test]
    fn a_head_and_its_payload_come_apart_again() {
        let body = join_head(&note(1), b"\n\0raw\n");
        assert_eq!(split_head::<Note>(&body), Ok((note(1), &b"\n\0raw\n"[..])));
        assert_eq!(split_head::<Note>(b"no line feed"), Err(Refusal::Malformed));
    }

    #[test]
    fn kinds_have_words_and_domains_of_their_own() {
        let words: std::collections::BTreeSet<_> = Kind::ALL.iter().map(|k| k.word()).collect();
        assert_eq!(words.len(), Kind::ALL.len());
        assert!(Kind::ALL.iter().all(|k| Kind::of_word(k.word()) == Some(*k)));
        assert_eq!(Refusal::BadSignature.code(), "bad-signature");
    }
}
