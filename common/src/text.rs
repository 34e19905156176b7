//! What scripts print, as a record holds it and as it is safe to show.

use crate::wire::record::TextEncoding;

/// Replaces every control character but line feed and tab by an escape like `\x1b`.
pub fn sanitise(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || c == '\t' || !is_dangerous(c) {
            shown.push(c);
        } else if (c as u32) < 0x100 {
            shown.push_str(&format!("\\x{:02x}", c as u32));
        } else {
            shown.push_str(&format!("\\u{{{:x}}}", c as u32));
        }
    }
    shown
}

/// JSON that says the same and cannot drive a terminal. Line feeds between values stay: inside a string JSON has none.
pub fn sanitise_json(json: &str) -> String {
    let mut shown = String::with_capacity(json.len());
    for c in json.chars() {
        if c == '\n' || c == '\t' || c == '\r' || !is_dangerous(c) {
            shown.push(c);
        } else {
            shown.push_str(&format!("\\u{:04x}", c as u32));
        }
    }
    shown
}

/// C0, DEL, C1, and what turns the direction of text.
fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{200e}' | '\u{200f}' | '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// Bytes as text, or as base64 if they are none.
pub fn as_text(bytes: Vec<u8>) -> (String, TextEncoding) {
    match String::from_utf8(bytes) {
        Ok(text) => (text, TextEncoding::Utf8),
        Err(error) => (data_encoding::BASE64.encode(error.as_bytes()), TextEncoding::Base64),
    }
}

/// Moves the edges of a hole to the edges of characters: half a character would turn a whole text into base64. Bytes that
/// are no UTF-8 anyway stay as they are.
pub fn cut_at_characters(before: &mut Vec<u8>, after: &mut Vec<u8>) {
    if let Err(error) = std::str::from_utf8(before)
        && error.error_len().is_none()
    {
        before.truncate(error.valid_up_to());
    }
    // The rest of a character is one to three bytes that continue it.
    let rest = after.iter().take_while(|b| **b & 0b1100_0000 == 0b1000_0000).count();
    if rest <= 3 {
        after.drain(..rest);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(before: &[u8], after: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let (mut before, mut after) = (before.to_vec(), after.to_vec());
        cut_at_characters(&mut before, &mut after);
        (before, after)
    }

    #[test]
    fn a_hole_ends_at_characters() {
        let text = "a中b文".as_bytes();
        for at in 0..=text.len() {
            let (before, after) = cut(&text[..at], &text[at..]);
            assert!(std::str::from_utf8(&before).is_ok() && std::str::from_utf8(&after).is_ok(), "{at}");
            assert!(at - before.len() < 3 && text.len() - at - after.len() < 3, "{at}: too much is gone");
        }
        let binary = (&b"\xff\xfea"[..], &b"\x80\x80\x80\x80"[..]);
        assert_eq!(cut(binary.0, binary.1), (binary.0.to_vec(), binary.1.to_vec()), "no text, nothing cut");
    }
}
