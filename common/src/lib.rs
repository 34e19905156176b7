//! Sally's vocabulary.
