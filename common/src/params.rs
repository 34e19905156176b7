//! Parameters of a task: `-p key=text`, `-p key:=json` and `-P FILE` become one JSON object.
//!
//! Files are the base, `-p` overrules them, by whole top-level keys. The same key in two files or in two `-p` is
//! an error: which one was meant cannot be known.

use std::borrow::Cow;
use std::collections::HashMap;

use crate::json::{self, JsonError, JsonText, Members, Node};

/// The most that all parameters may have as compact JSON, and each file as it is, in bytes.
pub const PARAMS_BYTES: usize = 64 * 1024;

/// How deep parameters may be nested, the object itself counted.
pub const PARAMS_DEPTH: usize = 32;

/// The longest key, in bytes.
pub const KEY_BYTES: usize = 128;

/// What is wrong with the parameters. Each message names the argument it is about.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParamsError {
    /// No `=`.
    #[error("-p {0}: there is no `=`; write -p key=text or -p key:=json")]
    NoEquals(String),
    /// The key cannot be one.
    #[error("-p {0}: the key must have 1 to {KEY_BYTES} bytes and no control characters")]
    Key(String),
    /// What stands behind `:=` is not JSON.
    #[error("-p {key}:=…: not JSON: {error}; for a text write -p {key}=…")]
    Json {
        /// The key.
        key: String,
        /// What is wrong with the value.
        error: JsonError,
    },
    /// The same key in two `-p`.
    #[error("-p {0}=…: the key is given twice")]
    Twice(String),
    /// The same key in two files.
    #[error("-P {second}: the key {key} is in {first} too; say once what it shall be")]
    InTwoFiles {
        /// The key.
        key: String,
        /// The file that had it before.
        first: String,
        /// The file that has it again.
        second: String,
    },
    /// The file is not JSON.
    #[error("-P {file}: not JSON: {error}")]
    File {
        /// The file as it was named.
        file: String,
        /// What is wrong in it.
        error: JsonError,
    },
    /// The file has some other JSON.
    #[error("-P {0}: parameters are one JSON object, as in {{\"key\": \"value\"}}; this is another value")]
    NotAnObject(String),
    /// A key in a file cannot be one.
    #[error("-P {0}: a key must have 1 to {KEY_BYTES} bytes and no control characters")]
    FileKey(String),
    /// Too much, in one file.
    #[error("-P {file}: {bytes} bytes, at most {PARAMS_BYTES} are allowed; pass more with --stdin")]
    FileTooLong {
        /// The file as it was named.
        file: String,
        /// Its length.
        bytes: usize,
    },
    /// Too much, all together.
    #[error(
        "the parameters have {0} bytes together, at most {PARAMS_BYTES} are allowed; pass more with --stdin"
    )]
    TooLong(usize),
}

/// Makes one object of all `-p` arguments and all `-P` files, given as (name, content).
///
/// # Errors
/// With the argument that cannot stand.
pub fn read_params(arguments: &[String], files: &[(String, Vec<u8>)]) -> Result<JsonText, ParamsError> {
    let mut params = Members::default();
    let mut origin: HashMap<String, &str> = HashMap::new();
    for (file, content) in files {
        for (key, value) in read_file(file, content)?.iter() {
            if let Some(first) = origin.insert(key.to_owned(), file) {
                let (key, first, second) = (key.to_owned(), first.to_owned(), file.clone());
                return Err(ParamsError::InTwoFiles { key, first, second });
            }
            params.insert(Cow::Owned(key.to_owned()), value.clone());
        }
    }
    let texts: Result<Vec<(&str, String)>, ParamsError> =
        arguments.iter().map(|arg| read_argument(arg)).collect();
    let texts = texts?;
    let mut given = Members::default();
    for (key, text) in &texts {
        let error = |error| ParamsError::Json { key: (*key).to_owned(), error };
        let value = json::parse(text, PARAMS_DEPTH - 1).map_err(error)?;
        if given.insert(Cow::Borrowed(*key), Node::Leaf("null")).is_some() {
            return Err(ParamsError::Twice((*key).to_owned()));
        }
        params.insert(Cow::Borrowed(*key), value);
    }
    let params = Node::Object(params).to_json();
    match params.as_str().len() {
        bytes if bytes > PARAMS_BYTES => Err(ParamsError::TooLong(bytes)),
        _ => Ok(params),
    }
}

/// Checks parameters that came as one JSON text, as the agent and the HTTP door get them.
///
/// # Errors
/// As for a file.
pub fn check_params(bytes: &[u8]) -> Result<JsonText, ParamsError> {
    read_file("(the task)", bytes).map(|members| Node::Object(members).to_json())
}

fn read_file<'a>(file: &str, content: &'a [u8]) -> Result<Members<'a>, ParamsError> {
    let file = || file.to_owned();
    if content.len() > PARAMS_BYTES {
        return Err(ParamsError::FileTooLong { file: file(), bytes: content.len() });
    }
    let node = json::utf8(content).and_then(|text| json::parse(text, PARAMS_DEPTH));
    let Node::Object(members) = node.map_err(|error| ParamsError::File { file: file(), error })? else {
        return Err(ParamsError::NotAnObject(file()));
    };
    let keys_fit = members.iter().all(|(key, _)| is_key(key));
    if keys_fit { Ok(members) } else { Err(ParamsError::FileKey(file())) }
}

