//! `sally-agent`.
fn main() {}
