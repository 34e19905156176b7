//! One attempt as its keeper sees it: clock, pipes, cancellation, and the exit record at the end.
//!
//! Here are its begin, its loop and its clock. `hear`: what others say meanwhile. `outcome`: how it ended. `record`: the
//! exit record.
#![forbid(unsafe_code)]

mod hear;
mod outcome;
mod record;

use super::capture::{BUFFER, Stream};
use super::cgroup_group::{Counters, Group};
use super::init::Prepared;
use super::keep;
use super::keeper::{FromLauncher, Keeper};
use super::layer::Layers;
use super::plan::Plan;
use super::record::{LimitName, Outcome};
use super::step::{Step, StepError};
use super::sys;
use super::terminal;
use super::wire::{self, Answer, Ended, INIT_HANGUP, INIT_KILL, INIT_TERM, PlanFds, Report};
pub(super) use hear::{CONTROL_CANCEL, CONTROL_KILL};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::MsgFlags;
use nix::sys::wait::waitpid;
use nix::unistd::{getpid, pipe2, write};
use outcome::{Cause, setup_failed};
use record::{empty_record, write_record};
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
}

struct Ready {
    streams: [bool; 3],
    stage: bool,
    init: bool,
    control: bool,
    launcher: bool,
    client: bool,
    memory: bool,
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

/// Tells the agent, if there is one: nobody reading, or nobody reading fast, is no error.
fn tell(events: &OwnedFd, event: u8) {
    let _ = write(events, &[event]);
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
