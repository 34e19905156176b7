//! The agent: pulls tasks into an isolated zone, runs them in a sandbox, reports.
//!
//! Rooms: [`delivery`] remembers and decides, and starts no process.

pub mod delivery;
