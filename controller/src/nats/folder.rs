//! A folder of files that are made once: what is there stays, keys above all.

use std::fs;
use std::path::{Path, PathBuf};

use nkeys::KeyPair;
use sally_common::key::SigningKey;
use sally_common::nats::accounts::{Role, Trust, TrustError};
use sally_common::nats::creds::{Creds, CredsError};
use sally_common::nats::jwt::say_the_same;
use serde::Serialize;

use crate::broker::state::{StateError, make_private, write_private};

/// What became of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fate {
    /// It was not there.
    Written,
    /// It follows from the others and was brought up to date.
    Updated,
    /// It was there and stays as it is.
    Kept,
    /// It was there with other content and stays; what would have been written stands beside it as `NAME.new`.
    Differs,
}

/// One file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Done {
    /// Where.
    pub path: PathBuf,
    /// What became of it.
    pub fate: Fate,
}

/// A file could not be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum FolderError {
    #[error(transparent)]
    State(#[from] StateError),
    #[error(transparent)]
    Key(#[from] sally_common::key::KeyError),
    #[error(transparent)]
    Creds(#[from] CredsError),
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("cannot read {}: {source}", path.display())]
    Read { path: PathBuf, source: std::io::Error },
}

/// Writes below one folder, and notes what it did.
pub struct Folder {
    root: PathBuf,
    done: Vec<Done>,
}

impl Folder {
    /// Takes up a folder, or makes it, readable by its owner only.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn open(root: &Path) -> Result<Self, FolderError> {
        let root = std::path::absolute(root)
            .map_err(|source| StateError::Unusable { path: root.to_owned(), source })?;
        make_private(&root)?;
        Ok(Self { root, done: Vec::new() })
    }

    /// Takes up a folder that is there.
    ///
    /// # Errors
    /// When it is not.
    pub fn open_existing(root: &Path) -> Result<Self, FolderError> {
        let found = fs::metadata(root);
        found.map_err(|source| FolderError::Read { path: root.to_owned(), source })?;
        Self::open(root)
    }

    /// The folder itself, absolute.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    /// What was done so far.
    pub fn done(self) -> Vec<Done> {
        self.done
    }

    /// Makes a file that is never made again.
    ///
    /// # Errors
    /// When it cannot be made or written.
    pub fn once<E: From<FolderError>>(
        &mut self,
        name: &str,
        make: impl FnOnce() -> Result<Vec<u8>, E>,
    ) -> Result<PathBuf, E> {
        let path = self.place(name)?;
        let fate = if path.exists() {
            Fate::Kept
        } else {
            write_private(&path, &make()?).map_err(FolderError::from)?;
            Fate::Written
        };
        self.done.push(Done { path: path.clone(), fate });
        Ok(path)
    }

    /// Makes a file that somebody may have changed: one with other content stays, and the new one is put beside it.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn settle(&mut self, name: &str, bytes: &[u8]) -> Result<PathBuf, FolderError> {
        let path = self.place(name)?;
        let fate = match read(&path)? {
            None => {
                write_private(&path, bytes)?;
                Fate::Written
            }
            Some(found) if found == bytes => Fate::Kept,
            Some(_) => {
                write_private(&self.path(&format!("{name}.new")), bytes)?;
                Fate::Differs
            }
        };
        self.done.push(Done { path: path.clone(), fate });
        Ok(path)
    }

    /// Brings a file up to date that follows from others and is nobody's to change.
    ///
    /// # Errors
    /// When it cannot be read or written.
    pub fn follow(&mut self, name: &str, bytes: &[u8]) -> Result<PathBuf, FolderError> {
        let path = self.place(name)?;
        let fate = match read(&path)? {
            Some(found) if found == bytes => Fate::Kept,
            found => {
                write_private(&path, bytes)?;
                if found.is_some() { Fate::Updated } else { Fate::Written }
            }
        };
        self.done.push(Done { path: path.clone(), fate });
        Ok(path)
    }

    /// A key that signs Sally's messages: made once.
    ///
    /// # Errors
    /// When it cannot be made or read.
    pub fn signing_key(&mut self, name: &str) -> Result<SigningKey, FolderError> {
        let path = self.once(name, || {
            Ok::<_, FolderError>(format!("{}\n", SigningKey::generate().seed()).into_bytes())
        })?;
        Ok(SigningKey::read(&path)?)
    }

    /// Credentials for the broker: the key is made once, and what it may do is brought up to date.
    ///
    /// # Errors
    /// When they cannot be issued, read or written.
    pub fn creds(
        &mut self,
        name: &str,
        trust: &Trust,
        role: Role<'_>,
        now: u64,
    ) -> Result<PathBuf, FolderError> {
        let path = self.place(name)?;
        let (key, before) = match path.exists() {
            true => Creds::read(&path).map(|found| (found.key().clone(), Some(found.jwt().to_owned())))?,
            false => (KeyPair::new_user(), None),
        };
        let issued = trust.user(role, key, now, None)?;
        let fate = match before {
            Some(before) if say_the_same(&before, issued.jwt()) => Fate::Kept,
            found => {
                issued.write(&path)?;
                if found.is_some() { Fate::Updated } else { Fate::Written }
            }
        };
        self.done.push(Done { path: path.clone(), fate });
        Ok(path)
    }

    fn place(&self, name: &str) -> Result<PathBuf, FolderError> {
        let path = self.root.join(name);
        // Each folder on the way is private, not only the last one.
        let below: Vec<&Path> = path.ancestors().skip(1).take_while(|folder| *folder != self.root).collect();
        below.into_iter().rev().try_for_each(make_private)?;
        Ok(path)
    }
}

