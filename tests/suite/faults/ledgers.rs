//! A ledger that is lost, and one that is restored from a backup, with agents that know more than it does.

use nix::sys::signal::Signal;

use super::judge::Lost;
use super::world::{Process, World, empty_folder};
use crate::effects::{Kind, lives, send};
use crate::harness::{Said, eventually, programs, run};

/// Two jobs that have ended, one that runs, one that waits for an agent that is drained and needs a program that is too large
/// for its order.
fn before_the_loss() -> World {
    let mut world = World::new(2, 24);
    world.some_jobs(2);
    world.wait_for_all_ends();
    world.submit(Kind::Lines, 1);
    world.wait_for_start();
    world.drain(2);
    let input = world.up.scratch().join("input");
    std::fs::write(&input, vec![b'x'; 100_000]).unwrap();
    world.submit_with(Kind::Instant, "local-2", 1, &["--stdin", input.to_str().unwrap()]);
    world
}

impl World {
    /// What may be lost of the jobs so far, from this one on, from 0.
    fn may_lose(&mut self, from: usize, lost: Lost) {
        self.accepted[from..].iter_mut().for_each(|accepted| accepted.lost = lost);
    }

    /// Kills the controller, does something while there is none, and waits for the next one.
    fn without_controller(&mut self, meanwhile: impl FnOnce(&World)) {
        // Nobody starts another one meanwhile.
        send(self.up.pid(), Signal::SIGSTOP);
        self.kill_one(Process::Controller, 0);
        meanwhile(self);
        send(self.up.pid(), Signal::SIGCONT);
        eventually("a controller answers", || (self.sally(&["agent", "ls"]).code == 0).then_some(()));
    }

    fn backup(&self, verb: &str, more: &[&str]) -> Said {
        let file = self.up.scratch().join("backup");
        let mut command = std::process::Command::new(programs().join("sally"));
        run(command.arg(verb).arg(file).arg("--dir").arg(self.up.dir()).args(more)).expect(0)
    }
}

/// What runs comes back under its own id, with its result; what has ended and what was never sent is gone.
pub fn lost() -> World {
    let mut world = before_the_loss();
    let waits = world.accepted.len() - 1;
    let runs = waits - 1;
    world.may_lose(0, Lost::All);
    world.may_lose(runs, Lost::Nothing);
    world.may_lose(waits, Lost::All);
    world.without_controller(|world| {
        for end in ["", "-wal", "-shm"] {
            let path = world.up.dir().join(format!("controller/ledger.db{end}"));
            let gone = std::fs::remove_file(&path);
            assert!(gone.is_ok() || !end.is_empty(), "{}", path.display());
        }
    });
    let id = world.accepted[runs].id.clone();
    let recovered = eventually("what runs is known again", || world.show(&id));
    assert_eq!(recovered["job"]["title"], "recovered");
    world.some_jobs(2);
    world
}

/// The same with yesterday's copy: what it knows goes on, what ended since is told by the agents as far as they know.
pub fn restored() -> World {
    let mut world = before_the_loss();
    let runs = world.accepted.len() - 2;
    world.backup("backup", &[]);
    // It ends, and another one does; the copy knows nothing of either.
    let id = world.accepted[runs].id.clone();
    eventually("what ran has ended", || world.show(&id).filter(|job| job["runs"][0]["state"] == "succeeded"));
    world.may_lose(runs, Lost::Result);
    world.may_lose(runs + 1, Lost::Nothing);
    let since = world.accepted.len();
    let id = world.submit(Kind::Instant, 1);
    eventually("it has ended", || world.show(&id).filter(|job| job["runs"][0]["state"] == "succeeded"));
    world.may_lose(since, Lost::All);
    // This one runs, and comes back.
    world.submit(Kind::Lines, 1);
    world.wait_for_start();
    world.without_controller(|world| {
        // What waits needs nothing that is not in the backup.
        empty_folder(&world.up.dir().join("controller/blobs"));
        world.backup("restore", &["--force"]);
    });
    let again = eventually("the controller lives", || world.up.pid_of("serve").filter(|pid| lives(*pid)));
    assert!(again > 0);
    world.resume(2);
    world.some_jobs(2);
    world
}
