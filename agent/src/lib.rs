//! The agent: pulls tasks into an isolated zone, runs them in a sandbox, reports.
//!
//! Rooms: [`config`] is what was configured, checked; [`delivery`] remembers and decides, and starts no
//! process; [`script`] is what a script is given and how it answers.

pub mod config;
pub mod delivery;
pub mod script;
