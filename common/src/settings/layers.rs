//! Reads the layers of a configuration and joins them, remembering where each value was written.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};

use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::{Key, Kind, Origin, Problem, Schema, nearest};

/// Files that one folder of drop-ins may have.
const DROP_INS_MAX: usize = 256;
/// The largest file.
const FILE_MAX: u64 = 1024 * 1024;

/// A value and where it was written.
#[derive(Debug, Clone, PartialEq)]
pub struct Setting {
    /// The value.
    pub value: Value,
    /// Where.
    pub origin: Origin,
}

/// The name of a value: the key, and for an entry of a map the entry's own name.
type At = (String, Option<String>);

/// A configuration as it was written, joined.
#[derive(Debug, Default)]
pub struct Layers {
    settings: BTreeMap<At, Setting>,
    /// What is wrong with it so far. Values that cannot stand where they are were left out.
    pub problems: Vec<Problem>,
}

/// The folder of drop-ins of a file: `agent.toml.d` beside `agent.toml`.
#[must_use]
pub fn drop_in_dir(file: &Path) -> PathBuf {
    let mut name = file.file_name().unwrap_or_default().to_owned();
    name.push(".d");
    file.with_file_name(name)
}

impl Layers {
    /// Reads a file, its drop-ins and the environment. What is wrong is noted and never ends the reading.
    pub fn read(
        schema: &Schema,
        file: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        Self::read_above(schema, None, file, environment)
    }

    /// The same above a file that a program wrote for itself: whatever a person wrote counts before it.
    pub fn read_above(
        schema: &Schema,
        below: Option<&Path>,
        file: &Path,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) -> Self {
        let mut layers = Self::default();
        if let Some(below) = below {
            layers.add_file(schema, below);
        }
        layers.add_file(schema, file);
        match drop_ins(&drop_in_dir(file)) {
            Ok(files) => files.iter().for_each(|file| layers.add_file(schema, file)),
            Err(text) => layers.problems.push(Problem { key: String::new(), text, origin: None }),
        }
        layers.add_environment(schema, environment);
        for key in schema.keys.iter().filter(|key| key.required) {
            let wrong = layers.problems.iter().any(|problem| problem.key == key.path);
            if layers.get(&key.path).is_none() && !wrong {
                let example = key.example.as_ref().map(|e| format!(", as in {} = {e}", key.path));
                let text = format!(
                    "is missing: {}; write it into {}{}",
                    key.help.trim_end_matches('.'),
                    file.display(),
                    example.unwrap_or_default()
                );
                layers.problems.push(Problem { key: key.path.clone(), text, origin: None });
            }
        }
        layers
    }

    /// What was written for a key that is no map.
    #[must_use]
    pub fn get(&self, path: &str) -> Option<&Setting> {
        self.settings.get(&(path.to_owned(), None))
    }

