//! What is explained, against what the tables and definitions say.
#![expect(clippy::panic, reason = "a test fails by panicking")]

use super::*;

fn of(profile: Profile, mode: Mode) -> Explained {
    explain(profile, None, None, mode, 200_000, &BoxPaths::new("/box"), &Limits::default())
}

#[test]
fn every_call_reason_and_limit_is_there() {
    for profile in Profile::ALL {
        let all = of(profile, Mode::Root);
        let lines: Vec<&String> = all.sections.iter().flat_map(|section| &section.lines).collect();
        for line in all.system_calls.lines().filter(|l| l.starts_with("allowed:")) {
            assert!(lines.iter().any(|l| l.starts_with(line) && !l.ends_with("(0 calls)")), "{line}");
        }
        let entries = all.system_calls.split("by argument\n").nth(1).map_or(0, |rest| rest.lines().count());
        assert_eq!(lines.iter().filter(|l| l.starts_with("refused: ")).count(), entries);
        for (name, value) in Limits::default().named() {
            assert!(lines.iter().any(|l| **l == format!("{name} = {value}")), "{name}");
        }
    }
}

#[test]
fn a_list_stands_in_place_of_the_network() {
    let list = ["db:5432".parse::<Destination>().unwrap_or_else(|e| unreachable!("{e}"))];
    let of = |profile, list: &[Destination]| {
        explain(profile, None, Some(list), Mode::User, 1, &BoxPaths::new("/box"), &Limits::default())
    };
    for profile in Profile::ALL {
        let all = of(profile, &list);
        assert_eq!(all.layers.get(&Layer::Net), Some(&Hold::Enforced));
        let lines: Vec<&String> = all.sections.iter().flat_map(|section| &section.lines).collect();
        assert!(lines.iter().any(|line| line.contains("db:5432 and to nothing else")));
        assert!(!lines.iter().any(|line| line.contains("metadata address included")));
    }
    let none = of(Profile::Host, &[]);
    assert!(
        none.sections
            .iter()
            .any(|s| s.lines.iter().any(|line| line.contains("list of destinations is empty")))
    );
}

#[test]
fn profiles_differ_where_they_should() {
    let (strict, net, host) =
        (of(Profile::Strict, Mode::Root), of(Profile::Net, Mode::Root), of(Profile::Host, Mode::User));
    assert_eq!(strict.sockets, ["unix"]);
    assert_eq!(net.sockets, ["unix", "IPv4", "IPv6"]);
    let has = |all: &Explained, name: &str| all.etc.as_ref().is_some_and(|etc| etc.iter().any(|n| n == name));
    assert!(has(&net, "resolv.conf") && !has(&strict, "resolv.conf") && host.etc.is_none());
    assert_eq!(strict.writable, ["/box/work", "/box/tmp", "/box/out", "/tmp", "/dev/shm"]);
    assert_eq!(host.writable, ["/box/work", "/box/tmp", "/box/out"]);
    assert_eq!(host.layers.get(&Layer::Uid), Some(&Hold::Absent));
}

#[test]
fn admin_is_said_to_confine_nothing() {
    let admin = of(Profile::Admin, Mode::Root);
    let without = |layer| admin.layers.get(&layer) == Some(&Hold::Absent);
    assert!(without(Layer::Seccomp) && without(Layer::Capabilities) && without(Layer::Uid));
    assert!(!without(Layer::Mount) && !without(Layer::Environment) && !without(Layer::CgroupMemory));
    assert_eq!(admin.writable, ["/"]);
    let all: Vec<_> = admin.sections.iter().flat_map(|s| &s.lines).map(String::as_str).collect();
    assert!(all.iter().any(|line| line.starts_with("root, with every capability")), "{all:#?}");
    assert!(!all.iter().any(|line| line.contains("allowed:") || line.contains("never uid 0")), "{all:#?}");
}

