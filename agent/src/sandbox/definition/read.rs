//! A definition as it is written: TOML, read whole, with every problem of it at once.
#![forbid(unsafe_code)]

use super::{Access, PathChange, ProfileDefinition, Rates};
use crate::sandbox::layer::Layer;
use crate::sandbox::network::{self, Destination};
use crate::sandbox::plan::Limits;
use crate::sandbox::profile::Profile;
use crate::sandbox::seccomp;
use sally_common::name::{ProfileName, show};
use std::path::{Component, Path, PathBuf};
use toml::{Table, Value};

/// The most entries of one list.
const MAX_ENTRIES: usize = 64;

/// The longest description.
const MAX_DESCRIPTION: usize = 500;

/// Places that the sandbox itself makes: nothing at, above or below them can be changed.
const RESERVED: [&str; 5] = ["/proc", "/dev", "/tmp", "/var/tmp", "/run/sally"];

/// What is read so far, with what is wrong.
struct Reader {
    problems: Vec<String>,
}

impl ProfileDefinition {
    /// Reads a definition. The error has every problem of it: the key, its value, and what was expected.
    pub fn parse(name: &ProfileName, text: &str) -> Result<ProfileDefinition, Vec<String>> {
        let mut table: Table = toml::from_str(text).map_err(|e| vec![e.to_string().trim().to_owned()])?;
        let mut reader = Reader { problems: Vec::new() };
        if name.is_built_in() {
            reader.problems.push(format!("the file's name: {name} is a built-in profile; expected another"));
        }
        let definition = reader.definition(name, &mut table);
        reader.no_more(
            "",
            &table,
            "description, base, require, files, devices, network, system_calls and limits",
        );
        reader.fits_together(&definition);
        if reader.problems.is_empty() { Ok(definition) } else { Err(reader.problems) }
    }
}

impl Reader {
    fn definition(&mut self, name: &ProfileName, table: &mut Table) -> ProfileDefinition {
        let mut files = self.table(table, "files");
        let mut paths = Vec::new();
        for (key, access) in [("read", Access::Read), ("write", Access::Write), ("hide", Access::Hide)] {
            let key_path = format!("files.{key}");
            for text in self.texts(&mut files, key, &key_path) {
                paths.extend(self.path(&key_path, &text).map(|path| PathChange { path, access }));
            }
        }
        self.no_more("files.", &files, "read, write and hide");
        paths.sort();
        let mut network = self.table(table, "network");
        let network_allow = network.contains_key("allow").then(|| self.destinations(&mut network));
        let unix_sockets = self.yes_or_no(&mut network, "unix_sockets", "network.unix_sockets");
        self.no_more("network.", &network, "allow and unix_sockets");
        let mut calls = self.table(table, "system_calls");
        let allowed_calls = self.calls(&mut calls, "allow", seccomp::may_be_allowed);
        let refused_calls = self.calls(&mut calls, "refuse", seccomp::may_be_refused);
        self.no_more("system_calls.", &calls, "allow and refuse");
        let limits_table = self.table(table, "limits");
        let (limits, rates) = self.limits(limits_table);
        ProfileDefinition {
            name: name.clone(),
            description: self.description(table),
            base: self.base(table),
            paths,
            devices: self.devices(table),
            network_allow,
            unix_sockets,
            allowed_calls,
            refused_calls,
            limits,
            rates,
            require: self.require(table),
        }
    }

    /// Notes a problem: the key, what it has, and what was expected.
    fn note(&mut self, key: &str, value: impl std::fmt::Display, expected: &str) {
        self.problems.push(format!("{key} = {value}: expected {expected}"));
    }

    fn table(&mut self, table: &mut Table, key: &str) -> Table {
        match table.remove(key) {
            None => Table::new(),
            Some(Value::Table(inner)) => inner,
            Some(other) => {
                self.note(key, shown(&other), "a table");
                Table::new()
            }
        }
    }

