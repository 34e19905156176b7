//! A host becomes an agent with a token, and ceases to be one: with the real programs and a real broker.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use sally::broker::port;
use sally_common::clock::now_ms;
use sally_common::key::SigningKey;
use sally_common::name::Zone;
use sally_common::wire::enrol::Token;
use serde_json::json;

use crate::harness::{Said, Up, eventually, nats_server, programs, run};
use crate::outside::Own;

/// A host that is no agent yet: a folder with a configuration that names nothing but its state folder.
struct Host {
    dir: PathBuf,
}

impl Host {
    fn new(place: &Path, name: &str) -> Host {
        let dir = place.join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("agent.toml"), "state_dir = \"state\"\nslots = 2\n").unwrap();
        Host { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    fn enroll(&self, token: &str, name: &str) -> Said {
        let file = self.path("token");
        fs::write(&file, token).unwrap();
        let mut command = Command::new(programs().join("sally-agent"));
        command.arg("enroll").arg("--token-file").arg(file).args(["--name", name]);
        run(command.arg("--config").arg(self.path("agent.toml")))
    }

    fn start(&self) -> Own {
        let mut command = Command::new(programs().join("sally-agent"));
        Own::start(command.arg("run").arg("--config").arg(self.path("agent.toml")), &self.path("agent.log"))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.path("agent.log")).unwrap_or_default()
    }

