//! What a configuration needs: its files, state folder, broker and launcher.
#![forbid(unsafe_code)]

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::unistd::{AccessFlags, access, geteuid};
use sally_common::clock::{now_ms, rfc3339};
use sally_common::name::ProfileName;
use sally_common::nats::connect::{ConnectError, ConnectSettings, connect};
use sally_common::nats::creds::Creds;

use super::Finding;
use crate::config::{self, Config, Files};
use crate::delivery::room::Storage;
use crate::sandbox::{Hold, Launcher, Mode, PROFILES_DIR, connect_within};

/// How long a broker may take to answer, name lookup and handshake included.
const BROKER_LIMIT: Duration = Duration::from_secs(8);
/// How long a launcher may take.
const LAUNCHER_LIMIT: Duration = Duration::from_secs(2);
/// A trust list that ends sooner is worth a word.
const TRUST_SOON_MS: i64 = 14 * 24 * 3600 * 1000;
/// A clock that is behind a file by more than this is wrong.
const CLOCK_SLACK_S: i64 = 60;

/// The profiles that must work: those of the configuration, else the usual one; and the folder of the operator's.
pub fn wanted_profiles(config: Option<&Path>) -> (Vec<ProfileName>, PathBuf) {
    let policy = config.and_then(|path| config::script_policy(path).ok());
    policy.map_or_else(
        || (vec![ProfileName::default()], PathBuf::from(PROFILES_DIR)),
        |policy| (policy.profiles, policy.profiles_dir),
    )
}

/// Every line about a configuration.
pub async fn findings(path: &Path) -> Vec<Finding> {
    let files = match config::files(path) {
        Ok(files) => files,
        Err(error) => {
            let next = "correct it; `sally-agent config check FILE` checks it alone, docs/operations.md has every key";
            return vec![Finding::fail("configuration", error.to_string(), next)];
        }
    };
    let mut all = vec![
        private("key", &files.key, "the agent's signing key: copy it from where the agent was enrolled"),
        credentials(&files.creds),
    ];
    if files.curve_key.exists() {
        all.push(private("secrets' key", &files.curve_key, "the key that opens secrets"));
    }
    all.push(clock(path, &files));
    match config::load(path) {
        Err(error) => {
            let next = "correct it; broker, trust list and launcher can be looked at when it can be read";
            all.push(Finding::fail("configuration", error.to_string(), next));
        }
        Ok(config) => {
            all.push(Finding::pass(
                "configuration",
                format!("{} is agent {}/{}", path.display(), config.zone, config.name),
            ));
            all.push(trust(&config));
            all.extend(state_folder(&config.state_dir, &config.storage));
            all.push(broker(&config).await);
            all.push(launcher(&config).await);
        }
    }
    all
}

/// A file that is there, readable and nobody else's to read.
fn private(check: &str, path: &Path, what: &str) -> Finding {
    let shown = path.display();
    if let Err(error) = std::fs::File::open(path) {
        let next = format!("{what}; readable by the account of the agent alone (chmod 600, chown)");
        return Finding::fail(check, format!("cannot read {shown}: {error}"), next);
    }
    match std::fs::metadata(path) {
        Ok(file) if file.mode() & 0o077 != 0 => Finding::fail(
            check,
            format!("{shown} has mode {:04o}: others may use it", file.mode() & 0o7777),
            format!("chmod 600 {shown}; if others could have read it, have it made anew"),
        ),
        _ => Finding::pass(check, format!("{shown}, readable by its owner alone")),
    }
}

fn credentials(path: &Path) -> Finding {
    let found = private("credentials", path, "broker credentials: have them issued again");
    match Creds::read(path) {
        Err(error) if found.next.is_none() => {
            Finding::fail("credentials", error.to_string(), "have them issued again")
        }
        _ => found,
    }
}

/// A clock that is behind what was written before now is wrong. Nothing else is known without asking somebody.
fn clock(config: &Path, files: &Files) -> Finding {
    let now = now_ms() / 1000;
    let newest = [config, &files.key, &files.creds, &files.trust]
        .into_iter()
        .filter_map(|path| std::fs::metadata(path).ok())
        .map(|file| file.mtime())
        .max()
        .unwrap_or(0);
    if now + CLOCK_SLACK_S < newest {
        let found = format!("{} is before a file of the configuration was written", rfc3339(now * 1000));
        return Finding::fail("clock", found, "set the clock, and keep it right (systemd-timesyncd, chrony)");
    }
    Finding::pass(
        "clock",
        format!("{}, not before the configuration; compare it with another host's", rfc3339(now * 1000)),
    )
}

fn trust(config: &Config) -> Finding {
    let (check, list, now) = ("trust list", &config.trust, now_ms());
    let found = format!(
        "version {}, {} controllers, {} callers, {} must sign, until {}",
        list.version,
        list.controllers.len(),
        list.callers.len(),
        list.threshold.max(1),
        rfc3339(list.expires_ms)
    );
    let next = "put a new list in its place and restart the agent";
    if now >= list.expires_ms {
        return Finding::fail(check, format!("{found}: it has expired, the agent believes nobody"), next);
    }
    if list.controllers.is_empty() || list.callers.len() < list.threshold.max(1) as usize {
        return Finding::fail(check, format!("{found}: no order can be signed as it demands"), next);
    }
    if now + TRUST_SOON_MS >= list.expires_ms {
        return Finding::warn(check, format!("{found}: it expires soon"), next);
    }
    Finding::pass(check, found)
}

