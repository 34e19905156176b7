//! Finding and executing the plan's program, and saying what is missing when that fails.
#![forbid(unsafe_code)]

use super::paths::BoxPaths;
use super::plan::{Plan, Program};
use nix::errno::Errno;
use nix::unistd::execve;
use std::ffi::{CString, OsStr};
use std::fs::File;
use std::io::Read as _;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A program ready to be executed: nothing is allocated from here on.
pub(super) struct Ready {
    name: String,
    candidates: Vec<CString>,
    argv: Vec<CString>,
    env: Vec<CString>,
}

/// Why a program was not executed.
pub(super) enum Failure {
    /// It, or its interpreter, does not exist. The words say which.
    NotFound(String),
    Exec(Errno),
}

/// Prepares the plan's program. `leak` adds a variable the plan does not have, for a test.
pub(super) fn prepare(plan: &Plan, paths: &BoxPaths, leak: bool) -> Ready {
    let script = paths.script().to_string_lossy().into_owned();
    let (name, mut argv) = match &plan.program {
        Program::Script { interpreter: None } => (script.clone(), vec![script]),
        Program::Script { interpreter: Some(name) } => (name.clone(), vec![name.clone(), script]),
        Program::Command => (plan.argv.first().cloned().unwrap_or_default(), vec![]),
    };
    argv.extend(plan.argv.iter().cloned());
    let mut env: Vec<_> = plan.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if leak {
        env.push("SALLY_BROKEN=environment".into());
    }
    Ready {
        candidates: strings(candidates(&name, plan.search_path())),
        name,
        argv: strings(argv),
        env: strings(env),
    }
}

impl Ready {
    /// Becomes the program. Returns only if that fails.
    pub(super) fn execute(&self) -> Failure {
        let mut refused = None;
        for candidate in &self.candidates {
            let Err(errno) = execve(candidate, &self.argv, &self.env);
            match errno {
                Errno::ENOENT | Errno::ENOTDIR => {
                    let path = Path::new(OsStr::from_bytes(candidate.as_bytes()));
                    if path.exists() {
                        return Failure::NotFound(missing_interpreter(path));
                    }
                }
                // A later folder of PATH may have one that can be executed.
                Errno::EACCES => refused = Some(errno),
                _ => return Failure::Exec(errno),
            }
        }
        match refused {
            Some(errno) => Failure::Exec(errno),
            None => Failure::NotFound(format!("{} does not exist in the sandbox", quoted(&self.name))),
        }
    }
}

/// Says in words what an error number of execve means for a script.
pub(super) fn explain(errno: Errno) -> &'static str {
    match errno {
        Errno::ENOEXEC => {
            "not a program this host can execute: no #! line, or built for another architecture"
        }
        Errno::EACCES => "not executable: permission denied",
        Errno::E2BIG => "arguments and environment are too long",
        other => other.desc(),
    }
}

/// The paths at which a program may be, in the order of the search path.
fn candidates(name: &str, search_path: &str) -> Vec<String> {
    if name.contains('/') {
        return vec![name.to_owned()];
    }
    search_path.split(':').filter(|dir| !dir.is_empty()).map(|dir| format!("{dir}/{name}")).collect()
}

/// The file exists and execve said it does not: its interpreter is what is missing.
fn missing_interpreter(path: &Path) -> String {
    let mut head = Vec::new();
    if let Ok(file) = File::open(path) {
        let _ = file.take(256).read_to_end(&mut head);
    }
    match interpreter(&head) {
        Some(name) => {
            format!("the interpreter {} of the #! line does not exist in the sandbox", quoted(&name))
        }
        None => "the dynamic loader that the program names does not exist in the sandbox".into(),
    }
}

/// The interpreter a `#!` line names.
fn interpreter(head: &[u8]) -> Option<String> {
    let line = head.strip_prefix(b"#!")?.split(|byte| *byte == b'\n').next()?;
    let line = String::from_utf8_lossy(line);
    let name = line.trim_matches([' ', '\t']).split([' ', '\t']).next()?;
    (!name.is_empty()).then(|| name.to_owned())
}

/// A name for people, with what could confuse a terminal (a carriage return, say) made visible.
fn quoted(name: &str) -> String {
    name.escape_debug().to_string()
}

/// As the kernel takes them. The plan was checked for NUL bytes, so none is dropped.
fn strings(list: impl IntoIterator<Item = String>) -> Vec<CString> {
    list.into_iter().filter_map(|text| CString::new(text).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_looked_up_and_a_path_is_not() {
        assert_eq!(candidates("sh", "/a::/b"), ["/a/sh", "/b/sh"]);
        assert_eq!(candidates("./sh", "/a:/b"), ["./sh"]);
    }

    #[test]
    fn the_interpreter_of_a_script_is_read_as_the_kernel_does() {
        assert_eq!(interpreter(b"#!/bin/sh\necho"), Some("/bin/sh".into()));
        assert_eq!(interpreter(b"#! /usr/bin/env python3\n"), Some("/usr/bin/env".into()));
        assert_eq!(interpreter(b"#!/bin/sh\r\n"), Some("/bin/sh\r".into()));
        assert_eq!(interpreter(b"\x7fELF"), None);
        assert_eq!(interpreter(b"#!\n"), None);
        assert_eq!(quoted("/bin/sh\r"), "/bin/sh\\r");
    }
}