/// Returns the key of one `-p` argument and its value as JSON text, not checked yet.
fn read_argument(argument: &str) -> Result<(&str, String), ParamsError> {
    let shown = || argument.chars().filter(|c| !c.is_control()).take(200).collect::<String>();
    let (left, right) = argument.split_once('=').ok_or_else(|| ParamsError::NoEquals(shown()))?;
    let (key, value) = match left.strip_suffix(':') {
        Some(key) => (key, right.to_owned()),
        None => {
            let mut text = String::new();
            json::quote(right, &mut text);
            (left, text)
        }
    };
    if is_key(key) { Ok((key, value)) } else { Err(ParamsError::Key(shown())) }
}

fn is_key(key: &str) -> bool {
    (1..=KEY_BYTES).contains(&key.len()) && !key.chars().any(char::is_control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(arguments: &[&str], files: &[(&str, &str)]) -> Result<String, String> {
        let arguments: Vec<String> = arguments.iter().map(|arg| (*arg).to_owned()).collect();
        let files: Vec<(String, Vec<u8>)> =
            files.iter().map(|(name, text)| ((*name).to_owned(), text.as_bytes().to_vec())).collect();
        read_params(&arguments, &files).map(JsonText::into_string).map_err(|error| error.to_string())
    }

    #[track_caller]
    fn check(arguments: &[&str], files: &[(&str, &str)], expected: &str) {
        assert_eq!(read(arguments, files).as_deref(), Ok(expected));
    }

    #[track_caller]
    fn refused(arguments: &[&str], files: &[(&str, &str)], part: &str) {
        let error = read(arguments, files).expect_err(part);
        assert!(error.contains(part), "{error}");
    }

    #[test]
    fn arguments() {
        check(&[], &[], "{}");
        check(
            &["a=1", "b:=1", "c=", "d:=[1, {\"x\": null}]"],
            &[],
            r#"{"a":"1","b":1,"c":"","d":[1,{"x":null}]}"#,
        );
        check(&["a=x=y:=z", "b=@file", "c=\"q\"\n"], &[], r#"{"a":"x=y:=z","b":"@file","c":"\"q\"\n"}"#);
        check(&["url=https://h:8443/?a=b", "a.b=1"], &[], r#"{"url":"https://h:8443/?a=b","a.b":"1"}"#);
        check(&["n:=12345678901234567890123"], &[], r#"{"n":12345678901234567890123}"#);
    }

    #[test]
    fn files_are_the_base() {
        check(&[], &[("f", " {\"a\": {\"x\": 1}, \"b\": 2} ")], r#"{"a":{"x":1},"b":2}"#);
        check(&["a:={\"y\":2}"], &[("f", "{\"a\":{\"x\":1},\"b\":2}")], r#"{"a":{"y":2},"b":2}"#);
        check(&[], &[("f", "{\"a\":1}"), ("g", "{\"b\":1}")], r#"{"a":1,"b":1}"#);
    }

    #[test]
    fn errors_name_the_argument() {
        refused(&["a"], &[], "-p a: there is no `=`");
        refused(&["=1"], &[], "-p =1: the key");
        refused(&[":=1"], &[], "-p :=1: the key");
        refused(&["a:=yes"], &[], "-p a:=…: not JSON: expected a JSON value, found `y`");
        refused(&["a:=yes"], &[], "-p a=…");
        refused(&["a:={\"x\":1,\"x\":1}"], &[], "twice");
        refused(&["a=1", "a=1"], &[], "-p a=…: the key is given twice");
        refused(&[], &[("f", "{\"a\":1,\"a\":2}")], "-P f: not JSON: the key \"a\" stands twice");
        refused(&[], &[("f", "[1]")], "-P f: parameters are one JSON object");
        refused(&[], &[("f", "")], "-P f: not JSON: expected a JSON value, found nothing");
        refused(&[], &[("f", "{} x")], "at byte 3");
        refused(&[], &[("f", "{\"a\":1}"), ("g", "{\"a\":1}")], "-P g: the key a is in f too");
        refused(&[], &[("f", "{\"\":1}")], "-P f: a key");
    }

    #[test]
    fn limits() {
        let long = format!("a={}", "x".repeat(PARAMS_BYTES));
        refused(&[&long], &[], "at most 65536");
        refused(&[], &[("f", &format!("{{}}{}", " ".repeat(PARAMS_BYTES)))], "65538 bytes");
        let deep = |n: usize| format!("a:={}{}", "[".repeat(n), "]".repeat(n));
        check(&[&deep(31)], &[], &format!("{{\"a\":{}}}", &deep(31)[3..]));
        refused(&[&deep(32)], &[], "deeper than 31");
    }

    #[test]
    fn params_of_a_task() {
        assert_eq!(check_params(b"{ }").map(JsonText::into_string), Ok("{}".to_owned()));
        assert!(check_params(b"[]").is_err());
    }
}
