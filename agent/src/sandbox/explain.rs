//! A profile in plain words, from the tables that the sandbox itself is made by.
#![forbid(unsafe_code)]

use super::landlock::{WRITABLE_IN_BOX, WRITABLE_OUTSIDE};
use super::layer::{Hold, Layer, Layers};
use super::paths::BoxPaths;
use super::plan::Limits;
use super::profile::Profile;
use super::seccomp;
use super::template::{
    DEVICES, ETC_FILES, ETC_FOLDERS, ETC_LINKS, ETC_MADE, ETC_NETWORK_FILES, SYSTEM_LINKS,
};
use super::wire::Mode;
use serde::Serialize;
use std::collections::BTreeMap;

/// A profile, explained.
#[derive(Debug, Serialize)]
pub struct Explained {
    /// The version of this form.
    pub schema: u32,
    /// The profile.
    pub profile: Profile,
    /// How slots are told apart.
    pub mode: Mode,
    /// Folders that a script may write, as it sees them.
    pub writable: Vec<String>,
    /// What `/etc` has inside; `None`: what the host's has.
    pub etc: Option<Vec<String>>,
    /// Families of sockets that can be made.
    pub sockets: Vec<&'static str>,
    /// What each layer is on a host that offers everything.
    pub layers: Layers,
    /// Every limit by its name in the configuration.
    pub limits: BTreeMap<&'static str, u64>,
    /// Every system call with the reason, as text.
    pub system_calls: String,
    /// The same for people.
    pub sections: Vec<Section>,
}

/// Lines under a title.
#[derive(Debug, Serialize)]
pub struct Section {
    /// What they are about.
    pub title: &'static str,
    /// One sentence each.
    pub lines: Vec<String>,
}

/// Explains a profile. `uid` is that of slot 0; `paths` are those of the box as a script sees it.
pub fn explain(profile: Profile, mode: Mode, uid: u32, paths: &BoxPaths, limits: &Limits) -> Explained {
    let private = profile != Profile::Host;
    let mut writable: Vec<String> =
        WRITABLE_IN_BOX.iter().map(|name| paths.base().join(name).display().to_string()).collect();
    if private {
        writable.extend(WRITABLE_OUTSIDE.map(str::to_owned));
    }
    let sockets: Vec<_> = seccomp::families(profile).into_iter().map(|(_, name)| name).collect();
    let (layers, system_calls) = (expected(profile, mode), seccomp::table(profile));
    let etc = private.then(|| etc(profile));
    let sections = vec![
        Section { title: "it sees", lines: sees(profile, paths, etc.as_deref()) },
        Section { title: "it may write", lines: writes(&writable, limits) },
        Section { title: "who it is", lines: who(mode, uid) },
        Section { title: "layers", lines: layer_lines(&layers) },
        Section { title: "network", lines: network(profile, &sockets) },
        Section { title: "system calls", lines: calls(&system_calls) },
        Section {
            title: "limits",
            lines: limits.named().map(|(name, value)| limit_line(name, value)).to_vec(),
        },
        Section { title: "not protected", lines: not_protected(profile, mode) },
    ];
    let limits = limits.named().into_iter().collect();
    Explained { schema: 1, profile, mode, writable, etc, sockets, layers, limits, system_calls, sections }
}

fn etc(profile: Profile) -> Vec<String> {
    let network: &[&str] = if profile == Profile::Strict { &["hosts"] } else { &ETC_NETWORK_FILES };
    let all = ETC_MADE.iter().chain(&ETC_FILES).chain(&ETC_LINKS).chain(&ETC_FOLDERS).chain(network);
    all.map(|name| (*name).to_owned()).collect()
}

