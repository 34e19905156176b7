//! The agent.

pub mod script;