    fn no_more(&mut self, prefix: &str, table: &Table, known: &str) {
        for (key, value) in table {
            let expected = format!("no such key; the keys are {known}");
            self.note(&format!("{prefix}{}", show(key)), shown(value), &expected);
        }
    }

    /// A list of texts, each once.
    fn texts(&mut self, table: &mut Table, key: &str, full_key: &str) -> Vec<String> {
        let list = match table.remove(key) {
            None => return Vec::new(),
            Some(Value::Array(list)) => list,
            Some(other) => {
                self.note(full_key, shown(&other), "a list of texts");
                return Vec::new();
            }
        };
        if list.len() > MAX_ENTRIES {
            self.note(full_key, format!("{} entries", list.len()), &format!("at most {MAX_ENTRIES}"));
        }
        let mut texts = Vec::new();
        for entry in list.into_iter().take(MAX_ENTRIES) {
            match entry {
                Value::String(text) if texts.contains(&text) => {
                    self.note(full_key, shown(&Value::String(text)), "each entry once");
                }
                Value::String(text) => texts.push(text),
                other => self.note(full_key, shown(&other), "a text"),
            }
        }
        texts
    }

    fn text(&mut self, table: &mut Table, key: &str, expected: &str) -> Option<String> {
        match table.remove(key)? {
            Value::String(text) => Some(text),
            other => {
                self.note(key, shown(&other), expected);
                None
            }
        }
    }

    fn yes_or_no(&mut self, table: &mut Table, key: &str, full_key: &str) -> bool {
        match table.remove(key) {
            None => false,
            Some(Value::Boolean(value)) => value,
            Some(other) => {
                self.note(full_key, shown(&other), "true or false");
                false
            }
        }
    }

    fn description(&mut self, table: &mut Table) -> Option<String> {
        let expected = format!("a line of at most {MAX_DESCRIPTION} bytes");
        let text = self.text(table, "description", &expected)?;
        if text.len() > MAX_DESCRIPTION || text.chars().any(char::is_control) {
            self.note("description", shown(&Value::String(text)), &expected);
            return None;
        }
        Some(text)
    }

    fn base(&mut self, table: &mut Table) -> Profile {
        const EXPECTED: &str = "strict, net, host or admin";
        if !table.contains_key("base") {
            self.note("base", "(absent)", EXPECTED);
            return Profile::Strict;
        }
        let Some(text) = self.text(table, "base", EXPECTED) else { return Profile::Strict };
        text.parse().unwrap_or_else(|_: String| {
            self.note("base", shown(&Value::String(text)), EXPECTED);
            Profile::Strict
        })
    }

    fn require(&mut self, table: &mut Table) -> Vec<Layer> {
        let mut layers = Vec::new();
        for text in self.texts(table, "require", "require") {
            match text.replace('-', "_").parse() {
                Ok(layer) => layers.push(layer),
                Err(_) => {
                    let names = Layer::ALL.iter().chain(&Layer::ON_DEMAND).map(|l| l.name());
                    let expected = format!("a layer: {}", names.collect::<Vec<_>>().join(", "));
                    self.note("require", shown(&Value::String(text)), &expected);
                }
            }
        }
        layers
    }

