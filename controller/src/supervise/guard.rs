//! Lets a child end when its supervisor is killed: our own program, started in its place, asks the kernel for a TERM at
//! the parent's death and then becomes the child. (A hook between fork and exec would need `unsafe`; this does not.)
//!
//! The kernel means the *thread* that started the child. So the supervisor must run on a thread that lives as long as
//! the program: a runtime's worker, not its pool for blocking calls.
//!
//! A second line, for a child that does not end: [`super::leftover`].

use std::env;
use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::process::CommandExt;
use std::path::Path;

use nix::sys::prctl;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};
use tokio::process::Command;

/// The hidden first argument that asks for this.
pub const ARGUMENT: &str = "__child";

/// To be called first in `main` of the program named as [`super::ChildSpec::guard`]: when the arguments ask for it, the
/// process becomes the child and this never returns, or returns why it could not.
pub fn run_if_asked() -> Option<io::Error> {
    let mut args = env::args_os().skip(1);
    if args.next()? != ARGUMENT {
        return None;
    }
    Some(become_child(args))
}

pub(super) fn command(guard: &Path, program: &Path, args: &[OsString]) -> Command {
    let mut command = Command::new(guard);
    command.arg(ARGUMENT).arg(std::process::id().to_string()).arg(program).args(args);
    command
}

fn become_child(mut args: impl Iterator<Item = OsString>) -> io::Error {
    let usage = || io::Error::new(io::ErrorKind::InvalidInput, "usage: __child PARENT PROGRAM [ARG...]");
    let Some(parent) = args.next().as_deref().and_then(OsStr::to_str).and_then(|text| text.parse().ok())
    else {
        return usage();
    };
    let Some(program) = args.next() else { return usage() };
    if let Err(error) = prctl::set_pdeathsig(Signal::SIGTERM) {
        return error.into();
    }
    // The parent may have died before the kernel was asked.
    if getppid() != Pid::from_raw(parent) {
        return io::Error::other("the supervisor is gone");
    }
    std::process::Command::new(program).args(args).exec()
}
