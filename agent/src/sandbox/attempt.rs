//! One attempt as its keeper sees it: clock, pipes, cancellation, and the exit record at the end.
#![forbid(unsafe_code)]

use super::artifacts::{self, DoorBytes};
use super::capture::{BUFFER, Stream, read_kept};
use super::cgroup_group::{Counters, Group, Used};
use super::init::Prepared;
use super::keep;
use super::keeper::{FromLauncher, Keeper};
use super::layer::Layers;
use super::network_connector::Connector;
use super::plan::Plan;
use super::record::{
    Collected, ExitRecord, LimitHit, LimitName, Outcome, RECORD_VERSION, StreamCount, Usage,
};
use super::step::{Step, StepError};
use super::sys;
use super::terminal;
use super::wire::{self, Answer, Ended, INIT_HANGUP, INIT_KILL, INIT_TERM, PlanFds, Report, Word};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl, openat};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::MsgFlags;
use nix::sys::stat::{Mode, SFlag, fstat};
use nix::sys::statvfs::fstatvfs;
use nix::sys::uio::pwrite;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid, waitpid};
use nix::unistd::{getpid, pipe2, read, write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime};

/// How long an agent may hold back its word after it sent a plan.
const GO_LIMIT: Duration = Duration::from_secs(300);

/// How long init may take to end everything before it is killed itself.
const INIT_LIMIT: Duration = Duration::from_secs(2);

/// The shortest time between two looks at the processor time of a tree.
const CPU_LOOK_MIN: Duration = Duration::from_millis(20);

/// How long output may grow before the agent is told; a run that ends before says so once.
const OUTPUT_NEWS: Duration = Duration::from_millis(10);

/// Carries out a plan and writes its exit record, whatever happens.
pub(super) fn run(
    keeper: &mut Keeper,
    plan: &Plan,
    bytes: &[u8],
    fds: PlanFds,
    prepared: Result<Prepared, StepError>,
) {
    let PlanFds { stdout, stderr, result, result_file, artifacts, exit, events, control, mut inputs } = fds;
    let mut master = None;
    let begun = prepared.and_then(|prepared| {
        let limits = &plan.limits;
        let before = keeper.setup.group.begin(limits)?;
        let (streams, [out, err, three]) = pipes([
            (stdout, limits.stdout_bytes),
            (stderr, limits.stderr_bytes),
            (result, limits.result_bytes),
        ])?;
        if plan.terminal {
            let (outside, inside) = terminal::make()?;
            (master, inputs.stdin) = (Some(outside), Some(inside));
        }
        let mut list = vec![out.as_fd(), err.as_fd(), three.as_fd()];
        list.extend(inputs.list());
        wire::send_bytes(prepared.stage_socket.as_fd(), bytes, &list, MsgFlags::empty())
            .step("init", "handing the plan to the sandbox")?;
        Ok((prepared, streams, before))
    });
    drop(inputs);
    let init = begun.as_ref().map_or(0, |(prepared, ..)| prepared.init.as_raw());
    keeper.answer_with(&Answer::Accepted { keeper: getpid().as_raw(), init }, master);
    let mut record = empty_record(keeper, plan);
    let mut init = None;
    match begun {
        Err(error) => record.outcome = setup_failed(error),
        Ok((prepared, streams, before)) => {
            let mut attempt = Attempt {
                plan,
                events: &events,
                control: Some(control),
                layers: prepared.layers.clone(),
                prepared,
                streams,
                progress: Progress::default(),
                alarm: Some((Instant::now() + GO_LIMIT, Alarm::Go)),
                news: None,
                before,
                cpu_look: None,
                started: None,
                finished: None,
                ended: None,
                report: None,
            };
            let mut buffer = vec![0; BUFFER];
            attempt.watch(keeper, &mut buffer);
            let list = plan.destinations.as_deref().unwrap_or_default();
            record.network = keeper.connector.as_ref().map(|connector| connector.end(list));
            attempt.fill(&mut record, &keeper.setup.group, &result_file, &mut buffer);
            record.artifacts =
                attempt.keep_named_files(keeper, &record, &result_file, &artifacts, &mut buffer);
            if plan.keep_bytes > 0 && attempt.started.is_some() {
                let work = attempt.prepared.work.as_fd();
                record.kept = Some(keep::keep(work, &artifacts, plan.keep_bytes, &mut buffer));
            }
            init = Some(attempt.prepared);
        }
    }
    if let Err(errno) = write_record(&exit, &mut record) {
        tracing::error!(slot = keeper.setup.slot, run = %plan.run, %errno, "exit record could not be written");
    }
    if keeper.launcher.is_none() || keeper.stopping {
        // This keeper ends now. Whoever hears of the end must find the slot free.
        let _ = sys::unlock(keeper.lock.as_fd());
    }
    tell(&events, b'x');
    drop(events);
    if let Some(prepared) = init {
        let _ = kill(prepared.init, Signal::SIGKILL);
        let _ = waitpid(prepared.init, None);
    }
}

