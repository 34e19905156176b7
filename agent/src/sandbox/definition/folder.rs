//! The folder of definitions, and what must be true of the host before one may be used.
#![forbid(unsafe_code)]

use super::{DefinedProfile, PathChange, ProfileDefinition};
use crate::sandbox::profile::Profile;
use nix::unistd::geteuid;
use sally_common::name::{ProfileName, show};
use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Where the definitions of a host are, unless its programs are told otherwise.
pub const PROFILES_DIR: &str = "/etc/sally/profiles.d";

/// The largest file of a definition.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// The most definitions of one folder.
const MAX_DEFINITIONS: usize = 64;

/// Every definition of a folder, whether it can be used or not.
#[derive(Clone, Debug, Default)]
pub struct Definitions {
    dir: Option<PathBuf>,
    all: BTreeMap<ProfileName, Result<Arc<ProfileDefinition>, DefinitionProblem>>,
    /// What is wrong with the folder itself, and with files in it that have no usable name.
    pub problems: Vec<String>,
}

/// Why a definition cannot be used: every reason.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{}: {}", file.display(), problems.join("; "))]
pub struct DefinitionProblem {
    /// Its file.
    pub file: PathBuf,
    /// One sentence each.
    pub problems: Vec<String>,
}

impl Definitions {
    /// Reads a folder. One that is not there has no definitions. Nothing here is an error: a definition that cannot be
    /// used is known by its problem, and the others can be used.
    pub fn read(dir: &Path) -> Definitions {
        let mut found = Definitions { dir: Some(dir.to_owned()), ..Definitions::default() };
        let entries = match fs::read_dir(dir) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return found,
            Err(error) => {
                found.problems.push(format!("cannot read {}: {error}", dir.display()));
                return found;
            }
        };
        if let Err(problem) = only_ours(dir) {
            found.problems.push(format!("{problem}; nothing in it is used"));
            return found;
        }
        let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
        files.retain(|file| file.extension().is_some_and(|extension| extension == "toml"));
        files.sort();
        if files.len() > MAX_DEFINITIONS {
            let (count, shown) = (files.len(), dir.display());
            found
                .problems
                .push(format!("{shown} has {count} definitions; only the first {MAX_DEFINITIONS} are used"));
            files.truncate(MAX_DEFINITIONS);
        }
        for file in files {
            let stem = file.file_stem().unwrap_or_default().to_string_lossy();
            match ProfileName::new(&stem) {
                Ok(name) => drop(found.all.insert(name.clone(), read_file(&name, &file).map(Arc::new))),
                Err(problem) => found.problems.push(format!("{}: {problem}", show(&file.to_string_lossy()))),
            }
        }
        found
    }

    /// The definition of a name, if there is one that can be used; the message says why not.
    pub fn get(&self, name: &ProfileName) -> Result<&Arc<ProfileDefinition>, String> {
        match self.all.get(name) {
            Some(Ok(definition)) => Ok(definition),
            Some(Err(problem)) => Err(format!("profile {name} cannot be used: {problem}")),
            None => Err(match &self.dir {
                Some(dir) => format!("there is no profile {name}: {} has no {name}.toml", dir.display()),
                None => format!(
                    "there is no profile {name}: the launcher has no folder of definitions (--profiles-dir)"
                ),
            }),
        }
    }

    /// Every one by name, with its problem if it cannot be used.
    pub fn iter(
        &self,
    ) -> impl Iterator<Item = (&ProfileName, Result<&Arc<ProfileDefinition>, &DefinitionProblem>)> {
        self.all.iter().map(|(name, definition)| (name, definition.as_ref()))
    }

    /// What to tell of them in few words.
    pub fn summary(&self) -> Vec<DefinedProfile> {
        // A problem is cut: 64 of them must fit into one message.
        let cut = |problem: &DefinitionProblem| problem.to_string().chars().take(300).collect();
        let one =
            |(name, definition): (&ProfileName, Result<&Arc<ProfileDefinition>, &DefinitionProblem>)| {
                let (base, problem) = match definition {
                    Ok(definition) => (definition.base, None),
                    Err(problem) => (Profile::Strict, Some(cut(problem))),
                };
                DefinedProfile { name: name.clone(), base, problem }
            };
        self.iter().map(one).collect()
    }
}

fn read_file(name: &ProfileName, file: &Path) -> Result<ProfileDefinition, DefinitionProblem> {
    let fail = |problems: Vec<String>| DefinitionProblem { file: file.to_owned(), problems };
    only_ours(file).map_err(|problem| fail(vec![problem]))?;
    let mut text = String::new();
    let read = File::open(file).and_then(|f| f.take(MAX_FILE_BYTES + 1).read_to_string(&mut text));
    read.map_err(|error| fail(vec![format!("it cannot be read: {error}")]))?;
    if text.len() as u64 > MAX_FILE_BYTES {
        return Err(fail(vec![format!("it is larger than {MAX_FILE_BYTES} bytes")]));
    }
    let definition = ProfileDefinition::parse(name, &text).map_err(fail)?;
    let problems = definition.not_on_this_host();
    if problems.is_empty() { Ok(definition) } else { Err(fail(problems)) }
}

