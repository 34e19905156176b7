//! Every attack of the list, really tried by a program inside the real launcher's sandbox: refused with all layers
//! in place, refused by each layer that stands alone, and done where none is left. As root and as an ordinary user.
//!
//! To add one: a function in `attacks/attacker.c` or `escapes.c`, a row in `attacks/registry.rs` or `escapes.rs`, its name below.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

#[path = "attacks/destinations.rs"]
mod destinations;
#[path = "attacks/elsewhere.rs"]
mod elsewhere;
#[path = "attacks/escapes.rs"]
mod escapes;
#[path = "attacks/registry.rs"]
mod registry;
#[path = "attacks/scene.rs"]
mod scene;
#[path = "attacks/table.rs"]
mod table;

mod host;

use host::in_both;
use registry::{Attack, attacks};
use sally_agent::sandbox::{Mode, Outcome, Profile};
use scene::Scene;

/// How an attack ended, by the exit code of `attacker.c`.
#[derive(Clone, Copy, Debug, PartialEq)]
enum End {
    Open,
    Closed,
    /// The kernel has no such thing: nothing to keep out.
    Cannot,
}

/// SIGSYS, by which the kernel ends who calls by a foreign table.
const BAD_CALL: i32 = 31;

#[expect(clippy::print_stderr, reason = "what is not tried must be seen")]
fn aloud(text: &str) {
    eprintln!("not tried: {text}");
}

/// Tries an attack in one sandbox after the other.
fn attempt(test: &str) {
    let attack = attacks().find(|attack| attack.test == test).unwrap();
    if !attack.unseen.is_empty() {
        aloud(&format!("{} without its layers: {}", attack.what, attack.unseen));
    }
    in_both(async |mode| {
        let scene = Scene::start(mode, &[]).await;
        for profile in attack.profiles {
            expect(&scene, attack, *profile, End::Closed).await;
        }
        drop(scene);
        for (cases, end) in [(attack.opens, End::Open), (attack.holds, End::Closed)] {
            for (_, profile, broken) in cases.iter().filter(|(only, ..)| only.is_none_or(|only| only == mode))
            {
                let scene = Scene::start(mode, broken).await;
                expect(&scene, attack, *profile, end).await;
            }
        }
    });
}

async fn expect(scene: &Scene, attack: &Attack, profile: Profile, wanted: End) {
    let Some(ended) = scene.run(attack, profile).await else {
        return aloud(&format!("{}: this needs root", attack.what));
    };
    let end = match ended.record.outcome {
        Outcome::Exited { code: 10 } => End::Open,
        Outcome::Exited { code: 20 } | Outcome::Signaled { signal: BAD_CALL } => End::Closed,
        Outcome::Exited { code: 30 } => End::Cannot,
        ref other => panic!("{}: {other:?} {}", attack.what, ended.stderr),
    };
    if end == End::Cannot && wanted == End::Open {
        return aloud(&format!("{}: {}", attack.what, ended.stdout.trim()));
    }
    let (mode, broken) = (scene.host.mode, &scene.broken);
    let fits = end == wanted || (end == End::Cannot && wanted == End::Closed);
    assert!(
        fits,
        "{}: {end:?}, not {wanted:?}, in {profile} as {mode:?} without {broken:?}: {}",
        attack.what, ended.stdout
    );
}

/// The tests, one for each row of the registry.
macro_rules! attacks {
    ($($name:ident)*) => {
        $(#[test] fn $name() { attempt(stringify!($name)); })*

        const TESTS: &[&str] = &[$(stringify!($name)),*];
    };
}

attacks! {
    the_hosts_passwords
    a_file_of_the_agents_account
    a_file_of_the_host
    writing_a_file_of_the_host
    making_a_file_on_the_host
    a_device_of_the_host
    making_a_device
    a_hard_link_to_a_file_of_the_host
    a_file_by_handle
    a_setuid_program
    a_leaked_descriptor
    a_leaked_variable
    overwriting_our_program
    looking_into_init
    seeing_a_process_of_the_host
    signalling_a_process_of_the_host
    tracing_a_process
    reading_memory_of_a_process
    taking_a_descriptor_of_a_process
    shared_memory_of_the_host
    a_nested_namespace_by_unshare
    a_nested_namespace_by_clone
    a_nested_namespace_by_clone3
    entering_a_namespace
    mounting
    mounting_by_the_newer_calls
    making_a_mount_writable
    pivoting_the_root
    changing_the_root
    a_raw_socket
    a_packet_socket
    an_xdp_socket
    a_vsock_socket
    a_crypto_socket
    a_firewall_socket
    a_netlink_socket
    a_connection_to_the_host
    a_connection_to_the_metadata_address
    a_datagram_to_the_host
    listening
    an_abstract_socket_of_the_host
    bpf
    performance_counters
    userfaultfd
    io_uring
    secret_memory
    the_kernels_keys
    a_personality
    the_system_calls_of_i386
    settings_of_the_host
    the_host_name
    typing_into_a_terminal
    typing_into_a_terminal_by_high_bits
    pasting_into_a_console
    a_unix_socket_of_the_host
    a_unix_socket_of_the_host_by_a_pair
    asking_the_launcher_for_a_sandbox
    a_pipe_of_the_host
    the_files_of_control_groups
    mounting_control_groups
    settings_that_are_files
    devices_that_lead_into_the_kernel
    a_device_node_that_all_may_open
    looking_into_processes_of_the_agents_account
    looking_into_launcher_and_keeper
    the_system_calls_of_x32
    taking_a_terminal
    opening_the_controlling_terminal
    giving_a_file_a_capability
    making_a_setuid_program
    moving_the_folders_of_the_box
    seeing_a_neighbour
    signalling_a_neighbour
    looking_into_a_neighbour
    files_of_a_neighbour
    shared_memory_of_a_neighbour
    an_abstract_socket_of_a_neighbour
}

/// On another kernel than this one: all attacks in one sandbox with every layer, where each row by itself would start some
/// hundred launchers.
#[test]
fn every_attack_is_refused_in_a_unit() {
    if !host::in_units() {
        return aloud(
            "all attacks by one launcher in a unit (make guest does); each has a test of its own here",
        );
    }
    in_both(async |mode| {
        let scene = Scene::start(mode, &[]).await;
        for attack in attacks() {
            for profile in attack.profiles {
                // A row that landlock alone keeps out where the network is the host's: older kernels have no scopes.
                let scoped = attack.what.contains("abstract unix socket") && *profile == Profile::Net;
                if scoped && sally_agent::sandbox::landlock_abi() < sally_agent::sandbox::WHOLE_LANDLOCK {
                    aloud(&format!("{} in {profile}: this kernel's landlock has no scopes", attack.what));
                    continue;
                }
                expect(&scene, attack, *profile, End::Closed).await;
            }
        }
    });
}

#[test]
fn every_attack_of_the_registry_has_a_test() {
    let rows: Vec<_> = attacks().map(|attack| attack.test).collect();
    assert_eq!(rows, TESTS);
    for attack in attacks() {
        assert!(
            !attack.opens.is_empty() || !attack.unseen.is_empty(),
            "{}: nothing shows it real",
            attack.test
        );
    }
}

#[test]
fn the_table_in_the_documentation_is_that_of_the_registry() {
    table::check();
}

/// Modes by the word of the documentation.
fn mode_name(mode: Mode) -> &'static str {
    match mode {
        Mode::Root => "root",
        Mode::User => "user",
    }
}