    /// A path that can be mounted in a sandbox without covering what the sandbox is made of.
    fn path(&mut self, key: &str, text: &str) -> Option<PathBuf> {
        let value = shown(&Value::String(text.to_owned()));
        let path = Path::new(text);
        let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)));
        // Compared as text too: components swallow `//`, `/./` and a slash at the end.
        let same = path.components().collect::<PathBuf>().as_os_str() == path.as_os_str();
        if !path.is_absolute() || !plain || !same || text.contains('\0') || text.len() > 4000 {
            self.note(key, value, "an absolute path without . and .., and without a slash at its end");
            return None;
        }
        let near =
            RESERVED.iter().find(|place| path.starts_with(place) || Path::new(place).starts_with(path));
        if let Some(place) = near {
            let expected =
                format!("a path that neither contains {place} nor lies in it: that is the sandbox's own");
            self.note(key, value, &expected);
            return None;
        }
        Some(path.to_owned())
    }

    fn destinations(&mut self, table: &mut Table) -> Vec<Destination> {
        const KEY: &str = "network.allow";
        let mut list = Vec::new();
        for text in self.texts(table, "allow", KEY) {
            match text.parse::<Destination>() {
                Ok(destination) => list.push(destination),
                Err(problem) => self.note(KEY, shown(&Value::String(text)), &problem),
            }
        }
        list
    }

    fn devices(&mut self, table: &mut Table) -> Vec<PathBuf> {
        let mut devices = Vec::new();
        for text in self.texts(table, "devices", "devices") {
            let path = PathBuf::from(&text);
            let plain = path.components().skip(1).all(|part| matches!(part, Component::Normal(_)))
                && path.components().collect::<PathBuf>().as_os_str() == path.as_os_str();
            let below = path.strip_prefix("/dev").is_ok_and(|rest| !rest.as_os_str().is_empty());
            let own = ["/dev/shm", "/dev/fd", "/dev/pts"].iter().any(|place| path.starts_with(place));
            if plain && below && !own && !text.contains('\0') {
                devices.push(path);
            } else {
                self.note("devices", shown(&Value::String(text)), "a character device below /dev");
            }
        }
        devices
    }

    fn calls(&mut self, table: &mut Table, key: &str, check: fn(&str) -> Result<(), String>) -> Vec<String> {
        let full_key = format!("system_calls.{key}");
        let mut calls = Vec::new();
        for name in self.texts(table, key, &full_key) {
            match check(&name) {
                Ok(()) => calls.push(name),
                Err(expected) => self.note(&full_key, shown(&Value::String(name)), &expected),
            }
        }
        calls
    }

    fn limits(&mut self, table: Table) -> (Vec<(&'static str, u64)>, Rates) {
        let (mut limits, mut rates, mut trial) = (Vec::new(), Rates::default(), Limits::default());
        for (key, value) in table {
            let full_key = format!("limits.{}", show(&key));
            let known = Limits::SETTABLE_NAMES.iter().find(|name| **name == key).copied();
            let most_rate = Rates::default().named().into_iter().find(|(name, ..)| *name == key);
            let Some(number) = value.as_integer().and_then(|number| u64::try_from(number).ok()) else {
                self.note(&full_key, shown(&value), "a whole number");
                continue;
            };
            match (known, rates.by_name(&key), most_rate) {
                (Some(name), ..) => match trial.set(name, number) {
                    Ok(()) => limits.push((name, number)),
                    Err(_) => {
                        let most = Limits::CEILING.named().into_iter().find(|(n, _)| *n == name);
                        let expected = format!("1 to {}", most.map_or(0, |(_, most)| most));
                        self.note(&full_key, number, &expected);
                    }
                },
                (None, Some(rate), Some((_, _, most))) if (1..=most).contains(&number) => {
                    *rate = Some(number)
                }
                (None, Some(_), Some((_, _, most))) => {
                    self.note(&full_key, number, &format!("1 to {most}"));
                }
                _ => {
                    let rates = Rates::default().named().map(|(name, ..)| name).join(", ");
                    let names = Limits::SETTABLE_NAMES.join(", ");
                    let expected = format!("no such key; the limits are {names}; the rates are {rates}");
                    self.note(&full_key, number, &expected);
                }
            }
        }
        (limits, rates)
    }

    /// What no key can say by itself.
    fn fits_together(&mut self, definition: &ProfileDefinition) {
        let quoted = |path: &Path| shown(&Value::String(path.display().to_string()));
        for pair in definition.paths.windows(2).filter(|pair| pair[0].path == pair[1].path) {
            self.note("files", quoted(&pair[0].path), "a path in one of read, write and hide");
        }
        if let (Profile::Admin, true) = (definition.base, definition.changes_isolation()) {
            let expected = "strict, net or host: admin confines nothing, so files, devices, network and system_calls \
                            can change nothing of it";
            self.note("base", "\"admin\"", expected);
            return;
        }
        if definition.unix_sockets && definition.base != Profile::Host {
            let expected = "base = \"host\": elsewhere a script sees those sockets of the host that files.read and \
                            files.write show, and may connect to them";
            self.note("network.unix_sockets", true, expected);
        }
        if let Some(Err(problem)) = definition.network_allow.as_deref().map(network::check) {
            let list = definition.network_allow.iter().flatten().map(ToString::to_string);
            let list = list.collect::<Vec<_>>().join("\", \"");
            self.note("network.allow", format!("[\"{list}\"]"), &problem);
        }
        for change in &definition.paths {
            let under = |access: Access| {
                definition
                    .paths_to(access)
                    .any(|other| other != change.path && change.path.starts_with(other))
            };
            match (definition.base, change.access) {
                (Profile::Host, Access::Read) if !under(Access::Hide) && !under(Access::Write) => self.note(
                    "files.read",
                    quoted(&change.path),
                    "a path below one of hide or write: base host reads everything else as it is",
                ),
                (Profile::Strict | Profile::Net, Access::Hide)
                    if !change.path.starts_with("/usr") && !under(Access::Read) && !under(Access::Write) =>
                {
                    self.note(
                        "files.hide",
                        quoted(&change.path),
                        "a path below /usr, or below one of read or write: nothing else is there inside",
                    );
                }
                _ => {}
            }
        }
        for call in definition.allowed_calls.iter().filter(|call| definition.refused_calls.contains(call)) {
            self.note("system_calls", format!("\"{call}\""), "a call in one of allow and refuse");
        }
    }
}

