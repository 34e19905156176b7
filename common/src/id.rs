//! Ids: job, run, request, incarnation, and digests of content.

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::fmt;
use std::str::FromStr;
use std::sync::{Mutex, PoisonError};

use crate::name::show;

/// Why a text is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{shown}\" is not a {what}: {expected}")]
pub struct BadId {
    what: &'static str,
    shown: String,
    expected: &'static str,
}

macro_rules! text_id {
    ($type:ident) => {
        impl TryFrom<String> for $type {
            type Error = BadId;
            fn try_from(text: String) -> Result<Self, BadId> {
                text.parse()
            }
        }
        impl From<$type> for String {
            fn from(id: $type) -> String {
                id.to_string()
            }
        }
    };
}

/// A job: a ULID in lower case (time of submission, then 80 random bits), so ids sort by age. Those of one
/// controller process do so within a millisecond too.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct JobId(String);

impl JobId {
    /// Makes a new id from the wall clock and the system's random source.
    pub fn generate(now_ms: i64) -> Self {
        Self(fresh_ulid(now_ms).to_string().to_ascii_lowercase())
    }

    /// Makes a new id that sorts behind the one made before it: in the same millisecond, or one that the clock went back
    /// to, the one before plus 1. `last` keeps that one; give it [`LastJobId::default`] once.
    pub fn generate_after(last: &LastJobId, now_ms: i64) -> Self {
        let mut last = last.0.lock().unwrap_or_else(PoisonError::into_inner);
        let fresh = fresh_ulid(now_ms);
        // At the very end of a millisecond's ids the next one begins with the following millisecond.
        let is_later = last.is_nil() || fresh.timestamp_ms() > last.timestamp_ms();
        *last = if is_later { fresh } else { ulid::Ulid(last.0.saturating_add(1)) };
        Self(last.to_string().to_ascii_lowercase())
    }

    /// The id as text, 26 characters.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The job's run number `index`, counted from 0.
    pub fn run(&self, index: u32) -> RunId {
        RunId { job: self.clone(), index }
    }
}

fn fresh_ulid(now_ms: i64) -> ulid::Ulid {
    let time = u64::try_from(now_ms).unwrap_or(0);
    let random: [u8; 16] = random_bytes();
    ulid::Ulid::from_parts(time, u128::from_be_bytes(random) & ((1 << 80) - 1))
}

/// The job id that one process made last, see [`JobId::generate_after`].
#[derive(Debug, Default)]
pub struct LastJobId(Mutex<ulid::Ulid>);

impl FromStr for JobId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let good = text.len() == 26
            && text.bytes().all(|b| b.is_ascii_digit() || b.is_ascii_lowercase())
            && ulid::Ulid::from_string(text).is_ok();
        if good {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadId { what: "job id", shown: show(text), expected: "26 of 0-9 and a-z" })
        }
    }
}

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
text_id!(JobId);

/// A run: its job and its number within the job, written `JOB-N`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RunId {
    job: JobId,
    index: u32,
}

impl RunId {
    /// The job that this run belongs to.
    pub fn job(&self) -> &JobId {
        &self.job
    }

    /// The run's number within its job, from 0.
    pub fn index(&self) -> u32 {
        self.index
    }
}

impl FromStr for RunId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        let bad = || BadId { what: "run id", shown: show(text), expected: "a job id, '-', and a number" };
        let (job, index) = text.split_once('-').ok_or_else(bad)?;
        let job = job.parse().map_err(|_| bad())?;
        let index: u32 = index.parse().map_err(|_| bad())?;
        let run = RunId { job, index };
        // "007" and "+7" parse as numbers, but one run has one spelling.
        if run.to_string() == text { Ok(run) } else { Err(bad()) }
    }
}

impl fmt::Display for RunId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}-{}", self.job, self.index)
    }
}
text_id!(RunId);

/// A caller's own key for a submission: 1 to 128 visible ASCII characters.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RequestId(String);

