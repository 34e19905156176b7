//! A bad connection: a relay between an agent and its broker that can be silent, slow, cut, or speak nonsense.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use super::world::World;
use crate::harness::eventually;

/// How the line is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Line {
    Good,
    /// Nothing passes in either direction, and nobody is told: a firewall that drops.
    Silent,
    /// Only what the agent says passes.
    Deaf,
    /// Connections are reset, and new ones too.
    Reset,
    /// About 50 kB each second, in pieces of a few bytes.
    Slow,
}

#[derive(Default)]
struct State {
    line: Mutex<Option<Line>>,
    open: Mutex<Vec<TcpStream>>,
    /// Bytes that may still pass towards the agent before something happens; 0: as many as come.
    cut_after: AtomicU64,
    garbage: Mutex<bool>,
}

pub struct Link {
    state: Arc<State>,
    pub port: u16,
}

impl Link {
    /// A relay to this broker. It ends with the test's process.
    fn new(broker: SocketAddr) -> Link {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::<State>::default();
        let shared = state.clone();
        std::thread::spawn(move || {
            for agent in listener.incoming().flatten() {
                if shared.line() == Line::Reset {
                    reset(&agent);
                    continue;
                }
                let Ok(broker) = TcpStream::connect(broker) else { continue };
                let streams = [agent.try_clone().unwrap(), broker.try_clone().unwrap()];
                shared.open.lock().unwrap().extend(streams);
                for (from, to, inward) in [(&broker, &agent, true), (&agent, &broker, false)] {
                    let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
                    let shared = shared.clone();
                    std::thread::spawn(move || pump(&shared, from, to, inward));
                }
            }
        });
        Link { state, port }
    }

    /// Puts a relay between an agent and its broker: its configuration is changed and it is started again.
    pub fn between(world: &mut World, agent: u64) -> Link {
        let path = world.agent_dir(agent).join("agent.toml");
        let mut config: toml::Table = toml::from_str(&std::fs::read_to_string(&path).unwrap()).unwrap();
        let url = config["url"].as_str().unwrap().to_owned();
        let link = Link::new(url.strip_prefix("nats://").unwrap().parse().unwrap());
        config.insert("url".into(), format!("nats://127.0.0.1:{}", link.port).into());
        std::fs::write(&path, config.to_string()).unwrap();
        world.kill_and_wait(&format!("local-{agent}"));
        eventually("the agent comes over the relay", || {
            (!link.state.open.lock().unwrap().is_empty()).then_some(())
        });
        link
    }

    /// Changes the line. A reset ends what is open.
    pub fn set(&self, line: Line) {
        *self.state.line.lock().unwrap() = Some(line);
        if line == Line::Reset {
            self.reset_all();
        }
    }

    fn reset_all(&self) {
        for stream in self.state.open.lock().unwrap().drain(..) {
            reset(&stream);
        }
    }

    /// The next bytes towards the agent are cut off after so many, wherever that is in a message.
    pub fn cut_after(&self, bytes: u64) {
        self.state.cut_after.store(bytes, Ordering::Relaxed);
    }

    /// The same, and nonsense comes in place of what is cut off.
    pub fn garbage_after(&self, bytes: u64) {
        *self.state.garbage.lock().unwrap() = true;
        self.cut_after(bytes);
    }

    /// Whether the cut has happened.
    pub fn was_cut(&self) -> bool {
        self.state.cut_after.load(Ordering::Relaxed) == 0
    }
}

impl State {
    fn line(&self) -> Line {
        self.line.lock().unwrap().unwrap_or(Line::Good)
    }
}

fn reset(stream: &TcpStream) {
    // A closed socket with unread bytes, or without lingering, is answered with a reset.
    let _ = nix::sys::socket::setsockopt(
        stream,
        nix::sys::socket::sockopt::Linger,
        &nix::libc::linger { l_onoff: 1, l_linger: 0 },
    );
    let _ = stream.shutdown(Shutdown::Both);
}

fn pump(state: &State, mut from: TcpStream, mut to: TcpStream, inward: bool) {
    let mut buffer = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut buffer) {
        let mut bytes = &buffer[..length];
        loop {
            let line = state.line();
            let held = line == Line::Silent || (line == Line::Deaf && inward);
            if !held {
                break;
            }
            // Nothing tells when the line is good again.
            std::thread::sleep(Duration::from_millis(5));
        }
        let left = state.cut_after.load(Ordering::Relaxed);
        if inward && left > 0 {
            let cut = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
            state.cut_after.fetch_sub(cut as u64, Ordering::Relaxed);
            if left <= bytes.len() as u64 {
                let _ = to.write_all(&bytes[..cut]);
                if std::mem::take(&mut *state.garbage.lock().unwrap()) {
                    let _ =
                        to.write_all(&[0xff, b'\r', b'\n', 0, b'M', b'S', b'G', b' ', 0xfe, b'\r', b'\n']);
                }
                break;
            }
        }
        while !bytes.is_empty() {
            let piece = if state.line() == Line::Slow { 100 } else { bytes.len() };
            let (now, rest) = bytes.split_at(piece.min(bytes.len()));
            if to.write_all(now).is_err() {
                break;
            }
            bytes = rest;
            if state.line() == Line::Slow {
                std::thread::sleep(Duration::from_millis(2));
            }
        }
    }
    let _ = from.shutdown(Shutdown::Both);
    let _ = to.shutdown(Shutdown::Both);
}
