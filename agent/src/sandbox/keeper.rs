//! The keeper: owns one slot. Forked by the launcher, it builds its user and network namespace and its
//! root once, keeps a sandbox prepared, and carries out one plan after the other. It outlives the
//! launcher while an attempt runs.
#![forbid(unsafe_code)]

use super::account::Account;
use super::artifacts::NamedFiles;
use super::attempt;
use super::cgroup_group::Group;
use super::definition::ProfileDefinition;
use super::extras::Extras;
use super::forker::Forker;
use super::init::{self, Prepared};
use super::layer::Layer;
use super::network_connector::Connector;
use super::plan::Plan;
use super::profile::{Policy, Profile, Shape};
use super::seccomp::Filters;
use super::step::{Step, StepError};
use super::sys::{self, Fork};
use super::template::Template;
use super::verify::NamespaceIds;
use super::wire::{self, Answer, Mode, Notice, Order, PlanFds};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sched::{CloneFlags, unshare};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::socket::MsgFlags;
use nix::sys::stat::umask;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{
    Gid, Pid, Uid, getgid, getpid, getppid, getuid, pipe2, read, setgroups, setresgid, setresuid, setsid,
    write,
};
use std::collections::BTreeSet;
use std::fs;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a keeper is made for and from. Everything in it was decided by the launcher.
pub(super) struct Setup {
    pub(super) slot: u16,
    /// The kind of plans it carries out. Its profile stands beside it, because everything asks for that.
    pub(super) shape: Shape,
    pub(super) profile: Profile,
    /// What its operator's profile changes.
    pub(super) definition: Option<Arc<ProfileDefinition>>,
    /// The account of the host that its scripts run as.
    pub(super) account: Option<Account>,
    /// Its plans have a list of destinations, by themselves or by the operator's profile, in place of the profile's
    /// network.
    pub(super) listed: bool,
    pub(super) mode: Mode,
    /// The uid and gid of the script; in mode `root` also the kernel's.
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The uid and gid of the connector, in mode `root`.
    pub(super) connector_uid: u32,
    pub(super) policy: Policy,
    pub(super) host_box: PathBuf,
    /// The program that is `sally-task` inside.
    pub(super) task_program: PathBuf,
    /// The slot's control group.
    pub(super) group: Group,
    /// The slot's lock file: whoever lives in the slot holds it.
    pub(super) lock: PathBuf,
    /// The launcher's namespaces.
    pub(super) host: NamespaceIds,
    /// The device of the launcher's root file system.
    pub(super) host_root_device: u64,
    /// The keeper's own mount namespace, once it has one.
    pub(super) keeper_mount: u64,
    /// The system call filters of the profile; `None` if they could not be made or installed.
    pub(super) filters: Option<Filters>,
    /// Finds the files that a script named.
    pub(super) named_files: NamedFiles,
    /// Layers left out on purpose, for tests.
    pub(super) broken: Vec<Layer>,
}

/// The layers that `admin` is without: it is the host.
pub(super) const ADMIN_IS_WITHOUT: [Layer; 10] = [
    Layer::User,
    Layer::Pid,
    Layer::Net,
    Layer::Ipc,
    Layer::Uts,
    Layer::Root,
    Layer::NoNewPrivs,
    Layer::Capabilities,
    Layer::Seccomp,
    Layer::Landlock,
];

impl Setup {
    /// Whether a layer is left out: by `admin`, or by a test.
    pub(super) fn broken(&self, layer: Layer) -> bool {
        self.broken.contains(&layer) || (self.profile == Profile::Admin && ADMIN_IS_WITHOUT.contains(&layer))
    }

    /// A plan as it is carried out here: with what the operator's profile sets.
    pub(super) fn adapt(&self, mut plan: Plan) -> Plan {
        if let Some(definition) = &self.definition {
            definition.apply(&mut plan);
        }
        plan
    }

    /// Whether attempts have a network of their own with destinations in it. Without the layer, for tests, they have the
    /// host's, and landlock alone keeps to the list's ports.
    pub(super) fn has_own_destinations(&self) -> bool {
        self.listed && !self.broken(Layer::Net)
    }
}

/// How often in a row a sandbox may fail to be built before the keeper gives up.
const MAX_FAILURES: u32 = 3;

