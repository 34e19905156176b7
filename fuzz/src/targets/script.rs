//! What a script says.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt as _;

use sally_agent::script::task_cli;
use sally_agent::script::{Door, EventScanner, Masker, ResultLimits, ResultState, ScriptResult, read_result};
use sally_common::json::{self, Node};

use super::halves;

/// Small, so that short inputs reach them.
const LIMITS: ResultLimits = ResultLimits { result_bytes: 512, stream_bytes: 2048, depth: 8 };

/// What must hold of every result.
fn check(read: &ScriptResult, limits: &ResultLimits) {
    assert_eq!(read.json.is_some(), read.state == ResultState::Valid);
    let faulty =
        matches!(read.state, ResultState::Invalid | ResultState::Oversize | ResultState::SchemaMismatch);
    assert_eq!(read.error.is_some(), faulty);
    assert_eq!(read.failed_reason(false).is_some(), faulty || read.failure.is_some());
    if let Some(text) = &read.json {
        assert!(text.as_str().len() as u64 <= limits.result_bytes, "larger than its limit");
        let again = json::parse(text.as_str(), limits.depth).expect("a valid result is valid JSON");
        assert_eq!(again.to_json(), *text, "writing it again changes it");
        serde_json::from_str::<serde_json::Value>(text.as_str()).expect("other readers take it too");
    }
    for artifact in &read.artifacts {
        assert!(!artifact.name.contains(['/', '\0']) && !artifact.path.starts_with('/'), "{artifact:?}");
        assert!(!artifact.path.split('/').any(|part| part == ".."), "{artifact:?}");
    }
}

/// Descriptor 3 and the result file, with a NUL between them.
pub(super) fn result(bytes: &[u8]) {
    let (first, second) = halves(bytes);
    for limits in [LIMITS, ResultLimits::default()] {
        check(&read_result(&Door::whole(first), &Door::whole(second), &limits), &limits);
        // A door of which only the beginning was kept.
        let cut = Door { bytes: first, seen: first.len() as u64 + 1 };
        let read = read_result(&cut, &Door::whole(second), &limits);
        assert_ne!(read.state, ResultState::Valid, "a result whose end nobody saw");
        check(&read, &limits);
    }
}

/// A stream in pieces gives the same events as in one; a valid one the same as the reader at its end.
pub(super) fn events(bytes: &[u8]) {
    let (sizes, stream) = halves(bytes);
    let mut whole = EventScanner::new();
    let expected = whole.push(stream);
    let (mut pieces, mut found, mut rest) = (EventScanner::new(), Vec::new(), stream);
    for size in sizes.iter().cycle().take(stream.len() + 1) {
        let (piece, after) = rest.split_at(usize::from(*size).clamp(1, rest.len().max(1)).min(rest.len()));
        found.extend(pieces.push(piece));
        rest = after;
    }
    found.extend(pieces.push(rest));
    assert_eq!(found, expected);
    assert_eq!(pieces.stopped(), whole.stopped());
    let read = read_result(&Door::whole(stream), &Door::whole(b""), &ResultLimits::default());
    if matches!(read.state, ResultState::Valid | ResultState::Absent) {
        assert!(!whole.stopped(), "the scanner gave up on a stream that is valid");
    }
}

/// Secrets (lines before the NUL) leave a stream in pieces as they leave it whole.
pub(super) fn mask(bytes: &[u8]) {
    let (secrets, stream) = halves(bytes);
    let secrets: Vec<String> =
        secrets.split(|byte| *byte == b'\n').map(|line| String::from_utf8_lossy(line).into_owned()).collect();
    let masker = || {
        let mut masker = Masker::new();
        let added: Vec<&String> = secrets.iter().filter(|secret| masker.add(secret).is_ok()).collect();
        (masker, added)
    };
    let (mut whole, added) = masker();
    let mut expected = whole.push(stream).into_owned();
    expected.extend(whole.finish());
    let (mut pieces, _) = masker();
    let mut found = Vec::new();
    for piece in stream.chunks(usize::from(stream.first().copied().unwrap_or_default() % 7) + 1) {
        found.extend_from_slice(&pieces.push(piece));
    }
    found.extend(pieces.finish());
    assert_eq!(found, expected);
    for secret in added {
        let secret = secret.trim_end_matches(['\r', '\n']).as_bytes();
        // What the mask itself puts together is no leak: three stars beside what was there.
        let shows = |text: &[u8]| text.windows(secret.len()).any(|window| window == secret);
        assert!(secret.contains(&b'*') || !shows(&expected), "a secret is shown");
    }
}

/// Arguments of `sally-task`, NUL between them, the content of files at the end: what it writes is always read.
pub(super) fn task(bytes: &[u8]) {
    let mut words: Vec<&[u8]> = bytes.split(|byte| *byte == 0).collect();
    let file = words.pop().unwrap_or_default();
    let args = words.into_iter().map(|word| OsString::from_vec(word.to_vec()));
    let Some(line) = task_cli::line_of(args, file) else { return };
    assert!(line.ends_with('\n') && !line.trim_end_matches('\n').contains('\n'), "not one line: {line:?}");
    let read = read_result(&Door::whole(line.as_bytes()), &Door::whole(b""), &ResultLimits::default());
    assert!(
        matches!(read.state, ResultState::Valid | ResultState::Absent | ResultState::Oversize),
        "{line:?}: {:?}",
        read.error
    );
    assert_eq!(read.unknown_events, 0, "{line:?}");
}

/// The strict reader takes nothing that another reader refuses, and what it writes it reads as the same.
pub(super) fn json(bytes: &[u8]) {
    let (text, trouble) = json::utf8_prefix(bytes);
    // A byte order mark is refused with what is no UTF-8.
    assert_eq!(trouble.is_none(), std::str::from_utf8(bytes).is_ok() && !bytes.starts_with(b"\xef\xbb\xbf"));
    for depth in [1, 8, json::DEPTH_CEILING] {
        let Ok(node) = json::parse(text, depth) else { continue };
        serde_json::from_str::<&serde_json::value::RawValue>(text.trim()).expect("JSON to any reader");
        let written = node.to_json();
        let again = json::parse(written.as_str(), depth).expect("what was written is read");
        assert_eq!(again.to_json(), written);
        if let Node::Object(members) = &node {
            assert_eq!(members.len(), members.iter().count());
            assert!(members.iter().all(|(key, _)| members.get(key).is_some()));
        }
    }
    let mut parser = json::Parser::new(text, 8);
    parser.set_max_bytes(64);
    while let Ok(Some((at, _))) = parser.next_value() {
        assert!(at < parser.offset() && parser.offset() - at <= 64);
    }
    let mut quoted = String::new();
    json::quote(text, &mut quoted);
    let back = json::parse(&quoted, 1).ok().and_then(|node| node.as_string().map(|t| t.into_owned()));
    assert_eq!(back.as_deref(), Some(text));
}
