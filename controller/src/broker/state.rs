//! The folder of `sally up`: made on the first start, used again on the next, by one `up` at a time.
//!
//! ```text
//! DIR/            0700
//!   lock          held while an `up` runs; holds its process id
//!   keys/         seeds of operator and accounts (broker.json); room for Sally's own keys
//!   creds/        one file per user of the broker
//!   jetstream/    the broker's store
//!   accounts/     the accounts as the broker has them, with what was revoked
//!   run/          pid files of children, the broker's ports file
//!   log/          what the children print
//!   nats.conf     the broker's configuration, written at every start
//!   context.toml  how to reach it
//! ```

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nkeys::KeyPair;
use sally_common::nats::accounts::{Role, Trust, TrustError, TrustSeeds};
use sally_common::nats::creds::{Creds, CredsError};

/// The folder of one `up`, locked for as long as this value lives.
#[derive(Debug)]
pub struct StateDir {
    root: PathBuf,
    _lock: File,
}

/// The folder cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Another `up` uses it.
    #[error("{} is in use by another `sally up`{}: stop that one, or give another --dir", root.display(), with_pid(*pid))]
    InUse {
        /// The folder.
        root: PathBuf,
        /// The process that holds it, if it could be read.
        pid: Option<u32>,
    },
    /// It cannot be made, read or written.
    #[error("cannot use {}: {source}; give a folder you may write with --dir", path.display())]
    Unusable {
        /// The folder or file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// What was kept there is damaged.
    #[error("{} is damaged ({problem}): restore it, or remove the folder to start anew", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong.
        problem: String,
    },
    /// A broker credential cannot be issued.
    #[error(transparent)]
    Trust(#[from] TrustError),
    /// A creds file cannot be read or written.
    #[error(transparent)]
    Creds(#[from] CredsError),
}

impl StateDir {
    /// Makes the folder, or takes up what is there, and locks it.
    ///
    /// # Errors
    /// [`StateError::InUse`] while another process holds it; [`StateError::Unusable`] when it cannot be written.
    pub fn open(root: &Path) -> Result<Self, StateError> {
        let root = std::path::absolute(root).map_err(|e| unusable(root, e))?;
        make_private(&root)?;
        let lock = lock(&root)?;
        let state = Self { root, _lock: lock };
        for dir in
            [state.keys(), state.creds(), state.jetstream(), state.accounts(), state.run(), state.log()]
        {
            make_private(&dir)?;
        }
        Ok(state)
    }

    /// The folder itself, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Seeds and keys.
    pub fn keys(&self) -> PathBuf {
        self.root.join("keys")
    }

    /// Creds files.
    pub fn creds(&self) -> PathBuf {
        self.root.join("creds")
    }

    /// The broker's store.
    pub fn jetstream(&self) -> PathBuf {
        self.root.join("jetstream")
    }

    /// The accounts as the broker keeps them.
    pub fn accounts(&self) -> PathBuf {
        self.root.join("accounts")
    }

    /// Pid files and ports files.
    pub fn run(&self) -> PathBuf {
        self.root.join("run")
    }

    /// What children print.
    pub fn log(&self) -> PathBuf {
        self.root.join("log")
    }

    /// The broker's configuration.
    pub fn nats_conf(&self) -> PathBuf {
        self.root.join("nats.conf")
    }

    /// How to reach this `up`.
    pub fn context(&self) -> PathBuf {
        self.root.join("context.toml")
    }

    /// Takes up the broker's keys, or makes them, and gives each of `zones` an account. `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`StateError::Damaged`] when the kept keys cannot be read: they are never replaced in silence, since agents
    /// elsewhere may hold credentials of them.
    pub fn trust(&self, prefix: &str, zones: &[&str], now: u64) -> Result<Trust, StateError> {
        let trust = keep_trust(&self.keys().join("broker.json"), prefix, zones, now)?;
        let issuer = trust.issuer()?;
        write_private(&self.issuer(), &serde_json::to_vec_pretty(&issuer).unwrap_or_default())?;
        Ok(trust)
    }

    /// What the controller issues and revokes agents' credentials with.
    pub fn issuer(&self) -> PathBuf {
        self.keys().join("issuer.json")
    }

    /// Writes the creds file of a user and returns its path. A user keeps its key from start to start; its permissions
    /// are issued anew each time, so that a newer Sally's take effect. `now` in seconds since 1970.
    ///
    /// # Errors
    /// When a name is not one, the zone has no account, or the file cannot be used.
    pub fn issue(&self, trust: &Trust, role: Role<'_>, now: u64) -> Result<PathBuf, StateError> {
        let path = self.creds().join(match role {
            Role::Controller => "controller.creds".to_owned(),
            Role::Caller { name } => format!("caller.{name}.creds"),
            Role::Agent { zone, agent } => format!("agent.{zone}.{agent}.creds"),
            Role::Enroller { zone, token } => format!("enroll.{zone}.{token}.creds"),
            Role::Leaf { zone } => format!("leaf.{zone}.creds"),
            Role::Accounts => "accounts.creds".to_owned(),
        });
        let key = if path.exists() { Creds::read(&path)?.key().clone() } else { KeyPair::new_user() };
        trust.user(role, key, now, None)?.write(&path)?;
        Ok(path)
    }
}

/// Takes up the keys kept in a file, or makes them, and gives each of `zones` an account. What is issued now is noted there.
///
/// # Errors
/// [`StateError::Damaged`] when the kept keys cannot be read: they are never replaced in silence.
pub fn keep_trust(path: &Path, prefix: &str, zones: &[&str], now: u64) -> Result<Trust, StateError> {
    let damaged =
        |e: serde_json::Error| StateError::Damaged { path: path.to_owned(), problem: e.to_string() };
    let (mut trust, kept) = match fs::read(path) {
        Ok(bytes) => {
            let seeds: TrustSeeds = serde_json::from_slice(&bytes).map_err(damaged)?;
            (Trust::from_seeds(prefix, &seeds)?, bytes)
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => (Trust::new(prefix)?, Vec::new()),
        Err(error) => return Err(unusable(path, error)),
    };
    for zone in zones {
        trust.add_zone(zone)?;
    }
    trust.note_issued(now);
    let seeds = serde_json::to_vec_pretty(&trust.seeds()?).map_err(damaged)?;
    if seeds != kept {
        write_private(path, &seeds)?;
    }
    Ok(trust)
}

/// Replaces a file that only the owner may read: written beside it, synced, renamed.
///
/// # Errors
/// [`StateError::Unusable`], naming the path.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<(), StateError> {
    let failed = |e| unusable(path, e);
    let mut beside = path.as_os_str().to_owned();
    beside.push(".new");
    let beside = PathBuf::from(beside);
    match fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&beside, path).map_err(failed)?;
    let parent = path.parent().unwrap_or(Path::new("/"));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(failed)
}