impl RequestId {
    /// Makes a random one, for callers that named none.
    pub fn generate() -> Self {
        Self(data_encoding::HEXLOWER.encode(&random_bytes::<16>()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for RequestId {
    type Err = BadId;
    fn from_str(text: &str) -> Result<Self, BadId> {
        if (1..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_graphic()) {
            Ok(Self(text.to_owned()))
        } else {
            Err(BadId {
                what: "request id",
                shown: show(text),
                expected: "1 to 128 visible ASCII characters without spaces",
            })
        }
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}
text_id!(RequestId);

macro_rules! hex_id {
    ($(#[$doc:meta])* $type:ident, $bytes:literal, $what:literal, $expected:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $type([u8; $bytes]);

        impl $type {
            /// The id's bytes.
            pub fn as_bytes(&self) -> &[u8; $bytes] {
                &self.0
            }
            /// Makes an id of bytes.
            pub fn from_bytes(bytes: [u8; $bytes]) -> Self {
                Self(bytes)
            }
        }

        impl FromStr for $type {
            type Err = BadId;
            fn from_str(text: &str) -> Result<Self, BadId> {
                let bad = || BadId { what: $what, shown: show(text), expected: $expected };
                let bytes = data_encoding::HEXLOWER.decode(text.as_bytes()).map_err(|_| bad())?;
                Ok(Self(bytes.try_into().map_err(|_| bad())?))
            }
        }

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&data_encoding::HEXLOWER.encode(&self.0))
            }
        }
        text_id!($type);
    };
}

hex_id!(
    /// The random id born with an agent's journal. Another journal is another incarnation.
    Incarnation, 16, "incarnation", "32 hexadecimal digits in lower case"
);
hex_id!(
    /// A random number used once, which ties an answer to its question.
    Nonce, 16, "nonce", "32 hexadecimal digits in lower case"
);
hex_id!(
    /// The SHA-256 of some content.
    Digest, 32, "digest", "64 hexadecimal digits in lower case"
);

impl Incarnation {
    /// A new incarnation from the system's random source.
    pub fn generate() -> Self {
        Self(random_bytes())
    }
}

impl Nonce {
    /// A new nonce from the system's random source.
    pub fn generate() -> Self {
        Self(random_bytes())
    }
}

impl Digest {
    /// The digest of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }
}

/// Random bytes from the system. The only way this fails on Linux is a kernel without
/// `getrandom`, where no key could be made either.
#[expect(clippy::expect_used, reason = "nothing can be done without random numbers, see above")]
pub(crate) fn random_bytes<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).expect("the system's random source answers");
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_sort_by_time_and_read_back() {
        let (a, b) = (JobId::generate(1_000), JobId::generate(2_000));
        assert!(a < b);
        assert_eq!(a.as_str().parse::<JobId>(), Ok(a.clone()));
        let run = a.run(12);
        assert_eq!(run.to_string().parse::<RunId>(), Ok(run));
    }

    #[test]
    fn ids_of_one_process_sort_in_the_order_in_which_they_were_made() {
        let last = LastJobId::default();
        // The same millisecond, a later one, one that the clock went back to, and before 1970.
        let times = [5, 5, 5, 6, 6, 5, 4, 6, 7, 7, -1, 0, 8];
        let ids: Vec<JobId> = times.iter().map(|now_ms| JobId::generate_after(&last, *now_ms)).collect();
        assert!(ids.is_sorted_by(|a, b| a < b), "{ids:?}");
        assert!(ids.iter().all(|id| id.as_str().parse::<JobId>().as_ref() == Ok(id)));
        let time = |id: &JobId| ulid::Ulid::from_string(id.as_str()).expect("an id").timestamp_ms();
        assert_eq!(ids.iter().map(time).collect::<Vec<_>>(), [5, 5, 5, 6, 6, 6, 6, 6, 7, 7, 7, 7, 8]);
    }

    #[test]
    fn after_the_last_id_of_a_millisecond_comes_the_next_millisecond() {
        let last = LastJobId(Mutex::new(ulid::Ulid::from_parts(5, u128::MAX)));
        let id = JobId::generate_after(&last, 5);
        assert_eq!(id.to_string(), ulid::Ulid::from_parts(6, 0).to_string().to_ascii_lowercase());
    }

    #[test]
    fn the_first_id_of_a_process_is_random_whatever_the_clock_says() {
        let first = || JobId::generate_after(&LastJobId::default(), 0);
        assert_ne!(first(), first());
    }

    #[test]
    fn one_run_has_one_spelling() {
        let job = JobId::generate(5);
        for tail in ["", "-", "-x", "-01", "-+1", "-1 ", "-4294967296", "-1-2"] {
            assert!(format!("{job}{tail}").parse::<RunId>().is_err(), "{tail}");
        }
        assert!("01JD4K2A00000000000000000A".parse::<JobId>().is_err(), "upper case");
        assert!("../../../../etc/passwd-abcd".parse::<JobId>().is_err());
    }

    #[test]
    fn hex_ids_are_lower_case_and_whole() {
        let digest = Digest::of(b"abc");
        assert!(digest.to_string().starts_with("ba7816bf"));
        assert_eq!(digest.to_string().parse::<Digest>(), Ok(digest));
        assert!(digest.to_string().to_uppercase().parse::<Digest>().is_err());
        assert!("ab".parse::<Digest>().is_err());
    }

    #[test]
    fn request_ids_are_visible_ascii() {
        assert!("cmdb:42/a".parse::<RequestId>().is_ok());
        let long = "x".repeat(129);
        for bad in ["", "a b", "ä", "a\n", long.as_str()] {
            assert!(bad.parse::<RequestId>().is_err(), "{bad:?}");
        }
    }
}
