//! `sally up` and `sally serve` as a person starts them: signals in, words out.

use std::io::IsTerminal as _;

use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};

use super::{CliError, Exit, ServeArgs, Services, UpArgs, out};
use crate::broker::state::StateError;
use crate::up::{self, Ready, Settings, UpError};

/// The parts of the program that are more than a caller.
pub struct Parts;

impl Services for Parts {
    async fn up(&self, args: UpArgs) -> Result<(), CliError> {
        log_to_stderr();
        let dir = args.dir.or_else(up::default_dir);
        let dir = dir
            .ok_or_else(|| CliError::usage("there is no home folder to keep things in").hint("give --dir"))?;
        let settings = Settings {
            dir,
            agents: args.agents,
            zone: args.zone,
            nats_server: args.nats_server,
            prepare: args.prepare,
            listen: args.listen,
            allow_admin: args.allow_admin,
            users: args.users,
        };
        let stop = stop_on_signal()?;
        Ok(up::run(settings, stop, |ready| announce(&ready)).await?)
    }

    async fn serve(&self, args: ServeArgs) -> Result<(), CliError> {
        log_to_stderr();
        let stop = stop_on_signal()?;
        crate::serve::run(&args.config, stop, hangups()?).await.map_err(|error| match error {
            crate::serve::ServeError::Settings(error) => CliError::usage(error.to_string()),
            error @ crate::serve::ServeError::DataDir { .. } => CliError::usage(error.to_string()),
            crate::serve::ServeError::Service(error) => CliError::new(Exit::Internal, error.to_string()),
        })
    }
}

impl From<UpError> for CliError {
    fn from(error: UpError) -> Self {
        let exit = match &error {
            UpError::Find(_) | UpError::NoAgentProgram(_) | UpError::Name(_) => Exit::Usage,
            UpError::State(StateError::InUse { .. }) => Exit::Conflict,
            UpError::State(StateError::Unusable { .. }) => Exit::Usage,
            _ => Exit::Internal,
        };
        CliError::new(exit, error.to_string())
    }
}

/// `ready` alone on stdout, for programs; what to try next on stderr, for people.
fn announce(ready: &Ready) {
    let context = ready.context.display();
    // A reader that is gone does not matter: the service goes on.
    let _ = out::note(&format!(
        "{} agents, broker at {}. Try in another terminal:\n  \
         sally --context {context} agent ls\n  \
         sally --context {context} exec --all -- uname -a\n  \
         sally --context {context} run --all --profile host examples/host-inventory.sh\n\
         Ctrl-C ends everything.",
        ready.agents, ready.url
    ));
    let _ = out::data(b"ready\n");
}

/// A word for each SIGHUP. From a terminal it ends the program, as ever: the terminal is gone.
fn hangups() -> Result<mpsc::Receiver<()>, CliError> {
    let (sender, receiver) = mpsc::channel(1);
    if std::io::stderr().is_terminal() {
        return Ok(receiver);
    }
    let failed = |e: std::io::Error| CliError::internal(format!("cannot listen for signals: {e}"));
    let mut hangup = signal(SignalKind::hangup()).map_err(failed)?;
    // Ends with the program: there is nothing of it to join.
    tokio::spawn(async move {
        while hangup.recv().await.is_some() {
            // Full means that one waits already, and what it reads is as new.
            let _ = sender.try_send(());
        }
    });
    Ok(receiver)
}

/// A switch that SIGTERM and SIGINT turn.
fn stop_on_signal() -> Result<watch::Receiver<bool>, CliError> {
    let (sender, receiver) = watch::channel(false);
    let failed = |e: std::io::Error| CliError::internal(format!("cannot listen for signals: {e}"));
    let mut term = signal(SignalKind::terminate()).map_err(failed)?;
    let mut int = signal(SignalKind::interrupt()).map_err(failed)?;
    // Ends with the program: there is nothing of it to join.
    tokio::spawn(async move {
        tokio::select! {
            _ = term.recv() => {}
            _ = int.recv() => {}
        }
        let _ = sender.send(true);
        std::future::pending::<()>().await;
    });
    Ok(receiver)
}

fn log_to_stderr() {
    let filter = tracing_subscriber::EnvFilter::try_from_env("SALLY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,async_nats=error"));
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false);
    // A second call in one program changes nothing.
    let _ = subscriber.try_init();
}
