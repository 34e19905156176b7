//! A full disk on the agent's host: a small tmpfs in the place of its state folder.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::{Up, eventually};

/// A mounted tmpfs; dropped, it is gone.
struct Small(PathBuf);

impl Small {
    /// `None` where this user may not mount.
    fn mount(at: &Path, size: &str) -> Option<Small> {
        std::fs::create_dir_all(at).unwrap();
        let options = format!("size={size},mode=755");
        let done = Command::new("mount").args(["-t", "tmpfs", "-o", &options, "tmpfs"]).arg(at).output();
        done.is_ok_and(|o| o.status.success()).then(|| Small(at.to_owned()))
    }

    fn resize(&self, size: &str) {
        let options = format!("remount,size={size}");
        assert!(Command::new("mount").args(["-o", &options]).arg(&self.0).status().unwrap().success());
    }

    /// Takes almost all that is free.
    fn fill(&self) -> PathBuf {
        let ballast = self.0.join("ballast");
        // Ends with the error that there is no space.
        let _ = Command::new("dd")
            .args(["if=/dev/zero", "bs=64k"])
            .arg(format!("of={}", ballast.display()))
            .output();
        ballast
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        // Lazily: processes of the test may still end in it.
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

fn start(size: &str) -> Option<(Up, Small)> {
    let dir = tempfile::Builder::new().prefix("sally-").tempdir().unwrap();
    let Some(small) = Small::mount(&dir.path().join("up/agents/local-1/state"), size) else {
        println!("SKIPPED: this user cannot mount a tmpfs");
        return None;
    };
    Some((Up::start_in(dir, 1, &[]), small))
}

#[test]
fn without_room_new_work_is_deferred_with_the_reason_until_there_is_room() {
    let Some((up, small)) = start("40M") else { return };
    let job = up.sally(&["exec", "-a", "local-1", "--detach", "--", "echo", "late"]).expect(0);
    let job = job.text().trim().to_owned();
    let status =
        || std::fs::read_to_string(up.dir().join("agents/local-1/state/status.json")).unwrap_or_default();
    eventually("it defers", || status().contains("are free where the agent keeps its state").then_some(()));
    let record = up.json(&["job", "show", &job], 0);
    assert!(!record["runs"][0]["final"].as_bool().unwrap(), "{record}");
    assert!(record["runs"][0]["started_at"].is_null(), "{record}");
    small.resize("600M");
    let record = up.json(&["job", "wait", &job], 0);
    assert_eq!(record["runs"][0]["stdout"], "late\n");
}

#[test]
fn a_disk_that_fills_under_a_run_costs_output_that_is_counted_and_nothing_else() {
    let Some((up, small)) = start("400M") else { return };
    up.json(&["exec", "-a", "local-1", "--", "true"], 0);
    let script = "sleep 2; head -c 20000000 /dev/zero | tr '\\0' x; echo '{\"ok\":true}' >&3; exit 0";
    let job = up.sally(&["exec", "-a", "local-1", "--detach", "--", "sh", "-c", script]).expect(0);
    let job = job.text().trim().to_owned();
    eventually("it runs", || {
        (up.json(&["job", "show", &job], 0)["runs"][0]["state"] == "running").then_some(())
    });
    let ballast = small.fill();
    // Its main process ends with the disk full.
    eventually("its keeper is done", || {
        let used = std::fs::read_dir(up.dir().join("agents/local-1/state/runs")).unwrap().flatten();
        let mut exits = used.map(|e| e.path().join("exit"));
        (exits.all(|exit| exit.exists()) || up.json(&["job", "show", &job], 0)["runs"][0]["final"] == true)
            .then_some(())
    });
    let second = up.sally(&["exec", "-a", "local-1", "--detach", "--", "echo", "second"]).expect(0);
    let second = second.text().trim().to_owned();
    std::thread::sleep(std::time::Duration::from_secs(4));
    std::fs::remove_file(ballast).unwrap();
    let record = eventually("it ends", || {
        let record = up.json(&["job", "show", &job], 0);
        (record["runs"][0]["final"] == true).then_some(record)
    });
    let run = &record["runs"][0];
    assert!(["succeeded", "failed", "interrupted"].contains(&run["state"].as_str().unwrap()), "{run}");
    let kept = run["stdout_truncated_bytes"].as_u64().unwrap();
    assert!(run["state"] != "succeeded" || kept > 0, "output is missing without a mark: {run}");
    // Service resumes by itself, and nothing is corrupted.
    let record = up.json(&["job", "wait", &second], 0);
    assert_eq!(record["runs"][0]["stdout"], "second\n");
    up.json(&["exec", "-a", "local-1", "--", "true"], 0);
}