/// Whoever can write a definition can widen every script's sandbox: that must be root or this account, nobody else.
fn only_ours(path: &Path) -> Result<(), String> {
    let shown = path.display();
    let status = fs::metadata(path).map_err(|error| format!("cannot look at {shown}: {error}"))?;
    let (owner, own) = (status.uid(), geteuid().as_raw());
    if owner != 0 && owner != own {
        return Err(format!(
            "{shown} belongs to uid {owner}: it must belong to root or to uid {own}, the launcher's"
        ));
    }
    if status.mode() & 0o022 != 0 {
        return Err(format!("{shown} has mode {:04o}: chmod go-w {shown}", status.mode() & 0o7777));
    }
    Ok(())
}

impl ProfileDefinition {
    /// What it names and this host does not have as it should be.
    fn not_on_this_host(&self) -> Vec<String> {
        let mut problems = Vec::new();
        for PathChange { path, access } in &self.paths {
            let key = match access {
                super::Access::Read => "files.read",
                super::Access::Write => "files.write",
                super::Access::Hide => "files.hide",
            };
            if let Err(expected) = there(path) {
                problems.push(format!("{key} = \"{}\": expected {expected}", path.display()));
            }
        }
        for path in &self.devices {
            let is_device =
                fs::symlink_metadata(path).is_ok_and(|status| status.file_type().is_char_device());
            if !is_device {
                let shown = path.display();
                problems.push(format!("devices = \"{shown}\": expected a character device of this host"));
            }
        }
        problems
    }
}

/// A path that is there and leads through no link: what a link leads to may change without the definition.
fn there(path: &Path) -> Result<(), String> {
    match fs::canonicalize(path) {
        Ok(real) if real == path => Ok(()),
        Ok(real) => Err(format!("a path without links: write {}", real.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            Err("a path of this host: it is not there".into())
        }
        // Its launcher may see more than this account does.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !geteuid().is_root() => Ok(()),
        Err(error) => Err(format!("a path that can be looked at: {error}")),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    fn name(text: &str) -> ProfileName {
        ProfileName::new(text).unwrap()
    }

    #[test]
    fn good_and_bad_definitions_stand_side_by_side() {
        let dir = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| fs::write(dir.path().join(name), text).unwrap();
        write("good.toml", "base = \"net\"");
        write("bad.toml", "base = \"nte\"\nx = 1");
        write("gone.toml", "base = \"strict\"\ndevices = [\"/dev/no-such\"]\n[files]\nread = [\"/no/such\"]");
        write("Not A Name.toml", "base = \"net\"");
        write("README", "no definition");
        symlink("/usr", dir.path().join("link")).unwrap();
        let link = dir.path().join("link").display().to_string();
        write("link.toml", &format!("base = \"strict\"\n[files]\nread = [\"{link}\"]"));
        write("open.toml", "base = \"strict\"");
        fs::set_permissions(dir.path().join("open.toml"), fs::Permissions::from_mode(0o666)).unwrap();
        let all = Definitions::read(dir.path());
        assert_eq!(all.get(&name("good")).unwrap().base, Profile::Net);
        let problem = |text: &str| all.get(&name(text)).unwrap_err();
        assert!(
            problem("bad").contains("base = \"nte\"") && problem("bad").contains("x = 1"),
            "{}",
            problem("bad")
        );
        assert!(problem("gone").contains("/no/such") && problem("gone").contains("/dev/no-such"));
        assert!(problem("open").contains("chmod go-w"), "{}", problem("open"));
        // A temporary folder lies in /tmp, which is the sandbox's own: that is told first.
        assert!(problem("link").contains("files.read"), "{}", problem("link"));
        assert!(problem("none").contains("has no none.toml"));
        assert_eq!(all.problems.len(), 1, "{:?}", all.problems);
        assert_eq!(all.summary().len(), 5);
        assert_eq!(there(Path::new("/usr")), Ok(()));
        assert!(there(&dir.path().join("link")).unwrap_err().contains("write /usr"));
    }

    #[test]
    fn a_folder_that_others_may_write_is_not_used() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("good.toml"), "base = \"net\"").unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let all = Definitions::read(dir.path());
        assert!(all.get(&name("good")).is_err());
        assert!(all.problems[0].contains("chmod go-w"), "{:?}", all.problems);
        assert!(Definitions::read(&dir.path().join("none")).problems.is_empty());
    }
}
