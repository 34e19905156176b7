//! What a connector and a relay cannot do, tried in a thread that is confined as they are: filters and rules hold for a
//! thread. Each attempt is also made without, where it must succeed.
#![expect(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test fails by panicking, and says what is not tried"
)]

use super::*;
use crate::sandbox::sys;
use nix::errno::Errno;
use nix::sys::signal::kill;
use nix::unistd::getppid;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream, ToSocketAddrs as _, UdpSocket};
use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};
use std::process::Command;
use std::thread;

/// Something to be attacked.
struct World {
    dir: tempfile::TempDir,
    _unix: UnixListener,
    /// What the relay is for: it gives each byte back.
    listed: SocketAddr,
    other: TcpListener,
}

/// What was tried, and whether it was done.
type Tried = Vec<(&'static str, bool)>;

impl World {
    fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("key"), "secret").unwrap();
        let unix = UnixListener::bind(dir.path().join("socket")).unwrap();
        let listen = || TcpListener::bind("127.0.0.1:0").unwrap();
        let echo = listen();
        let listed = echo.local_addr().unwrap();
        thread::spawn(move || {
            while let Ok((mut peer, _)) = echo.accept() {
                let mut byte = [0];
                let _ = peer.read_exact(&mut byte).and_then(|()| peer.write_all(&byte));
            }
        });
        World { _unix: unix, listed, other: listen(), dir }
    }

    /// The target of a relay.
    fn target(&self) -> Target {
        Target::Address(self.listed)
    }

    /// What neither may do.
    fn attacks(&self) -> Tried {
        let at = |name: &str| self.dir.path().join(name);
        vec![
            ("read a file", fs::read(at("key")).is_ok()),
            ("write a file", fs::OpenOptions::new().write(true).open(at("key")).is_ok()),
            ("make a file", fs::write(at("new"), "x").is_ok()),
            ("remove a file", fs::remove_file(at("new")).is_ok()),
            ("start a program", Command::new("/usr/bin/true").status().is_ok()),
            ("connect to a unix socket", UnixStream::connect(at("socket")).is_ok()),
            ("make a socket that sends to any other", UnixDatagram::pair().is_ok()),
            ("listen", TcpListener::bind("127.0.0.1:0").is_ok()),
            ("reach the kernel's keys", sys::try_keyring() == Errno::EOPNOTSUPP),
            ("reach the code of mounts", sys::try_mount() == Errno::EFAULT),
            ("open a process", sys::open_process(getppid()).is_ok()),
        ]
    }

    /// What only a connector may do.
    fn of_connectors(&self) -> Tried {
        let wait = std::time::Duration::from_secs(5);
        vec![
            ("look up a name", ("localhost", 1).to_socket_addrs().is_ok_and(|mut all| all.next().is_some())),
            ("read how to find hosts", fs::read("/etc/passwd").is_ok()),
            ("ask for names", UdpSocket::bind("127.0.0.1:0").is_ok()),
            (
                "connect to another port",
                TcpStream::connect_timeout(&self.other.local_addr().unwrap(), wait).is_ok(),
            ),
        ]
    }

    /// What both may do.
    fn carry(&self) -> bool {
        let Ok(mut stream) = TcpStream::connect(self.listed) else { return false };
        let mut byte = [0];
        stream.write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok() && byte == *b"x"
    }
}

/// Runs something in a thread of its own.
fn aside<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| scope.spawn(work).join().unwrap())
}

fn done(tried: Tried) -> Vec<&'static str> {
    tried.into_iter().filter_map(|(what, done)| done.then_some(what)).collect()
}

fn names(tried: Tried) -> Vec<&'static str> {
    tried.into_iter().map(|(what, _)| what).collect()
}

/// Whether signals are kept to the processes of the same confinement.
fn signals_are_ruled() -> bool {
    let ruled = landlock::abi() >= landlock::WHOLE_ABI;
    if !ruled {
        eprintln!("not tried: a signal to another process: this kernel's landlock has no scopes");
    }
    ruled
}

#[test]
fn a_connector_can_look_up_and_connect_and_nothing_else() {
    let world = World::new();
    let free = (aside(|| world.attacks()), aside(|| world.of_connectors()));
    assert_eq!(done(free.0), names(world.attacks()), "an attack that does nothing shows nothing");
    assert_eq!(done(free.1), names(world.of_connectors()));
    assert_eq!(kill(getppid(), None), Ok(()));
    let world = World::new();
    aside(|| {
        Confinement::of_connector().unwrap();
        assert_eq!(done(world.attacks()), Vec::<&str>::new());
        assert_eq!(done(world.of_connectors()), names(world.of_connectors()));
        assert!(world.carry());
        if signals_are_ruled() {
            assert_eq!(kill(getppid(), None), Err(Errno::EPERM));
        }
    });
}

#[test]
fn a_relay_can_carry_bytes_to_its_port_and_nothing_else() {
    let (world, abi) = (World::new(), landlock::abi());
    aside(|| {
        let confinement = Confinement::of_connector().unwrap();
        confinement.of_relay(&world.target()).unwrap();
        assert_eq!(done(world.attacks()), Vec::<&str>::new());
        let left = done(world.of_connectors());
        if abi >= landlock::FIRST_WITH_TCP {
            assert_eq!(left, Vec::<&str>::new());
        } else {
            eprintln!("not tried: another port: this kernel's landlock rules no TCP");
        }
        assert!(world.carry());
        assert!(kill(getppid(), None).is_err());
    });
}
