//! What people try on one host without a broker, by the real program, as root and as an ordinary user.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod place;

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};
use place::{Place, until};
use serde_json::Value;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Child, Stdio};

#[test]
fn a_record_has_what_a_run_has() {
    for place in Place::all() {
        let params = place.file("params.json", r#"{"from": "file", "n": 1}"#);
        let script = "#!/bin/sh\necho out; echo err >&2; cat $SALLY_PARAMS_FILE; echo \"$GREETING $*\"\n\
             sally-task set answer:=1.50\nexit 7\n";
        let args = ["-p", "n:=2", "-P", &params, "--env", "GREETING=hi", "--", "a b", "c"];
        let (code, run) = place.test(script, &args);
        assert_eq!(code, 3);
        assert_eq!(run["state"], "failed");
        assert_eq!(run["exit_code"], 7);
        assert_eq!(run["reason"], "exit-code");
        assert_eq!(run["result_state"], "valid");
        assert_eq!(run["result"]["answer"], 1.5);
        assert_eq!(run["stdout"], "out\n{\"from\":\"file\",\"n\":2}hi a b c\n");
        assert_eq!(run["stderr"], "err\n");
        assert_eq!(run["sandbox"]["profile"], "strict");
        assert_eq!(run["sandbox"]["layers"]["seccomp"], "enforced");
        let uid = run["sandbox"]["layers"]["uid"].as_str().unwrap();
        assert_eq!(uid, if place.as_user { "absent" } else { "enforced" });
        place.nothing_is_left();
    }
}

#[test]
fn each_end_has_the_exit_code_of_sally_run() {
    for place in Place::all() {
        assert_eq!(place.test("#!/bin/sh\ntrue\n", &[]).0, 0);
        let (code, run) = place.test("#!/bin/sh\nsleep 60\n", &["--timeout", "200ms"]);
        assert_eq!((code, &run["state"], &run["reason"]), (5, &"timed_out".into(), &"timeout".into()));
        let (code, run) = place.test("#!/bin/sh\necho '{' >&3\n", &[]);
        assert_eq!((code, &run["result_state"]), (3, &"invalid".into()));
        let (code, run) = place.test("#!/bin/sh\n", &["--require-result"]);
        assert_eq!((code, &run["reason"]), (3, &"result-missing".into()));
        let (code, run) = place.test("no program", &[]);
        assert_eq!((code, &run["state"], &run["reason"]), (6, &"rejected".into(), &"bad-program".into()));
        let (code, run) = place.test("x", &["--interpreter", "no-such-interpreter"]);
        assert_eq!((code, &run["reason"]), (3, &"not-found".into()));
        place.nothing_is_left();
    }
}

#[test]
fn a_limit_that_ends_it_is_the_reason() {
    for place in Place::all() {
        let script = "#!/bin/sh\nexec head -c 100000 /dev/zero >file\n";
        let (code, run) = place.test(script, &["--limit", "file_bytes=4096"]);
        assert_eq!((code, &run["reason"]), (3, &"file-size-limit".into()), "{run}");
        let bad = place.run(&["test", "/bin/true", "--limit", "memory=1"]);
        assert_eq!(bad.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&bad.stderr).contains("no limit is called memory"));
    }
}

#[test]
fn the_policy_of_a_configuration_holds_and_its_keys_are_not_read() {
    for place in Place::all() {
        let config = place.file(
            "agent.toml",
            "name = \"web-1\"\nzone = \"dmz\"\nurl = \"nats://x\"\ncreds = \"none\"\nkey = \"none\"\n\
             trust = \"none\"\nstate_dir = \"none\"\n[script.env]\nPROXY = \"p\"\n[limits]\nopen_files = 77\n",
        );
        let (code, run) = place
            .test("#!/bin/sh\necho $SALLY_ZONE/$SALLY_AGENT $PROXY; ulimit -n\n", &["--config", &config]);
        assert_eq!((code, &run["stdout"]), (0, &"dmz/web-1 p\n77\n".into()));
        let (code, run) = place.test("#!/bin/sh\n", &["--config", &config, "--profile", "net"]);
        assert_eq!((code, &run["reason"]), (6, &"policy".into()));
        assert!(run["message"].as_str().unwrap().contains("only strict"), "{run}");
    }
}