/// Writes the record into the room that was reserved for it. One that is longer and finds no more room does without
/// its list of files.
fn write_record(exit: &OwnedFd, record: &mut ExitRecord) -> nix::Result<()> {
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

/// An attempt between plan and record.
struct Attempt<'a> {
    plan: &'a Plan,
    events: &'a OwnedFd,
    control: Option<OwnedFd>,
    prepared: Prepared,
    streams: [Stream; 3],
    layers: Layers,
    progress: Progress,
    /// What happens next if nothing else does.
    alarm: Option<(Instant, Alarm)>,
    /// When the agent is told that output grew.
    news: Option<Instant>,
    /// The group's counters at the start.
    before: Counters,
    /// When processor time is looked at again.
    cpu_look: Option<Instant>,
    started: Option<(Instant, u64)>,
    finished: Option<(Instant, u64)>,
    /// How the main process ended, if others outlived it.
    ended: Option<Ended>,
    report: Option<Report>,
}

/// What was learned on the way to the outcome.
#[derive(Default)]
struct Progress {
    /// Why the script did not start, in the stage's words.
    reason: Option<Outcome>,
    /// The stage said that execve comes next.
    going: bool,
    cause: Option<Cause>,
}

/// Why the keeper ended the attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Timeout,
    Cancel,
    Limit(LimitName),
    /// The agent kept its word back for too long.
    NoWord,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Alarm {
    Go,
    Timeout,
    Kill,
    /// Init does not answer either.
    KillInit,
}

