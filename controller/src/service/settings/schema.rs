//! Every key of the service's configuration: what may be written, what counts otherwise, and what it means.

use sally_common::settings::{Key, Kind, Schema};

use super::Bounds;

/// Where ledger, blobs, output and keys are unless configured.
pub const DATA_DIR: &str = "/var/lib/sally";
/// The key that signs, in the data folder.
pub const KEY: &str = "controller.seed";
/// The broker's credentials, in the data folder.
pub const CREDS: &str = "controller.creds";
/// Who may submit, in the data folder.
pub const TRUST: &str = "trust.json";
/// Who is enrolled, in the data folder.
pub const AGENTS: &str = "agents.json";
/// What credentials of agents are issued with, in the data folder.
pub const ISSUER: &str = "issuer.json";
/// Credentials for giving changed accounts to the broker, in the data folder.
pub const ACCOUNTS_CREDS: &str = "accounts.creds";
/// First token of every subject.
pub const PREFIX: &str = "sally";

/// A hundred years.
const MANY_DAYS: u64 = 36_525;

/// The keys.
#[must_use]
pub fn schema() -> Schema {
    let title = "Configuration of the controller service, sally serve. Every value below is the default; what begins with \
        `# ` is said, not set. Rather than changing this file, write what differs into a file of /etc/sally/serve.toml.d/, \
        as 50-local.toml: those count after this one, in the order of their names, and the environment after them. \
        `sally serve config check` finds mistakes, `sally serve config show --resolved` says what counts and where it \
        comes from."
        .to_owned();
    let file = |name: &str| format!("{DATA_DIR}/{name}");
    let mut keys = vec![
        Key::new("url", Kind::Text, "The broker: nats://HOST:PORT or tls://HOST:PORT, several with commas.")
            .required("tls://broker.example.net:4222"),
        Key::new("prefix", Kind::Text, "First token of every subject.").default(PREFIX),
        Key::new("ca_file", Kind::Path, "Certificates to trust besides the system's.")
            .example("/etc/sally/ca.pem"),
        Key::new("tls_first", Kind::Boolean, "TLS before the broker's greeting.").default(false),
        Key::new(
            "data_dir",
            Kind::Path,
            "Ledger, blobs and output. The files below are in it unless said otherwise.",
        )
        .default(DATA_DIR),
        Key::new("creds", Kind::Path, "The broker's credentials; read again at each reconnect.")
            .default(file(CREDS)),
        Key::new("key", Kind::Path, "The seed that signs what the controller says; mode 0600.")
            .default(file(KEY)),
        Key::new("trust", Kind::Path, "The trust list: who may submit.").default(file(TRUST)).reload(),
        Key::new("agents", Kind::Path, "Who is enrolled: a JSON list of {\"zone\", \"agent\", \"key\"}.")
            .default(file(AGENTS))
            .reload(),
        Key::new(
            "issuer",
            Kind::Path,
            "What credentials of agents are issued and revoked with; without this file nobody is enrolled.",
        )
        .default(file(ISSUER))
        .reload(),
        Key::new("accounts_creds", Kind::Path, "Credentials for giving changed accounts to the broker.")
            .default(file(ACCOUNTS_CREDS)),
    ];
    let usual = Bounds::default();
    let bytes = |name: &str, value: u64, help: &str| {
        Key::new(&format!("bounds.{name}"), Kind::Integer(1024 * 1024, i64::MAX.unsigned_abs()), help)
            .default(i64::try_from(value).unwrap_or(i64::MAX))
    };
    let days = |name: &str, value: u32, help: &str| {
        Key::new(&format!("bounds.{name}"), Kind::Integer(1, MANY_DAYS), help).default(i64::from(value))
    };
    keys.extend([
        days("jobs_days", usual.jobs_days, "Days that jobs are kept after their end."),
        bytes(
            "ledger_bytes",
            usual.ledger_bytes,
            "The ledger, bytes; beyond it ended jobs go before their days are over.",
        ),
        days("logs_days", usual.logs_days, "Days that output is kept."),
        bytes("logs_bytes", usual.logs_bytes, "All output together, bytes."),
        days("blobs_days", usual.blobs_days, "Days that programs and input are kept."),
        bytes("blobs_bytes", usual.blobs_bytes, "All programs and input together, bytes."),
    ]);
    Schema { title, env_prefix: "SALLY_SERVE_", keys }
}
