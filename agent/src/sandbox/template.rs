//! The keeper's root file system: built once for each keeper, shared read-only by its attempts.
//! Then what each attempt adds: `/proc`, and the writable folders of the box.
#![forbid(unsafe_code)]

use super::extras::Extras;
use super::paths::BOX;
use super::profile::Profile;
use super::step::{Step, StepError};
use super::sys::{self, MountFlags};
use super::terminal;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::stat::Mode;
use nix::unistd::{chdir, pivot_root};
use std::ffi::CString;
use std::fs;
use std::io::Read as _;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::Path;

/// What the template is made from.
pub(super) struct Template<'a> {
    pub(super) profile: Profile,
    /// Attempts have a list of destinations, and an `/etc/hosts` with their names.
    pub(super) listed: bool,
    /// Attempts have a terminal.
    pub(super) terminal: bool,
    /// An existing empty directory of the host: mount point of the new root, and the box of `host`.
    pub(super) host_box: &'a Path,
    /// The program that is `sally-task` inside.
    pub(super) task_program: BorrowedFd<'a>,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// The name of that uid inside.
    pub(super) account: &'a str,
    /// What an operator's profile adds and takes away.
    pub(super) extras: Extras,
    /// For tests, and for `admin`: keep the host's root instead of a private one, as it is: writable, with setuid and devices.
    pub(super) break_root: bool,
}

/// The folders of the box: mount points for what an attempt adds, and two that are complete as they are.
const BOX_FOLDERS: [&str; 6] = ["in", "work", "tmp", "out", "secrets", "bin"];

/// How much of the host's `/etc/hosts` an attempt with names of its own sees behind them.
const HOSTS_MAX: u64 = 64 * 1024;

/// Device nodes without power over anything.
pub(super) const DEVICES: [&str; 5] = ["null", "zero", "full", "random", "urandom"];

/// Folders that on most systems are links into `/usr`.
pub(super) const SYSTEM_LINKS: [&str; 6] = ["bin", "sbin", "lib", "lib32", "lib64", "libx32"];

/// Folders of `/etc` that hold nothing secret and are needed by libraries.
pub(super) const ETC_FOLDERS: [&str; 5] =
    ["ssl", "alternatives", "ca-certificates", "pki/tls", "crypto-policies"];

/// Files of `/etc` that hold nothing secret, copied so that replacing them outside is no surprise.
pub(super) const ETC_FILES: [&str; 9] = [
    "ld.so.cache",
    "ld.so.conf",
    "services",
    "protocols",
    "mime.types",
    "debian_version",
    "redhat-release",
    "timezone",
    "host.conf",
];

/// Files of `/etc` that say how to find hosts: only where there is a network.
pub(super) const ETC_NETWORK_FILES: [&str; 3] = ["hosts", "resolv.conf", "gai.conf"];

/// Files of `/etc` that are made, not copied.
pub(super) const ETC_MADE: [&str; 3] = ["passwd", "group", "nsswitch.conf"];

/// Files of `/etc` that are copied or linked as they are on the host.
pub(super) const ETC_LINKS: [&str; 2] = ["localtime", "os-release"];

const STEP: &str = "root";

