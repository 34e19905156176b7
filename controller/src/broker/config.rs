//! The configuration of a broker, as text: that of `sally up`, of `sally nats init`, and of a zone's own broker.

use std::net::IpAddr;
use std::path::Path;

use sally_common::nats::accounts::{Trust, TrustError};

/// The largest message, the server's own default: larger things travel in chunks.
const MAX_PAYLOAD_BYTES: u64 = 1024 * 1024;
/// What the server holds for a client that does not read before it drops the client.
const MAX_PENDING_BYTES: u64 = 64 * 1024 * 1024;

/// What the broker may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StoreLimits {
    /// All streams kept in files, in bytes.
    pub file_bytes: u64,
    /// All streams kept in memory, in bytes.
    pub memory_bytes: u64,
}

impl Default for StoreLimits {
    fn default() -> Self {
        // Above the sum of the bounds of all streams (see `super::streams`): the server reserves them.
        Self { file_bytes: 2 * 1024 * 1024 * 1024, memory_bytes: 64 * 1024 * 1024 }
    }
}

/// Certificate and key, both PEM.
#[derive(Debug, Clone, Copy)]
pub struct TlsFiles<'a> {
    /// The certificate, with those between it and its authority.
    pub cert: &'a Path,
    /// Its key.
    pub key: &'a Path,
}

/// The broker that a leaf connects out to.
#[derive(Debug, Clone, Copy)]
pub struct Remote<'a> {
    /// Where its leaf nodes are taken: `tls://HOST:PORT`.
    pub url: &'a str,
    /// The creds file of the leaf.
    pub creds: &'a Path,
    /// The account that is shared with it.
    pub account: &'a str,
    /// Certificates to trust besides the system's.
    pub ca_file: Option<&'a Path>,
}

/// What the configuration is made of.
pub struct ServerConfig<'a> {
    /// Comments at its top, without `#`.
    pub title: &'a [&'a str],
    /// The server's name.
    pub name: &'a str,
    /// The address it listens on; loopback unless agents elsewhere are to reach it.
    pub listen: IpAddr,
    /// The port; `None`: the system picks one.
    pub port: Option<u16>,
    /// Where the server writes which port it got.
    pub ports_dir: Option<&'a Path>,
    /// The store; `None`: no JetStream, as on a leaf.
    pub store: Option<(&'a Path, StoreLimits)>,
    /// TLS, before anything is said in the clear.
    pub tls: Option<TlsFiles<'a>>,
    /// The port for WebSocket; only with TLS.
    pub websocket: Option<u16>,
    /// The port for leaf nodes; only with TLS.
    pub leaf: Option<u16>,
    /// The broker that this one is a leaf of.
    pub remote: Option<Remote<'a>>,
    /// The part that [`accounts`] made, or the line that includes it.
    pub accounts: &'a str,
}

/// The configuration cannot be written.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// The server reads its configuration as UTF-8.
    #[error("the folder {path:?} is not written in UTF-8, which nats-server needs: give another --dir")]
    Path {
        /// The folder.
        path: String,
    },
    /// An account cannot be issued.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// Returns the part of a configuration that says who is let in. The server keeps accounts in `dir` and takes newer ones while
/// it runs; what is written here it takes at a start unless it has a newer one. `now` in seconds since 1970.
///
/// # Errors
/// [`ConfigError`].
pub fn accounts(trust: &Trust, dir: &Path, now: u64) -> Result<String, ConfigError> {
    let jwts = trust.account_jwts(now)?;
    let resolver = format!("{{\n  type: full\n  dir: {}\n  allow_delete: false\n}}", quote(dir)?);
    Ok(accounts_of(trust, &jwts, &resolver, now)?)
}

/// The same for a zone's own broker: it knows the zone and nothing else, and is written anew when that changes.
///
/// # Errors
/// When the zone has no account.
pub fn leaf_accounts(trust: &Trust, zone: &str, now: u64) -> Result<String, ConfigError> {
    Ok(accounts_of(trust, &trust.leaf_jwts(zone, now)?, "MEMORY", now)?)
}

fn accounts_of(
    trust: &Trust,
    jwts: &[(String, String)],
    resolver: &str,
    now: u64,
) -> Result<String, TrustError> {
    let preload: String = jwts.iter().map(|(key, jwt)| format!("  {key}: {jwt}\n")).collect();
    Ok(format!(
        "operator: {operator}\nsystem_account: {system}\nresolver: {resolver}\nresolver_preload: {{\n{preload}}}\n",
        operator = trust.operator_jwt(now)?,
        system = trust.system_account(),
    ))
}