/// A keeper at work. `attempt` drives it through one plan.
pub(super) struct Keeper {
    pub(super) setup: Setup,
    /// `None` once the launcher is gone.
    pub(super) launcher: Option<OwnedFd>,
    /// The agent's socket, if it has one.
    pub(super) client: Option<OwnedFd>,
    /// End after the attempt.
    pub(super) stopping: bool,
    pub(super) lock: OwnedFd,
    /// Makes the connections of attempts with a list of destinations.
    pub(super) connector: Option<Connector>,
    /// The box as attempts see it.
    base: PathBuf,
    prepared: Result<Prepared, StepError>,
    forker: Option<Forker>,
    failures: u32,
}

/// What came from the launcher.
pub(super) enum FromLauncher {
    Nothing,
    /// End; `kill`: with the attempt.
    Stop {
        kill: bool,
    },
}

/// The life of a keeper. It starts as a copy of the launcher and never returns.
pub(super) fn enter(setup: Setup, launcher: OwnedFd) -> ! {
    let notify = |notice: &Notice| wire::send(launcher.as_fd(), notice, &[], MsgFlags::empty());
    let built = build(setup, launcher.as_fd());
    let (mut setup, lock, connector, base) = match built {
        Ok(parts) => parts,
        Err(error) => {
            let _ = notify(&Notice::Failed(error));
            sys::exit_now(1)
        }
    };
    let mut forker = None;
    let prepared = init::prepare(&mut setup, &base, &lock, &mut forker);
    let notice = match &prepared {
        Ok(prepared) => Notice::Ready(prepared.layers.clone()),
        Err(error) => Notice::Failed(error.clone()),
    };
    let sent = notify(&notice);
    if sent.is_err() || prepared.is_err() {
        sys::exit_now(1);
    }
    let launcher = Some(launcher);
    let (client, stopping, failures) = (None, false, 0);
    let mut keeper =
        Keeper { setup, launcher, client, stopping, lock, connector, base, prepared, forker, failures };
    keeper.complain_of_forker();
    keeper.serve()
}

impl Keeper {
    fn serve(mut self) -> ! {
        loop {
            if self.prepared.is_err() && !self.stopping {
                self.renew();
            }
            let Some(launcher) = self.launcher.as_ref().filter(|_| !self.stopping) else {
                sys::exit_now(0); // Idle without a launcher: nobody can reach this slot any more.
            };
            self.end_without_connector();
            let mut fds = vec![PollFd::new(launcher.as_fd(), PollFlags::POLLIN)];
            if let Ok(prepared) = &self.prepared {
                fds.push(PollFd::new(prepared.init_socket.as_fd(), PollFlags::POLLIN));
            }
            if let Some(client) = &self.client {
                fds.push(PollFd::new(client.as_fd(), PollFlags::POLLIN));
            }
            let answers = fds.len();
            fds.extend(self.connector.iter().map(|c| PollFd::new(c.socket(), PollFlags::empty())));
            if poll(&mut fds, PollTimeout::NONE).is_err() {
                continue;
            }
            fds.truncate(answers);
            let ready: Vec<bool> = fds.iter().map(|fd| fd.any() == Some(true)).collect();
            let init_ready = self.prepared.is_ok() && ready[1];
            let client_ready = self.client.is_some() && ready.last() == Some(&true);
            if ready[0]
                && let FromLauncher::Stop { .. } = self.hear_launcher()
            {
                continue;
            }
            if init_ready {
                self.renew(); // It can only have died.
            }
            if client_ready && let Some((plan, bytes, fds)) = self.hear_client(false) {
                self.run(plan, &bytes, fds);
            }
        }
    }

    fn run(&mut self, plan: Plan, bytes: &[u8], fds: PlanFds) {
        let _ = self.notify(&Notice::Busy);
        let prepared = std::mem::replace(&mut self.prepared, Err(StepError::other("init", "in use")));
        attempt::run(self, &plan, bytes, fds, prepared);
        self.end_without_connector();
        if self.launcher.is_some() && !self.stopping {
            self.renew();
            let _ = self.notify(&Notice::Idle);
        }
    }

    /// A connector can be made only where this keeper has come from: by the launcher, with its next keeper.
    fn end_without_connector(&self) {
        if self.connector.as_ref().is_some_and(Connector::is_dead) {
            sys::exit_now(1);
        }
    }

