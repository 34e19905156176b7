//! What a program of another version writes, for tests of versions side by side: debug builds rewrite their messages when
//! [`crate::fail::other_version`] says so. Releases have none of it.

use serde_json::Value;

/// A message's body as this program writes it.
pub(super) fn body(bytes: Vec<u8>) -> Vec<u8> {
    match crate::fail::other_version() {
        Some(kind) => rewritten(bytes, &kind),
        None => bytes,
    }
}

/// Objects of a fixed shape in messages; others have keys of their own.
const OBJECTS: [&str; 11] =
    ["from", "to", "news", "question", "slots", "spool", "host", "sandbox", "stored", "call", "usage"];
const UNKNOWN: &str = "\"from_the_future\":{\"list\":[1,null],\"text\":\"?\"},";
/// Fields that came after the first version, by the objects in which they stand.
const LATE: [(&str, &[&str]); 3] = [
    (
        "",
        &[
            "instance",
            "curve_key",
            "deferring",
            "journal_bytes",
            "artifacts",
            "answers",
            "renew",
            "waiting",
            "hard",
        ],
    ),
    ("from", &["journal"]),
    ("question", &["instance", "held_is_all"]),
];

fn rewritten(bytes: Vec<u8>, kind: &str) -> Vec<u8> {
    let Ok(text) = String::from_utf8(bytes.clone()) else { return bytes };
    if !text.starts_with("{\"v\":") {
        return bytes;
    }
    if kind == "newer" { newer(&text) } else { older(&text).unwrap_or(bytes) }
}

fn newer(text: &str) -> Vec<u8> {
    let mut text = text.replacen('{', &format!("{{{UNKNOWN}"), 1);
    for name in OBJECTS {
        let begin = format!("\"{name}\":{{");
        text = text.replace(&format!("{begin}\""), &format!("{begin}{UNKNOWN}\""));
    }
    text.into_bytes()
}

fn older(text: &str) -> Option<Vec<u8>> {
    // A result's numbers stay as the script wrote them.
    if text.contains("\"result_state\"") {
        return None;
    }
    let mut message: Value = serde_json::from_str(text).ok()?;
    for (object, fields) in LATE {
        let object = if object.is_empty() { Some(&mut message) } else { message.get_mut(object) };
        if let Some(Value::Object(object)) = object {
            object.retain(|name, _| !fields.contains(&name.as_str()));
        }
    }
    serde_json::to_vec(&message).ok()
}

#[cfg(test)]
mod tests {
    use super::rewritten;

    #[test]
    fn a_body_is_written_as_by_another_version() {
        let body =
            br#"{"v":1,"from":{"zone":"a","journal":3},"labels":{"from":"x"},"instance":"n","renew":true}"#;
        let newer = String::from_utf8(rewritten(body.to_vec(), "newer")).expect("text");
        assert_eq!(newer.matches("from_the_future").count(), 2, "{newer}");
        let read: serde_json::Value = serde_json::from_str(&newer).expect("JSON");
        assert_eq!(read["from"]["journal"], 3);
        let older: serde_json::Value =
            serde_json::from_slice(&rewritten(body.to_vec(), "older")).expect("JSON");
        assert_eq!(older, serde_json::json!({"v": 1, "from": {"zone": "a"}, "labels": {"from": "x"}}));
        assert_eq!(rewritten(b"[1]".to_vec(), "newer"), b"[1]", "no message");
    }
}