fn read(path: &Path) -> Result<Option<Vec<u8>>, FolderError> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(FolderError::Read { path: path.to_owned(), source }),
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt as _;

    fn fates(folder: Folder) -> Vec<Fate> {
        folder.done().into_iter().map(|done| done.fate).collect()
    }

    #[test]
    fn keys_are_made_once_and_all_is_private() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(&dir.path().join("a")).unwrap();
        let first = folder.signing_key("keys/deep/x.seed").unwrap();
        let again = folder.signing_key("keys/deep/x.seed").unwrap();
        assert_eq!(first.public(), again.public());
        let mode = |name: &str| fs::metadata(folder.path(name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(
            (mode(""), mode("keys"), mode("keys/deep"), mode("keys/deep/x.seed")),
            (0o700, 0o700, 0o700, 0o600)
        );
        assert_eq!(fates(folder), [Fate::Written, Fate::Kept]);
    }

    #[test]
    fn what_somebody_changed_stays_and_what_follows_is_brought_up_to_date() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(dir.path()).unwrap();
        for content in ["one", "one", "two"] {
            folder.settle("mine", content.as_bytes()).unwrap();
            folder.follow("theirs", content.as_bytes()).unwrap();
        }
        let content = |name: &str| fs::read_to_string(folder.path(name)).unwrap();
        assert_eq!(
            (content("mine"), content("mine.new"), content("theirs")),
            ("one".into(), "two".into(), "two".into())
        );
        use Fate::*;
        assert_eq!(fates(folder), [Written, Written, Kept, Kept, Differs, Updated]);
    }

    #[test]
    fn credentials_are_issued_again_only_when_they_allow_something_else() {
        let dir = tempfile::tempdir().unwrap();
        let mut folder = Folder::open(dir.path()).unwrap();
        let mut trust = Trust::new("sally").unwrap();
        trust.add_zone("dmz").unwrap();
        let agent = Role::Agent { zone: "dmz", agent: "a1" };
        let path = folder.creds("x.creds", &trust, agent, 1).unwrap();
        let first = Creds::read(&path).unwrap();
        folder.creds("x.creds", &trust, agent, 2).unwrap();
        assert_eq!(Creds::read(&path).unwrap().jwt(), first.jwt());
        folder.creds("x.creds", &trust, Role::Agent { zone: "dmz", agent: "a2" }, 3).unwrap();
        let last = Creds::read(&path).unwrap();
        assert_eq!(last.key().public_key(), first.key().public_key());
        assert_ne!(last.jwt(), first.jwt());
        assert_eq!(fates(folder), [Fate::Written, Fate::Kept, Fate::Updated]);
    }
}