    /// Prepares another sandbox in place of one that was used or died.
    fn renew(&mut self) {
        if let Ok(dead) = &self.prepared {
            let _ = kill(dead.init, Signal::SIGKILL);
            let _ = waitpid(dead.init, None);
        }
        self.prepared = init::prepare(&mut self.setup, &self.base, &self.lock, &mut self.forker);
        self.complain_of_forker();
        match &self.prepared {
            Ok(_) => self.failures = 0,
            Err(error) => {
                self.failures += 1;
                if self.failures == MAX_FAILURES {
                    let _ = self.notify(&Notice::Failed(error.clone()));
                    sys::exit_now(1);
                }
            }
        }
    }

    /// Logs, once, why the forker is not in the slot's control group. A launcher that ends removes the groups: then
    /// nothing is wrong, and no plan will come.
    fn complain_of_forker(&mut self) {
        let Some(error) = self.forker.as_mut().and_then(|forker| forker.trouble.take()) else { return };
        self.hear_launcher();
        if self.launcher.is_some() && !self.stopping {
            tracing::error!(slot = self.setup.slot, "{error}; limits hold for each process alone");
        }
    }

    /// Tells the launcher, if there is one.
    pub(super) fn notify(&self, notice: &Notice) -> nix::Result<()> {
        match &self.launcher {
            Some(launcher) => wire::send(launcher.as_fd(), notice, &[], MsgFlags::MSG_DONTWAIT),
            None => Ok(()),
        }
    }

    /// Takes one message of the launcher, or notes that it is gone.
    pub(super) fn hear_launcher(&mut self) -> FromLauncher {
        let Some(launcher) = &self.launcher else { return FromLauncher::Nothing };
        match wire::receive::<Order>(launcher.as_fd(), MsgFlags::MSG_DONTWAIT) {
            Ok(Some((Order::Client, fds))) => {
                self.client = fds.into_iter().next();
                FromLauncher::Nothing
            }
            Ok(Some((Order::Stop { kill }, _))) => {
                self.stopping = true;
                FromLauncher::Stop { kill }
            }
            Err(Errno::EAGAIN | Errno::EINTR) => FromLauncher::Nothing,
            Ok(None) | Err(_) => {
                self.launcher = None;
                FromLauncher::Nothing
            }
        }
    }

    /// Takes one message of the agent and answers it. Returns a plan that may be carried out; when
    /// `busy`, never.
    pub(super) fn hear_client(&mut self, busy: bool) -> Option<(Plan, Vec<u8>, PlanFds)> {
        let client = self.client.as_ref()?;
        let (bytes, fds) = match wire::receive_bytes(client.as_fd(), MsgFlags::MSG_DONTWAIT) {
            Ok(Some(message)) => message,
            Err(Errno::EAGAIN | Errno::EINTR) => return None,
            Err(Errno::EMSGSIZE) => {
                self.answer(&Answer::Refused("the plan or its descriptors are too many".into()));
                return None;
            }
            Ok(None) | Err(_) => {
                self.client = None;
                return None;
            }
        };
        let plan = match self.examine(&bytes) {
            Ok(plan) => plan,
            Err(message) => {
                self.answer(&Answer::Refused(message));
                return None;
            }
        };
        if busy {
            self.answer(&Answer::Busy);
            return None;
        }
        match PlanFds::from_list(fds) {
            Some(fds) if plan.terminal && fds.inputs.stdin.is_some() => {
                self.answer(&Answer::Refused("the plan has a terminal and came with another input".into()));
                None
            }
            Some(fds) => Some((plan, bytes, fds)),
            None => {
                self.answer(&Answer::Refused("the plan came with too few or too many descriptors".into()));
                None
            }
        }
    }

    fn examine(&self, bytes: &[u8]) -> Result<Plan, String> {
        let asked = Plan::parse(bytes)?;
        self.setup.policy.check(&asked)?;
        // What the operator's profile sets is the launcher's own, and within no policy but its limits.
        let plan = self.setup.adapt(asked);
        plan.limits.check_within(&self.setup.policy.ceiling)?;
        let Shape { profile, defined, user, terminal, .. } = &self.setup.shape;
        if (plan.profile, &plan.defined, &plan.user) != (*profile, defined, user) {
            return Err(format!("this keeper is made for {}, not for {}", self.setup.shape, plan.shape()));
        }
        if plan.terminal != *terminal {
            return Err(
                "this keeper is made for plans with a terminal, or for those without: ask again".into()
            );
        }
        if plan.is_listed() != self.setup.listed {
            return Err("this keeper is made for another kind of network than the plan's".into());
        }
        Ok(plan)
    }

