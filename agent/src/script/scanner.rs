//! Events while the run goes on: fed with the tail of descriptor 3 in any pieces, it gives out each event as soon
//! as its last byte is there.
//!
//! It keeps at most one event's worth of bytes. It only finds where values begin and end; each candidate is then
//! read by the same code that reads the finished stream, so for a valid stream both see the same events. At
//! the first thing that cannot be JSON it stops, as [`super::read_result`] will.

use sally_common::json::{self, Node};

use super::event::{EVENT_BYTES, Event, read_event};
use super::stream::ResultLimits;

/// Finds events in a stream that is still being written.
#[derive(Debug, Default)]
pub struct EventScanner {
    /// The object being read, as long as it may still be an event.
    held: Vec<u8>,
    overlong: bool,
    /// Whether the value being read is an object; arrays and strings at the top are passed over.
    object: bool,
    depth: usize,
    in_string: bool,
    escaped: bool,
    stopped: bool,
}

impl EventScanner {
    /// Returns a scanner at the beginning of a stream.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes and returns the events that end in them, in order; unknown ones too.
    pub fn push(&mut self, bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        for &byte in bytes {
            if self.stopped {
                break;
            }
            if self.step(byte) {
                self.finish_object(&mut events);
            }
        }
        events
    }

    /// Returns whether the stream cannot be valid any more; nothing after that is read.
    pub fn stopped(&self) -> bool {
        self.stopped
    }

    /// Moves over one byte; returns whether a top-level object ended with it.
    fn step(&mut self, byte: u8) -> bool {
        let inside = self.depth > 0 || self.in_string;
        if !inside {
            return self.begin(byte);
        }
        self.hold(byte);
        if self.in_string {
            match byte {
                _ if self.escaped => self.escaped = false,
                b'\\' => self.escaped = true,
                b'"' => self.in_string = false,
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.in_string = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => self.depth -= 1,
            _ => {}
        }
        self.object && self.depth == 0
    }

    fn begin(&mut self, byte: u8) -> bool {
        self.object = byte == b'{';
        match byte {
            b'{' | b'[' => {
                self.depth = 1;
                self.held.clear();
                self.overlong = false;
                self.hold(byte);
            }
            b'"' => self.in_string = true,
            b' ' | b'\t' | b'\n' | b'\r' | b'-' | b'+' | b'.' | b'0'..=b'9' | b'a'..=b'z' | b'E' => {}
            _ => self.stopped = true,
        }
        false
    }

    fn hold(&mut self, byte: u8) {
        if !self.object || self.overlong {
            return;
        }
        if self.held.len() == EVENT_BYTES {
            self.overlong = true;
            self.held = Vec::new();
            return;
        }
        self.held.push(byte);
    }

    fn finish_object(&mut self, events: &mut Vec<Event>) {
        if self.overlong {
            return;
        }
        let held = std::mem::take(&mut self.held);
        let node = json::utf8(&held).and_then(|text| json::parse(text, ResultLimits::default().depth));
        match node {
            Ok(Node::Object(members)) => match read_event(&members) {
                Ok(Some(event)) => events.push(event),
                Ok(None) => {}
                Err(_) => self.stopped = true,
            },
            _ => self.stopped = true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(text: &str, piece: usize) -> (Vec<Event>, bool) {
        let mut scanner = EventScanner::new();
        let events = text.as_bytes().chunks(piece).flat_map(|bytes| scanner.push(bytes)).collect();
        (events, scanner.stopped())
    }

    #[track_caller]
    fn check(text: &str, expected: &[Event], stopped: bool) {
        for piece in [1, 2, 3, 7, 4096] {
            assert_eq!(scan(text, piece), (expected.to_vec(), stopped), "in pieces of {piece}: {text}");
        }
    }

    fn mask(value: &str) -> Event {
        Event::Mask(value.to_owned())
    }

    #[test]
    fn events_come_out_in_any_pieces() {
        check("{\"@changed\":true}", &[Event::Changed(true)], false);
        check("{\"a\":1}\n{\"@mask\":\"}{\\\"主\"}{\"@x\":1}", &[mask("}{\"主"), Event::Unknown], false);
        check(
            "[{\"@mask\":\"x\"}] \"{\\\"@mask\\\":1}\" 12 true -1.5E+3 {\"@mask\":\"abcd\"}",
            &[mask("abcd")],
            false,
        );
        check("{\n \"@mask\" :\n \"abcd\"\n}\n", &[mask("abcd")], false);
        check("{\"a\":{\"@mask\":\"x\"}}", &[], false);
        check("", &[], false);
    }

    #[test]
    fn nothing_after_a_bad_byte() {
        check("{\"@mask\":\"abcd\"} # {\"@mask\":\"efgh\"}", &[mask("abcd")], true);
        check("{\"@changed\":1}{\"@changed\":true}", &[], true);
        check("{\"a\":1,\"a\":2}{\"@changed\":true}", &[], true);
        check("}{\"@changed\":true}", &[], true);
        check("{]{\"@changed\":true}", &[], true);
    }

    #[test]
    fn an_event_is_out_with_its_last_byte() {
        let mut scanner = EventScanner::new();
        assert_eq!(scanner.push(b"{\"@changed\":true"), []);
        assert_eq!(scanner.push(b"}"), [Event::Changed(true)]);
    }

    #[test]
    fn memory_is_bounded_and_large_data_is_passed_over() {
        let mut scanner = EventScanner::new();
        assert_eq!(scanner.push(b"{\"a\":\""), []);
        for _ in 0..100 {
            assert_eq!(scanner.push(&[b'x'; 10_000]), []);
            assert!(scanner.held.capacity() <= 2 * EVENT_BYTES);
        }
        assert_eq!(scanner.push(b"\"} {\"@mask\":\"abcd\"}"), [mask("abcd")]);
    }

    /// What a viewer sees live is what the result says at the end, whatever stands around the events.
    #[test]
    fn random_streams_agree_with_the_finished_reading() {
        use super::super::{Door, read_result};
        const PIECES: [&str; 12] = [
            "{\"@mask\":\"one1\"}",
            "{\"@mask\":\"two\\\"2\"}",
            "{\"@new\":[{}]}",
            "{\"a\":{\"@mask\":\"no\"}}",
            "[1,[2]]",
            " \n",
            "\"}{\"",
            "12 ",
            "{\"a\":1,\"a\":2}",
            "{\"@changed\":0}",
            "oops",
            "{\"b\":\"\\u007d\"}",
        ];
        let mut seed = 11u64;
        let mut below = move |n: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % n
        };
        for _ in 0..20_000 {
            let text: String = (0..1 + below(6)).map(|_| PIECES[below(PIECES.len())]).collect();
            let result =
                read_result(&Door::whole(text.as_bytes()), &Door::default(), &ResultLimits::default());
            let (events, stopped) = scan(&text, 1 + below(5));
            let mut masks = Vec::new();
            for event in &events {
                if let Event::Mask(value) = event
                    && !masks.contains(value)
                {
                    masks.push(value.clone());
                }
            }
            let unknown = events.iter().filter(|event| **event == Event::Unknown).count() as u64;
            if result.error.is_none() {
                assert!(!stopped, "{text}");
                assert_eq!((&masks, unknown), (&result.masks, result.unknown_events), "{text}");
            } else {
                // A lone value too many ends the reading, but not the scan: masks it may still find do no harm.
                assert!(masks.starts_with(&result.masks) && unknown >= result.unknown_events, "{text}");
            }
        }
    }
}
