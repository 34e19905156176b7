//! What the examples say is what the same questions say outside the sandbox.

use std::collections::BTreeSet;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;
use std::process::Command;

use serde_json::{Value, json};

use crate::harness::{Up, eventually, repository, run};
use crate::outside::Own;

/// What a command says outside Sally.
#[track_caller]
fn sh(text: &str) -> String {
    run(Command::new("sh").args(["-euc", text])).expect(0).text().trim_end().to_owned()
}

/// The profile that an example's head names.
fn profile(example: &str) -> String {
    let text = fs::read_to_string(repository().join("examples").join(example)).unwrap();
    let line = text.lines().find_map(|l| l.trim_start_matches(['#', ' ']).strip_prefix("Profile:"));
    line.unwrap().split_whitespace().next().unwrap().to_owned()
}

/// Runs an example on one agent with the profile it names, and returns its run.
#[track_caller]
fn example(up: &Up, name: &str, params: &[&str], code: i32) -> Value {
    let (profile, path) = (profile(name), format!("examples/{name}"));
    let mut args = vec!["run", "-a", "local-1", "--profile", &profile];
    args.extend(params.iter().flat_map(|p| ["-p", p]));
    args.push(&path);
    let record = up.json(&args, code);
    let run = record["runs"][0].clone();
    assert_eq!(run["sandbox"]["profile"], profile.as_str());
    assert_eq!(run["result_state"], "valid", "{run}");
    run
}

/// Local file systems as `df` sees them: source, type, mount, bytes of size, used and available, percent.
fn df() -> Vec<(String, String, String, u64, u64, u64, u64)> {
    let local = [
        "ext2", "ext3", "ext4", "xfs", "btrfs", "zfs", "f2fs", "jfs", "reiserfs", "vfat", "exfat", "ntfs",
        "ntfs3", "bcachefs", "overlay",
    ];
    let said = sh("LC_ALL=C df -B1 --output=source,fstype,size,used,avail,pcent,target 2>/dev/null || true");
    let rows = said.lines().skip(1).map(|l| l.split_whitespace().map(str::to_owned).collect::<Vec<_>>());
    let number = |text: &String| text.trim_end_matches('%').parse().unwrap_or(0);
    rows.filter(|r| local.contains(&r[1].as_str()))
        .map(|r| {
            let n = [2, 3, 4, 5].map(|at| number(&r[at]));
            (r[0].clone(), r[1].clone(), r[6].clone(), n[0], n[1], n[2], n[3])
        })
        .collect()
}

/// Other programs write meanwhile: a hundredth of the disk is nothing.
fn is_near(reported: &Value, outside: u64, size: u64) -> bool {
    reported.as_u64().unwrap().abs_diff(outside) <= size / 100
}

fn addresses_outside() -> BTreeSet<String> {
    let links: Value = serde_json::from_str(&sh("ip -j addr")).unwrap();
    let mut found = BTreeSet::new();
    for link in links.as_array().unwrap() {
        for a in link["addr_info"].as_array().unwrap() {
            found.insert(json!([link["ifname"], a["family"], a["local"], a["prefixlen"]]).to_string());
        }
    }
    found
}

#[test]
fn the_host_inventory_is_what_the_host_says() {
    let up = Up::start(1);
    // Another test may be adding an interface: what counts is an answer between two equal looks.
    let (result, addresses) = eventually("two equal looks at the addresses", || {
        let before = addresses_outside();
        let result = example(&up, "host-inventory.sh", &[], 0)["result"].clone();
        (before == addresses_outside()).then_some((result, before))
    });
    assert_eq!(result["hostname"], sh("uname -n"));
    let kernel = json!({"name": sh("uname -s"), "release": sh("uname -r"), "version": sh("uname -v"),
                        "machine": sh("uname -m")});
    assert_eq!(result["kernel"], kernel);
    for key in ["ID", "VERSION_ID", "NAME", "PRETTY_NAME"] {
        let outside = sh(&format!(". /etc/os-release; printf %s \"${{{key}-}}\""));
        let inside = result["os"][key.to_lowercase()].as_str().unwrap_or_default();
        assert_eq!(inside, outside, "os-release {key}");
    }
    assert_eq!(result["cpu"]["count"].to_string(), sh("getconf _NPROCESSORS_ONLN"));
    let memory = sh("awk '$1 == \"MemTotal:\" { printf \"%.0f\", $2 * 1024 }' /proc/meminfo");
    assert_eq!(result["memory"]["total_bytes"].to_string(), memory);

    let inside: BTreeSet<String> = result["addresses"]
        .as_array()
        .unwrap()
        .iter()
        .map(|a| json!([a["interface"], a["family"], a["address"], a["prefix"]]).to_string())
        .collect();
    assert_eq!(inside, addresses);

    let outside = df();
    let disks = result["disks"].as_array().unwrap();
    assert!(!disks.is_empty());
    let sources: BTreeSet<&str> = disks.iter().map(|d| d["source"].as_str().unwrap()).collect();
    assert_eq!(sources, outside.iter().map(|d| d.0.as_str()).collect());
    for disk in disks {
        let (_, kind, _, size, used, available, _) =
            outside.iter().find(|d| disk["source"] == d.0.as_str()).unwrap();
        assert_eq!((&disk["type"], &disk["size_bytes"]), (&json!(kind), &json!(size)));
        assert!(is_near(&disk["used_bytes"], *used, *size), "{disk}, outside {used}");
        assert!(is_near(&disk["available_bytes"], *available, *size), "{disk}, outside {available}");
    }
}

