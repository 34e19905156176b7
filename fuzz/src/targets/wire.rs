//! What comes from the broker: anybody may have written it.

use async_nats::HeaderMap;
use sally_common::key::SigningKey;
use sally_common::trust::TrustList;
use sally_common::wire::api::{Event, Hello, Reply, Request, Submit};
use sally_common::wire::command::{Answer, Cancel, Chunk, Dispatch, Probe, Receipt};
use sally_common::wire::enrol::{Enrol, Enrolled, Identity, Token};
use sally_common::wire::order::Order;
use sally_common::wire::record::{JobWithRuns, RunRecord};
use sally_common::wire::report::{Ask, Heartbeat, LogChunk, ResultMessage, State};
use sally_common::wire::{self, Kind, Refusal};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::halves;

/// Header lines before the NUL, the body behind it: no bytes verify as signed by a key that signed nothing.
pub(super) fn envelope(bytes: &[u8]) {
    let (head, body) = halves(bytes);
    let mut headers = HeaderMap::new();
    for line in String::from_utf8_lossy(head).lines() {
        if let Some((name, value)) = line.split_once(':')
            && let (Ok(name), Ok(value)) =
                (name.parse::<async_nats::HeaderName>(), value.trim().parse::<async_nats::HeaderValue>())
        {
            headers.append(name, value);
        }
    }
    let key = SigningKey::from_secret([7; 32]);
    let Ok(kind) = wire::claimed_kind(Some(&headers)) else { return };
    let refused = wire::verify(kind, Some(&headers), body, 1 << 20, |signer| signer == key.public());
    assert!(refused.is_err(), "a message that nobody signed");
    assert!(wire::verify(kind, Some(&headers), body, 0, |_| true).is_err() || body.is_empty());
    // What is signed is believed as its own kind alone, and not with a byte more.
    let sealed = wire::Envelope::seal_bytes(kind, &key, body.to_vec());
    let good = |kind: Kind, body: &[u8]| {
        wire::verify(kind, Some(&sealed.headers()), body, 1 << 20, |signer| signer == key.public())
    };
    assert_eq!(good(kind, body).as_ref(), Ok(key.public()));
    assert_eq!(good(kind, &[body, b" "].concat()), Err(Refusal::BadSignature));
}

/// One kind of body: what is believed is written so that it is believed again, as the same.
fn one<T: Serialize + DeserializeOwned>(body: &[u8]) {
    if let Ok(message) = wire::read::<T>(body) {
        let written = wire::to_bytes(&message);
        let again: T = wire::read(&written).expect("what was written is read");
        assert_eq!(wire::to_bytes(&again), written);
    }
}

fn headed<T: Serialize + DeserializeOwned>(body: &[u8]) {
    if let Ok((head, payload)) = wire::split_head::<T>(body) {
        let written = wire::join_head(&head, payload);
        assert!(body.ends_with(payload));
        // The head of another writer may be longer than ours reads.
        if let Ok((again, same)) = wire::split_head::<T>(&written) {
            assert_eq!((wire::to_bytes(&again), same), (wire::to_bytes(&head), payload));
        }
    }
}

fn document<T: Serialize + DeserializeOwned>(body: &[u8]) {
    if let Ok(document) = serde_json::from_slice::<T>(body) {
        let written = serde_json::to_vec(&document).expect("a document is written");
        let again: T = serde_json::from_slice(&written).expect("what was written is read");
        assert_eq!(serde_json::to_vec(&again).expect("a document is written"), written);
    }
}

/// A body, read as every kind of message.
pub(super) fn message(bytes: &[u8]) {
    one::<Order>(bytes);
    one::<Dispatch>(bytes);
    one::<Cancel>(bytes);
    one::<Receipt>(bytes);
    one::<Answer>(bytes);
    one::<Probe>(bytes);
    one::<State>(bytes);
    one::<ResultMessage>(bytes);
    one::<Ask>(bytes);
    one::<Heartbeat>(bytes);
    one::<Request>(bytes);
    one::<Reply>(bytes);
    one::<Enrol>(bytes);
    one::<Identity>(bytes);
    one::<Enrolled>(bytes);
    one::<Token>(bytes);
    if let Ok(enrol) = wire::read::<Enrol>(bytes)
        && let Ok(identity) = enrol.identity()
    {
        assert!(identity.key.verify(Kind::Identity, enrol.identity.as_bytes(), &enrol.signature));
    }
    // As text, too: what is read is written so that it is read again, as the same.
    if let Ok(token) = Token::parse(&String::from_utf8_lossy(bytes)) {
        let again = Token::parse(&token.text()).expect("what was written is read");
        assert_eq!(again.text(), token.text());
    }
    headed::<Chunk>(bytes);
    headed::<LogChunk>(bytes);
    headed::<Event>(bytes);
    headed::<Request>(bytes);
    document::<Submit>(bytes);
    document::<Hello>(bytes);
    document::<TrustList>(bytes);
    document::<RunRecord>(bytes);
    document::<JobWithRuns>(bytes);
    if let Ok(order) = wire::read::<Order>(bytes) {
        let _ = order.blobs().filter(|content| content.is_consistent()).count();
    }
}
