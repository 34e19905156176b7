//! The end of an attempt: from what is in its run folder to the result's body.
#![forbid(unsafe_code)]

use std::path::PathBuf;

use sally_common::clock::{now_ms, rfc3339};
use sally_common::limit::INLINE_OUTPUT_MAX;
use sally_common::wire::record::{ResultError, ResultState, RunState};
use sally_common::wire::report::{ResultMessage, StreamEnd};
use sally_common::wire::{self, VERSION};

use super::files::{CANCEL_ASKED, RESULT_JSON};
use super::follow::Live;
use super::{Run, artifacts};
use crate::kept;
use crate::runtime::heartbeat;
use crate::runtime::outcome::{self, Ending, Said};
use crate::sandbox::{self, Event, ExitRecord, RunFolder};
use crate::script::{self, Masker};

impl Run {
    /// The result of an attempt that left nothing: no output, no exit record, no word of a script.
    pub(super) fn bare_result(&self, ending: Ending) -> Vec<u8> {
        self.result(ending, None, Said::nothing(), empty(), empty())
    }

    /// Makes the result's body from what is in the run folder.
    pub(super) async fn conclude(&self, live: &mut Live, ended: Event) -> Vec<u8> {
        sally_common::fail::point("agent.exit.seen");
        let record = live.folder.exit_record().ok().flatten().filter(|_| ended == Event::Exited);
        let counts = |f: fn(&ExitRecord) -> u64| record.as_ref().map_or(0, f);
        let dropped = (counts(|r| r.stdout.dropped), counts(|r| r.stderr.dropped));
        let mut said = read_said(&live.folder, record.as_ref(), self.withheld);
        for value in &said.masks {
            live.mask(value);
        }
        let kept = self.kept_files(live, record.as_ref()).await;
        let mut ends = Vec::new();
        for (stream, dropped) in [(&mut live.stdout, dropped.0), (&mut live.stderr, dropped.1)] {
            if let Err(error) = stream.take_all() {
                tracing::warn!(run = %self.note.run, %error, "cannot read its output");
                self.shared.count_loss("output-unreadable");
            }
            ends.push((stream.end(dropped), dropped));
        }
        let size: u64 = ends.iter().map(|(end, _)| end.bytes).sum();
        if !live.streaming && size <= INLINE_OUTPUT_MAX as u64 {
            for ((end, dropped), stream) in ends.iter_mut().zip([&live.stdout, &live.stderr]) {
                if let Ok(bytes) = stream.bytes() {
                    *end = StreamEnd::inline(&bytes, *dropped + stream.withheld());
                }
            }
        }
        let mut ends = ends.into_iter().map(|(end, _)| end);
        let (stdout, stderr) = (ends.next().unwrap_or_else(empty), ends.next().unwrap_or_else(empty));
        let mut ending = match &record {
            Some(record) => {
                let asked = self.dir().join(CANCEL_ASKED).exists();
                let mut ending = outcome::judge(record, &said, self.note.require_result, asked);
                outcome::say_what_instead(&mut ending, record, &live.folder.stderr_path());
                ending
            }
            None => Ending::interrupted("its keeper died under it; it may have run in part"),
        };
        ending.message = ending.message.map(|text| mask_text(&text, &live.masks));
        if let Some(record) = &record {
            self.keep_folder(&mut ending, record, &live.folder).await;
        }
        let named = std::mem::take(&mut said.artifacts);
        let mut said = Said::of(said, |text| mask_text(text, &live.masks));
        said.artifacts = artifacts::list(kept, named, record.is_some(), |text| mask_text(text, &live.masks));
        self.result(ending, record.as_ref(), said, stdout, stderr)
    }

    /// Keeps the work folder of a run that did not succeed, if its task asked for it, and says where, or why not.
    async fn keep_folder(&self, ending: &mut Ending, record: &ExitRecord, folder: &RunFolder) {
        let Some(kept) = record.kept.clone().filter(|_| ending.state != RunState::Succeeded) else { return };
        let (config, source) = (self.shared.policy(), folder.artifacts_path());
        let (state_dir, bounds) = (config.state_dir.clone(), config.keep);
        let run = format!("{}.{}", self.note.run, self.note.attempt);
        let free = heartbeat::disk_free(&state_dir);
        let stored = if free < kept.bytes.saturating_add(config.storage.min_free_bytes) {
            Err(format!("{free} bytes are free where the agent keeps its state"))
        } else {
            let part = (kept.offset, kept.bytes);
            // It may be large, and others wait for this thread.
            let store = move || kept::keep(&state_dir, &bounds, &run, &source, part);
            tokio::task::spawn_blocking(store).await.unwrap_or_else(|error| Err(error.to_string()))
        };
        let mut said = match stored {
            Ok(path) => {
                let until = rfc3339(now_ms().saturating_add(bounds.max_age_ms));
                format!("its work folder is kept on the agent's host until {until}: {}", path.display())
            }
            Err(why) => format!("its work folder could not be kept: {why}"),
        };
        if kept.left_out > 0 {
            said.push_str(&format!(" ({} files or folders are not in it)", kept.left_out));
        }
        if let Some(error) = &kept.error {
            said.push_str(&format!(" (it ends early: {error})"));
        }
        ending.message = Some(match ending.message.take() {
            Some(message) => format!("{message}; {said}"),
            None => said,
        });
    }

