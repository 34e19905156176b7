//! Joins a reply that came in parts.

use async_nats::HeaderMap;
use bytes::{Bytes, BytesMut};
use sally_common::limit;
use sally_common::wire::api::HEADER_PART;

/// The parts of one reply so far. Parts of one reply come in order; anything else starts over.
#[derive(Default)]
pub(super) struct Assembly {
    head: Option<HeaderMap>,
    body: BytesMut,
    seen: u32,
    total: u32,
}

impl Assembly {
    /// Takes a message; returns the first part's headers and the whole body when it was the last.
    pub(super) fn push(
        &mut self,
        headers: Option<HeaderMap>,
        payload: Bytes,
    ) -> Option<(Option<HeaderMap>, Bytes)> {
        let (part, total) = place(headers.as_ref())?;
        if total == 1 {
            return Some((headers, payload));
        }
        if part == 1 {
            *self = Self { head: headers, total, ..Self::default() };
        } else if part != self.seen + 1 || total != self.total {
            *self = Self::default();
            return None;
        }
        if self.body.len() + payload.len() > limit::API_REPLY_MAX {
            *self = Self::default();
            return None;
        }
        self.body.extend_from_slice(&payload);
        self.seen = part;
        if part < total {
            return None;
        }
        let whole = std::mem::take(self);
        Some((whole.head, whole.body.freeze()))
    }
}

/// Reads `N/M`; a message without the header is the only part. `None` for nonsense.
fn place(headers: Option<&HeaderMap>) -> Option<(u32, u32)> {
    let Some(text) = headers.and_then(|h| h.get(HEADER_PART)) else { return Some((1, 1)) };
    let (part, total) = text.as_str().split_once('/')?;
    let (part, total) = (part.parse::<u32>().ok()?, total.parse::<u32>().ok()?);
    (1..=total).contains(&part).then_some((part, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(assembly: &mut Assembly, part: &str, body: &'static str) -> Option<String> {
        let mut headers = HeaderMap::new();
        headers.insert(HEADER_PART, part);
        let (head, body) = assembly.push(Some(headers), Bytes::from_static(body.as_bytes()))?;
        let first = head.and_then(|h| h.get(HEADER_PART).map(|v| v.as_str().to_owned()));
        Some(format!("{} {}", first.unwrap_or_default(), String::from_utf8_lossy(&body)))
    }

    #[test]
    fn parts_become_one_body_with_the_first_ones_headers() {
        let mut all = Assembly::default();
        assert_eq!(push(&mut all, "1/1", "one").as_deref(), Some("1/1 one"));
        assert_eq!(push(&mut all, "1/3", "a"), None);
        assert_eq!(push(&mut all, "2/3", "b"), None);
        assert_eq!(push(&mut all, "3/3", "c").as_deref(), Some("1/3 abc"));
        assert!(Assembly::default().push(None, Bytes::new()).is_some(), "without a header it is whole");
    }

    #[test]
    fn a_hole_or_nonsense_never_becomes_a_body() {
        let mut all = Assembly::default();
        for (part, body) in [("1/3", "a"), ("3/3", "c"), ("2/3", "b"), ("3/3", "c")] {
            assert_eq!(push(&mut all, part, body), None, "{part}");
        }
        for bad in ["0/1", "2/1", "x", "1/x", "-1/1", "1/2/3"] {
            assert_eq!(push(&mut all, bad, "a"), None, "{bad}");
        }
        assert_eq!(push(&mut all, "1/2", "a"), None);
        assert_eq!(push(&mut all, "2/3", "b"), None, "another reply's part");
        assert_eq!(push(&mut all, "2/2", "b"), None);
    }
}
