//! The exit record of an attempt, filled and written, and what is kept beside it.
#![forbid(unsafe_code)]

use super::outcome::{Cause, outcome, usage};
use super::{Attempt, moment, unix_ms};
use crate::sandbox::artifacts::{self, DoorBytes};
use crate::sandbox::capture::read_kept;
use crate::sandbox::cgroup_group::{Group, Used};
use crate::sandbox::keeper::Keeper;
use crate::sandbox::layer::Layers;
use crate::sandbox::plan::Plan;
use crate::sandbox::record::{
    Collected, ExitRecord, LimitHit, LimitName, Outcome, RECORD_VERSION, StreamCount, Usage,
};
use crate::sandbox::wire::Ended;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::signal::Signal;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::uio::pwrite;
use nix::unistd::{read, write};
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

impl Attempt<'_> {
    /// The limit that ended the run or, if none did, one that it met.
    fn limit(&self, used: &Used, outcome: &Outcome) -> Option<LimitHit> {
        let by = |limit, ended| Some(LimitHit { limit, ended });
        match (self.progress.cause, outcome) {
            (Some(Cause::Limit(limit)), _) => return by(limit, true),
            (None, Outcome::Signaled { signal: libc::SIGKILL }) if used.out_of_memory => {
                return by(LimitName::Memory, true);
            }
            (None, Outcome::Signaled { signal: libc::SIGXCPU }) => return by(LimitName::Cpu, true),
            (None, Outcome::Signaled { signal: libc::SIGXFSZ }) => return by(LimitName::File, true),
            _ => {}
        }
        if used.out_of_memory {
            return by(LimitName::Memory, false);
        }
        if used.out_of_processes {
            return by(LimitName::Processes, false);
        }
        let folders = fstatvfs(&self.prepared.work).ok()?;
        match (folders.blocks_free(), folders.files_free()) {
            (0, _) => by(LimitName::Work, false),
            (_, 0) => by(LimitName::WorkFiles, false),
            _ => None,
        }
    }

    /// Keeps the files that the script named. The tree is dead by now.
    pub(super) fn keep_named_files(
        &self,
        keeper: &Keeper,
        record: &ExitRecord,
        result_file: &OwnedFd,
        target: &OwnedFd,
        buffer: &mut [u8],
    ) -> Vec<Collected> {
        let fd3 = self.streams[2].kept(&record.result);
        let count = record.result_file.clone().unwrap_or_default();
        let file = read_kept(result_file.as_fd(), &count);
        if ![&fd3, &file].into_iter().any(|door| artifacts::may_name_files(door)) {
            return Vec::new();
        }
        let door = |kept, count: &StreamCount| DoorBytes { kept, written: count.kept + count.dropped };
        let named = (keeper.setup.named_files)([door(&fd3, &record.result), door(&file, &count)]);
        artifacts::collect(self.prepared.work.as_fd(), target.as_fd(), named, &self.plan.limits, buffer)
    }

    /// Writes everything that is known into the record.
    pub(super) fn fill(
        &mut self,
        record: &mut ExitRecord,
        group: &Group,
        result_file: &OwnedFd,
        buffer: &mut [u8],
    ) {
        [record.stdout, record.stderr, record.result] =
            std::array::from_fn(|i| self.streams[i].finish(buffer));
        record.result_file =
            copy_result_file(&self.prepared.out, result_file, self.plan.limits.result_bytes, buffer);
        let ended = self.report.map(|report| report.ended).or(self.ended);
        let ended = ended.unwrap_or(Ended::Signaled(Signal::SIGKILL as i32));
        record.outcome =
            outcome(self.progress.cause, self.progress.reason.take(), self.started.is_some(), ended);
        record.started_at_unix_ms = self.started.map(|(_, unix)| unix);
        let (finished, unix) = self.finished.unwrap_or_else(moment);
        record.finished_at_unix_ms = unix;
        let lasted = self.started.map_or(Duration::ZERO, |(started, _)| finished - started);
        record.duration_ms = lasted.as_millis().try_into().unwrap_or(u64::MAX);
        record.layers = std::mem::take(&mut self.layers);
        if let Some(report) = self.report {
            record.leftovers = report.leftovers;
        }
        if self.started.is_some() {
            let used = self.before.until(&group.counters(), self.plan.limits.memory_bytes);
            record.usage = usage(&used, self.report);
            record.limit = self.limit(&used, &record.outcome);
        }
    }
}

/// Writes the record into the room that was reserved for it. One that is longer and finds no more room does without
/// its list of files.
pub(super) fn write_record(exit: &OwnedFd, record: &mut ExitRecord) -> nix::Result<()> {
    let write = |record: &ExitRecord| -> nix::Result<()> {
        let (line, mut done) = (record.to_line(), 0);
        while done < line.len() {
            let at = i64::try_from(done).map_err(|_| Errno::EFBIG)?;
            match pwrite(exit, &line[done..], at) {
                Ok(0) => return Err(Errno::ENOSPC),
                Ok(length) => done += length,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    };
    write(record).or_else(|errno| {
        if record.artifacts.is_empty() {
            return Err(errno);
        }
        record.without_artifacts();
        write(record)
    })
}

/// Copies what the script left in its result file, if that is a regular file. The tree is dead by now.
fn copy_result_file(out: &OwnedFd, target: &OwnedFd, limit: u64, buffer: &mut [u8]) -> Option<StreamCount> {
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    let file = openat(out, "result", flags, Mode::empty()).ok()?;
    let status = fstat(&file).ok()?;
    if SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT != SFlag::S_IFREG {
        return None;
    }
    let size = u64::try_from(status.st_size).unwrap_or_default();
    let mut count = StreamCount::default();
    while count.kept < size.min(limit) {
        let part = buffer.len().min(usize::try_from(limit - count.kept).unwrap_or(usize::MAX));
        let length = match read(&file, &mut buffer[..part]) {
            Ok(0) | Err(_) => break,
            Ok(length) => length,
        };
        match write_all(target, &buffer[..length]) {
            Ok(()) => count.kept += length as u64,
            Err(errno) => {
                count.error = Some(errno.desc().into());
                break;
            }
        }
    }
    count.dropped = size.saturating_sub(count.kept);
    Some(count)
}

fn write_all(file: &OwnedFd, mut bytes: &[u8]) -> nix::Result<()> {
    while !bytes.is_empty() {
        bytes = &bytes[write(file, bytes)?..];
    }
    Ok(())
}

pub(super) fn empty_record(keeper: &Keeper, plan: &Plan) -> ExitRecord {
    ExitRecord {
        v: RECORD_VERSION,
        run: plan.run.clone(),
        attempt: plan.attempt,
        outcome: Outcome::NotStarted,
        started_at_unix_ms: None,
        finished_at_unix_ms: unix_ms(),
        duration_ms: 0,
        stdout: StreamCount::default(),
        stderr: StreamCount::default(),
        result: StreamCount::default(),
        result_file: None,
        artifacts: Vec::new(),
        kept: None,
        usage: Usage::default(),
        limit: None,
        network: None,
        leftovers: 0,
        uid: keeper.setup.uid,
        profile: plan.profile,
        defined: plan.defined.clone(),
        layers: Layers::new(),
    }
}
