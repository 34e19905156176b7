//! The launcher: somebody else's, or one that this agent starts.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::shared::Shared;
use crate::config::Config;
use crate::sandbox::{self, Definitions, Launcher, Profile, SandboxError};

/// How long the start waits for a launcher.
const LAUNCHER_LIMIT: Duration = Duration::from_secs(10);

/// Connects to the launcher, starting one if none was configured and none serves. Says whether it is ours.
pub(super) async fn reach(config: &Config) -> Result<(Launcher, bool), SandboxError> {
    let socket = &config.launcher_socket;
    if config.launcher_is_external {
        return Ok((sandbox::connect_within(socket, LAUNCHER_LIMIT).await?, false));
    }
    if let Ok(launcher) = Launcher::connect(socket).await {
        return Ok((launcher, true));
    }
    // Built-in ones alone count here: an operator's profile is allowed by its file, but for one that starts from admin.
    let definitions = Definitions::read(&config.profiles_dir);
    let base = |name| definitions.get(name).ok().map(|d| d.base).filter(|base| *base == Profile::Admin);
    let widths = config.profiles.iter().filter_map(|name| name.as_str().parse().ok().or_else(|| base(name)));
    let widest = widths.max().unwrap_or(Profile::Strict);
    let (slots, state) = (config.slots.to_string(), config.state_dir.join("launcher"));
    let (socket_text, state_text) = (socket.to_string_lossy(), state.to_string_lossy());
    let profiles_dir = config.profiles_dir.to_string_lossy();
    let mut args = vec!["--socket", &*socket_text, "--state", &*state_text, "--slots", &slots];
    args.extend(["--max-profile", widest.name(), "--profiles-dir", &*profiles_dir]);
    args.extend(config.users.iter().flat_map(|user| ["--allow-user", user]));
    // It outlives this process on purpose: runs do.
    drop(sandbox::spawn_launcher(None, &args)?);
    Ok((sandbox::connect_within(socket, LAUNCHER_LIMIT).await?, true))
}

/// Ends a launcher that this agent started. Keepers with a run finish it by themselves.
pub(super) async fn stop(shared: &Shared) {
    if let Ok(info) = shared.launcher.refresh().await {
        let _ =
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(info.pid), nix::sys::signal::Signal::SIGTERM);
    }
}
