//! What a launcher is told on its command line.
#![forbid(unsafe_code)]

use crate::sandbox::layer::Layer;
use crate::sandbox::network::Destination;
use crate::sandbox::profile::Profile;
use std::fs;
use std::path::PathBuf;

/// Options of `sally-agent launcher`.
#[derive(Clone, Debug, clap::Args)]
pub struct LauncherArgs {
    /// Unix socket (SOCK_SEQPACKET) on which the agent asks for slots
    #[arg(long, value_name = "PATH")]
    pub socket: PathBuf,
    /// Folder for lock files and, for an ordinary user, the mount point of the box
    #[arg(long, value_name = "DIR")]
    pub state: PathBuf,
    /// Number of attempts at one time
    #[arg(long, default_value_t = 4, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub slots: u16,
    /// Where profile host mounts the box: an empty folder that every uid can reach. Default: /run/sally/box
    /// as root, STATE/box else
    #[arg(long = "box", value_name = "PATH")]
    pub host_box: Option<PathBuf>,
    /// Kernel uid and gid of slot 0 when started as root; slot N has this plus N
    #[arg(long, default_value_t = UID_BASE, value_name = "UID")]
    pub uid_base: u32,
    /// Account that may use the socket, besides root and the launcher's own: a uid, or a name in /etc/passwd
    #[arg(long, value_name = "ACCOUNT", value_parser = account)]
    pub socket_owner: Option<u32>,
    /// Widest built-in profile that a plan may ask for: strict, net, host, or admin (root on the host; only where this
    /// launcher is root)
    #[arg(long, default_value = "host", value_name = "PROFILE")]
    pub max_profile: Profile,
    /// Folder with profiles of this host's operator, NAME.toml each: all of them may be asked for. It and its files must
    /// be root's or this account's, and nobody else's to write
    #[arg(long, value_name = "DIR")]
    pub profiles_dir: Option<PathBuf>,
    /// Account of this host that a plan may ask to run as; repeatable; only where this launcher is root
    #[arg(long = "allow-user", value_name = "NAME")]
    pub users: Vec<String>,
    /// With --max-profile strict: destination that plans may list all the same; repeatable
    #[arg(long = "allow", value_name = "HOST:PORT")]
    pub allow: Vec<Destination>,
    /// Longest timeout that a plan may ask for, in seconds
    #[arg(long, default_value_t = 30 * 24 * 3600, value_name = "SECONDS")]
    pub max_timeout: u64,
    /// Program that is sally-task inside. Default: this one
    #[arg(long, value_name = "PATH")]
    pub task_program: Option<PathBuf>,
    /// On SIGTERM kill running attempts instead of leaving them to their keepers
    #[arg(long)]
    pub stop_kills: bool,
    /// End, as on SIGTERM, when the process that started this one ends (the thread that did, to be exact)
    #[arg(long)]
    pub with_parent: bool,
    /// Kill what keepers of a dead launcher still run, and end: for whoever started that launcher with --stop-kills
    #[arg(long, hide = true)]
    pub end_strays: bool,
    /// Let plans have a terminal: for `sandbox shell`, on this host alone
    #[arg(long, hide = true)]
    pub terminal: bool,
    /// For tests: leave one layer out, to see the report change
    #[arg(long = "break", value_name = "LAYER", hide = true)]
    pub broken: Vec<Layer>,
}

/// The uid of an account. Names are looked up in the file: what else knows accounts would be asked through libraries
/// that a static program does not have.
fn account(text: &str) -> Result<u32, String> {
    if let Ok(uid) = text.parse() {
        return Ok(uid);
    }
    let file = fs::read_to_string("/etc/passwd").map_err(|e| format!("cannot read /etc/passwd: {e}"))?;
    let found = file.lines().find_map(|line| uid_of(line, text));
    found.ok_or_else(|| "no such account in /etc/passwd; name one that is there, or a uid".to_owned())
}

/// The uid in a line of `/etc/passwd`, if it is of this account.
fn uid_of(line: &str, name: &str) -> Option<u32> {
    let mut fields = line.split(':');
    let is_it = fields.next() == Some(name);
    fields.nth(1).filter(|_| is_it)?.parse().ok()
}

/// Kernel uid of slot 0 under a root launcher that is told no other.
pub const UID_BASE: u32 = 200_000;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accounts_are_numbers_or_names_of_the_file() {
        assert_eq!(account("4711"), Ok(4711));
        assert_eq!(account("root"), Ok(0));
        assert!(account("no-such-account-here").is_err());
        assert_eq!(uid_of("web:x:33:34:Web:/srv:/bin/false", "web"), Some(33));
        assert_eq!(uid_of("webber:x:34:34:Web:/srv:/bin/false", "web"), None);
        assert_eq!(uid_of("web", "web"), None);
    }
}