impl Template<'_> {
    /// Makes the template the calling process's root. Its mount namespace must be its own already.
    pub(super) fn enter(&self) -> Result<(), StepError> {
        // Nothing mounted here may reach the host, nor the other way round.
        remount_private(self.profile)?;
        let root = self.host_box;
        if self.profile.sees_host() || self.break_root {
            self.build_host(root)?;
        } else {
            self.build_private(root)?;
        }
        switch_root(root)
    }

    /// The box's path as attempts of this template see it.
    pub(super) fn box_path(&self) -> &Path {
        if self.profile.sees_host() || self.break_root { self.host_box } else { Path::new(BOX) }
    }

    fn build_private(&self, root: &Path) -> Result<(), StepError> {
        tmpfs(root, "mode=0755,size=8m,nr_inodes=4096")?;
        for name in ["usr", "etc", "dev", "proc", "tmp", "run", "var"] {
            make_dir(&root.join(name))?;
        }
        make_link("/tmp", &root.join("var/tmp"))?;
        bind(Path::new("/usr"), &root.join("usr"), true)?;
        for name in SYSTEM_LINKS {
            let host = Path::new("/").join(name);
            if let Ok(target) = fs::read_link(&host) {
                make_link(&target, &root.join(name))?;
            } else if host.is_dir() {
                make_dir(&root.join(name))?;
                bind(&host, &root.join(name), true)?;
            }
        }
        self.build_dev(&root.join("dev"))?;
        if self.terminal {
            terminal::mount_in(root)?;
        }
        self.build_etc(&root.join("etc"))?;
        // Only where a procfs can be seen does the kernel let an attempt mount its own over it.
        bind(Path::new("/proc"), &root.join("proc"), true)?;
        let inside = root.join(BOX.trim_start_matches('/'));
        self.build_box(&inside)?;
        self.extras.mount(root)?;
        let everything = MountFlags::READ_ONLY.and(MountFlags::NO_SUID);
        set_flags(root, true, everything)?;
        self.extras.set_flags(root)
    }

    fn build_dev(&self, dev: &Path) -> Result<(), StepError> {
        for name in DEVICES {
            let node = dev.join(name);
            make_file(&node, b"", 0o666)?;
            bind(&Path::new("/dev").join(name), &node, false)?;
        }
        make_dir(&dev.join("shm"))?;
        for (name, target) in [
            ("fd", "/proc/self/fd"),
            ("stdin", "/proc/self/fd/0"),
            ("stdout", "/proc/self/fd/1"),
            ("stderr", "/proc/self/fd/2"),
        ] {
            make_link(target, &dev.join(name))?;
        }
        Ok(())
    }

    fn build_etc(&self, etc: &Path) -> Result<(), StepError> {
        let (uid, gid, name) = (self.uid, self.gid, self.account);
        let made = ETC_MADE;
        let passwd = format!(
            "root:x:0:0:root:/root:/bin/sh\n{name}:x:{uid}:{gid}:{name}:{BOX}/work:/bin/sh\n\
             nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"
        );
        make_file(&etc.join(made[0]), passwd.as_bytes(), 0o644)?;
        let group = format!("root:x:0:\n{name}:x:{gid}:\nnogroup:x:65534:\n");
        make_file(&etc.join(made[1]), group.as_bytes(), 0o644)?;
        // Names beyond the list lead nowhere, and asking for them would only take time.
        let hosts = if self.listed { "files" } else { "files dns" };
        let lookup =
            format!("passwd: files\ngroup: files\nhosts: {hosts}\nservices: files\nprotocols: files\n");
        make_file(&etc.join(made[2]), lookup.as_bytes(), 0o644)?;
        let network = self.profile != Profile::Strict && !self.listed;
        for name in ETC_FILES.iter().chain(ETC_NETWORK_FILES.iter().filter(|_| network)) {
            if let Ok(content) = fs::read(Path::new("/etc").join(name)) {
                make_file(&etc.join(name), &content, 0o644)?;
            }
        }
        if !network {
            make_file(&etc.join("hosts"), b"127.0.0.1 localhost\n::1 localhost\n", 0o644)?;
        }
        for name in ETC_LINKS {
            if let Ok(target) = fs::read_link(Path::new("/etc").join(name)) {
                make_link(&target, &etc.join(name))?;
            } else if let Ok(content) = fs::read(Path::new("/etc").join(name)) {
                make_file(&etc.join(name), &content, 0o644)?;
            }
        }
        for name in ETC_FOLDERS {
            let host = Path::new("/etc").join(name);
            if host.is_dir() {
                let folder = etc.join(name);
                fs::create_dir_all(&folder).step(STEP, folder.display())?;
                bind(&host, &folder, true)?;
            }
        }
        Ok(())
    }

    fn build_host(&self, root: &Path) -> Result<(), StepError> {
        bind_all(Path::new("/"), root)?;
        self.extras.mount(root)?;
        if !self.break_root {
            let all = MountFlags::READ_ONLY.and(MountFlags::NO_SUID).and(MountFlags::NO_DEV);
            set_flags(root, true, all)?;
        }
        self.extras.set_flags(root)?;
        // The safe nodes again, from the host's side: those mounts still allow devices.
        for name in DEVICES {
            let node = Path::new("/dev").join(name);
            bind(&node, &root.join("dev").join(name), false)?;
        }
        self.extras.mount_devices(root)?;
        if self.terminal {
            // Over the host's terminals, which are not for this one to see.
            terminal::mount_in(root)?;
            for path in [terminal::FOLDER, terminal::CONTROLLING].iter().filter(|_| !self.break_root) {
                let place = root.join(path.trim_start_matches('/'));
                set_flags(&place, false, MountFlags::READ_ONLY.and(MountFlags::NO_SUID))?;
            }
        }
        let inside = root.join(self.host_box.strip_prefix("/").unwrap_or(self.host_box));
        tmpfs(&inside, "mode=0755,size=1m,nr_inodes=64")?;
        self.build_box(&inside)?;
        set_flags(&inside, true, MountFlags::READ_ONLY.and(MountFlags::NO_SUID).and(MountFlags::NO_DEV))
    }

    fn build_box(&self, inside: &Path) -> Result<(), StepError> {
        fs::create_dir_all(inside).step(STEP, inside.display())?;
        for name in BOX_FOLDERS {
            make_dir(&inside.join(name))?;
        }
        let task = inside.join("bin/sally-task");
        make_file(&task, b"", 0o755)?;
        // By descriptor: the way to it may be closed to this uid.
        let source = format!("/proc/self/fd/{}", self.task_program.as_raw_fd());
        bind(Path::new(&source), &task, true)
    }
}

