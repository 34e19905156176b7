//! A profile in plain words, from the tables that the sandbox itself is made by.
#![forbid(unsafe_code)]

use super::definition::{Access, ProfileDefinition};
use super::keeper::ADMIN_IS_WITHOUT;
use super::landlock::{WRITABLE_IN_BOX, WRITABLE_OUTSIDE};
use super::layer::{Hold, Layer, Layers};
use super::network::{CONNECTIONS_MAX, Destination};
use super::paths::BoxPaths;
use super::plan::Limits;
use super::profile::Profile;
use super::seccomp;
use super::template::{
    DEVICES, ETC_FILES, ETC_FOLDERS, ETC_LINKS, ETC_MADE, ETC_NETWORK_FILES, SYSTEM_LINKS,
};
use super::wire::Mode;
use sally_common::name::ProfileName;
use serde::Serialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A profile, explained.
#[derive(Debug, Serialize)]
pub struct Explained {
    /// The version of this form.
    pub schema: u32,
    /// The profile.
    pub profile: ProfileName,
    /// What an operator's profile starts from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base: Option<Profile>,
    /// How slots are told apart.
    pub mode: Mode,
    /// Folders that a script may write, as it sees them.
    pub writable: Vec<String>,
    /// What `/etc` has inside; `None`: what the host's has.
    pub etc: Option<Vec<String>>,
    /// All that a script may connect to; `None`: as the profile has it.
    pub destinations: Option<Vec<Destination>>,
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

/// Explains a profile, with what its operator's definition changes if it is one, and with `destinations` in place of
/// its network if there are any. `uid` is that of slot 0; `paths` are
/// those of the box as a script sees it.
pub fn explain(
    profile: Profile,
    definition: Option<&ProfileDefinition>,
    destinations: Option<&[Destination]>,
    mode: Mode,
    uid: u32,
    paths: &BoxPaths,
    limits: &Limits,
) -> Explained {
    let destinations = definition.and_then(|d| d.network_allow.as_deref()).or(destinations);
    let listed = destinations.is_some();
    let private = !profile.sees_host();
    let mut writable: Vec<String> =
        WRITABLE_IN_BOX.iter().map(|name| paths.base().join(name).display().to_string()).collect();
    if private {
        writable.extend(WRITABLE_OUTSIDE.map(str::to_owned));
    }
    if profile == Profile::Admin {
        writable = vec!["/".to_owned()];
    }
    if let Some(definition) = definition {
        writable.extend(definition.paths_to(Access::Write).map(|path| path.display().to_string()));
    }
    let limits = &definition.map_or(*limits, |definition| definition.limits(*limits));
    let sockets: Vec<_> =
        seccomp::families(profile, listed, definition).into_iter().map(|(_, name)| name).collect();
    let layers = expected(profile, definition, listed, mode);
    let system_calls = calls_of(profile, listed, definition);
    let etc = private.then(|| etc(profile, listed));
    let operator =
        definition.map(|definition| Section { title: "its operator", lines: operator(definition) });
    let rest = vec![
        Section { title: "it sees", lines: sees(profile, definition, paths, etc.as_deref()) },
        Section { title: "it may write", lines: writes(profile, &writable, limits) },
        Section { title: "who it is", lines: who(profile, mode, uid) },
        Section { title: "layers", lines: layer_lines(&layers, listed) },
        Section { title: "network", lines: network(profile, definition, destinations, &sockets) },
        Section { title: "system calls", lines: calls(&system_calls) },
        Section {
            title: "limits",
            lines: limits.named().map(|(name, value)| limit_line(name, value)).to_vec(),
        },
        Section { title: "not protected", lines: not_protected(profile, definition, listed, mode) },
    ];
    let sections = operator.into_iter().chain(rest).collect();
    let limits = limits.named().into_iter().collect();
    let base = definition.map(|_| profile);
    let profile = definition.map_or_else(|| profile.to_name(), |definition| definition.name.clone());
    Explained {
        schema: 1,
        profile,
        base,
        mode,
        writable,
        etc,
        destinations: destinations.map(<[Destination]>::to_vec),
        sockets,
        layers,
        limits,
        system_calls,
        sections,
    }
}

/// What a definition says, in its own words where it has some.
fn operator(definition: &ProfileDefinition) -> Vec<String> {
    let list =
        |paths: Vec<&Path>| paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" ");
    let paths = |access| list(definition.paths_to(access).collect());
    let layers = definition.require.iter().map(|layer| layer.name()).collect::<Vec<_>>().join(" ");
    let rates = definition.rates.named().into_iter();
    let rates: Vec<_> = rates.filter_map(|(name, rate, _)| Some(format!("{name} = {}", rate?))).collect();
    let shows = if seccomp::has_unix_sockets(definition.base, Some(definition)) {
        "shows also, read-only (a socket in it can be connected to)"
    } else {
        "shows also, read-only"
    };
    let sockets = if definition.unix_sockets { "those that its uid may use" } else { "" };
    let lines = [
        ("says", definition.description.clone().unwrap_or_default()),
        (shows, paths(Access::Read)),
        ("lets write also, as far as the permissions of its uid go", paths(Access::Write)),
        ("shows something empty in place of", paths(Access::Hide)),
        ("gives the devices", list(definition.devices.iter().map(PathBuf::as_path).collect())),
        ("reaches only", reaches(definition)),
        ("lets connect to the host's unix sockets", sockets.to_owned()),
        ("allows the system calls", definition.allowed_calls.join(" ")),
        ("refuses the system calls", definition.refused_calls.join(" ")),
        ("holds it, where control groups can, to", rates.join(", ")),
        ("lets nothing start without the layers", layers),
    ];
    let said = lines.into_iter().filter(|(_, value)| !value.is_empty());
    said.map(|(what, value)| format!("{what}: {value}")).collect()
}

