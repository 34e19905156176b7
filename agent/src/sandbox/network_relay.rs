//! One connection of a script, outside: finds the address, connects, and carries bytes both ways until both ends are done.
//! A process of its own for each connection, so that a slow name or a slow peer holds up nobody.
#![forbid(unsafe_code)]

use super::network::{Target, is_special};
use super::step::StepError;
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{setsockopt, sockopt};
use nix::unistd::alarm;
use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream, ToSocketAddrs as _};
use std::os::fd::AsFd;
use std::time::Duration;

/// How long one address may take to answer.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);

/// How long looking up a name and connecting may take together, in seconds: then the kernel ends the process.
const WHOLE_LIMIT: u32 = 60;

/// How many addresses of a name are tried.
const ADDRESSES_MAX: usize = 4;

/// Bytes on their way in one direction.
const BUFFER: usize = 64 * 1024;

/// Connects and carries. The error says, in words, why nothing came of it; then the script's end is reset when it is closed.
/// Once the name is looked up, `confine` takes all that is not needed any more.
pub(super) fn run(
    inside: &TcpStream,
    target: &Target,
    confine: impl FnOnce() -> Result<(), StepError>,
) -> Result<(), String> {
    alarm::set(WHOLE_LIMIT);
    let reached = look_up(target).and_then(|found| {
        confine().map_err(|error| format!("{}: {error}", found.0))?;
        reach(found)
    });
    alarm::cancel();
    let outside = reached.inspect_err(|_| reset(inside))?;
    // How it ends from here on is between the two.
    let _ = carry(inside, &outside);
    Ok(())
}

/// Makes the end of a connection a reset: the script must not take it for an answer.
pub(super) fn reset(stream: &TcpStream) {
    let at_once = libc::linger { l_onoff: 1, l_linger: 0 };
    let _ = setsockopt(&stream, sockopt::Linger, &at_once);
}

/// What a target is called, and its addresses.
fn look_up(target: &Target) -> Result<(String, Vec<SocketAddr>), String> {
    Ok(match target {
        Target::Address(address) => (address.to_string(), vec![*address]),
        Target::Name(name, port) => {
            let shown = format!("{name}:{port}");
            let found = (name.as_str(), *port).to_socket_addrs();
            let found: Vec<_> = found.map_err(|error| format!("{shown}: {error}"))?.collect();
            let addresses = allowed(&found).map_err(|why| format!("{shown}: {why}"))?;
            (shown, addresses)
        }
    })
}

fn reach((name, addresses): (String, Vec<SocketAddr>)) -> Result<TcpStream, String> {
    let mut last = "it has no address".to_owned();
    for address in addresses.iter().take(ADDRESSES_MAX) {
        match TcpStream::connect_timeout(address, CONNECT_LIMIT) {
            Ok(stream) => return Ok(stream),
            Err(error) => last = error.to_string(),
        }
    }
    Err(format!("{name}: {last}"))
}

/// Those addresses of a name that a name may lead to. Looked up once for each connection, and connected to as they are.
fn allowed(found: &[SocketAddr]) -> Result<Vec<SocketAddr>, String> {
    let good: Vec<SocketAddr> = found.iter().filter(|at| !is_special(at.ip())).copied().collect();
    match (good.is_empty(), found.first()) {
        (false, _) => Ok(good),
        (true, None) => Err("it has no address".into()),
        (true, Some(at)) => Err(format!(
            "its address is {}, where no name may lead (loopback, link-local, metadata); allow that address itself",
            at.ip()
        )),
    }
}

/// Bytes in one direction.
struct Way {
    buffer: Vec<u8>,
    from: usize,
    to: usize,
    /// Nothing more comes.
    ended: bool,
    /// The other side was told.
    told: bool,
}

impl Way {
    fn new() -> Self {
        Self { buffer: vec![0; BUFFER], from: 0, to: 0, ended: false, told: false }
    }

    fn wants_to_read(&self) -> bool {
        !self.ended && self.from == self.to
    }

    fn wants_to_write(&self) -> bool {
        self.from < self.to
    }

    /// Moves what can be moved without waiting.
    fn pump(&mut self, mut source: &TcpStream, mut sink: &TcpStream) -> io::Result<()> {
        loop {
            while self.wants_to_write() {
                match sink.write(&self.buffer[self.from..self.to]) {
                    Ok(length) => self.from += length,
                    Err(error) if must_wait(&error) => return Ok(()),
                    Err(error) => return Err(error),
                }
            }
            if self.ended {
                if !self.told {
                    self.told = true;
                    sink.shutdown(Shutdown::Write)?;
                }
                return Ok(());
            }
            match source.read(&mut self.buffer) {
                Ok(0) => self.ended = true,
                Ok(length) => (self.from, self.to) = (0, length),
                Err(error) if must_wait(&error) => return Ok(()),
                Err(error) => return Err(error),
            }
        }
    }
}

