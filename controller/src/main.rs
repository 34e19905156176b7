//! `sally`.
fn main() {}
