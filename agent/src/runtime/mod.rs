//! rt
pub mod outcome;
pub mod outgoing;