#[test]
fn what_the_script_wants_masked_is_masked_in_live_output_and_record() {
    let place = Place::new(!geteuid().is_root());
    let script = "#!/bin/sh\necho '{\"@mask\": \"hunter2\"}' >&3\necho pass hunter2\n";
    assert_eq!(place.test(script, &[]).1["stdout"], "pass ***\n");
    let file = place.file("script", script);
    let output = place.run(&["test", &file]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "pass ***\n");
    assert!(String::from_utf8_lossy(&output.stderr).contains("state     succeeded"));
}

/// Starts a script that goes on until it is ended, and waits until it says that it runs.
fn endless(place: &Place) -> (Child, BufReader<std::process::ChildStdout>) {
    let file =
        place.file("script", "#!/bin/sh\ntrap 'echo bye; exit 1' TERM\necho ready\nsleep 600 & wait\n");
    let mut child =
        place.command(&["test", &file]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    out.read_line(&mut line).unwrap();
    assert_eq!(line, "ready\n", "output goes through while it runs");
    (child, out)
}

#[test]
fn interrupted_it_ends_the_script_and_leaves_nothing() {
    for place in Place::all() {
        let (child, mut out) = endless(&place);
        kill(Pid::from_raw(child.id() as i32), Signal::SIGINT).unwrap();
        let mut line = String::new();
        out.read_line(&mut line).unwrap();
        assert_eq!(line, "bye\n", "it was told by TERM");
        let output = child.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(9), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(String::from_utf8_lossy(&output.stderr).contains("cancelled"));
        place.nothing_is_left();
    }
}

#[test]
fn killed_it_leaves_no_process() {
    for place in Place::all() {
        let (mut child, _out) = endless(&place);
        assert!(!place.processes().is_empty(), "its launcher names the folder");
        child.kill().unwrap();
        child.wait().unwrap();
        until("its launcher and all below are gone", || place.processes().is_empty());
    }
}

#[test]
fn a_file_that_is_not_there_is_a_usage_error() {
    let place = Place::new(!geteuid().is_root());
    let output = place.run(&["test", "/nonexistent/script"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("/nonexistent/script"));
    assert!(Path::new(&place.tmp()).read_dir().unwrap().next().is_none());
}

fn doctor(place: &Place, args: &[&str]) -> (i32, Value) {
    let output = place.run(&[&["doctor", "-o", "json"], args].concat());
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.code().unwrap(), serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text}")))
}

fn finding<'a>(report: &'a Value, check: &str, level: &str) -> &'a Value {
    let all = report["checks"].as_array().unwrap();
    let found = all.iter().find(|f| f["check"] == check && f["level"] == level);
    found.unwrap_or_else(|| panic!("no {level} {check} in {report:#}"))
}

#[test]
fn the_doctor_tries_each_profile_and_says_what_a_run_says() {
    for place in Place::all() {
        let (code, report) = doctor(&place, &[]);
        assert_eq!(code, 0, "{report:#}");
        assert_eq!(report["mode"], if place.as_user { "user" } else { "root" });
        for trial in report["profiles"].as_array().unwrap() {
            let profile = trial["profile"].as_str().unwrap();
            assert_eq!(trial["works"], true, "{trial}");
            let (_, run) = place.test("#!/bin/sh\n", &["--profile", profile]);
            assert_eq!(trial["layers"], run["sandbox"]["layers"], "{profile}");
        }
        let limited = report["profiles"][0]["layers"]["cgroup"] == "enforced";
        let groups = finding(&report, "control groups", if limited { "pass" } else { "warn" });
        assert_eq!(groups["next"].is_null(), limited, "what does not pass says what to do: {groups}");
        place.nothing_is_left();
    }
}

