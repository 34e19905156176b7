//! Profiles of the operator, `admin`, accounts and required layers, asked for by `sally run` and `sally exec`.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;

use serde_json::Value;

use crate::harness::{Up, eventually, programs, run};

const SLOW: &str = "description = \"slow\"\nbase = \"strict\"\n[files]\nhide = [\"/usr/share\"]\n[limits]\nopen_files = 99\n";

/// `up` with these definitions, and whatever else it is told.
fn up(definitions: &[(&str, &str)], more: &[&str]) -> Up {
    let dir = tempfile::Builder::new().prefix("sally-").tempdir().unwrap();
    let profiles = dir.path().join("up/profiles.d");
    fs::create_dir_all(&profiles).unwrap();
    fs::set_permissions(dir.path().join("up"), fs::Permissions::from_mode(0o700)).unwrap();
    for (name, text) in definitions {
        fs::write(profiles.join(format!("{name}.toml")), text).unwrap();
    }
    Up::start_in(dir, 1, more)
}

fn first(record: &Value) -> &Value {
    &record["runs"][0]
}

#[test]
fn a_profile_of_the_operator_is_asked_for_reported_and_refused_by_name() {
    let up = up(&[("slow", SLOW), ("wrong", "base = \"strict\"\ncolour = 1\n")], &[]);
    let look = "ulimit -n; ls /usr/share | wc -l";
    let record = up.json(&["exec", "--all", "--profile", "slow", "--", "sh", "-c", look], 0);
    assert_eq!(
        (&first(&record)["stdout"], &first(&record)["sandbox"]["profile"]),
        (&"99\n0\n".into(), &"slow".into())
    );
    let strict = up.json(&["exec", "--all", "--", "true"], 0);
    assert_eq!(first(&strict)["sandbox"]["layers"], first(&record)["sandbox"]["layers"]);
    let refused = up.json(&["exec", "--all", "--profile", "none", "--", "true"], 6);
    assert_eq!(
        (&first(&refused)["state"], &first(&refused)["reason"]),
        (&"rejected".into(), &"policy".into())
    );
    let message = first(&refused)["message"].as_str().unwrap();
    assert!(message.contains("profile none is not allowed here") && message.contains("slow"), "{message}");
    let wrong = up.json(&["exec", "--all", "--profile", "wrong", "--", "true"], 6);
    let message = first(&wrong)["message"].as_str().unwrap();
    assert!(message.contains("colour = 1: expected no such key"), "{message}");
    // Only what can be asked for is told.
    let profiles = eventually("the heartbeat was heard", || {
        let record = up.json(&["agent", "ls"], 0);
        let profiles = record["agents"][0]["profiles"].clone();
        profiles.is_array().then_some(profiles)
    });
    assert_eq!(profiles, serde_json::json!(["strict", "net", "host", "slow"]));
    // The default policy has no admin, and no account.
    for args in [["--profile", "admin"], ["--user", "nobody"]] {
        let record = up.json(&["exec", "--all", args[0], args[1], "--", "true"], 6);
        assert_eq!(first(&record)["reason"], "policy", "{record}");
    }
}

#[test]
fn a_layer_that_cannot_be_enforced_refuses_the_run_by_its_name() {
    let up = up(&[], &[]);
    let fine = up.json(&["exec", "--all", "--require", "net,seccomp,no-new-privs", "--", "true"], 0);
    assert_eq!(first(&fine)["sandbox"]["layers"]["net"], "enforced");
    let args = ["exec", "--all", "--profile", "net", "--require", "seccomp,net", "--", "true"];
    let refused = up.json(&args, 6);
    assert_eq!(
        (&first(&refused)["state"], &first(&refused)["reason"]),
        (&"rejected".into(), &"layer-missing".into())
    );
    let message = first(&refused)["message"].as_str().unwrap();
    assert!(message.contains("requires net,"), "{message}");
    let unknown = up.json(&["exec", "--all", "--require", "moat", "--", "true"], 6);
    assert_eq!(first(&unknown)["reason"], "layer-missing");
    assert!(first(&unknown)["message"].as_str().unwrap().contains("moat"), "{unknown}");
}

#[test]
fn admin_and_accounts_are_for_whom_the_policy_allows_them() {
    if !nix::unistd::geteuid().is_root() {
        return println!("SKIPPED: not root: neither admin nor another account is possible");
    }
    let up = up(&[], &["--allow-admin", "--allow-user", "daemon"]);
    let admin =
        up.json(&["exec", "--all", "--profile", "admin", "--", "sh", "-c", "id -u; echo '{\"a\":1}' >&3"], 0);
    let run = first(&admin);
    assert_eq!(
        (&run["stdout"], &run["sandbox"]["uid"], &run["result"]["a"]),
        (&"0\n".into(), &0.into(), &1.into())
    );
    assert_eq!(
        (&run["sandbox"]["profile"], &run["sandbox"]["layers"]["seccomp"]),
        (&"admin".into(), &"absent".into())
    );
    let uid = nix::unistd::User::from_name("daemon").unwrap().unwrap().uid.as_raw();
    let daemon = up.json(&["exec", "--all", "--user", "daemon", "--", "id", "-u"], 0);
    assert_eq!(
        (&first(&daemon)["stdout"], &first(&daemon)["sandbox"]["uid"]),
        (&format!("{uid}\n").into(), &uid.into())
    );
    assert_eq!(first(&daemon)["sandbox"]["layers"]["account"], "enforced");
    let nobody = up.json(&["exec", "--all", "--user", "nobody", "--", "id", "-u"], 6);
    assert!(first(&nobody)["message"].as_str().unwrap().contains("only daemon"), "{nobody}");
    let su = up.json(
        &["exec", "--all", "--", "sh", "-c", "echo 'su: must be suid to work properly' >&2; exit 1"],
        3,
    );
    assert!(first(&su)["message"].as_str().unwrap().contains("--user NAME"), "{su}");
}

