//! Sally's vocabulary.

pub mod json;
pub mod variable;
