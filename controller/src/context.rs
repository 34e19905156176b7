//! Contexts: which broker a caller connects to, as whom, and which controllers it believes.
//!
//! A context is one TOML file. Named ones live in the user's configuration folder; `sally up` writes its own
//! into its data folder and leaves a pointer, so that the next command finds it.

use std::path::{Path, PathBuf};
use std::{fs, io};

use directories::ProjectDirs;
use sally_common::key::PublicKey;
use sally_common::name::User;
use sally_common::subject::Prefix;
use serde::{Deserialize, Serialize};

/// The version of the file.
const VERSION: u32 = 1;
/// The largest file that is read, in bytes.
const FILE_MAX: u64 = 64 * 1024;

/// A context, checked and with absolute paths.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    /// The broker's address.
    pub url: String,
    /// The creds file for the broker.
    pub creds: PathBuf,
    /// The seed file of the key that signs requests and orders.
    pub signing_key: PathBuf,
    /// The caller's name.
    pub user: User,
    /// The first token of every subject.
    pub prefix: Prefix,
    /// The controllers whose signatures are believed.
    pub controllers: Vec<PublicKey>,
    /// What the inbox begins with, as the creds allow it.
    pub inbox: String,
    /// Certificates to trust besides the system's.
    pub ca_file: Option<PathBuf>,
    /// TLS before the broker's greeting.
    pub tls_first: bool,
}

/// A context as it is written. Paths are relative to the file, or absolute.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ContextFile {
    /// 1.
    pub version: u32,
    /// The broker's address.
    pub url: String,
    /// The creds file for the broker.
    pub creds: PathBuf,
    /// The seed file of the key that signs.
    pub signing_key: PathBuf,
    /// The caller's name.
    pub user: User,
    /// The first token of every subject; `sally` if absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub prefix: Option<String>,
    /// The controllers' public keys.
    pub controllers: Vec<PublicKey>,
    /// What the inbox begins with, if not `_INBOX_cli.USER`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub inbox: Option<String>,
    /// Certificates to trust besides the system's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ca_file: Option<PathBuf>,
    /// TLS before the broker's greeting.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub tls_first: bool,
}

/// Why there is no context.
#[derive(Debug, thiserror::Error)]
pub enum ContextError {
    /// Nothing is selected and no `up` has run.
    #[error("there is no context: nothing says which controller to use")]
    None,
    /// No context has this name.
    #[error("there is no context \"{name}\"{}", known(.there))]
    Unknown {
        /// What was asked for.
        name: String,
        /// Those there are.
        there: Vec<String>,
    },
    /// Not usable as a name.
    #[error("\"{0}\" is not a context name: use a-z, 0-9, '-' and '_', or a path with a '/'")]
    BadName(String),
    /// The file cannot be read or written.
    #[error("cannot {verb} {}: {source}", path.display())]
    File {
        /// `read` or `write`.
        verb: &'static str,
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The file is not a context.
    #[error("{} is not a context: {problem}", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The user has no home folder.
    #[error("this user has no home folder, so there is no place for contexts: use --context PATH")]
    NoHome,
}

fn known(there: &[String]) -> String {
    if there.is_empty() {
        "; there are none yet".to_owned()
    } else {
        format!("; there are: {}", there.join(", "))
    }
}

impl Context {
    /// Reads a context file.
    ///
    /// # Errors
    /// When it cannot be read or is not a context.
    pub fn read(path: &Path) -> Result<Self, ContextError> {
        let path = std::path::absolute(path).map_err(|e| file_error("read", path, e))?;
        let size = fs::metadata(&path).map_err(|e| file_error("read", &path, e))?.len();
        let bad = |problem: String| ContextError::Content { path: path.clone(), problem };
        if size > FILE_MAX {
            return Err(bad(format!("it has {size} bytes, more than {FILE_MAX}")));
        }
        let text = fs::read_to_string(&path).map_err(|e| file_error("read", &path, e))?;
        let written: ContextFile = toml::from_str(&text).map_err(|e| bad(e.to_string().trim().to_owned()))?;
        if written.version != VERSION {
            return Err(bad(format!("it is of version {}, this program reads {VERSION}", written.version)));
        }
        if written.controllers.is_empty() {
            return Err(bad("\"controllers\" names no key".to_owned()));
        }
        let folder = path.parent().unwrap_or(Path::new("/"));
        let prefix = match written.prefix.as_deref() {
            None => Prefix::default(),
            Some(text) => Prefix::new(text).map_err(|e| bad(format!("\"prefix\": {e}")))?,
        };
        Ok(Self {
            inbox: written
                .inbox
                .unwrap_or_else(|| sally_common::nats::accounts::caller_inbox(written.user.as_str())),
            creds: folder.join(written.creds),
            signing_key: folder.join(written.signing_key),
            ca_file: written.ca_file.map(|f| folder.join(f)),
            url: written.url,
            user: written.user,
            controllers: written.controllers,
            tls_first: written.tls_first,
            prefix,
        })
    }