    pub(super) fn answer(&self, answer: &Answer) {
        self.answer_with(answer, None);
    }

    /// Answers with the master of a terminal, if there is one.
    pub(super) fn answer_with(&self, answer: &Answer, terminal: Option<OwnedFd>) {
        if let Some(client) = &self.client {
            let fds: Vec<_> = terminal.iter().map(OwnedFd::as_fd).collect();
            let _ = wire::send(client.as_fd(), answer, &fds, MsgFlags::MSG_DONTWAIT);
        }
    }
}

/// Builds all that lives as long as the keeper: lock, session, user and network namespace, uid, root.
fn build(
    mut setup: Setup,
    launcher: BorrowedFd<'_>,
) -> Result<(Setup, OwnedFd, Option<Connector>, PathBuf), StepError> {
    let _ = prctl::set_name(c"sally-keeper");
    let group = setup.group.descriptors();
    let keep = |more: &[RawFd]| [more, &group].concat();
    init::close_all_but(&keep(&[launcher.as_raw_fd()])).step("keeper", "closing descriptors")?;
    setsid().step("keeper", "setsid")?;
    SigSet::empty().thread_set_mask().step("keeper", "signal mask")?;
    sys::ignore_signal(Signal::SIGPIPE).step("keeper", "ignoring SIGPIPE")?;
    quiet_input_and_output()?;
    umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let lock = take_slot(&setup.lock)?;
    // From the launcher's namespaces, and as root where it is.
    let connector = setup.has_own_destinations().then(|| Connector::start(&setup, &lock)).transpose()?;
    let (task_program, extras) = own_namespaces(&setup)?;
    setup.keeper_mount = NamespaceIds::own().mount;
    let template = Template {
        profile: setup.profile,
        listed: setup.listed,
        terminal: setup.shape.terminal,
        host_box: &setup.host_box,
        task_program: task_program.as_fd(),
        uid: setup.uid,
        gid: setup.gid,
        account: setup.account.as_ref().map_or("sally", |account| &account.name),
        extras,
        break_root: setup.broken(Layer::Root),
    };
    template.enter()?;
    let base = template.box_path().to_owned();
    // Before their descriptors are closed below.
    drop(template);
    drop(task_program);
    prctl::set_dumpable(false).step("keeper", "closing memory to others")?;
    let connector_socket = connector.as_ref().map_or(-1, |connector| connector.socket().as_raw_fd());
    init::close_all_but(&keep(&[launcher.as_raw_fd(), lock.as_raw_fd(), connector_socket]))
        .step("keeper", "closing descriptors")?;
    leave_keyrings();
    install_filters(&mut setup);
    Ok((setup, lock, connector, base))
}

/// Leaves the session keyring of whoever started the launcher. A kernel without keys has nothing to leave.
fn leave_keyrings() {
    if let Err(errno) = sys::join_new_session_keyring()
        && errno != Errno::ENOSYS
    {
        tracing::warn!(error = %errno, "no new session keyring; the system call filter keeps scripts from keys");
    }
}

/// Installs what keeper, init and every attempt share of the system call filter. Without it the layer is
/// reported `absent`, and a plan that requires it is refused.
fn install_filters(setup: &mut Setup) {
    if setup.broken(Layer::Seccomp) {
        setup.filters = None;
    }
    if let Some(Err(errno)) = setup.filters.as_ref().map(Filters::install_first) {
        tracing::error!(error = %errno, "the system call filter cannot be installed");
        setup.filters = None;
    }
}

/// Standard error stays: it is the launcher's log.
fn quiet_input_and_output() -> Result<(), StepError> {
    let null = open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())
        .step("keeper", "/dev/null")?;
    nix::unistd::dup2_stdin(&null).step("keeper", "standard input")?;
    nix::unistd::dup2_stdout(&null).step("keeper", "standard output")
}

