//! The table of system calls: what a script may call, and what it is refused by name. Data with a reason a
//! line; `mod.rs` makes filters of it. `strict.golden` is the same as text, so that a change is seen in review.
#![forbid(unsafe_code)]

use nix::libc;

/// A system call by name, and its number where the architecture has it.
#[derive(Clone, Copy)]
pub(super) struct Call {
    pub(super) name: &'static str,
    pub(super) number: Option<i64>,
    /// The call is one of x86_64 alone.
    pub(super) x86_only: bool,
}

/// Calls that are treated alike for one reason.
pub(super) struct Line {
    pub(super) why: &'static str,
    pub(super) calls: &'static [Call],
}

/// One entry: by the C library's constant, or with a number for calls newer than that (from 424 on numbers are
/// the same on every architecture).
macro_rules! call {
    ($name:ident) => {
        Call { name: stringify!($name), number: Some(libc::$name), x86_only: false }
    };
    ($name:ident $number:literal) => {
        Call { name: stringify!($name), number: Some($number), x86_only: false }
    };
}

/// Entries that only x86_64 has.
macro_rules! x86 {
    ($($name:ident)*) => {
        &[$(Call {
            name: stringify!($name),
            #[cfg(target_arch = "x86_64")]
            number: Some(libc::$name),
            #[cfg(not(target_arch = "x86_64"))]
            number: None,
            x86_only: true,
        }),*]
    };
}

/// A line of entries that every architecture has.
macro_rules! line {
    ($why:literal: $($name:ident $(= $number:literal)?),* $(,)?) => {
        Line { why: $why, calls: &[$(call!($name $($number)?)),*] }
    };
}

