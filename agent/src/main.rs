//! `sally-agent`, and `sally-task` by its name.
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{CommandFactory as _, Parser, Subcommand};
use sally_agent::local::Form;
use sally_agent::sandbox::{DoorBytes, LauncherArgs, NamedFile, close_memory, run_launcher};
use sally_agent::{config, local, runtime, script};
use sally_common::notify;
use sally_common::settings::layers::Layers;

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
    /// Make this host an agent with a token: makes its keys here, proves the token, gets credentials for its own subjects
    Enroll(local::enroll::EnrollArgs),
    /// Finish what runs and take nothing new, also after a restart, until `resume`
    Drain {
        #[command(flatten)]
        place: Place,
        /// Return when nothing runs and every result has its receipt
        #[arg(long)]
        wait: bool,
        /// Wait no longer than this many seconds; then exit 1
        #[arg(long, value_name = "SECONDS", requires = "wait")]
        limit: Option<u64>,
    },
    /// Take work again after `drain`
    Resume {
        #[command(flatten)]
        place: Place,
    },
    /// What the agent on this host is doing: needs no connection
    Status {
        #[command(flatten)]
        place: Place,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Form::Table)]
        output: Form,
    },
    /// Work folders of runs that failed and were asked to be kept (`sally run --keep`), as tar archives
    #[command(subcommand)]
    Kept(Kept),
    /// Run a script on this host as a task would be run, without a broker, and show its record
    Test(local::trial::TestArgs),
    /// What this host offers and lacks for sandboxes, and the setting that would enable it; 1 if something fails
    Doctor(local::doctor::DoctorArgs),
    /// What a profile lets a script do, in words and from the inside
    #[command(subcommand)]
    Sandbox(Sandbox),
    /// The agent's configuration: check it, show it, describe it
    #[command(subcommand)]
    Config(local::configuration::ConfigCommand),
    /// Print a completion script for a shell
    Completion {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write a man page for each command into a folder
    #[command(hide = true)]
    Man {
        /// The folder
        dir: PathBuf,
    },
}

#[derive(Subcommand)]
enum Kept {
    /// What is kept, the oldest first
    Ls {
        #[command(flatten)]
        place: Place,
        /// How to print it
        #[arg(short, long, value_enum, default_value_t = Form::Table)]
        output: Form,
    },
    /// Remove some of them
    Rm {
        /// The run, or RUN.ATTEMPT
        #[arg(value_name = "RUN", required_unless_present = "all", conflicts_with = "all")]
        runs: Vec<String>,
        /// Every one
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        place: Place,
    },
}

#[derive(Subcommand)]
enum Sandbox {
    /// What a script in this profile sees, may write, may call and may use, in plain words
    Explain(local::explain::ExplainArgs),
    /// Open a shell on this host in the sandbox that a script in this profile would have, to look around
    ///
    /// Plan, layers and limits are those of a run; nothing goes over a network, and nothing is remembered. The exit code is
    /// the shell's, or 128 and the number of the signal that ended it; 124 at the time limit, 6 if policy or sandbox refuse
    /// it, 2 for wrong usage, 1 if it could not be opened.
    Shell(local::shell::ShellArgs),
}

/// Where an agent of this host keeps its state.
#[derive(clap::Args)]
struct Place {
    /// The agent's configuration file
    #[arg(long, value_name = "FILE", default_value = "/etc/sally/agent.toml")]
    config: PathBuf,
    /// The agent's state folder, in the place of the configuration
    #[arg(long, value_name = "DIR", conflicts_with = "config")]
    state_dir: Option<PathBuf>,
}

impl Place {
    fn state_dir(&self) -> Result<PathBuf, config::ConfigError> {
        self.state_dir.clone().map_or_else(|| config::state_dir(&self.config), Ok)
    }
}