/// Waits until nobody else lives in the slot. While it waits, the launcher's death is its own.
fn take_slot(path: &Path) -> Result<OwnedFd, StepError> {
    let parent = getppid();
    prctl::set_pdeathsig(Signal::SIGKILL).step("slot", "asking for the launcher's death signal")?;
    if getppid() != parent {
        sys::exit_now(1);
    }
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_CLOEXEC;
    let file =
        open(path, flags, nix::sys::stat::Mode::from_bits_truncate(0o600)).step("slot", path.display())?;
    while let Err(errno) = sys::lock(file.as_fd()) {
        if errno != Errno::EINTR {
            return Err(StepError::new("slot", errno, path.display()));
        }
    }
    prctl::set_pdeathsig(None).step("slot", "no death signal any more")?;
    write_owner(&file).step("slot", path.display())?;
    Ok(file)
}

/// The slot's lock file.
pub(super) fn lock_path(state: &Path, slot: u16) -> PathBuf {
    state.join(format!("slot-{slot}.lock"))
}

/// The keeper that lives in a slot, by its lock file. A process id alone is reused; with its time of start it is not.
pub(super) fn owner(path: &Path) -> Option<Pid> {
    let text = fs::read_to_string(path).ok()?;
    let (pid, started) = text.trim().split_once(' ')?;
    let pid: i32 = pid.parse().ok().filter(|pid| *pid > 1)?;
    (started_at(&pid.to_string())? == started).then(|| Pid::from_raw(pid))
}

fn write_owner(file: &OwnedFd) -> nix::Result<()> {
    let started = started_at("self").unwrap_or_default();
    nix::unistd::ftruncate(file, 0)?;
    nix::sys::uio::pwrite(file, format!("{} {started}\n", getpid()).as_bytes(), 0).map(drop)
}

/// When a process started, in the kernel's ticks.
pub(super) fn started_at(process: &str) -> Option<String> {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // The name in parentheses may hold anything.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(19).map(str::to_owned)
}

/// Enters an own user namespace with its map, and with it own mount and (for `strict`, and with a list of
/// destinations) network namespaces.
/// Returns the program that is `sally-task`, and what an operator's profile names, opened in between: a bind needs it
/// from the new mount namespace, and the script's uid may not reach it.
fn own_namespaces(setup: &Setup) -> Result<(OwnedFd, Extras), StepError> {
    // The launcher's memory is closed, and with it the files in which the map is written. Closed again by `build`.
    prctl::set_dumpable(true).step("user", "opening the map")?;
    let mut flags = CloneFlags::CLONE_NEWNS;
    if (setup.profile == Profile::Strict || setup.listed) && !setup.broken(Layer::Net) {
        flags |= CloneFlags::CLONE_NEWNET;
    }
    if setup.broken(Layer::User) {
        unshare(flags).step("user", "new namespaces without a user namespace")?;
        return open_sources(setup);
    }
    flags |= CloneFlags::CLONE_NEWUSER;
    match setup.mode {
        Mode::Root => {
            map_by_helper(setup, flags)?;
            let sources = open_sources(setup)?;
            let (uid, gid) = (Uid::from_raw(setup.uid), Gid::from_raw(setup.gid));
            let groups = setup.account.as_ref().map_or(&[][..], |account| &account.groups);
            let groups: Vec<Gid> = groups.iter().copied().map(Gid::from_raw).collect();
            setgroups(&groups).step("uid", "supplementary groups")?;
            sys::keep_capabilities_across_uids().step("uid", "keeping capabilities")?;
            setresgid(gid, gid, gid).step("uid", format!("becoming group {gid}"))?;
            setresuid(uid, uid, uid).step("uid", format!("becoming uid {uid}"))?;
            Ok(sources)
        }
        Mode::User => {
            let (uid, gid) = (getuid(), getgid());
            unshare(flags).map_err(explain_user_namespace)?;
            write_map("setgroups", None, "deny")?;
            write_map("uid_map", None, &format!("{} {uid} 1", setup.uid))?;
            write_map("gid_map", None, &format!("{} {gid} 1", setup.gid))?;
            open_sources(setup)
        }
    }
}

fn open_sources(setup: &Setup) -> Result<(OwnedFd, Extras), StepError> {
    Ok((open_task_program(setup)?, Extras::open(setup.definition.as_deref())?))
}

