//! Files that a script left behind: out of the run folder, into the result and beside it.
//!
//! The keeper has copied them already. Here each becomes a stream like the output, except that nothing is masked in
//! it: it is the script's own file, byte for byte. Its name and path are text of the result and masked like all of it.
#![forbid(unsafe_code)]

use sally_common::limit::ARTIFACT_LIST_MAX;
use sally_common::wire;
use sally_common::wire::artifact::{Artifact, artifact_number, artifact_stream};
use sally_common::wire::report::{ResultMessage, StreamEnd};

use super::Run;
use super::follow::Live;
use crate::runtime::outgoing::{self, Outgoing};
use crate::sandbox::{Collected, ExitRecord, RunFolder, SandboxError};
use crate::script;

/// A file that the keeper was asked to keep, and the stream that carries it if it did.
type Opened = (Artifact, Option<Outgoing>);

impl Run {
    /// What became of the files that the keeper was asked to keep. Their streams are added to `live`.
    pub(super) async fn kept_files(&self, live: &mut Live, record: Option<&ExitRecord>) -> Vec<Artifact> {
        let collected = record.map(|r| r.artifacts.clone()).unwrap_or_default();
        if collected.is_empty() {
            return Vec::new();
        }
        if self.withheld {
            let error = "withheld: the secrets of this run cannot be opened any more, so nothing that it wrote may leave";
            return collected.iter().map(|_| lost("", "", error)).collect();
        }
        let folder = live.folder.clone();
        // Copied and read whole: not on a thread that others wait for.
        let opened = tokio::task::spawn_blocking(move || open_all(&folder)).await;
        let why = match opened {
            Ok(Ok(opened)) => return take_streams(live, opened),
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        tracing::error!(run = %self.note.run, error = %why, "cannot keep the files that a run left behind");
        self.shared.count_loss("artifacts-unreadable");
        let error = format!("it could not be kept on the agent's host: {why}");
        let failed = |file: &Collected| lost(&file.name, &file.path, file.error.as_ref().unwrap_or(&error));
        collected.iter().map(failed).collect()
    }

    /// The streams of files that a result from before a restart announced.
    pub(super) fn reopen_artifacts(&self, message: &ResultMessage) -> Vec<Outgoing> {
        let mut streams = Vec::new();
        let Ok(folder) = RunFolder::open(&self.dir()) else { return streams };
        for artifact in &message.artifacts {
            let Some(end) = end(artifact) else { continue };
            let Some(number) = artifact.stream.as_deref().and_then(artifact_number) else { continue };
            let path = folder.artifact_path(usize::from(number));
            match outgoing::reopen(artifact_stream(number), &path, &end) {
                Ok(mut stream) => {
                    stream.let_go();
                    streams.push(stream);
                }
                Err(error) => {
                    tracing::warn!(run = %self.note.run, %error, "a file that was announced cannot be read");
                    self.shared.count_loss("output-unreadable");
                }
            }
        }
        streams
    }
}

fn end(artifact: &Artifact) -> Option<StreamEnd> {
    Some(StreamEnd { bytes: artifact.bytes?, digest: artifact.digest?, dropped: 0, inline: None })
}

fn take_streams(live: &mut Live, opened: Vec<Opened>) -> Vec<Artifact> {
    let (entries, streams): (Vec<_>, Vec<_>) = opened.into_iter().unzip();
    live.artifacts.extend(streams.into_iter().flatten());
    entries
}

/// Makes a stream of each file that was kept.
fn open_all(folder: &RunFolder) -> Result<Vec<Opened>, SandboxError> {
    let index = folder.unpack_artifacts()?;
    Ok(index.iter().enumerate().map(|(at, file)| open(folder, at, file)).collect())
}

fn open(folder: &RunFolder, at: usize, file: &Collected) -> Opened {
    if let Some(error) = &file.error {
        return (lost(&file.name, &file.path, error), None);
    }
    let name = u8::try_from(at).map(artifact_stream).ok().filter(|name| artifact_number(name).is_some());
    let Some(name) = name else {
        return (lost(&file.name, &file.path, "more files were named than can be kept"), None);
    };
    let mut stream = Outgoing::new(name.clone(), folder.artifact_path(at));
    if let Err(error) = stream.take_all() {
        let error = format!("it could not be read on the agent's host: {error}");
        return (lost(&file.name, &file.path, &error), None);
    }
    stream.let_go();
    let end = stream.end(0);
    let (name, path, stream_name) = (file.name.clone(), file.path.clone(), Some(name));
    let kept = Artifact {
        name,
        path,
        bytes: Some(end.bytes),
        digest: Some(end.digest),
        error: None,
        stream: stream_name,
    };
    (kept, Some(stream))
}

fn lost(name: &str, path: &str, error: &str) -> Artifact {
    let error = Some(error.to_owned());
    Artifact { name: name.to_owned(), path: path.to_owned(), error, ..Artifact::default() }
}

/// The list for the result: what the keeper was asked to keep, then what was `named` beyond that. `ended` says that
/// the keeper lived to the end. What does not fit a message is counted in a last entry, and not kept.
pub(super) fn list(
    kept: Vec<Artifact>,
    named: Vec<script::Artifact>,
    ended: bool,
    mask: impl Fn(&str) -> String,
) -> Vec<Artifact> {
    let why = if ended {
        "more files were named than the limit artifact_files allows"
    } else {
        "its keeper died before it could be kept"
    };
    let beyond = named.iter().skip(kept.len()).map(|file| lost(&file.name, &file.path, why));
    let all: Vec<Artifact> = kept.iter().cloned().chain(beyond).collect();
    let total = all.len();
    let (mut list, mut room) = (Vec::new(), ARTIFACT_LIST_MAX);
    for artifact in all {
        let shown = Artifact { name: mask(&artifact.name), path: mask(&artifact.path), ..artifact };
        let size = wire::to_bytes(&shown).len() + 1;
        let Some(left) = room.checked_sub(size) else { break };
        room = left;
        list.push(shown);
    }
    if list.len() < total {
        let more = total - list.len();
        list.push(lost("", "", &format!("{more} more files were named; their names do not fit the result")));
    }
    list
}

#[cfg(test)]
mod tests {
    use super::*;

