//! What attacks aim at: files, processes and sockets of a host beside a launcher with some layers left out.

use crate::host::attacker::attacker;
use crate::host::{Ended, Host, plan};
use crate::registry::Attack;
use nix::pty::openpty;
use sally_agent::sandbox::{Layer, Mode, Profile, Program, RunInputs, Script};
use std::fs::{self, File, Permissions};
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::{SocketAddr, UnixListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) struct Scene {
    pub(crate) host: Host,
    pub(crate) broken: Vec<Layer>,
    tcp: TcpListener,
    udp: UdpSocket,
    abstract_name: String,
    _abstract: UnixListener,
    /// A process of the launcher's account, outside.
    victim: Child,
    /// System V shared memory: key and id.
    shared: (u32, String),
    made: AtomicU32,
}

impl Scene {
    pub(crate) async fn start(mode: Mode, broken: &[Layer]) -> Scene {
        let args: Vec<&str> = broken.iter().flat_map(|layer| ["--break", layer.name()]).collect();
        let host = Host::start(mode, &args).await;
        let account = if mode == Mode::Root { 0 } else { host.uid(0) };
        let dir = host.dir.path();
        for (name, bits) in [("file", 0o666), ("own", 0o600)] {
            fs::write(dir.join(name), "content").unwrap();
            fs::set_permissions(dir.join(name), Permissions::from_mode(bits)).unwrap();
        }
        fs::create_dir(dir.join("open")).unwrap();
        fs::set_permissions(dir.join("open"), Permissions::from_mode(0o777)).unwrap();
        if nix::unistd::geteuid().is_root() {
            chown(dir.join("own"), Some(account), Some(account)).unwrap();
            fs::copy(attacker(), dir.join("setuid")).unwrap();
            fs::set_permissions(dir.join("setuid"), Permissions::from_mode(0o4755)).unwrap();
        }
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let unique = std::process::id() * 64 + NEXT.fetch_add(1, Ordering::Relaxed) % 64;
        let abstract_name = format!("sally-attack-{unique}");
        let address = SocketAddr::from_abstract_name(&abstract_name).unwrap();
        let made =
            Command::new(attacker()).args(["make_shared_memory", &unique.to_string()]).output().unwrap();
        let id = String::from_utf8(made.stdout).unwrap().trim().to_owned();
        Scene {
            broken: broken.to_vec(),
            tcp: TcpListener::bind("127.0.0.1:0").unwrap(),
            udp: UdpSocket::bind("127.0.0.1:0").unwrap(),
            abstract_name,
            _abstract: UnixListener::bind_addr(&address).unwrap(),
            victim: victim(account),
            shared: (unique, id),
            made: AtomicU32::new(0),
            host,
        }
    }

    /// Tries an attack in a profile; `None` if what it aims at cannot be made by this user.
    pub(crate) async fn run(&self, attack: &Attack, profile: Profile) -> Option<Ended> {
        let mut plan = plan("");
        plan.profile = profile;
        plan.program = Program::Script { interpreter: None };
        plan.argv = attack.run.iter().map(|word| self.fill(word)).collect();
        if attack.run.contains(&"{setuid}") && !nix::unistd::geteuid().is_root() {
            return None;
        }
        // A terminal that nobody controls, for those attacks that look at standard input.
        let terminal = openpty(None, None).unwrap();
        let inputs = RunInputs {
            script: Some(Script::Bytes(fs::read(attacker()).unwrap())),
            stdin: Some(File::from(terminal.slave)),
            ..RunInputs::default()
        };
        let ended = self.host.run(&plan, inputs).await;
        // Only now: without it the terminal hangs up.
        drop(terminal.master);
        Some(ended)
    }

    fn fill(&self, word: &str) -> String {
        let path = |name: &str| self.host.dir.path().join(name).to_string_lossy().into_owned();
        match word {
            "{file}" | "{own}" | "{setuid}" => path(word.trim_matches(['{', '}'])),
            "{new}" => path(&format!("open/{}", self.made.fetch_add(1, Ordering::Relaxed))),
            "{tcp}" => self.tcp.local_addr().unwrap().port().to_string(),
            "{udp}" => self.udp.local_addr().unwrap().port().to_string(),
            "{abstract}" => self.abstract_name.clone(),
            "{pid}" => self.victim.id().to_string(),
            "{key}" => self.shared.0.to_string(),
            word => word.to_owned(),
        }
    }
}

impl Drop for Scene {
    fn drop(&mut self) {
        let _ = self.victim.kill();
        let _ = self.victim.wait();
        let _ = Command::new("ipcrm").args(["-m", &self.shared.1]).status();
    }
}

/// Starts a process of an account that waits until it is killed.
fn victim(account: u32) -> Child {
    let mut command = Command::new(attacker());
    if account != nix::unistd::geteuid().as_raw() {
        let id = account.to_string();
        command = Command::new("setpriv");
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(attacker());
    }
    let mut child = command.arg("wait").stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(child.stdout.take().unwrap()), &mut line)
        .unwrap();
    assert_eq!(line, "waiting\n");
    child
}
