//! One program for every target: `SALLY_FUZZ_TARGET` names the one to run.
#![no_main]

mod targets;

use std::sync::LazyLock;

static TARGET: LazyLock<fn(&[u8])> = LazyLock::new(|| {
    let name = std::env::var("SALLY_FUZZ_TARGET").unwrap_or_default();
    match targets::ALL.iter().find(|(known, _)| *known == name) {
        Some((_, run)) => *run,
        None => {
            let names: Vec<_> = targets::ALL.iter().map(|(name, _)| *name).collect();
            eprintln!("SALLY_FUZZ_TARGET is {name:?}; the targets are {}", names.join(" "));
            std::process::exit(2)
        }
    }
});

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| TARGET(bytes));
