//! Secrets: read from files, never from the command line, and sealed to each target before anything is sent.

use std::path::Path;

use sally_common::limit::{ORDER_MAX, SECRET_BYTES_MAX, SECRETS_MAX};
use sally_common::secret;
use sally_common::selector::Targets;
use sally_common::wire;
use sally_common::wire::api::{Call, Offline, Resolved, Target};
use sally_common::wire::order::{Order, SealedSecret};

use super::{CliError, Exit, fold, task};
use crate::client::Client;

/// A secret as it was read. It has no `Debug`: it is printed nowhere.
pub(super) struct Secret {
    /// Its file's name in the secrets folder.
    pub name: String,
    value: Vec<u8>,
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Secret({})", self.name)
    }
}

/// Whether this secret comes from standard input.
pub(super) fn is_stdin(argument: &str) -> bool {
    argument.split_once('=').is_some_and(|(_, source)| source == "@-")
}

/// Reads what `--secret` names.
pub(super) fn read(arguments: &[String]) -> Result<Vec<Secret>, CliError> {
    if arguments.len() > SECRETS_MAX {
        return Err(CliError::usage(format!("more than {SECRETS_MAX} secrets")));
    }
    if arguments.iter().filter(|a| is_stdin(a)).count() > 1 {
        return Err(CliError::usage("standard input can be one secret only"));
    }
    let mut secrets: Vec<Secret> = Vec::new();
    for argument in arguments {
        let secret = read_one(argument)?;
        if secrets.iter().any(|s| s.name == secret.name) {
            return Err(CliError::usage(format!("--secret {}: it is given twice", secret.name)));
        }
        secrets.push(secret);
    }
    Ok(secrets)
}

/// Reads one. What stands after the name is never repeated in an error: it may be the secret itself.
fn read_one(argument: &str) -> Result<Secret, CliError> {
    let (name, source) = argument.split_once('=').unwrap_or((argument, ""));
    secret::check_name(name)
        .map_err(|e| CliError::usage(format!("--secret {}: {e}", sally_common::name::show(name))))?;
    let Some(source) = source.strip_prefix('@').filter(|file| !file.is_empty()) else {
        return Err(CliError::usage(format!(
            "--secret {name}: a value on the command line is seen by everybody on this host and kept by the shell"
        ))
        .hint(format!("write it into a file and give --secret {name}=@FILE, or {name}=@- to read standard input")));
    };
    let path = Some(Path::new(source)).filter(|p| *p != Path::new("-"));
    let value = task::read(path, &format!("the secret {name}"))?;
    match value.len() {
        0 => Err(CliError::usage(format!("--secret {name}: {source} is empty"))),
        1..=SECRET_BYTES_MAX => Ok(Secret { name: name.to_owned(), value }),
        n => Err(CliError::usage(format!(
            "--secret {name}: {n} bytes are more than the {SECRET_BYTES_MAX} of a secret"
        ))),
    }
}

/// Seals each secret for each target and puts them into the order. From then on the order names its agents one by one: nobody
/// whom the targets match a moment later gets it without what it needs.
pub(super) async fn seal(
    client: &Client,
    order: &mut Order,
    secrets: &[Secret],
    offline: Offline,
) -> Result<(), CliError> {
    if secrets.is_empty() {
        return Ok(());
    }
    let resolved: Resolved = client.call(Call::Resolve { targets: order.targets.clone() }).await?;
    let mut targets = resolved.targets;
    if offline == Offline::Skip {
        targets.retain(|t| t.online);
    }
    if targets.is_empty() {
        return Err(CliError::new(Exit::NoTarget, "no agent that matches is online"));
    }
    order.task.secrets = seal_all(client, order, secrets, &targets)?;
    order.targets = named(&targets);
    check_size(order, targets.len())
}

fn seal_all(
    client: &Client,
    order: &Order,
    secrets: &[Secret],
    targets: &[Target],
) -> Result<Vec<SealedSecret>, CliError> {
    let keyless = |t: &&Target| t.curve_key.is_none() || t.agent_key.is_none();
    let without: Vec<(&str, &str)> =
        targets.iter().filter(keyless).map(|t| (t.zone.as_str(), t.agent.as_str())).collect();
    if !without.is_empty() {
        let names = fold::compress(&without, true);
        return Err(CliError::new(
            Exit::Denied,
            format!("nothing can be sealed for {names}: no key of theirs is known"),
        )
        .hint(
            "an agent says its key when it is first online; --offline skip leaves those out that are not",
        ));
    }
    let mut sealed = Vec::with_capacity(secrets.len() * targets.len());
    for target in targets {
        let (Some(agent_key), Some(curve_key)) = (&target.agent_key, &target.curve_key) else { continue };
        for Secret { name, value } in secrets {
            let one = secret::seal(name, value, agent_key, curve_key, &order.request_id, client.key());
            let failed = |e| CliError::internal(format!("cannot seal {name} for {}: {e}", target.agent));
            sealed.push(one.map_err(failed)?);
        }
    }
    Ok(sealed)
}

