//! The configuration of the broker of `sally up`, as text.

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

/// What the configuration is made of.
pub struct ServerConfig<'a> {
    /// The accounts and who may do what.
    pub trust: &'a Trust,
    /// The address it listens on; loopback unless agents elsewhere are to reach it.
    pub listen: IpAddr,
    /// The port; `None`: the system picks one.
    pub port: Option<u16>,
    /// Where the server writes which port it got.
    pub ports_dir: &'a Path,
    /// The store.
    pub store_dir: &'a Path,
    /// What it may take.
    pub limits: StoreLimits,
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

impl ServerConfig<'_> {
    /// Returns the text. `now` in seconds since 1970.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn render(&self, now: u64) -> Result<String, ConfigError> {
        let port = self.port.map_or_else(|| "-1".to_owned(), |port| port.to_string());
        let listen = self.listen;
        let mut accounts = String::new();
        for (key, jwt) in self.trust.account_jwts(now)? {
            accounts.push_str(&format!("  {key}: {jwt}\n"));
        }
        Ok(format!(
            "# Written by `sally up` at every start; changes made here are lost.\n\
             server_name: \"sally-up\"\n\
             # One address, and no monitoring port.\n\
             host: \"{listen}\"\n\
             port: {port}\n\
             ports_file_dir: {ports_dir}\n\
             max_payload: {MAX_PAYLOAD_BYTES}\n\
             max_pending: {MAX_PENDING_BYTES}\n\
             ping_interval: \"10s\"\n\
             ping_max: 2\n\
             write_deadline: \"10s\"\n\
             jetstream {{\n\
             \x20 store_dir: {store_dir}\n\
             \x20 max_memory_store: {memory}\n\
             \x20 max_file_store: {file}\n\
             }}\n\
             operator: {operator}\n\
             system_account: {system}\n\
             resolver: MEMORY\n\
             resolver_preload: {{\n{accounts}}}\n",
            ports_dir = quote(self.ports_dir)?,
            store_dir = quote(self.store_dir)?,
            memory = self.limits.memory_bytes,
            file = self.limits.file_bytes,
            operator = self.trust.operator_jwt(now)?,
            system = self.trust.system_account(),
        ))
    }
}

/// A path as a quoted string of the server's configuration language.
fn quote(path: &Path) -> Result<String, ConfigError> {
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

    fn render(port: Option<u16>, store: &Path) -> Result<String, ConfigError> {
        let trust = Trust::new("sally").unwrap();
        let limits = StoreLimits::default();
        let listen = IpAddr::from([127, 0, 0, 1]);
        ServerConfig { trust: &trust, listen, port, ports_dir: Path::new("/run"), store_dir: store, limits }
            .render(1)
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