/// What a script may call. `clone`, `ioctl`, `personality`, `prctl`, `socket` and some more are limited further
/// by their arguments: see `mod.rs`.
pub(super) const ALLOWED: &[Line] = &[
    line!("read and write what is open": SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_pread64, SYS_pwrite64,
        SYS_preadv, SYS_pwritev, SYS_preadv2, SYS_pwritev2, SYS_lseek, SYS_sendfile, SYS_splice, SYS_tee,
        SYS_vmsplice, SYS_copy_file_range, SYS_readahead, SYS_fadvise64),
    line!("make writes durable": SYS_fsync, SYS_fdatasync, SYS_sync_file_range, SYS_syncfs, SYS_sync),
    line!("open, copy and close descriptors": SYS_openat, SYS_openat2, SYS_close, SYS_close_range, SYS_dup,
        SYS_dup3, SYS_fcntl, SYS_flock, SYS_pipe2, SYS_ioctl),
    Line { why: "the same by their old names", calls: x86!(SYS_open SYS_creat SYS_dup2 SYS_pipe) },
    line!("look at files and folders": SYS_newfstatat, SYS_fstat, SYS_statx, SYS_statfs, SYS_fstatfs,
        SYS_faccessat, SYS_faccessat2 = 439, SYS_readlinkat, SYS_getdents64, SYS_getcwd, SYS_getxattr,
        SYS_lgetxattr, SYS_fgetxattr, SYS_listxattr, SYS_llistxattr, SYS_flistxattr, SYS_cachestat = 451),
    Line {
        why: "the same by their old names",
        calls: x86!(SYS_stat SYS_lstat SYS_access SYS_readlink SYS_getdents SYS_ustat),
    },
    line!("change files and folders, where mounts and landlock let it": SYS_mkdirat, SYS_unlinkat, SYS_renameat,
        SYS_renameat2, SYS_linkat, SYS_symlinkat, SYS_mknodat, SYS_truncate, SYS_ftruncate, SYS_fallocate,
        SYS_fchmod, SYS_fchmodat, SYS_fchmodat2 = 452, SYS_fchown, SYS_fchownat, SYS_utimensat, SYS_setxattr,
        SYS_lsetxattr, SYS_fsetxattr, SYS_removexattr, SYS_lremovexattr, SYS_fremovexattr),
    Line {
        why: "the same by their old names",
        calls: x86!(SYS_mkdir SYS_rmdir SYS_unlink SYS_rename SYS_link SYS_symlink SYS_mknod SYS_chmod SYS_chown
            SYS_lchown SYS_utime SYS_utimes SYS_futimesat),
    },
    line!("the process's own folder and mask": SYS_chdir, SYS_fchdir, SYS_umask),
    line!("memory": SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap, SYS_madvise, SYS_brk, SYS_msync, SYS_mincore,
        SYS_mlock, SYS_mlock2, SYS_munlock, SYS_mlockall, SYS_munlockall, SYS_membarrier, SYS_memfd_create,
        SYS_pkey_mprotect, SYS_pkey_alloc, SYS_pkey_free, SYS_get_mempolicy, SYS_mseal = 462),
    line!("start and end processes and threads, in no new namespace": SYS_clone, SYS_execve, SYS_execveat,
        SYS_exit, SYS_exit_group, SYS_wait4, SYS_waitid, SYS_set_tid_address, SYS_set_robust_list,
        SYS_get_robust_list, SYS_rseq),
    Line { why: "the same by their old names", calls: x86!(SYS_fork SYS_vfork SYS_arch_prctl) },
    line!("who one is": SYS_getpid, SYS_getppid, SYS_gettid, SYS_getpgid, SYS_setpgid, SYS_getsid, SYS_setsid,
        SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_getresuid, SYS_getresgid, SYS_getgroups),
    Line { why: "the same by its old name", calls: x86!(SYS_getpgrp) },
    line!("become who one is already: without capabilities they can do no more": SYS_setuid, SYS_setgid,
        SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid, SYS_setfsuid, SYS_setfsgid, SYS_setgroups,
        SYS_capget, SYS_capset),
    line!("settings and limits of the process": SYS_prctl, SYS_personality, SYS_getrlimit, SYS_setrlimit,
        SYS_prlimit64, SYS_getrusage, SYS_times, SYS_uname, SYS_sysinfo, SYS_getcpu, SYS_getrandom),
    line!("scheduling, as far as limits let it": SYS_sched_yield, SYS_sched_getaffinity, SYS_sched_setaffinity,
        SYS_sched_getparam, SYS_sched_setparam, SYS_sched_getscheduler, SYS_sched_setscheduler,
        SYS_sched_getattr, SYS_sched_setattr, SYS_sched_get_priority_max, SYS_sched_get_priority_min,
        SYS_sched_rr_get_interval, SYS_getpriority, SYS_setpriority, SYS_ioprio_get, SYS_ioprio_set),
    line!("signals, within the pid namespace": SYS_rt_sigaction, SYS_rt_sigprocmask, SYS_rt_sigreturn,
        SYS_rt_sigpending, SYS_rt_sigsuspend, SYS_rt_sigtimedwait, SYS_rt_sigqueueinfo,
        SYS_rt_tgsigqueueinfo, SYS_sigaltstack, SYS_kill, SYS_tkill, SYS_tgkill, SYS_restart_syscall,
        SYS_signalfd4, SYS_pidfd_open, SYS_pidfd_send_signal),
    Line { why: "the same by their old names", calls: x86!(SYS_pause SYS_alarm SYS_signalfd) },
    line!("read clocks and wait for them": SYS_clock_gettime, SYS_clock_getres, SYS_clock_nanosleep,
        SYS_nanosleep, SYS_gettimeofday, SYS_getitimer, SYS_setitimer, SYS_timer_create, SYS_timer_settime,
        SYS_timer_gettime, SYS_timer_getoverrun, SYS_timer_delete, SYS_timerfd_create,
        SYS_timerfd_settime, SYS_timerfd_gettime),
    Line { why: "the same by its old name", calls: x86!(SYS_time) },
    line!("wait for events": SYS_ppoll, SYS_pselect6, SYS_epoll_create1, SYS_epoll_ctl, SYS_epoll_pwait,
        SYS_epoll_pwait2 = 441, SYS_eventfd2, SYS_futex, SYS_futex_waitv = 449, SYS_futex_wake = 454,
        SYS_futex_wait = 455, SYS_futex_requeue = 456, SYS_inotify_init1, SYS_inotify_add_watch,
        SYS_inotify_rm_watch),
    Line {
        why: "the same by their old names",
        calls: x86!(SYS_poll SYS_select SYS_epoll_create SYS_epoll_wait SYS_eventfd SYS_inotify_init),
    },
    line!("shared memory, semaphores and queues, within the ipc namespace": SYS_shmget, SYS_shmat, SYS_shmdt,
        SYS_shmctl, SYS_semget, SYS_semop, SYS_semtimedop, SYS_semctl, SYS_msgget, SYS_msgsnd, SYS_msgrcv,
        SYS_msgctl, SYS_mq_open, SYS_mq_unlink, SYS_mq_timedsend, SYS_mq_timedreceive, SYS_mq_notify,
        SYS_mq_getsetattr),
    line!("sockets of the families that the profile lets open": SYS_socket, SYS_socketpair, SYS_bind, SYS_listen,
        SYS_accept, SYS_accept4, SYS_connect, SYS_shutdown, SYS_getsockname, SYS_getpeername, SYS_sendto,
        SYS_recvfrom, SYS_sendmsg, SYS_recvmsg, SYS_sendmmsg, SYS_recvmmsg, SYS_setsockopt, SYS_getsockopt),
    line!("build tighter walls of one's own": SYS_seccomp, SYS_landlock_create_ruleset = 444,
        SYS_landlock_add_rule = 445, SYS_landlock_restrict_self = 446),
];