fn sees(profile: Profile, paths: &BoxPaths, etc: Option<&[String]>) -> Vec<String> {
    let inside = paths.base().display();
    let mut lines = match etc {
        Some(etc) => vec![
            format!(
                "the host's /usr with /{}: read-only, no setuid program gains anything, no device nodes",
                SYSTEM_LINKS.join(" /")
            ),
            format!(
                "of /etc only, where the host has it: {}; passwd and group name nobody of the host",
                etc.join(" ")
            ),
            format!("of /dev only: {}, and links to its own descriptors", DEVICES.join(" ")),
            "of /proc only its own processes, read-only".to_owned(),
            "nothing else: no home folders, nothing of /var, /root, /boot, /srv or /sys, no other run"
                .to_owned(),
        ],
        None => vec![
            "the host's whole file system, read-only, as far as the permissions of its uid go".to_owned(),
            format!("device nodes can be opened only if they are {}", DEVICES.join(" ")),
            "the host's processes in /proc, read-only".to_owned(),
        ],
    };
    lines.push(format!(
        "its own script, parameters, secrets and sally-task, read-only, below {inside}{}",
        if profile == Profile::Host { "" } else { " (the box)" }
    ));
    lines.push(
        "its environment is exactly what task and agent set; descriptors 0 to 3 and no other".to_owned(),
    );
    lines
}

fn writes(writable: &[String], limits: &Limits) -> Vec<String> {
    vec![
        format!(
            "{}: all together {} bytes in {} files",
            writable.join(" "),
            limits.work_bytes,
            limits.work_files
        ),
        "they are in memory, empty at the start, and gone with the attempt".to_owned(),
        format!("device nodes: {}", DEVICES.join(" ")),
    ]
}

fn who(mode: Mode, uid: u32) -> Vec<String> {
    let line = match mode {
        Mode::Root => {
            format!("kernel uid and gid {uid} plus the slot's number: no account, no other slot has it")
        }
        Mode::User => format!("kernel uid {uid}, the same as the agent and every slot"),
    };
    vec![line, "never uid 0; sudo and su cannot work inside".to_owned()]
}

/// What each layer is where the host offers everything.
fn expected(profile: Profile, mode: Mode) -> Layers {
    let hold = |layer| match layer {
        Layer::Net if profile != Profile::Strict => Hold::Absent,
        Layer::Root if profile == Profile::Host => Hold::Degraded,
        Layer::Uid if mode == Mode::User => Hold::Absent,
        _ => Hold::Enforced,
    };
    Layer::ALL.into_iter().map(|layer| (layer, hold(layer))).collect()
}

fn layer_lines(layers: &Layers) -> Vec<String> {
    layers
        .iter()
        .map(|(layer, hold)| {
            let by_design = match hold {
                Hold::Enforced => "",
                Hold::Degraded => " (in part, by design)",
                Hold::Absent => " (absent, by design)",
            };
            format!("{layer}{by_design}: {}", meaning(*layer))
        })
        .chain([
            "each run's result says what was really enforced; sally-agent doctor tries it here".to_owned()
        ])
        .collect()
}

fn meaning(layer: Layer) -> &'static str {
    match layer {
        Layer::User => "capabilities inside mean nothing outside",
        Layer::Uid => "a kernel uid that no other slot and not the agent has",
        Layer::Mount => "mounts of its own",
        Layer::Pid => {
            "processes of its own: it signals no others (and sees them in host only), and all end together"
        }
        Layer::Net => "a network of its own with nothing in it",
        Layer::Ipc => "shared memory, semaphores and message queues of its own",
        Layer::Uts => "a host name record of its own",
        Layer::Root => "a root of its own, read-only",
        Layer::NoNewPrivs => "no program gains privileges by being executed",
        Layer::Capabilities => "all five capability sets are empty",
        Layer::Rlimits => "limits of each process",
        Layer::ClosedDescriptors => "nothing of the agent stays open",
        Layer::Environment => "nothing of the agent's environment is inherited",
        Layer::Seccomp => "the kernel answers only listed system calls",
        Layer::Landlock => "a second wall for files, TCP (strict), abstract sockets and signals",
        Layer::Cgroup => "all three that follow",
        Layer::CgroupMemory => "memory of the whole tree is limited",
        Layer::CgroupPids => "processes of the whole tree are limited",
        Layer::CgroupCpu => "processor time of the whole tree is weighed and counted",
    }
}

