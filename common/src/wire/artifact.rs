//! Files that a script leaves behind: what is said of each, and the streams that carry their bytes.

use serde::{Deserialize, Serialize};

use crate::id::Digest;
use crate::limit::{ARTIFACT_BYTES_MAX, ARTIFACTS_MAX};
use crate::wire::Refusal;

/// What begins the name of a stream that carries a file.
const STREAM_PREFIX: &str = "artifact-";

/// A file that a program named.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Artifact {
    /// Its name: one path component. A program that writes files checks it again.
    pub name: String,
    /// Its path below the work folder, as the program said it.
    pub path: String,
    /// Its size, bytes, if it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
    /// The digest of its bytes, if it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Why it was not kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// The stream that has its bytes, if it was kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stream: Option<String>,
}

/// The end of a stream that carries a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ArtifactEnd {
    /// The number in the stream's name.
    pub number: u8,
    /// The file's size, bytes.
    pub bytes: u64,
    /// The digest of its bytes.
    pub digest: Digest,
}

/// The name of the stream that carries file number `number`.
pub fn artifact_stream(number: u8) -> String {
    format!("{STREAM_PREFIX}{number}")
}

/// The number in the name of a stream that carries a file; `None` for any other stream.
pub fn artifact_number(stream: &str) -> Option<u8> {
    let number: u8 = stream.strip_prefix(STREAM_PREFIX)?.parse().ok()?;
    // One stream has one name: no leading zero, no sign.
    (usize::from(number) < ARTIFACTS_MAX && artifact_stream(number) == stream).then_some(number)
}

/// The ends of the streams that these files announce.
///
/// # Errors
/// [`Refusal::Malformed`]: a stream's name is none, is there twice, or has no length or digest; or the files
/// have more than [`ARTIFACT_BYTES_MAX`] together.
pub fn artifact_ends(artifacts: &[Artifact]) -> Result<Vec<ArtifactEnd>, Refusal> {
    let mut ends: Vec<ArtifactEnd> = Vec::new();
    let mut total = 0u64;
    for artifact in artifacts {
        let Some(stream) = &artifact.stream else { continue };
        let (Some(number), Some(bytes), Some(digest)) =
            (artifact_number(stream), artifact.bytes, artifact.digest)
        else {
            return Err(Refusal::Malformed);
        };
        total = total.saturating_add(bytes);
        if total > ARTIFACT_BYTES_MAX || ends.iter().any(|end| end.number == number) {
            return Err(Refusal::Malformed);
        }
        ends.push(ArtifactEnd { number, bytes, digest });
    }
    Ok(ends)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_has_one_name() {
        for number in 0..64 {
            assert_eq!(artifact_number(&artifact_stream(number)), Some(number));
        }
        let bad =
            ["artifact-64", "artifact-00", "artifact-+1", "artifact-", "artifact--1", "artifact-1/../x"];
        for name in bad.into_iter().chain(["stdout", "", "artifact-256", "Artifact-1"]) {
            assert_eq!(artifact_number(name), None, "{name}");
        }
    }

    fn kept(stream: &str, bytes: u64) -> Artifact {
        let (digest, stream) = (Some(Digest::of(b"x")), Some(stream.to_owned()));
        Artifact { bytes: Some(bytes), digest, stream, ..Artifact::default() }
    }

    #[test]
    fn ends_are_told_once_each_and_have_a_bound() {
        let lost = Artifact { error: Some("gone".into()), ..Artifact::default() };
        let ends = artifact_ends(&[kept("artifact-0", 3), lost, kept("artifact-2", 0)]).expect("two ends");
        assert_eq!(ends.iter().map(|e| (e.number, e.bytes)).collect::<Vec<_>>(), [(0, 3), (2, 0)]);
        let half = ARTIFACT_BYTES_MAX / 2;
        assert!(artifact_ends(&[kept("artifact-0", half), kept("artifact-1", half)]).is_ok());
        let bare = Artifact { digest: None, ..kept("artifact-0", 1) };
        for bad in [
            vec![kept("artifact-0", 1), kept("artifact-0", 1)],
            vec![kept("stdout", 1)],
            vec![bare],
            vec![kept("artifact-0", half), kept("artifact-1", half + 1)],
            vec![kept("artifact-0", u64::MAX), kept("artifact-1", u64::MAX)],
        ] {
            assert_eq!(artifact_ends(&bad), Err(Refusal::Malformed));
        }
    }
}