    /// What was written for a map, entry by entry.
    pub fn entries<'a>(&'a self, path: &'a str) -> impl Iterator<Item = (&'a str, &'a Setting)> {
        let of_map = self.settings.iter().filter(move |((key, _), _)| key == path);
        of_map.filter_map(|((_, entry), setting)| Some((entry.as_deref()?, setting)))
    }

    /// Where what counts for a key was written; for a map, where its first entry was.
    #[must_use]
    pub fn origin(&self, path: &str) -> Origin {
        let of_entry = || self.entries(path).next().map(|(_, setting)| setting);
        self.get(path).or_else(of_entry).map_or(Origin::Default, |setting| setting.origin.clone())
    }

    /// A problem with the value of a key, and where that was written. The first one of each key counts.
    pub fn note(&mut self, key: &str, text: impl Into<String>) {
        if !self.problems.iter().any(|problem| problem.key == key) {
            let origin = Some(self.origin(key));
            self.problems.push(Problem { key: key.to_owned(), text: text.into(), origin });
        }
    }

    /// The keys whose values are others in `newer`: those that a running program takes, and those that need a restart.
    #[must_use]
    pub fn changes<'a>(&self, schema: &'a Schema, newer: &Layers) -> (Vec<&'a str>, Vec<&'a str>) {
        let value = |layers: &Layers, key: &Key| {
            let entries = layers.entries(&key.path).map(|(name, s)| (name.to_owned(), s.value.clone()));
            let entries: Vec<_> = entries.collect();
            (layers.get(&key.path).map(|s| s.value.clone()).or_else(|| key.default.clone()), entries)
        };
        let changed = schema.keys.iter().filter(|key| value(self, key) != value(newer, key));
        let (reload, restart): (Vec<&Key>, Vec<&Key>) = changed.partition(|key| key.reload);
        let paths = |keys: Vec<&'a Key>| keys.into_iter().map(|key| key.path.as_str()).collect();
        (paths(reload), paths(restart))
    }

    /// Says in the log what a reload changes, and what it cannot change.
    pub fn log_changes(&self, schema: &Schema, newer: &Layers) {
        let (taken, kept) = self.changes(schema, newer);
        if !kept.is_empty() {
            tracing::warn!(
                "these keys changed and are only read at the start, restart to have them: {}",
                kept.join(", ")
            );
        }
        let keys = if taken.is_empty() { "no other key changed".to_owned() } else { taken.join(", ") };
        tracing::info!(
            "configuration read again: {keys}; lists of keys and agents are as their files say now"
        );
    }

    /// Everything that was written, as one table.
    #[must_use]
    pub fn table(&self) -> Table {
        let mut all = Table::new();
        for ((path, entry), setting) in &self.settings {
            let mut words: Vec<&str> = path.split('.').collect();
            words.extend(entry.as_deref());
            insert(&mut all, &words, setting.value.clone());
        }
        all
    }

    fn add_file(&mut self, schema: &Schema, file: &Path) {
        let text = match read(file) {
            Ok(text) => text,
            Err(text) => return self.problems.push(Problem { key: String::new(), text, origin: None }),
        };
        let (table, errors) = DeTable::parse_recoverable(&text);
        for error in &errors {
            let line = error.span().map_or(1, |span| line_of(&text, span.start));
            self.problems.push(Problem {
                key: String::new(),
                text: format!("not TOML: {}", error.message()),
                origin: Some(Origin::File(file.to_owned(), line)),
            });
        }
        // What stands beside a syntax error may be half of something else.
        if errors.is_empty() {
            let at = |offset| Origin::File(file.to_owned(), line_of(&text, offset));
            self.add_table(schema, "", table.get_ref(), &at);
        }
    }

    fn add_table(
        &mut self,
        schema: &Schema,
        section: &str,
        table: &DeTable<'_>,
        at: &impl Fn(usize) -> Origin,
    ) {
        for (name, value) in table {
            let path = match section {
                "" => name.get_ref().to_string(),
                section => format!("{section}.{}", name.get_ref()),
            };
            let origin = at(name.span().start);
            match (schema.key(&path), value.get_ref()) {
                (Some(key), DeValue::Table(entries)) if key.kind.has_entries() => {
                    for (entry, value) in entries {
                        let origin = at(entry.span().start);
                        self.add_entry(key, entry.get_ref(), plain(value), origin);
                    }
                }
                (Some(key), _) => self.add(key, plain(value), origin),
                (None, DeValue::Table(inner)) if schema.is_section(&path) => {
                    self.add_table(schema, &path, inner, at);
                }
                (None, _) if schema.is_section(&path) => {
                    let text =
                        format!("{} is not a section: write [{path}] and its keys below", plain(value));
                    self.problems.push(Problem { key: path, text, origin: Some(origin) });
                }
                (None, _) => {
                    let text = unknown(schema, section, &path);
                    self.problems.push(Problem { key: path, text, origin: Some(origin) });
                }
            }
        }
    }

    fn add(&mut self, key: &Key, value: Value, origin: Origin) {
        match key.refuse(&value) {
            None => drop(self.settings.insert((key.path.clone(), None), Setting { value, origin })),
            Some(text) => self.problems.push(Problem { key: key.path.clone(), text, origin: Some(origin) }),
        }
    }

    fn add_entry(&mut self, key: &Key, entry: &str, value: Value, origin: Origin) {
        if value.is_str() || key.kind == Kind::Free {
            let at = (key.path.clone(), Some(entry.to_owned()));
            self.settings.insert(at, Setting { value, origin });
        } else {
            let text = format!("{value} is not a text in quotes");
            self.problems.push(Problem { key: format!("{}.{entry}", key.path), text, origin: Some(origin) });
        }
    }

    fn add_environment(
        &mut self,
        schema: &Schema,
        environment: impl IntoIterator<Item = (OsString, OsString)>,
    ) {
        for (name, value) in environment {
            let Some(name) = name.to_str().filter(|name| name.starts_with(schema.env_prefix)) else {
                continue;
            };
            let origin = Origin::Variable(name.to_owned());
            let Some(key) = schema.keys.iter().find(|key| schema.variable(key) == name) else {
                let known: Vec<String> = schema.keys.iter().map(|key| schema.variable(key)).collect();
                let meant = nearest(name, known.iter().map(String::as_str));
                let meant = meant.map(|word| format!("; did you mean {word}?")).unwrap_or_default();
                let text = format!("the environment variable {name} is of no key{meant}");
                self.problems.push(Problem { key: String::new(), text, origin: None });
                continue;
            };
            let Some(value) = value.to_str() else {
                let text = format!("{name} is not UTF-8");
                self.problems.push(Problem { key: key.path.clone(), text, origin: None });
                continue;
            };
            match of_variable(key, value) {
                Ok(Value::Table(entries)) => {
                    for (entry, value) in entries {
                        self.add_entry(key, &entry, value, origin.clone());
                    }
                }
                Ok(value) => self.add(key, value, origin),
                Err(text) => {
                    self.problems.push(Problem { key: key.path.clone(), text, origin: Some(origin) });
                }
            }
        }
    }
}