fn network(profile: Profile, sockets: &[&str]) -> Vec<String> {
    let reach = match profile {
        Profile::Strict => "none: not even loopback is up; no connection leaves or enters",
        Profile::Net | Profile::Host => {
            "the host's: whatever the host reaches, a script reaches, its loopback included"
        }
    };
    vec![reach.to_owned(), format!("sockets of these families only, nothing raw: {}", sockets.join(" "))]
}

/// The table of calls, one line for each reason, with the number of calls; refusals by argument in full.
fn calls(table: &str) -> Vec<String> {
    let (mut lines, mut by_argument) = (Vec::new(), false);
    let mut count = 0;
    let mut title: Option<&str> = None;
    for line in table.lines().skip(1).chain([""]) {
        match line.strip_prefix("  ") {
            Some(entry) if by_argument => lines.push(format!("refused: {entry}")),
            Some(_) => count += 1,
            None => {
                if let Some(title) = title.take().filter(|_| !by_argument) {
                    lines.push(format!("{title} ({count} calls)"));
                }
                count = 0;
                title = Some(line).filter(|line| !line.is_empty());
                by_argument |= line.ends_with("by argument");
            }
        }
    }
    lines.push("every other call does not exist (ENOSYS); -o json has each call by name".to_owned());
    lines
}

fn limit_line(name: &str, value: u64) -> String {
    format!("{name} = {value}")
}

fn not_protected(profile: Profile, mode: Mode) -> Vec<String> {
    let mut lines = vec![
        "a hole in the part of the kernel that stays open is a hole in every layer: only a virtual machine helps".to_owned(),
        "bandwidth of disks and network is not limited".to_owned(),
        "without control groups memory and processor time are limited for each process only".to_owned(),
    ];
    if profile != Profile::Strict {
        lines.push(
            "everything that the host's network reaches, the cloud's metadata address included".to_owned(),
        );
    }
    if profile == Profile::Host {
        lines.push("files and unix sockets of the host that its uid may use".to_owned());
    }
    if mode == Mode::User {
        lines.push("slots share one kernel uid with the agent; namespaces alone keep them apart".to_owned());
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(profile: Profile, mode: Mode) -> Explained {
        explain(profile, mode, 200_000, &BoxPaths::new("/box"), &Limits::default())
    }

    #[test]
    fn every_call_reason_and_limit_is_there() {
        for profile in Profile::ALL {
            let all = of(profile, Mode::Root);
            let lines: Vec<&String> = all.sections.iter().flat_map(|section| &section.lines).collect();
            for line in all.system_calls.lines().filter(|l| l.starts_with("allowed:")) {
                assert!(lines.iter().any(|l| l.starts_with(line) && !l.ends_with("(0 calls)")), "{line}");
            }
            let entries =
                all.system_calls.split("by argument\n").nth(1).map_or(0, |rest| rest.lines().count());
            assert_eq!(lines.iter().filter(|l| l.starts_with("refused: ")).count(), entries);
            for (name, value) in Limits::default().named() {
                assert!(lines.iter().any(|l| **l == format!("{name} = {value}")), "{name}");
            }
        }
    }

    #[test]
    fn profiles_differ_where_they_should() {
        let (strict, net, host) =
            (of(Profile::Strict, Mode::Root), of(Profile::Net, Mode::Root), of(Profile::Host, Mode::User));
        assert_eq!(strict.sockets, ["unix"]);
        assert_eq!(net.sockets, ["unix", "IPv4", "IPv6"]);
        let has =
            |all: &Explained, name: &str| all.etc.as_ref().is_some_and(|etc| etc.iter().any(|n| n == name));
        assert!(has(&net, "resolv.conf") && !has(&strict, "resolv.conf") && host.etc.is_none());
        assert_eq!(strict.writable, ["/box/work", "/box/tmp", "/box/out", "/tmp", "/dev/shm"]);
        assert_eq!(host.writable, ["/box/work", "/box/tmp", "/box/out"]);
        assert_eq!(host.layers.get(&Layer::Uid), Some(&Hold::Absent));
    }
}
