//! The attacks on a list of destinations: what is tried, and without which layers it succeeds. The table in
//! `docs/sandbox.md` is made from it, `tests/destinations.rs` tries them.

use sally_agent::sandbox::Layer::{self, *};

/// One attack, tried by the test of its name in `strict` and in `host`.
pub(crate) struct Try {
    /// The test's name.
    pub(crate) test: &'static str,
    /// The attack, for people.
    pub(crate) what: &'static str,
    /// The list of destinations.
    #[allow(dead_code, reason = "the table shows no arguments")]
    pub(crate) allow: &'static [&'static str],
    /// Attack of `attacker.c` and its arguments; `{dir}` is the folder of the test.
    #[allow(dead_code, reason = "the table shows no arguments")]
    pub(crate) run: &'static [&'static str],
    /// Layers without which it succeeds, all of them together. Empty: see `unseen`.
    pub(crate) opens: &'static [Layer],
    /// Layers without which it is refused all the same.
    pub(crate) holds: &'static [&'static [Layer]],
    /// Why it is not shown to succeed.
    pub(crate) unseen: &'static str,
}

const DATABASE: &[&str] = &["10.99.0.1:5432"];

pub(crate) const DESTINATIONS: &[Try] = &[
    Try {
        test: "another_port_of_the_same_host",
        what: "connect to another port of a listed host",
        allow: DATABASE,
        run: &["answer", "10.99.0.1", "5433"],
        opens: &[Net, Landlock],
        holds: &[&[Net], &[Landlock]],
        unseen: "",
    },
    Try {
        test: "the_same_port_of_another_host",
        what: "connect to a listed port of another host",
        allow: DATABASE,
        run: &["answer", "10.99.0.2", "5432"],
        opens: &[Net],
        holds: &[&[Landlock], &[Seccomp]],
        unseen: "",
    },
    Try {
        test: "the_same_port_of_the_hosts_loopback",
        what: "connect to a listed port of the host's loopback",
        allow: DATABASE,
        run: &["answer", "127.0.0.1", "5432"],
        opens: &[Net],
        holds: &[&[Landlock]],
        unseen: "",
    },
    Try {
        test: "loopback_by_a_list_of_everything",
        what: "reach the host's loopback by a list of every address (`*`)",
        allow: &["*:5432"],
        run: &["answer", "127.0.0.1", "5432"],
        opens: &[Net],
        holds: &[&[Landlock]],
        unseen: "",
    },
    Try {
        test: "metadata_by_a_list_of_everything",
        what: "reach the cloud's metadata address by a list of every address",
        allow: &["*:5432"],
        run: &["answer", "169.254.169.254", "5432"],
        opens: &[Net],
        holds: &[&[Landlock]],
        unseen: "",
    },
    Try {
        test: "metadata_by_a_listed_network",
        what: "reach the cloud's metadata address by a network that has it",
        allow: &["0.0.0.0/0:5432"],
        run: &["answer", "169.254.169.254", "5432"],
        opens: &[Net],
        holds: &[&[Landlock]],
        unseen: "",
    },
    Try {
        test: "another_host_by_a_mapped_address",
        what: "connect to another host by its IPv6-mapped address",
        allow: DATABASE,
        run: &["answer", "::ffff:10.99.0.2", "5432"],
        opens: &[Net],
        holds: &[&[Landlock]],
        unseen: "",
    },
    Try {
        test: "loopback_by_a_mapped_address",
        what: "reach the host's loopback by its IPv6-mapped address and a list of every address",
        allow: &["*:5432", "[::/0]:5432"],
        run: &["answer", "::ffff:127.0.0.1", "5432"],
        opens: &[Net],
        holds: &[&[Landlock]],
        unseen: "",
    },
    Try {
        test: "another_host_by_ipv6",
        what: "connect to another host by IPv6",
        allow: &["[fd99::1]:5432"],
        run: &["answer", "fd99::2", "5432"],
        opens: &[Net],
        holds: &[&[Landlock]],
        unseen: "",
    },
    Try {
        test: "the_address_of_a_name_by_another_number",
        what: "connect to the address of a name at a port that only another name has",
        allow: &["db.example:5432", "web.example:5433"],
        run: &["answer", "127.83.0.1", "5433"],
        opens: &[],
        holds: &[&[Landlock]],
        unseen: "without the network of its own there are no such addresses",
    },
    Try {
        test: "a_name_that_became_loopback",
        what: "a listed name whose owner lets it lead to loopback (DNS rebinding)",
        allow: &["rebound.example:5432"],
        run: &["answer", "127.83.0.1", "5432"],
        opens: &[],
        holds: &[&[Landlock], &[Seccomp]],
        unseen: "the process outside refuses the address, which is no layer to leave out",
    },
    Try {
        test: "a_name_that_became_metadata",
        what: "a listed name whose owner lets it lead to the cloud's metadata address",
        allow: &["metadata.example:5432"],
        run: &["answer", "127.83.0.1", "5432"],
        opens: &[],
        holds: &[&[Landlock], &[Seccomp]],
        unseen: "the process outside refuses the address, which is no layer to leave out",
    },
    Try {
        test: "udp_to_a_listed_address",
        what: "UDP to a listed address and port",
        allow: DATABASE,
        run: &["answer_udp", "10.99.0.1", "5432"],
        opens: &[Net, Seccomp],
        holds: &[&[Net], &[Seccomp]],
        unseen: "",
    },
    Try {
        test: "another_host_by_mptcp",
        what: "connect to another host by MPTCP, of which landlock knows nothing",
        allow: DATABASE,
        run: &["answer_mptcp", "10.99.0.2", "5432"],
        opens: &[Net, Seccomp],
        holds: &[&[Net], &[Seccomp]],
        unseen: "",
    },
    Try {
        test: "another_port_by_fast_open",
        what: "connect to another port by `sendto` with fast open",
        allow: DATABASE,
        run: &["answer_at_once", "10.99.0.1", "5433"],
        opens: &[Net, Landlock],
        holds: &[&[Landlock]],
        unseen: "",
    },
    Try {
        test: "listening_beside_a_list",
        what: "bind a TCP port",
        allow: DATABASE,
        run: &["listen"],
        opens: &[Landlock],
        holds: &[&[Net]],
        unseen: "",
    },
    Try {
        test: "an_abstract_socket_beside_a_list",
        what: "connect to an abstract unix socket of the host",
        allow: DATABASE,
        run: &["abstract_socket", "sally-world"],
        opens: &[Net, Seccomp, Landlock],
        holds: &[&[Net, Seccomp], &[Seccomp, Landlock]],
        unseen: "",
    },
    Try {
        test: "a_unix_socket_beside_a_list",
        what: "connect to a unix socket of the host's files",
        allow: DATABASE,
        run: &["unix_socket", "{dir}/socket"],
        opens: &[Seccomp, Root],
        holds: &[&[Net, Landlock]],
        unseen: "",
    },
    Try {
        test: "everything_with_an_empty_list",
        what: "connect anywhere with an empty list",
        allow: &[],
        run: &["answer", "10.99.0.1", "5432"],
        opens: &[Net, Landlock],
        holds: &[&[Net], &[Landlock]],
        unseen: "",
    },
];
