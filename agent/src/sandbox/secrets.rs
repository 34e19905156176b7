//! Secrets on their way into the box: one bounded message of names and values, and the folder it becomes.
#![forbid(unsafe_code)]

use super::step::{Step, StepError};
use super::template;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fstat};
use nix::sys::uio::pread;
use std::fs::File;
use std::io::Write as _;
use std::os::fd::BorrowedFd;
use std::path::Path;

/// The most secrets of one attempt, a number.
pub const SECRETS_MAX: usize = 64;

/// All secrets of one attempt with their names, in bytes.
pub const SECRETS_BYTES_MAX: usize = 256 * 1024;

/// The longest name of a secret, in bytes.
pub const SECRET_NAME_MAX: usize = 64;

const STEP: &str = "secrets";

/// Checks a secret's name: 1 to 64 of `A-Z a-z 0-9 . _ -`, no dot in front. It is a file name inside.
pub fn check_secret_name(name: &str) -> Result<(), String> {
    let good = |byte: u8| byte.is_ascii_alphanumeric() || b"._-".contains(&byte);
    if (1..=SECRET_NAME_MAX).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(good) {
        return Ok(());
    }
    Err(format!(
        "{name:?} is no name for a secret: 1 to {SECRET_NAME_MAX} of A-Z a-z 0-9 . _ - and no dot in front"
    ))
}

/// Puts secrets into one message. Each is the length of its name (one byte), the name, the length of its value
/// (four bytes, low one first), the value. The message of an error holds no value.
pub(super) fn encode(secrets: &[(String, Vec<u8>)]) -> Result<Vec<u8>, String> {
    if secrets.len() > SECRETS_MAX {
        return Err(format!("{} secrets are more than {SECRETS_MAX}", secrets.len()));
    }
    let mut bytes = Vec::new();
    for (at, (name, value)) in secrets.iter().enumerate() {
        check_secret_name(name)?;
        if secrets[..at].iter().any(|(other, _)| other == name) {
            return Err(format!("secret {name} is given twice"));
        }
        let (Ok(name_length), Ok(length)) = (u8::try_from(name.len()), u32::try_from(value.len())) else {
            return Err(format!("secret {name} is too large"));
        };
        bytes.push(name_length);
        bytes.extend(name.as_bytes());
        bytes.extend(length.to_le_bytes());
        bytes.extend(value);
        if bytes.len() > SECRETS_BYTES_MAX {
            return Err(format!("the secrets together are larger than {SECRETS_BYTES_MAX} bytes"));
        }
    }
    Ok(bytes)
}

/// Takes the first secret off a message of any bytes.
fn next<'a>(bytes: &mut &'a [u8]) -> Option<(&'a str, &'a [u8])> {
    let (length, rest) = bytes.split_first()?;
    let (name, rest) = rest.split_at_checked(usize::from(*length))?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (value, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    Some((std::str::from_utf8(name).ok()?, value))
}

fn decode(mut bytes: &[u8]) -> Result<Vec<(&str, &[u8])>, String> {
    let mut secrets = Vec::new();
    while !bytes.is_empty() {
        let (name, value) = next(&mut bytes).ok_or("the message with the secrets is torn")?;
        check_secret_name(name)?;
        if secrets.len() == SECRETS_MAX {
            return Err(format!("more than {SECRETS_MAX} secrets"));
        }
        secrets.push((name, value));
    }
    Ok(secrets)
}

/// Reads a message and writes what was in it again: the same bytes, unless a name is given twice.
pub fn reread(bytes: &[u8]) -> Option<Vec<u8>> {
    let secrets = decode(bytes).ok()?;
    let owned: Vec<_> = secrets.into_iter().map(|(name, value)| (name.to_owned(), value.to_vec())).collect();
    encode(&owned).ok()
}

/// Makes the folder's files from the message in `source`: mode 0400, in memory that is never swapped, on a mount
/// that is read-only afterwards. Without secrets the folder stays the empty one of the template.
pub(super) fn fill(source: BorrowedFd<'_>, folder: &Path) -> Result<(), StepError> {
    let size = usize::try_from(fstat(source).step(STEP, "the message")?.st_size).unwrap_or(usize::MAX);
    if size == 0 {
        return Ok(());
    }
    if size > SECRETS_BYTES_MAX {
        let message = format!("{size} bytes are more than {SECRETS_BYTES_MAX}");
        return Err(StepError::other(STEP, message));
    }
    let mut bytes = vec![0; size];
    let length = pread(source, &mut bytes, 0).step(STEP, "reading the message")?;
    let secrets = decode(&bytes[..length]).map_err(|message| StepError::other(STEP, message))?;
    template::mount_secrets(folder)?;
    for (name, value) in secrets {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
        let mode = Mode::from_bits_truncate(0o400);
        let mut file = File::from(open(&folder.join(name), flags, mode).step(STEP, name)?);
        file.write_all(value).step(STEP, name)?;
    }
    template::seal(folder)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn secret(name: &str, value: &[u8]) -> (String, Vec<u8>) {
        (name.into(), value.to_vec())
    }

    #[test]
    fn secrets_survive_their_message() {
        let bytes = encode(&[secret("db.pass-1", b"a\0\n"), secret("empty", b"")]).unwrap();
        assert_eq!(decode(&bytes).unwrap(), [("db.pass-1", &b"a\0\n"[..]), ("empty", b"")]);
        assert_eq!(encode(&[]).unwrap(), b"");
    }

    #[test]
    fn every_torn_message_is_refused() {
        let bytes = encode(&[secret("name", b"value")]).unwrap();
        for end in 1..bytes.len() {
            assert!(decode(&bytes[..end]).is_err(), "{end}");
        }
        assert!(decode(&[255; 64]).is_err());
    }

    #[test]
    fn names_that_are_no_plain_file_names_are_refused_on_both_ends() {
        for name in ["", ".", "..", ".hidden", "a/b", "a\0", "a b", "ä", &"x".repeat(65)] {
            assert!(encode(&[secret(name, b"")]).is_err(), "{name:?}");
            let mut bytes = vec![u8::try_from(name.len()).unwrap()];
            bytes.extend(name.as_bytes());
            bytes.extend([0; 4]);
            assert!(decode(&bytes).is_err(), "{name:?}");
        }
    }

    #[test]
    fn too_many_too_large_and_twice_are_refused_without_the_value() {
        let many: Vec<_> = (0..65).map(|n| secret(&format!("s{n}"), b"")).collect();
        assert!(encode(&many).unwrap_err().contains("65 secrets"));
        let message = encode(&[secret("big", &vec![b'x'; SECRETS_BYTES_MAX])]).unwrap_err();
        assert!(message.contains("262144") && !message.contains("xxx"), "{message}");
        assert!(encode(&[secret("a", b"1"), secret("a", b"2")]).unwrap_err().contains("twice"));
    }
}
