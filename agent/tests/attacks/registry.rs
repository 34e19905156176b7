//! The list of attacks: what is tried, what keeps it out, and without which layers it succeeds. The table in
//! `docs/sandbox.md` is made from it and from `escapes`.

use crate::escapes::ESCAPES;
use sally_agent::sandbox::Layer::{self, *};
use sally_agent::sandbox::Mode;
use sally_agent::sandbox::Profile;

/// One attack, tried by the test of its name.
pub(crate) struct Attack {
    /// The test's name.
    pub(crate) test: &'static str,
    /// The attack, for people.
    pub(crate) what: &'static str,
    /// Attack of `attacker.c` and its arguments; a word in braces stands for something that the test makes.
    pub(crate) run: &'static [&'static str],
    /// Where it must be refused with every layer in place.
    pub(crate) profiles: &'static [Profile],
    /// Without which layers it succeeds.
    pub(crate) opens: &'static [Case],
    /// Without which layers it is refused all the same, by those that are left.
    pub(crate) holds: &'static [Case],
    /// Why there are modes in which it is not shown to succeed. Empty if there are none.
    pub(crate) unseen: &'static str,
}

/// A mode (`None`: both), a profile, and the layers that are left out.
pub(crate) type Case = (Option<Mode>, Profile, &'static [Layer]);

pub(crate) const STRICT: Profile = Profile::Strict;
pub(crate) const NET: Profile = Profile::Net;
pub(crate) const HOST: Profile = Profile::Host;
pub(crate) const ALL: &[Profile] = &Profile::ALL;
pub(crate) const PRIVATE: &[Profile] = &[STRICT, NET];
const ONLY_STRICT: &[Profile] = &[STRICT];
pub(crate) const ROOT: Option<Mode> = Some(Mode::Root);
pub(crate) const USER: Option<Mode> = Some(Mode::User);

/// An attack that one filter alone keeps out, in every profile.
pub(crate) const fn by_filter(
    test: &'static str,
    what: &'static str,
    run: &'static [&'static str],
) -> Attack {
    Attack { test, what, run, profiles: ALL, opens: &[(None, STRICT, &[Seccomp])], holds: &[], unseen: "" }
}

/// An attack that filter and missing capabilities keep out, each by itself.
const fn by_filter_or_capabilities(
    test: &'static str,
    what: &'static str,
    run: &'static [&'static str],
) -> Attack {
    const OPENS: &[Case] = &[(None, STRICT, &[Seccomp, Capabilities])];
    const HOLDS: &[Case] = &[(None, STRICT, &[Seccomp]), (None, STRICT, &[Capabilities])];
    Attack { test, what, run, profiles: ALL, opens: OPENS, holds: HOLDS, unseen: "" }
}

/// An attack that filter, missing capabilities and landlock keep out, each by itself.
const fn by_any_of_three(
    test: &'static str,
    what: &'static str,
    run: &'static [&'static str],
    profiles: &'static [Profile],
) -> Attack {
    const OPENS: &[Case] = &[(None, STRICT, &[Seccomp, Capabilities, Landlock])];
    const HOLDS: &[Case] = &[
        (None, STRICT, &[Capabilities, Landlock]),
        (None, STRICT, &[Seccomp, Landlock]),
        (None, STRICT, &[Seccomp, Capabilities]),
    ];
    Attack { test, what, run, profiles, opens: OPENS, holds: HOLDS, unseen: "" }
}

/// Every attack, in the order of the table.
pub(crate) fn attacks() -> impl Iterator<Item = &'static Attack> {
    ATTACKS.iter().chain(ESCAPES)
}