fn state_folder(dir: &Path, storage: &Storage) -> Vec<Finding> {
    let check = "state folder";
    // The agent makes it, if it may.
    let Some(there) = dir.ancestors().find(|folder| folder.exists()) else { return Vec::new() };
    let shown = there.display();
    let mut all = Vec::new();
    if !there.is_dir() || access(there, AccessFlags::W_OK | AccessFlags::X_OK).is_err() {
        let next = format!(
            "mkdir -p {0}; chown it to the account of the agent (this is uid {1})",
            dir.display(),
            geteuid()
        );
        all.push(Finding::fail(check, format!("{shown} cannot be written by this account"), next));
    } else {
        all.push(Finding::pass(check, format!("{}, writable", dir.display())));
    }
    match nix::sys::statvfs::statvfs(there) {
        Err(errno) => all.push(Finding::fail("disk", format!("{shown}: {errno}"), "look at the file system")),
        Ok(disk) => {
            let free = disk.blocks_available().saturating_mul(disk.fragment_size());
            let needed = storage.min_free_bytes.saturating_add(storage.reserve());
            let found = format!("{free} bytes free at {shown}; one run needs {needed}");
            all.push(if free < needed {
                let next = "make room, or set min_free_bytes and log_reserve_bytes in [storage]; until then nothing new is taken";
                Finding::fail("disk", found, next)
            } else if free < storage.max_bytes {
                let next = format!("the state folder may grow to max_bytes = {} of [storage]: make room or set less", storage.max_bytes);
                Finding::warn("disk", found, next)
            } else {
                Finding::pass("disk", found)
            });
        }
    }
    all
}

async fn broker(config: &Config) -> Finding {
    let check = "broker";
    let mut settings = ConnectSettings::new(&config.url, &config.creds, format!("{} doctor", config.name));
    settings.ca_file.clone_from(&config.ca_file);
    settings.tls_first = config.tls_first;
    let url = &config.url;
    let client = match tokio::time::timeout(BROKER_LIMIT, connect(&settings, |_| {})).await {
        Err(_) => {
            let found = format!("no answer from {url} within {} s", BROKER_LIMIT.as_secs());
            return Finding::fail(
                check,
                found,
                "look for a firewall between; only outgoing TCP to it is needed",
            );
        }
        Ok(Err(error)) => {
            let next = match &error {
                ConnectError::Unreachable { .. } => {
                    "correct url, start the broker, or let outgoing TCP to it pass"
                }
                ConnectError::Tls { .. } => {
                    "name the authority of its certificate as ca_file; with tls_first both sides must want it"
                }
                ConnectError::Unauthorized { .. } | ConnectError::Creds(_) => {
                    "have the credentials issued again"
                }
                ConnectError::Address { .. } => "correct url",
                ConnectError::ServerTooOld { .. } => "install a newer broker",
            };
            return Finding::fail(check, error.to_string(), next);
        }
        Ok(Ok(client)) => client,
    };
    let info = client.server_info();
    let is_secure = url.starts_with("tls://")
        || url.starts_with("wss://")
        || config.ca_file.is_some()
        || config.tls_first
        || info.tls_required;
    let found = format!(
        "{url} answers: nats-server {}, {}",
        info.version,
        if is_secure { "by TLS" } else { "without TLS" }
    );
    let is_near = ["127.", "localhost", "[::1]"].iter().any(|host| url.contains(&format!("//{host}")));
    if is_secure || is_near {
        return Finding::pass(check, found);
    }
    Finding::warn(check, found, "whoever listens on the way reads scripts and output: use tls:// and ca_file")
}

async fn launcher(config: &Config) -> Finding {
    let (check, socket) = ("launcher", config.launcher_socket.display());
    let reached = if config.launcher_is_external {
        connect_within(&config.launcher_socket, LAUNCHER_LIMIT).await
    } else {
        Launcher::connect(&config.launcher_socket).await
    };
    let launcher = match reached {
        Ok(launcher) => launcher,
        Err(_) if !config.launcher_is_external && !config.launcher_socket.exists() => {
            return Finding::pass(check, "none runs; the agent starts one of its own");
        }
        Err(error) => {
            let next =
                "start it (sally-agent launcher), and let it know the account of the agent by --socket-owner";
            return Finding::fail(check, format!("{socket}: {error}"), next);
        }
    };
    let info = launcher.info();
    let mode = if info.mode == Mode::Root { "root" } else { "user" };
    let names = |wanted: Hold| -> Vec<_> {
        info.layers.iter().filter(|(_, hold)| **hold == wanted).map(|(layer, _)| layer.name()).collect()
    };
    let found = format!(
        "{socket}: version {}, mode {mode}, {} slots, {} in use, up to {}; an idle slot has {}",
        info.version,
        info.slots,
        info.busy.len(),
        info.max_profile,
        names(Hold::Enforced).join(" ")
    );
    if let Some(trouble) = &info.trouble {
        return Finding::fail(
            check,
            format!("{found}; it could make no slot: {}", trouble.message),
            "see the lines about profiles",
        );
    }
    let refused: Vec<String> = config.profiles.iter().filter_map(|name| info.allowed(name).err()).collect();
    if !refused.is_empty() {
        let next =
            "start it with --max-profile or --profiles-dir as they need it, or take them out of profiles";
        return Finding::fail(check, format!("{found}; it refuses: {}", refused.join("; ")), next);
    }
    let no_account: Vec<_> = config.users.iter().filter(|user| !info.users.contains(user)).cloned().collect();
    if !no_account.is_empty() {
        let next =
            "start it as root with --allow-user for each, or take them out of users; its log says more";
        return Finding::fail(check, format!("{found}; it runs nothing as {}", no_account.join(", ")), next);
    }
    if info.version != env!("CARGO_PKG_VERSION") {
        let next = format!(
            "this program is version {}: restart the launcher when nothing runs",
            env!("CARGO_PKG_VERSION")
        );
        return Finding::warn(check, found, next);
    }
    Finding::pass(check, found)
}