/// What [`add_attempt`] made.
pub(super) struct Attempt {
    /// The folder of the result file, and the work folder.
    pub(super) results: [OwnedFd; 2],
    /// The root of the writable file system, which no path leads to.
    pub(super) covered: OwnedFd,
    /// Whether `/proc` is the attempt's own.
    pub(super) own_proc: bool,
}

/// Adds to the calling init's own mount namespace what belongs to one attempt.
pub(super) fn add_attempt(
    profile: Profile,
    private_root: bool,
    base: &Path,
    work_bytes: u64,
    work_files: u64,
) -> Result<Attempt, StepError> {
    let own_proc = !profile.sees_host() && mount_proc()?;
    attempt_tmpfs(&base.join("in"), "mode=0755,nr_inodes=16")?;
    // One file system for all that is writable, so that one limit holds for all. It is mounted at work,
    // its folders are bound to their places, and the last of these covers it.
    let work = base.join("work");
    attempt_tmpfs(&work, &format!("mode=0700,{}", work_size(work_bytes, work_files)))?;
    for (name, mode) in
        [("work", 0o700), ("tmp", 0o700), ("out", 0o700), ("shared-tmp", 0o1777), ("shm", 0o1777)]
    {
        let folder = work.join(name);
        make_dir(&folder)?;
        fs::set_permissions(&folder, fs::Permissions::from_mode(mode)).step("box", folder.display())?;
    }
    attempt_bind(&work.join("tmp"), &base.join("tmp"))?;
    attempt_bind(&work.join("out"), &base.join("out"))?;
    if private_root {
        attempt_bind(&work.join("shared-tmp"), Path::new("/tmp"))?;
        attempt_bind(&work.join("shm"), Path::new("/dev/shm"))?;
    }
    let open = |path: &Path, flags| {
        let flags = flags | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        nix::fcntl::open(path, flags, Mode::empty()).step("box", path.display())
    };
    let covered = open(&work, OFlag::O_PATH)?;
    attempt_bind(&work.join("work"), &work)?;
    let results = [open(&base.join("out"), OFlag::O_RDONLY)?, open(&work, OFlag::O_RDONLY)?];
    Ok(Attempt { results, covered, own_proc })
}

/// Changes the limits of the writable folders, from inside the attempt's mount namespace.
pub(super) fn resize_work(base: &Path, work_bytes: u64, work_files: u64) -> Result<(), StepError> {
    let size = work_size(work_bytes, work_files);
    let work = base.join("work");
    // The flags must be repeated, or the remount would clear them.
    let flags = MsFlags::MS_REMOUNT | MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(None::<&str>, &work, None::<&str>, flags, Some(size.as_str()))
        .step("box", "limit of the work folder")
}

/// Puts names before those of `/etc/hosts`, for one attempt: a file of the box in the place of the host's.
pub(super) fn put_hosts(base: &Path, names: &str) -> Result<(), StepError> {
    const HOSTS: &str = "/etc/hosts";
    let mut text = names.as_bytes().to_vec();
    if let Ok(file) = fs::File::open(HOSTS) {
        file.take(HOSTS_MAX).read_to_end(&mut text).step("network", HOSTS)?;
    }
    let path = base.join("in/hosts");
    make_file(&path, &text, 0o644)?;
    let flags = MountFlags::READ_ONLY.and(MountFlags::NO_SUID).and(MountFlags::NO_DEV);
    bind_all(&path, Path::new(HOSTS))
        .and_then(|()| sys::mount_setattr(&c_path(Path::new(HOSTS)), false, flags).step(STEP, HOSTS))
        .map_err(|error| StepError { step: "network".into(), ..error })
}

