//! What is done with bytes of unknown origin: every parser that takes them from a script, from another process or from
//! the wire is called as the programs call it. A target panics when something that must always hold does not.
//!
//! Used twice: by the fuzzer (`make fuzz`), and by the test suite over the seeds in `fuzz/seeds/TARGET`.

mod sandbox;
mod script;
mod wire;
mod words;

/// A target's name and its function.
pub type Target = (&'static str, fn(&[u8]));

/// Every target.
pub const ALL: &[Target] = &[
    ("result", script::result),
    ("events", script::events),
    ("mask", script::mask),
    ("task", script::task),
    ("json", script::json),
    ("plan", sandbox::plan),
    ("profile", sandbox::profile),
    ("launcher", sandbox::launcher),
    ("record", sandbox::record),
    ("secrets", sandbox::secrets),
    ("envelope", wire::envelope),
    ("message", wire::message),
    ("params", words::params),
    ("selector", words::selector),
    ("names", words::names),
    ("program", words::program),
    ("text", words::text),
    ("config", words::config),
];

/// The bytes before and after the first NUL; all of them before it, if there is none.
fn halves(bytes: &[u8]) -> (&[u8], &[u8]) {
    match bytes.iter().position(|byte| *byte == 0) {
        Some(at) => (&bytes[..at], &bytes[at + 1..]),
        None => (bytes, &[]),
    }
}