/// The list of destinations, as text.
fn reaches(definition: &ProfileDefinition) -> String {
    match definition.network_allow.as_deref() {
        None => String::new(),
        Some([]) => "nothing".to_owned(),
        Some(list) => list.iter().map(ToString::to_string).collect::<Vec<_>>().join(" "),
    }
}

/// The table of calls; `admin` has none.
fn calls_of(profile: Profile, listed: bool, definition: Option<&ProfileDefinition>) -> String {
    match profile {
        Profile::Admin => "No system call is refused in profile admin.\n".into(),
        _ => seccomp::table_with(profile, listed, definition),
    }
}

fn etc(profile: Profile, listed: bool) -> Vec<String> {
    let network: &[&str] = if profile == Profile::Strict || listed { &["hosts"] } else { &ETC_NETWORK_FILES };
    let all = ETC_MADE.iter().chain(&ETC_FILES).chain(&ETC_LINKS).chain(&ETC_FOLDERS).chain(network);
    all.map(|name| (*name).to_owned()).collect()
}

fn sees(
    profile: Profile,
    definition: Option<&ProfileDefinition>,
    paths: &BoxPaths,
    etc: Option<&[String]>,
) -> Vec<String> {
    let inside = paths.base().display();
    let devices: Vec<_> = DEVICES.into_iter().map(str::to_owned).chain(devices(definition)).collect();
    let devices = devices.join(" ");
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
            format!("of /dev only: {devices}, and links to its own descriptors"),
            "of /proc only its own processes, read-only".to_owned(),
        ],
        None if profile == Profile::Admin => vec![
            "the host as root sees it: every file, device and process".to_owned(),
            "mounts of its own beside those of the host: what it mounts ends with it (nsenter -t 1 -m mount … stays)"
                .to_owned(),
        ],
        None => vec![
            "the host's whole file system, read-only, as far as the permissions of its uid go".to_owned(),
            format!("device nodes can be opened only if they are {devices}"),
            "the host's processes in /proc, read-only".to_owned(),
        ],
    };
    let shown = shown(definition);
    let list = |paths: &[&Path]| paths.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(" ");
    if etc.is_some() && !shown.is_empty() {
        lines.push(format!("besides, as its operator has it: {}", list(&shown)));
    }
    let hidden: Vec<_> = definition.into_iter().flat_map(|d| d.paths_to(Access::Hide)).collect();
    if !hidden.is_empty() {
        lines.push(format!("something empty in place of: {}", list(&hidden)));
    }
    if etc.is_some() {
        lines.push(nothing_else(&shown));
    }
    lines.push(format!(
        "its own script, parameters, secrets and sally-task, read-only, below {inside}{}",
        if profile.sees_host() { "" } else { " (the box)" }
    ));
    lines.push(
        "its environment is exactly what task and agent set; descriptors 0 to 3 and no other".to_owned(),
    );
    lines
}

