//! Every key of the agent's configuration: what may be written, what counts otherwise, and what it means. From this list
//! come the checks, `sally-agent config show|schema`, and the commented file of the packages.

use sally_common::settings::{Key, Kind, Schema};
use toml::{Table, Value};

use super::{DEFAULT_HEARTBEAT_S, DEFAULT_SLOTS, MAX_SLOTS};
use crate::delivery::room::Storage;
use crate::kept::KeepBounds;
use crate::sandbox::Limits;

/// Where journal, run folders and keys are unless configured.
pub const STATE_DIR: &str = "/var/lib/sally-agent";
/// The key that signs, in the state folder.
pub const KEY: &str = "agent.seed";
/// The broker's credentials, in the state folder.
pub const CREDS: &str = "agent.creds";
/// The key that opens secrets, in the state folder.
pub const CURVE_KEY: &str = "curve.seed";
/// The trust list, in the state folder.
pub const TRUST: &str = "trust.json";
/// A token of enrolment for the first start, in the state folder.
pub const TOKEN_FILE: &str = "enroll.token";
/// What enrolment wrote, in the state folder.
pub const ENROLLED: &str = "enrolled.toml";
/// The operator's profiles, beside the configuration.
pub const PROFILES_DIR: &str = "profiles.d";
/// First token of every subject.
pub const PREFIX: &str = "sally";

/// A hundred years, which no result waits.
const MANY_DAYS: u64 = 36_525;

/// The keys.
#[must_use]
pub fn schema() -> Schema {
    let title = "Configuration of sally-agent. Every value below is the default; what begins with `# ` is said, not set. \
        Rather than changing this file, write what differs into a file of /etc/sally/agent.toml.d/, as 50-local.toml: \
        those count after this one, in the order of their names, and the environment after them. \
        `sally-agent config check` finds mistakes, `sally-agent config show --resolved` says what counts and where it \
        comes from."
        .to_owned();
    let mut keys = identity();
    keys.extend(work());
    keys.extend(storage());
    keys.extend(keep());
    keys.extend(limits());
    Schema { title, env_prefix: "SALLY_AGENT_", keys }
}

fn table(entries: &[(&str, &str)]) -> Table {
    entries.iter().map(|(name, value)| ((*name).to_owned(), Value::from(*value))).collect()
}

fn identity() -> Vec<Key> {
    let file = |name: &str| format!("{STATE_DIR}/{name}");
    vec![
        Key::new("name", Kind::Text, "The agent's name, for life.").required("web-1"),
        Key::new("zone", Kind::Text, "The zone it is in, for life.").required("dmz"),
        Key::new("url", Kind::Text, "The broker: nats://HOST:PORT or tls://HOST:PORT, several with commas.")
            .required("tls://broker.example.net:4222"),
        Key::new("prefix", Kind::Text, "First token of every subject.").default(PREFIX),
        Key::new("ca_file", Kind::Path, "Certificates to trust besides the system's.")
            .example("/etc/sally/ca.pem"),
        Key::new("tls_first", Kind::Boolean, "TLS before the broker's greeting.").default(false),
        Key::new(
            "state_dir",
            Kind::Path,
            "Journal, spool and run folders. The files below are in it unless said otherwise.",
        )
        .default(STATE_DIR),
        Key::new("creds", Kind::Path, "The broker's credentials; read again at each reconnect.")
            .default(file(CREDS)),
        Key::new("key", Kind::Path, "The seed that signs what the agent says; mode 0600.").default(file(KEY)),
        Key::new("curve_key", Kind::Path, "The seed that opens secrets; made at the first start.")
            .default(file(CURVE_KEY)),
        Key::new("trust", Kind::Path, "The trust list: whom the agent believes.")
            .default(file(TRUST))
            .reload(),
        Key::new(
            "token_file",
            Kind::Path,
            "A token of enrolment: used at a start without credentials, then removed.",
        )
        .default(file(TOKEN_FILE)),
    ]
}

