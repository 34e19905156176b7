//! No process of an agent listens: not idle, not while scripts run, not after.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::process::Command;

use crate::harness::{Up, eventually, run};
use crate::outside::{self, namespace};

/// `0A` in the kernel's tables: a TCP socket that accepts connections.
const LISTENING: &str = "0A";
/// `07`: a UDP or raw socket that is bound and connected to nobody, so that anybody may send to it.
const UNCONNECTED: &str = "07";

/// The inodes of every socket in the process's network namespace on which something can come in.
fn open_to_others(pid: i32) -> BTreeMap<u64, String> {
    let mut found = BTreeMap::new();
    for (table, open) in [
        ("tcp", LISTENING),
        ("tcp6", LISTENING),
        ("udp", UNCONNECTED),
        ("udp6", UNCONNECTED),
        ("udplite", UNCONNECTED),
        ("udplite6", UNCONNECTED),
        ("raw", UNCONNECTED),
        ("raw6", UNCONNECTED),
    ] {
        // A process may end meanwhile, and a kernel may lack a table.
        let text = fs::read_to_string(format!("/proc/{pid}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if fields[3] == open {
                found.insert(fields[9].parse().unwrap(), format!("{table} {}", fields[1]));
            }
        }
    }
    found
}

/// The inodes of the sockets that a process holds.
fn held(pid: i32) -> BTreeSet<u64> {
    let entries = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
    let links = entries.filter_map(|e| fs::read_link(e.path()).ok());
    let inodes = links.filter_map(|l| l.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.parse().ok());
    inodes.collect()
}

/// Every agent, launcher, keeper, init and script of this `up`.
fn of_agents(up: &Up, agents: u32) -> BTreeSet<i32> {
    let mut all = BTreeSet::new();
    for n in 1..=agents {
        for name in [format!("local-{n}"), format!("local-{n}.launcher")] {
            all.extend(outside::tree(up.pid_of(&name).unwrap()));
        }
    }
    all
}

/// What in these processes can be reached from outside, by two independent looks.
fn reachable(processes: &BTreeSet<i32>) -> Vec<String> {
    let mut found = Vec::new();
    for pid in processes {
        let open = open_to_others(*pid);
        found.extend(held(*pid).iter().filter_map(|i| open.get(i)).map(|what| format!("{pid}: {what}")));
    }
    // `ss` sees one network namespace at a time; those of the slots have nothing to see for it otherwise.
    let said = run(Command::new("ss").args(["-H", "-l", "-n", "-t", "-u", "-p"])).expect(0).text();
    found.extend(
        said.lines()
            .filter(|line| processes.iter().any(|pid| line.contains(&format!("pid={pid},"))))
            .map(str::to_owned),
    );
    found
}

#[test]
fn no_process_of_an_agent_listens_idle_or_at_work() {
    let up = Up::start(2);
    // The looks themselves: the broker does listen, and both say so.
    let broker = BTreeSet::from([up.pid_of("nats-server").unwrap()]);
    let of_broker = reachable(&broker);
    assert!(of_broker.iter().any(|l| l.contains(": tcp ")), "the tables: {of_broker:?}");
    assert!(of_broker.iter().any(|l| l.contains("nats-server")), "ss: {of_broker:?}");

    let idle = of_agents(&up, 2);
    assert!(idle.len() >= 2 * (1 + 1 + 4), "agents, launchers, keepers: {idle:?}");
    assert_eq!(reachable(&idle), Vec::<String>::new(), "idle");

    let mut jobs = Vec::new();
    for (n, profile) in ["strict", "net", "host"].into_iter().enumerate() {
        let seconds = format!("86400.{}4{n}", std::process::id());
        let args = [
            "exec",
            "--all",
            "--profile",
            profile,
            "--detach",
            "-o",
            "json",
            "--",
            "sleep",
            seconds.as_str(),
        ];
        let job = up.sally(&args).expect(0).json()["job"]["id"].as_str().unwrap().to_owned();
        eventually("both scripts are there", || {
            let all = of_agents(&up, 2);
            (all.iter().filter(|p| is_command(**p, &["sleep", &seconds])).count() == 2).then_some(())
        });
        jobs.push(job);
    }
    let busy = of_agents(&up, 2);
    let networks: BTreeSet<String> = busy.iter().map(|p| namespace(*p, "net")).collect();
    assert!(networks.len() > 1, "the strict slots have networks of their own: {networks:?}");
    assert_eq!(reachable(&busy), Vec::<String>::new(), "at work");

    for job in jobs {
        up.sally(&["job", "cancel", &job]).expect(0);
        up.sally(&["job", "wait", &job]).expect(9);
    }
    assert_eq!(reachable(&of_agents(&up, 2)), Vec::<String>::new(), "afterwards");
}

fn is_command(pid: i32, args: &[&str]) -> bool {
    let wanted: Vec<u8> = args.iter().flat_map(|a| a.bytes().chain([0])).collect();
    fs::read(format!("/proc/{pid}/cmdline")).is_ok_and(|c| c == wanted)
}

#[test]
fn an_agent_holds_one_connection_and_it_goes_out_to_the_broker() {
    let up = Up::start(1);
    let url = fs::read_to_string(up.dir().join("agents/local-1/agent.toml")).unwrap();
    let config: toml::Table = toml::from_str(&url).unwrap();
    let port: u16 = config["url"].as_str().unwrap().rsplit(':').next().unwrap().parse().unwrap();
    let agent = up.pid_of("local-1").unwrap();
    let sockets = held(agent);
    let mut connections = Vec::new();
    for table in ["tcp", "tcp6", "udp", "udp6"] {
        let text = fs::read_to_string(format!("/proc/{agent}/net/{table}")).unwrap_or_default();
        for line in text.lines().skip(1) {
            let fields: Vec<&str> = line.split_whitespace().collect();
            if sockets.contains(&fields[9].parse().unwrap()) {
                let remote = u16::from_str_radix(fields[2].rsplit(':').next().unwrap(), 16).unwrap();
                connections.push((table, remote));
            }
        }
    }
    assert_eq!(connections, [("tcp", port)]);
    // The launcher and its keepers have none at all.
    for pid in outside::tree(up.pid_of("local-1.launcher").unwrap()) {
        let text: String = ["tcp", "tcp6", "udp", "udp6"]
            .map(|t| fs::read_to_string(format!("/proc/{pid}/net/{t}")).unwrap_or_default())
            .concat();
        let inodes: BTreeSet<u64> =
            text.lines().filter_map(|l| l.split_whitespace().nth(9)?.parse().ok()).collect();
        assert!(held(pid).is_disjoint(&inodes), "process {pid} of the launcher holds a network socket");
    }
}
