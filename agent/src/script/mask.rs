//! Takes declared secrets out of output, also when a secret arrives in pieces.
//!
//! Every occurrence becomes `***`; occurrences that overlap become one. A value of several lines (a key file) is
//! masked as a whole and line by line, because tools print it line by line. Values shorter than
//! [`MIN_BYTES`] are not masked: a mask on `1` would shred the output and still hide nothing.
//!
//! The search is an Aho-Corasick automaton: its cost per byte does not grow with the number of secrets, so a
//! script that masks a lot cannot make its agent slow. Bytes are held back only while they may be the
//! beginning of a secret: never more than the longest one.

use std::borrow::Cow;
use std::collections::VecDeque;

/// The shortest value that is masked, in bytes.
pub const MIN_BYTES: usize = 4;

/// How many bytes of secrets one masker holds; more is refused by [`Masker::add`].
pub const TOTAL_BYTES: usize = 256 * 1024;

const MASK: &[u8] = b"***";

/// Why a value is not masked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotMasked {
    /// The value is too short to be told from ordinary text.
    #[error("a value of fewer than {MIN_BYTES} bytes cannot be masked")]
    TooShort,
    /// The masker holds as much as it may.
    #[error("more than {TOTAL_BYTES} bytes of values to mask")]
    TooMuch,
}

/// Replaces declared values in one stream of output. Use one for each stream.
#[derive(Debug, Default)]
pub struct Masker {
    values: Vec<Vec<u8>>,
    total: usize,
    nodes: Vec<Node>,
    /// The values changed since the automaton was built.
    stale: bool,
    state: usize,
    /// Bytes not given out yet.
    held: VecDeque<u8>,
    /// How many bytes of the stream were given out or replaced.
    given: u64,
    /// Ranges of the stream, from the first byte to behind the last, that belong to secrets; they do not touch.
    marks: VecDeque<(u64, u64)>,
    /// Bytes that begin a secret.
    first: Vec<bool>,
    /// The last byte given out belonged to a secret whose `***` is out already.
    in_mask: bool,
}

#[derive(Debug, Default)]
struct Node {
    next: Vec<(u8, usize)>,
    /// The node of the longest proper suffix that begins a secret.
    fail: usize,
    depth: usize,
    /// Length of the longest secret that ends here; 0 for none.
    ends: usize,
}

impl Masker {
    /// Returns a masker that changes nothing yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Masks `value` from here on, also in bytes that are still held back.
    ///
    /// # Errors
    /// When the value is too short (nothing of it is masked) or there is no room for it.
    pub fn add(&mut self, value: &str) -> Result<(), NotMasked> {
        let whole = value.trim_end_matches(['\r', '\n']).as_bytes();
        if whole.len() < MIN_BYTES {
            return Err(NotMasked::TooShort);
        }
        let lines = value.lines().map(str::trim).map(str::as_bytes);
        for part in std::iter::once(whole).chain(lines).filter(|part| part.len() >= MIN_BYTES) {
            if self.values.iter().any(|have| have == part) {
                continue;
            }
            if self.total + part.len() > TOTAL_BYTES {
                return Err(NotMasked::TooMuch);
            }
            self.total += part.len();
            self.values.push(part.to_vec());
            self.stale = true;
        }
        Ok(())
    }

