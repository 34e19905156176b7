//! The end of waiting: what is printed, and the exit code.

use encoding_rs::Encoding;
use sally_common::wire::record::{JobRecord, JobWithRuns, RunRecord, SCHEMA};

use super::args::Format;
use super::follow::{Ending, Followed};
use super::live::Look;
use super::{CliError, Exit, duration, fold, format, out, table, text};
use crate::client::Client;

/// What the reader wants to see, and has seen already.
#[derive(Clone, Copy)]
pub(super) struct Shown {
    pub format: Format,
    /// How output was shown live, if it was.
    pub look: Option<Look>,
    pub encoding: Option<&'static Encoding>,
}

/// Prints the end and returns the exit code.
pub(super) async fn finish(client: &Client, followed: Followed, shown: Shown) -> Result<Exit, CliError> {
    match followed.ending {
        Ending::Detached => {
            out::note(&format!("\ndetached, the job goes on\n{}", come_back(&followed.job)))?;
            return Ok(Exit::Detached);
        }
        Ending::WaitOver => {
            out::note(&format!("the time of --wait is over, the job goes on\n{}", come_back(&followed.job)))?;
            return Ok(Exit::WaitOver);
        }
        Ending::Done => {}
    }
    // Even when the output was shown as it came, the result stands in the last line.
    let wants_content = !matches!(shown.format, Format::Jsonl | Format::Name);
    let runs = content(client, &followed, wants_content).await?;
    let exit = Exit::of_runs(runs.iter().map(|r| r.state));
    let whole = JobWithRuns { schema: SCHEMA, job: followed.job, runs };
    print(&whole, shown)?;
    Ok(exit)
}

/// Prints a job with its runs.
pub(super) fn print(whole: &JobWithRuns, shown: Shown) -> Result<(), CliError> {
    match (shown.format, shown.look) {
        (Format::Table, Some(Look::Through)) => {
            whole.runs.iter().try_for_each(|run| out::note(&last_line(run)))?;
        }
        (Format::Table | Format::Wide, Some(_)) => {
            out::error_styled(&summary(&whole.runs, shown.format == Format::Wide))?;
        }
        (Format::Table, None) => {
            out::styled(&fold::render(&whole.runs, shown.encoding, table::terminal_width()))?;
        }
        // Each was printed as it ended.
        (Format::Jsonl, _) => {}
        (other, _) => format::job(whole, other)?,
    }
    Ok(())
}

/// How to come back to a job.
pub(super) fn come_back(job: &JobRecord) -> String {
    let id = &job.id;
    format!("watch: sally job watch {id}   result: sally job show {id}   cancel: sally job cancel {id}")
}

/// One run's ending on one line, under its output.
fn last_line(run: &RunRecord) -> String {
    let style = table::state_style(run.state);
    let mark = table::paint(style, &format!("{} {}", table::state_mark(run.state), run.agent));
    let took = run.duration_ms.map(|ms| format!(" in {}", duration::show(ms))).unwrap_or_default();
    let answer = fold::answer(run);
    let answer = if answer.is_empty() { answer } else { format!("   {answer}") };
    format!("{mark} {}{took}{answer}", run.state)
}

/// The table without the output, which was shown as it came.
fn summary(runs: &[RunRecord], wide: bool) -> String {
    if wide {
        return format::runs_table(runs, None);
    }
    let mut bare = runs.to_vec();
    for run in &mut bare {
        run.stdout.clear();
        run.stderr.clear();
        (run.stdout_truncated_bytes, run.stderr_truncated_bytes) = (0, 0);
    }
    fold::render(&bare, None, None)
}

/// All runs in their order, with output and result inside if wanted.
async fn content(client: &Client, followed: &Followed, wanted: bool) -> Result<Vec<RunRecord>, CliError> {
    let missing = followed.runs.values().any(|(_, whole)| !whole);
    let total: u64 = followed.job.counts.values().sum();
    let known = u64::try_from(followed.runs.len()).unwrap_or(u64::MAX);
    if (wanted && missing) || known < total {
        return Ok(client.runs(&followed.job.id, &[], wanted).await?);
    }
    let mut runs: Vec<RunRecord> = followed.runs.values().map(|(run, _)| run.clone()).collect();
    runs.sort_by_key(|run| run.run.index());
    Ok(runs)
}

/// What a job that has ended already means, for `job show` and its like.
pub(super) fn note_unfinished(job: &JobRecord) -> Option<String> {
    (!job.state.is_end()).then(|| {
        let id = text::sanitise_line(job.id.as_str());
        format!("the job is {}: sally job watch {id} follows it", job.state)
    })
}

#[cfg(test)]
mod tests {
    use super::super::tests::run;
    use super::*;
    use sally_common::wire::record::{ResultState, RunState};

    #[test]
    fn one_run_ends_with_one_line() {
        let mut failed = run(0, RunState::Failed);
        failed.exit_code = Some(7);
        failed.duration_ms = Some(1_500);
        failed.result = serde_json::from_str(r#"{"a":1}"#).ok();
        failed.result_state = Some(ResultState::Valid);
        let line = anstream::adapter::strip_str(&last_line(&failed)).to_string();
        assert_eq!(line, "✗ local-1 failed in 1.5s   exit 7 · {\"a\":1}");
    }
}
