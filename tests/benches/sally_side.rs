//! The same work through Sally: queue lane, profile `strict`, everything on, one caller with one connection.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream::FuturesUnordered;
use sally::client::{Client, Item, SubmitOptions};
use sally::context::Context;
use sally_common::clock::now_ms;
use sally_common::id::RequestId;
use sally_common::name::ProfileName;
use sally_common::selector::Targets;
use sally_common::wire::VERSION;
use sally_common::wire::command::Lane;
use sally_common::wire::order::{Order, Program, Task};
use sally_common::wire::record::{RunRecord, RunState};

use super::process::{self, LIMIT, Running};
use super::{Fallible, floor};

/// A running `sally up` and a caller.
pub(crate) struct Sally {
    up: Running,
    dir: PathBuf,
    client: Client,
}

impl Sally {
    /// Starts `sally up` with these agents in this folder.
    pub(crate) async fn start(server: &Path, dir: &Path, agents: usize) -> Fallible<Self> {
        Self::start_of(&process::programs()?, server, dir, agents).await
    }

    /// The same with the programs of this folder.
    pub(crate) async fn start_of(
        programs: &Path,
        server: &Path,
        dir: &Path,
        agents: usize,
    ) -> Fallible<Self> {
        std::fs::create_dir_all(dir)?;
        let up_dir = dir.join("up");
        let mut command = Command::new(programs.join("sally"));
        command.arg("up").arg("--dir").arg(&up_dir).args(["--agents", &agents.to_string()]);
        command.env("SALLY_NATS_SERVER", server);
        for (variable, name) in
            [("XDG_STATE_HOME", "state"), ("XDG_CONFIG_HOME", "config"), ("XDG_DATA_HOME", "data")]
        {
            command.env(variable, dir.join(name));
        }
        let log = dir.join("up.log");
        let mut up = Running::start(&mut command, &log)?;
        if let Err(error) = up.wait_for_line("ready") {
            let said = std::fs::read_to_string(&log).unwrap_or_default();
            return Err(format!("sally up: {error}\n{said}").into());
        }
        let client = Client::connect(&Context::read(&up_dir.join("context.toml"))?).await?;
        Ok(Self { up, dir: up_dir, client })
    }

    /// The processes.
    pub(crate) fn pids(&self) -> Vec<i32> {
        vec![self.up.pid()]
    }

    /// Memory of the first agent with its launcher and all below, KiB, and how many processes they are.
    pub(crate) fn agent_pss_kib(&self) -> (u64, usize) {
        let pids: Vec<i32> =
            ["local-1", "local-1.launcher"].iter().filter_map(|name| self.pid_of(name)).collect();
        (process::pss_kib(&pids), process::tree(&pids).len())
    }

    fn pid_of(&self, name: &str) -> Option<i32> {
        let text = std::fs::read_to_string(self.dir.join("run").join(format!("{name}.pid"))).ok()?;
        text.split(|c: char| !c.is_ascii_digit()).find(|s| !s.is_empty())?.parse().ok()
    }

    /// One submission to the first agent, from signing to the verified end with the record.
    pub(crate) async fn one(&self) -> Fallible<Duration> {
        self.one_by(Lane::Queue).await
    }

    /// The same by this lane.
    pub(crate) async fn one_by(&self, lane: Lane) -> Fallible<Duration> {
        let begun = Instant::now();
        self.submit("local-1", &["sh", "-c", "true"], 1, lane).await?;
        Ok(begun.elapsed())
    }

    /// This many submissions to the first agent, at most `in_flight` at a time.
    pub(crate) async fn many(&self, runs: usize, in_flight: usize) -> Fallible<Duration> {
        let begun = Instant::now();
        let mut left = runs;
        let mut under_way = FuturesUnordered::new();
        while left > 0 || !under_way.is_empty() {
            while left > 0 && under_way.len() < in_flight {
                under_way.push(self.submit("local-1", &["sh", "-c", "true"], 1, Lane::Queue));
                left -= 1;
            }
            if let Some(done) = under_way.next().await {
                done?;
            }
        }
        Ok(begun.elapsed())
    }

