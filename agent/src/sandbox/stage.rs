//! The stage: a prepared process that waits for a plan, carries it out layer by layer, checks what it
//! did, waits for the agent's word, and becomes the script.
//!
//! The order is: files of the box (needs capabilities), landlock (it forbids mounts and must know standard
//! input), descriptors, session, limits, then the rest of what cannot be taken back: no new privileges, the last
//! system call filter, capabilities (the bounding set went before the plan came). Capabilities go last so that
//! each of these layers holds by itself, whichever of the others is missing.
#![forbid(unsafe_code)]

use super::keeper::Setup;
use super::landlock::Rules;
use super::layer::{Hold, Layer, Layers, missing};
use super::network::{self, Destination};
use super::network_inside;
use super::paths::BoxPaths;
use super::plan::{Limits, Plan, Program};
use super::profile::Profile;
use super::program;
use super::seccomp::Filters;
use super::secrets;
use super::step::{Step, StepError};
use super::sys;
use super::template;
use super::verify;
use super::wire::{self, Inputs, Word};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::resource::{Resource, getrlimit, rlim_t, setrlimit};
use nix::sys::socket::MsgFlags;
use nix::sys::stat::{Mode, fstat, umask};
use nix::sys::uio::pread;
use nix::unistd::{chdir, read, setsid};
use std::fs::File;
use std::io::Write as _;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

/// How much is copied at a time.
const COPY_BUFFER: u64 = 64 * 1024;

/// Seconds of processor time between XCPU and KILL.
const CPU_TO_KILL: u64 = 2;

/// Exit code of a stage that never became the script. Nobody sees it: the reason travels as a message.
const NEVER_STARTED: i32 = 120;

/// The write ends of the script's pipes and what the plan brought.
struct StageFds {
    stdout: OwnedFd,
    stderr: OwnedFd,
    result: OwnedFd,
    inputs: Inputs,
}

/// The life of a stage, from fork to execve. `own_proc` says whether `/proc` is the attempt's own.
pub(super) fn enter(
    setup: &Setup,
    base: &Path,
    keeper: &OwnedFd,
    folders: &[OwnedFd; 2],
    own_proc: bool,
    landlock: Option<&Rules>,
) -> ! {
    let mut layers = verify::namespaces(setup, own_proc);
    layers.extend(setup.group.layers());
    if !setup.broken(Layer::Capabilities) && sys::lock_securebits().is_err() {
        // What is left is seen by the check after the plan: the layer is then absent.
        tracing::error!("the secure bits could not be locked");
    }
    let prepared = Word::Prepared(layers.clone());
    if wire::send(keeper.as_fd(), &prepared, &[folders[0].as_fd(), folders[1].as_fd()], MsgFlags::empty())
        .is_ok()
        && let Ok(Some((bytes, fds))) = wire::receive_bytes(keeper.as_fd(), MsgFlags::empty())
    {
        let mut stage = Stage { setup, paths: BoxPaths::new(base), landlock, layers };
        let (socket, word) = stage.carry_out(keeper.as_fd(), &bytes, fds);
        let _ = wire::send(socket.unwrap_or(keeper.as_fd()), &word, &[], MsgFlags::empty());
    }
    sys::exit_now(NEVER_STARTED)
}

struct Stage<'a> {
    setup: &'a Setup,
    paths: BoxPaths,
    /// `None`: the kernel has none, or it was left out.
    landlock: Option<&'a Rules>,
    layers: Layers,
}

/// The keeper's socket after the descriptors were put in order.
type Socket = Option<BorrowedFd<'static>>;