/// What is refused by name: "operation not permitted", so that the script's error says what happened. All that
/// stands in neither table does not exist as far as a script can tell.
pub(super) const REFUSED: &[Line] = &[
    line!("enter or leave namespaces and roots": SYS_unshare, SYS_setns, SYS_pivot_root, SYS_chroot),
    line!("mounts by the newer calls": SYS_open_tree = 428, SYS_move_mount = 429, SYS_fsopen = 430,
        SYS_fsconfig = 431, SYS_fsmount = 432, SYS_fspick = 433, SYS_open_tree_attr = 467),
    line!("look into other processes and steer them": SYS_ptrace, SYS_process_vm_readv, SYS_process_vm_writev,
        SYS_pidfd_getfd, SYS_kcmp, SYS_process_madvise = 440, SYS_process_mrelease = 448),
    line!("parts of the kernel with a history of holes": SYS_bpf, SYS_perf_event_open, SYS_userfaultfd,
        SYS_io_uring_setup, SYS_io_uring_enter, SYS_io_uring_register, SYS_memfd_secret = 447,
        SYS_io_setup, SYS_io_submit, SYS_io_cancel, SYS_io_destroy, SYS_io_getevents,
        SYS_remap_file_pages, SYS_fanotify_init, SYS_fanotify_mark),
    line!("keys, which no namespace separates": SYS_keyctl, SYS_add_key, SYS_request_key),
    line!("files by handle, past every folder's permissions": SYS_open_by_handle_at, SYS_name_to_handle_at),
    line!("the kernel itself": SYS_init_module, SYS_finit_module, SYS_delete_module, SYS_kexec_load, SYS_reboot,
        SYS_syslog),
    Line { why: "the same, by calls that not every architecture has", calls: x86!(SYS_kexec_file_load) },
    line!("clock, names, swap, quotas, accounts: settings of the whole host": SYS_clock_settime,
        SYS_clock_adjtime, SYS_settimeofday, SYS_adjtimex, SYS_sethostname, SYS_setdomainname, SYS_swapon,
        SYS_swapoff, SYS_quotactl, SYS_quotactl_fd = 443, SYS_acct, SYS_vhangup),
    line!("memory of other nodes and processes": SYS_mbind, SYS_set_mempolicy, SYS_migrate_pages,
        SYS_move_pages),
    Line { why: "ports and segments of the processor", calls: x86!(SYS_iopl SYS_ioperm SYS_modify_ldt) },
];

/// What keeper, init and stage need until the script starts. The last filter refuses it, and `clone` into new
/// namespaces with it.
pub(super) const BEFORE_THE_SCRIPT: &[Line] =
    &[line!("mounts": SYS_mount, SYS_umount2, SYS_mount_setattr = 442)];