    /// One job on every agent, to the last record.
    pub(crate) async fn all(&self, agents: usize) -> Fallible<Duration> {
        let begun = Instant::now();
        self.submit("", &["sh", "-c", "true"], agents, Lane::Queue).await?;
        Ok(begun.elapsed())
    }

    /// So many bytes of output from the first agent, to the record: all of them must be accounted for.
    pub(crate) async fn output(&self, bytes: u64) -> Fallible<Duration> {
        let begun = Instant::now();
        let command = ["head", "-c", &bytes.to_string(), "/dev/zero"];
        let records = self.submit("local-1", &command, 1, Lane::Queue).await?;
        let lasted = begun.elapsed();
        let run = records.first().ok_or("no record")?;
        let (log, _) = self.client.log(&run.run, "stdout", 0).await?;
        if log.stored + log.dropped != bytes || log.dropped != 0 {
            return Err(format!("{} of {bytes} bytes of output arrived", log.stored).into());
        }
        Ok(lasted)
    }

    async fn submit(
        &self,
        agent: &str,
        command: &[&str],
        runs: usize,
        lane: Lane,
    ) -> Fallible<Vec<RunRecord>> {
        match tokio::time::timeout(LIMIT, self.submit_unbounded(agent, command, runs, lane)).await {
            Ok(done) => done,
            Err(_) => Err(format!("a job did not end within {} s", LIMIT.as_secs()).into()),
        }
    }

    async fn submit_unbounded(
        &self,
        agent: &str,
        command: &[&str],
        runs: usize,
        lane: Lane,
    ) -> Fallible<Vec<RunRecord>> {
        let order = self.order(agent, command);
        let options = SubmitOptions { watch: true, lane, ..Default::default() };
        let (_, watch) = self.client.submit(&order, &[], options).await?;
        let mut watch = watch.ok_or("no watch")?;
        let mut ended = Vec::new();
        loop {
            match watch.next().await {
                Item::Run { run, .. } if run.state.is_end() => {
                    if run.state != RunState::Succeeded {
                        return Err(format!("{} ended {}: {:?}", run.run, run.state, run.message).into());
                    }
                    ended.push(*run);
                }
                Item::Ended(_) if ended.len() == runs => return Ok(ended),
                Item::Ended(_) => return Err(format!("{} of {runs} records came", ended.len()).into()),
                _ => {}
            }
        }
    }

    fn order(&self, agent: &str, command: &[&str]) -> Order {
        let now = now_ms();
        let one = !agent.is_empty();
        Order {
            v: VERSION,
            request_id: RequestId::generate(),
            by: self.client.user().clone(),
            created_ms: now,
            expires_ms: now + 3_600_000,
            targets: Targets {
                agents: if one { vec![agent.to_owned()] } else { Vec::new() },
                all: !one,
                ..Default::default()
            },
            task: Task {
                retry: None,
                title: Some("bench".into()),
                name: None,
                program: Program::Command,
                args: command.iter().map(|w| (*w).to_owned()).collect(),
                env: Default::default(),
                params: None,
                stdin: None,
                secrets: Vec::new(),
                profile: ProfileName::default(),
                require_layers: Vec::new(),
                user: None,
                keep: false,
                timeout_ms: 3_600_000,
                grace_ms: 10_000,
                require_result: false,
                idempotent: false,
            },
        }
    }

    /// The most memory that one of the processes has held, KiB.
    pub(crate) fn peak_kib(&self) -> u64 {
        process::peak_kib(&self.pids())
    }
}

/// Submissions under way at one time when throughput is measured: enough that every slot is always busy.
pub(crate) const IN_FLIGHT: usize = 4 * floor::SLOTS;
