//! Sally's vocabulary.

pub mod nats;
