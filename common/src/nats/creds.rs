//! The file a user of the broker connects with: its JWT and the seed of its key.
//!
//! The key in it answers the broker's nonce and does nothing else. The broker chooses that nonce freely, so a key
//! that also signed Sally's messages could be made to sign one: Sally's own signatures use other keys.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nkeys::{KeyPair, KeyPairType};

const JWT_BLOCK: &str = "NATS USER JWT";
const SEED_BLOCK: &str = "USER NKEY SEED";

/// A creds file is about 1 KiB; what is larger is another file.
const MAX_FILE_BYTES: u64 = 64 * 1024;

/// What a user connects with.
#[derive(Clone)]
pub struct Creds {
    jwt: String,
    key: KeyPair,
}

impl Creds {
    /// Joins a user's JWT and its key.
    pub fn new(jwt: String, key: KeyPair) -> Self {
        Self { jwt, key }
    }

    /// Reads the text of a creds file.
    ///
    /// # Errors
    /// [`CredsProblem`] when a block is missing or the seed is not a user's.
    pub fn parse(text: &str) -> Result<Self, CredsProblem> {
        let jwt = block(text, JWT_BLOCK).ok_or(CredsProblem::NoBlock(JWT_BLOCK))?;
        let seed = block(text, SEED_BLOCK).ok_or(CredsProblem::NoBlock(SEED_BLOCK))?;
        let key = KeyPair::from_seed(seed).map_err(|_| CredsProblem::NotASeed)?;
        if key.key_pair_type() != KeyPairType::User {
            return Err(CredsProblem::NotAUser);
        }
        Ok(Self { jwt: jwt.to_owned(), key })
    }

    /// Reads a creds file.
    ///
    /// # Errors
    /// [`CredsError`], naming the path.
    pub fn read(path: &Path) -> Result<Self, CredsError> {
        let length = fs::metadata(path).map_err(|e| CredsError::read(path, e))?.len();
        if length > MAX_FILE_BYTES {
            return Err(CredsError::Content { path: path.to_owned(), problem: CredsProblem::TooLarge });
        }
        let text = fs::read_to_string(path).map_err(|e| CredsError::read(path, e))?;
        Self::parse(&text).map_err(|problem| CredsError::Content { path: path.to_owned(), problem })
    }

    /// Writes the creds file, readable by its owner only: beside it, synced, then renamed, so that a reader sees the
    /// old one or the whole new one.
    ///
    /// # Errors
    /// [`CredsError`], naming the path.
    pub fn write(&self, path: &Path) -> Result<(), CredsError> {
        let failed = |e| CredsError::Write { path: path.to_owned(), source: e };
        let text = self.text().map_err(failed)?;
        let mut beside = path.as_os_str().to_owned();
        beside.push(".new");
        let beside = PathBuf::from(beside);
        // What a killed writer left may have other permissions: start anew.
        match fs::remove_file(&beside) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(failed(e)),
            _ => {}
        }
        let mut file =
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside).map_err(failed)?;
        file.write_all(text.as_bytes()).and_then(|()| file.sync_all()).map_err(failed)?;
        fs::rename(&beside, path).map_err(failed)
    }

    /// The user's JWT.
    pub fn jwt(&self) -> &str {
        &self.jwt
    }

    /// The user's key. For the broker's nonce and nothing else: see the head of this file.
    pub fn key(&self) -> &KeyPair {
        &self.key
    }

    fn text(&self) -> io::Result<String> {
        let seed = self.key.seed().map_err(|_| io::Error::other("the key has no seed"))?;
        Ok(format!(
            "-----BEGIN {JWT_BLOCK}-----\n{}\n------END {JWT_BLOCK}------\n\n\
             -----BEGIN {SEED_BLOCK}-----\n{seed}\n------END {SEED_BLOCK}------\n",
            self.jwt
        ))
    }
}

