//! `make bench`: how far Sally is from the floor, in one run. A program, not a test: it judges nothing.
//!
//! In reading order: [`floor`] the bare loop that Sally is compared with, and its worker, which is this
//! program started again; [`sally_side`] the same work through `sally up`;
//! [`sandbox_side`] the sandbox alone; [`rounds`] the interleaving, since only
//! ratios of one run mean anything; [`process`] starting programs and what they cost; [`report`] the table.
//!
//! Arguments: `--rounds N` (20) of ten submissions each, `--agents N` (100), `--only latency|throughput|many|output|sandbox`,
//! `--beside DIR` with the optimised programs of another build, which are measured in the same turns: before and after.
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "what was measured is printed")]

mod floor;
mod process;
mod report;
mod rounds;
mod sally_side;
mod sandbox_side;

use std::process::ExitCode;

/// What can go wrong, in words.
type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return ExitCode::FAILURE };
    let done = match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["worker", url, name] => runtime.block_on(floor::worker(url, name)),
        _ => rounds::Options::parse(&args).and_then(|options| runtime.block_on(rounds::run(&options))),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bench: {error}");
            ExitCode::FAILURE
        }
    }
}
