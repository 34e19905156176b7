//! What attacks aim at: files, processes and sockets of a host beside a launcher with some layers left out.

use crate::host::attacker::attacker;
use crate::host::{Ended, Host, Running, children, plan};
use crate::registry::Attack;
use nix::pty::openpty;
use nix::unistd::mkfifo;
use sally_agent::sandbox::{Layer, Mode, Plan, Profile, Program, RunInputs, Script};
use std::fs::{self, File, Permissions};
use std::net::{TcpListener, UdpSocket};
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

pub(crate) struct Scene {
    pub(crate) host: Host,
    pub(crate) broken: Vec<Layer>,
    tcp: TcpListener,
    udp: UdpSocket,
    abstract_name: String,
    /// Sockets of the host that all may write, and one without a file.
    _sockets: (UnixListener, UnixListener, UnixDatagram),
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
        mkfifo(&dir.join("fifo"), nix::sys::stat::Mode::empty()).unwrap();
        let socket = UnixListener::bind(dir.join("socket")).unwrap();
        let datagram = UnixDatagram::bind(dir.join("datagram")).unwrap();
        for name in ["open", "fifo", "socket", "datagram"] {
            fs::set_permissions(dir.join(name), Permissions::from_mode(0o777)).unwrap();
        }
        if nix::unistd::geteuid().is_root() {
            chown(dir.join("own"), Some(account), Some(account)).unwrap();
            fs::copy(attacker(), dir.join("setuid")).unwrap();
            fs::set_permissions(dir.join("setuid"), Permissions::from_mode(0o4755)).unwrap();
            // Any would do: this one is harmless and everywhere.
            let node = Command::new("mknod").arg(dir.join("node")).args(["c", "1", "5"]).status();
            assert!(node.unwrap().success());
            fs::set_permissions(dir.join("node"), Permissions::from_mode(0o666)).unwrap();
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
            _sockets: (UnixListener::bind_addr(&address).unwrap(), socket, datagram),
            victim: victim(account),
            shared: (unique, id),
            made: AtomicU32::new(0),
            host,
        }
    }

    /// Tries an attack in a profile; `None` if what it aims at cannot be made by this user.
    pub(crate) async fn run(&self, attack: &Attack, profile: Profile) -> Option<Ended> {
        let needs_root = ["{setuid}", "{node}"].iter().any(|word| attack.run.contains(word));
        if needs_root && !nix::unistd::geteuid().is_root() {
            return None;
        }
        let aims_at_neighbour = attack.run.iter().any(|word| word.contains("neighbour"));
        let neighbour = if aims_at_neighbour { Some(self.neighbour(profile).await) } else { None };
        let words = attack.run.iter().flat_map(|word| self.fill(word, profile, neighbour.as_ref()));
        let plan = program(profile, words.collect());
        // A terminal that nobody controls, for those attacks that look at standard input.
        let terminal = openpty(None, None).unwrap();
        let inputs = RunInputs { stdin: Some(File::from(terminal.slave)), ..attacker_script() };
        let ended = self.host.run(&plan, inputs).await;
        // Only now: without it the terminal hangs up.
        drop(terminal.master);
        if let Some(neighbour) = neighbour {
            neighbour.folder.kill().unwrap();
            neighbour.end().await;
        }
        Some(ended)
    }

    /// A script in the other slot, with something to be found wherever it may leave it.
    async fn neighbour(&self, profile: Profile) -> Running {
        let words = ["neighbour", &self.neighbour_key(), &self.neighbour_name()].map(str::to_owned);
        let plan = program(profile, words.to_vec());
        let mut running = self.host.begin(1, &plan, attacker_script()).await.unwrap();
        running.release();
        running.said("up").await;
        running
    }

    fn neighbour_key(&self) -> String {
        (self.shared.0 + 0x4000_0000).to_string()
    }

    fn neighbour_name(&self) -> String {
        format!("{}-neighbour", self.abstract_name)
    }

    fn fill(&self, word: &str, profile: Profile, neighbour: Option<&Running>) -> Vec<String> {
        let launcher = self.host.child.id();
        let path = |name: &str| self.host.dir.path().join(name).to_string_lossy().into_owned();
        let one = match word {
            "{keepers}" => return children(launcher as i32).iter().map(i32::to_string).collect(),
            "{file}" | "{own}" | "{setuid}" | "{socket}" | "{datagram}" | "{fifo}" | "{node}" => {
                path(word.trim_matches(['{', '}']))
            }
            "{launcher_socket}" => path("state/socket"),
            "{new}" => path(&format!("open/{}", self.made.fetch_add(1, Ordering::Relaxed))),
            "{tcp}" => self.tcp.local_addr().unwrap().port().to_string(),
            "{udp}" => self.udp.local_addr().unwrap().port().to_string(),
            "{abstract}" => self.abstract_name.clone(),
            "{pid}" => self.victim.id().to_string(),
            "{launcher}" => launcher.to_string(),
            "{key}" => self.shared.0.to_string(),
            "{neighbour}" => neighbour.unwrap().script_pid().to_string(),
            "{neighbour_key}" => self.neighbour_key(),
            "{neighbour_name}" => self.neighbour_name(),
            word => {
                let base = self.host.launcher.box_paths(profile);
                word.replace("{box}", &base.base().to_string_lossy())
            }
        };
        vec![one]
    }
}

/// A run of the program of attacks.
fn program(profile: Profile, argv: Vec<String>) -> Plan {
    Plan { profile, program: Program::Script { interpreter: None }, argv, ..plan("") }
}

fn attacker_script() -> RunInputs {
    RunInputs { script: Some(Script::Bytes(fs::read(attacker()).unwrap())), ..RunInputs::default() }
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
