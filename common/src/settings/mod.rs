//! How both programs are configured: TOML in layers, checked against one list of keys.
//!
//! The layers, later ones win key by key: the defaults; the main file; `FILE.d/*.toml` in the order of their names; the
//! environment. Lists are replaced, `[sections]` and maps are joined. Relative paths are relative to the folder of the
//! main file, wherever they are written.
//!
//! This file is the list of keys and what is wrong with a value; [`layers`] reads and joins; [`show`] is what people are
//! shown: the commented file, the resolved values with where they came from, the JSON schema.
//!
//! What a value means, and whether it fits the others, is the program's to say. It uses the same [`Problem`].

pub mod layers;
pub mod show;

use std::fmt;
use std::path::PathBuf;

use toml::Value;

/// What may be written for a key.
#[derive(Debug, Clone, PartialEq)]
pub enum Kind {
    /// Any text.
    Text,
    /// A path.
    Path,
    /// `true` or `false`.
    Boolean,
    /// A whole number from one to another, both included.
    Integer(u64, u64),
    /// A list of texts.
    Texts,
    /// Names with a text each.
    Map,
    /// Names with anything each: the program checks what.
    Free,
}

impl Kind {
    /// Whether entries of several layers are joined.
    fn has_entries(&self) -> bool {
        matches!(self, Self::Map | Self::Free)
    }
}

/// One key of a configuration.
#[derive(Debug, Clone)]
pub struct Key {
    /// Section and name, as in `storage.max_bytes`.
    pub path: String,
    /// What may be written.
    pub kind: Kind,
    /// What counts when nothing is written.
    pub default: Option<Value>,
    /// Whether there must be a value.
    pub required: bool,
    /// What one might write where there is no default.
    pub example: Option<Value>,
    /// What it means, a sentence or two.
    pub help: String,
    /// Whether a running program takes a new value on SIGHUP.
    pub reload: bool,
}

impl Key {
    /// A key that may be absent and then means nothing.
    #[must_use]
    pub fn new(path: &str, kind: Kind, help: &str) -> Self {
        let (path, help) = (path.to_owned(), help.to_owned());
        Self { path, kind, default: None, required: false, example: None, help, reload: false }
    }

    /// With a default.
    #[must_use]
    pub fn default(mut self, value: impl Into<Value>) -> Self {
        self.default = Some(value.into());
        self
    }

    /// That must be there, and what it might be.
    #[must_use]
    pub fn required(mut self, example: impl Into<Value>) -> Self {
        self.required = true;
        self.example(example)
    }

    /// With something that one might write.
    #[must_use]
    pub fn example(mut self, value: impl Into<Value>) -> Self {
        self.example = Some(value.into());
        self
    }

    /// That a running program takes on SIGHUP.
    #[must_use]
    pub fn reload(mut self) -> Self {
        self.reload = true;
        self
    }

    /// The section, empty for none, and the name in it.
    #[must_use]
    pub fn split(&self) -> (&str, &str) {
        self.path.rsplit_once('.').unwrap_or(("", &self.path))
    }

    /// What is expected, in words that follow "must be".
    #[must_use]
    pub fn expectation(&self) -> String {
        match self.kind {
            Kind::Text => "a text in quotes".to_owned(),
            Kind::Path => "a path in quotes".to_owned(),
            Kind::Boolean => "true or false".to_owned(),
            Kind::Integer(least, most) => format!("a whole number between {least} and {most}"),
            Kind::Texts => "a list of texts, as in [\"a\", \"b\"]".to_owned(),
            Kind::Map => "a section of NAME = \"text\"".to_owned(),
            Kind::Free => "a section".to_owned(),
        }
    }

    /// Why a value cannot stand here, if so.
    fn refuse(&self, value: &Value) -> Option<String> {
        let fits = match (&self.kind, value) {
            (Kind::Integer(least, most), Value::Integer(n)) => {
                let within = u64::try_from(*n).is_ok_and(|n| (*least..=*most).contains(&n));
                return (!within).then(|| format!("{n} is not between {least} and {most}"));
            }
            (Kind::Text | Kind::Path, Value::String(_)) | (Kind::Boolean, Value::Boolean(_)) => true,
            (Kind::Texts, Value::Array(all)) => all.iter().all(Value::is_str),
            _ => false,
        };
        (!fits).then(|| format!("{value} is not {}", self.expectation()))
    }
}

/// The keys of one program, and how its environment variables begin.
#[derive(Debug, Clone)]
pub struct Schema {
    /// What the file is, for its first line.
    pub title: String,
    /// As in `SALLY_AGENT_`.
    pub env_prefix: &'static str,
    /// The keys, in the order in which people should read them.
    pub keys: Vec<Key>,
}

impl Schema {
    /// The environment variable of a key.
    #[must_use]
    pub fn variable(&self, key: &Key) -> String {
        format!("{}{}", self.env_prefix, key.path.replace('.', "_").to_uppercase())
    }

    /// A key by its path.
    #[must_use]
    pub fn key(&self, path: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.path == path)
    }

    /// The keys and sections right in a section, each once.
    fn names(&self, section: &str) -> Vec<&str> {
        let mut names = Vec::new();
        for key in &self.keys {
            let rest = match section {
                "" => Some(key.path.as_str()),
                section => key.path.strip_prefix(section).and_then(|rest| rest.strip_prefix('.')),
            };
            let name = rest.map(|rest| rest.split('.').next().unwrap_or(rest));
            names.extend(name.filter(|name| !names.contains(name)));
        }
        names
    }

    /// Whether keys begin with this path and go on.
    fn is_section(&self, path: &str) -> bool {
        self.keys.iter().any(|key| key.path.strip_prefix(path).is_some_and(|rest| rest.starts_with('.')))
    }
}

/// Where a value was written.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Nowhere: it is the default.
    Default,
    /// A line of a file.
    File(PathBuf, usize),
    /// An environment variable.
    Variable(String),
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Default => f.write_str("default"),
            Self::File(path, line) => write!(f, "{}:{line}", path.display()),
            Self::Variable(name) => write!(f, "environment variable {name}"),
        }
    }
}

/// One thing that is wrong: which key, what was found and expected, and where it was written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// The key; empty if a whole file is meant.
    pub key: String,
    /// The value and what is expected, or what else is wrong.
    pub text: String,
    /// Where.
    pub origin: Option<Origin>,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.key.is_empty() {
            write!(f, "{}: ", self.key)?;
        }
        f.write_str(&self.text)?;
        match &self.origin {
            Some(origin) if *origin != Origin::Default => write!(f, " ({origin})"),
            _ => Ok(()),
        }
    }
}

/// The known word that was probably meant: the nearest one, if it is near.
#[must_use]
pub fn nearest<'a>(written: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let most = (written.chars().count() / 3).max(1);
    known
        .map(|word| (distance(written, word), word))
        .filter(|(far, _)| *far <= most)
        .min()
        .map(|(_, word)| word)
}

/// How many letters have to be added, removed, replaced or swapped with their neighbour.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![(0..=b.len()).collect::<Vec<usize>>()];
    for i in 1..=a.len() {
        let mut row = vec![i];
        for j in 1..=b.len() {
            let same = usize::from(a[i - 1] != b[j - 1]);
            let mut best = (rows[i - 1][j] + 1).min(row[j - 1] + 1).min(rows[i - 1][j - 1] + same);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                best = best.min(rows[i - 2][j - 2] + 1);
            }
            row.push(best);
        }
        rows.push(row);
    }
    rows[a.len()][b.len()]
}

#[cfg(test)]
mod tests;