fn work() -> Vec<Key> {
    vec![
        Key::new("slots", Kind::Integer(1, MAX_SLOTS.into()), "Runs at the same time.")
            .default(i64::from(DEFAULT_SLOTS)),
        Key::new(
            "profiles",
            Kind::Texts,
            "What the agent allows scripts: strict, net, host, admin, and names of its operator's profiles. Its launcher \
             must allow them too.",
        )
        .default(vec!["strict"])
        .reload(),
        Key::new(
            "profiles_dir",
            Kind::Path,
            "Profiles of the operator, NAME.toml each. A launcher that somebody else starts has its own.",
        )
        .default(PROFILES_DIR),
        Key::new(
            "users",
            Kind::Texts,
            "Accounts of this host that a task may ask to run as. The launcher must be root and allow them too.",
        )
        .example(vec!["oracle"])
        .reload(),
        Key::new("heartbeat_s", Kind::Integer(1, 3600), "Seconds between heartbeats.")
            .default(i64::from(DEFAULT_HEARTBEAT_S))
            .reload(),
        Key::new(
            "launcher_socket",
            Kind::Path,
            "The socket of a launcher that somebody else starts. Without it the agent starts one itself.",
        )
        .example("/run/sally-launcher/launcher.sock"),
        Key::new("labels", Kind::Map, "The agent's own labels, for selectors.")
            .example(table(&[("role", "web")]))
            .reload(),
        Key::new("script.env", Kind::Map, "Variables of every script, as proxies.")
            .example(table(&[("HTTPS_PROXY", "http://proxy.example.net:3128")]))
            .reload(),
    ]
}

fn storage() -> Vec<Key> {
    let usual = Storage::default();
    let bytes = |name: &str, least: u64, value: u64, help: &str| {
        let most = i64::MAX.unsigned_abs();
        Key::new(&format!("storage.{name}"), Kind::Integer(least, most), help)
            .default(i64::try_from(value).unwrap_or(i64::MAX))
            .reload()
    };
    let days = usual.spool_max_age_ms / (24 * 3600 * 1000);
    vec![
        bytes("max_bytes", 0, usual.max_bytes, "How large the state folder may become, bytes."),
        bytes(
            "min_free_bytes",
            0,
            usual.min_free_bytes,
            "What stays free on its file system for others, bytes.",
        ),
        bytes("log_reserve_bytes", 0, usual.log_reserve_bytes, "Reserved for the output of each run, bytes."),
        Key::new(
            "storage.spool_max_age_days",
            Kind::Integer(1, MANY_DAYS),
            "Days after which a result that no controller took is given up.",
        )
        .default(days)
        .reload(),
    ]
}

fn keep() -> Vec<Key> {
    let usual = KeepBounds::default();
    let bytes = |name: &str, most: u64, value: u64, help: &str| {
        Key::new(&format!("keep.{name}"), Kind::Integer(0, most), help)
            .default(i64::try_from(value).unwrap_or(i64::MAX))
            .reload()
    };
    vec![
        bytes(
            "max_bytes",
            i64::MAX.unsigned_abs(),
            usual.max_bytes,
            "Work folders that failed runs with --keep left, bytes together: the oldest go first; 0 keeps none.",
        ),
        bytes("run_bytes", Limits::CEILING.work_bytes, usual.run_bytes, "What is kept of one run, bytes."),
        Key::new(
            "keep.max_age_days",
            Kind::Integer(1, MANY_DAYS),
            "Days after which a kept folder is removed.",
        )
        .default(usual.max_age_ms / (24 * 3600 * 1000))
        .reload(),
    ]
}

fn limits() -> Vec<Key> {
    let most = Limits::CEILING.named();
    let meaning = |name: &str| match name {
        "stdout_bytes" => "Standard output that is kept of each run, bytes; the rest is counted.",
        "stderr_bytes" => "Standard error that is kept, bytes.",
        "work_bytes" => "Everything that a script may write into its folders, bytes.",
        "work_files" => "How many files it may make there.",
        "artifact_bytes" => "Files that it names to be kept, bytes together.",
        "artifact_files" => "How many files it may name to be kept.",
        "script_bytes" => "The program with its parameters, bytes.",
        "file_bytes" => "The largest single file, bytes.",
        "open_files" => "Open files of each process.",
        "processes" => "Processes of one run.",
        "memory_bytes" => "Memory of one run, bytes.",
        "cpu_ms" => "Processor time of one run, milliseconds.",
        _ => "",
    };
    let pairs = Limits::default().named().into_iter().zip(most);
    pairs
        // What a result may be is fixed.
        .filter(|((name, _), _)| *name != "result_bytes")
        .map(|((name, usual), (_, most))| {
            Key::new(&format!("limits.{name}"), Kind::Integer(1, most), meaning(name))
                .default(i64::try_from(usual).unwrap_or(i64::MAX))
                .reload()
        })
        .collect()
}