/// These agents and no others.
pub(super) fn named(targets: &[Target]) -> Targets {
    let agents = targets.iter().map(|t| format!("{}/{}", t.zone, t.agent)).collect();
    Targets { agents, ..Targets::default() }
}

/// Says how many targets fit when an order with its secrets is too large.
fn check_size(order: &Order, targets: usize) -> Result<(), CliError> {
    let bytes = wire::to_bytes(order).len();
    if bytes <= ORDER_MAX {
        return Ok(());
    }
    let mut bare = order.clone();
    (bare.task.secrets, bare.targets.agents) = (Vec::new(), Vec::new());
    let bare = wire::to_bytes(&bare).len();
    let each = bytes.saturating_sub(bare).div_ceil(targets.max(1)).max(1);
    let fit = ORDER_MAX.saturating_sub(bare) / each;
    let message = format!(
        "the secrets sealed for {targets} agents make an order of {bytes} bytes, more than {ORDER_MAX}"
    );
    Err(CliError::usage(message).hint(match fit {
        0 => "give fewer or smaller secrets".to_owned(),
        n => format!("{n} agents at a time fit: narrow the targets, or give fewer or smaller secrets"),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use sally_common::name::{Agent, Zone};

    fn refused(argument: &str) -> CliError {
        let error = read(&[argument.to_owned()]).expect_err(argument);
        assert_eq!(error.exit, Exit::Usage);
        error
    }

    #[test]
    fn a_value_on_the_command_line_is_refused_and_not_repeated() {
        for argument in ["db=hunter2", "db=", "db", "db=@"] {
            let error = refused(argument);
            assert!(error.message.contains("seen by everybody"), "{error}");
            assert!(!format!("{error:?}").contains("hunter2"), "{error:?}");
            assert!(error.hint.is_some_and(|h| h.contains("db=@FILE")));
        }
    }

    #[test]
    fn secrets_come_from_files() {
        let dir = tempfile::tempdir().expect("a folder");
        let file = dir.path().join("s");
        let argument = |name: &str| format!("{name}=@{}", file.display());
        std::fs::write(&file, "hunter2\n").expect("written");
        let secrets = read(&[argument("a"), argument("b.key")]).expect("read");
        assert_eq!((secrets[1].name.as_str(), secrets[1].value.as_slice()), ("b.key", &b"hunter2\n"[..]));
        assert!(!format!("{secrets:?}").contains("hunter2"));

        assert!(read(&[argument("a"), argument("a")]).is_err_and(|e| e.message.contains("twice")));
        assert!(refused(&argument("../a")).message.contains("secret's name"));
        assert!(refused("a=@/no/such").message.contains("/no/such"));
        let two = read(&["a=@-".to_owned(), "b=@-".to_owned()]);
        assert!(two.is_err_and(|e| e.message.contains("one secret only")));
        std::fs::write(&file, "").expect("written");
        assert!(refused(&argument("a")).message.contains("empty"));
        std::fs::write(&file, vec![7; SECRET_BYTES_MAX + 1]).expect("written");
        assert!(refused(&argument("a")).message.contains("65537 bytes"));
        let many: Vec<String> = (0..=SECRETS_MAX).map(|n| format!("s{n}=@f")).collect();
        assert!(read(&many).is_err_and(|e| e.message.contains("32 secrets")));
    }

    #[test]
    fn an_order_that_is_too_large_says_how_many_agents_fit() {
        let mut order = super::super::tests::order();
        let targets: Vec<Target> = (0..1_000)
            .map(|n| Target {
                zone: Zone::new("dmz").expect("name"),
                agent: Agent::new(&format!("web-{n:04}")).expect("name"),
                online: true,
                agent_key: None,
                curve_key: None,
            })
            .collect();
        order.targets = named(&targets);
        assert!(check_size(&order, 1_000).is_ok());
        let key = sally_common::key::SigningKey::from_secret([1; 32]);
        let sealed = "x".repeat(400);
        let one = SealedSecret { name: "a".into(), agent_key: key.public().clone(), sealed };
        order.task.secrets = vec![one; 1_000];
        let hint = check_size(&order, 1_000).expect_err("too large").hint.expect("a hint");
        let fit: usize = hint.split(' ').next().and_then(|n| n.parse().ok()).expect("a number");
        order.task.secrets.truncate(fit);
        order.targets.agents.truncate(fit);
        assert!(check_size(&order, fit).is_ok(), "{fit} do not fit");
        order.task.secrets.extend_from_within(..20);
        assert!(check_size(&order, fit).is_err(), "{fit} is far from all that fit");
    }
}