const ATTACKS: &[Attack] = &[
    Attack {
        test: "the_hosts_passwords",
        what: "read `/etc/shadow`",
        run: &["read", "/etc/shadow"],
        profiles: ALL,
        opens: &[(ROOT, STRICT, &[User, Root]), (ROOT, HOST, &[Capabilities])],
        holds: &[(None, STRICT, &[Root]), (None, STRICT, &[Capabilities])],
        unseen: "user mode: the account may not read it outside either",
    },
    Attack {
        test: "a_file_of_the_agents_account",
        what: "read the agent's keys: a file that only its account may read",
        run: &["read", "{own}"],
        profiles: PRIVATE,
        opens: &[(USER, STRICT, &[Root]), (ROOT, STRICT, &[User, Root])],
        holds: &[(ROOT, STRICT, &[Root])],
        unseen: "",
    },
    Attack {
        test: "a_file_of_the_host",
        what: "read other runs' files: any file of the host that all may read",
        run: &["read", "{file}"],
        profiles: PRIVATE,
        opens: &[(None, STRICT, &[Root])],
        holds: &[],
        unseen: "",
    },
    Attack {
        test: "writing_a_file_of_the_host",
        what: "write a file of the host that all may write",
        run: &["write", "{file}"],
        profiles: ALL,
        opens: &[(None, STRICT, &[Root, Landlock]), (None, HOST, &[Root, Landlock])],
        holds: &[(None, STRICT, &[Root]), (None, HOST, &[Root]), (None, HOST, &[Landlock])],
        unseen: "",
    },
    Attack {
        test: "making_a_file_on_the_host",
        what: "make a file in a folder of the host that all may write",
        run: &["create", "{new}"],
        profiles: ALL,
        opens: &[(None, STRICT, &[Root, Landlock])],
        holds: &[(None, STRICT, &[Root]), (None, STRICT, &[Landlock])],
        unseen: "",
    },
    Attack {
        test: "a_device_of_the_host",
        what: "open a device node",
        run: &["device", "/dev/ptmx"],
        profiles: ALL,
        opens: &[(None, STRICT, &[Root])],
        holds: &[],
        unseen: "",
    },
    Attack {
        test: "making_a_device",
        what: "make a device node",
        run: &["mknod"],
        profiles: ALL,
        opens: &[(ROOT, STRICT, &[User, Seccomp, Capabilities, Landlock])],
        holds: &[
            (None, STRICT, &[Seccomp, Capabilities, Landlock]),
            (ROOT, STRICT, &[User, Capabilities, Landlock]),
            (ROOT, STRICT, &[User, Seccomp, Landlock]),
            (ROOT, STRICT, &[User, Seccomp, Capabilities]),
        ],
        unseen: "user mode: only the host's root can, and there is always a user namespace",
    },
    Attack {
        test: "a_hard_link_to_a_file_of_the_host",
        what: "hard-link a file of the host into the work folder",
        run: &["hard_link", "{file}"],
        profiles: ALL,
        opens: &[],
        holds: &[(None, HOST, &[Root, Landlock])],
        unseen: "the box is a file system of its own, which no link leaves",
    },
    by_filter("a_file_by_handle", "name a file by handle", &["handle"]),
    Attack {
        test: "a_setuid_program",
        what: "become root by a setuid program",
        run: &["setuid_program", "{setuid}"],
        profiles: &[HOST],
        opens: &[(ROOT, HOST, &[Root, NoNewPrivs])],
        holds: &[(None, HOST, &[Root]), (None, HOST, &[NoNewPrivs])],
        unseen: "user mode: uid 0 does not exist in the user namespace",
    },
    Attack {
        test: "a_leaked_descriptor",
        what: "use a descriptor that was left open (CVE-2024-21626)",
        run: &["leaked_descriptor"],
        profiles: ALL,
        opens: &[(None, STRICT, &[ClosedDescriptors])],
        holds: &[],
        unseen: "",
    },
    Attack {
        test: "a_leaked_variable",
        what: "read a variable that the plan does not have",
        run: &["leaked_variable", "SALLY_BROKEN"],
        profiles: ALL,
        opens: &[(None, STRICT, &[Environment])],
        holds: &[],
        unseen: "",
    },
    Attack {
        test: "overwriting_our_program",
        what: "overwrite the agent's program through `sally-task` (CVE-2019-5736)",
        run: &["write", "/run/sally/box/bin/sally-task"],
        profiles: PRIVATE,
        opens: &[],
        holds: &[(None, NET, &[Landlock])],
        unseen: "the mount is read-only, and the program belongs to root",
    },
    Attack {
        test: "looking_into_init",
        what: "open memory, variables, program, root of the attempt's init",
        run: &["open_init"],
        profiles: ALL,
        opens: &[],
        holds: &[(None, STRICT, &[Landlock]), (None, STRICT, &[Seccomp])],
        unseen: "also closed by `PR_SET_DUMPABLE`, which is no layer to leave out",
    },
    Attack {
        test: "seeing_a_process_of_the_host",
        what: "see a process outside",
        run: &["see", "{pid}"],
        profiles: PRIVATE,
        opens: &[(None, STRICT, &[Pid])],
        holds: &[],
        unseen: "",
    },
    Attack {
        test: "signalling_a_process_of_the_host",
        what: "signal a process of the agent's account",
        run: &["signal", "{pid}"],
        profiles: ALL,
        opens: &[(USER, STRICT, &[Pid, Landlock]), (ROOT, STRICT, &[User, Pid, Landlock])],
        holds: &[
            (None, STRICT, &[Landlock]),
            (None, STRICT, &[Pid]),
            (ROOT, STRICT, &[Pid, Landlock]),
            (ROOT, STRICT, &[User, Pid]),
        ],
        unseen: "",
    },
    by_filter("tracing_a_process", "`ptrace`", &["ptrace"]),
    by_filter("reading_memory_of_a_process", "read another process's memory", &["read_memory"]),
    by_filter(
        "taking_a_descriptor_of_a_process",
        "take a descriptor of another process",
        &["take_descriptor"],
    ),
    Attack {
        test: "shared_memory_of_the_host",
        what: "find System V shared memory of the host",
        run: &["shared_memory", "{key}"],
        profiles: ALL,
        opens: &[(None, STRICT, &[Ipc])],
        holds: &[],
        unseen: "",
    },
    by_filter("a_nested_namespace_by_unshare", "nested user namespace by `unshare`", &["unshare"]),
    by_filter("a_nested_namespace_by_clone", "nested namespaces by `clone`", &["clone"]),
    by_filter("a_nested_namespace_by_clone3", "nested user namespace by `clone3`", &["clone3"]),
    by_filter_or_capabilities("entering_a_namespace", "enter a namespace by `setns`", &["setns"]),
    by_any_of_three("mounting", "mount", &["mount"], ALL),
    by_filter_or_capabilities("mounting_by_the_newer_calls", "mount by `fsopen`", &["mount_new"]),
    by_any_of_three("making_a_mount_writable", "remount the input folder for writing", &["remount"], PRIVATE),
    by_any_of_three("pivoting_the_root", "`pivot_root`", &["pivot_root"], ALL),
    by_filter_or_capabilities("changing_the_root", "`chroot`", &["chroot"]),
    by_filter_or_capabilities("a_raw_socket", "raw IP socket", &["socket", "2", "3", "1"]),
    by_filter_or_capabilities("a_packet_socket", "packet socket", &["socket", "17", "3", "0"]),
    by_filter_or_capabilities("an_xdp_socket", "XDP socket", &["socket", "44", "3", "0"]),
    by_filter("a_vsock_socket", "socket to the hypervisor (`AF_VSOCK`)", &["socket", "40", "1", "0"]),
    Attack {
        unseen: "kernels without `AF_ALG`",
        ..by_filter(
            "a_crypto_socket",
            "socket to the kernel's crypto (`AF_ALG`)",
            &["socket", "38", "5", "0"],
        )
    },
    by_filter("a_firewall_socket", "netlink socket to the firewall", &["socket", "16", "3", "12"]),
    Attack {
        test: "a_netlink_socket",
        what: "netlink socket to the routing tables",
        run: &["socket", "16", "3", "0"],
        profiles: PRIVATE,
        opens: &[(None, STRICT, &[Seccomp])],
        holds: &[],
        unseen: "",
    },
    Attack {
        test: "a_connection_to_the_host",
        what: "connect to a TCP port of the host",
        run: &["tcp", "127.0.0.1", "{tcp}"],
        profiles: ONLY_STRICT,
        opens: &[(None, STRICT, &[Net, Seccomp, Landlock])],
        holds: &[
            (None, STRICT, &[Seccomp, Landlock]),
            (None, STRICT, &[Net, Landlock]),
            (None, STRICT, &[Net, Seccomp]),
        ],
        unseen: "",
    },
    Attack {
        test: "a_connection_to_the_metadata_address",
        what: "connect to the cloud's metadata address",
        run: &["tcp", "169.254.169.254", "80"],
        profiles: ONLY_STRICT,
        opens: &[],
        holds: &[(None, STRICT, &[Seccomp, Landlock])],
        unseen: "there is no such address here; the connection to the host goes the same way",
    },
    Attack {
        test: "a_datagram_to_the_host",
        what: "send a UDP datagram to the host",
        run: &["udp", "127.0.0.1", "{udp}"],
        profiles: ONLY_STRICT,
        opens: &[(None, STRICT, &[Net, Seccomp])],
        holds: &[(None, STRICT, &[Net]), (None, STRICT, &[Seccomp])],
        unseen: "",
    },
    Attack {
        test: "listening",
        what: "bind a TCP port",
        run: &["listen"],
        profiles: ONLY_STRICT,
        opens: &[(None, STRICT, &[Seccomp, Landlock])],
        holds: &[(None, STRICT, &[Seccomp]), (None, STRICT, &[Landlock])],
        unseen: "",
    },
    Attack {
        test: "an_abstract_socket_of_the_host",
        what: "connect to an abstract unix socket of the host",
        run: &["abstract_socket", "{abstract}"],
        profiles: ALL,
        opens: &[(None, NET, &[Landlock]), (None, STRICT, &[Net, Landlock])],
        holds: &[(None, STRICT, &[Net]), (None, STRICT, &[Landlock])],
        unseen: "",
    },
    by_filter("bpf", "reach the code of `bpf`", &["bpf"]),
    by_filter("performance_counters", "reach the code of perf events", &["perf"]),
    by_filter("userfaultfd", "`userfaultfd`", &["userfaultfd"]),
    by_filter("io_uring", "`io_uring`", &["io_uring"]),
    by_filter("secret_memory", "`memfd_secret`", &["memfd_secret"]),
    by_filter("the_kernels_keys", "the kernel's keyrings", &["keys"]),
    by_filter("a_personality", "`personality(READ_IMPLIES_EXEC)`", &["personality"]),
    by_filter(
        "the_system_calls_of_i386",
        "call by another architecture's table (`int 0x80`)",
        &["foreign_table"],
    ),
    by_filter(
        "settings_of_the_host",
        "reach the code of modules, kexec, reboot, swap, clock, domain name, quotas, accounting, kernel log, open by handle",
        &["host_settings"],
    ),
    by_filter_or_capabilities("the_host_name", "set the host name", &["hostname"]),
    by_filter("typing_into_a_terminal", "type into the terminal (`TIOCSTI`)", &["terminal"]),
    by_filter("typing_into_a_terminal_by_high_bits", "the same with high bits set", &["terminal", "high"]),
    by_filter(
        "pasting_into_a_console",
        "reach the code that pastes into a console (`TIOCLINUX`)",
        &["console"],
    ),
];
