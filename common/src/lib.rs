//! Sally's vocabulary.

pub mod json;
pub mod params;
pub mod program;
pub mod variable;
