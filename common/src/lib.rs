//! Sally's vocabulary.

pub mod json;
