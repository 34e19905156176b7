//! What people and callers write: parameters, selectors, names, programs, configuration.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use sally_agent::config;
use sally_common::id::{Digest, Incarnation, JobId, Nonce, RequestId, RunId};
use sally_common::key::{PublicKey, Signature};
use sally_common::name::{Agent, TaskName, User, Zone};
use sally_common::selector::{Selector, is_glob, pattern_matches};
use sally_common::subject::{Channel, Prefix};
use sally_common::{duration, json, params, program, secret, text, variable};

use super::halves;

/// A JSON object, and `KEY=VALUE` arguments (lines) behind a NUL.
pub(super) fn params(bytes: &[u8]) {
    let (file, arguments) = halves(bytes);
    if let Ok(object) = params::check_params(file) {
        assert!(object.as_str().starts_with('{'));
        let again = params::check_params(object.as_str().as_bytes()).expect("it is read again");
        assert_eq!(again, object);
    }
    let arguments: Vec<String> = String::from_utf8_lossy(arguments).lines().map(str::to_owned).collect();
    if let Ok(object) = params::read_params(&arguments, &[("file".to_owned(), file.to_vec())]) {
        json::parse(object.as_str(), json::DEPTH_CEILING).expect("parameters are JSON");
    }
}

/// A selector that is believed judges any labels.
pub(super) fn selector(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(selector) = Selector::parse(&text) {
        let labels: BTreeMap<String, String> =
            [("os", "linux"), ("rack", "7")].map(|(k, v)| (k.to_owned(), v.to_owned())).into();
        let _ = (selector.matches(&labels), selector.matches(&BTreeMap::new()));
    }
    if let (Ok(zone), Ok(agent)) = (Zone::new("dmz"), Agent::new("web-1")) {
        let matched = pattern_matches(&text, &zone, &agent);
        assert!(!matched || is_glob(&text) || ["web-1", "dmz/web-1"].contains(&&*text), "{text:?}");
    }
}

fn word<T: FromStr + Display + PartialEq>(text: &str) {
    if let Ok(word) = text.parse::<T>() {
        assert_eq!(word.to_string(), text, "a word has one form");
        assert!(
            text.bytes().all(|byte| byte.is_ascii_graphic()) && !text.contains(['/', '*', '>']),
            "{text:?}"
        );
    }
}

/// Names, ids, keys and subjects: whatever is believed is safe as a subject's token and as a file's name.
pub(super) fn names(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for good in [
        Zone::new(&text).is_ok(),
        Agent::new(&text).is_ok(),
        TaskName::new(&text).is_ok(),
        User::new(&text).is_ok(),
    ] {
        assert!(!good || (text.len() <= 63 && !text.contains(['.', '/', ' ', '*', '>'])), "{text:?}");
    }
    word::<JobId>(&text);
    word::<RunId>(&text);
    // A caller's own: a key in the ledger, never a subject or a file.
    if let Ok(id) = text.parse::<RequestId>() {
        assert_eq!(id.as_str(), text);
        assert!(text.len() <= 128 && text.bytes().all(|byte| byte.is_ascii_graphic()), "{text:?}");
    }
    word::<Incarnation>(&text);
    word::<Nonce>(&text);
    word::<Digest>(&text);
    word::<PublicKey>(&text);
    if let Ok(signature) = text.parse::<Signature>() {
        assert_eq!(
            signature.to_string().parse::<Signature>().ok().map(|s| s.to_string()),
            Some(signature.to_string())
        );
    }
    if secret::check_name(&text).is_ok() {
        assert!(!text.starts_with('.') && !text.contains('/'));
    }
    if let Ok(prefix) = Prefix::new("sally") {
        for channel in [Channel::Task, Channel::Live, Channel::Result, Channel::Heartbeat] {
            if let Some((zone, agent)) = prefix.parse(channel, &text) {
                assert_eq!(prefix.agent(channel, &zone, &agent), text);
            }
        }
    }
}

/// A script or a program, as far as its kind is told by its bytes.
pub(super) fn program(bytes: &[u8]) {
    let kind = program::inspect(bytes);
    for interpreter in [false, true] {
        let _ = program::check(bytes, interpreter);
    }
    if let (Ok(kind), Some(host)) = (kind, program::Machine::current()) {
        let _ = program::check_machine(&kind, host);
    }
    let fixed = program::fix_crlf(bytes);
    let without =
        |bytes: &[u8]| -> Vec<u8> { bytes.iter().copied().filter(|byte| !b"\r\n".contains(byte)).collect() };
    assert!(
        fixed.len() <= bytes.len() && without(&fixed) == without(bytes),
        "more than line ends was mended"
    );
}

/// What is shown to people drives no terminal.
pub(super) fn text(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    let calm = |c: char| c == '\n' || c == '\t' || !c.is_control();
    assert!(text::sanitise(&text).chars().all(calm));
    let mut quoted = String::new();
    json::quote(&text, &mut quoted);
    let shown = text::sanitise_json(&quoted);
    assert!(shown.chars().all(calm));
    let back = json::parse(&shown, 1).ok().and_then(|node| node.as_string().map(|t| t.into_owned()));
    assert_eq!(back.as_deref(), Some(&*text), "it says something else");
    let (_, encoding) = text::as_text(bytes.to_vec());
    assert_eq!(
        encoding == sally_common::wire::record::TextEncoding::Utf8,
        std::str::from_utf8(bytes).is_ok()
    );
    if let Ok(time) = duration::parse(&text) {
        // For people, and so rounded; never empty.
        assert!(!duration::show(duration::ms(time)).is_empty());
    }
    let (name, value) = halves(bytes);
    let (name, value) = (String::from_utf8_lossy(name), String::from_utf8_lossy(value));
    if variable::check_task_variable(&name, &value).is_ok() {
        assert!(variable::check_form(&name, &value).is_ok());
        assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'));
        assert!(!name.starts_with("LD_") && !name.starts_with("SALLY_"), "{name}");
    }
}

/// The agent's configuration, as far as it needs no other file.
pub(super) fn config(bytes: &[u8]) {
    if let Ok((limits, _)) = config::check_text(&String::from_utf8_lossy(bytes)) {
        let most = sally_agent::sandbox::Limits::CEILING;
        assert_eq!(limits.check_within(&most), Ok(()), "more than any launcher allows");
    }
}