/// Makes a folder that only the owner may read.
///
/// # Errors
/// [`StateError::Unusable`].
pub fn make_private(dir: &Path) -> Result<(), StateError> {
    if fs::metadata(dir).is_ok_and(|found| !found.is_dir()) {
        return Err(unusable(
            dir,
            io::Error::new(io::ErrorKind::NotADirectory, "it is a file, not a folder"),
        ));
    }
    fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|e| unusable(dir, e))?;
    // One that was there may be open to others, and keys go into it.
    fs::set_permissions(dir, fs::Permissions::from_mode(0o700)).map_err(|e| unusable(dir, e))
}

fn lock(root: &Path) -> Result<File, StateError> {
    let path = root.join("lock");
    let failed = |e| unusable(&path, e);
    let mut file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut text = String::new();
            // Only to name it: unreadable is no reason to fail otherwise.
            let _ = file.read_to_string(&mut text);
            return Err(StateError::InUse { root: root.to_owned(), pid: text.trim().parse().ok() });
        }
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    file.set_len(0).and_then(|()| file.rewind()).map_err(failed)?;
    writeln!(file, "{}", std::process::id()).map_err(failed)?;
    Ok(file)
}

fn unusable(path: &Path, source: io::Error) -> StateError {
    StateError::Unusable { path: path.to_owned(), source }
}

fn with_pid(pid: Option<u32>) -> String {
    pid.map_or_else(String::new, |pid| format!(" (process {pid})"))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;

    fn mode(path: &Path) -> u32 {
        fs::metadata(path).unwrap().permissions().mode() & 0o777
    }

    #[test]
    fn the_folder_is_private_even_if_it_was_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("a/b");
        fs::create_dir_all(root.join("keys")).unwrap();
        fs::set_permissions(root.join("keys"), fs::Permissions::from_mode(0o755)).unwrap();
        let state = StateDir::open(&root).unwrap();
        for path in [state.root().to_owned(), state.keys(), state.creds(), state.jetstream(), state.run()] {
            assert_eq!(mode(&path), 0o700, "{}", path.display());
        }
    }

    #[test]
    fn a_second_up_is_told_who_holds_the_folder_and_the_next_one_gets_it() {
        let dir = tempfile::tempdir().unwrap();
        let first = StateDir::open(dir.path()).unwrap();
        let error = StateDir::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains(&format!("(process {})", std::process::id())), "{error}");
        assert!(error.contains("another --dir"), "{error}");
        drop(first);
        StateDir::open(dir.path()).unwrap();
    }

    #[test]
    fn a_place_that_cannot_be_a_folder_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let error = StateDir::open(&file.join("below")).unwrap_err().to_string();
        assert!(error.contains("file/below") && error.contains("--dir"), "{error}");
    }

    #[test]
    fn keys_are_made_once_and_users_keep_theirs() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let role = Role::Agent { zone: "local", agent: "local-1" };
        let first = state.trust("sally", &["local"], 1).unwrap();
        let path = state.issue(&first, role, 1).unwrap();
        let user = Creds::read(&path).unwrap();
        assert_eq!(mode(&path), 0o600);
        assert_eq!(mode(&state.keys().join("broker.json")), 0o600);

        let again = state.trust("sally", &["local", "shop"], 1).unwrap();
        assert_eq!(first.system_account(), again.system_account());
        assert_eq!(again.account_jwts(1).unwrap().len(), 4);
        assert_eq!(state.issue(&again, role, 2).unwrap(), path);
        let reissued = Creds::read(&path).unwrap();
        assert_eq!(reissued.key().public_key(), user.key().public_key());
        assert_ne!(reissued.jwt(), user.jwt(), "permissions are issued anew");
    }

    #[test]
    fn damaged_keys_are_never_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path()).unwrap();
        let path = state.keys().join("broker.json");
        fs::write(&path, "{").unwrap();
        assert!(matches!(state.trust("sally", &[], 1).err(), Some(StateError::Damaged { .. })));
        assert_eq!(fs::read_to_string(&path).unwrap(), "{");
    }
}
