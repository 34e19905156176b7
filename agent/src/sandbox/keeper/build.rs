//! The birth of a keeper: all that lives as long as it does.
#![forbid(unsafe_code)]

use super::Setup;
use super::namespaces::own_namespaces;
use super::slot::take_slot;
use crate::sandbox::init;
use crate::sandbox::layer::Layer;
use crate::sandbox::network_connector::Connector;
use crate::sandbox::seccomp::Filters;
use crate::sandbox::step::{Step, StepError};
use crate::sandbox::sys;
use crate::sandbox::template::Template;
use crate::sandbox::verify::NamespaceIds;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::umask;
use nix::unistd::setsid;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;

/// Builds all that lives as long as the keeper: lock, session, user and network namespace, uid, root.
pub(super) fn build(
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
    if !setup.broken(Layer::Capabilities) {
        // Once for all attempts: it costs a system call for each capability, and a check as many.
        // What is left is seen by the check: the layer is then absent.
        if let Err(errno) = sys::drop_bounding_set() {
            tracing::error!(error = %errno, "the bounding set could not be dropped");
        }
        setup.no_bounding = sys::bounding_set_is_empty();
    }
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