/// What is wrong with the text of a creds file.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CredsProblem {
    /// A block is missing.
    #[error("it has no `-----BEGIN {0}-----` block")]
    NoBlock(&'static str),
    /// The seed cannot be read.
    #[error("its seed is damaged")]
    NotASeed,
    /// The seed is an account's or an operator's.
    #[error("its seed is not a user's (a user's begins with SU)")]
    NotAUser,
    /// Too large to be one.
    #[error("it is larger than 64 KiB")]
    TooLarge,
}

/// A creds file could not be used.
#[derive(Debug, thiserror::Error)]
pub enum CredsError {
    /// It cannot be read.
    #[error("cannot read the broker credentials {}: {source}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It was read and is not a creds file.
    #[error("{} is not a broker credentials file: {problem}; have it issued again", path.display())]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        problem: CredsProblem,
    },
    /// It cannot be written.
    #[error("cannot write the broker credentials {}: {source}", path.display())]
    Write {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
}

impl CredsError {
    fn read(path: &Path, source: io::Error) -> Self {
        Self::Read { path: path.to_owned(), source }
    }
}

/// Returns the one line between `-----BEGIN name-----` and the next line of dashes. Writers disagree about the number
/// of dashes at the end, so any two or more count.
fn block<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    let begin = format!("BEGIN {name}");
    let mut lines = text.lines().map(str::trim);
    lines.find(|line| line.starts_with("--") && line.trim_matches('-') == begin)?;
    let value = lines.next().filter(|line| !line.is_empty() && !line.starts_with("--"))?;
    lines.next().filter(|line| line.starts_with("--"))?;
    Some(value)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn creds() -> Creds {
        Creds::new("a.b.c".to_owned(), KeyPair::new_user())
    }

    #[test]
    fn what_was_written_is_read_and_only_the_owner_can() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.creds");
        let first = creds();
        first.write(&path).unwrap();
        let second = creds();
        second.write(&path).unwrap();
        let read = Creds::read(&path).unwrap();
        assert_eq!(read.jwt(), "a.b.c");
        assert_eq!(read.key().public_key(), second.key().public_key());
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "nothing is left beside it");
    }

    #[test]
    fn other_writers_dashes_and_blank_lines_are_read() {
        let seed = KeyPair::new_user().seed().unwrap();
        let text = format!(
            "\r\n-----BEGIN NATS USER JWT-----\r\nx.y.z\r\n------END NATS USER JWT------\r\n\n*** note ***\n\
             -----BEGIN USER NKEY SEED-----\n{seed}\n-----END USER NKEY SEED-----\n"
        );
        assert_eq!(Creds::parse(&text).unwrap().jwt(), "x.y.z");
    }

    fn problem(text: &str, expected: CredsProblem) {
        assert_eq!(Creds::parse(text).err(), Some(expected), "{text}");
    }

    #[test]
    fn broken_files_say_what_is_broken() {
        let whole = creds().text().unwrap();
        let seed = creds().key().seed().unwrap();
        problem("", CredsProblem::NoBlock(JWT_BLOCK));
        problem(&whole.replace("USER NKEY", "NKEY"), CredsProblem::NoBlock(SEED_BLOCK));
        problem(&whole.replace("\na.b.c\n", "\n"), CredsProblem::NoBlock(JWT_BLOCK));
        let with = |seed: &str| {
            format!("--BEGIN {JWT_BLOCK}--\nx\n--END--\n--BEGIN {SEED_BLOCK}--\n{seed}\n--END--\n")
        };
        problem(&with("SUAAAA"), CredsProblem::NotASeed);
        problem(&with(&seed[..seed.len() - 1]), CredsProblem::NotASeed);
        problem(&with(&KeyPair::new_account().seed().unwrap()), CredsProblem::NotAUser);
        let missing = Creds::read(Path::new("/nonexistent/x.creds")).err().unwrap();
        assert!(missing.to_string().contains("/nonexistent/x.creds"));
    }
}