    /// What enrolment left in the state folder.
    fn files(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("state")).into_iter().flatten().flatten();
        let mut names: Vec<String> = entries.map(|entry| entry.file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[track_caller]
fn token(up: &Up, more: &[&str]) -> String {
    let mut args = vec!["agent", "enroll", "--zone", "local"];
    args.extend(more);
    up.sally(&args).expect(0).text().trim().to_owned()
}

#[track_caller]
fn refused(said: Said, code: i32, part: &str) {
    let said = said.expect(code);
    assert!(said.stderr.contains(part), "{}", said.stderr);
}

#[test]
fn a_host_with_a_token_becomes_an_agent_and_its_keys_stay_its_own() {
    let up = Up::start(1);
    let host = Host::new(up.scratch(), "web");
    let token = token(&up, &[]);
    let said = host.enroll(&token, "web-1").expect(0);
    assert!(said.text().contains("agent local/web-1"), "{}", said.text());
    assert_eq!(host.files(), ["agent.creds", "agent.seed", "enrolled.toml", "trust.json"]);
    for name in host.files() {
        let mode = fs::metadata(host.path("state").join(&name)).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{name}");
    }
    let folder = fs::metadata(host.path("state")).unwrap().permissions().mode() & 0o777;
    assert_eq!(folder, 0o700);
    let agent = host.start();
    let record = up.json(&["exec", "-a", "web-1", "--wait", "60s", "--", "echo", "hello"], 0);
    assert_eq!(record["runs"][0]["stdout"], "hello\n");
    // Neither the token nor the host's keys are anywhere on the controller's side.
    let secrets: Vec<String> = ["agent.seed", "agent.creds"]
        .iter()
        .flat_map(|name| {
            let text = fs::read_to_string(host.path("state").join(name)).unwrap();
            text.lines().filter(|line| line.starts_with("SU")).map(str::to_owned).collect::<Vec<_>>()
        })
        .chain([Token::parse(&token).unwrap().key, Token::parse(&token).unwrap().user])
        .collect();
    assert_eq!(secrets.len(), 4);
    for entry in walk(&up.dir()) {
        let bytes = fs::read(&entry).unwrap_or_default();
        for secret in &secrets {
            let has = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!has, "a secret is in {}", entry.display());
        }
    }
    // It allows exactly what an agent may.
    let url = Token::parse(&token).unwrap().url;
    let creds = host.path("state/agent.creds");
    up.sally(&["nats", "check", "--creds", creds.to_str().unwrap(), "--url", &url]).expect(0);
    // A restart of everything of the controller knows it still.
    agent.stop();
    refused(host.enroll(&token, "web-1"), 1, "is enrolled already");
    let scratch = up.stop();
    let up = Up::start_in(scratch, 1, &[]);
    let agent = host.start();
    // The broker's port is kept, so the address that the host was given holds.
    up.json(&["exec", "-a", "web-1", "--wait", "60s", "--", "true"], 0);
    agent.stop();
}

fn walk(folder: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries
        .flat_map(|path| match path.symlink_metadata() {
            Ok(found) if found.is_dir() => walk(&path),
            Ok(found) if found.is_file() => vec![path],
            _ => Vec::new(),
        })
        .collect()
}

#[test]
fn a_token_is_for_so_many_hosts_and_a_name_for_one() {
    let up = Up::start(1);
    let place = up.scratch().to_owned();
    let once = token(&up, &[]);
    Host::new(&place, "first").enroll(&once, "web-1").expect(0);
    refused(Host::new(&place, "second").enroll(&once, "web-2"), 1, "used as often as it may be");
    let twice = token(&up, &["--uses", "2"]);
    refused(Host::new(&place, "third").enroll(&twice, "web-1"), 1, "of this name is enrolled");
    refused(Host::new(&place, "fourth").enroll(&twice, "local-1"), 1, "of this name is enrolled");
    let host = Host::new(&place, "fifth");
    refused(host.enroll(&twice, "Web 5"), 2, "give a name with --name");
    // Whoever is refused may try again with the keys that it made, and is no agent until then.
    refused(host.enroll(&twice, "web-1"), 1, "of this name is enrolled");
    assert!(!host.path("state/agent.creds").exists());
    let key = fs::read_to_string(host.path("state/agent.seed")).unwrap();
    host.enroll(&twice, "web-3").expect(0);
    assert_eq!(fs::read_to_string(host.path("state/agent.seed")).unwrap(), key);
    Host::new(&place, "sixth").enroll(&twice, "web-4").expect(0);
    refused(Host::new(&place, "seventh").enroll(&twice, "web-5"), 1, "used as often as it may be");
}

#[test]
fn a_token_that_is_too_old_changed_or_for_elsewhere_enrols_nobody() {
    let up = Up::start(1);
    let place = up.scratch().to_owned();
    let good = token(&up, &["--uses", "9"]);
    let mut count = 0;
    let mut host = || {
        count += 1;
        Host::new(&place, &format!("host-{count}"))
    };
    refused(host().enroll("hello", "web-1"), 2, "is no token");
    refused(host().enroll(&good[..good.len() - 20], "web-1"), 2, "damaged");
    let mut turned = good.clone();
    let at = turned.len() / 2;
    let other = if &turned[at..=at] == "A" { "B" } else { "A" };
    turned.replace_range(at..=at, other);
    refused(host().enroll(&turned, "web-1"), 2, "damaged");
    // By somebody who knows how one is made: another zone, another key, another id, another controller.
    let change = |change: &dyn Fn(&mut Token)| {
        let mut token = Token::parse(&good).unwrap();
        change(&mut token);
        token.text()
    };
    let elsewhere = change(&|token| token.zone = Zone::new("shop").unwrap());
    refused(host().enroll(&elsewhere, "web-1"), 1, "does not allow what the token asks for");
    let forged = change(&|token| token.key = SigningKey::generate().seed());
    refused(host().enroll(&forged, "web-1"), 1, "no such token is known");
    let another = self::token(&up, &[]);
    let other_id = change(&|token| token.id = Token::parse(&another).unwrap().id);
    refused(host().enroll(&other_id, "web-1"), 1, "does not allow what the token asks for");
    let mixed = change(&|token| {
        let other = Token::parse(&another).unwrap();
        (token.id, token.jwt, token.user) = (other.id, other.jwt, other.user);
    });
    refused(host().enroll(&mixed, "web-1"), 1, "no such token is known");
    let broken = change(&|token| token.jwt = token.jwt.replace('.', "x."));
    refused(host().enroll(&broken, "web-1"), 1, "the token may have expired or be of another broker");
    let configured = host();
    fs::write(configured.path("agent.toml"), "state_dir = \"state\"\nzone = \"shop\"\n").unwrap();
    refused(configured.enroll(&good, "web-1"), 2, "the configuration says zone shop");

    let short = self::token(&up, &["--ttl", "1s"]);
    let expires = Token::parse(&short).unwrap().expires_ms;
    eventually("its end", || (now_ms() > expires).then_some(()));
    refused(host().enroll(&short, "web-1"), 1, "expired");
    // A host whose clock says otherwise, or that does not look: the broker or the controller does.
    let mut late = Token::parse(&short).unwrap();
    late.expires_ms += 3_600_000;
    refused(host().enroll(&late.text(), "web-1"), 1, "expired");

    let names = up.json(&["agent", "ls"], 0);
    assert_eq!(names["agents"].as_array().unwrap().len(), 1, "nobody came: {names}");
    // The measure: unchanged it is good.
    host().enroll(&good, "web-1").expect(0);
    refused(up.sally(&["agent", "enroll", "--zone", "nowhere"]), 2, "zone nowhere has no account");
}

#[test]
fn a_revoked_agent_is_cut_off_at_once_and_stays_out() {
    let up = Up::start(1);
    let host = Host::new(up.scratch(), "web");
    let token = token(&up, &["--uses", "2"]);
    host.enroll(&token, "web-1").expect(0);
    let agent = host.start();
    up.json(&["exec", "-a", "web-1", "--wait", "60s", "--", "true"], 0);
    let job = up.sally(&["exec", "-a", "web-1", "--detach", "--", "sleep", "30"]).expect(0);
    let job = job.text().trim().to_owned();
    eventually("it runs", || {
        (up.json(&["job", "show", &job], 0)["runs"][0]["state"] == "running").then_some(())
    });
    refused(up.sally(&["agent", "revoke", "web-1"]), 2, "--yes");
    let said = up.sally(&["agent", "revoke", "web-1", "--yes"]).expect(0);
    assert!(said.stderr.contains("revoked local/web-1"), "{}", said.stderr);
    let run = up.json(&["job", "show", &job], 0)["runs"][0].clone();
    assert_eq!((&run["state"], &run["reason"]), (&json!("unknown"), &json!("agent-forgotten")));
    up.sally(&["exec", "-a", "web-1", "--", "true"]).expect(4);
    // The connection that it had is ended by the broker, and no other one comes about.
    eventually("it was told", || host.log().contains("does not accept the credentials").then_some(()));
    let url = Token::parse(&token).unwrap().url;
    let creds = host.path("state/agent.creds");
    let check = || up.sally(&["nats", "check", "--creds", creds.to_str().unwrap(), "--url", &url]);
    refused(check(), 7, "does not accept the credentials");
    // A broker that dies knows it still.
    let pid = up.pid_of("nats-server").unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
    eventually("another broker", || (up.sally(&["agent", "ls"]).code == 0).then_some(()));
    refused(check(), 7, "does not accept the credentials");
    agent.stop();
    // The host's keys are worthless; with new ones it may come again, under its old name.
    fs::remove_file(&creds).unwrap();
    refused(host.enroll(&token, "web-1"), 1, "was revoked");
    fs::remove_file(host.path("state/agent.seed")).unwrap();
    host.enroll(&token, "web-1").expect(0);
    let agent = host.start();
    up.json(&["exec", "-a", "web-1", "--wait", "60s", "--", "true"], 0);
    agent.stop();
    // One whose keys `up` made goes the same way.
    up.sally(&["agent", "revoke", "local-1", "--yes"]).expect(0);
    let creds = up.dir().join("agents/local-1/agent.creds");
    refused(
        up.sally(&["nats", "check", "--creds", creds.to_str().unwrap()]),
        7,
        "does not accept the credentials",
    );
}

/// A broker, a controller and an agent as on hosts of their own: from `sally nats init` to a result, over TLS, with the token
/// waiting in the agent's state folder.
#[test]
fn from_nothing_to_a_result_on_a_broker_of_its_own_unattended() {
    let dir = tempfile::Builder::new().prefix("sally-").tempdir().unwrap();
    let port = port::pick([127, 0, 0, 1].into()).unwrap().to_string();
    let made = dir.path().join("made");
    let sally = |args: &[&str]| {
        let mut command = Command::new(programs().join("sally"));
        run(command.env("SALLY_CONTEXT", made.join("caller/context.toml")).args(args))
    };
    let root = made.to_str().unwrap();
    sally(&[
        "nats",
        "init",
        "--dir",
        root,
        "--host",
        "localhost",
        "--port",
        &port,
        "--listen",
        "127.0.0.1",
        "--zone",
        "dmz",
    ])
    .expect(0);
    let mut broker = Command::new(nats_server());
    let broker =
        Own::start(broker.arg("-c").arg(made.join("broker/nats.conf")), &dir.path().join("nats.log"));
    let mut serve = Command::new(programs().join("sally"));
    let config = made.join("controller/serve.toml");
    let serve = Own::start(serve.arg("serve").arg("--config").arg(&config), &dir.path().join("serve.log"));
    eventually("the controller", || (sally(&["agent", "ls"]).code == 0).then_some(()));

    let host = Host::new(dir.path(), "web");
    fs::write(host.path("agent.toml"), "state_dir = \"state\"\nslots = 1\nname = \"web-1\"\n").unwrap();
    fs::create_dir(host.path("state")).unwrap();
    let waiting = host.path("state/enroll.token");
    sally(&["agent", "enroll", "--zone", "dmz", "--file", waiting.to_str().unwrap()]).expect(0);
    let mode = fs::metadata(&waiting).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o600);
    let agent = host.start();
    eventually("it is there", || {
        let said = sally(&["exec", "-a", "web-1", "--wait", "60s", "-o", "json", "--", "echo", "hello"]);
        (said.code == 0).then(|| assert_eq!(said.json()["runs"][0]["stdout"], "hello\n"))
    });
    assert!(!waiting.exists(), "a token that was used is gone");
    assert!(host.files().contains(&"ca.pem".to_owned()));

    // A zone that is added while all runs: the controller takes it at a reload.
    sally(&["nats", "zone", "add", "shop", "--dir", root]).expect(0);
    serve.signal(nix::sys::signal::Signal::SIGHUP);
    let other = Host::new(dir.path(), "shop");
    let token = eventually("the zone is known", || {
        let said = sally(&["agent", "enroll", "--zone", "shop"]);
        (said.code == 0).then(|| said.text())
    });
    other.enroll(&token, "till-1").expect(0);
    let till = other.start();
    eventually("the shop is there", || {
        (sally(&["exec", "-a", "till-1", "--wait", "60s", "--", "true"]).code == 0).then_some(())
    });
    sally(&["agent", "revoke", "dmz/web-1", "--yes"]).expect(0);
    eventually("it was told", || host.log().contains("does not accept the credentials").then_some(()));
    for own in [till, agent, serve, broker] {
        own.stop();
    }
}
