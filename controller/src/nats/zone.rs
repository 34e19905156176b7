//! A zone more: its account, and, where one is wanted, a broker inside the zone that connects out to the hub's.

use std::path::{Path, PathBuf};

use sally_common::clock::now_ms;
use sally_common::name::Zone;
use sally_common::nats::accounts::{Role, Trust};

use super::folder::{Done, Folder};
use super::init::{KEYS, NatsError, Plan, own_certificate, read_plan, write_accounts};
use super::push::{PushError, Target, push};
use crate::broker::config::{Remote, ServerConfig, TlsFiles, leaf_accounts};
use crate::broker::state::keep_trust;

/// The broker inside a zone.
#[derive(Debug, Clone)]
pub struct LeafPlan {
    /// Names and addresses under which the zone's agents reach it.
    pub hosts: Vec<String>,
    /// The port for them.
    pub port: u16,
    /// Where its folder will be on its host; else where it is written.
    pub dir: Option<PathBuf>,
}

/// What was done for a zone.
#[derive(Debug)]
pub struct Added {
    /// Whether its account is new.
    pub is_new: bool,
    /// What became of each file.
    pub done: Vec<Done>,
    /// Whether the running broker took the account.
    pub pushed: Result<(), PushError>,
    /// The broker's address.
    pub url: String,
    /// The folder of the broker inside the zone.
    pub leaf: Option<PathBuf>,
}

/// Adds a zone's account to a folder that [`super::init::init`] made, and gives it to the broker if that runs. Doing it again
/// changes nothing, and only says whether the broker answers.
///
/// # Errors
/// [`NatsError`]; a broker that cannot be reached is none.
pub async fn add(dir: &Path, zone: &Zone, leaf: Option<&LeafPlan>) -> Result<Added, NatsError> {
    let mut folder = Folder::open_existing(dir)?;
    let plan = read_plan(folder.root())?;
    let now = u64::try_from(now_ms() / 1000).unwrap_or(0);
    let keys = folder.path(KEYS);
    let is_new = !keep_trust(&keys, &plan.prefix, &[], now)?.zones().any(|known| known == zone.as_str());
    let trust = keep_trust(&keys, &plan.prefix, &[zone.as_str()], now)?;
    write_accounts(&mut folder, &plan, &trust, now)?;
    let leaf = match leaf {
        Some(leaf) => Some(write_leaf(&mut folder, &plan, &trust, zone, leaf, now)?),
        None => None,
    };
    let ca_file = folder.path("controller/ca.pem");
    let target = Target {
        url: plan.url(),
        creds: folder.path("controller/accounts.creds"),
        ca_file: ca_file.exists().then_some(ca_file),
        tls_first: true,
    };
    // What was revoked in it is the controller's to add: it gives the broker its own as soon as it sees this one.
    let pushed = match is_new {
        true => push(&target, &[trust.zone_jwt(zone.as_str(), now)?]).await,
        false => push(&target, &[]).await,
    };
    Ok(Added { is_new, done: folder.done(), pushed, url: plan.url(), leaf })
}

/// Everything for the broker inside a zone.
fn write_leaf(
    folder: &mut Folder,
    plan: &Plan,
    trust: &Trust,
    zone: &Zone,
    leaf: &LeafPlan,
    now: u64,
) -> Result<PathBuf, NatsError> {
    let Some(port) = plan.leaf else {
        return Err(NatsError::Usage(
            "the broker takes no leaf nodes: make it with `sally nats init --leaf-port PORT`",
        ));
    };
    if !plan.own_authority {
        return Err(NatsError::Usage(
            "the broker's certificate was given, so there is no authority here for one of the zone's broker: copy its \
             configuration from docs/nats.md and give it a certificate of yours",
        ));
    }
    let written = folder.path(&format!("zones/{zone}"));
    let home = leaf.dir.clone().unwrap_or_else(|| written.clone());
    let place = |name: &str| format!("zones/{zone}/{name}");
    let authority = own_certificate(folder, plan, &place("tls"), &leaf.hosts)?;
    folder.follow(&place("ca.pem"), authority.as_bytes())?;
    folder.creds(&place("leaf.creds"), trust, Role::Leaf { zone: zone.as_str() }, now)?;
    let (cert, key) = (home.join("tls/server.pem"), home.join("tls/server.key"));
    let text = ServerConfig {
        title: &[
            "The broker inside a zone, written by `sally nats zone add`. It connects out to the hub's; agents of the zone",
            "connect to it with the credentials that they have. Start it with",
            "    nats-server -c nats.conf",
        ],
        name: &format!("sally-{zone}"),
        listen: plan.listen,
        port: Some(leaf.port),
        ports_dir: None,
        store: None,
        tls: Some(TlsFiles { cert: &cert, key: &key }),
        websocket: None,
        leaf: None,
        remote: Some(Remote {
            url: &plan.address(&plan.hosts[0], port),
            creds: &home.join("leaf.creds"),
            account: &trust.zone_account(zone.as_str()).unwrap_or_default(),
            ca_file: Some(&home.join("ca.pem")),
        }),
        accounts: &leaf_accounts(trust, zone.as_str(), now)?,
    };
    folder.settle(&place("nats.conf"), text.render()?.as_bytes())?;
    Ok(written)
}
