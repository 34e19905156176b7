//! `sally nats` against a real nats-server, with the files that it wrote: what an administrator would do, and nothing else.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a failed unwrap is the test's failure")]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use nkeys::KeyPair;
use sally::broker::find::{Search, find};
use sally::broker::port;
use sally_common::nats::accounts::{Role, Trust, TrustSeeds};
use sally_common::nats::connect::{ConnectError, ConnectSettings, connect};
use sally_common::nats::creds::Creds;
use sally_common::nats::jwt;

/// Generous: a condition is awaited, this only bounds a failure.
const LIMIT: Duration = Duration::from_secs(30);

fn sally(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_sally")).args(args).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn done(output: &Output, code: i32) -> String {
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(code), "stdout: {out}\nstderr: {err}");
    out + &err
}

/// Ends what it holds.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

async fn nats_server(conf: &Path) -> Running {
    let server = match find(&Search::from_process(None)).await {
        Ok(server) => server,
        Err(error) => panic!("these tests drive a real broker: {error}"),
    };
    let log = fs::File::create(conf.with_extension("log")).unwrap();
    let mut command = Command::new(server.path);
    Running(command.arg("-c").arg(conf).stdin(Stdio::null()).stderr(log).spawn().unwrap())
}

/// A folder made by `sally nats init`.
struct Made {
    root: PathBuf,
    port: u16,
    more: Vec<u16>,
    _dir: tempfile::TempDir,
}

fn free_ports(count: usize) -> Vec<u16> {
    let listen = [127, 0, 0, 1].into();
    let mut ports: Vec<u16> = Vec::new();
    while ports.len() < count {
        let port = port::pick(listen).unwrap();
        if !ports.contains(&port) {
            ports.push(port);
        }
    }
    ports
}

impl Made {
    /// With so many free ports, the first one the broker's.
    fn new(ports: usize, more: impl Fn(&[u16]) -> Vec<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let ports = free_ports(ports);
        let made =
            Self { root: dir.path().join("made"), port: ports[0], more: ports[1..].to_vec(), _dir: dir };
        done(&made.init(&more(&ports)), 0);
        made
    }

    fn plain() -> Self {
        Self::new(1, |_| vec!["--zone".into(), "dmz".into()])
    }

    fn init(&self, more: &[String]) -> Output {
        let (port, root) = (self.port.to_string(), self.path(""));
        let mut args =
            vec!["nats", "init", "--dir", root.to_str().unwrap(), "--host", "localhost", "--port", &port];
        args.extend(["--listen", "127.0.0.1", "--user", "ann"]);
        args.extend(more.iter().map(String::as_str));
        sally(&args)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.join(name)
    }

    fn url(&self) -> String {
        format!("tls://localhost:{}", self.port)
    }

    fn settings(&self, creds: &Path) -> ConnectSettings {
        let mut settings = ConnectSettings::new(self.url(), creds, "test");
        settings.ca_file = Some(self.path("caller/ca.pem"));
        settings.tls_first = true;
        settings
    }

    fn trust(&self) -> Trust {
        let seeds: TrustSeeds =
            serde_json::from_slice(&fs::read(self.path("admin/broker.json")).unwrap()).unwrap();
        Trust::from_seeds("sally", &seeds).unwrap()
    }

    /// Credentials of an agent, issued from the keys in the folder.
    fn agent(&self, zone: &str, agent: &str) -> PathBuf {
        let path = self.path(&format!("{zone}.{agent}.creds"));
        let role = Role::Agent { zone, agent };
        self.trust().user(role, KeyPair::new_user(), 1, None).unwrap().write(&path).unwrap();
        path
    }

    /// Starts the broker and waits until it lets the controller in.
    async fn broker(&self) -> Running {
        let running = nats_server(&self.path("broker/nats.conf")).await;
        self.connected(&self.path("controller/controller.creds")).await;
        running
    }