    fn result(
        &self,
        ending: Ending,
        record: Option<&ExitRecord>,
        said: Said,
        stdout: StreamEnd,
        stderr: StreamEnd,
    ) -> Vec<u8> {
        let mut message = ResultMessage {
            v: VERSION,
            from: self.shared.from(),
            run: self.note.run.clone(),
            attempt: self.note.attempt,
            order_digest: self.note.order_digest,
            state: ending.state,
            exit_code: ending.exit_code,
            signal: ending.signal,
            reason: ending.reason,
            message: ending.message,
            started_ms: record.and_then(|r| r.started_at_unix_ms).and_then(|t| i64::try_from(t).ok()),
            finished_ms: record
                .and_then(|r| i64::try_from(r.finished_at_unix_ms).ok())
                .unwrap_or_else(now_ms),
            duration_ms: record.filter(|r| r.started_at_unix_ms.is_some()).map(|r| r.duration_ms),
            result_state: said.state,
            result: said.json,
            result_stream: None,
            result_error: said.error,
            failure: said.failure,
            changed: said.changed,
            progress: said.progress,
            artifacts: said.artifacts,
            stdout,
            stderr,
            usage: record.map(outcome::usage),
            sandbox: record.filter(|r| !r.layers.is_empty()).map(outcome::sandbox_report),
            leftovers: record.map_or(0, |r| r.leftovers),
        };
        self.divert_result(&mut message);
        wire::to_bytes(&message)
    }

    /// A result too large for one message becomes a stream beside the output.
    fn divert_result(&self, message: &mut ResultMessage) {
        if message.result.as_ref().is_none_or(|r| r.get().len() <= INLINE_OUTPUT_MAX) {
            return;
        }
        let Some(json) = message.result.take() else { return };
        let mut end = StreamEnd::inline(json.get().as_bytes(), 0);
        end.inline = None;
        if let Err(error) = std::fs::write(self.dir().join(RESULT_JSON), json.get()) {
            tracing::error!(run = %self.note.run, %error, "cannot keep its result");
            self.shared.count_loss("result-unwritable");
            return lose_result(message, json.get().len(), &error);
        }
        message.result_stream = Some(end);
    }
}

/// A result that could not be kept is no success.
fn lose_result(message: &mut ResultMessage, bytes: usize, error: &std::io::Error) {
    let text = format!("the result of {bytes} bytes could not be kept on the agent's host: {error}");
    message.result_state = ResultState::Invalid;
    message.result_error = Some(ResultError { offset: None, message: text.clone() });
    if message.state == RunState::Succeeded {
        message.state = RunState::Failed;
        message.reason = Some("result-unwritable".into());
        message.message = Some(text);
    }
}

/// Reads what the script said through its two doors, or with `withheld` nothing of it.
pub fn read_said(folder: &RunFolder, record: Option<&ExitRecord>, withheld: bool) -> script::ScriptResult {
    let read = |path: PathBuf| if withheld { Vec::new() } else { std::fs::read(path).unwrap_or_default() };
    let (fd3, file) = (read(folder.result_path()), read(folder.result_file_path()));
    let seen = |bytes: &[u8], count: Option<&sandbox::StreamCount>| {
        count.map_or(bytes.len() as u64, |c| c.kept + c.dropped)
    };
    let fd3_seen = seen(&fd3, record.map(|r| &r.result));
    let file_seen = seen(&file, record.and_then(|r| r.result_file.as_ref()));
    script::read_result(
        &script::Door { bytes: &fd3, seen: fd3_seen },
        &script::Door { bytes: &file, seen: file_seen },
        &script::ResultLimits::default(),
    )
}

fn empty() -> StreamEnd {
    StreamEnd::inline(b"", 0)
}

/// Takes values out of a text, also in the form in which they stand in JSON.
pub fn mask_text(text: &str, masks: &[String]) -> String {
    if masks.is_empty() {
        return text.to_owned();
    }
    let mut masker = Masker::new();
    for value in masks {
        let _ = masker.add(value);
        // In JSON text the value stands with its escapes.
        if let Ok(quoted) = serde_json::to_string(value) {
            let _ = masker.add(&quoted[1..quoted.len() - 1]);
        }
    }
    let mut bytes = masker.push(text.as_bytes()).into_owned();
    bytes.extend(masker.finish());
    String::from_utf8_lossy(&bytes).into_owned()
}
