//! What people are shown of a configuration: the commented file, every value with where it came from, the JSON schema.

use std::fmt::Write as _;

use serde_json::{Map, Value as Json, json};
use toml::{Table, Value};

use super::layers::Layers;
use super::{Key, Kind, Origin, Schema};

/// The file that packages ship: every key with its meaning, and its default behind a `#`. It sets nothing, so it equals
/// the defaults; removing a `#` changes nothing either.
#[must_use]
pub fn commented(schema: &Schema) -> String {
    let mut text = String::new();
    paragraph(&mut text, &schema.title);
    let mut section = "";
    for key in &schema.keys {
        let (own, name) = key.split();
        let is_map = key.kind.has_entries();
        text.push('\n');
        if !is_map && own != section {
            section = own;
            let _ = writeln!(text, "#[{own}]");
        }
        let mut help = key.help.clone();
        if key.required {
            help.push_str(" Required.");
        }
        let _ = write!(help, " Environment: {}.", schema.variable(key));
        paragraph(&mut text, &help);
        let name = if is_map { &key.path } else { name };
        let line = |value: &Value| if is_map { map_lines(name, value) } else { format!("{name} = {value}") };
        match (&key.default, &key.example) {
            (Some(value), _) => {
                for line in line(value).lines() {
                    let _ = writeln!(text, "#{line}");
                }
            }
            (None, Some(value)) => {
                for line in line(value).lines() {
                    let _ = writeln!(text, "# for example: {line}");
                }
            }
            (None, None) => {}
        }
    }
    text
}

fn map_lines(name: &str, value: &Value) -> String {
    let entries = value.as_table().into_iter().flatten();
    let entries = entries.map(|(entry, value)| format!("{} = {value}", quoted(entry)));
    std::iter::once(format!("[{name}]")).chain(entries).collect::<Vec<_>>().join("\n")
}

/// A name as it stands before the equals sign.
fn quoted(name: &str) -> String {
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if bare { name.to_owned() } else { Value::String(name.to_owned()).to_string() }
}

/// Comment lines of at most a hundred columns.
fn paragraph(text: &mut String, words: &str) {
    for block in words.lines() {
        let mut line = String::from("#");
        for word in block.split_whitespace() {
            if line.len() + 1 + word.len() > 100 {
                let _ = writeln!(text, "{line}");
                line = String::from("#");
            }
            line.push(' ');
            line.push_str(word);
        }
        let _ = writeln!(text, "{line}");
    }
}

/// The values as TOML, each with where it came from. Without `resolved` only what was written somewhere.
#[must_use]
pub fn values(schema: &Schema, layers: &Layers, resolved: bool) -> String {
    let mut text = String::new();
    let mut section = "";
    for key in &schema.keys {
        let (own, name) = key.split();
        if key.kind.has_entries() {
            let entries: Vec<_> = layers.entries(&key.path).collect();
            if !entries.is_empty() {
                let _ = writeln!(text, "\n[{}]", key.path);
                section = &key.path;
            }
            for (entry, setting) in entries {
                line(&mut text, &format!("{} = {}", quoted(entry), setting.value), &setting.origin);
            }
            continue;
        }
        let written = layers.get(&key.path).map(|setting| (&setting.value, &setting.origin));
        let default = key.default.as_ref().filter(|_| resolved).map(|value| (value, &Origin::Default));
        match written.or(default) {
            Some((value, origin)) => {
                if own != section {
                    section = own;
                    let _ = writeln!(text, "\n[{own}]");
                }
                line(&mut text, &format!("{name} = {value}"), origin);
            }
            None if resolved && own == section => {
                let what = if key.required { "missing" } else { "not set" };
                let _ = writeln!(text, "# {name}: {what}");
            }
            None => {}
        }
    }
    text
}

fn line(text: &mut String, setting: &str, origin: &Origin) {
    let _ = writeln!(text, "{setting:<44} # {origin}");
}

/// The keys as a JSON schema (2020-12), for editors and for whoever writes such files by program.
#[must_use]
pub fn json_schema(schema: &Schema) -> Json {
    let mut root = object_of(schema, "");
    root.insert("$schema".into(), "https://json-schema.org/draft/2020-12/schema".into());
    root.insert("title".into(), schema.title.lines().next().unwrap_or_default().into());
    Json::Object(root)
}

/// One section: its keys, and the sections right below it.
fn object_of(schema: &Schema, section: &str) -> Map<String, Json> {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for key in &schema.keys {
        let Some(rest) = below(&key.path, section) else { continue };
        match rest.split_once('.') {
            None => {
                properties.insert(rest.to_owned(), property(schema, key));
                if key.required {
                    required.push(Json::from(rest));
                }
            }
            Some((inner, _)) if !properties.contains_key(inner) => {
                let path = if section.is_empty() { inner.to_owned() } else { format!("{section}.{inner}") };
                properties.insert(inner.to_owned(), Json::Object(object_of(schema, &path)));
            }
            Some(_) => {}
        }
    }
    let mut object = Map::new();
    object.insert("type".into(), "object".into());
    object.insert("additionalProperties".into(), false.into());
    object.insert("properties".into(), properties.into());
    if !required.is_empty() {
        object.insert("required".into(), required.into());
    }
    object
}

/// What of a path is below a section.
fn below<'a>(path: &'a str, section: &str) -> Option<&'a str> {
    if section.is_empty() { Some(path) } else { path.strip_prefix(section)?.strip_prefix('.') }
}

fn property(schema: &Schema, key: &Key) -> Json {
    let mut property = match key.kind {
        Kind::Text | Kind::Path => json!({"type": "string"}),
        Kind::Boolean => json!({"type": "boolean"}),
        Kind::Integer(least, most) => json!({"type": "integer", "minimum": least, "maximum": most}),
        Kind::Texts => json!({"type": "array", "items": {"type": "string"}}),
        Kind::Map => json!({"type": "object", "additionalProperties": {"type": "string"}}),
        Kind::Free => json!({"type": "object"}),
    };
    property["description"] = key.help.as_str().into();
    property["x-environment"] = schema.variable(key).into();
    property["x-reload"] = key.reload.into();
    if let Some(value) = &key.default {
        property["default"] = serde_json::to_value(value).unwrap_or_default();
    }
    property
}

/// The lines of a commented file with every default in force, as somebody would make them who removes each `#` before one.
/// For tests: it must mean the same as the file itself.
///
/// # Errors
/// The parser's, if such a line is no TOML.
pub fn uncommented(commented: &str) -> Result<Table, toml::de::Error> {
    let lines =
        commented.lines().filter_map(|line| line.strip_prefix('#').filter(|rest| !rest.starts_with(' ')));
    lines.collect::<Vec<_>>().join("\n").parse()
}
