//! The script's side of a run: what a script is given and how it answers. `docs/scripts.md` is the contract.
//!
//! - `env.rs`: the environment a script starts with.
//! - `event.rs`: the shapes of `@progress`, `@log`, `@artifact`, `@mask`, `@changed`, `@fail`.
//! - `stream.rs`: the result stream of a finished run, from bytes to a typed result.
//! - `scanner.rs`: the same events while the run goes on.
//! - `mask.rs`: declared secrets taken out of output.
//! - `task_cli.rs`, `door.rs`: `sally-task`, the helper that scripts call, and how it writes.
//!
//! Only `task_cli.rs` and `door.rs` read or write anything; the rest is pure.
#![forbid(unsafe_code)]

mod door;
pub mod env;
pub mod event;
pub mod mask;
pub mod scanner;
pub mod stream;
pub mod task_cli;

pub use env::{EnvContext, EnvError, build_env};
pub use event::{Artifact, Event, Failure, Level, LogEvent, Progress};
pub use mask::{Masker, NotMasked};
pub use scanner::EventScanner;
pub use stream::{Door, ResultError, ResultLimits, ResultState, ScriptResult, read_result};
