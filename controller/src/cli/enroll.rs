//! `sally agent enroll` and `sally agent revoke`: who may become an agent, and who is one no more.

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use nkeys::KeyPair;
use sally_common::clock::rfc3339;
use sally_common::key::SigningKey;
use sally_common::name::Zone;
use sally_common::wire::VERSION;
use sally_common::wire::api::{Call, EnrolToken, Revoked};
use sally_common::wire::enrol::Token;
use sally_common::wire::record::AgentRecord;
use serde_json::json;

use super::args::{Format, OutputArgs};
use super::upkeep::{agents, confirm};
use super::{CliError, Exit, Session, agent, duration, format, out};
use crate::broker::state::write_private;

/// Make a token with which a host enrols itself.
///
/// The token is a secret: whoever has it becomes an agent of the zone. It is made here; the controller knows the digest of its
/// public key only. On the host: sally-agent enroll --token-file FILE
///
///   sally agent enroll --zone dmz --ttl 1h > token
#[derive(Debug, Args)]
#[command(verbatim_doc_comment)]
pub struct EnrollArgs {
    /// The zone
    #[arg(long, value_name = "ZONE")]
    zone: Zone,
    /// For how long it holds, at most 30d
    #[arg(long, value_name = "DUR", default_value = "1h", value_parser = duration::parse_positive)]
    ttl: Duration,
    /// For how many hosts
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    uses: u32,
    /// The broker as the host reaches it [default: that of the context]
    #[arg(long, value_name = "URL")]
    url: Option<String>,
    /// Write the token into a file of mode 0600, not to standard output
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
    #[command(flatten)]
    format: OutputArgs,
}

/// Whom to revoke.
#[derive(Debug, Args)]
pub struct RevokeArgs {
    /// The agent: NAME or ZONE/NAME
    #[arg(value_name = "AGENT")]
    agent: String,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    #[command(flatten)]
    format: OutputArgs,
}

/// Makes a token.
pub(super) async fn enroll(session: &Session, args: &EnrollArgs) -> Result<Exit, CliError> {
    let context = session.context()?;
    let ca = match &context.ca_file {
        Some(path) => Some(std::fs::read_to_string(path).map_err(|e| {
            CliError::usage(format!("cannot read the certificates of the context, {}: {e}", path.display()))
        })?),
        None => None,
    };
    // Its secret parts never leave this program but in the token.
    let (key, user) = (SigningKey::generate(), KeyPair::new_user());
    let seed = user.seed().map_err(|e| CliError::internal(format!("cannot make a key: {e}")))?;
    let call = Call::EnrolToken {
        zone: args.zone.clone(),
        ttl_ms: duration::ms(args.ttl),
        uses: args.uses,
        key: key.public().clone(),
        user: user.public_key(),
    };
    let made: EnrolToken = session.connect_to(&context).await?.call(call).await?;
    let token = Token {
        v: VERSION,
        id: made.id,
        zone: args.zone.clone(),
        url: args.url.clone().unwrap_or(context.url),
        prefix: context.prefix.as_str().to_owned(),
        tls_first: context.tls_first,
        ca,
        controllers: context.controllers,
        expires_ms: made.expires_ms,
        key: key.seed(),
        jwt: made.jwt,
        user: seed,
    };
    let (text, expires) = (token.text(), rfc3339(made.expires_ms));
    if let Some(file) = &args.file {
        write_private(file, format!("{text}\n").as_bytes()).map_err(|e| CliError::usage(e.to_string()))?;
    }
    let shown = json!({
        "id": made.id, "zone": args.zone, "uses": args.uses, "expires_at": expires,
        "token": args.file.is_none().then_some(&text), "file": args.file,
    });
    match args.format.output {
        Format::Json => out::json(&shown)?,
        Format::Jsonl => out::json_line(&shown)?,
        Format::Yaml => out::data(format::yaml(&shown)?.as_bytes())?,
        _ if args.file.is_none() => out::data(format!("{text}\n").as_bytes())?,
        _ => {}
    }
    let hosts = if args.uses == 1 { "one host".to_owned() } else { format!("{} hosts", args.uses) };
    out::note(&format!(
        "a secret, for {hosts} of zone {} until {}; there: sally-agent enroll --token-file FILE",
        args.zone,
        super::table::local_time(&expires)
    ))?;
    Ok(Exit::Success)
}

/// Revokes an agent.
pub(super) async fn revoke(session: &Session, args: &RevokeArgs) -> Result<Exit, CliError> {
    let client = session.connect().await?;
    let AgentRecord { zone, agent: name, waiting, .. } = agent::one(agents(&client).await?, &args.agent)?;
    if !args.yes {
        confirm(&format!(
            "{zone}/{name} will be cut off and never believed again; what waits for it ({waiting}) is cancelled, what it runs becomes unknown"
        ))?;
    }
    let revoked: Revoked = client.call(Call::Revoke { zone, agent: name }).await?;
    match args.format.output {
        Format::Json => out::json(&revoked)?,
        Format::Jsonl => out::json_line(&revoked)?,
        Format::Yaml => out::data(format::yaml(&revoked)?.as_bytes())?,
        Format::Csv => {
            out::data(format::csv(&["zone", "agent", "runs", "problem"], &[&revoked], &[])?.as_bytes())?;
        }
        Format::Name => out::data(format!("{}/{}\n", revoked.zone, revoked.agent).as_bytes())?,
        Format::Table | Format::Wide => {
            let runs = if revoked.runs == 1 { "1 run".to_owned() } else { format!("{} runs", revoked.runs) };
            out::note(&format!("revoked {}/{}; {runs} cancelled or unknown", revoked.zone, revoked.agent))?;
        }
    }
    match revoked.problem {
        None => Ok(Exit::Success),
        Some(problem) => Err(CliError::internal(format!(
            "the controller believes it no more, but the broker may still let it in: {}",
            sally_common::name::show(&problem)
        ))
        .hint("the controller goes on trying; see its log, and `accounts_creds` and `issuer` in its configuration")),
    }
}
