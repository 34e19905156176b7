//! The end of a tree without a pid namespace: every process below the calling one, found by `/proc`.
//!
//! Where there is a namespace the kernel does this by itself. Here a process may fork while it is looked for: so all
//! are stopped first, again and again until no new one is found, and killed then. The caller takes in orphans (it is
//! their subreaper), so whoever was below stays below.
#![forbid(unsafe_code)]

use super::sys;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpid};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::fd::AsFd;

/// How often the tree is looked through before it is killed as far as it is known.
const MAX_LOOKS: usize = 200;

/// A process: its number, its parent's, and when it started, by which it is told from a later one of its number.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Process {
    pid: i32,
    parent: i32,
    started: String,
}

/// Kills everything below the calling process. Nobody else is signalled: a number that another process got meanwhile
/// is noticed.
pub(super) fn kill_all() {
    let mut seen = BTreeSet::new();
    for _ in 0..MAX_LOOKS {
        let new: Vec<Process> = below(getpid().as_raw(), processes())
            .into_iter()
            .filter(|process| seen.insert((process.pid, process.started.clone())))
            .collect();
        if new.is_empty() {
            break;
        }
        new.iter().for_each(|process| signal(process, Signal::SIGSTOP));
    }
    below(getpid().as_raw(), processes()).iter().for_each(|process| signal(process, Signal::SIGKILL));
}

fn signal(process: &Process, signal: Signal) {
    let Ok(fd) = sys::open_process(Pid::from_raw(process.pid)) else { return };
    // Looked at after it was opened: if it is the same one now, the descriptor is its.
    if read(process.pid).is_some_and(|now| now.started == process.started) {
        let _ = sys::signal_process(fd.as_fd(), signal);
    }
}

/// Those of `all` that descend from `root`, without it.
fn below(root: i32, all: Vec<Process>) -> Vec<Process> {
    let mut children: BTreeMap<i32, Vec<Process>> = BTreeMap::new();
    for process in all {
        children.entry(process.parent).or_default().push(process);
    }
    let mut found = children.remove(&root).unwrap_or_default();
    let mut at = 0;
    while at < found.len() {
        found.extend(children.remove(&found[at].pid).unwrap_or_default());
        at += 1;
    }
    found
}

fn processes() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries.filter_map(|entry| read(entry.file_name().to_str()?.parse().ok()?)).collect()
}

fn read(pid: i32) -> Option<Process> {
    parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

fn parse(pid: i32, stat: &str) -> Option<Process> {
    // The name in parentheses may hold anything.
    let mut fields = stat.rsplit_once(')')?.1.split_whitespace();
    let (_state, parent) = (fields.next()?, fields.next()?.parse().ok()?);
    Some(Process { pid, parent, started: fields.nth(17)?.to_owned() })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn process(pid: i32, parent: i32) -> Process {
        Process { pid, parent, started: "1".into() }
    }

    #[test]
    fn a_tree_is_found_whatever_the_order_of_its_numbers() {
        let all =
            vec![process(9, 5), process(5, 2), process(7, 9), process(3, 1), process(2, 1), process(6, 2)];
        let mut found: Vec<i32> = below(2, all).iter().map(|p| p.pid).collect();
        found.sort_unstable();
        assert_eq!(found, [5, 6, 7, 9]);
        assert!(below(4, vec![process(1, 0)]).is_empty());
    }

    #[test]
    fn a_process_is_known_by_its_start() {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let own = parse(getpid().as_raw(), &stat).unwrap();
        assert_eq!(own.parent, nix::unistd::getppid().as_raw());
        assert_eq!(Some(own.started), super::super::keeper::started_at("self"));
        let odd = parse(1, "1 (a) b) c) S 77 1 1 0 -1 4 0 0 0 0 0 0 0 0 20 0 1 0 4242 0").unwrap();
        assert_eq!((odd.parent, odd.started.as_str()), (77, "4242"));
    }
}
