//! Everything that people type and read.
//!
//! In reading order: this file has the commands and hands each to its file; `args` are the flags that
//! commands share; `task` turns flags into an order and refuses bad input before anything is sent;
//! `run` submits and waits, with `secret` for what is sealed first, `follow` for what happens meanwhile,
//! `live` for output as it comes and `finish` for the end; `job` with `retry` and `artifacts`, `agent` with `upkeep` and `enroll`, and
//! `context` are the other nouns, `nats` that of who runs a broker; `backup` has two verbs of its own, `configuration` those of `sally serve config`. Then what they print
//! with: `format`, `fold`, `table`, `text`, `out`; `exit` are the exit codes and `error` is
//! the one place where an error becomes words.
//!
//! No other room prints. What is shown is made by functions that return text; `out` writes it.

mod agent;
mod args;
mod artifacts;
mod backup;
mod configuration;
mod context;
mod enroll;
pub mod error;
pub mod exit;
mod finish;
mod fold;
mod follow;
mod format;
mod job;
mod live;
mod logs;
mod nats;
mod out;
mod retry;
mod run;
mod secret;
mod table;
mod task;
mod text;
mod up;
mod upkeep;
mod version;

use std::ffi::OsString;
use std::future::Future;
use std::path::PathBuf;

use clap::{Args, CommandFactory, Parser, Subcommand};
use sally_common::duration;

use crate::client::Client;
use crate::context::{Context, Store};
pub use error::CliError;
pub use exit::Exit;
pub use up::Parts;

/// Run scripts inside isolated network zones, over connections that only ever go out.
///
/// Start with `sally up`: it prints what to try next. Then, for example:
///
///   sally exec --all -- uname -a
///   sally run ./inventory.sh --all --profile host -o json
#[derive(Debug, Parser)]
#[command(name = "sally", version, max_term_width = 100, verbatim_doc_comment)]
pub struct Cli {
    /// The context to use: a name (see `sally context ls`) or the path of a context file
    #[arg(long, global = true, env = "SALLY_CONTEXT", value_name = "NAME|PATH")]
    pub context: Option<String>,
    /// What to do
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    #[allow(missing_docs, reason = "the arguments' own text is the help")]
    Up(UpArgs),
    #[allow(missing_docs, reason = "the arguments' own text is the help")]
    Serve(ServeArgs),
    #[allow(missing_docs, reason = "the arguments' own text is the help")]
    Run(run::RunArgs),
    #[allow(missing_docs, reason = "the arguments' own text is the help")]
    Exec(run::ExecArgs),
    /// Look at jobs, follow them, cancel them
    #[command(subcommand)]
    Job(job::JobCommand),
    /// Look at agents
    #[command(subcommand)]
    Agent(agent::AgentCommand),
    /// Prepare a NATS broker for Sally: configuration, accounts, credentials
    #[command(subcommand)]
    Nats(nats::NatsCommand),
    #[allow(missing_docs, reason = "the arguments' own text is the help")]
    Backup(backup::BackupArgs),
    #[allow(missing_docs, reason = "the arguments' own text is the help")]
    Restore(backup::RestoreArgs),
    /// Choose which controller commands speak to
    #[command(subcommand)]
    Context(context::ContextCommand),
    /// Print a completion script for a shell
    ///
    /// For example: sally completion bash > ~/.local/share/bash-completion/completions/sally
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
    /// Print the version of this program
    Version(version::VersionArgs),
}

/// Start broker, controller and local agents on this host, in the foreground.
///
/// Prints `ready` on stdout when it serves. Ctrl-C ends all that it started.
///
///   sally up --dir ./try --agents 3
#[derive(Debug, Clone, Args)]
#[command(verbatim_doc_comment)]
pub struct UpArgs {
    /// Where everything is kept [default: this user's data folder]
    #[arg(long, value_name = "DIR")]
    pub dir: Option<PathBuf>,
    /// How many agents to start
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(0..=1000))]
    pub agents: u32,
    /// The agents' zone
    #[arg(long, value_name = "ZONE", default_value = "local")]
    pub zone: sally_common::name::Zone,
    /// Prepare credentials and configuration of an agent that you start yourself with `sally-agent run`; they
    /// are in DIR/agents/NAME (can be repeated)
    #[arg(long, value_name = "NAME")]
    pub prepare: Vec<sally_common::name::Agent>,
    /// Address on which the broker listens; another than loopback lets agents elsewhere reach it
    #[arg(long, value_name = "IP", default_value = "127.0.0.1")]
    pub listen: std::net::IpAddr,
    /// Let the agents' scripts be root on this host (--profile admin); only as root
    #[arg(long)]
    pub allow_admin: bool,
    /// Let the agents' scripts run as this account of this host (--user NAME); only as root (can be repeated)
    #[arg(long = "allow-user", value_name = "NAME", value_parser = args::account)]
    pub users: Vec<String>,
    /// The nats-server program [default: $SALLY_NATS_SERVER, the project's own copy, or the one on PATH]
    #[arg(long, value_name = "PROGRAM")]
    pub nats_server: Option<PathBuf>,
}