    fn named(count: usize) -> Vec<script::Artifact> {
        (0..count).map(|n| script::Artifact { name: format!("n{n}"), path: format!("p{n}") }).collect()
    }

    fn kept() -> Artifact {
        let (stream, digest) = (Some("artifact-0".into()), Some(sally_common::id::Digest::of(b"x")));
        Artifact { name: "n0".into(), path: "p0".into(), bytes: Some(1), digest, error: None, stream }
    }

    #[test]
    fn what_was_not_kept_says_why() {
        let all = list(vec![kept()], named(2), true, str::to_owned);
        assert_eq!((all.len(), &all[0], all[1].name.as_str()), (2, &kept(), "n1"));
        assert!(all[1].error.as_ref().is_some_and(|e| e.contains("artifact_files")));
        let all = list(Vec::new(), named(1), false, str::to_owned);
        assert!(all[0].error.as_ref().is_some_and(|e| e.contains("keeper died")));
    }

    #[test]
    fn names_are_masked_and_bytes_are_not_spoken_of() {
        let all = list(vec![kept()], named(1), true, |text| text.replace('0', "***"));
        assert_eq!((all[0].name.as_str(), all[0].path.as_str(), all[0].bytes), ("n***", "p***", Some(1)));
    }

    #[test]
    fn a_list_that_is_too_long_says_so() {
        let long = |n: usize| script::Artifact { name: format!("n{n}"), path: "\u{1}".repeat(1000) };
        let all = list(Vec::new(), (0..256).map(long).collect(), true, str::to_owned);
        let size: usize = all.iter().map(|a| wire::to_bytes(a).len()).sum();
        assert!(size < ARTIFACT_LIST_MAX + 200, "{size}");
        let last = all.last().expect("an entry");
        let more = 256 - (all.len() - 1);
        assert_eq!(
            last.error,
            Some(format!("{more} more files were named; their names do not fit the result"))
        );
    }
}
