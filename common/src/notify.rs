//! What a service tells the service manager that started it: systemd's notifications. Started by anybody else, nothing.
//!
//! A message that cannot be sent is no reason to do anything else: who waits for it has a time limit of its own.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// Serves: others may start. With what it does, in a few words.
pub fn ready(status: &str) {
    send(&[NotifyState::Ready, NotifyState::Status(status)]);
}

/// What it does now, for `systemctl status`.
pub fn status(words: &str) {
    send(&[NotifyState::Status(words)]);
}

/// Reads its configuration again; [`ready`] follows.
pub fn reloading() {
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        send(&[NotifyState::Reloading, now]);
    }
}

/// Was told to end, and does.
pub fn stopping() {
    send(&[NotifyState::Stopping, NotifyState::Status("stopping")]);
}

fn send(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        tracing::debug!(%error, "the service manager cannot be told");
    }
}

/// The variables by which a service manager is found. A child that is no service of its own must not have them.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Tells the service manager's watchdog that the loop goes round. It is fed from the loop alone, so that a loop that
/// hangs starves it.
#[derive(Debug)]
pub struct Watchdog {
    every: Option<Duration>,
    fed: Option<Instant>,
}

impl Watchdog {
    /// The one that this process was given, if any.
    #[must_use]
    pub fn of_environment() -> Self {
        // Twice as often as needed, so that a late turn is no death.
        Self { every: sd_notify::watchdog_enabled().map(|limit| limit / 2), fed: None }
    }

    /// How long the loop may sleep at most.
    #[must_use]
    pub fn every(&self) -> Option<Duration> {
        self.every
    }

    /// Called in every turn of the loop.
    pub fn feed(&mut self) {
        let Some(every) = self.every else { return };
        if self.fed.is_none_or(|fed| fed.elapsed() >= every / 2) {
            self.fed = Some(Instant::now());
            send(&[NotifyState::Watchdog]);
        }
    }
}
