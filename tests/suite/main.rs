//! The whole suite: one binary, one module per subject.