impl Attempt<'_> {
    /// Waits for the end, keeping pipes, clock and orders meanwhile.
    fn watch(&mut self, keeper: &mut Keeper, buffer: &mut [u8]) {
        while self.report.is_none() {
            let ready = self.wait(keeper);
            let now = Instant::now();
            for (stream, ready) in self.streams.iter_mut().zip(ready.streams) {
                if ready && stream.pump(buffer) {
                    self.news.get_or_insert(now + OUTPUT_NEWS);
                }
            }
            // What the stage said comes before what init reports of its end.
            if ready.stage || ready.init {
                self.hear_stage(now, keeper.connector.as_ref());
            }
            if ready.init && self.hear_init(now) {
                self.await_init();
                break;
            }
            if ready.control {
                self.hear_control(now);
            }
            if ready.launcher
                && let FromLauncher::Stop { kill: true } = keeper.hear_launcher()
            {
                self.end(Cause::Cancel, now, true);
            }
            if ready.client {
                keeper.hear_client(true);
            }
            if ready.memory {
                keeper.setup.group.hear_alarm();
                self.end(Cause::Limit(LimitName::Memory), now, true);
            }
            self.look_at_cpu(&keeper.setup.group, now);
            self.ring(&keeper.setup.group, now);
            if self.news.is_some_and(|due| due <= now) {
                self.news = None;
                tell(self.events, b'o');
            }
        }
        self.finished.get_or_insert_with(moment);
    }

    fn wait(&self, keeper: &Keeper) -> Ready {
        let sources: [Option<BorrowedFd<'_>>; 9] = [
            self.streams[0].pipe(),
            self.streams[1].pipe(),
            self.streams[2].pipe(),
            (!self.stage_done()).then(|| self.prepared.stage_socket.as_fd()),
            Some(self.prepared.init_socket.as_fd()),
            self.control.as_ref().map(OwnedFd::as_fd),
            keeper.launcher.as_ref().map(OwnedFd::as_fd),
            keeper.client.as_ref().map(OwnedFd::as_fd),
            keeper.setup.group.alarm(),
        ];
        let mut fds: Vec<PollFd<'_>> =
            sources.iter().flatten().map(|fd| PollFd::new(*fd, PollFlags::POLLIN)).collect();
        let _ = poll(&mut fds, self.timeout());
        let mut answers = fds.iter().map(|fd| fd.any() == Some(true));
        let ready = sources.map(|source| source.is_some() && answers.next() == Some(true));
        Ready {
            streams: [ready[0], ready[1], ready[2]],
            stage: ready[3],
            init: ready[4],
            control: ready[5],
            launcher: ready[6],
            client: ready[7],
            memory: ready[8],
        }
    }

    fn timeout(&self) -> PollTimeout {
        let due = [self.alarm.map(|(due, _)| due), self.news, self.cpu_look].into_iter().flatten().min();
        let Some(due) = due else { return PollTimeout::NONE };
        let left = due.saturating_duration_since(Instant::now());
        // Rounded up, or the last millisecond would be a busy loop.
        PollTimeout::try_from(left + Duration::from_micros(999)).unwrap_or(PollTimeout::MAX)
    }

    fn stage_done(&self) -> bool {
        self.started.is_some() || self.progress.reason.is_some()
    }

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

    /// Looks at the tree's processor time, and decides when to look again: not before the limit can be reached with
    /// every processor busy.
    fn look_at_cpu(&mut self, group: &Group, now: Instant) {
        if self.cpu_look.is_none_or(|due| due > now) {
            return;
        }
        self.cpu_look = None;
        let limit = self.plan.limits.cpu_ms.saturating_mul(1000);
        let Some(used) = self.before.cpu_since(group) else { return };
        if used >= limit {
            return self.end(Cause::Limit(LimitName::Cpu), now, false);
        }
        let processors = std::thread::available_parallelism().map_or(1, |n| n.get() as u64);
        let wait = Duration::from_micros((limit - used) / processors).max(CPU_LOOK_MIN);
        self.cpu_look = now.checked_add(wait);
    }

    /// Takes what the stage says, up to its end: of its words, or of itself.
    fn hear_stage(&mut self, now: Instant, connector: Option<&Connector>) {
        while !self.stage_done() {
            match wire::receive::<Word>(self.prepared.stage_socket.as_fd(), MsgFlags::MSG_DONTWAIT) {
                Ok(Some((Word::Go(layers), _))) => {
                    self.layers = layers;
                    self.progress.going = true;
                }
                Ok(Some((Word::Listening, fds))) => connector.into_iter().for_each(|c| c.take(&fds)),
                Ok(Some((Word::Serve, fds))) => {
                    let list = self.plan.destinations.as_deref().unwrap_or_default();
                    connector.into_iter().for_each(|c| c.serve(list, &fds));
                }
                Ok(Some((word, _))) => self.note(word),
                Err(Errno::EAGAIN | Errno::EINTR) => return,
                // The end of the connection after "go" is the kernel's word for "executed".
                Ok(None) | Err(_) if self.progress.going => {
                    self.started = Some((now, unix_ms()));
                    if self.progress.cause.is_none() {
                        self.alarm = deadline(now, self.plan.timeout_ms).map(|due| (due, Alarm::Timeout));
                    }
                    self.cpu_look = Some(now);
                    tell(self.events, b's');
                }
                Ok(None) | Err(_) => {
                    let error = StepError::other("stage", "the sandbox ended before the script was started");
                    self.progress.reason = Some(setup_failed(error));
                }
            }
        }
    }

    fn note(&mut self, word: Word) {
        let (reason, layers) = match word {
            Word::NotReleased(layers) => (Outcome::NotStarted, layers),
            Word::Failed { error, layers } => (setup_failed(error), layers),
            Word::NotFound { what, layers } => (Outcome::NotFound { what }, layers),
            Word::ExecFailed { errno, message, layers } => (Outcome::ExecFailed { errno, message }, layers),
            Word::Prepared(_)
            | Word::Go(_)
            | Word::Listening
            | Word::Serve
            | Word::MainEnded(_)
            | Word::Report(_) => return,
        };
        self.layers = layers;
        self.progress.reason = Some(reason);
    }

    /// Takes what init says. Returns whether it is dead.
    fn hear_init(&mut self, now: Instant) -> bool {
        match wire::receive::<Word>(self.prepared.init_socket.as_fd(), MsgFlags::MSG_DONTWAIT) {
            Ok(Some((Word::Report(report), _))) => {
                self.finished.get_or_insert_with(|| (now, unix_ms()));
                self.report = Some(report);
            }
            Ok(Some((Word::MainEnded(ended), _))) => {
                self.ended = Some(ended);
                self.finished = Some((now, unix_ms()));
                self.alarm = deadline(now, self.plan.exit_grace_ms).map(|due| (due, Alarm::Kill));
            }
            Ok(Some(_)) | Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(None) | Err(_) => return true,
        }
        false
    }

    /// Waits until init, killed without a report (with the tree, for want of memory), is dead, and with it the tree. It
    /// stays to be reaped, so that nobody else can have its number. A process that the kernel cannot end is not waited for.
    fn await_init(&self) {
        let how = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT | WaitPidFlag::WNOHANG;
        let until = Instant::now() + INIT_LIMIT;
        while waitid(Id::Pid(self.prepared.init), how) == Ok(WaitStatus::StillAlive) && Instant::now() < until
        {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn hear_control(&mut self, now: Instant) {
        let Some(control) = &self.control else { return };
        let mut orders = [0u8; 64];
        match read(control, &mut orders) {
            Ok(length) if length > 0 => {
                let kill = orders[..length].contains(&CONTROL_KILL);
                if kill || orders[..length].contains(&CONTROL_CANCEL) {
                    self.end(Cause::Cancel, now, kill);
                }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => {}
            Ok(_) | Err(_) => self.control = None,
        }
    }

    /// Ends the attempt for a reason: TERM and later KILL, or KILL at once.
    fn end(&mut self, cause: Cause, now: Instant, at_once: bool) {
        if self.finished.is_some() {
            // The main process has ended by itself, which is the outcome; its leftovers die anyway.
            if at_once {
                self.order(INIT_KILL);
            }
            return;
        }
        let first = self.progress.cause.is_none();
        self.progress.cause.get_or_insert(cause);
        if at_once || !self.progress.going {
            self.order(INIT_KILL);
            self.alarm = Some((now + INIT_LIMIT, Alarm::KillInit));
        } else if first {
            self.order(if self.plan.terminal { INIT_HANGUP } else { INIT_TERM });
            self.alarm = deadline(now, self.plan.grace_ms).map(|due| (due, Alarm::Kill));
        }
    }

    /// Does what is due.
    fn ring(&mut self, group: &Group, now: Instant) {
        let Some((due, alarm)) = self.alarm else { return };
        if due > now || self.report.is_some() {
            return;
        }
        self.alarm = None;
        match alarm {
            Alarm::Go => self.end(Cause::NoWord, now, true),
            Alarm::Timeout => self.end(Cause::Timeout, now, false),
            Alarm::Kill => {
                self.order(INIT_KILL);
                self.alarm = Some((now + INIT_LIMIT, Alarm::KillInit));
            }
            Alarm::KillInit => {
                group.kill();
                let _ = kill(self.prepared.init, Signal::SIGKILL);
            }
        }
    }

    fn order(&self, order: u8) {
        let _ = wire::send_bytes(self.prepared.init_socket.as_fd(), &[order], &[], MsgFlags::MSG_DONTWAIT);
    }

    /// Keeps the files that the script named. The tree is dead by now.
    fn keep_named_files(
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
    fn fill(&mut self, record: &mut ExitRecord, group: &Group, result_file: &OwnedFd, buffer: &mut [u8]) {
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

/// `control`, agent to keeper: TERM, then KILL after the grace.
pub(super) const CONTROL_CANCEL: u8 = b'T';
/// `control`, agent to keeper: KILL at once.
pub(super) const CONTROL_KILL: u8 = b'K';

struct Ready {
    streams: [bool; 3],
    stage: bool,
    init: bool,
    control: bool,
    launcher: bool,
    client: bool,
    memory: bool,
}

/// Decides how an attempt ended from what is known of it.
fn outcome(cause: Option<Cause>, reason: Option<Outcome>, started: bool, ended: Ended) -> Outcome {
    let (code, signal) = match ended {
        Ended::Exited(code) => (Some(code), None),
        Ended::Signaled(signal) => (None, Some(signal)),
    };
    match (cause, reason) {
        (Some(Cause::NoWord), _) if !started => Outcome::NotStarted,
        (Some(Cause::Cancel), Some(Outcome::SetupFailed { .. } | Outcome::NotStarted) | None) if !started => {
            Outcome::Cancelled { code: None, signal: None }
        }
        (_, Some(reason)) => reason,
        (Some(Cause::Timeout), None) => Outcome::TimedOut { code, signal },
        (Some(Cause::Limit(_)) | None, None) => match ended {
            Ended::Exited(code) => Outcome::Exited { code },
            Ended::Signaled(signal) => Outcome::Signaled { signal },
        },
        (Some(Cause::Cancel | Cause::NoWord), None) => Outcome::Cancelled { code, signal },
    }
}

/// What a run used: by its group where there is one, else by what init saw of its children.
fn usage(used: &Used, report: Option<Report>) -> Usage {
    let (cpu_us, largest) = report.map_or((0, 0), |report| (report.cpu_us, report.max_rss_kib * 1024));
    Usage {
        cpu_ms: used.cpu_us.unwrap_or(cpu_us).div_ceil(1000),
        memory_peak_bytes: used.memory_peak.unwrap_or(largest),
        memory_of_tree: used.memory_peak.is_some(),
        pids_peak: used.pids_peak,
    }
}

fn setup_failed(error: StepError) -> Outcome {
    Outcome::SetupFailed { step: error.step, errno: error.errno, message: error.message }
}

/// Makes the script's three pipes: their reading ends with their files, and their writing ends. They belong
/// to the keeper's uid, which is the script's, so the script can open them again through `/dev/fd`.
fn pipes(files: [(OwnedFd, u64); 3]) -> Result<([Stream; 3], [OwnedFd; 3]), StepError> {
    let [out, err, three] = files.map(|(file, limit)| {
        let (reader, writer) = pipe2(OFlag::O_CLOEXEC)?;
        fcntl(&reader, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        Ok((Stream::new(reader, file, limit), writer))
    });
    let all = || -> nix::Result<_> {
        let (out, err, three) = (out?, err?, three?);
        Ok(([out.0, err.0, three.0], [out.1, err.1, three.1]))
    };
    all().step("pipes", "pipes for the script")
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

/// Tells the agent, if there is one: nobody reading, or nobody reading fast, is no error.
fn tell(events: &OwnedFd, event: u8) {
    let _ = write(events, &[event]);
}

fn empty_record(keeper: &Keeper, plan: &Plan) -> ExitRecord {
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

fn moment() -> (Instant, u64) {
    (Instant::now(), unix_ms())
}

fn unix_ms() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    since.as_millis().try_into().unwrap_or(u64::MAX)
}

/// `None` if the time is beyond what the clock can hold: then it never comes.
fn deadline(now: Instant, ms: u64) -> Option<Instant> {
    now.checked_add(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERM: Ended = Ended::Signaled(15);

    #[test]
    fn a_script_that_ends_by_itself() {
        assert_eq!(outcome(None, None, true, Ended::Exited(3)), Outcome::Exited { code: 3 });
        assert_eq!(outcome(None, None, true, TERM), Outcome::Signaled { signal: 15 });
    }

    #[test]
    fn the_keepers_reason_comes_before_how_the_script_took_it() {
        let timed_out = outcome(Some(Cause::Timeout), None, true, Ended::Exited(0));
        assert_eq!(timed_out, Outcome::TimedOut { code: Some(0), signal: None });
        let cancelled = outcome(Some(Cause::Cancel), None, true, TERM);
        assert_eq!(cancelled, Outcome::Cancelled { code: None, signal: Some(15) });
    }

    #[test]
    fn what_never_started_says_why() {
        let failed = setup_failed(StepError::other("stage", "x"));
        assert_eq!(outcome(None, Some(failed.clone()), false, TERM), failed);
        assert_eq!(outcome(None, Some(Outcome::NotStarted), false, TERM), Outcome::NotStarted);
        let cancelled = Outcome::Cancelled { code: None, signal: None };
        assert_eq!(outcome(Some(Cause::Cancel), Some(failed), false, TERM), cancelled);
        assert_eq!(outcome(Some(Cause::NoWord), None, false, TERM), Outcome::NotStarted);
        let absent = Outcome::NotFound { what: "x".into() };
        assert_eq!(outcome(Some(Cause::Cancel), Some(absent.clone()), false, TERM), absent);
    }
}
