//! `sally nats`: what somebody who runs a broker needs.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use sally_common::name::{User, Zone};
use serde_json::json;

use super::args::{Format, OutputArgs};
use super::{CliError, Exit, Session, format, out, table};
use crate::nats::check::{self, CheckError, Checked, Place};
use crate::nats::folder::{Done, Fate, FolderError};
use crate::nats::init::{GivenTls, NatsError, Plan, init};
use crate::nats::zone::{Added, LeafPlan, add};
use crate::up::identity;

const MIB: u64 = 1024 * 1024;

/// Prepare a NATS broker for Sally: its configuration, accounts and credentials.
#[derive(Debug, Subcommand)]
pub enum NatsCommand {
    #[allow(missing_docs, reason = "the arguments' own text is the help")]
    Init(InitArgs),
    /// The zones that the broker knows
    #[command(subcommand)]
    Zone(ZoneCommand),
    #[allow(missing_docs, reason = "the arguments' own text is the help")]
    Check(CheckArgs),
}

/// Write everything for a broker, a controller and a first caller into one folder.
///
/// DIR/broker goes to the host of the broker, DIR/controller to that of the controller, DIR/caller to the person who gives
/// commands; DIR/admin holds the keys from which all else is made: keep it offline. Every connection is TLS from its
/// first byte; without --cert an authority and a certificate are made.
///
/// Doing it again makes what is missing and changes nothing else; no key is ever replaced.
///
///   sally nats init --dir ./broker --host broker.example.net --zone dmz --zone shop
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct InitArgs {
    /// Where everything is written
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Name or address under which the broker is reached; the first one stands in what is written (can be repeated)
    #[arg(long = "host", value_name = "HOST", required = true)]
    hosts: Vec<String>,
    /// A zone that gets its account (can be repeated); more later with `sally nats zone add`
    #[arg(long = "zone", value_name = "ZONE")]
    zones: Vec<Zone>,
    /// Address on which the broker listens
    #[arg(long, value_name = "IP", default_value = "0.0.0.0")]
    listen: IpAddr,
    /// Port for agents, controllers and callers
    #[arg(long, value_name = "PORT", default_value_t = 4222, value_parser = clap::value_parser!(u16).range(1..))]
    port: u16,
    /// Also take WebSocket connections, on this port [default without a value: 443]
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "443", value_parser = clap::value_parser!(u16).range(1..))]
    websocket: Option<u16>,
    /// Also take brokers inside zones (leaf nodes), on this port [default without a value: 7422]
    #[arg(long, value_name = "PORT", num_args = 0..=1, default_missing_value = "7422", value_parser = clap::value_parser!(u16).range(1..))]
    leaf_port: Option<u16>,
    /// The broker's certificate, PEM, with those between it and its authority
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Its key, PEM
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// The certificate of its authority, PEM, if it is none that systems trust
    #[arg(long, value_name = "FILE", requires = "cert")]
    ca: Option<PathBuf>,
    /// The first caller's name [default: this account's name]
    #[arg(long, value_name = "NAME")]
    user: Option<User>,
    /// First token of every subject
    #[arg(long, value_name = "WORD", default_value = "sally")]
    prefix: String,
    /// Where DIR/broker will be on the broker's host [default: where it is now]
    #[arg(long, value_name = "PATH")]
    broker_dir: Option<PathBuf>,
    /// What the broker's streams may take in files, MiB
    #[arg(long, value_name = "MIB", default_value_t = 2048)]
    max_file: u64,
    /// The same in memory, MiB
    #[arg(long, value_name = "MIB", default_value_t = 64)]
    max_memory: u64,
    #[command(flatten)]
    format: OutputArgs,
}

/// What can be done with zones.
#[derive(Debug, Subcommand)]
pub enum ZoneCommand {
    #[allow(missing_docs, reason = "the arguments' own text is the help")]
    Add(ZoneAddArgs),
}

/// Give a zone its account, also at a broker that runs.
///
/// The files below DIR are brought up to date, and a broker that can be reached from here takes the account at once. Otherwise
/// what is printed says what to carry where.
///
///   sally nats zone add factory-7 --dir ./broker
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct ZoneAddArgs {
    /// The zone
    #[arg(value_name = "ZONE")]
    zone: Zone,
    /// The folder that `sally nats init` wrote
    #[arg(long, value_name = "DIR")]
    dir: PathBuf,
    /// Also write the configuration of a broker inside the zone, which its agents reach under this name or address and which
    /// connects out (can be repeated)
    #[arg(long = "leaf", value_name = "HOST")]
    leaf: Vec<String>,
    /// Port of that broker
    #[arg(long, value_name = "PORT", default_value_t = 4222, requires = "leaf", value_parser = clap::value_parser!(u16).range(1..))]
    leaf_listen_port: u16,
    /// Where its folder will be on its host [default: where it is written]
    #[arg(long, value_name = "PATH", requires = "leaf")]
    leaf_dir: Option<PathBuf>,
    #[command(flatten)]
    format: OutputArgs,
}