#[test]
fn a_definition_is_explained_with_what_it_changes() {
    let text = "base = \"net\"\nrequire = [\"seccomp\"]\n[files]\nread = [\"/opt\"]\nwrite = [\"/srv\"]\n\
                [system_calls]\nallow = [\"ptrace\"]\nrefuse = [\"memfd_create\"]\n\
                [limits]\nprocesses = 7\ncpu_percent = 50\n";
    let name = ProfileName::new("db-audit").unwrap_or_default();
    let definition = ProfileDefinition::parse(&name, text).unwrap_or_else(|all| panic!("{all:?}"));
    let paths = BoxPaths::new("/box");
    let all = explain(Profile::Net, Some(&definition), None, Mode::Root, 1, &paths, &Limits::default());
    assert_eq!((all.profile.as_str(), all.base), ("db-audit", Some(Profile::Net)));
    assert_eq!(all.limits.get("processes"), Some(&7));
    assert!(all.writable.iter().any(|path| path == "/srv"));
    assert_eq!(all.layers.get(&Layer::CgroupCpuQuota), Some(&Hold::Enforced));
    assert_eq!(all.layers.get(&Layer::CgroupIo), None);
    let lines: Vec<&String> = all.sections.iter().flat_map(|section| &section.lines).collect();
    for line in [
        "shows also, read-only (a socket in it can be connected to): /opt",
        "allows the system calls: ptrace",
        "refuses the system calls: memfd_create",
        "allowed: by the profile's definition (1 calls)",
        "refused, EPERM: by the profile's definition (1 calls)",
        "holds it, where control groups can, to: cpu_percent = 50",
        "lets nothing start without the layers: seccomp",
    ] {
        assert!(lines.iter().any(|l| *l == line), "{line} in {lines:#?}");
    }
}

fn defined(text: &str) -> ProfileDefinition {
    let name = ProfileName::new("db-audit").unwrap_or_default();
    ProfileDefinition::parse(&name, text).unwrap_or_else(|all| panic!("{all:?}"))
}

fn lines_with(definition: &ProfileDefinition) -> Vec<String> {
    let paths = BoxPaths::new("/box");
    let base = definition.base;
    let all = explain(base, Some(definition), None, Mode::Root, 1, &paths, &Limits::default());
    all.sections.into_iter().flat_map(|section| section.lines).collect()
}

/// A profile that shows `/var/log` was explained with "nothing of /var".
#[test]
fn what_an_operator_shows_is_not_said_to_be_absent() {
    let text = "base = \"strict\"\ndevices = [\"/dev/kvm\"]\n[files]\n\
                read = [\"/var/log\", \"/home\", \"/opt/db\"]\nhide = [\"/usr/share/doc\"]\n";
    let lines = lines_with(&defined(text));
    for line in [
        "besides, as its operator has it: /home /opt/db /var/log",
        "something empty in place of: /usr/share/doc",
        "nothing else: nothing of /root, /boot, /srv or /sys; nothing more of /var; no other run",
        "of /dev only: null zero full random urandom kvm, and links to its own descriptors",
    ] {
        assert!(lines.iter().any(|l| l == line), "{line} in {lines:#?}");
    }
    let plain = lines_with(&defined("base = \"strict\""));
    let nothing = "nothing else: no home folders; nothing of /var, /root, /boot, /srv or /sys; no other run";
    assert!(plain.iter().any(|l| l == nothing), "{plain:#?}");
    let host = lines_with(&defined("base = \"host\"\n[files]\nhide = [\"/home\"]"));
    assert!(host.iter().any(|l| l == "something empty in place of: /home"), "{host:#?}");
}

#[test]
fn unix_sockets_of_the_host_are_explained_as_they_are() {
    let (closed, open) = ("base = \"host\"", "base = \"host\"\n[network]\nunix_sockets = true");
    let says = |text: &str, part: &str| lines_with(&defined(text)).iter().any(|line| line.contains(part));
    assert!(says(closed, "none of the host's can be connected to") && !says(closed, "nothing raw: unix"));
    assert!(says(open, "nothing raw: unix") && !says(open, "none of the host's can be connected to"));
    assert!(says(open, "unix sockets of the host that its uid may use"));
    assert!(says(
        "base = \"strict\"\n[files]\nread = [\"/opt\"]",
        "(a socket in it can be connected to): /opt"
    ));
}

#[test]
fn the_examples_are_profiles() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../examples/profiles.d");
    let files = std::fs::read_dir(&folder).unwrap_or_else(|e| panic!("{}: {e}", folder.display()));
    let texts: Vec<String> = files.flatten().filter_map(|f| std::fs::read_to_string(f.path()).ok()).collect();
    assert!(texts.len() >= 2);
    for text in texts {
        assert!(lines_with(&defined(&text)).iter().any(|line| line.starts_with("says: ")), "{text}");
    }
}
