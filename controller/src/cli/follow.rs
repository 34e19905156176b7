//! Waits for a job's end and shows what happens meanwhile.

use std::collections::BTreeMap;
use std::future::Future;
use std::io::Write;
use std::path::PathBuf;
use std::time::Duration;

use sally_common::id::RunId;
use sally_common::wire::api::Target;
use sally_common::wire::record::{JobRecord, RunRecord};
use tokio::time::Instant;

use super::live::{Live, gap_mark};
use super::logs::{self, Place, Read, STREAMS};
use super::{CliError, artifacts, duration, fold, out, text};
use crate::client::{Client, Item, Watch};

/// How often the status line's clock moves.
const TICK: Duration = Duration::from_secs(1);

/// What to do with a run when it ends.
#[derive(Default)]
pub(super) struct Wishes {
    /// Show output as it comes.
    pub live: Option<Live>,
    /// Print each run as a line of JSON.
    pub lines: bool,
    /// Write each run's output into this folder.
    pub folder: Option<PathBuf>,
    /// Stop waiting after this.
    pub wait: Option<Duration>,
    /// The targets, if they are known.
    pub targets: Vec<Target>,
}

/// A job as it was when the waiting ended.
pub(super) struct Followed {
    /// The job.
    pub job: JobRecord,
    /// Its runs, and whether each has output and result inside.
    pub runs: BTreeMap<RunId, (RunRecord, bool)>,
    /// Why the waiting ended.
    pub ending: Ending,
    /// How far output was shown, if it was shown live.
    pub places: Vec<Place>,
}

/// Why the waiting ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// The job ended.
    Done,
    /// `--wait` ran out.
    WaitOver,
    /// Ctrl-C.
    Detached,
}

/// Waits for a job's end.
pub(super) async fn follow(
    client: &Client,
    mut watch: Watch,
    job: JobRecord,
    mut wishes: Wishes,
    interrupt: impl Future<Output = ()>,
) -> Result<Followed, CliError> {
    let started = Instant::now();
    let deadline = wishes.wait.map(|wait| started + wait);
    let mut status = Status::new(&wishes);
    let mut followed = Followed { job, runs: BTreeMap::new(), ending: Ending::Done, places: Vec::new() };
    let mut tick = tokio::time::interval(TICK);
    tokio::pin!(interrupt);
    loop {
        let item = tokio::select! {
            item = watch.next() => item,
            () = &mut interrupt => {
                followed.ending = Ending::Detached;
                break;
            }
            () = sleep_until(deadline) => {
                followed.ending = Ending::WaitOver;
                break;
            }
            _ = tick.tick(), if status.is_on => {
                status.draw(&followed, started)?;
                continue;
            }
        };
        status.clear()?;
        match item {
            Item::Ended(job) => {
                followed.job = *job;
                break;
            }
            Item::Run { run, whole } => take_run(client, &mut wishes, &mut followed, *run, whole).await?,
            Item::Output { run, agent, stream, offset, bytes } => {
                if let Some(live) = &mut wishes.live {
                    live.take(&run, agent.as_str(), &stream, offset, &bytes).await?;
                }
            }
            Item::Trouble(why) => {
                out::note(&format!(
                    "no word from the controller: {}; still trying, the job goes on",
                    text::sanitise(&why)
                ))?;
            }
            Item::Recovered => out::note("the controller answers again")?,
        }
    }
    status.clear()?;
    followed.places = wishes.live.as_ref().map(Live::places).unwrap_or_default();
    Ok(followed)
}

async fn take_run(
    client: &Client,
    wishes: &mut Wishes,
    followed: &mut Followed,
    mut run: RunRecord,
    mut whole: bool,
) -> Result<(), CliError> {
    let first_end = run.state.is_end() && !followed.runs.get(&run.run).is_some_and(|(r, _)| r.state.is_end());
    if run.state.is_end() && !whole && (wishes.lines || wishes.folder.is_some()) {
        run = logs::whole(client, &run.run).await?;
        whole = true;
    }
    if let Some(live) = &mut wishes.live {
        live.attempt(&run).await?;
        if first_end {
            live.end(&run, whole).await?;
        }
        let is_news = followed.runs.get(&run.run).is_none_or(|(r, _)| r.retry_at != run.retry_at);
        if run.retry_at.is_some() && is_news {
            out::note(&format!("{}: {}", run.agent, fold::answer(&run)))?;
        }
    }
    if run.state.is_end() {
        if let Some(folder) = &wishes.folder {
            let twins = wishes.targets.iter().filter(|t| t.agent == run.agent).count() > 1;
            let name = if twins { format!("{}.{}", run.zone, run.agent) } else { run.agent.to_string() };
            save(client, folder, &run, &name).await?;
            artifacts::save(client, folder, &run, &name).await?;
        }
        if wishes.lines {
            out::json_line(&run)?;
        }
    }
    followed.runs.insert(run.run.clone(), (run, whole));
    Ok(())
}