fn open_task_program(setup: &Setup) -> Result<OwnedFd, StepError> {
    let flags = OFlag::O_PATH | OFlag::O_CLOEXEC;
    let path = &setup.task_program;
    open(path, flags, nix::sys::stat::Mode::empty())
        .step("root", format!("sally-task from {}", path.display()))
}

/// Only a process outside the new user namespace may map other ids than its own: a short-lived helper.
fn map_by_helper(setup: &Setup, flags: CloneFlags) -> Result<(), StepError> {
    let keeper = getpid();
    let (wait, signal) = pipe2(OFlag::O_CLOEXEC).step("user", "pipe")?;
    match sys::fork().step("user", "forking a helper")? {
        Fork::Child => {
            drop(signal);
            let mut byte = [0];
            let told = read(&wait, &mut byte) == Ok(1);
            let groups = setup.account.as_ref().map_or(&[][..], |account| &account.groups);
            let written = told
                && write_map("uid_map", Some(keeper), &id_map(setup.profile, &[setup.uid])).is_ok()
                && write_map(
                    "gid_map",
                    Some(keeper),
                    &id_map(setup.profile, &[&[setup.gid], groups].concat()),
                )
                .is_ok();
            sys::exit_now(if written { 0 } else { 1 })
        }
        Fork::Parent(helper) => {
            let unshared = unshare(flags).map_err(explain_user_namespace);
            if unshared.is_ok() {
                write(&signal, b"u").step("user", "telling the helper")?;
            }
            drop(signal);
            let ended = waitpid(helper, None).step("user", "waiting for the helper")?;
            unshared?;
            if ended != WaitStatus::Exited(helper, 0) {
                let message =
                    format!("uid {} could not be mapped: is the launcher really root here?", setup.uid);
                return Err(StepError::other("user", message));
            }
            Ok(())
        }
    }
}

/// The map of a user namespace: each id is itself.
fn id_map(profile: Profile, ids: &[u32]) -> String {
    /// The ids of accounts: in `host` the owners of the host's files are to be seen as they are.
    const ACCOUNTS: u32 = 65_536;
    let all = profile == Profile::Host;
    let ids: BTreeSet<u32> = ids.iter().copied().filter(|id| !all || *id >= ACCOUNTS).collect();
    let ranges = all.then(|| format!("0 0 {ACCOUNTS}"));
    let lines: Vec<String> = ranges.into_iter().chain(ids.iter().map(|id| format!("{id} {id} 1"))).collect();
    lines.join("\n")
}

fn write_map(name: &str, pid: Option<Pid>, text: &str) -> Result<(), StepError> {
    let process = pid.map_or("self".into(), |pid| pid.to_string());
    let path = format!("/proc/{process}/{name}");
    fs::write(&path, text).step("user", path)
}

fn explain_user_namespace(errno: Errno) -> StepError {
    let hint = match errno {
        Errno::ENOSPC => "; raise the sysctl user.max_user_namespaces (0 forbids them)",
        Errno::EPERM | Errno::EACCES => {
            "; this host forbids user namespaces: see kernel.unprivileged_userns_clone, \
             kernel.apparmor_restrict_unprivileged_userns, or the container's settings"
        }
        _ => "",
    };
    let mut error = StepError::new("user", errno, "new user namespace");
    error.message.push_str(hint);
    error
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn an_id_is_mapped_once_and_to_itself() {
        assert_eq!(id_map(Profile::Strict, &[200_001]), "200001 200001 1");
        assert_eq!(id_map(Profile::Net, &[1000, 4, 1000]), "4 4 1\n1000 1000 1");
        assert_eq!(id_map(Profile::Host, &[1000]), "0 0 65536");
        assert_eq!(id_map(Profile::Host, &[200_001, 27]), "0 0 65536\n200001 200001 1");
    }

    #[test]
    fn a_slots_owner_is_known_by_its_start_too() {
        let dir = tempfile::tempdir().unwrap();
        let path = lock_path(dir.path(), 3);
        let file = fs::File::create(&path).unwrap();
        write_owner(&file.into()).unwrap();
        assert_eq!(owner(&path), Some(getpid()));
        for text in [format!("{} 1\n", getpid()), "1 1".into(), String::new(), "x".into()] {
            fs::write(&path, &text).unwrap();
            assert_eq!(owner(&path), None, "{text}");
        }
    }
}