    /// Takes the next bytes and returns what may be shown; the rest is held back until it is clear.
    pub fn push<'a>(&mut self, bytes: &'a [u8]) -> Cow<'a, [u8]> {
        if self.values.is_empty() {
            return Cow::Borrowed(bytes);
        }
        self.rebuild_if_stale();
        let mut out = Vec::with_capacity(bytes.len());
        let mut rest = bytes;
        while !rest.is_empty() {
            // Most output begins no secret: that much is copied in one go.
            if self.held.is_empty() {
                let plain = rest.iter().position(|b| self.first[usize::from(*b)]).unwrap_or(rest.len());
                if plain > 0 {
                    out.extend_from_slice(&rest[..plain]);
                    self.given += plain as u64;
                    self.in_mask = false;
                    rest = &rest[plain..];
                    continue;
                }
            }
            self.step(rest[0]);
            self.release(self.nodes[self.state].depth, &mut out);
            rest = &rest[1..];
        }
        Cow::Owned(out)
    }

    /// Returns what is still held back: the stream is at its end.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut out = Vec::new();
        if !self.values.is_empty() {
            self.rebuild_if_stale();
        }
        self.release(0, &mut out);
        self.state = 0;
        out
    }

    fn step(&mut self, byte: u8) {
        self.held.push_back(byte);
        self.state = self.follow(self.state, byte);
        let end = self.given + self.held.len() as u64;
        let ends = self.nodes[self.state].ends as u64;
        if ends > 0 {
            self.mark(end - ends, end);
        }
    }

    /// Marks a range as secret. Ranges come with growing ends, so only the last ones can touch it.
    fn mark(&mut self, mut start: u64, end: u64) {
        while let Some(&(from, to)) = self.marks.back() {
            if to < start {
                break;
            }
            start = start.min(from);
            self.marks.pop_back();
        }
        self.marks.push_back((start, end));
    }

    /// Gives out all but the last `keep` bytes. No match to come can begin before those.
    fn release(&mut self, keep: usize, out: &mut Vec<u8>) {
        while self.held.len() > keep {
            let Some(byte) = self.held.pop_front() else { return };
            let secret = self.marks.front().is_some_and(|&(from, _)| from <= self.given);
            self.given += 1;
            if self.marks.front().is_some_and(|&(_, to)| to <= self.given) {
                self.marks.pop_front();
            }
            if !secret {
                out.push(byte);
            } else if !self.in_mask {
                out.extend_from_slice(MASK);
            }
            self.in_mask = secret;
        }
    }

    fn follow(&self, mut state: usize, byte: u8) -> usize {
        loop {
            if let Some(next) = self.nodes[state].child(byte) {
                return next;
            }
            if state == 0 {
                return 0;
            }
            state = self.nodes[state].fail;
        }
    }

    fn rebuild_if_stale(&mut self) {
        if !std::mem::take(&mut self.stale) {
            return;
        }
        self.nodes = build(&self.values);
        self.first = vec![false; 256];
        for (byte, _) in &self.nodes[0].next {
            self.first[usize::from(*byte)] = true;
        }
        // What is held back is read again with the new automaton; marks already made stay: the old values are
        // among the new ones, so every match they came from is found again.
        self.state = 0;
        let held = std::mem::take(&mut self.held);
        for byte in held {
            self.step(byte);
        }
    }
}

impl Node {
    fn child(&self, byte: u8) -> Option<usize> {
        self.next.iter().find(|(have, _)| *have == byte).map(|(_, node)| *node)
    }
}

fn build(values: &[Vec<u8>]) -> Vec<Node> {
    let mut nodes = vec![Node::default()];
    for value in values {
        let mut at = 0;
        for &byte in value {
            at = match nodes[at].child(byte) {
                Some(next) => next,
                None => {
                    let depth = nodes[at].depth + 1;
                    nodes.push(Node { depth, ..Node::default() });
                    let new = nodes.len() - 1;
                    nodes[at].next.push((byte, new));
                    new
                }
            };
        }
        nodes[at].ends = value.len();
    }
    link_suffixes(&mut nodes);
    nodes
}