/// The paths of the host that a definition adds.
fn shown(definition: Option<&ProfileDefinition>) -> Vec<&Path> {
    let changes = definition.into_iter().flat_map(|definition| &definition.paths);
    changes.filter(|change| change.access != Access::Hide).map(|change| change.path.as_path()).collect()
}

/// The devices that a definition adds, as they are called below `/dev`.
fn devices(definition: Option<&ProfileDefinition>) -> impl Iterator<Item = String> {
    let devices = definition.into_iter().flat_map(|definition| &definition.devices);
    devices.map(|path| path.strip_prefix("/dev").unwrap_or(path).display().to_string())
}

/// What a private root lacks, but for what a definition shows of it.
fn nothing_else(shown: &[&Path]) -> String {
    const PLACES: [&str; 6] = ["/home", "/var", "/root", "/boot", "/srv", "/sys"];
    let whole = |place: &&str| shown.iter().any(|path| Path::new(place).starts_with(path));
    let in_part = |place: &&str| shown.iter().any(|path| path.starts_with(place));
    let (part, none): (Vec<_>, Vec<_>) = PLACES.into_iter().filter(|place| !whole(place)).partition(in_part);
    let mut all = Vec::new();
    if none.contains(&"/home") {
        all.push("no home folders".to_owned());
    }
    let none: Vec<_> = none.into_iter().filter(|place| *place != "/home").collect();
    for (words, places) in [("nothing of", none), ("nothing more of", part)] {
        match places.split_last() {
            Some((last, [])) => all.push(format!("{words} {last}")),
            Some((last, others)) => all.push(format!("{words} {} or {last}", others.join(", "))),
            None => {}
        }
    }
    all.push("no other run".to_owned());
    format!("nothing else: {}", all.join("; "))
}

fn writes(profile: Profile, writable: &[String], limits: &Limits) -> Vec<String> {
    if profile == Profile::Admin {
        return vec![
            "everything that root may write".to_owned(),
            format!(
                "its work folder has room for {} bytes in {} files",
                limits.work_bytes, limits.work_files
            ),
        ];
    }
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

fn who(profile: Profile, mode: Mode, uid: u32) -> Vec<String> {
    if profile == Profile::Admin {
        return vec![
            "root, with every capability; sudo has nothing to add".to_owned(),
            "only where the launcher is root and its policy (--max-profile admin) and the agent's (profiles) say so"
                .to_owned(),
        ];
    }
    let line = match mode {
        Mode::Root => {
            format!("kernel uid and gid {uid} plus the slot's number: no account, no other slot has it")
        }
        Mode::User => format!("kernel uid {uid}, the same as the agent and every slot"),
    };
    vec![
        line,
        "never uid 0; sudo and su cannot work inside: a task asks for another account with --user NAME, where the \
         agent allows it, and for root with --profile admin"
            .to_owned(),
    ]
}

/// What each layer is where the host offers everything.
fn expected(profile: Profile, definition: Option<&ProfileDefinition>, listed: bool, mode: Mode) -> Layers {
    let hold = |layer| match layer {
        layer if profile == Profile::Admin && ADMIN_IS_WITHOUT.contains(&layer) => Hold::Absent,
        Layer::Uid if profile == Profile::Admin => Hold::Absent,
        Layer::Net if profile != Profile::Strict && !listed => Hold::Absent,
        Layer::Root if profile == Profile::Host => Hold::Degraded,
        Layer::Uid if mode == Mode::User => Hold::Absent,
        _ => Hold::Enforced,
    };
    let rates = definition.map(|definition| definition.rates).unwrap_or_default();
    let quota = rates.cpu_percent.map(|_| Layer::CgroupCpuQuota);
    let disks = rates.limits_disks().then_some(Layer::CgroupIo);
    Layer::ALL.into_iter().chain(quota).chain(disks).map(|layer| (layer, hold(layer))).collect()
}

fn layer_lines(layers: &Layers, listed: bool) -> Vec<String> {
    layers
        .iter()
        .map(|(layer, hold)| {
            let by_design = match hold {
                Hold::Enforced => "",
                Hold::Degraded => " (in part, by design)",
                Hold::Absent => " (absent, by design)",
            };
            format!("{layer}{by_design}: {}", meaning(*layer, listed))
        })
        .chain([
            "each run's result says what was really enforced; sally-agent doctor tries it here".to_owned()
        ])
        .collect()
}

fn meaning(layer: Layer, listed: bool) -> &'static str {
    match layer {
        Layer::User => "capabilities inside mean nothing outside",
        Layer::Uid => "a kernel uid that no other slot and not the agent has",
        Layer::Mount => "mounts of its own",
        Layer::Pid => {
            "processes of its own: it signals no others (and sees them in host only), and all end together"
        }
        Layer::Net if listed => "a network of its own with the listed destinations in it",
        Layer::Landlock if listed => "a second wall for files, TCP by port, abstract sockets and signals",
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
        Layer::CgroupCpuQuota => "the whole tree has no more than its share of the processors",
        Layer::CgroupIo => "the whole tree reads and writes each disk no faster than its rates",
        Layer::Account => "it runs as the account that the task names",
    }
}

