//! The agent.

pub mod sandbox;