fn must_wait(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted)
}

fn carry(inside: &TcpStream, outside: &TcpStream) -> io::Result<()> {
    for stream in [inside, outside] {
        stream.set_nonblocking(true)?;
        stream.set_nodelay(true)?;
        setsockopt(&stream, sockopt::KeepAlive, &true)?;
    }
    let (mut out, mut back) = (Way::new(), Way::new());
    let carried = loop {
        let moved = out.pump(inside, outside).and_then(|()| back.pump(outside, inside));
        if moved.is_err() || (out.told && back.told) {
            break moved;
        }
        let events = |reads: &Way, writes: &Way| {
            let mut events = PollFlags::empty();
            events.set(PollFlags::POLLIN, reads.wants_to_read());
            events.set(PollFlags::POLLOUT, writes.wants_to_write());
            events
        };
        // One of which nothing is wanted is left out: its hanging up would be heard again and again.
        let wanted = [(inside, events(&out, &back)), (outside, events(&back, &out))];
        let mut fds: Vec<PollFd<'_>> = wanted
            .iter()
            .filter(|(_, events)| !events.is_empty())
            .map(|(stream, events)| PollFd::new(stream.as_fd(), *events))
            .collect();
        match poll(&mut fds, PollTimeout::NONE) {
            Ok(_) | Err(Errno::EINTR) => {}
            Err(errno) => break Err(errno.into()),
        }
    };
    if carried.is_err() {
        // A broken connection is broken on both sides.
        reset(inside);
        reset(outside);
    }
    carried
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use std::net::TcpListener;
    use std::thread;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let one = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        (one, listener.accept().unwrap().0)
    }

    #[test]
    fn megabytes_go_both_ways_at_once_and_each_end_is_told_by_itself() {
        let ((script, inside), (outside, mut server)) = (pair(), pair());
        let relay = thread::spawn(move || carry(&inside, &outside));
        let bytes: Vec<u8> = (0..8_000_000u32).map(|n| (n % 251) as u8).collect();
        let sent = bytes.clone();
        let mut up = script.try_clone().unwrap();
        let sender = thread::spawn(move || {
            up.write_all(&sent).unwrap();
            up.shutdown(Shutdown::Write).unwrap();
        });
        let echo = thread::spawn(move || {
            let mut all = Vec::new();
            server.read_to_end(&mut all).unwrap();
            server.write_all(&all).unwrap();
        });
        let mut back = Vec::new();
        (&script).read_to_end(&mut back).unwrap();
        assert!(back == bytes);
        sender.join().unwrap();
        echo.join().unwrap();
        relay.join().unwrap().unwrap();
    }

    #[test]
    fn a_broken_connection_is_a_reset_on_the_other_side() {
        let ((mut script, inside), (outside, server)) = (pair(), pair());
        let relay = thread::spawn(move || carry(&inside, &outside));
        reset(&server);
        drop(server);
        let error = script.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ConnectionReset);
        assert!(relay.join().unwrap().is_err());
    }

    #[test]
    fn a_name_leads_to_no_special_address() {
        let at = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect::<Vec<SocketAddr>>();
        let mixed = at(&["127.0.0.1:80", "10.0.0.1:80", "[::ffff:169.254.169.254]:80", "[2001:db8::1]:80"]);
        assert_eq!(allowed(&mixed).unwrap(), at(&["10.0.0.1:80", "[2001:db8::1]:80"]));
        assert!(allowed(&at(&["169.254.169.254:80"])).unwrap_err().contains("where no name may lead"));
        assert!(allowed(&[]).unwrap_err().contains("no address"));
    }

    #[test]
    fn nothing_that_answers_is_a_reset_with_the_reason() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let nobody = listener.local_addr().unwrap();
        drop(listener);
        let (mut script, inside) = pair();
        let why = run(&inside, &Target::Address(nobody), || Ok(())).unwrap_err();
        assert!(why.contains(&nobody.to_string()) && why.contains("refused"), "{why}");
        drop(inside);
        assert_eq!(script.read(&mut [0]).unwrap_err().kind(), io::ErrorKind::ConnectionReset);
        let (_script, inside) = pair();
        let why = run(&inside, &Target::Name("localhost".into(), 9), || Ok(())).unwrap_err();
        assert!(why.contains("where no name may lead"), "{why}");
    }
}
