//! The whole suite: one binary, one module per subject. `harness` starts the real programs.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::expect_used,
    reason = "a test that cannot go on should stop"
)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what a test skips or measures is said aloud")]
#![allow(unreachable_pub, reason = "one binary: every item is the suite's own")]

mod agent_side;
mod artifacts;
mod bad_input;
mod basics;
mod by_hand;
mod delivery;
mod demo;
mod doctor;
mod effects;
mod enrolment;
mod facts;
mod faults;
mod forgery;
mod full_disk;
mod harness;
mod isolation;
mod kills;
mod narrow;
mod netns;
mod output;
mod outside;
mod parsers;
mod profiles;
mod scripts;
mod service_manager;
mod sockets;