fn main() -> ExitCode {
    let mut args = std::env::args_os();
    let name = args.next().map(PathBuf::from).unwrap_or_default();
    if name.file_name().is_some_and(|n| n == "sally-task") {
        return script::task_cli::main(args);
    }
    let cli = Cli::parse();
    log_to_stderr();
    if let Err(error) = close_memory() {
        return done(Err(error));
    }
    match cli.command {
        Command::Run { config } => run(&config),
        Command::Launcher(args) => done(run_launcher(&args, named_files)),
        Command::Drain { place, wait, limit } => in_place(&place, |dir| {
            local::drain(dir)?;
            if wait { local::wait_drained(dir, limit.map(std::time::Duration::from_secs)) } else { Ok(()) }
        }),
        Command::Resume { place } => in_place(&place, local::resume),
        Command::Status { place, output } => in_place(&place, |dir| show_status(dir, output)),
        Command::Kept(Kept::Ls { place, output }) => in_place(&place, |dir| {
            // Whoever closed the pipe wants no more.
            let _ = local::show::text(&local::kept::ls(dir, output)?);
            Ok(())
        }),
        Command::Kept(Kept::Rm { runs, place, .. }) => {
            in_place(&place, |dir| local::kept::rm(dir, &runs).map(|_| ()))
        }
        Command::Enroll(args) => enroll(&args),
        Command::Test(args) => test(&args),
        Command::Doctor(args) => doctor(&args),
        Command::Sandbox(Sandbox::Explain(args)) => explain(&args),
        Command::Sandbox(Sandbox::Shell(args)) => shell(&args),
        Command::Completion { shell } => {
            let mut text = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sally-agent", &mut text);
            // Whoever closed the pipe wants no more.
            let _ = std::io::Write::write_all(&mut std::io::stdout(), &text);
            ExitCode::SUCCESS
        }
        Command::Man { dir } => done(clap_mangen::generate_to(Cli::command(), dir)),
        Command::Config(command) => ExitCode::from(local::configuration::run(&command)),
    }
}

/// The files that a script named to be kept, for the launcher's keepers.
fn named_files(doors: [DoorBytes<'_>; 2]) -> Vec<NamedFile> {
    let [fd3, file] = doors.map(|door| script::Door { bytes: door.kept, seen: door.written });
    let named = script::read_result(&fd3, &file, &script::ResultLimits::default()).artifacts;
    named.into_iter().map(|file| NamedFile { name: file.name, path: file.path }).collect()
}

fn in_place(place: &Place, act: impl FnOnce(&Path) -> Result<(), local::LocalError>) -> ExitCode {
    match place.state_dir() {
        Ok(dir) => done(act(&dir)),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(2)
        }
    }
}

fn show_status(dir: &Path, output: Form) -> Result<(), local::LocalError> {
    use std::io::Write as _;
    let text = match output {
        Form::Table => local::status_text(dir)?,
        Form::Json => format!("{}\n", local::status_json(dir)?),
    };
    // Whoever closed the pipe wants no more.
    let _ = std::io::stdout().write_all(text.as_bytes());
    Ok(())
}

/// What a shell reports of a program whose reader went away.
const PIPE_CLOSED: u8 = 141;

fn test(args: &local::trial::TestArgs) -> ExitCode {
    use std::io::Write as _;
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return done::<std::io::Error>(Err(error)),
    };
    let tried = match runtime.block_on(local::trial::run(args)) {
        Ok(tried) => tried,
        Err(error) => {
            tracing::error!("{error}");
            let is_usage = matches!(error, local::trial::TrialError::Usage(_));
            return ExitCode::from(if is_usage { 2 } else { 1 });
        }
    };
    let written = match args.output {
        Form::Table => std::io::stderr().write_all(local::judged::summary(&tried.record).as_bytes()),
        Form::Json => local::show::json(&local::trial::as_json(&tried.record)),
    };
    if tried.unread || written.is_err() {
        return ExitCode::from(PIPE_CLOSED);
    }
    ExitCode::from(local::judged::exit_code(tried.record.state))
}

