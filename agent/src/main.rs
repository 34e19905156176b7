//! `sally-agent`.
use clap::Parser;
use sally_agent::sandbox::{LauncherArgs, run_launcher};
use std::process::ExitCode;

/// Pulls tasks into an isolated zone, runs them in a sandbox, reports.
#[derive(Parser)]
enum Command {
    /// Keep slots ready in which plans are carried out
    Launcher(LauncherArgs),
}

fn main() -> ExitCode {
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let Command::Launcher(args) = Command::parse();
    match run_launcher(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::FAILURE
        }
    }
}