impl ServerConfig<'_> {
    /// Returns the text.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn render(&self) -> Result<String, ConfigError> {
        let mut text = String::new();
        let mut line = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        self.title.iter().for_each(|words| line(format!("# {words}")));
        line(format!("server_name: \"{}\"", self.name));
        line("# One address, and no monitoring port.".to_owned());
        line(format!("host: \"{}\"", self.listen));
        line(format!("port: {}", self.port.map_or_else(|| "-1".to_owned(), |port| port.to_string())));
        if let Some(dir) = self.ports_dir {
            line(format!("ports_file_dir: {}", quote(dir)?));
        }
        line(format!("max_payload: {MAX_PAYLOAD_BYTES}"));
        line(format!("max_pending: {MAX_PENDING_BYTES}"));
        line("ping_interval: \"10s\"\nping_max: 2\nwrite_deadline: \"10s\"".to_owned());
        if let Some((dir, limits)) = self.store {
            line(format!("jetstream {{\n  store_dir: {}", quote(dir)?));
            line(format!("  max_memory_store: {}", limits.memory_bytes));
            line(format!("  max_file_store: {}\n}}", limits.file_bytes));
        }
        if let Some(tls) = self.tls {
            let files = files(tls)?;
            line(format!(
                "# The handshake comes before anything is said.\ntls {{\n{files}  handshake_first: true\n}}"
            ));
            if let Some(port) = self.websocket {
                line(format!(
                    "websocket {{\n  host: \"{}\"\n  port: {port}\n  tls {{\n{files}  }}\n}}",
                    self.listen
                ));
            }
            if let Some(port) = self.leaf {
                line(format!(
                    "leafnodes {{\n  host: \"{}\"\n  port: {port}\n  tls {{\n{files}  }}\n}}",
                    self.listen
                ));
            }
        }
        if let Some(remote) = self.remote {
            let ca = match remote.ca_file {
                Some(file) => format!("      tls {{ ca_file: {} }}\n", quote(file)?),
                None => String::new(),
            };
            line(format!(
                "leafnodes {{\n  remotes: [\n    {{\n      url: \"{}\"\n      account: {}\n      credentials: {}\n{ca}    }}\n  ]\n}}",
                remote.url,
                remote.account,
                quote(remote.creds)?,
            ));
        }
        text.push_str(self.accounts);
        Ok(text)
    }
}

fn files(tls: TlsFiles<'_>) -> Result<String, ConfigError> {
    Ok(format!("  cert_file: {}\n  key_file: {}\n", quote(tls.cert)?, quote(tls.key)?))
}

/// A path as a quoted string of the server's configuration language.
///
/// # Errors
/// When it is not written in UTF-8.
pub fn quote(path: &Path) -> Result<String, ConfigError> {
    let text =
        path.to_str().ok_or_else(|| ConfigError::Path { path: path.to_string_lossy().into_owned() })?;
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    Ok(quoted)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    fn config<'a>(port: Option<u16>, store: &'a Path) -> ServerConfig<'a> {
        ServerConfig {
            title: &["Of a test."],
            name: "test",
            listen: IpAddr::from([127, 0, 0, 1]),
            port,
            ports_dir: None,
            store: Some((store, StoreLimits::default())),
            tls: None,
            websocket: Some(443),
            leaf: Some(7422),
            remote: None,
            accounts: "",
        }
    }

    fn render(port: Option<u16>, store: &Path) -> Result<String, ConfigError> {
        config(port, store).render()
    }

    #[test]
    fn nothing_is_offered_without_tls_but_the_one_port() {
        let text = render(None, Path::new("/x")).unwrap();
        assert!(!text.contains("websocket") && !text.contains("leafnodes"), "{text}");
        let tls = TlsFiles { cert: Path::new("/c"), key: Path::new("/k") };
        let text = ServerConfig { tls: Some(tls), ..config(None, Path::new("/x")) }.render().unwrap();
        for part in ["handshake_first: true", "websocket {", "port: 443", "leafnodes {", "port: 7422"] {
            assert!(text.contains(part), "{part} in {text}");
        }
    }

    #[test]
    fn it_is_loopback_and_the_port_is_picked_or_kept() {
        let text = render(None, Path::new("/x")).unwrap();
        assert!(text.contains("host: \"127.0.0.1\"\nport: -1\n"), "{text}");
        assert!(!text.contains("http"), "{text}");
        assert!(render(Some(4711), Path::new("/x")).unwrap().contains("\nport: 4711\n"));
    }

    #[test]
    fn no_folder_name_can_add_a_line() {
        let text = render(None, Path::new("/a \"b\"\\c\nhttp: 1")).unwrap();
        assert!(text.contains(r#"store_dir: "/a \"b\"\\c\nhttp: 1""#), "{text}");
        let bad = render(None, Path::new(OsStr::from_bytes(b"/a\xff")));
        assert!(matches!(bad, Err(ConfigError::Path { .. })));
    }
}
