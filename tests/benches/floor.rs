//! The floor: starting `sh -c true`, and a bare JetStream loop around it. No sandbox, no signature, no record.
//!
//! A task is published to a stream in files, which republishes it to its worker's live subject; the worker starts
//! the shell, publishes the result to a stream in files and waits until it is acknowledged; the submitter
//! receives it.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use async_nats::jetstream::{self, stream};
use bytes::Bytes;
use futures_util::StreamExt as _;
use tokio::io::AsyncReadExt as _;

use super::process::{LIMIT, Running};
use super::{Fallible, process};

/// Shells that one worker runs at the same time, as many as an agent of `up` has slots.
pub(crate) const SLOTS: usize = 4;

/// Starts `sh -c true` with three pipes, reads them to their ends, and reaps it.
pub(crate) async fn spawn_shell() -> Fallible<()> {
    let mut command = tokio::process::Command::new("/bin/sh");
    command.args(["-c", "true"]);
    spawn(command).await
}

/// Starts a command in that way.
pub(crate) async fn spawn(mut command: tokio::process::Command) -> Fallible<()> {
    let (third, third_end) = nix::unistd::pipe()?;
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn()?;
    drop(third_end);
    let mut third = pipe(third)?;
    let (mut stdout, mut stderr) =
        (child.stdout.take().ok_or("no pipe")?, child.stderr.take().ok_or("no pipe")?);
    let (mut a, mut b, mut c) = (Vec::new(), Vec::new(), Vec::new());
    let (a, b, c, status) = tokio::join!(
        stdout.read_to_end(&mut a),
        stderr.read_to_end(&mut b),
        third.read_to_end(&mut c),
        child.wait()
    );
    a?;
    b?;
    c?;
    let status = status?;
    if status.success() { Ok(()) } else { Err(format!("the shell ended with {status}").into()) }
}

fn pipe(end: OwnedFd) -> Fallible<tokio::net::unix::pipe::Receiver> {
    Ok(tokio::net::unix::pipe::Receiver::from_owned_fd(end)?)
}

/// The worker, a process of its own.
pub(crate) async fn worker(url: &str, name: &str) -> Fallible<()> {
    let client = async_nats::connect(url).await?;
    let js = jetstream::new(client.clone());
    let mut tasks = client.subscribe(format!("live.{name}")).await?;
    client.flush().await?;
    println!("ready");
    let slots = std::sync::Arc::new(tokio::sync::Semaphore::new(SLOTS));
    while let Some(task) = tasks.next().await {
        let slot = slots.clone().acquire_owned().await?;
        let (js, subject) = (js.clone(), format!("result.{name}"));
        tokio::spawn(async move {
            if spawn_shell().await.is_ok()
                && let Ok(ack) = js.publish(subject, task.payload).await
            {
                let _ = ack.await;
            }
            drop(slot);
        });
    }
    Ok(())
}

/// A broker with workers, and the submitter's connection.
pub(crate) struct Bare {
    server: Running,
    workers: Vec<Running>,
    js: jetstream::Context,
    results: async_nats::Subscriber,
    count: u64,
}

impl Bare {
    /// Starts a broker in this folder and `workers` workers.
    pub(crate) async fn start(server: &Path, dir: &Path, workers: usize) -> Fallible<Self> {
        std::fs::create_dir_all(dir)?;
        let config = dir.join("nats.conf");
        // What `sally up` gives its broker, without accounts.
        std::fs::write(
            &config,
            format!(
                "host: \"127.0.0.1\"\nport: -1\nports_file_dir: {dir:?}\nmax_payload: 1048576\n\
                 jetstream {{ store_dir: {dir:?}, max_file_store: 2147483648 }}\n"
            ),
        )?;
        let mut command = Command::new(server);
        let server = Running::start(command.arg("-c").arg(&config), &dir.join("nats.log"))?;
        let url = url(dir, &server)?;
        let client = async_nats::connect(&url).await?;
        let js = jetstream::new(client.clone());
        let republish =
            stream::Republish { source: "task.>".into(), destination: "live.>".into(), headers_only: false };
        for (name, subject, republish) in
            [("TASKS", "task.>", Some(republish)), ("RESULTS", "result.>", None)]
        {
            let config = stream::Config {
                name: name.into(),
                subjects: vec![subject.into()],
                republish,
                ..Default::default()
            };
            js.create_stream(config).await?;
        }
        let own = std::env::current_exe()?;
        let mut started = Vec::new();
        for n in 0..workers {
            let mut command = Command::new(&own);
            command.args(["worker", &url, &format!("w{n}")]);
            started.push(Running::start(&mut command, &dir.join(format!("w{n}.log")))?);
        }
        for worker in &mut started {
            worker.wait_for_line("ready")?;
        }
        let results = client.subscribe("result.>").await?;
        client.flush().await?;
        Ok(Self { server, workers: started, js, results, count: 0 })
    }

    /// The processes.
    pub(crate) fn pids(&self) -> Vec<i32> {
        self.workers.iter().chain([&self.server]).map(Running::pid).collect()
    }

    /// Memory of one idle worker, KiB.
    pub(crate) fn worker_pss_kib(&self) -> u64 {
        self.workers.first().map_or(0, |w| process::pss_kib(&[w.pid()]))
    }

    /// One task on the first worker, from its publication to its result.
    pub(crate) async fn one(&mut self) -> Fallible<Duration> {
        let begun = Instant::now();
        self.publish(0).await?;
        self.receive().await?;
        Ok(begun.elapsed())
    }

    /// This many tasks on the first worker, at most `in_flight` at a time.
    pub(crate) async fn many(&mut self, tasks: usize, in_flight: usize) -> Fallible<Duration> {
        let begun = Instant::now();
        let mut sent = 0;
        for done in 0..tasks {
            while sent < tasks && sent - done < in_flight {
                self.publish(0).await?;
                sent += 1;
            }
            self.receive().await?;
        }
        Ok(begun.elapsed())
    }

    /// One task on every worker, to the last result.
    pub(crate) async fn all(&mut self) -> Fallible<Duration> {
        let begun = Instant::now();
        for n in 0..self.workers.len() {
            self.publish(n).await?;
        }
        for _ in 0..self.workers.len() {
            self.receive().await?;
        }
        Ok(begun.elapsed())
    }

    async fn publish(&mut self, worker: usize) -> Fallible<()> {
        self.count += 1;
        let id = Bytes::from(self.count.to_string());
        // The acknowledgement comes before the result; nobody waits for it alone.
        drop(self.js.publish(format!("task.w{worker}"), id).await?);
        Ok(())
    }

    async fn receive(&mut self) -> Fallible<()> {
        match tokio::time::timeout(LIMIT, self.results.next()).await {
            Ok(Some(_)) => Ok(()),
            _ => Err("the bare loop lost a result".into()),
        }
    }
}

/// The address that the server has written down.
fn url(dir: &Path, server: &Running) -> Fallible<String> {
    let until = Instant::now() + LIMIT;
    let suffix = format!("_{}.ports", server.pid());
    while Instant::now() < until {
        for path in std::fs::read_dir(dir)?.flatten().map(|e| e.path()) {
            if path.to_string_lossy().ends_with(&suffix)
                && let Ok(text) = std::fs::read_to_string(&path)
                && let Ok(ports) = serde_json::from_str::<serde_json::Value>(&text)
                && let Some(url) = ports["nats"][0].as_str()
            {
                return Ok(url.to_owned());
            }
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Err("the bare broker does not say where it listens".into())
}
