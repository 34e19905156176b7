//! From the ledger's rows and the agents' signed messages to the records that people are shown.

use sally_common::clock::rfc3339;
use sally_common::limit::RECORD_STREAM_PART;
use sally_common::text::{as_text, cut_at_characters};
use sally_common::wire;
use sally_common::wire::record::{JobRecord, ResultState, RunRecord, SandboxRecord, TextEncoding};
use sally_common::wire::report::{ResultMessage, StreamEnd};
use serde_json::value::RawValue;

use super::Service;
use crate::ledger::{Job, ReportKind, Run, StoredReport};
use crate::store::{LogKey, Stream};

/// A job's record.
pub fn job(job: &Job) -> JobRecord {
    JobRecord {
        id: job.id.clone(),
        state: job.state(),
        created_at: rfc3339(job.created_ms),
        by: job.by.clone(),
        request_id: job.request_id.clone(),
        retry_of: job.retry_of.clone(),
        title: job.title.clone(),
        counts: job.counts.clone(),
    }
}

/// A run's record without what its agent reported.
pub fn run_head(run: &Run, queued_ms: i64) -> RunRecord {
    RunRecord {
        run: run.id.clone(),
        agent: run.agent.clone(),
        zone: run.zone.clone(),
        state: run.state,
        is_final: run.is_final,
        attempt: run.attempt,
        cancel_requested_at: run.cancel_requested_ms.map(rfc3339),
        exit_code: run.exit_code,
        signal: run.signal,
        result: None,
        result_state: run.result_state,
        result_error: None,
        failure: None,
        changed: None,
        progress: run.progress.as_deref().and_then(|p| serde_json::from_str(p).ok()),
        artifacts: Vec::new(),
        stdout: String::new(),
        stderr: String::new(),
        stdout_encoding: TextEncoding::Utf8,
        stderr_encoding: TextEncoding::Utf8,
        stdout_truncated_bytes: 0,
        stderr_truncated_bytes: 0,
        queued_at: rfc3339(queued_ms),
        started_at: run.started_ms.map(rfc3339),
        finished_at: run.finished_ms.map(rfc3339),
        duration_ms: run.duration_ms,
        reason: run.reason.clone(),
        message: run.message.clone(),
        retry_at: run.retry_at_ms.map(rfc3339),
        usage: None,
        sandbox: None,
        leftovers: 0,
    }
}

/// Adds what the agent reported, except for streams that did not ride inside. Returns whether there are none.
pub fn add_report(record: &mut RunRecord, message: &ResultMessage) -> bool {
    record.result.clone_from(&message.result);
    record.result_error.clone_from(&message.result_error);
    record.failure.clone_from(&message.failure);
    record.changed = message.changed;
    if message.progress.is_some() {
        record.progress.clone_from(&message.progress);
    }
    record.artifacts.clone_from(&message.artifacts);
    record.usage = message.usage;
    record.leftovers = message.leftovers;
    record.sandbox = message.sandbox.clone().map(|s| SandboxRecord {
        profile: s.profile,
        uid: s.uid,
        layers: s.layers,
        network: s.network,
    });
    let out = inline(&message.stdout);
    let err = inline(&message.stderr);
    let whole = out.is_some() && err.is_some() && message.result_stream.is_none();
    if let Some(bytes) = out {
        (record.stdout, record.stdout_encoding) = as_text(bytes);
    }
    if let Some(bytes) = err {
        (record.stderr, record.stderr_encoding) = as_text(bytes);
    }
    record.stdout_truncated_bytes = message.stdout.dropped;
    record.stderr_truncated_bytes = message.stderr.dropped;
    whole
}

fn inline(end: &StreamEnd) -> Option<Vec<u8>> {
    if end.bytes == 0 { Some(Vec::new()) } else { end.inline_bytes() }
}

/// Reads a stored report as the result message that it is, if it is one.
pub fn result_message(report: &StoredReport) -> Option<ResultMessage> {
    (report.report.kind == ReportKind::Result).then(|| wire::read(&report.report.body).ok()).flatten()
}

impl Service {
    /// A run's whole record: with output and result, also those that were streamed.
    pub async fn whole_record(&self, run: &Run, queued_ms: i64, report: Option<&StoredReport>) -> RunRecord {
        let mut record = run_head(run, queued_ms);
        let message = report.and_then(result_message);
        if let Some(message) = &message
            && add_report(&mut record, message)
        {
            return record;
        }
        if let Some(end) = message.as_ref().and_then(|m| m.result_stream.as_ref()) {
            record.result = self.streamed_result(run, end).await;
            if record.result.is_none() {
                // The bytes have been swept away by age or size; say so, not "absent".
                record.result_state = Some(ResultState::Valid);
                record.message = Some("the result was stored apart and has been removed since".into());
            }
        }
        for stream in [Stream::Stdout, Stream::Stderr] {
            self.add_stream(&mut record, run, stream, message.as_ref()).await;
        }
        record
    }

    async fn streamed_result(&self, run: &Run, end: &StreamEnd) -> Option<Box<RawValue>> {
        let key = LogKey { run: run.id.clone(), attempt: run.attempt, stream: Stream::Result };
        let length = usize::try_from(end.bytes).ok()?;
        let part = self.logs.read(&key, 0, length).await.ok().flatten()?;
        RawValue::from_string(String::from_utf8(part.bytes).ok()?).ok()
    }

    async fn add_stream(
        &self,
        record: &mut RunRecord,
        run: &Run,
        stream: Stream,
        message: Option<&ResultMessage>,
    ) {
        let end = message.map(|m| if stream == Stream::Stdout { &m.stdout } else { &m.stderr });
        if end.is_some_and(|e| e.bytes == 0 || e.inline.is_some()) {
            return;
        }
        let key = LogKey { run: run.id.clone(), attempt: run.attempt, stream };
        let edges = match self.logs.edges(&key, RECORD_STREAM_PART as usize).await {
            Ok(Some(edges)) => edges,
            Ok(None) => {
                set_stream(record, stream, Vec::new(), end.map_or(0, |e| e.bytes + e.dropped));
                return;
            }
            Err(error) => {
                tracing::warn!(run = %run.id, %error, "cannot read its output");
                set_stream(record, stream, Vec::new(), end.map_or(0, |e| e.bytes + e.dropped));
                return;
            }
        };
        let (mut bytes, mut last) = (edges.first, edges.last);
        if ((bytes.len() + last.len()) as u64) < edges.status.stored {
            cut_at_characters(&mut bytes, &mut last);
        }
        let shown = (bytes.len() + last.len()) as u64;
        let missing = edges.status.stored.saturating_sub(shown) + end.map_or(0, |e| e.dropped);
        bytes.extend(last);
        set_stream(record, stream, bytes, missing);
    }
}

fn set_stream(record: &mut RunRecord, stream: Stream, bytes: Vec<u8>, missing: u64) {
    let (text, encoding) = as_text(bytes);
    if stream == Stream::Stdout {
        (record.stdout, record.stdout_encoding, record.stdout_truncated_bytes) = (text, encoding, missing);
    } else {
        (record.stderr, record.stderr_encoding, record.stderr_truncated_bytes) = (text, encoding, missing);
    }
}