#[test]
fn the_doctor_names_what_is_wrong_with_a_configuration_and_what_to_do() {
    // As whoever runs the tests: the files are theirs.
    let place = Place::new(!geteuid().is_root());
    let key = place.file("a.seed", &sally_common::key::SigningKey::generate().seed());
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let creds = place.file("a.creds", "no credentials");
    fs::set_permissions(&creds, fs::Permissions::from_mode(0o600)).unwrap();
    place.file("trust.json", r#"{"version":1,"expires_ms":1,"threshold":1,"controllers":[],"callers":[]}"#);
    let config = place.file(
        "agent.toml",
        "name = \"web-1\"\nzone = \"dmz\"\nurl = \"nats://127.0.0.1:1\"\ncreds = \"a.creds\"\nkey = \"a.seed\"\n\
         trust = \"trust.json\"\nstate_dir = \"tmp\"\nlauncher_socket = \"nobody.sock\"\n\
         [storage]\nmin_free_bytes = 1000000000000000\n",
    );
    let (code, report) = doctor(&place, &["--config", &config]);
    assert_eq!(code, 1, "{report:#}");
    assert_eq!(report["ok"], false);
    for (check, words) in [
        ("key", "chmod 600"),
        ("credentials", "issued again"),
        ("trust list", "new list"),
        ("disk", "min_free_bytes"),
        ("broker", "credentials"),
        ("launcher", "sally-agent launcher"),
    ] {
        let next = finding(&report, check, "fail")["next"].as_str().unwrap();
        assert!(next.contains(words), "{check}: {next}");
    }
    finding(&report, "configuration", "pass");
    finding(&report, "state folder", "pass");
    let text = String::from_utf8(place.run(&["doctor", "--config", &config]).stdout).unwrap();
    assert!(text.contains("FAIL  key") && text.contains("→ chmod 600"), "{text}");

    let broken = place.file("broken.toml", "name = 1\n");
    let (code, report) = doctor(&place, &["--config", &broken]);
    assert_eq!(code, 1);
    finding(&report, "configuration", "fail");
}

#[test]
fn what_is_explained_is_what_a_script_finds() {
    for place in Place::all() {
        for profile in ["strict", "net"] {
            let output = place.run(&["sandbox", "explain", profile, "-o", "json"]);
            let explained: Value = serde_json::from_slice(&output.stdout).unwrap();
            let script = "#!/bin/sh\nls /etc >out; find / -name proc -prune -o -type d -writable -print >dirs 2>/dev/null\n\
                sally-task set etc=\"$(cat out)\" dirs=\"$(cat dirs)\"\n";
            let (code, run) = place.test(script, &["--profile", profile]);
            assert_eq!(code, 0, "{run}");
            let words = |value: &Value| -> Vec<String> {
                value.as_array().unwrap().iter().map(|v| v.as_str().unwrap().to_owned()).collect()
            };
            let etc: Vec<_> = words(&explained["etc"])
                .iter()
                .map(|name| name.split('/').next().unwrap().to_owned())
                .collect();
            for name in run["result"]["etc"].as_str().unwrap().lines() {
                assert!(etc.iter().any(|known| known == name), "/etc/{name} is not explained");
            }
            let mut writable = words(&explained["writable"]);
            let mut found: Vec<_> =
                run["result"]["dirs"].as_str().unwrap().lines().map(str::to_owned).collect();
            writable.sort();
            found.sort();
            assert_eq!(found, writable, "{profile}");
            for (layer, state) in run["sandbox"]["layers"].as_object().unwrap() {
                let depends_on_the_host =
                    layer.starts_with("cgroup") || layer == "landlock" || layer == "pid";
                if !depends_on_the_host {
                    assert_eq!(state, &explained["layers"][layer], "{profile} {layer}");
                }
            }
        }
    }
}

#[test]
fn an_explanation_has_the_numbers_of_the_configuration() {
    let place = Place::new(!geteuid().is_root());
    let config = place.file(
        "agent.toml",
        "name = \"web-1\"\nzone = \"dmz\"\nurl = \"nats://x\"\ncreds = \"none\"\nkey = \"none\"\n\
         trust = \"none\"\nstate_dir = \"none\"\n[limits]\nopen_files = 77\n",
    );
    let output = place.run(&["sandbox", "explain", "strict", "--config", &config]);
    let text = String::from_utf8(output.stdout).unwrap();
    for words in ["open_files = 77", "no connection leaves or enters", "not protected", "families"] {
        assert!(text.contains(words), "{words} in {text}");
    }
    assert_eq!(place.run(&["sandbox", "explain", "wide"]).status.code(), Some(2));
}
