//! The script's side, statement by statement as `docs/scripts.md` has it, and the options around it.

use std::collections::BTreeMap;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::harness::{Up, eventually, programs, run_with_input};

fn file(up: &Up, name: &str, content: impl AsRef<[u8]>) -> String {
    let path = up.scratch().join(name);
    std::fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

fn one(mut record: Value) -> Value {
    assert_eq!(record["runs"].as_array().unwrap().len(), 1);
    record["runs"][0].take()
}

/// The one run of `exec OPTIONS -a local-1 -- sh -c script`.
#[track_caller]
fn shell(up: &Up, options: &[&str], script: &str, code: i32) -> Value {
    let args = [&["exec", "-a", "local-1"], options, &["--", "sh", "-c", script]].concat();
    one(up.json(&args, code))
}

#[test]
fn what_a_script_starts_with() {
    let up = Up::start(1);
    let run = shell(&up, &["--env", "COLOUR=deep blue"], "env -0", 0);
    let env: BTreeMap<&str, &str> = run["stdout"]
        .as_str()
        .unwrap()
        .split_terminator('\0')
        .map(|pair| pair.split_once('=').unwrap())
        .filter(|(name, _)| !["PWD", "SHLVL", "_", "OLDPWD"].contains(name))
        .collect();
    let names: Vec<&str> = env.keys().copied().collect();
    assert_eq!(
        names,
        [
            "COLOUR",
            "HOME",
            "LANG",
            "PATH",
            "SALLY_AGENT",
            "SALLY_ATTEMPT",
            "SALLY_DEADLINE",
            "SALLY_JOB",
            "SALLY_PARAMS_FILE",
            "SALLY_RESULT_FD",
            "SALLY_RESULT_FILE",
            "SALLY_RUN",
            "SALLY_SECRETS_DIR",
            "SALLY_ZONE",
            "TMPDIR",
            "TZ"
        ],
        "this environment and nothing else"
    );
    assert_eq!((env["LANG"], env["TZ"], env["COLOUR"]), ("C.UTF-8", "UTC", "deep blue"));
    assert_eq!((env["SALLY_AGENT"], env["SALLY_ZONE"], env["SALLY_ATTEMPT"]), ("local-1", "local", "1"));
    assert_eq!((env["SALLY_RUN"], env["SALLY_RESULT_FD"]), (run["run"].as_str().unwrap(), "3"));
    assert!(env["SALLY_RUN"].starts_with(env["SALLY_JOB"]));
    assert!(
        env["SALLY_DEADLINE"].len() == 20 && env["SALLY_DEADLINE"].ends_with('Z'),
        "{}",
        env["SALLY_DEADLINE"]
    );

    let look = r#"cd "$HOME" && [ "$PWD" = "$(pwd)" ] && ls -A . "$TMPDIR" "$SALLY_SECRETS_DIR" | grep -v : | tr -d '\n'
        echo x > "$HOME/a" && echo y > "$TMPDIR/b" && cat "$HOME/a" "$TMPDIR/b"
        stat -c %a "$SALLY_PARAMS_FILE"; cat "$SALLY_PARAMS_FILE"; ls /proc/self/fd | tr '\n' ' '"#;
    let said = up.sally(&["exec", "-a", "local-1", "--", "sh", "-c", look]).expect(0);
    let lines: Vec<String> = said.text().lines().map(str::to_owned).collect();
    assert_eq!(lines[..3], ["x", "y", "600"], "empty and writable; private parameters: {lines:?}");
    assert!(lines[3].starts_with("{}"), "{lines:?}");
    let start = up.sally(&["exec", "-a", "local-1", "--", "sh", "-c", "[ \"$(pwd)\" = \"$HOME\" ]"]);
    start.expect(0);

    let args = ["a b", "", "it's", "\"q\"", "$HOME `id` *", "-x", "--all", "你好", "line\nfeed"];
    let words = [&["exec", "-a", "local-1", "--", "printf", "[%s]"][..], &args].concat();
    let expected: String = args.iter().map(|a| format!("[{a}]")).collect();
    assert_eq!(up.sally(&words).expect(0).text(), expected, "arguments arrive as they were given");
    let script = file(&up, "args.sh", "#!/bin/sh\nprintf '[%s]' \"$@\"\n");
    let words = [&["run", "-a", "local-1", &script, "--"][..], &args].concat();
    assert_eq!(up.sally(&words).expect(0).text(), expected);

    for (variable, shown) in [("LD_PRELOAD=/x", "LD_PRELOAD"), ("PATH=/x", "PATH"), ("HOME=/x", "HOME")] {
        let said = up.sally(&["exec", "-a", "local-1", "--env", variable, "--", "true"]);
        assert!(matches!(said.code, 2 | 6), "{variable}: {}", said.code);
        assert!(said.stderr.contains(shown), "{}", said.stderr);
    }
}

#[test]
fn parameters_input_and_programs_of_every_size() {
    let up = Up::start(1);
    let params =
        file(&up, "params.json", r#"{"a": "file", "deep": {"x": 12345678901234567890}, "list": [1]}"#);
    let options = ["-P", &params, "-p", "a=text", "-p", "n:=1.0", "-p", "é=ü"];
    let run = shell(&up, &options, "cat $SALLY_PARAMS_FILE >&3", 0);
    let expected = r#"{"a":"text","deep":{"x":12345678901234567890},"list":[1],"n":1.0,"é":"ü"}"#;
    let same: Value = serde_json::from_str(expected).unwrap();
    assert_eq!(run["result"], same);

    let input = file(&up, "input", [&b"a\0b\xff"[..], &[b'z'; 100_000]].concat());
    let said = up.sally(&["exec", "-a", "local-1", "--stdin", &input, "--", "sha256sum"]).expect(0);
    assert!(said.text().starts_with(&digest(&input)), "{}", said.text());
    let said = run_with_input(
        up.command().args(["exec", "-a", "local-1", "--stdin", "-", "--", "cat"]),
        b"from here",
    );
    assert_eq!(said.expect(0).text(), "from here");
    let said = up.sally(&["exec", "-a", "local-1", "--", "cat"]).expect(0);
    assert_eq!(said.text(), "", "without --stdin there is nothing to read");
    let said = run_with_input(up.command().args(["run", "-a", "local-1", "-"]), b"#!/bin/sh\necho piped\n")
        .expect(0);
    assert_eq!(said.text(), "piped\n");

    for size in [20_000, 5_000_000] {
        let script = format!("#!/bin/sh\necho begin\n# {}\necho end\n", "x".repeat(size));
        let script = file(&up, "big.sh", script);
        assert_eq!(up.sally(&["run", "-a", "local-1", &script]).expect(0).text(), "begin\nend\n", "{size}");
    }
    // A binary goes by digest and needs no `#!`.
    let binary = file(&up, "true.bin", std::fs::read("/bin/echo").unwrap());
    let said = up.sally(&["run", "-a", "local-1", &binary, "--", "from a binary"]).expect(0);
    assert_eq!(said.text(), "from a binary\n");
    drop(programs());
}

fn digest(path: &str) -> String {
    sally_common::id::Digest::of(&std::fs::read(path).unwrap())
        .to_string()
        .trim_start_matches("sha256:")
        .to_owned()
}

#[test]
fn results_and_events() {
    let up = Up::start(1);
    for (script, expected) in [
        (
            r#"echo '{"disk":{"free":41}}' >&3; echo '{"disk":{"total":100},"ok":true}' >&3"#,
            r#"{"disk":{"free":41,"total":100},"ok":true}"#,
        ),
        (r#"echo '{"a":1}{"a":null}' >&3"#, r#"{"a":null}"#),
        (r#"echo '[1, 2]' >&3"#, "[1, 2]"),
        (r#"echo 12345678901234567890123 >&3"#, "12345678901234567890123"),
        (r#"echo '{"a":1}' >> $SALLY_RESULT_FILE"#, r#"{"a":1}"#),
        (r#"echo '{"a":1}' >> $SALLY_RESULT_FILE; echo '{"b":2}' >&3"#, r#"{"a":1,"b":2}"#),
        (r#"echo '{"a":1}' >> $SALLY_RESULT_FILE; echo '{"a":1}' >&3"#, r#"{"a":1}"#),
        (r#"echo '{"@unknown":1}{"a":1}' >&3"#, r#"{"a":1}"#),
        (r#"echo '{"@progress":1,"more":2}' >&3"#, r#"{"@progress":1,"more":2}"#),
    ] {
        up.sally(&["exec", "-a", "local-1", "--", "sh", "-c", script]).expect(0);
        let bare = up.sally(&["job", "result", "latest"]).expect(0).text();
        let squeezed = |text: &str| text.split_whitespace().collect::<String>();
        let same = |a: &str, b: &str| {
            squeezed(a) == squeezed(b)
                || serde_json::from_str::<Value>(a).unwrap() == serde_json::from_str::<Value>(b).unwrap()
        };
        assert!(same(&bare, expected), "{script}: {bare}");
    }
    let conflict = r#"echo '{"a":1}' >> $SALLY_RESULT_FILE; echo '{"a":2}' >&3"#;
    assert_eq!(shell(&up, &[], conflict, 3)["result_state"], "invalid");
    let wide = "(printf '\"'; head -c 900000 /dev/zero | tr '\\0' x; printf '\"') >&3";
    assert_eq!(shell(&up, &[], wide, 0)["result"].as_str().unwrap().len(), 900_000);
    let run = shell(&up, &["--require-result"], "true", 3);
    assert_eq!((&run["state"], &run["reason"]), (&json!("failed"), &json!("result-missing")));
    shell(&up, &["--require-result"], "echo 1 >&3", 0);

    let run = shell(
        &up,
        &[],
        r#"echo '{"@changed":true}{"@log":"x"}{"@progress":{"done":3,"total":10,"text":"t"}}' >&3"#,
        0,
    );
    assert_eq!((&run["changed"], &run["result_state"]), (&json!(true), &json!("absent")));
    assert_eq!((&run["progress"]["done"], &run["progress"]["text"]), (&json!(3), &json!("t")));
    let run = shell(&up, &[], r#"echo made > out.txt; echo '{"@artifact":"out.txt"}' >&3"#, 0);
    assert_eq!(run["artifacts"].as_array().unwrap().len(), 1, "{run}");
    let run = shell(&up, &[], r#"echo '{"@fail":{"code":"E_LOCK","text":"busy","retryable":true}}' >&3"#, 3);
    assert_eq!((&run["reason"], &run["exit_code"]), (&json!("script-failed"), &json!(0)));
    assert_eq!(run["failure"], json!({"code": "E_LOCK", "text": "busy", "retryable": true}));

    for profile in ["strict", "net", "host"] {
        let script = "sally-task set 'k=a \"b\"' n:=1 && sally-task progress 3/10 text && sally-task changed true \
                      && sally-task set also=$(printf 'two\\nlines' | wc -l)";
        let run = shell(&up, &["--profile", profile], script, 0);
        assert_eq!(run["result"], json!({"k": "a \"b\"", "n": 1, "also": "1"}), "{profile}: {run}");
        assert_eq!(run["sandbox"]["profile"], profile);
    }
    let run = shell(&up, &[], "sally-task fail --code C --retryable text; exit 4", 3);
    assert_eq!((&run["failure"]["code"], &run["exit_code"]), (&json!("C"), &json!(4)));
    shell(&up, &[], "sally-task set nonsense; [ $? = 2 ]", 0);
}

#[test]
fn a_mask_takes_a_secret_out_of_everything() {
    let up = Up::start(1);
    let script = "sally-task mask hunter2-secret; echo pass=hunter2-secret; echo err hunter2-secret >&2; \
                  sally-task set token=hunter2-secret";
    // At the end, and while it runs.
    for script in [script.to_owned(), format!("{script}; sleep 0.5; echo again hunter2-secret")] {
        let said = up.sally(&["exec", "-a", "local-1", "--", "sh", "-c", &script]).expect(0);
        assert!(said.text().starts_with("pass=***\n"), "{}", said.text());
        let record = up.sally(&["job", "show", "latest", "-o", "json"]).expect(0);
        let raw = up.sally(&["job", "logs", "--raw", "latest"]).expect(0);
        let mut all = said.text() + &record.text() + &raw.text() + &raw.stderr;
        // The command itself is the title, and that is the caller's own word.
        let title = record.json()["job"]["title"].as_str().unwrap_or_default().replace('\\', "");
        all = all.replace(&serde_json::to_string(&title).unwrap(), "");
        all.push_str(&said.stderr.lines().skip(1).collect::<String>());
        assert!(!all.contains("hunter2"), "{all}");
        assert_eq!(record.json()["runs"][0]["result"], json!({"token": "***"}));
    }
}

fn start(up: &Up, args: &[&str]) -> Child {
    up.command().args(args).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn submissions_are_answered_once_and_can_be_left_and_found_again() {
    let up = Up::start(1);
    let again =
        ["exec", "-a", "local-1", "--request-id", "abcdefgh12345678", "--", "sh", "-c", "echo $SALLY_JOB"];
    let first = up.sally(&again).expect(0).text();
    assert_eq!(up.sally(&again).expect(0).text(), first, "the same id is the same job");
    assert_eq!(up.json(&["job", "ls"], 0)["jobs"].as_array().unwrap().len(), 1);
    let other = ["exec", "-a", "local-1", "--request-id", "abcdefgh12345678", "--", "false"];
    let said = up.sally(&other).expect(8);
    assert!(said.stderr.contains("abcdefgh12345678"), "{}", said.stderr);

    let slow = "echo begun; sleep 600";
    let id = up.sally(&["exec", "-a", "local-1", "--detach", "--", "sh", "-c", slow]).expect(0).text();
    let id = id.trim();
    eventually("it runs", || {
        let record = up.json(&["job", "show", "latest"], 0);
        assert_eq!(record["job"]["id"], id);
        (record["runs"][0]["state"] == "running").then_some(())
    });
    let said = up.sally(&["job", "wait", id, "--wait", "200ms"]).expect(124);
    assert!(said.stderr.contains("goes on") && said.stderr.contains(id), "{}", said.stderr);
    assert_eq!(up.sally(&["job", "show", &id[..id.len() - 1]]).expect(0).code, 0, "a prefix will do");
    up.sally(&["job", "show", "zzzz"]).expect(2);
    up.sally(&["job", "show", "0"]).expect(2);

    // The log of a run under way is followed to its end, which a cancellation brings.
    let mut logs = start(&up, &["job", "logs", "-f", id]);
    let mut begun = [0; 6];
    std::io::Read::read_exact(logs.stdout.as_mut().unwrap(), &mut begun).unwrap();
    assert_eq!(&begun, b"begun\n");
    up.sally(&["job", "cancel", id]).expect(0);
    assert!(eventually("the log's end", || logs.try_wait().unwrap()).success());
    up.sally(&["job", "wait", id]).expect(9);
    let run = one(up.json(&["job", "show", id], 0));
    assert_eq!(
        (&run["state"], &run["final"], &run["stdout"]),
        (&json!("cancelled"), &json!(true), &json!("begun\n"))
    );
    assert_ne!(run["cancel_requested_at"], Value::Null);
    let said = up.sally(&["job", "cancel", id]).expect(0);
    assert!(!said.stderr.is_empty(), "a note that it had ended");

    let detached = up.json(&["exec", "-a", "local-1", "--detach", "--", "true"], 0);
    assert!(detached["job"]["id"].is_string(), "{detached}");
    let said = up.sally(&["exec", "-a", "local-1", "--timeout", "300ms", "--", "sleep", "600"]).expect(5);
    assert!(said.stderr.contains("timed_out"), "{}", said.stderr);
}

#[test]
fn a_waiting_run_can_be_cancelled() {
    let up = Up::start(1);
    // More than there are slots: what waits is cancelled without ever starting.
    let ids: Vec<String> = (0..6)
        .map(|_| up.sally(&["exec", "-a", "local-1", "--detach", "--", "sleep", "600"]).expect(0).text())
        .collect();
    for id in ids.iter().rev() {
        up.sally(&["job", "cancel", id.trim()]).expect(0);
        up.sally(&["job", "wait", id.trim()]).expect(9);
    }
    let last = one(up.json(&["job", "show", ids[5].trim()], 0));
    assert_eq!((&last["state"], &last["started_at"]), (&json!("cancelled"), &Value::Null));
}

#[test]
fn every_format_tells_the_same_of_several_agents() {
    let up = Up::start(3);
    let folder = up.scratch().join("out");
    let dir = folder.to_str().unwrap();
    let script = "echo same; echo \"$SALLY_AGENT\" >&2; echo '{\"n\":1}' >&3";
    let record = up.json(&["exec", "--all", "--output-dir", dir, "--", "sh", "-c", script], 0);
    let runs = record["runs"].as_array().unwrap();
    for run in runs {
        let agent = run["agent"].as_str().unwrap();
        let read = |ending: &str| std::fs::read_to_string(folder.join(format!("{agent}.{ending}"))).unwrap();
        assert_eq!((read("out"), read("err")), ("same\n".to_owned(), format!("{agent}\n")));
        let kept: Value = serde_json::from_str(&read("json")).unwrap();
        assert_eq!(&kept, run);
    }
    let show = |format: &str| up.sally(&["job", "show", "latest", "-o", format]).expect(0).text();
    assert_eq!(serde_json::from_str::<Value>(&show("json")).unwrap(), record);
    let lines: Vec<Value> = show("jsonl").lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(&lines, runs);
    let yaml = show("yaml");
    assert!(yaml.contains("agent: local-2") && yaml.contains("state: succeeded"), "{yaml}");
    let csv = show("csv");
    assert!(csv.starts_with("run,agent,zone,state,"), "{csv}");
    assert_eq!(csv.matches(",local,succeeded,true,").count(), 3, "{csv}");
    assert_eq!(show("name").lines().count(), 3);
    assert_eq!(show("wide").matches("succeeded").count(), 3);

    let results: Vec<Value> = up
        .sally(&["job", "result", "latest"])
        .expect(0)
        .text()
        .lines()
        .map(|l| serde_json::from_str(l).unwrap())
        .collect();
    assert_eq!(results.len(), 3);
    assert_eq!(results[0], json!({"agent": "local-1", "result_state": "valid", "result": {"n": 1}}));

    // Identical answers are one, with the names of who gave it.
    let folded = up.sally(&["exec", "--all", "--", "echo", "same"]).expect(0).text();
    assert_eq!(folded.matches("\nsame\n").count(), 1, "{folded}");
    assert!(folded.contains("local-[1-3]"), "{folded}");
    let mixed =
        up.sally(&["exec", "--all", "--", "sh", "-c", "[ $SALLY_AGENT != local-2 ]"]).expect(3).text();
    assert!(mixed.contains("local-[1,3]") && mixed.contains("failed"), "{mixed}");

    let said =
        up.sally(&["exec", "--all", "--stream", "--", "sh", "-c", "echo $SALLY_AGENT; sleep 0.3; echo end"]);
    let mut streamed: Vec<String> = said.expect(0).text().lines().map(str::to_owned).collect();
    streamed.sort();
    let expected: Vec<String> =
        (1..=3).flat_map(|n| [format!("local-{n} | end"), format!("local-{n} | local-{n}")]).collect();
    assert_eq!(streamed, expected);
}