    async fn connected(&self, creds: &Path) -> async_nats::Client {
        let since = Instant::now();
        loop {
            match connect(&self.settings(creds), |_| ()).await {
                Ok(client) => return client,
                Err(error) => assert!(since.elapsed() < LIMIT, "{error}"),
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    fn sally(&self, args: &[&str]) -> Output {
        let context = self.path("caller/context.toml");
        let mut all = vec!["--context", context.to_str().unwrap()];
        all.extend(args);
        sally(&all)
    }
}

/// Every file below a folder, with its mode and content.
fn files(root: &Path) -> Vec<(PathBuf, u32, Vec<u8>)> {
    let mut all = Vec::new();
    for entry in fs::read_dir(root).unwrap().map(Result::unwrap) {
        let (path, mode) = (entry.path(), entry.metadata().unwrap().permissions().mode() & 0o777);
        match path.is_dir() {
            true => {
                all.extend(files(&path));
                all.push((path, mode, Vec::new()));
            }
            false => all.push((path.clone(), mode, fs::read(&path).unwrap())),
        }
    }
    all.sort();
    all
}

#[test]
fn all_is_private_and_doing_it_again_changes_nothing() {
    let made = Made::plain();
    let first = files(&made.root);
    for (path, mode, content) in &first {
        let wanted = if path.is_dir() { 0o700 } else { 0o600 };
        assert_eq!(*mode, wanted, "{}", path.display());
        assert!(path.is_dir() || !content.is_empty(), "{}", path.display());
    }
    let said = done(&made.init(&["--zone".into(), "dmz".into()]), 0);
    assert!(!said.contains("written") && said.contains("next:"), "{said}");
    assert_eq!(files(&made.root), first);
    // What an administrator changed stays, what follows from the keys does not need him.
    let conf = made.path("broker/nats.conf");
    fs::write(&conf, "# mine\n").unwrap();
    fs::remove_file(made.path("broker/accounts.conf")).unwrap();
    let said = done(&made.init(&["--zone".into(), "dmz".into()]), 0);
    assert!(said.contains("yours, kept"), "{said}");
    assert_eq!(fs::read_to_string(&conf).unwrap(), "# mine\n");
    assert!(made.path("broker/nats.conf.new").exists() && made.path("broker/accounts.conf").exists());
}

#[test]
fn another_broker_in_the_same_folder_and_bad_words_are_refused() {
    let made = Made::plain();
    let first = files(&made.root);
    let said = done(&made.init(&["--websocket".into()]), 8);
    assert!(said.contains("no websocket") && said.contains("another --dir"), "{said}");
    let root = made.root.to_str().unwrap();
    for (args, part) in [
        (["--host", "a b", "--port", "1"], "is no host's name"),
        (["--host", "a", "--max-file", "1"], "1 GiB"),
    ] {
        let mut all = vec!["nats", "init", "--dir", "/nonexistent/x"];
        all.extend(args);
        assert!(done(&sally(&all), 2).contains(part), "{args:?}");
    }
    let said = done(&sally(&["nats", "zone", "add", "x", "--dir", "/nonexistent"]), 2);
    assert!(said.contains("/nonexistent"), "{said}");
    assert!(done(&sally(&["nats", "zone", "add", "X", "--dir", root]), 2).contains("zone name"));
    let leaf = sally(&["nats", "zone", "add", "dmz", "--dir", root, "--leaf", "localhost"]);
    assert!(done(&leaf, 2).contains("--leaf-port"));
    fs::write(made.path("admin/broker.json"), "{").unwrap();
    assert!(done(&made.init(&["--zone".into(), "dmz".into()]), 2).contains("damaged"));
    fs::remove_file(made.path("admin/broker.json")).unwrap();
    let keys = |files: &[(PathBuf, u32, Vec<u8>)]| {
        let seeds =
            files.iter().filter(|(path, ..)| path.extension().is_some_and(|e| e == "seed" || e == "key"));
        seeds.cloned().collect::<Vec<_>>()
    };
    assert_eq!(keys(&files(&made.root)), keys(&first));
}

#[tokio::test]
async fn the_broker_speaks_tls_and_nothing_else_and_the_service_works_with_what_was_written() {
    let made = Made::plain();
    let _broker = made.broker().await;
    let creds = made.path("caller/caller.creds");
    // In the clear, without the authority, and with TLS that begins late: none of them is let in.
    let mut plain = ConnectSettings::new(format!("nats://127.0.0.1:{}", made.port), &creds, "plain");
    let refused = tokio::time::timeout(LIMIT, connect(&plain, |_| ())).await.unwrap();
    assert!(refused.is_err(), "in the clear");
    plain.url = made.url();
    plain.tls_first = true;
    let refused = connect(&plain, |_| ()).await;
    assert!(
        matches!(refused, Err(ConnectError::Tls { .. } | ConnectError::Unreachable { .. })),
        "a stranger's authority"
    );
    let mut other = made.settings(&creds);
    other.url = format!("tls://127.0.0.1:{}", made.port);
    assert!(connect(&other, |_| ()).await.is_err(), "a name that is not in the certificate");

    let config = made.path("controller/serve.toml");
    done(&sally(&["serve", "config", "check", config.to_str().unwrap()]), 0);
    let log = fs::File::create(made.path("serve.log")).unwrap();
    let mut serve = Command::new(env!("CARGO_BIN_EXE_sally"));
    let _serve = Running(serve.arg("serve").arg("--config").arg(&config).stderr(log).spawn().unwrap());
    let since = Instant::now();
    loop {
        let said = made.sally(&["agent", "ls", "-o", "json"]);
        if said.status.success() {
            assert!(String::from_utf8_lossy(&said.stdout).contains("\"agents\""));
            break;
        }
        assert!(since.elapsed() < LIMIT, "{said:?} {}", fs::read_to_string(made.path("serve.log")).unwrap());
    }
}

#[tokio::test]
async fn a_zone_is_added_to_a_running_broker_and_counts_after_a_restart() {
    let made = Made::plain();
    let root = made.root.to_str().unwrap().to_owned();
    let add = || sally(&["nats", "zone", "add", "shop", "--dir", &root]);
    // Nobody listens: the files are right and it says what to carry.
    let away = done(&sally(&["nats", "zone", "add", "away", "--dir", &root]), 0);
    assert!(away.contains("has not been told") && away.contains("accounts.conf"), "{away}");
    let broker = made.broker().await;
    assert!(done(&add(), 0).contains("has its account"));
    assert!(done(&add(), 0).contains("was there already"));
    let controller = made.connected(&made.path("controller/controller.creds")).await;
    for zone in ["dmz", "away", "shop"] {
        let mut hears = controller.subscribe(format!("sally.result.{zone}.>")).await.unwrap();
        controller.flush().await.unwrap();
        let agent = made.connected(&made.agent(zone, "a1")).await;
        let mut waiting = tokio::time::interval(Duration::from_millis(20));
        let since = Instant::now();
        // A subscription is known to the broker a little later than it is made.
        let heard = loop {
            agent.publish(format!("sally.result.{zone}.a1"), "x".into()).await.unwrap();
            tokio::select! {
                message = hears.next() => break message.unwrap(),
                _ = waiting.tick() => assert!(since.elapsed() < LIMIT, "{zone}"),
            }
        };
        assert_eq!(heard.subject.as_str(), format!("sally.result.{zone}.a1"));
    }
    drop(broker);
    let _broker = made.broker().await;
    made.connected(&made.agent("shop", "a2")).await;
}

/// A credential of an agent as Sally issues it, and one that a careless hand widened.
#[tokio::test]
async fn a_check_says_what_a_credential_may_and_what_is_too_much() {
    let made = Made::plain();
    let _broker = made.broker().await;
    let check =
        |creds: &Path| made.sally(&["nats", "check", "--creds", creds.to_str().unwrap(), "-o", "json"]);
    for creds in
        [made.agent("dmz", "a1"), made.path("controller/controller.creds"), made.path("caller/caller.creds")]
    {
        let said = done(&check(&creds), 0);
        assert!(said.contains("as it should be"), "{said}");
    }
    let wide = made.path("wide.creds");
    let user = KeyPair::new_user();
    let seeds: serde_json::Value =
        serde_json::from_slice(&fs::read(made.path("admin/broker.json")).unwrap()).unwrap();
    let zone = KeyPair::from_seed(seeds["zones"]["dmz"].as_str().unwrap()).unwrap();
    let claims = serde_json::json!({
        "type": "user", "version": 2, "subs": -1, "data": -1, "payload": -1,
        "pub": {"allow": ["sally.state.dmz.a1", "sally.result.dmz.*"]}, "sub": {"allow": ["sally.live.dmz.>"]},
    });
    let key = user.public_key();
    let subject = jwt::Subject { key: &key, name: "dmz.a1", issued_at: 1, expires_at: None };
    Creds::new(jwt::sign(&zone, subject, claims).unwrap(), user).write(&wide).unwrap();
    let output = check(&wide);
    done(&output, 1);
    let said: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let wrong: Vec<String> = said["probes"]
        .as_array()
        .unwrap()
        .iter()
        .filter(|probe| probe["allowed"] != probe["should_be"])
        .map(|probe| {
            format!(
                "{} {} {}",
                probe["action"].as_str().unwrap(),
                probe["subject"].as_str().unwrap(),
                probe["allowed"]
            )
        })
        .collect();
    assert_eq!(
        wrong,
        [
            "publish sally.log.dmz.a1 false",
            "publish sally.heartbeat.dmz.a1 false",
            "publish sally.ask.dmz.a1 false",
            "publish sally.result.dmz.sally-check true",
            "subscribe sally.live.dmz.sally-check true",
            "subscribe sally.live.dmz.> true",
        ]
    );
}

#[tokio::test]
async fn a_given_certificate_is_used_and_websocket_is_served_on_its_own_port() {
    use sally::nats::tls;
    let dir = tempfile::tempdir().unwrap();
    let (authority_key, key) = (tls::key().unwrap(), tls::key().unwrap());
    let file = |name: &str, text: String| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let cert = tls::server(&key, &["localhost".to_owned()], &authority_key, "theirs").unwrap();
    let given = [
        ("--cert", file("cert.pem", cert)),
        ("--key", file("key.pem", key)),
        ("--ca", file("ca.pem", tls::authority(&authority_key, "theirs").unwrap())),
    ];
    let made = Made::new(2, |ports| {
        let given = given.iter().flat_map(|(flag, path)| [(*flag).to_owned(), path.clone()]);
        given
            .chain(["--websocket".to_owned(), ports[1].to_string(), "--zone".to_owned(), "dmz".to_owned()])
            .collect()
    });
    assert!(!made.path("admin/authority.key").exists());
    let _broker = made.broker().await;
    let mut settings = made.settings(&made.agent("dmz", "a1"));
    settings.url = format!("wss://localhost:{}", made.more[0]);
    settings.tls_first = false;
    let client = connect(&settings, |_| ()).await.unwrap();
    assert!(client.server_info().version.starts_with("2."));
}

#[tokio::test]
async fn a_broker_inside_a_zone_carries_its_agents_and_no_others() {
    let made = Made::new(3, |ports| {
        vec!["--leaf-port".into(), ports[1].to_string(), "--zone".into(), "shop".into()]
    });
    let root = made.root.to_str().unwrap();
    let leaf_port = made.more[1].to_string();
    let add = [
        "nats",
        "zone",
        "add",
        "dmz",
        "--dir",
        root,
        "--leaf",
        "localhost",
        "--leaf-listen-port",
        &leaf_port,
    ];
    done(&sally(&add), 0);
    let _hub = made.broker().await;
    let _leaf = nats_server(&made.path("zones/dmz/nats.conf")).await;
    let controller = made.connected(&made.path("controller/controller.creds")).await;
    let mut hears = controller.subscribe("sally.result.>").await.unwrap();
    let at_leaf = |creds: &Path| {
        let mut settings = made.settings(creds);
        settings.url = format!("tls://localhost:{leaf_port}");
        settings
    };
    let inside = at_leaf(&made.agent("dmz", "a1"));
    let since = Instant::now();
    let agent = loop {
        match connect(&inside, |_| ()).await {
            Ok(client) => break client,
            Err(error) => assert!(since.elapsed() < LIMIT, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    let mut live = agent.subscribe("sally.live.dmz.a1").await.unwrap();
    let mut beside = agent.subscribe("sally.live.dmz.a2").await.unwrap();
    // Both ways, tried until the two brokers have found each other.
    let mut waiting = tokio::time::interval(Duration::from_millis(20));
    let (mut up, mut down) = (false, false);
    while !(up && down) {
        agent.publish("sally.result.dmz.a1", "result".into()).await.unwrap();
        controller.publish("sally.live.dmz.a1", "command".into()).await.unwrap();
        controller.publish("sally.live.dmz.a2", "not for you".into()).await.unwrap();
        tokio::select! {
            message = hears.next() => up |= &message.unwrap().payload[..] == b"result",
            message = live.next() => down |= &message.unwrap().payload[..] == b"command",
            message = beside.next() => panic!("{:?}", message.map(|m| m.subject)),
            _ = waiting.tick() => assert!(since.elapsed() < LIMIT, "up {up}, down {down}"),
        }
    }
    let stranger = connect(&at_leaf(&made.agent("shop", "a1")), |_| ()).await;
    assert!(stranger.is_err(), "a zone's broker lets in its own zone only");
}