/// Writes `NAME.out`, `NAME.err` and `NAME.json`.
async fn save(
    client: &Client,
    folder: &std::path::Path,
    run: &RunRecord,
    name: &str,
) -> Result<(), CliError> {
    let path = |ending: &str| folder.join(format!("{name}.{ending}"));
    let failed = |path: &std::path::Path, e: std::io::Error| {
        CliError::internal(format!("cannot write {}: {e}", path.display()))
            .hint(format!("the job goes on; its output: sally job logs {}", run.run.job()))
    };
    let inside = [
        (&run.stdout, run.stdout_encoding, run.stdout_truncated_bytes),
        (&run.stderr, run.stderr_encoding, run.stderr_truncated_bytes),
    ];
    for (stream, (content, encoding, missing)) in STREAMS.into_iter().zip(inside) {
        let path = path(if stream == "stdout" { "out" } else { "err" });
        if missing == 0 {
            std::fs::write(&path, fold::bytes(content, encoding)).map_err(|e| failed(&path, e))?;
            continue;
        }
        let mut file = std::fs::File::create(&path).map_err(|e| failed(&path, e))?;
        let wait = logs::may_come(run.state);
        let write = |read: Read<'_>| match read {
            Read::Bytes(bytes) => file.write_all(bytes).map_err(|e| failed(&path, e)),
            Read::Gap(bytes) => Ok(out::note(&gap_mark(run.agent.as_str(), stream, bytes))?),
        };
        let drained = logs::drain(client, &run.run, stream, 0, wait, write).await?;
        let mark = super::live::incomplete(run.agent.as_str(), stream, drained, wait);
        mark.map(|m| out::note(&m)).transpose()?;
    }
    let path = path("json");
    let mut json = serde_json::to_vec_pretty(run).map_err(|e| CliError::internal(e.to_string()))?;
    json.push(b'\n');
    std::fs::write(&path, json).map_err(|e| failed(&path, e))
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// The line on stderr that says how far it is, on a terminal only.
struct Status {
    is_on: bool,
    is_drawn: bool,
}

impl Status {
    fn new(wishes: &Wishes) -> Self {
        // Live output and a status line would tear each other apart.
        Self { is_on: out::error_is_terminal() && wishes.live.is_none() && !wishes.lines, is_drawn: false }
    }

    fn draw(&mut self, followed: &Followed, started: Instant) -> Result<(), CliError> {
        let elapsed = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
        let line = status_line(&followed.job, followed.runs.values().map(|(run, _)| run), elapsed);
        out::error_data(format!("\r\x1b[2K{line}").as_bytes())?;
        self.is_drawn = true;
        Ok(())
    }

    fn clear(&mut self) -> Result<(), CliError> {
        if std::mem::take(&mut self.is_drawn) {
            out::error_data(b"\r\x1b[2K")?;
        }
        Ok(())
    }
}

fn status_line<'a>(job: &JobRecord, runs: impl Iterator<Item = &'a RunRecord>, elapsed_ms: u64) -> String {
    let total: u64 = job.counts.values().sum();
    let (mut ended, mut again, mut running, mut said) = (0, 0, Vec::new(), None);
    for run in runs {
        if run.state.is_end() {
            ended += 1;
        } else if run.retry_at.is_some() {
            again += 1;
        } else if run.started_at.is_some() {
            running.push(run.agent.as_str());
            said = run.progress.as_ref().or(said);
        }
    }
    let mut line = format!("{ended}/{total} ended, {}", duration::show(elapsed_ms));
    if again > 0 {
        line.push_str(&format!("   to be tried again: {again}"));
    }
    if !running.is_empty() {
        let more = running.len().saturating_sub(4);
        running.truncate(4);
        line.push_str(&format!("   running: {}", running.join(" ")));
        if more > 0 {
            line.push_str(&format!(" and {more} more"));
        }
    }
    if let Some(progress) = said {
        let done = progress.done.map(|d| format!(" {d}")).unwrap_or_default();
        let total = progress.total.map(|t| format!("/{t}")).unwrap_or_default();
        let words = progress.text.as_deref().map(|t| format!(" {t}")).unwrap_or_default();
        line.push_str(&text::sanitise_line(&format!("  {done}{total}{words}")));
    }
    super::table::shorten(&line, 100)
}

#[cfg(test)]
mod tests {
    use super::super::tests::{job, run};
    use super::*;
    use sally_common::wire::record::{Progress, RunState};

    #[test]
    fn the_status_line_says_how_far_it_is() {
        let mut running = run(1, RunState::Running);
        running.started_at = Some("2026-11-21T07:00:00.000Z".into());
        running.progress =
            Some(Progress { done: Some(3.0), total: Some(10.0), text: Some("copy\u{1b}[1m".into()) });
        let mut again = run(2, RunState::Pending);
        again.retry_at = Some("2026-11-21T07:00:05.000Z".into());
        let runs = [run(0, RunState::Succeeded), running, again];
        let line = status_line(&job(&runs), runs.iter(), 12_000);
        assert_eq!(line, "1/3 ended, 12.0s   to be tried again: 1   running: local-2   3/10 copy\\x1b[1m");
    }
}