/// A value as it stands in a file, shortened.
fn shown(value: &Value) -> String {
    let text = value.to_string();
    if text.chars().count() <= 120 {
        text
    } else {
        format!("{}…", text.chars().take(120).collect::<String>())
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn parse(text: &str) -> Result<ProfileDefinition, String> {
        ProfileDefinition::parse(&ProfileName::new("db-audit").unwrap(), text).map_err(|all| all.join("\n"))
    }

    #[test]
    fn everything_that_can_be_said_is_read() {
        let definition = parse(
            r#"
description = "audit of one database"
base = "strict"
require = ["seccomp", "cgroup-memory"]
devices = ["/dev/kvm"]

[files]
read = ["/opt/oracle", "/var/log/audit"]
write = ["/var/lib/audit"]
hide = ["/usr/share/doc", "/opt/oracle/secret"]

[system_calls]
allow = ["ptrace"]
refuse = ["socket", "memfd_create"]

[limits]
memory_bytes = 67108864
cpu_percent = 50
write_bytes_per_s = 1048576
"#,
        )
        .unwrap();
        assert_eq!(definition.base, Profile::Strict);
        assert_eq!(definition.require, [Layer::Seccomp, Layer::CgroupMemory]);
        let order: Vec<_> = definition.paths.iter().map(|c| c.path.to_str().unwrap()).collect();
        assert_eq!(
            order,
            ["/opt/oracle", "/opt/oracle/secret", "/usr/share/doc", "/var/lib/audit", "/var/log/audit"]
        );
        assert_eq!(definition.limits, [("memory_bytes", 67_108_864)]);
        assert_eq!(
            (definition.rates.cpu_percent, definition.rates.write_bytes_per_s),
            (Some(50), Some(1 << 20))
        );
        assert!(definition.rates.limits_disks());
        assert_eq!(definition.limits(Limits::default()).memory_bytes, 67_108_864);
        assert_eq!((definition.allowed_calls.len(), definition.refused_calls.len()), (1, 2));
        let short = parse("base = \"net\"").unwrap();
        assert!(!short.changes_isolation() && !short.rates.limits_disks());
    }

    #[test]
    fn every_problem_is_told_with_key_value_and_expectation() {
        let error = parse(
            r#"
base = "tight"
colour = "red"
require = ["seccomp", "moat"]
devices = ["/dev/../etc/shadow", "/dev/shm", "/etc/passwd"]
[files]
read = ["relative", "/", "/run", "/tmp/x", "/a//b", "/a/", "/ok", 7, "/ok"]
write = "/x"
[system_calls]
allow = ["mount", "keyctl", "no_such_call"]
refuse = ["execve"]
[limits]
memory_bytes = 0
memory = 1
cpu_percent = "half"
cpu_ms = -1
"#,
        )
        .unwrap_err();
        for part in [
            "base = \"tight\": expected strict, net, host or admin",
            "colour = \"red\": expected no such key; the keys are description, base",
            "require = \"moat\": expected a layer: user, uid",
            "devices = \"/dev/../etc/shadow\": expected a character device below /dev",
            "devices = \"/dev/shm\"",
            "devices = \"/etc/passwd\"",
            "files.read = \"relative\": expected an absolute path",
            "files.read = \"/\": expected a path that neither contains /proc",
            "files.read = \"/run\": expected a path that neither contains /run/sally",
            "files.read = \"/tmp/x\"",
            "files.read = \"/a//b\"",
            "files.read = \"/a/\"",
            "files.read = 7: expected a text",
            "files.read = \"/ok\": expected each entry once",
            "files.write = \"/x\": expected a list of texts",
            "system_calls.allow = \"mount\": expected",
            "system_calls.allow = \"keyctl\": expected",
            "system_calls.allow = \"no_such_call\": expected",
            "system_calls.refuse = \"execve\": expected",
            "limits.memory_bytes = 0: expected 1 to",
            "limits.memory = 1: expected no such key; the limits are stdout_bytes",
            "limits.cpu_percent = \"half\": expected a whole number",
            "limits.cpu_ms = -1: expected a whole number",
        ] {
            assert!(error.contains(part), "{part}\nin\n{error}");
        }
    }

    #[test]
    fn what_contradicts_itself_is_told() {
        let both = parse("base = \"net\"\n[files]\nread = [\"/a\"]\nwrite = [\"/a\"]").unwrap_err();
        assert!(both.contains("files = \"/a\": expected a path in one of"), "{both}");
        let admin = parse("base = \"admin\"\n[files]\nhide = [\"/home\"]").unwrap_err();
        assert!(admin.contains("admin confines nothing"), "{admin}");
        assert!(parse("base = \"admin\"\n[limits]\nmemory_bytes = 9999999").is_ok());
        let host = parse("base = \"host\"\n[files]\nread = [\"/srv\"]").unwrap_err();
        assert!(host.contains("base host reads everything"), "{host}");
        assert!(parse("base = \"host\"\n[files]\nhide = [\"/srv\"]\nread = [\"/srv/a\"]").is_ok());
        let hidden = parse("base = \"strict\"\n[files]\nhide = [\"/home\"]").unwrap_err();
        assert!(hidden.contains("nothing else is there"), "{hidden}");
        let twice = parse("base = \"strict\"\n[system_calls]\nallow = [\"ptrace\"]\nrefuse = [\"ptrace\"]");
        assert!(twice.is_err());
        let sockets =
            |base: &str, value: &str| parse(&format!("base = \"{base}\"\n[network]\nunix_sockets = {value}"));
        assert!(sockets("host", "true").is_ok_and(|d| d.unix_sockets && d.changes_isolation()));
        assert!(sockets("net", "false").is_ok_and(|d| !d.unix_sockets));
        assert!(
            sockets("net", "true").unwrap_err().contains("unix_sockets = true: expected base = \"host\"")
        );
        assert!(sockets("host", "1").unwrap_err().contains("unix_sockets = 1: expected true or false"));
        assert!(parse("").unwrap_err().contains("base = (absent): expected strict"));
        assert!(parse("base = ").is_err());
        let named = ProfileDefinition::parse(&ProfileName::new("host").unwrap(), "base = \"strict\"");
        assert!(named.unwrap_err().concat().contains("host is a built-in profile"));
    }
}
