//! The program as people start it on one host, as root and as an ordinary user, and what it leaves behind.
#![allow(dead_code, reason = "each test binary uses its own part")]

use nix::unistd::{chown, geteuid};
use serde_json::Value;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// The account of an ordinary user.
pub(crate) const NOBODY: u32 = 65534;

/// No wait of these tests is longer; all end much sooner unless something is broken.
pub(crate) const LIMIT: Duration = Duration::from_secs(30);

/// A folder in which the program makes its temporary ones, and the account it has.
pub(crate) struct Place {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) as_user: bool,
}

impl Place {
    /// Every account that can be tried here: root tries the ordinary one too.
    pub(crate) fn all() -> Vec<Place> {
        if geteuid().is_root() { vec![Place::new(false), Place::new(true)] } else { vec![Place::new(true)] }
    }

    pub(crate) fn new(as_user: bool) -> Place {
        let dir = tempfile::tempdir().unwrap();
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        let tmp = dir.path().join("tmp");
        fs::create_dir(&tmp).unwrap();
        fs::set_permissions(&tmp, fs::Permissions::from_mode(0o755)).unwrap();
        if as_user && geteuid().is_root() {
            chown(&tmp, Some(NOBODY.into()), Some(NOBODY.into())).unwrap();
        }
        Place { dir, as_user }
    }

    pub(crate) fn tmp(&self) -> PathBuf {
        self.dir.path().join("tmp")
    }

    pub(crate) fn file(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_string_lossy().into_owned()
    }

    pub(crate) fn command(&self, args: &[&str]) -> Command {
        self.command_by(&[], args)
    }

    /// The program, started by another one, which is given all that starts it as its last arguments.
    pub(crate) fn command_by(&self, by: &[&str], args: &[&str]) -> Command {
        let mut words: Vec<&str> = by.to_vec();
        let id = NOBODY.to_string();
        if self.as_user && geteuid().is_root() {
            words.extend(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups"]);
        }
        words.push(env!("CARGO_BIN_EXE_sally-agent"));
        let mut command = Command::new(words[0]);
        command.args(&words[1..]).args(args).env("TMPDIR", self.tmp()).stdin(Stdio::null());
        command
    }

    pub(crate) fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs `test -o json`; the exit code and the record.
    pub(crate) fn test(&self, script: &str, args: &[&str]) -> (i32, Value) {
        let file = self.file("script", script);
        let output = self.run(&[&["test", "-o", "json", &file], args].concat());
        let whole: Value = serde_json::from_slice(&output.stdout)
            .unwrap_or_else(|e| panic!("{e}: {}", String::from_utf8_lossy(&output.stderr)));
        assert_eq!(whole["schema"], 1);
        (output.status.code().unwrap(), whole["runs"][0].clone())
    }

    /// Processes that have this place in their command line.
    pub(crate) fn processes(&self) -> Vec<String> {
        let marker = self.tmp().to_string_lossy().into_owned();
        let entries = fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
            .map(|bytes| String::from_utf8_lossy(&bytes).replace('\0', " "))
            .filter(|line| line.contains(&marker))
            .collect()
    }

    #[track_caller]
    pub(crate) fn nothing_is_left(&self) {
        let left: Vec<_> = fs::read_dir(self.tmp()).unwrap().flatten().map(|e| e.path()).collect();
        assert!(left.is_empty(), "{left:?}");
        assert_eq!(self.processes(), Vec::<String>::new());
    }
}

pub(crate) fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + LIMIT;
    while !done() {
        assert!(Instant::now() < end, "not in time: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
