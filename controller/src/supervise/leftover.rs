//! A child that outlived its supervisor: recognised by what nobody else can have, and ended.
//!
//! A process id alone is reused. Together with the time the process started and the boot it started in it is not.

use std::fs;
use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// How often the end of a process that is not our child is looked for: nothing tells us.
const LOOK_EVERY: Duration = Duration::from_millis(10);
/// How long the kernel may take to end a killed process.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// A process that was ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ended {
    /// Its process id.
    pub pid: u32,
    /// It did not end in time after TERM.
    pub killed: bool,
}

/// Writes down which process `pid` is.
///
/// # Errors
/// What the system said about the file or the process.
pub fn record(pid_file: &Path, pid: u32) -> io::Result<()> {
    // A process that has ended already has no start time; such a record matches nothing, which is right.
    let started = stat(pid).map_or(0, |stat| stat.started);
    fs::write(pid_file, format!("{pid} {started} {}\n", boot_id()?))
}

/// Ends the process that `pid_file` names, if it still runs: TERM, after `limit` KILL. Removes the file.
/// `None`: there was nothing to end.
///
/// # Errors
/// What the system said, also when the process does not end after KILL.
pub async fn end(pid_file: &Path, limit: Duration) -> io::Result<Option<Ended>> {
    let found = running(pid_file)?;
    let ended = match found {
        Some((pid, started)) => Some(terminate(pid, started, limit).await?),
        None => None,
    };
    match fs::remove_file(pid_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(ended),
    }
}

/// Returns whether a process of this id runs; one that only waits to be reaped does not.
pub fn is_running(pid: u32) -> bool {
    stat(pid).is_some()
}

fn running(pid_file: &Path) -> io::Result<Option<(u32, u64)>> {
    let text = match fs::read_to_string(pid_file) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    let Some((pid, started, boot)) = parse(&text) else { return Ok(None) };
    let same = boot == boot_id()? && stat(pid).is_some_and(|stat| stat.started == started);
    Ok(same.then_some((pid, started)))
}

async fn terminate(pid: u32, started: u64, limit: Duration) -> io::Result<Ended> {
    if signal(pid, Signal::SIGTERM)? || gone(pid, started, limit).await {
        return Ok(Ended { pid, killed: false });
    }
    if signal(pid, Signal::SIGKILL)? || gone(pid, started, KILL_LIMIT).await {
        return Ok(Ended { pid, killed: true });
    }
    Err(io::Error::other(format!("process {pid} does not end after KILL")))
}

/// Returns whether the process is gone already.
fn signal(pid: u32, signal: Signal) -> io::Result<bool> {
    match kill(Pid::from_raw(pid.cast_signed()), signal) {
        Ok(()) => Ok(false),
        Err(Errno::ESRCH) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

async fn gone(pid: u32, started: u64, limit: Duration) -> bool {
    let since = Instant::now();
    while stat(pid).is_some_and(|stat| stat.started == started) {
        if since.elapsed() >= limit {
            return false;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
    true
}

struct Stat {
    /// Clock ticks since boot.
    started: u64,
}

fn stat(pid: u32) -> Option<Stat> {
    parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads `/proc/PID/stat`; `None` for a process that only waits to be reaped.
fn parse_stat(text: &str) -> Option<Stat> {
    // The name in parentheses may hold anything, parentheses and spaces too.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    if matches!(*fields.first()?, "Z" | "X") {
        return None;
    }
    Some(Stat { started: fields.get(19)?.parse().ok()? })
}

fn parse(text: &str) -> Option<(u32, u64, String)> {
    let mut fields = text.split_whitespace();
    let pid = fields.next()?.parse().ok().filter(|pid| *pid > 1)?;
    Some((pid, fields.next()?.parse().ok()?, fields.next()?.to_owned()))
}

fn boot_id() -> io::Result<String> {
    Ok(fs::read_to_string("/proc/sys/kernel/random/boot_id")?.trim().to_owned())
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;

    #[test]
    fn stat_is_read_past_any_name() {
        let tail = "S 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 4711 20";
        assert_eq!(parse_stat(&format!("7 (a) b( c) {tail}")).unwrap().started, 4711);
        assert!(parse_stat(&format!("7 (a) Z{}", &tail[1..])).is_none(), "waits to be reaped");
        assert!(parse_stat("").is_none());
    }

    #[tokio::test]
    async fn another_process_of_the_same_id_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let pid_file = dir.path().join("x.pid");
        let me = std::process::id();
        let real = stat(me).unwrap().started;
        // This very test would end if any of these were taken for a leftover.
        for text in [
            format!("{me} {} {}\n", real + 1, boot_id().unwrap()),
            format!("{me} {real} 00000000-0000-0000-0000-000000000000\n"),
            format!("{me}\n"),
            "garbage\n".to_owned(),
            "0 0 0".to_owned(),
            "-1 0 0".to_owned(),
        ] {
            fs::write(&pid_file, &text).unwrap();
            assert_eq!(end(&pid_file, Duration::ZERO).await.unwrap(), None, "{text}");
            assert!(!pid_file.exists());
        }
    }
}