fn network(
    profile: Profile,
    definition: Option<&ProfileDefinition>,
    destinations: Option<&[Destination]>,
    sockets: &[&str],
) -> Vec<String> {
    let mut families = format!("sockets of these families only, nothing raw: {}", sockets.join(" "));
    if !seccomp::has_unix_sockets(profile, definition) {
        families.push_str("; unix sockets only as pairs of its own: none of the host's can be connected to");
    }
    if let Some(list) = destinations.filter(|list| !list.is_empty()) {
        let list: Vec<_> = list.iter().map(ToString::to_string).collect();
        return vec![
            format!("it may connect by TCP to {} and to nothing else", list.join(" ")),
            "it has a network of its own; a process outside makes each connection, at most \
             {CONNECTIONS_MAX} at a time, and all end with the attempt"
                .replace("{CONNECTIONS_MAX}", &CONNECTIONS_MAX.to_string()),
            "a name is looked up outside for each connection, and never leads to loopback, link-local or metadata \
             addresses; /etc/hosts has it inside with an address of this network"
                .to_owned(),
            "a connection is taken before the other side has answered: one that fails is reset at its first use"
                .to_owned(),
            "no UDP, so no DNS; no ping; it can listen on no port".to_owned(),
            families,
        ];
    }
    if destinations.is_some() {
        return vec!["none: the list of destinations is empty".to_owned(), families];
    }
    let reach = match profile {
        Profile::Strict => "none: not even loopback is up; no connection leaves or enters",
        Profile::Net | Profile::Host | Profile::Admin => {
            "the host's: whatever the host reaches, a script reaches, its loopback included"
        }
    };
    if profile == Profile::Admin {
        return vec![reach.to_owned(), "sockets of every kind".to_owned()];
    }
    vec![reach.to_owned(), families]
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
    if lines.is_empty() {
        return vec![table.trim().to_owned()];
    }
    lines.push("every other call does not exist (ENOSYS); -o json has each call by name".to_owned());
    lines
}

fn limit_line(name: &str, value: u64) -> String {
    format!("{name} = {value}")
}

fn not_protected(
    profile: Profile,
    definition: Option<&ProfileDefinition>,
    listed: bool,
    mode: Mode,
) -> Vec<String> {
    let mut lines = vec![
        "a hole in the part of the kernel that stays open is a hole in every layer: only a virtual machine helps".to_owned(),
        "bandwidth of disks and network is not limited".to_owned(),
        "without control groups memory and processor time are limited for each process only".to_owned(),
    ];
    if listed {
        lines.push("who answers for a listed name or address, and what is sent to it".to_owned());
    } else if profile != Profile::Strict {
        lines.push(
            "everything that the host's network reaches, the cloud's metadata address included".to_owned(),
        );
    }
    if profile == Profile::Admin {
        lines.push(
            "the host: a script is root on it. Time, limits, the end of its whole tree, its environment and the bounds \
             of its output are still kept, against mistakes and not against intent"
                .to_owned(),
        );
    }
    if profile == Profile::Host {
        let sockets = if seccomp::has_unix_sockets(profile, definition) {
            ", and unix sockets of the host that its uid may use"
        } else {
            ""
        };
        lines.push(format!("files of the host that its uid may read{sockets}"));
    }
    if mode == Mode::User {
        lines.push("slots share one kernel uid with the agent; namespaces alone keep them apart".to_owned());
    }
    lines
}

#[cfg(test)]
#[path = "explain_tests.rs"]
mod tests;
