//! `sally-agent`, and `sally-task` by its name.
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use sally_agent::sandbox::{DoorBytes, LauncherArgs, NamedFile, run_launcher};
use sally_agent::{config, runtime, script};

/// Pulls tasks into an isolated zone, runs them in a sandbox, reports. Listens on nothing.
#[derive(Parser)]
#[command(name = "sally-agent", version)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// The service: connect, pull, run, report, until SIGTERM or SIGINT
    Run {
        /// Configuration file
        #[arg(long, value_name = "FILE", default_value = "/etc/sally/agent.toml")]
        config: PathBuf,
    },
    /// Keep slots ready in which plans are carried out; `run` starts one if none is configured
    Launcher(LauncherArgs),
    /// Check a configuration file and say what is wrong with it
    Config {
        /// Configuration file
        #[arg(value_name = "FILE", default_value = "/etc/sally/agent.toml")]
        file: PathBuf,
    },
}

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().map(PathBuf::from).unwrap_or_default();
    if name.file_name().is_some_and(|n| n == "sally-task") {
        return script::task_cli::main(args);
    }
    let cli = Cli::parse();
    log_to_stderr();
    match cli.command {
        Command::Run { config } => run(&config),
        Command::Launcher(args) => done(run_launcher(&args, named_files)),
        Command::Config { file } => done(config::load(&file).map(|_| ())),
    }
}

/// The files that a script named to be kept, for the launcher's keepers.
fn named_files(doors: [DoorBytes<'_>; 2]) -> Vec<NamedFile> {
    let [fd3, file] = doors.map(|door| script::Door { bytes: door.kept, seen: door.written });
    let named = script::read_result(&fd3, &file, &script::ResultLimits::default()).artifacts;
    named.into_iter().map(|file| NamedFile { name: file.name, path: file.path }).collect()
}

fn log_to_stderr() {
    use std::io::IsTerminal as _;
    let filter = tracing_subscriber::EnvFilter::try_from_env("SALLY_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info,async_nats=error"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .with_target(false)
        .init();
}

fn done<E: std::fmt::Display>(outcome: Result<(), E>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}

fn run(path: &std::path::Path) -> ExitCode {
    let config = match config::load(path) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => done(runtime.block_on(serve(config))),
        Err(error) => done::<std::io::Error>(Err(error)),
    }
}

async fn serve(config: config::Config) -> Result<(), runtime::AgentError> {
    use tokio::signal::unix::{SignalKind, signal};
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut agent = std::pin::pin!(runtime::run(config, stopped));
    let (Ok(mut term), Ok(mut int)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        return agent.await;
    };
    tokio::select! {
        outcome = &mut agent => return outcome,
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    let _ = stop.send(true);
    agent.await
}