#[test]
fn the_disk_report_is_what_df_says() {
    let up = Up::start(1);
    let outside = df();
    // Every disk is above zero percent: the threshold is crossed, and said in the failure and the exit code.
    let run = example(&up, "disk-report.py", &["threshold_percent:=0"], 3);
    assert_eq!((&run["failure"]["code"], &run["exit_code"]), (&json!("DISK_OVER_THRESHOLD"), &json!(1)));
    let disks = run["result"].as_array().unwrap();
    let names: BTreeSet<&str> = disks.iter().map(|d| d["source"].as_str().unwrap()).collect();
    assert_eq!(names, outside.iter().map(|d| d.0.as_str()).collect());
    for disk in disks {
        let (_, _, _, size, used, _, percent) =
            outside.iter().find(|d| disk["source"] == d.0.as_str()).unwrap();
        assert_eq!(disk["size_bytes"], *size);
        assert!(is_near(&disk["used_bytes"], *used, *size), "{disk}, outside {used}");
        assert!(disk["used_percent"].as_u64().unwrap().abs_diff(*percent) <= 1, "{disk}, outside {percent}%");
    }
    let fullest = outside.iter().map(|d| d.6).max().unwrap();
    if fullest < 99 {
        let run = example(&up, "disk-report.py", &["threshold_percent:=100"], 0);
        assert_eq!(run["failure"], Value::Null);
    }
}