/// Run the controller service.
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
pub struct ServeArgs {
    /// The service's configuration file; its drop-ins are FILE.d/*.toml
    #[arg(long, value_name = "FILE", default_value = "/etc/sally/serve.toml")]
    pub config: PathBuf,
    /// Something else than to serve
    #[command(subcommand)]
    pub command: Option<ServeCommand>,
}

/// What `sally serve` can do beside serving.
#[derive(Debug, Subcommand)]
pub enum ServeCommand {
    /// The service's configuration: check it, show it, describe it
    #[command(subcommand)]
    Config(configuration::ConfigCommand),
}

/// The commands that are no caller's: the program that has them fills them in.
pub trait Services {
    /// `sally up`.
    fn up(&self, args: UpArgs) -> impl Future<Output = Result<(), CliError>>;
    /// `sally serve`.
    fn serve(&self, args: ServeArgs) -> impl Future<Output = Result<(), CliError>>;
}

/// Reads the command line, does what it says, and returns the exit code. Errors are printed here and
/// nowhere else.
pub async fn main(arguments: Vec<OsString>, services: &impl Services) -> u8 {
    let json = error::wants_json(&arguments);
    let result = match Cli::try_parse_from(arguments) {
        Ok(cli) => dispatch(cli, services).await,
        Err(usage) => error::of_clap(&usage),
    };
    match result {
        Ok(exit) => exit.code(),
        Err(error) => error::report(&error, json).code(),
    }
}

/// Does what the command line says.
///
/// # Errors
/// [`CliError`], which has the words and the exit code.
pub async fn dispatch(cli: Cli, services: &impl Services) -> Result<Exit, CliError> {
    let session = Session { context: cli.context };
    match cli.command {
        Command::Up(args) => services.up(args).await.map(|()| Exit::Success),
        Command::Serve(ServeArgs { command: Some(ServeCommand::Config(command)), .. }) => {
            configuration::configuration(&command)
        }
        Command::Serve(args) => services.serve(args).await.map(|()| Exit::Success),
        Command::Run(args) => run::run(&session, args).await,
        Command::Exec(args) => run::exec(&session, args).await,
        Command::Job(command) => job::job(&session, command).await,
        Command::Agent(command) => agent::agent(&session, command).await,
        Command::Nats(command) => nats::nats(&session, command).await,
        Command::Backup(args) => backup::backup(&args).await,
        Command::Restore(args) => backup::restore(&args),
        Command::Context(command) => context::context(&session, command),
        Command::Completion { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "sally", &mut script);
            out::data(&script)?;
            Ok(Exit::Success)
        }
        Command::Man { dir } => {
            let failed =
                |e| CliError::internal(format!("cannot write man pages into {}: {e}", dir.display()));
            clap_mangen::generate_to(Cli::command(), &dir).map_err(failed)?;
            Ok(Exit::Success)
        }
        Command::Version(args) => version::version(&args),
    }
}

/// What every command of a caller needs.
struct Session {
    context: Option<String>,
}

impl Session {
    fn context(&self) -> Result<Context, CliError> {
        let asked = self.context.as_deref();
        let path = match (asked, Store::of_user()) {
            (Some(text), Err(_)) => PathBuf::from(text),
            (_, store) => store?.find(asked)?,
        };
        Ok(Context::read(&path)?)
    }

    async fn connect(&self) -> Result<Client, CliError> {
        self.connect_to(&self.context()?).await
    }

    async fn connect_to(&self, context: &Context) -> Result<Client, CliError> {
        // A controller that restarts is away for a moment: whoever waits at a terminal is told why.
        let told = |words: &str| drop(out::note(&text::sanitise(words)));
        Ok(Client::connect(context).await?.with_notice(told))
    }
}

#[cfg(test)]
mod tests;
