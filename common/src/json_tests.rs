#![allow(clippy::unwrap_used, clippy::panic, reason = "a test that cannot go on should stop")]

use super::*;

/// The compact text, or `offset: message`.
fn read(text: &str) -> String {
    match utf8(text.as_bytes()).and_then(|text| parse(text, 64)) {
        Ok(node) => node.to_json().into_string(),
        Err(error) => format!("{}: {}", error.offset, error.message),
    }
}

#[track_caller]
fn check(text: &str, expected: &str) {
    assert_eq!(read(text), expected, "for {text:?}");
}

#[track_caller]
fn refused(text: &str, offset: usize, part: &str) {
    let error = utf8(text.as_bytes()).and_then(|text| parse(text, 64)).expect_err(text);
    assert_eq!(error.offset, offset, "for {text:?}: {error}");
    assert!(error.message.contains(part), "for {text:?}: {error}");
}

#[test]
fn values_become_compact_and_keep_their_order() {
    check(" { \"b\" : [ 1 , 2 ] ,\n\"a\":null} ", r#"{"b":[1,2],"a":null}"#);
    check("{}", "{}");
    check("[ ]", "[]");
    check("\"a b\"", "\"a b\"");
    check(" true", "true");
    check(r#"[{"x": "a  b"}]"#, r#"[{"x":"a  b"}]"#);
}

#[test]
fn numbers_keep_their_text() {
    for number in ["0", "-0", "1.0", "1e5", "1E+5", "123456789012345678901234567890", "0.1000", "-1.5e-300"] {
        check(number, number);
        check(&format!("[{number}]"), &format!("[{number}]"));
    }
}

#[test]
fn bad_numbers() {
    refused("01", 1, "begin with 0");
    refused("-", 1, "a digit");
    refused("1.", 2, "a digit");
    refused(".5", 0, "a JSON value");
    refused("+1", 0, "a JSON value");
    refused("1e", 2, "a digit");
    refused("[1e400]", 1, "double");
    refused(&"9".repeat(400), 0, "double");
    refused("NaN", 0, "NaN and Infinity");
    refused(r#"{"a": Infinity}"#, 6, "NaN and Infinity");
    refused("-Infinity", 1, "NaN and Infinity");
    refused("0x10", 1, "only one");
}

#[test]
fn strings() {
    check(r#""\u0061\n\/\ud83d\ude00""#, "\"a\\n/😀\"");
    check(r#""\u0000\u001f\u2028""#, "\"\\u0000\\u001f\u{2028}\"");
    check("\"主机\"", "\"主机\"");
    refused(r#""\ud800""#, 1, "surrogate");
    refused(r#"{"a":"\ud800\u0041"}"#, 6, "surrogate");
    refused(r#""\udc00""#, 1, "surrogate");
    refused(r#""\x41""#, 1, "escape");
    refused(r#""\u00g1""#, 5, "hexadecimal");
    refused("\"a\nb\"", 2, "control character");
    refused("\"abc", 4, "the end of the string, found the end");
    refused("\"abc\\", 5, "found the end");
    refused("'a'", 0, "double quotes");
}

#[test]
fn duplicate_keys_are_found_through_escapes_and_at_every_level() {
    refused(r#"{"a":1,"a":2}"#, 7, "\"a\" stands twice");
    refused(r#"{"a":1,"\u0061":2}"#, 7, "\"a\" stands twice");
    refused(r#"[{"b":[{"a":1,"a":1}]}]"#, 14, "twice");
    let many: Vec<String> = (0..40).map(|i| format!("\"k{i}\":{i}")).collect();
    let head = format!("{{{},", many.join(","));
    refused(&format!("{head}\"k3\":0}}"), head.len(), "\"k3\"");
    check(r#"{"a":{"a":1}}"#, r#"{"a":{"a":1}}"#);
}

#[test]
fn form() {
    refused("", 0, "found nothing");
    refused("{\"a\":1} x", 8, "only one");
    refused("{\"a\":1,}", 7, "a key");
    refused("[1,]", 3, "a JSON value");
    refused("{a:1}", 1, "a key");
    refused("{\"a\" 1}", 5, "`:`");
    refused("{\"a\":1", 6, "found the end");
    refused("[1 2]", 3, "`,` or `]`");
    refused("tru", 3, "`true`");
    refused("True", 0, "small letters");
    refused("// c\n1", 0, "a JSON value");
    refused("\u{feff}1", 0, "byte order mark");
    refused("\u{0}", 0, "byte 0x00");
    assert_eq!(utf8(b"\"a\xff\"").unwrap_err().offset, 2);
}

#[test]
fn depth_is_counted_before_the_stack_is() {
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    check(&deep(64), &deep(64));
    refused(&deep(65), 64, "deeper than 64");
    refused(&"[".repeat(100_000), 64, "deeper than 64");
    refused(&"{\"a\":".repeat(100_000), 64 * 5, "deeper than 64");
    assert!(parse(&"[".repeat(100_000), usize::MAX).is_err());
}

#[test]
fn too_long_is_found_early_and_said_apart() {
    let text = format!("[{}]", "1,".repeat(1000));
    let mut parser = Parser::new(&text, 64);
    parser.set_max_bytes(100);
    let error = parser.next_value().unwrap_err();
    assert!(error.too_long);
    assert!(parser.offset() < 110, "stopped at {}", parser.offset());
    let mut exact = Parser::new("[1,2]", 64);
    exact.set_max_bytes(5);
    assert!(exact.next_value().is_ok());
    let mut over = Parser::new("\"1234\"", 64);
    over.set_max_bytes(5);
    assert!(over.next_value().unwrap_err().too_long);
}

fn object(text: &str) -> Members<'_> {
    match parse(text, 64) {
        Ok(Node::Object(members)) => members,
        other => panic!("{text}: {other:?}"),
    }
}

#[track_caller]
fn merged(parts: &[&str], expected: &str) {
    let mut all = Members::default();
    for part in parts {
        all.merge(object(part));
    }
    let mut out = String::new();
    all.write(&mut out);
    assert_eq!(out, expected);
}

#[test]
fn merging() {
    merged(&[r#"{"a":1}"#, r#"{"b":2}"#, r#"{"a":3}"#], r#"{"a":3,"b":2}"#);
    merged(&[r#"{"a":{"x":1,"y":2}}"#, r#"{"a":{"y":3,"z":4}}"#], r#"{"a":{"x":1,"y":3,"z":4}}"#);
    merged(&[r#"{"a":{"x":1}}"#, r#"{"a":null}"#], r#"{"a":null}"#);
    merged(&[r#"{"a":null}"#, r#"{"a":{"x":1}}"#], r#"{"a":{"x":1}}"#);
    merged(&[r#"{"a":[1,2]}"#, r#"{"a":[3]}"#], r#"{"a":[3]}"#);
    merged(&["{}"], "{}");
}

#[test]
fn many_small_objects_merge_in_linear_time() {
    let mut all = Members::default();
    let texts: Vec<String> = (0..50_000).map(|i| format!("{{\"k{i}\":{i}}}")).collect();
    for text in &texts {
        all.merge(object(text));
    }
    assert_eq!(all.len(), 50_000);
    assert!(matches!(all.get("k49999"), Some(Node::Leaf("49999"))));
}

#[test]
fn conflicts_name_the_path() {
    let conflict = |a: &str, b: &str| object(a).conflict(&object(b));
    assert_eq!(conflict(r#"{"a":1}"#, r#"{"b":1}"#), None);
    assert_eq!(conflict(r#"{"a":"x"}"#, r#"{"a": "\u0078"}"#), None);
    assert_eq!(conflict(r#"{"a":1}"#, r#"{"a":2}"#).as_deref(), Some("a"));
    assert_eq!(conflict(r#"{"a":{"b":1,"c":[1]}}"#, r#"{"a":{"c":[2]}}"#).as_deref(), Some("a.c"));
    assert_eq!(conflict(r#"{"a":{"b":1}}"#, r#"{"a":5}"#).as_deref(), Some("a"));
    assert_eq!(conflict(r#"{"a":{}}"#, r#"{"a":{"b":1}}"#), None);
}

#[test]
fn removing_keeps_the_index_true() {
    let text = format!("{{{}}}", (0..30).map(|i| format!("\"k{i}\":{i}")).collect::<Vec<_>>().join(","));
    let mut members = object(&text);
    assert!(members.remove("k3").is_some());
    assert!(members.remove("k3").is_none());
    assert!(matches!(members.get("k29"), Some(Node::Leaf("29"))));
}

#[test]
fn json_text_serializes_as_the_value() {
    #[derive(serde::Serialize, serde::Deserialize)]
    struct Holder {
        result: JsonText,
    }
    let text = r#"{"result":{"n":123456789012345678901234567890,"f":1.0}}"#;
    let holder: Holder = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&holder).unwrap(), text);
    assert!(serde_json::from_str::<Holder>(r#"{"result":{"a":1,"a":2}}"#).is_err());
}

/// A small generator of random numbers (xorshift), so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 % n as u64) as usize
    }
}

const PIECES: [&str; 35] = [
    "{",
    "}",
    "[",
    "]",
    ",",
    ":",
    "\"",
    "\"a\"",
    "\"b\"",
    "\"\\u0061\"",
    "1",
    "-",
    "0",
    ".5",
    "e3",
    "1e999",
    "true",
    "false",
    "null",
    "nul",
    " ",
    "\n",
    "\\",
    "\"\\ud800\"",
    "\"\\ud83d\\ude00\"",
    "é",
    "\u{1}",
    "NaN",
    "\"a\":",
    "\"b\":1",
    "\"c\":{}",
    "[]",
    "{\"k\":",
    "{\"a\":1,",
    "\"\\u0061\":2}",
];

/// Whatever serde_json refuses this reader refuses; whatever this reader refuses alone is on its short list.
#[test]
fn random_texts_agree_with_serde_json() {
    let mut random = Random(0x5a11_0b0e);
    let (mut accepted, mut refused_alone) = (0, 0);
    for _ in 0..200_000 {
        let text: String = (0..1 + random.below(9)).map(|_| PIECES[random.below(PIECES.len())]).collect();
        let theirs = serde_json::from_str::<serde_json::Value>(&text);
        match (parse(&text, 64), theirs) {
            (Ok(node), Ok(theirs)) => {
                let ours: serde_json::Value = serde_json::from_str(node.to_json().as_str()).unwrap();
                assert_eq!(ours, theirs, "for {text:?}");
                accepted += 1;
            }
            (Ok(_), Err(error)) => panic!("{text:?} was accepted, serde_json says {error}"),
            (Err(error), Ok(_)) => {
                assert!(error.message.contains("twice"), "{text:?} was refused: {error}");
                refused_alone += 1;
            }
            (Err(_), Err(_)) => {}
        }
    }
    assert!(accepted > 1000 && refused_alone > 10, "{accepted} accepted, {refused_alone} refused alone");
}

/// A value written by serde_json survives this reader, and any one changed byte never makes it panic.
#[test]
fn random_changes_never_panic() {
    let text =
        r#"{"a":[1,-2.5e3,"x\"y\\z\u00e9",{"b":null,"c":[true,false]}],"主":"机","d":{"e":{"f":[[],{}]}}}"#;
    let mut random = Random(42);
    for _ in 0..50_000 {
        let mut bytes = text.as_bytes().to_vec();
        for _ in 0..1 + random.below(3) {
            let at = random.below(bytes.len());
            bytes[at] = random.below(256) as u8;
        }
        let at = random.below(bytes.len() + 1);
        bytes.truncate(at.max(1));
        if let Ok(node) = utf8(&bytes).and_then(|text| parse(text, 64)) {
            assert!(serde_json::from_str::<serde_json::Value>(node.to_json().as_str()).is_ok());
        }
    }
}