#[test]
fn collected_configuration_is_what_the_files_are() {
    let up = Up::start(1);
    let dir = up.scratch().join("etc");
    fs::create_dir(&dir).unwrap();
    let write = |name: &str, bytes: &[u8], mode: u32| {
        fs::write(dir.join(name), bytes).unwrap();
        fs::set_permissions(dir.join(name), fs::Permissions::from_mode(mode)).unwrap();
    };
    write("a.conf", "port = 1\nname = \"ä\"\n".as_bytes(), 0o644);
    write("b.conf", b"\xff\xfe\x00", 0o604);
    write("secret.key", b"nobody else", 0o600);
    for folder in [up.scratch(), &dir] {
        fs::set_permissions(folder, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let at = |name: &str| dir.join(name).to_str().unwrap().to_owned();
    let paths = format!("paths:={}", json!([at("*.conf"), at("secret.key"), at("none"), "/etc/os-release"]));
    let result = example(&up, "config-collect.py", &[&paths], 0)["result"].clone();
    assert_eq!(result["not_found"], json!([at("none")]));
    for path in [at("a.conf"), at("b.conf"), "/etc/os-release".to_owned()] {
        let file = &result["files"][&path];
        let meta = fs::metadata(&path).unwrap();
        assert_eq!(file["sha256"], sh(&format!("sha256sum '{path}' | cut -d' ' -f1")));
        assert_eq!(file["size_bytes"], meta.len());
        assert_eq!(file["mode"], format!("{:04o}", meta.mode() & 0o7777));
        assert_eq!((&file["uid"], &file["gid"]), (&json!(meta.uid()), &json!(meta.gid())), "{path}");
    }
    assert_eq!(result["files"][at("a.conf")]["content"], "port = 1\nname = \"ä\"\n");
    let raw = &result["files"][at("b.conf")];
    assert_eq!((&raw["encoding"], &raw["content"]), (&json!("base64"), &json!("//4A")));
    let secret = &result["files"][at("secret.key")];
    if nix::unistd::geteuid().is_root() {
        assert_eq!(secret["error"], "Permission denied", "the sandbox read what only root may");
        assert_eq!(secret.get("content"), None);
    }
}

#[test]
fn a_tcp_probe_finds_what_listens_and_what_does_not() {
    let up = Up::start(1);
    let open = TcpListener::bind("127.0.0.1:0").unwrap();
    let open_port = open.local_addr().unwrap().port();
    let closed_port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (a, b) = (format!("127.0.0.1:{open_port}"), format!("127.0.0.1:{closed_port}"));
    let run = example(&up, "tcp-probe.py", &[&format!("targets={a},{b}")], 3);
    let states = |run: &Value| -> Vec<Value> {
        let rows = run["result"]["targets"].as_array().unwrap();
        rows.iter().map(|t| json!([t["target"], t["state"]])).collect()
    };
    assert_eq!(states(&run), [json!([a, "open"]), json!([b, "refused"])]);
    assert_eq!(run["failure"]["code"], "TCP_UNEXPECTED");
    // The listener has really been called.
    open.set_nonblocking(true).unwrap();
    assert!(open.accept().unwrap().1.ip().is_loopback());
    let run = example(&up, "tcp-probe.py", &[&format!("targets={b}"), "expect=closed"], 0);
    assert_eq!(states(&run), [json!([b, "refused"])]);
    let run = example(&up, "tcp-probe.py", &[&format!("targets={a}")], 0);
    assert_eq!(states(&run), [json!([a, "open"])]);
}

#[test]
fn the_end_of_a_certificate_is_what_openssl_says() {
    if Command::new("openssl").arg("version").output().is_err() {
        println!("SKIPPED: the end of a certificate: there is no openssl");
        return;
    }
    let up = Up::start(1);
    let dir = up.scratch();
    let (key, cert, log) = (dir.join("key.pem"), dir.join("cert.pem"), dir.join("tls.log"));
    let path = |p: &Path| p.to_str().unwrap().to_owned();
    let mut make = Command::new("openssl");
    make.args(["req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "10", "-subj", "/CN=127.0.0.1"]);
    run(make.args(["-keyout", &path(&key), "-out", &path(&cert)])).expect(0);
    let mut serve = Command::new("openssl");
    serve.args(["s_server", "-accept", "127.0.0.1:0", "-key", &path(&key), "-cert", &path(&cert), "-www"]);
    let server = Own::start(&mut serve, &log);
    let port = eventually("the TLS server says its port", || {
        let text = fs::read_to_string(&log).ok()?;
        let line = text.lines().find_map(|l| l.strip_prefix("ACCEPT 127.0.0.1:"))?.to_owned();
        line.trim().parse::<u16>().ok()
    });
    let end = sh(&format!("openssl x509 -noout -enddate -in '{}' | cut -d= -f2", path(&cert)));
    let end = sh(&format!("date -u -d '{end}' +%Y-%m-%dT%H:%M:%SZ"));

    let hosts = format!("hosts=127.0.0.1:{port}");
    let run = example(&up, "tls-expiry.py", &[&hosts], 3);
    let host = &run["result"]["hosts"][0];
    assert_eq!(host["not_after"], end);
    assert_eq!((&host["verified"], &host["ok"]), (&json!(false), &json!(false)));
    assert!([9, 10].contains(&host["days_left"].as_i64().unwrap()), "{host}");
    assert_eq!(run["failure"]["code"], "TLS_EXPIRING");
    // Not soon, but signed by nobody whom this host knows.
    let run = example(&up, "tls-expiry.py", &[&hosts, "warn_days:=5"], 3);
    assert_eq!(run["failure"]["code"], "TLS_UNTRUSTED");
    server.stop();
    let run = example(&up, "tls-expiry.py", &[&hosts], 3);
    assert_eq!(run["failure"]["code"], "TLS_UNREACHABLE");
}

#[test]
fn a_long_job_says_how_far_it_is_and_stops_when_told() {
    let up = Up::start(1);
    let run = example(&up, "long-job.sh", &["steps:=3", "seconds:=0"], 0);
    assert_eq!(run["result"], json!({"steps": 3, "done": 3, "stopped": false}));
    let progress = |run: &Value, field: &str| run["progress"][field].as_f64();
    assert_eq!((progress(&run, "done"), progress(&run, "total")), (Some(3.0), Some(3.0)));
    assert_eq!(run["stdout"], "step 1 of 3\nstep 2 of 3\nstep 3 of 3\n");
    assert_eq!(run["artifacts"][0]["path"], "long-job.log");

    let args =
        ["run", "-a", "local-1", "--detach", "-o", "json", "-p", "steps:=86400", "examples/long-job.sh"];
    let job = up.sally(&args).expect(0).json()["job"]["id"].as_str().unwrap().to_owned();
    // Its progress is seen while it runs.
    eventually("two steps are done", || {
        let run = up.json(&["job", "show", &job], 0)["runs"][0].clone();
        assert_ne!(run["final"], true, "it ended early: {run}");
        (progress(&run, "done") >= Some(2.0) && run["state"] == "running").then_some(())
    });
    up.sally(&["job", "cancel", &job]).expect(0);
    let run = up.json(&["job", "wait", &job], 9)["runs"][0].clone();
    assert_eq!(run["state"], "cancelled");
    assert_eq!(run["result"]["stopped"], true, "it was told and said so: {run}");
    assert!(run["result"]["done"].as_u64() >= Some(2));
}