    /// The context as it would be written anywhere: with absolute paths.
    pub fn to_file(&self) -> ContextFile {
        ContextFile {
            version: VERSION,
            url: self.url.clone(),
            creds: self.creds.clone(),
            signing_key: self.signing_key.clone(),
            user: self.user.clone(),
            prefix: Some(self.prefix.as_str().to_owned()),
            controllers: self.controllers.clone(),
            inbox: Some(self.inbox.clone()),
            ca_file: self.ca_file.clone(),
            tls_first: self.tls_first,
        }
    }
}

/// Writes a context file as a whole: beside it first, then renamed.
///
/// # Errors
/// When the file cannot be written.
pub fn write_context(path: &Path, context: &ContextFile) -> Result<(), ContextError> {
    let text = toml::to_string(context)
        .map_err(|e| ContextError::Content { path: path.to_owned(), problem: e.to_string() })?;
    replace(path, &text)
}

/// Remembers the context of the last `sally up` of this user.
///
/// # Errors
/// When there is no home folder or the pointer cannot be written.
pub fn remember_last_up(path: &Path) -> Result<(), ContextError> {
    Store::of_user()?.remember_last_up(path)
}

/// Where a user's contexts are.
#[derive(Debug, Clone)]
pub struct Store {
    config: PathBuf,
    state: PathBuf,
}

/// A context that is stored under a name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    /// Its name.
    pub name: String,
    /// Whether commands use it when nothing else is said.
    pub selected: bool,
    /// Its file.
    pub path: PathBuf,
}

impl Store {
    /// The store of the user who runs this program.
    ///
    /// # Errors
    /// When there is no home folder.
    pub fn of_user() -> Result<Self, ContextError> {
        let dirs = ProjectDirs::from("", "", "sally").ok_or(ContextError::NoHome)?;
        let state = dirs.state_dir().unwrap_or_else(|| dirs.data_local_dir());
        Ok(Self { config: dirs.config_dir().to_owned(), state: state.to_owned() })
    }

    /// A store in two folders.
    pub fn at(config: PathBuf, state: PathBuf) -> Self {
        Self { config, state }
    }

    /// The file of the context to use: the asked one by name or path, else the selected one, else that of
    /// the last `up`.
    ///
    /// # Errors
    /// When there is none, or none of that name.
    pub fn find(&self, asked: Option<&str>) -> Result<PathBuf, ContextError> {
        match asked {
            Some(text) if is_path(text) => Ok(PathBuf::from(text)),
            Some(name) => self.named(name),
            None => match read_line(&self.selected_file()) {
                Some(name) => self.named(&name),
                None => read_line(&self.last_up_file()).map(PathBuf::from).ok_or(ContextError::None),
            },
        }
    }

    /// The stored contexts by name.
    pub fn list(&self) -> Vec<Listed> {
        let selected = read_line(&self.selected_file());
        let entries = fs::read_dir(self.folder()).into_iter().flatten().flatten();
        let mut all: Vec<Listed> = entries
            .filter_map(|entry| {
                let path = entry.path();
                let name = path.file_name()?.to_str()?.strip_suffix(".toml")?.to_owned();
                Some(Listed { selected: selected.as_deref() == Some(name.as_str()), name, path })
            })
            .collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Stores a context file's content under a name, with its paths made absolute.
    ///
    /// # Errors
    /// When the file is not a context, the name not one, or the store cannot be written.
    pub fn add(&self, name: &str, file: &Path) -> Result<PathBuf, ContextError> {
        let path = self.path_of(name)?;
        write_context(&path, &Context::read(file)?.to_file())?;
        Ok(path)
    }

    /// Makes a stored context the one that commands use.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn select(&self, name: &str) -> Result<(), ContextError> {
        self.named(name)?;
        replace(&self.selected_file(), &format!("{name}\n"))
    }

    /// Removes a stored context. What it points to stays.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn remove(&self, name: &str) -> Result<(), ContextError> {
        let path = self.named(name)?;
        fs::remove_file(&path).map_err(|e| file_error("remove", &path, e))?;
        if read_line(&self.selected_file()).as_deref() == Some(name) {
            let selected = self.selected_file();
            fs::remove_file(&selected).map_err(|e| file_error("remove", &selected, e))?;
        }
        Ok(())
    }

    /// Remembers the context of the last `up`.
    ///
    /// # Errors
    /// When the pointer cannot be written.
    pub fn remember_last_up(&self, path: &Path) -> Result<(), ContextError> {
        let path = std::path::absolute(path).map_err(|e| file_error("read", path, e))?;
        replace(&self.last_up_file(), &format!("{}\n", path.display()))
    }

    fn named(&self, name: &str) -> Result<PathBuf, ContextError> {
        let path = self.path_of(name)?;
        if path.is_file() {
            return Ok(path);
        }
        let there = self.list().into_iter().map(|l| l.name).collect();
        Err(ContextError::Unknown { name: name.to_owned(), there })
    }

    fn path_of(&self, name: &str) -> Result<PathBuf, ContextError> {
        // A context's name is a path part like every other name.
        User::new(name).map_err(|_| ContextError::BadName(sally_common::name::show(name)))?;
        Ok(self.folder().join(format!("{name}.toml")))
    }

    fn folder(&self) -> PathBuf {
        self.config.join("contexts")
    }

    fn selected_file(&self) -> PathBuf {
        self.config.join("selected")
    }

    fn last_up_file(&self) -> PathBuf {
        self.state.join("last-up")
    }
}

fn is_path(text: &str) -> bool {
    text.contains('/') || text.ends_with(".toml")
}

fn read_line(path: &Path) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    let line = text.lines().next()?.trim();
    (!line.is_empty()).then(|| line.to_owned())
}

fn replace(path: &Path, text: &str) -> Result<(), ContextError> {
    let write = || {
        let folder = path.parent().unwrap_or(Path::new("/"));
        fs::create_dir_all(folder)?;
        let beside = path.with_extension(format!("{}.new", std::process::id()));
        let file = fs::File::create(&beside)?;
        io::Write::write_all(&mut &file, text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&beside, path)
    };
    write().map_err(|e| file_error("write", path, e))
}

fn file_error(verb: &'static str, path: &Path, source: io::Error) -> ContextError {
    ContextError::File { verb, path: path.to_owned(), source }
}

#[cfg(test)]
#[path = "context_tests.rs"]
mod tests;