fn link_suffixes(nodes: &mut [Node]) {
    let mut queue: VecDeque<usize> = nodes[0].next.iter().map(|(_, node)| *node).collect();
    while let Some(at) = queue.pop_front() {
        for (byte, child) in nodes[at].next.clone() {
            let mut suffix = nodes[at].fail;
            let fail = loop {
                if let Some(next) = nodes[suffix].child(byte) {
                    break next;
                }
                if suffix == 0 {
                    break 0;
                }
                suffix = nodes[suffix].fail;
            };
            nodes[child].fail = fail;
            nodes[child].ends = nodes[child].ends.max(nodes[fail].ends);
            queue.push_back(child);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use super::*;

    fn mask(values: &[&str], text: &[u8], piece: usize) -> Vec<u8> {
        let mut masker = Masker::new();
        for value in values {
            masker.add(value).unwrap();
        }
        let mut out: Vec<u8> = Vec::new();
        for bytes in text.chunks(piece) {
            out.extend_from_slice(&masker.push(bytes));
        }
        out.extend(masker.finish());
        out
    }

    #[track_caller]
    fn check(values: &[&str], text: &str, expected: &str) {
        for piece in [1, 2, 3, 5, 8, 1000] {
            let out = String::from_utf8(mask(values, text.as_bytes(), piece)).unwrap();
            assert_eq!(out, expected, "in pieces of {piece}");
        }
    }

    #[test]
    fn values_disappear_across_pieces() {
        check(&["hunter2"], "password is hunter2, yes hunter2!", "password is ***, yes ***!");
        check(&["hunter2"], "hunter", "hunter");
        check(&["hunter2"], "hunthunter2", "hunt***");
        check(&["密码密码"], "x密码密码y", "x***y");
        check(&[], "as it is", "as it is");
        check(&["abcd"], "", "");
    }

    #[test]
    fn overlapping_values_become_one() {
        check(&["abcd", "abcdef"], "abcdef abcde abcd", "*** ***e ***");
        check(&["abcd", "cdef"], "abcdef", "***");
        check(&["abcabc"], "abcabcabc.", "***.");
        check(&["aaaa"], "baaaaaaab", "b***b");
        check(&["xabcdy", "abcd"], "xabcdz", "x***z");
        check(&["abcd"], "abcdabcd", "***");
    }

    #[test]
    fn several_lines_are_masked_line_by_line() {
        check(&["-----KEY\nAAAABBBB\nx\n"], "1 -----KEY\n2 AAAABBBB\n3 x\n", "1 ***\n2 ***\n3 x\n");
        check(&["secret\n"], "secret", "***");
    }

    #[test]
    fn short_values_are_refused() {
        let mut masker = Masker::new();
        assert_eq!(masker.add("abc"), Err(NotMasked::TooShort));
        assert_eq!(masker.add("abc\n"), Err(NotMasked::TooShort));
        assert_eq!(masker.add(""), Err(NotMasked::TooShort));
        assert_eq!(&*masker.push(b"abc"), b"abc");
        assert_eq!(masker.add(&"x".repeat(TOTAL_BYTES + 1)), Err(NotMasked::TooMuch));
    }

    #[test]
    fn bytes_that_are_not_text_pass() {
        assert_eq!(mask(&["abcd"], b"\xff\x00abcd\xfe", 2), b"\xff\x00***\xfe");
    }

    #[test]
    fn a_value_added_later_covers_what_is_held_back() {
        let mut masker = Masker::new();
        masker.add("hunter2").unwrap();
        let mut out = masker.push(b"a hunt").into_owned();
        masker.add("hunt-2").unwrap();
        out.extend_from_slice(&masker.push(b"-2 hunter2 b"));
        out.extend(masker.finish());
        assert_eq!(out, b"a *** *** b");
    }

    #[test]
    fn only_a_possible_beginning_is_held_back() {
        let mut masker = Masker::new();
        masker.add("hunter2").unwrap();
        assert_eq!(&*masker.push(b"abc hun"), b"abc ");
        assert_eq!(&*masker.push(b"d"), b"hund");
    }

    /// Against the plain definition: a byte is secret if any occurrence of any value covers it.
    #[test]
    fn random_texts_agree_with_the_definition() {
        let mut seed = 7u64;
        let mut below = move |n: usize| {
            seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (seed >> 33) as usize % n
        };
        for _ in 0..3000 {
            let mut word =
                |len: usize| -> String { (0..len).map(|_| char::from(b'a' + below(2) as u8)).collect() };
            let values: Vec<String> = [4, 5, 7].into_iter().map(&mut word).collect();
            let text = word(40);
            let mut secret = vec![false; text.len()];
            for value in &values {
                for at in 0..text.len() {
                    if text[at..].starts_with(value.as_str()) {
                        secret[at..at + value.len()].fill(true);
                    }
                }
            }
            let mut expected = String::new();
            for (i, c) in text.chars().enumerate() {
                match secret[i] {
                    false => expected.push(c),
                    true if i > 0 && secret[i - 1] => {}
                    true => expected.push_str("***"),
                }
            }
            let values: Vec<&str> = values.iter().map(String::as_str).collect();
            let out = mask(&values, text.as_bytes(), 1 + below(9));
            assert_eq!(String::from_utf8(out).unwrap(), expected, "{values:?} in {text}");
        }
    }

    /// A script chose the worst values for a slow search; the bound is generous, a quadratic search misses it.
    #[test]
    fn hostile_values_stay_cheap() {
        let long = "a".repeat(60_000);
        let out = mask(&[&long, "aaaaab"], "a".repeat(2_000_000).as_bytes(), 4096);
        assert_eq!(out, b"***");
    }
}