/// Mounts the memory of the secrets: ramfs, which is never swapped. It has no limit of its own, so whoever writes must
/// be done and the folder sealed before the script comes.
pub(super) fn mount_secrets(folder: &Path) -> Result<(), StepError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("ramfs"), folder, Some("ramfs"), flags, Some("mode=0700")).step("secrets", "ramfs for secrets")
}

/// Closes a folder of the box to writing, once everything is in it.
pub(super) fn seal(folder: &Path) -> Result<(), StepError> {
    let path = c_path(folder);
    let flags = MountFlags::READ_ONLY.and(MountFlags::NO_SUID).and(MountFlags::NO_DEV);
    sys::mount_setattr(&path, false, flags).step("box", "making a folder read-only")
}

fn work_size(bytes: u64, files: u64) -> String {
    // The six folders themselves are inodes too.
    format!("size={bytes},nr_inodes={}", files.saturating_add(6))
}

/// Mounts the pid namespace's own procfs. Where the kernel refuses because the one it can see has
/// masked parts (containers), the read-only one of the template stays: `Ok(false)`.
fn mount_proc() -> Result<bool, StepError> {
    let flags = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    match mount(Some("proc"), "/proc", Some("proc"), flags, None::<&str>) {
        Ok(()) => Ok(true),
        Err(nix::errno::Errno::EPERM) => Ok(false),
        Err(errno) => Err(StepError::new("proc", errno, "mounting /proc")),
    }
}

/// Nothing mounted from here on reaches the host. What the host mounts reaches `admin` alone, whose root is the host's.
fn remount_private(profile: Profile) -> Result<(), StepError> {
    let kind = if profile == Profile::Admin { MsFlags::MS_SLAVE } else { MsFlags::MS_PRIVATE };
    let flags = MsFlags::MS_REC | kind;
    mount(None::<&str>, "/", None::<&str>, flags, None::<&str>).step(STEP, "making all mounts private")
}

/// Makes `root` the root and lets go of the old one.
fn switch_root(root: &Path) -> Result<(), StepError> {
    chdir(root).step(STEP, root.display())?;
    // The old root is mounted over the new one at the same place, and then taken away: no folder needed.
    pivot_root(".", ".").step(STEP, "pivot_root")?;
    umount2(".", MntFlags::MNT_DETACH).step(STEP, "letting go of the host's root")?;
    chdir("/").step(STEP, "/")
}

pub(super) fn tmpfs(target: &Path, options: &str) -> Result<(), StepError> {
    let flags = MsFlags::MS_NOSUID;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options))
        .step(STEP, format!("tmpfs on {}", target.display()))
}

fn attempt_tmpfs(target: &Path, options: &str) -> Result<(), StepError> {
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("tmpfs"), target, Some("tmpfs"), flags, Some(options))
        .step("box", format!("tmpfs on {}", target.display()))
}

fn attempt_bind(source: &Path, target: &Path) -> Result<(), StepError> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .step("box", format!("{} on {}", source.display(), target.display()))
}

/// Binds with everything below, changing no flag.
pub(super) fn bind_all(source: &Path, target: &Path) -> Result<(), StepError> {
    mount(Some(source), target, None::<&str>, MsFlags::MS_BIND | MsFlags::MS_REC, None::<&str>)
        .step(STEP, format!("{} on {}", source.display(), target.display()))
}

/// Binds with everything below, read-only.
fn bind(source: &Path, target: &Path, no_devices: bool) -> Result<(), StepError> {
    bind_all(source, target)?;
    let flags = MountFlags::READ_ONLY.and(MountFlags::NO_SUID);
    set_flags(target, true, if no_devices { flags.and(MountFlags::NO_DEV) } else { flags })
}

pub(super) fn set_flags(target: &Path, recursive: bool, flags: MountFlags) -> Result<(), StepError> {
    sys::mount_setattr(&c_path(target), recursive, flags)
        .step(STEP, format!("making {} read-only", target.display()))
}

pub(super) fn make_dir(path: &Path) -> Result<(), StepError> {
    fs::create_dir(path).step(STEP, path.display())?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).step(STEP, path.display())
}

pub(super) fn make_file(path: &Path, content: &[u8], mode: u32) -> Result<(), StepError> {
    fs::write(path, content).step(STEP, path.display())?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).step(STEP, path.display())
}

fn make_link(target: impl AsRef<Path>, path: &Path) -> Result<(), StepError> {
    symlink(target, path).step(STEP, path.display())
}

/// A path as the kernel takes it. Paths come from this program or from its command line, where NUL cannot occur.
pub(super) fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}