/// Say what a credential may and may not do, tried at the broker.
///
/// Each line was tried there and then: a message was published, or a subscription made. The messages are empty and unsigned;
/// a controller refuses them and says so in its log. Exit code 1 if the credential may do what its holder should not, or
/// may not do what it should.
///
///   sally nats check --creds agent.creds --url tls://broker.example.net:4222 --ca-file ca.pem --tls-first
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct CheckArgs {
    /// The credentials
    #[arg(long, value_name = "FILE")]
    creds: PathBuf,
    /// The broker [default: that of the context]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Certificates to trust besides the system's [default: those of the context]
    #[arg(long, value_name = "FILE", requires = "url")]
    ca_file: Option<PathBuf>,
    /// TLS before the broker's greeting [default: as in the context]
    #[arg(long, requires = "url")]
    tls_first: bool,
    /// First token of every subject [default: that of the context, or sally]
    #[arg(long, value_name = "WORD")]
    prefix: Option<String>,
    #[command(flatten)]
    format: OutputArgs,
}

pub(super) async fn nats(session: &Session, command: NatsCommand) -> Result<Exit, CliError> {
    match command {
        NatsCommand::Check(args) => check(session, args).await,
        NatsCommand::Init(args) => make(args),
        NatsCommand::Zone(ZoneCommand::Add(args)) => zone_add(args).await,
    }
}

impl From<NatsError> for CliError {
    fn from(error: NatsError) -> Self {
        let exit = match &error {
            NatsError::Another { .. } => Exit::Conflict,
            NatsError::NotAHost(_)
            | NatsError::Usage(_)
            | NatsError::NoBroker { .. }
            | NatsError::Trust(_) => Exit::Usage,
            NatsError::Read { .. } | NatsError::Folder(FolderError::State(_) | FolderError::Read { .. }) => {
                Exit::Usage
            }
            _ => Exit::Internal,
        };
        CliError::new(exit, error.to_string())
    }
}

fn make(args: InitArgs) -> Result<Exit, CliError> {
    let given = args.cert.zip(args.key).map(|(cert, key)| GivenTls { cert, key, ca: args.ca });
    let plan = Plan {
        hosts: args.hosts,
        listen: args.listen,
        port: args.port,
        websocket: args.websocket,
        leaf: args.leaf_port,
        prefix: args.prefix,
        broker_dir: args.broker_dir,
        max_file_bytes: args.max_file.saturating_mul(MIB),
        max_memory_bytes: args.max_memory.saturating_mul(MIB),
        user: args.user.unwrap_or_else(identity::user),
        own_authority: given.is_none(),
    };
    let done = init(&args.dir, &plan, &args.zones, given.as_ref())?;
    show(&done, args.format.output)?;
    if matches!(args.format.output, Format::Table | Format::Wide) {
        out::note(&next_steps(&args.dir, &plan, args.zones.is_empty()))?;
    }
    Ok(Exit::Success)
}

/// What to do with what was written.
fn next_steps(dir: &Path, plan: &Plan, no_zone: bool) -> String {
    let dir = dir.display();
    let mut text = format!(
        "next:\n  \
         1. broker: copy {dir}/broker to its host{}, owned by the account of nats-server; start: nats-server -c nats.conf\n  \
         2. controller: copy {dir}/controller to its host, owned by its account; start: sally serve --config serve.toml\n  \
         3. you: sally context add NAME {dir}/caller/context.toml; sally context select NAME\n  \
         4. keep {dir}/admin offline: whoever has it owns the broker\n",
        plan.broker_dir.as_ref().map_or_else(String::new, |to| format!(" as {}", to.display())),
    );
    if no_zone {
        text.push_str(&format!("  there is no zone yet: sally nats zone add ZONE --dir {dir}\n"));
    }
    text.push_str(
        "then: sally agent enroll --zone ZONE, and on each host sally-agent enroll --token-file FILE",
    );
    text
}

async fn zone_add(args: ZoneAddArgs) -> Result<Exit, CliError> {
    let leaf = LeafPlan { hosts: args.leaf, port: args.leaf_listen_port, dir: args.leaf_dir };
    let leaf = (!leaf.hosts.is_empty()).then_some(leaf);
    let added = add(&args.dir, &args.zone, leaf.as_ref()).await?;
    show(&added.done, args.format.output)?;
    out::note(&told(&added, &args.zone, &args.dir))?;
    Ok(Exit::Success)
}

