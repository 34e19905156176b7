//! The record of a try: the same as that of a run which a controller asked for.
#![forbid(unsafe_code)]

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::FileExt as _;

use sally_common::clock::{now_ms, rfc3339};
use sally_common::duration;
use sally_common::id::RunId;
use sally_common::limit::RECORD_STREAM_PART;
use sally_common::name::{Agent, Zone};
use sally_common::text::{as_text, cut_at_characters, sanitise};
use sally_common::wire::record::{LayerState, RunRecord, RunState, SandboxRecord, TextEncoding};

use crate::runtime::outcome::{self, Ending, Said};
use crate::runtime::outgoing::Outgoing;
use crate::sandbox::ExitRecord;

/// What is known of a try before it begins.
#[derive(Debug, Clone)]
pub struct Head {
    /// Its id.
    pub run: RunId,
    /// The agent's name.
    pub agent: Agent,
    /// Its zone.
    pub zone: Zone,
    /// When it was asked for, Unix milliseconds.
    pub asked_ms: i64,
}

/// A stream as a record holds it, and how many bytes are not in it.
#[derive(Debug, Default)]
pub struct Part {
    text: String,
    encoding: TextEncoding,
    missing: u64,
}

impl Part {
    /// The first and the last part of a stream of which `dropped` bytes were never kept.
    ///
    /// # Errors
    /// It cannot be read.
    pub fn of(stream: &Outgoing, dropped: u64) -> io::Result<Part> {
        let (length, dropped) = (stream.ready(), dropped + stream.withheld());
        let first = length.min(RECORD_STREAM_PART);
        let last = (length - first).min(RECORD_STREAM_PART);
        let read = |start: u64, bytes: u64| {
            let mut part = vec![0; usize::try_from(bytes).unwrap_or(usize::MAX)];
            if bytes > 0 {
                stream.handle()?.read_exact_at(&mut part, start)?;
            }
            Ok::<_, io::Error>(part)
        };
        let (mut before, mut after) = (read(0, first)?, read(length - last, last)?);
        if first + last < length {
            cut_at_characters(&mut before, &mut after);
        }
        before.extend(after);
        let missing = length - before.len() as u64 + dropped;
        let (text, encoding) = as_text(before);
        Ok(Part { text, encoding, missing })
    }
}

/// Joins all that is known at the end.
pub fn record(
    head: &Head,
    ending: Ending,
    exit: Option<&ExitRecord>,
    said: Said,
    stdout: Part,
    stderr: Part,
) -> RunRecord {
    let time = |ms: u64| rfc3339(i64::try_from(ms).unwrap_or(i64::MAX));
    let sandbox = exit.filter(|r| !r.layers.is_empty()).map(outcome::sandbox_report);
    RunRecord {
        run: head.run.clone(),
        agent: head.agent.clone(),
        zone: head.zone.clone(),
        state: ending.state,
        is_final: true,
        attempt: 1,
        cancel_requested_at: None,
        exit_code: ending.exit_code,
        signal: ending.signal,
        result: said.json,
        result_state: Some(said.state),
        result_error: said.error,
        failure: said.failure,
        changed: said.changed,
        progress: said.progress,
        artifacts: said.artifacts,
        stdout: stdout.text,
        stderr: stderr.text,
        stdout_encoding: stdout.encoding,
        stderr_encoding: stderr.encoding,
        stdout_truncated_bytes: stdout.missing,
        stderr_truncated_bytes: stderr.missing,
        queued_at: rfc3339(head.asked_ms),
        started_at: exit.and_then(|r| r.started_at_unix_ms).map(time),
        finished_at: Some(exit.map_or_else(|| rfc3339(now_ms()), |r| time(r.finished_at_unix_ms))),
        duration_ms: exit.filter(|r| r.started_at_unix_ms.is_some()).map(|r| r.duration_ms),
        reason: ending.reason,
        message: ending.message,
        usage: exit.map(outcome::usage),
        sandbox: sandbox.map(|s| SandboxRecord {
            profile: s.profile,
            uid: s.uid,
            layers: s.layers,
            network: s.network,
        }),
        retry_at: None,
        leftovers: exit.map_or(0, |r| r.leftovers),
    }
}

/// The exit code of `sally run` for one target.
pub fn exit_code(state: RunState) -> u8 {
    match state {
        RunState::Succeeded => 0,
        RunState::Failed => 3,
        RunState::Rejected => 6,
        RunState::Cancelled => 9,
        RunState::Pending
        | RunState::Dispatched
        | RunState::Running
        | RunState::TimedOut
        | RunState::Expired
        | RunState::Interrupted
        | RunState::Unknown => 5,
    }
}

/// The record for people, without the output, which they have seen.
pub fn summary(record: &RunRecord) -> String {
    let mut text = String::new();
    let mut line = |name: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{name:<9} {}", sanitise(value).replace('\n', "\\n"));
    };
    let took = record.duration_ms.map(|ms| format!(" in {}", duration::show(ms))).unwrap_or_default();
    let reason = record.reason.as_ref().map(|word| format!(" ({word})")).unwrap_or_default();
    let message = record.message.as_ref().map(|words| format!(": {words}")).unwrap_or_default();
    line("state", &format!("{}{took}{reason}{message}", record.state));
    if let Some(state) = record.result_state {
        let json = record.result.as_ref().map(|json| format!(" {json}")).unwrap_or_default();
        line("result", &format!("{}{json}", state.word()));
    }
    for (name, missing) in
        [("stdout", record.stdout_truncated_bytes), ("stderr", record.stderr_truncated_bytes)]
    {
        if missing > 0 {
            line(name, &format!("{missing} bytes are not in the record"));
        }
    }
    if record.leftovers > 0 {
        line("leftovers", &format!("{} processes were still alive and were ended", record.leftovers));
    }
    if let Some(usage) = &record.usage {
        let number = |n: Option<u64>, unit: &str| n.map_or("unknown".to_owned(), |n| format!("{n}{unit}"));
        let (cpu, memory) = (number(usage.cpu_ms, " ms"), number(usage.memory_peak_bytes, " bytes"));
        line(
            "usage",
            &format!("processor {cpu}, memory {memory}, processes {}", number(usage.pids_peak, "")),
        );
    }
    if let Some(sandbox) = &record.sandbox {
        line("sandbox", &format!("profile {}, uid {}", sandbox.profile, sandbox.uid));
        for (name, wanted) in [
            ("enforced", LayerState::Enforced),
            ("degraded", LayerState::Degraded),
            ("absent", LayerState::Absent),
        ] {
            let of_it: Vec<&str> = sandbox
                .layers
                .iter()
                .filter(|(_, state)| **state == wanted)
                .map(|(n, _)| n.as_str())
                .collect();
            if !of_it.is_empty() {
                line(name, &of_it.join(" "));
            }
        }
        if let Some(network) = &sandbox.network {
            let to =
                if network.allowed.is_empty() { "nothing".to_owned() } else { network.allowed.join(" ") };
            line("network", &format!("might connect to {to}"));
            let numbers =
                [("made", network.connections), ("refused", network.refused), ("failed", network.failed)];
            let counted = numbers.into_iter().filter(|(_, count)| *count > 0);
            let counted: Vec<_> = counted.map(|(what, count)| format!("{count} {what}")).collect();
            let trouble = network.trouble.as_ref().map(|why| format!(" ({why})")).unwrap_or_default();
            if !counted.is_empty() || !trouble.is_empty() {
                line("network", &format!("connections: {}{trouble}", counted.join(", ")));
            }
        }
    }
    text
}