#[test]
fn the_host_explains_tries_and_checks_them() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("slow.toml"), SLOW).unwrap();
    fs::write(dir.path().join("wrong.toml"), "base = \"tight\"\nx = 1\n").unwrap();
    let folder = dir.path().display().to_string();
    let agent = |args: &[&str]| {
        let mut command = Command::new(programs().join("sally-agent"));
        run(command.args(args).args(["--profiles-dir", &folder]))
    };
    let text = agent(&["sandbox", "explain", "slow"]).expect(0).text();
    for line in
        ["profile slow, which starts from strict", "says: slow", "in place of: /usr/share", "open_files = 99"]
    {
        assert!(text.contains(line), "{line} in {text}");
    }
    let error = agent(&["sandbox", "explain", "wrong"]).expect(2).stderr;
    assert!(
        error.contains("base = \"tight\": expected strict") && error.contains("x = 1: expected"),
        "{error}"
    );
    let script = dir.path().join("s.sh");
    fs::write(&script, "#!/bin/sh\nulimit -n\n").unwrap();
    let script = script.display().to_string();
    let said =
        agent(&["test", &script, "--profile", "slow", "-o", "json", "--require", "seccomp"]).expect(0).json();
    assert_eq!(
        (&first(&said)["stdout"], &first(&said)["sandbox"]["profile"]),
        (&"99\n".into(), &"slow".into())
    );
    let said =
        agent(&["test", &script, "--profile", "net", "-o", "json", "--require", "net"]).expect(6).json();
    assert_eq!(first(&said)["reason"], "layer-missing");
    let doctor = agent(&["doctor", "-o", "json"]).expect(0).json();
    let check = |name: &str| {
        let checks = doctor["checks"].as_array().unwrap();
        checks.iter().find(|check| check["check"] == format!("profile {name}")).unwrap().clone()
    };
    assert!(check("slow")["found"].as_str().unwrap().starts_with("works"), "{}", check("slow"));
    assert_eq!(check("wrong")["level"], "warn");
    assert!(check("wrong")["found"].as_str().unwrap().contains("base = \"tight\""), "{}", check("wrong"));
}

#[test]
fn the_work_folder_of_a_failed_run_is_kept_where_its_message_says() {
    let up = up(&[], &[]);
    let work = "mkdir d && echo found >d/note && ln -s /etc/passwd link && exit 3";
    let record = up.json(&["exec", "--all", "--keep", "--", "sh", "-c", work], 3);
    let message = first(&record)["message"].as_str().unwrap().to_owned();
    assert!(
        message.starts_with("exit code 3; its work folder is kept on the agent's host until "),
        "{message}"
    );
    let archive = message.rsplit_once(": ").unwrap().1.to_owned();
    let listed = run(Command::new("tar").args(["-tf", &archive])).expect(0).text();
    assert_eq!(listed, "d/\nlink\nd/note\n");
    assert_eq!(run(Command::new("tar").args(["-xOf", &archive, "d/note"])).expect(0).text(), "found\n");
    assert_eq!(fs::metadata(&archive).unwrap().permissions().mode() & 0o777, 0o600);
    let told = up.sally(&["exec", "--all", "--keep", "--", "sh", "-c", "exit 5"]).expect(3);
    let told = format!("{}{}", told.text(), told.stderr);
    assert!(told.contains("its work folder is kept on the agent's host"), "people are told too: {told}");
    // Neither without the option nor of a run that succeeded.
    up.json(&["exec", "--all", "--", "sh", "-c", work], 3);
    let fine = up.json(&["exec", "--all", "--keep", "--", "sh", "-c", "echo x >y"], 0);
    assert_eq!(first(&fine)["message"], Value::Null);
    let kept = |args: &[&str]| {
        let mut command = Command::new(programs().join("sally-agent"));
        let config = up.dir().join("agents/local-1/agent.toml");
        run(command.arg("kept").args(args).arg("--config").arg(config))
    };
    let list = kept(&["ls", "-o", "json"]).expect(0).json();
    let id = first(&record)["run"].as_str().unwrap();
    assert_eq!(
        (list["kept"].as_array().unwrap().len(), &list["kept"][0]["run"]),
        (2, &format!("{id}.1").into())
    );
    assert_eq!(list["kept"][0]["path"], archive.as_str());
    assert!(kept(&["rm", "nothing-0"]).expect(1).stderr.contains("no work folder is kept of run nothing-0"));
    kept(&["rm", id]).expect(0);
    kept(&["rm", "--all"]).expect(0);
    assert_eq!(kept(&["ls"]).expect(0).text(), "nothing is kept\n");
}
