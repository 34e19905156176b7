//! The keeper: owns one slot. Forked by the launcher, it builds its user and network namespace and its
//! root once, keeps a sandbox prepared, and carries out one plan after the other. It outlives the
//! launcher while an attempt runs.
//!
//! Here are its life and what it is made from. `build`: its birth. `namespaces`: its namespaces. `slot`: its lock file.
#![forbid(unsafe_code)]

mod build;
mod namespaces;
mod slot;

use super::account::Account;
use super::artifacts::NamedFiles;
use super::attempt;
use super::cgroup_group::Group;
use super::definition::ProfileDefinition;
use super::forker::Forker;
use super::init::{self, Prepared};
use super::layer::Layer;
use super::network_connector::Connector;
use super::plan::Plan;
use super::profile::{Policy, Profile, Shape};
use super::seccomp::Filters;
use super::step::StepError;
use super::sys;
use super::verify::NamespaceIds;
use super::wire::{self, Answer, Mode, Notice, Order, PlanFds};
use build::build;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::sys::socket::MsgFlags;
use nix::sys::wait::waitpid;
pub(super) use slot::{lock_path, owner, started_at};
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
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
    /// Whether the keeper has emptied its bounding set, and with it that of all attempts.
    pub(super) no_bounding: bool,
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