/// Puts a value at a path, making the sections on the way.
fn insert(table: &mut Table, path: &[&str], value: Value) {
    match path {
        [] => {}
        [name] => drop(table.insert((*name).to_owned(), value)),
        [section, rest @ ..] => {
            let inner = table.entry(*section).or_insert_with(|| Value::Table(Table::new()));
            // Two kinds of value at one place would be a fault of the list of keys.
            if let Value::Table(inner) = inner {
                insert(inner, rest, value);
            }
        }
    }
}

/// The drop-ins of a folder in the order of their names; none if there is no folder. Names that begin with a dot are
/// what editors and package managers leave behind.
fn drop_ins(dir: &Path) -> Result<Vec<PathBuf>, String> {
    let cannot = |e: std::io::Error| format!("cannot read the folder {}: {e}", dir.display());
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(cannot(error)),
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.map_err(cannot)?.path();
        let hidden = path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b"."));
        if !hidden && path.extension().is_some_and(|extension| extension == "toml") {
            files.push(path);
        }
        if files.len() > DROP_INS_MAX {
            return Err(format!("{} has more than {DROP_INS_MAX} drop-ins", dir.display()));
        }
    }
    files.sort();
    Ok(files)
}

fn read(file: &Path) -> Result<String, String> {
    let cannot = |e: std::io::Error| format!("cannot read {}: {e}", file.display());
    let length = std::fs::metadata(file).map_err(cannot)?.len();
    if length > FILE_MAX {
        return Err(format!("{} has {length} bytes; a configuration has at most {FILE_MAX}", file.display()));
    }
    std::fs::read_to_string(file).map_err(cannot)
}

fn line_of(text: &str, offset: usize) -> usize {
    text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count() + 1
}

/// A parsed value without its place. Numbers that do not fit are kept as the text that was written, so that they are
/// refused as what they are.
fn plain(value: &Spanned<DeValue<'_>>) -> Value {
    match value.get_ref() {
        DeValue::String(text) => Value::String(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or_else(|_| Value::String(number.as_str().to_owned()), Value::Integer),
        DeValue::Float(number) => {
            number.as_str().parse().map_or_else(|_| Value::String(number.as_str().to_owned()), Value::Float)
        }
        DeValue::Boolean(yes) => Value::Boolean(*yes),
        DeValue::Datetime(time) => Value::Datetime(*time),
        DeValue::Array(all) => Value::Array(all.iter().map(plain).collect()),
        DeValue::Table(table) => Value::Table(
            table.iter().map(|(name, value)| (name.get_ref().to_string(), plain(value))).collect(),
        ),
    }
}

/// An unknown key, with the one that was probably meant: a near name in the same section, else the same name elsewhere.
fn unknown(schema: &Schema, section: &str, path: &str) -> String {
    let name = path.rsplit('.').next().unwrap_or(path);
    let here = schema.names(section);
    if let Some(meant) = nearest(name, here.iter().copied()) {
        return match section {
            "" => format!("is no key; did you mean {meant}?"),
            section => format!("is no key; did you mean {meant}, in [{section}]?"),
        };
    }
    match schema.keys.iter().find(|key| key.split().1 == name) {
        Some(key) if key.split().0.is_empty() => {
            format!("is no key of [{section}]; {name} stands above the first section")
        }
        Some(key) => format!("is no key here; {name} is one of [{}]", key.split().0),
        None => format!("is no key; the keys here are {}", here.join(", ")),
    }
}

/// What a variable says: texts as they are, the rest as in TOML. A list is also `a,b`, a map also `a=1,b=2`.
fn of_variable(key: &Key, text: &str) -> Result<Value, String> {
    let as_toml = || {
        let parsed = DeValue::parse(text).map(|value| plain(&value));
        parsed.map_err(|_| format!("{text} is not {}", key.expectation()))
    };
    let parts = || text.split(',').map(str::trim).filter(|part| !part.is_empty());
    match key.kind {
        Kind::Text | Kind::Path => Ok(Value::String(text.to_owned())),
        Kind::Texts if !text.trim_start().starts_with('[') => {
            Ok(Value::Array(parts().map(|part| Value::String(part.to_owned())).collect()))
        }
        Kind::Map if !text.trim_start().starts_with('{') => {
            let pair = |part: &str| {
                let (name, value) = part.split_once('=')?;
                Some((name.trim().to_owned(), Value::String(value.trim().to_owned())))
            };
            parts()
                .map(|part| pair(part).ok_or_else(|| format!("\"{part}\" is not NAME=VALUE")))
                .collect::<Result<Table, String>>()
                .map(Value::Table)
        }
        Kind::Map | Kind::Free => match as_toml()? {
            Value::Table(table) => Ok(Value::Table(table)),
            _ => Err(format!("{text} is not {}", key.expectation())),
        },
        _ => as_toml(),
    }
}
