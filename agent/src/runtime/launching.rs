//! The launcher: somebody else's, or one that this agent starts.
#![forbid(unsafe_code)]

use std::time::Duration;

use super::shared::Shared;
use crate::config::Config;
use crate::sandbox::{self, Launcher, SandboxError};

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
    let widest = config.profiles.iter().max().map_or("strict", |p| p.word());
    let (slots, state) = (config.slots.to_string(), config.state_dir.join("launcher"));
    let (socket_text, state_text) = (socket.to_string_lossy(), state.to_string_lossy());
    let args =
        ["--socket", &*socket_text, "--state", &*state_text, "--slots", &slots, "--max-profile", widest];
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
