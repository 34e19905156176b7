//! The controller.
//!
//! In reading order: [`context`] is which controller a caller speaks to and as whom, [`client`] is the
//! caller's side of its API, [`cli`] is everything that people type and read.

pub mod cli;
pub mod client;
pub mod context;