/// All that the process outside may call that makes the connections of a list of destinations: it accepts, looks up
/// names, and forks a process for each connection. `helper.rs` limits some by their arguments.
pub(super) const CONNECTOR: &[Line] = &[
    line!("messages of the keeper, signals, waiting": SYS_recvmsg, SYS_sendmsg, SYS_ppoll, SYS_signalfd4, SYS_read,
        SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_rt_sigreturn, SYS_restart_syscall, SYS_close, SYS_close_range),
    line!("processes for connections, and their end": SYS_clone, SYS_wait4, SYS_kill, SYS_getpid, SYS_getppid,
        SYS_gettid, SYS_set_robust_list, SYS_rseq, SYS_exit, SYS_exit_group, SYS_setitimer),
    line!("narrowing such a process": SYS_seccomp, SYS_landlock_create_ruleset = 444, SYS_landlock_add_rule = 445,
        SYS_landlock_restrict_self = 446),
    line!("names: the files that say how, and servers": SYS_openat, SYS_newfstatat, SYS_fstat, SYS_statx,
        SYS_readlinkat, SYS_faccessat, SYS_pread64, SYS_readv, SYS_lseek, SYS_fcntl, SYS_ioctl, SYS_uname,
        SYS_getuid, SYS_geteuid, SYS_getgid, SYS_getegid, SYS_sendmmsg, SYS_recvmmsg, SYS_recvfrom, SYS_sendto,
        SYS_bind, SYS_getsockname, SYS_getpeername, SYS_clock_gettime, SYS_gettimeofday, SYS_getrandom, SYS_prctl,
        SYS_tgkill),
    line!("sockets: accepting, connecting, how they are": SYS_accept4, SYS_socket, SYS_socketpair, SYS_connect,
        SYS_setsockopt, SYS_getsockopt, SYS_shutdown),
    line!("carrying bytes": SYS_write, SYS_writev, SYS_mmap, SYS_munmap, SYS_mprotect, SYS_mremap, SYS_madvise,
        SYS_brk, SYS_futex, SYS_clock_nanosleep, SYS_nanosleep),
    Line {
        why: "the same by their old names",
        calls: x86!(SYS_poll SYS_fork SYS_alarm SYS_open SYS_stat SYS_lstat SYS_access SYS_readlink SYS_pause),
    },
];

/// Those of them that are left to the process of one connection, once its name is looked up; of sockets TCP alone.
pub(super) const RELAY: &[Line] = &[
    line!("connecting": SYS_connect, SYS_getsockopt, SYS_setsockopt, SYS_getsockname, SYS_getpeername, SYS_fcntl,
        SYS_ioctl, SYS_setitimer, SYS_rt_sigprocmask, SYS_rt_sigaction, SYS_rt_sigreturn),
    line!("carrying bytes": SYS_read, SYS_write, SYS_readv, SYS_writev, SYS_recvfrom, SYS_sendto, SYS_ppoll,
        SYS_shutdown, SYS_close, SYS_restart_syscall, SYS_clock_gettime, SYS_mmap, SYS_munmap, SYS_mremap,
        SYS_madvise, SYS_brk, SYS_futex, SYS_mprotect),
    line!("saying why it failed, and its end": SYS_sendmsg, SYS_exit, SYS_exit_group, SYS_getpid, SYS_gettid,
        SYS_tgkill),
    Line { why: "the same by their old names", calls: x86!(SYS_poll SYS_alarm) },
];

/// Calls that no definition may allow, whatever it is for: keys have no namespace.
pub(super) const KEYS: [&str; 3] = ["keyctl", "add_key", "request_key"];

/// Calls that no definition may refuse: without them the last steps before a program, or the program's own start, fail.
pub(super) const NEEDED: [&str; 25] = [
    "read",
    "write",
    "close",
    "openat",
    "newfstatat",
    "fstat",
    "mmap",
    "munmap",
    "mprotect",
    "brk",
    "execve",
    "execveat",
    "exit",
    "exit_group",
    "sendmsg",
    "prctl",
    "capget",
    "capset",
    "setresuid",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "arch_prctl",
    "set_tid_address",
    "restart_syscall",
];

impl Call {
    /// Its name as manuals have it.
    pub(super) fn word(&self) -> &'static str {
        self.name.strip_prefix("SYS_").unwrap_or(self.name)
    }
}

/// The number of a call of any table, by its name, where this architecture has it.
pub(super) fn number(name: &str) -> Option<i64> {
    let all = ALLOWED.iter().chain(REFUSED).chain(BEFORE_THE_SCRIPT).flat_map(|line| line.calls);
    all.filter(|call| call.word() == name).find_map(|call| call.number)
}

/// Every call of some lines that this architecture has, by number.
pub(super) fn numbers(lines: &'static [Line]) -> impl Iterator<Item = i64> {
    lines.iter().flat_map(|line| line.calls).filter_map(|call| call.number)
}
