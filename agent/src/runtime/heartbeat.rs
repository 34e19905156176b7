//! What an agent says about itself and its host.
#![forbid(unsafe_code)]

use sally_common::wire::report::{HostFacts, SandboxAbility};

use super::shared::Shared;
use crate::sandbox::Mode;

/// Facts of the host that a heartbeat carries. What cannot be read is empty, never guessed.
pub fn host_facts(shared: &Shared) -> HostFacts {
    let uname = nix::sys::utsname::uname().ok();
    let text =
        |value: Option<&std::ffi::OsStr>| value.map(|v| v.to_string_lossy().into_owned()).unwrap_or_default();
    HostFacts {
        hostname: text(uname.as_ref().map(|u| u.nodename())),
        os: pretty_name(&read("/etc/os-release")),
        kernel: text(uname.as_ref().map(|u| u.release())),
        arch: text(uname.as_ref().map(|u| u.machine())),
        load1: read("/proc/loadavg").split(' ').next().and_then(|v| v.parse().ok()).unwrap_or(0.0),
        disk_free_bytes: disk_free(&shared.config.state_dir),
    }
}

/// The kernel's id of this boot.
pub fn boot_id() -> String {
    let kernel = || read("/proc/sys/kernel/random/boot_id").trim().to_owned();
    sally_common::fail::stand_in("boot_id").unwrap_or_else(kernel)
}

/// What the sandbox can do here.
pub fn ability(shared: &Shared) -> SandboxAbility {
    let info = shared.launcher.info();
    let mode = match info.mode {
        Mode::Root => "root",
        Mode::User => "user",
    };
    let config = shared.policy();
    // What both allow, agent and launcher.
    let profiles = config.profiles.iter().filter(|name| info.allowed(name).is_ok());
    let users = config.users.iter().filter(|user| info.users.contains(user));
    SandboxAbility::new(mode.to_owned(), profiles.cloned().collect(), users.cloned().collect())
}

/// Free bytes for an ordinary user where this path is.
pub fn disk_free(path: &std::path::Path) -> u64 {
    nix::sys::statvfs::statvfs(path).map_or(0, |s| s.blocks_available() * s.fragment_size())
}

fn read(path: &str) -> String {
    std::fs::read_to_string(path).unwrap_or_default()
}

fn pretty_name(os_release: &str) -> String {
    let line = os_release.lines().find_map(|l| l.strip_prefix("PRETTY_NAME="));
    line.unwrap_or_default().trim_matches('"').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_the_system_is_read_as_it_is_written() {
        assert_eq!(pretty_name("ID=debian\nPRETTY_NAME=\"Debian 12\"\n"), "Debian 12");
        assert_eq!(pretty_name("ID=x\n"), "");
    }
}