impl Stage<'_> {
    /// Does everything up to execve. Returns only if the script does not start, with the reason.
    fn carry_out(&mut self, keeper: BorrowedFd<'_>, bytes: &[u8], fds: Vec<OwnedFd>) -> (Socket, Word) {
        let mut socket = None;
        let word = match self.build(keeper, bytes, fds, &mut socket) {
            Ok(word) => word,
            Err(error) => Word::Failed { error, layers: self.layers.clone() },
        };
        (socket, word)
    }

    fn build(
        &mut self,
        keeper: BorrowedFd<'_>,
        bytes: &[u8],
        fds: Vec<OwnedFd>,
        socket: &mut Socket,
    ) -> Result<Word, StepError> {
        // The keeper has checked the plan; this is the same code on the same bytes.
        let plan = Plan::parse(bytes).map_err(|message| StepError::other("plan", message))?;
        let plan = self.setup.adapt(plan);
        let fds = StageFds::from_list(fds).ok_or_else(|| StepError::other("plan", "descriptors missing"))?;
        self.fill_box(&plan, &fds)?;
        let destinations = plan.destinations.as_deref().unwrap_or_default();
        self.network(keeper, destinations)?;
        template::seal(&self.paths.base().join("in"))?;
        self.landlock(fds.inputs.stdin.as_ref(), destinations);
        let (keeper, go) = self.descriptors(keeper, fds, plan.terminal)?;
        *socket = Some(keeper);
        setsid().step("session", "setsid")?;
        if plan.terminal {
            sys::take_terminal(std::io::stdin().as_fd()).step("terminal", "making it the session's own")?;
        }
        // What `admin` leaves behind is the host's, and others have to read it.
        let mask = if self.setup.profile == Profile::Admin { 0o022 } else { 0o077 };
        umask(Mode::from_bits_truncate(mask));
        chdir(&self.paths.work()).step("box", "entering the work folder")?;
        self.rlimits(&plan.limits)?;
        self.no_new_privs()?;
        self.seccomp();
        self.capabilities()?;
        prctl::set_dumpable(false).step("dumpable", "closing memory to others")?;
        self.environment();
        let missing = missing(&self.layers, &plan.require);
        if !missing.is_empty() {
            let names: Vec<_> = missing.iter().map(|l| l.name()).collect();
            let message = format!("the plan requires {}, which this sandbox lacks", names.join(", "));
            return Err(StepError::other("require", message));
        }
        // Prepared before the wait, so that nothing but execve comes after it.
        let program = program::prepare(&plan, &self.paths, self.setup.broken(Layer::Environment));
        sys::reset_signals().step("signals", "resetting signals")?;
        if !released(go) {
            return Ok(Word::NotReleased(self.layers.clone()));
        }
        let word = Word::Go(self.layers.clone());
        wire::send(keeper, &word, &[], MsgFlags::empty()).step("go", "telling the keeper")?;
        Ok(match program.execute() {
            program::Failure::NotFound(what) => Word::NotFound { what, layers: self.layers.clone() },
            program::Failure::Exec(errno) => Word::ExecFailed {
                errno: errno as i32,
                message: program::explain(errno).into(),
                layers: self.layers.clone(),
            },
        })
    }

    /// Puts script and parameters where only reading is possible, and sets the plan's sizes.
    fn fill_box(&self, plan: &Plan, fds: &StageFds) -> Result<(), StepError> {
        let (defaults, wanted) = (Limits::default(), &plan.limits);
        if (wanted.work_bytes, wanted.work_files) != (defaults.work_bytes, defaults.work_files) {
            template::resize_work(self.paths.base(), wanted.work_bytes, wanted.work_files)?;
        }
        let mut room = plan.limits.script_bytes;
        if matches!(plan.program, Program::Script { .. }) {
            copy_in(fds.inputs.script.as_fd(), &self.paths.script(), 0o500, &mut room)?;
        }
        copy_in(fds.inputs.params.as_fd(), &self.paths.params(), 0o600, &mut room)?;
        secrets::fill(fds.inputs.secrets.as_fd(), &self.paths.secrets())
    }

    /// Makes the destinations of the list, gives the sockets that stand for them to the keeper's connector, and waits until
    /// it serves them.
    fn network(&mut self, keeper: BorrowedFd<'_>, list: &[Destination]) -> Result<(), StepError> {
        const STEP: &str = "network";
        if !self.setup.has_own_destinations() {
            return Ok(());
        }
        let sockets = network_inside::build(list)?;
        for some in sockets.chunks(wire::MAX_FDS) {
            let some: Vec<_> = some.iter().map(OwnedFd::as_fd).collect();
            wire::send(keeper, &Word::Listening, &some, MsgFlags::empty())
                .step(STEP, "giving sockets away")?;
        }
        if !list.is_empty() {
            let (ready, end) = wire::pair().step(STEP, "socket pair")?;
            wire::send(keeper, &Word::Serve, &[end.as_fd()], MsgFlags::empty())
                .step(STEP, "asking for the way out")?;
            drop(end);
            network_inside::await_connector(&ready, list)?;
            let hosts = network::hosts(list);
            if !hosts.is_empty() {
                template::put_hosts(self.paths.base(), &hosts)?;
            }
        }
        let other = verify::is_in_another_network(self.setup);
        self.layers.insert(Layer::Net, if other { network_inside::check(list) } else { Hold::Absent });
        Ok(())
    }

    /// Puts 0 to 3 in place and the two own ones behind them, close-on-exec; closes all others.
    fn descriptors(
        &mut self,
        keeper: BorrowedFd<'_>,
        fds: StageFds,
        terminal: bool,
    ) -> Result<(BorrowedFd<'static>, BorrowedFd<'static>), StepError> {
        const STEP: &str = "descriptors";
        let stdin = match fds.inputs.stdin {
            Some(stdin) => stdin,
            None => open("/dev/null", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty())
                .step(STEP, "/dev/null")?,
        };
        // A terminal is all three; the pipes then end here.
        let (stdout, stderr) = if terminal { (&stdin, &stdin) } else { (&fds.stdout, &fds.stderr) };
        // Out of the way of the numbers to be filled.
        let sources = [stdin.as_fd(), stdout.as_fd(), stderr.as_fd(), fds.result.as_fd(), keeper]
            .into_iter()
            .chain([fds.inputs.go.as_fd()])
            .map(|fd| sys::duplicate_above(fd, 16))
            .collect::<nix::Result<Vec<_>>>()
            .step(STEP, "duplicating")?;
        let mut placed = Vec::new();
        for (number, source) in (0..).zip(&sources) {
            placed.push(sys::place(source.as_fd(), number, number > 3).step(STEP, "putting in place")?);
        }
        let (Some(go), Some(keeper)) = (placed.pop(), placed.pop()) else {
            return Err(StepError::other(STEP, "a descriptor is missing"));
        };
        // Owners of what is closed now must never run their destructors.
        std::mem::forget((sources, stdin, fds.stdout, fds.stderr, fds.result));
        std::mem::forget((fds.inputs.go, fds.inputs.script, fds.inputs.params, fds.inputs.secrets));
        if !self.setup.broken(Layer::ClosedDescriptors) {
            sys::close_range(6, i32::MAX).step(STEP, "closing the others")?;
        } else if let Ok(leak) = open("/", OFlag::O_RDONLY, Mode::empty()) {
            std::mem::forget(leak); // For tests: the leak that the layer prevents.
        }
        self.layers.insert(Layer::ClosedDescriptors, verify::closed_descriptors());
        Ok((keeper, go))
    }

    fn rlimits(&mut self, limits: &Limits) -> Result<(), StepError> {
        // Keeper and init are processes of this uid too. Where the group limits them this is the second wall: the first
        // one counts what it refuses.
        let others = if self.setup.group.limits_processes() { 16 } else { 2 };
        let processes = limits.processes.saturating_add(others);
        let wanted = [
            (Resource::RLIMIT_NOFILE, limits.open_files),
            (Resource::RLIMIT_FSIZE, limits.file_bytes),
            (Resource::RLIMIT_NPROC, processes),
            (Resource::RLIMIT_CORE, 0),
            (Resource::RLIMIT_MEMLOCK, 64 * 1024),
            (Resource::RLIMIT_MSGQUEUE, 0),
        ];
        let mut wanted = wanted.to_vec();
        if !self.setup.group.limits_memory() {
            wanted.push((Resource::RLIMIT_DATA, limits.memory_bytes));
        }
        if !self.setup.group.counts_cpu() {
            wanted.push((Resource::RLIMIT_CPU, limits.cpu_ms.div_ceil(1000) + CPU_TO_KILL));
        }
        if self.setup.broken(Layer::Rlimits) {
            self.layers.insert(Layer::Rlimits, verify::rlimits(&wanted));
            return Ok(());
        }
        for (resource, most) in wanted.iter().copied() {
            let value = lower(most, getrlimit(resource).step("rlimits", "reading a limit")?.1);
            // At the first of the two processor limits the process can still say something.
            let soft =
                if resource == Resource::RLIMIT_CPU { value.saturating_sub(CPU_TO_KILL) } else { value };
            setrlimit(resource, soft, value).step("rlimits", format!("{resource:?}"))?;
        }
        self.layers.insert(Layer::Rlimits, verify::rlimits(&wanted));
        Ok(())
    }

    fn capabilities(&mut self) -> Result<(), StepError> {
        const STEP: &str = "capabilities";
        if self.setup.profile == Profile::Admin {
            // Root keeps them.
        } else if self.setup.broken(Layer::Capabilities) {
            sys::pass_capabilities_on().step(STEP, "keeping them, as a test asked")?;
        } else {
            sys::set_capabilities(0).step(STEP, "dropping all")?;
            if verify::can_regain_capabilities() {
                return Err(StepError::other(STEP, "dropped capabilities could be taken back"));
            }
        }
        self.layers.insert(Layer::Capabilities, verify::capabilities(self.setup));
        Ok(())
    }

    fn no_new_privs(&mut self) -> Result<(), StepError> {
        const STEP: &str = "no_new_privs";
        if !self.setup.broken(Layer::NoNewPrivs) {
            prctl::set_no_new_privs().step(STEP, "setting")?;
            if sys::clear_no_new_privs().is_ok() {
                return Err(StepError::other(STEP, "it could be taken back"));
            }
        }
        let holds = prctl::get_no_new_privs() == Ok(true);
        self.layers.insert(Layer::NoNewPrivs, if holds { Hold::Enforced } else { Hold::Absent });
        Ok(())
    }

    /// Puts landlock's rules on: nothing can be mounted from here on.
    fn landlock(&mut self, stdin: Option<&OwnedFd>, destinations: &[Destination]) {
        let Some(rules) = self.landlock else {
            self.layers.insert(Layer::Landlock, Hold::Absent);
            return;
        };
        if let Some(stdin) = stdin {
            // A pipe has no rule and needs none.
            let _ = rules.allow_reading(stdin);
        }
        let ports = network::ports(destinations);
        if let Err(errno) = rules.allow_ports(ports.into_iter()).and_then(|()| rules.put_on()) {
            tracing::error!(error = %errno, "landlock's rules cannot be put on");
        }
        self.layers.insert(Layer::Landlock, verify::landlock(rules));
    }

    /// Takes away what only keeper, init and stage may call. From here on nothing can be mounted.
    fn seccomp(&mut self) {
        let installed = self.setup.filters.as_ref().map(Filters::install_last);
        if let Some(Err(errno)) = installed {
            tracing::error!(error = %errno, "the last system call filter cannot be installed");
        }
        self.layers.insert(Layer::Seccomp, verify::seccomp());
    }

    /// The environment is what is passed to execve, so there is nothing to read back.
    fn environment(&mut self) {
        let broken = self.setup.broken(Layer::Environment);
        self.layers.insert(Layer::Environment, if broken { Hold::Absent } else { Hold::Enforced });
    }
}

