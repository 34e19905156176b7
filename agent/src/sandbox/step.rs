//! The error of one named step of building a sandbox.
#![forbid(unsafe_code)]

use nix::errno::Errno;
use serde::{Deserialize, Serialize};
use std::fmt;

/// A step that failed: its name, the kernel's error number (0 if none), and words for people.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{step}: {message}")]
pub struct StepError {
    /// The name of the step, as in an exit record's `setup_failed`.
    pub step: String,
    /// The kernel's error number, 0 if the step failed for another reason.
    pub errno: i32,
    /// What was tried and what came of it.
    pub message: String,
}

impl StepError {
    pub(super) fn new(step: &str, errno: Errno, what: impl fmt::Display) -> Self {
        Self { step: step.into(), errno: errno as i32, message: format!("{what}: {}", errno.desc()) }
    }

    pub(super) fn other(step: &str, message: impl Into<String>) -> Self {
        Self { step: step.into(), errno: 0, message: message.into() }
    }
}

/// Gives an error the name of its step and what was tried.
pub(super) trait Step<T> {
    fn step(self, step: &str, what: impl fmt::Display) -> Result<T, StepError>;
}

impl<T> Step<T> for nix::Result<T> {
    fn step(self, step: &str, what: impl fmt::Display) -> Result<T, StepError> {
        self.map_err(|errno| StepError::new(step, errno, what))
    }
}

impl<T> Step<T> for std::io::Result<T> {
    fn step(self, step: &str, what: impl fmt::Display) -> Result<T, StepError> {
        self.map_err(|error| {
            let errno = Errno::from_raw(error.raw_os_error().unwrap_or_default());
            StepError { step: step.into(), errno: errno as i32, message: format!("{what}: {error}") }
        })
    }
}
