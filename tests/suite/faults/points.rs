//! The named fail points of the programs (`common/src/fail.rs`), by who passes them.

use std::fs;
use std::path::PathBuf;

use crate::harness::eventually;

/// Where an agent can die: at each arrow from the dispatch to the receipt.
pub const AGENT: &[&str] = &[
    "agent.dispatch.received",
    "agent.mark.before",
    "agent.journal.committed",
    "agent.mark.after",
    "agent.go.before",
    "agent.go.after",
    "agent.exit.seen",
    "agent.spool.before",
    "agent.result.before-publish",
    "agent.result.after-publish",
    "agent.spool.after",
    "agent.receipt.before-journal",
    "agent.receipt.after-journal",
    "agent.receipt.after-folder",
    "agent.ask.before",
];

/// Where a controller can die: at each arrow from the submission to the receipt.
pub const CONTROLLER: &[&str] = &[
    "controller.submit.before-commit",
    "controller.submit.after-commit",
    "controller.submit.after-dispatch",
    "controller.started.before-commit",
    "controller.result.before-commit",
    "controller.result.after-commit",
    "controller.receipt.before",
    "controller.receipt.after",
    "controller.ask.before-answer",
];

/// Passed only in some circumstances, each named by a row or by a walk.
pub const OTHER: &[&str] = &[
    "agent.close.before-journal",
    "agent.journal.commit",
    "controller.dispatch.after-mark",
    "controller.ledger.commit",
    "launcher.client.before",
];

/// The folder by which points are armed.
pub struct Points {
    pub dir: PathBuf,
}

impl Points {
    /// Arms a point with an action: `abort`, `pause`, `error`, each with `:NTH` behind it if wanted.
    pub fn arm(&self, point: &str, action: &str) {
        let _ = fs::remove_file(self.hit(point));
        // A reader sees nothing or the whole.
        let draft = self.dir.join(format!(".{point}"));
        fs::write(&draft, action).unwrap();
        fs::rename(draft, self.dir.join(point)).unwrap();
    }

    fn hit(&self, point: &str) -> PathBuf {
        self.dir.join(format!("{point}.hit"))
    }

    /// Whether it has had its effect.
    pub fn was_hit(&self, point: &str) -> bool {
        self.hit(point).exists()
    }

    /// Waits until a process came by; returns which.
    pub fn wait(&self, point: &str) -> i32 {
        eventually(&format!("somebody passes {point}"), || {
            fs::read_to_string(self.hit(point)).ok()?.trim().parse().ok()
        })
    }

    /// Lets a paused process go on.
    pub fn go_on(&self, point: &str) {
        let _ = fs::remove_file(self.hit(point));
    }

    /// Takes back what was not passed, and lets everyone go on.
    pub fn clear(&self) {
        for point in [AGENT, CONTROLLER, OTHER].concat() {
            let _ = fs::remove_file(self.dir.join(point));
            self.go_on(point);
        }
    }

    /// Sets a program's wall clock wrong, or right again.
    pub fn clock(&self, program: &str, offset_ms: i64) {
        self.set(&format!("clock.{program}"), &offset_ms.to_string());
    }

    /// Puts something in the place of a fact of the host.
    pub fn set(&self, name: &str, text: &str) {
        let draft = self.dir.join(format!(".{name}"));
        fs::write(&draft, text).unwrap();
        fs::rename(draft, self.dir.join(name)).unwrap();
    }
}

/// Every point that the programs' source names, and no other, is on the lists above: each is tried.
#[test]
fn every_fail_point_is_tried() {
    let mut named = std::collections::BTreeSet::new();
    let mut folders: Vec<PathBuf> =
        ["agent/src", "controller/src"].map(|d| crate::harness::repository().join(d)).into();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().flatten() {
            if entry.path().is_dir() {
                folders.push(entry.path());
                continue;
            }
            let text = fs::read_to_string(entry.path()).unwrap();
            for call in ["fail::point(\"", "fail::io(\""] {
                let names = text.split(call).skip(1).map(|rest| rest.split('"').next().unwrap().to_owned());
                named.extend(names);
            }
        }
    }
    let tried = [AGENT, CONTROLLER, OTHER].concat().into_iter().map(str::to_owned).collect();
    assert_eq!(named, tried);
}

/// A release has none of it: the file compiled as releases are does not know the variable.
#[test]
fn a_release_has_no_fail_points() {
    let dir = tempfile::tempdir().unwrap();
    let source = crate::harness::repository().join("common/src/fail.rs");
    let has_them = |flags: &[&str]| {
        let object = dir.path().join("fail.o");
        let mut rustc = std::process::Command::new(std::env::var_os("RUSTC").unwrap_or("rustc".into()));
        rustc.args(["--edition", "2024", "--crate-type", "lib", "--emit", "obj", "-C", "panic=abort"]);
        // Empty functions that are marked to be inlined are in no object file otherwise.
        rustc.args(["-C", "link-dead-code"]).args(flags).arg("-o").arg(&object).arg(&source);
        crate::harness::run(&mut rustc).expect(0);
        let bytes = fs::read(&object).unwrap();
        bytes.windows(10).any(|part| part == b"SALLY_FAIL")
    };
    assert!(has_them(&["-C", "debug-assertions=on"]), "the check finds nothing where there is something");
    assert!(!has_them(&["-C", "opt-level=3", "-C", "debug-assertions=off"]));
    let profile = fs::read_to_string(crate::harness::repository().join("Cargo.toml")).unwrap();
    assert!(!profile.contains("debug-assertions"), "a profile turns debug assertions on or off");
}