impl StageFds {
    fn from_list(list: Vec<OwnedFd>) -> Option<Self> {
        let mut fds = list.into_iter();
        let (stdout, stderr, result) = (fds.next()?, fds.next()?, fds.next()?);
        Some(Self { stdout, stderr, result, inputs: Inputs::from_iter(&mut fds)? })
    }
}

/// The lower of a wanted limit and what the process may have at most.
fn lower(wanted: u64, hard: rlim_t) -> rlim_t {
    wanted.min(hard)
}

/// Waits for the agent's byte. The end of the pipe is "no".
fn released(go: BorrowedFd<'_>) -> bool {
    let mut byte = [0];
    loop {
        match read(go, &mut byte) {
            Err(Errno::EINTR) => {}
            answer => return answer == Ok(1),
        }
    }
}

/// Copies a whole file into the box, from its beginning, up to what `room` leaves.
fn copy_in(source: BorrowedFd<'_>, target: &Path, mode: u32, room: &mut u64) -> Result<(), StepError> {
    let name = target.file_name().unwrap_or_default().display();
    let size = u64::try_from(fstat(source).step("box", &name)?.st_size).unwrap_or_default();
    let Some(rest) = room.checked_sub(size) else {
        return Err(StepError::other(
            "box",
            format!("{name} of {size} bytes is over the limit script_bytes"),
        ));
    };
    *room = rest;
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
    let mut file = File::from(open(target, flags, Mode::from_bits_truncate(mode)).step("box", &name)?);
    let mut buffer = vec![0; usize::try_from(size.min(COPY_BUFFER)).unwrap_or_default()];
    let mut offset = 0;
    while offset < size {
        // At an offset: the agent's own position in the file may be anywhere.
        let length = pread(source, &mut buffer, offset as i64).step("box", format!("reading {name}"))?;
        if length == 0 {
            return Err(StepError::other("box", format!("{name} became shorter while it was copied")));
        }
        let length = length.min(usize::try_from(size - offset).unwrap_or(length));
        file.write_all(&buffer[..length]).step("box", format!("copying {name}"))?;
        offset += length as u64;
    }
    Ok(())
}