fn told(added: &Added, zone: &Zone, dir: &Path) -> String {
    let dir = dir.display();
    let mut text = match (&added.pushed, added.is_new) {
        (Ok(()), true) => format!("zone {zone} is added; the broker at {} has its account", added.url),
        (Ok(()), false) => format!("zone {zone} was there already"),
        (Err(error), _) => format!(
            "zone {zone} is in the files; the broker has not been told: {error}\n\
             copy {dir}/broker/accounts.conf to the broker's host: it counts from its next start"
        ),
    };
    text.push_str(&format!(
        "\nnext: copy {dir}/controller/issuer.json to the controller's host and reload sally serve (SIGHUP); \
         it gives the account to a running broker too"
    ));
    if let Some(leaf) = &added.leaf {
        text.push_str(&format!(
            "\nthe broker inside the zone: copy {} to its host; start: nats-server -c nats.conf",
            leaf.display()
        ));
    }
    text
}

impl From<CheckError> for CliError {
    fn from(error: CheckError) -> Self {
        let exit = match &error {
            CheckError::Connect(sally_common::nats::connect::ConnectError::Creds(_))
            | CheckError::NoHolder(_) => Exit::Usage,
            CheckError::Connect(_) | CheckError::Gone => Exit::Unreachable,
        };
        CliError::new(exit, error.to_string())
    }
}

async fn check(session: &Session, args: CheckArgs) -> Result<Exit, CliError> {
    let prefix = args.prefix.unwrap_or_else(|| "sally".to_owned());
    let place = match args.url {
        Some(url) => Place { url, ca_file: args.ca_file, tls_first: args.tls_first, prefix },
        None => {
            let context = session.context()?;
            let prefix = context.prefix.as_str().to_owned();
            Place { url: context.url, ca_file: context.ca_file, tls_first: context.tls_first, prefix }
        }
    };
    let checked = check::check(&place, &args.creds).await?;
    match args.format.output {
        Format::Json => out::json(&checked)?,
        Format::Jsonl => checked.probes.iter().try_for_each(out::json_line)?,
        Format::Yaml => out::data(format::yaml(&checked)?.as_bytes())?,
        Format::Csv => {
            let columns = ["action", "subject", "allowed", "should_be", "what"];
            out::data(format::csv(&columns, &checked.probes, &[])?.as_bytes())?;
        }
        Format::Name | Format::Table | Format::Wide => out::styled(&check_table(&checked))?,
    }
    let wrong = checked.probes.iter().filter(|probe| probe.allowed != probe.should_be).count();
    if wrong == 0 {
        out::note(&format!("{}: as it should be", checked.holder))?;
        return Ok(Exit::Success);
    }
    Err(CliError::internal(format!("{}: {wrong} of these are not as they should be", checked.holder))
        .hint("have the credentials issued again; accounts that a broker was given by hand may allow more"))
}

fn check_table(checked: &Checked) -> String {
    let word = |allowed: bool| if allowed { "allowed" } else { "refused" };
    let row = |probe: &check::Probe| {
        let mark = if probe.allowed == probe.should_be { "" } else { "WRONG: " };
        vec![
            format!("{mark}{}", word(probe.allowed)),
            probe.action.to_owned(),
            probe.subject.clone(),
            probe.what.to_owned(),
        ]
    };
    let rows: Vec<Vec<String>> = checked.probes.iter().map(row).collect();
    table::table(&["", "ACTION", "SUBJECT", "WHAT"], &rows, None)
}

/// What became of each file.
fn show(done: &[Done], format: Format) -> Result<(), CliError> {
    match format {
        Format::Json => out::json(&json!({ "files": done }))?,
        Format::Jsonl => done.iter().try_for_each(out::json_line)?,
        Format::Yaml => out::data(format::yaml(&json!({ "files": done }))?.as_bytes())?,
        Format::Csv => out::data(format::csv(&["path", "fate"], done, &[])?.as_bytes())?,
        Format::Name => {
            let lines: String = done.iter().map(|done| format!("{}\n", done.path.display())).collect();
            out::data(lines.as_bytes())?;
        }
        Format::Table | Format::Wide => {
            let word = |fate: Fate| match fate {
                Fate::Written => "written",
                Fate::Updated => "updated",
                Fate::Kept => "kept",
                Fate::Differs => "yours, kept; see .new",
            };
            let row = |done: &Done| vec![word(done.fate).to_owned(), done.path.display().to_string()];
            let rows: Vec<Vec<String>> = done.iter().map(row).collect();
            out::styled(&table::table(&["", "FILE"], &rows, None))?;
        }
    }
    Ok(())
}