fn shell(args: &local::shell::ShellArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return done::<std::io::Error>(Err(error)),
    };
    match runtime.block_on(local::shell::run(args)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(error.code())
        }
    }
}

fn doctor(args: &local::doctor::DoctorArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return done::<std::io::Error>(Err(error)),
    };
    let report = runtime.block_on(local::doctor::run(args));
    // Whoever closed the pipe wants no more.
    let _ = match args.output {
        Form::Table => local::show::text(&report.as_text()),
        Form::Json => local::show::json(&report.as_json()),
    };
    if report.ok { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn explain(args: &local::explain::ExplainArgs) -> ExitCode {
    match local::explain::run(args) {
        Ok(text) => {
            // Whoever closed the pipe wants no more. The text is this program's own.
            let _ = local::show::text(&text);
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(2)
        }
    }
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

fn enroll(args: &local::enroll::EnrollArgs) -> ExitCode {
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return done::<std::io::Error>(Err(error)),
    };
    match runtime.block_on(local::enroll::run(args)) {
        Ok(told) => {
            // Whoever closed the pipe wants no more.
            let _ = local::show::text(&told);
            ExitCode::SUCCESS
        }
        Err(error) => {
            tracing::error!("{error}");
            ExitCode::from(if error.is_usage() { 2 } else { 1 })
        }
    }
}

/// Enrols this host if a token waits for it. Returns whether the start may go on.
fn first_start(path: &Path) -> Result<(), ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| done::<std::io::Error>(Err(error)))?;
    runtime.block_on(local::enroll::at_first_start(path)).map_err(|error| {
        tracing::error!("{error}");
        ExitCode::FAILURE
    })
}

fn run(path: &Path) -> ExitCode {
    if let Err(code) = first_start(path) {
        return code;
    }
    let config = match config::load(path) {
        Ok(config) => config,
        Err(error) => {
            tracing::error!("{error}");
            return ExitCode::from(2);
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime {
        Ok(runtime) => done(runtime.block_on(serve(path, config))),
        Err(error) => done::<std::io::Error>(Err(error)),
    }
}

async fn serve(path: &Path, config: config::Config) -> Result<(), runtime::AgentError> {
    use std::io::IsTerminal as _;
    use tokio::signal::unix::{SignalKind, signal};
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let (reload, reloads) = tokio::sync::mpsc::channel(1);
    let mut layers = config::layers(path);
    let mut agent = std::pin::pin!(runtime::run(config, stopped, reloads));
    let kinds = [SignalKind::terminate(), SignalKind::interrupt(), SignalKind::hangup()];
    let [Ok(mut term), Ok(mut int), Ok(mut hangup)] = kinds.map(signal) else {
        return agent.await;
    };
    // A terminal that is gone ends what it started, as ever.
    let on_terminal = std::io::stderr().is_terminal();
    loop {
        tokio::select! {
            outcome = &mut agent => return outcome,
            _ = term.recv() => break,
            _ = int.recv() => break,
            _ = hangup.recv() => {
                if on_terminal {
                    break;
                }
                read_again(path, &mut layers, &reload);
            }
        }
    }
    let _ = stop.send(true);
    agent.await
}

/// Reads the configuration again. One with problems changes nothing.
fn read_again(path: &Path, layers: &mut Layers, reload: &tokio::sync::mpsc::Sender<config::Config>) {
    notify::reloading();
    match config::load(path) {
        Ok(config) => {
            let newer = config::layers(path);
            layers.log_changes(&config::schema::schema(), &newer);
            *layers = newer;
            // Full means that one which was read just now waits already; it is as new.
            let _ = reload.try_send(config);
            notify::ready("configuration read again");
        }
        Err(error) => {
            tracing::error!("the configuration stays as it was: {error}");
            notify::ready("the configuration has problems and stays as it was");
        }
    }
}
