//! Forged and malformed words to the launcher's socket and to a keeper's: by whoever may not speak there, and by an agent
//! that was taken over. As root and as an ordinary user.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod host;

use host::attacker::attacker;
use host::{Host, NOBODY, in_both, plan, skipped_aloud_because};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, connect,
    recvmsg, sendmsg, socket,
};
use sally_agent::sandbox::{Mode, Profile};
use std::fs::{self, File, Permissions};
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd as _, IntoRawFd as _, RawFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

const OPEN: i32 = 10;
const CLOSED: i32 = 20;

/// Asks a launcher as an account.
fn ask_as(account: u32, path: &Path) -> i32 {
    let id = account.to_string();
    let mut command = Command::new("setpriv");
    command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(attacker());
    command.arg("ask_launcher").arg(path).output().unwrap().status.code().unwrap()
}

#[test]
fn another_account_is_not_heard() {
    in_both(async |mode| {
        if !nix::unistd::geteuid().is_root() {
            return skipped_aloud_because(mode, "SKIP: only root can be another account");
        }
        let host = Host::start(mode, &[]).await;
        let path = host.state().join("socket");
        let (own, other) = (if mode == Mode::Root { 0 } else { NOBODY }, NOBODY - 1);
        assert_eq!((ask_as(own, &path), ask_as(other, &path)), (OPEN, CLOSED));
        // The second wall: whoever comes as far as connecting is looked at.
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
        assert_eq!((ask_as(own, &path), ask_as(other, &path)), (OPEN, CLOSED));
        // A slot's own uid is one of those others; in user mode it is the account, and its sandbox keeps it away.
        if mode == Mode::Root {
            assert_eq!(ask_as(host.uid(0), &path), CLOSED);
        }
        assert_eq!(host.sh("echo fine").await.ok(), "fine\n");
    });
}

/// A connection that says whatever it is told to: a socket by its number.
struct Forger(RawFd);

impl Forger {
    fn new(path: &Path) -> Forger {
        let fd = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)
            .unwrap()
            .into_raw_fd();
        connect(fd, &UnixAddr::new(path).unwrap()).unwrap();
        Forger(fd)
    }

    /// Says something with so many descriptors, and returns the answer (empty: hung up) and the descriptor that came with
    /// it.
    fn say(&self, bytes: &[u8], descriptors: usize) -> (String, Option<RawFd>) {
        let null = File::open("/dev/null").unwrap();
        let fds = vec![null.as_raw_fd(); descriptors];
        let rights = [ControlMessage::ScmRights(&fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights };
        let slices = [IoSlice::new(bytes)];
        if sendmsg::<UnixAddr>(self.0, &slices, rights, MsgFlags::MSG_NOSIGNAL, None).is_err() {
            return (String::new(), None);
        }
        let until = Instant::now() + host::LIMIT;
        loop {
            let (mut buffer, mut control) = (vec![0; 65536], nix::cmsg_space!([RawFd; 16]));
            let mut slices = [IoSliceMut::new(&mut buffer)];
            let flags = MsgFlags::MSG_DONTWAIT;
            match recvmsg::<UnixAddr>(self.0, &mut slices, Some(&mut control), flags) {
                Ok(got) => {
                    let fd = got.cmsgs().unwrap().find_map(|message| match message {
                        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
                        _ => None,
                    });
                    let length = got.bytes;
                    return (String::from_utf8_lossy(&buffer[..length]).into_owned(), fd);
                }
                Err(Errno::EAGAIN) => {}
                Err(_) => return (String::new(), None),
            }
            assert!(Instant::now() < until, "neither an answer nor an end");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Forger {
    fn drop(&mut self) {
        let _ = nix::unistd::close(self.0);
    }
}

#[test]
fn forged_words_to_the_launcher_are_refused_and_it_goes_on() {
    in_both(async |mode| {
        let host = Host::start(mode, &["--max-profile", "net"]).await;
        let path = host.state().join("socket");
        let nested = format!("{{\"open\":{}", "[".repeat(50_000));
        let long = "x".repeat(100_000);
        let words: Vec<&[u8]> = vec![
            b"{",
            b"\0\xff\xfe",
            b"null",
            b"\"info\" \"info\"",
            b"\"stop\"",
            b"{\"stop\":{\"kill\":true}}",
            b"{\"open\":{}}",
            b"{\"open\":{\"slot\":-1,\"profile\":\"strict\"}}",
            b"{\"open\":{\"slot\":65536,\"profile\":\"strict\"}}",
            b"{\"open\":{\"slot\":9,\"profile\":\"strict\"}}",
            b"{\"open\":{\"slot\":0,\"profile\":\"host\"}}",
            b"{\"open\":{\"slot\":0,\"profile\":\"admin\"}}",
            b"{\"open\":{\"slot\":0,\"profile\":\"strict\",\"defined\":\"../../etc/passwd\"}}",
            b"{\"open\":{\"slot\":0,\"profile\":\"strict\",\"defined\":\"wide\"}}",
            b"{\"open\":{\"slot\":0,\"profile\":\"strict\",\"user\":\"root\"}}",
            nested.as_bytes(),
            long.as_bytes(),
        ];
        for words in words {
            let (answer, fd) = Forger::new(&path).say(words, 0);
            let shown = String::from_utf8_lossy(&words[..words.len().min(80)]);
            assert!(answer.starts_with("{\"refused\":"), "{shown}: {answer:?}");
            assert!(fd.is_none(), "{shown}");
        }
        // Descriptors that nobody asked for, and more than a message may have.
        for count in [1, 100] {
            let (answer, fd) = Forger::new(&path).say(b"\"info\"", count);
            assert_eq!((answer.contains("\"info\""), fd.is_none()), (count == 1, true), "{answer}");
        }
        // As many connections as it takes, and more: those are hung up on.
        let crowd: Vec<Forger> = (0..40).map(|_| Forger::new(&path)).collect();
        let heard = crowd.iter().filter(|forger| !forger.say(b"\"info\"", 0).0.is_empty()).count();
        assert!((1..=16).contains(&heard), "{heard}");
        drop(crowd);
        assert_eq!(host.sh("echo fine").await.ok(), "fine\n");
    });
}

#[test]
fn forged_plans_to_a_keeper_are_refused_and_nothing_runs() {
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let path = host.state().join("socket");
        let (_, keeper) = Forger::new(&path).say(b"{\"open\":{\"slot\":0,\"profile\":\"strict\"}}", 0);
        let keeper = Forger(keeper.unwrap());
        let marker = host.dir.path().join("ran");
        let shell = format!("echo > {}", marker.display());
        let json = |plan: &sally_agent::sandbox::Plan| serde_json::to_string(plan).unwrap();
        let (good, wide) = (json(&plan(&shell)), json(&host::profile(Profile::Host, &shell)));
        let later = good.replacen("\"v\":1", "\"v\":99", 1);
        let endless = good.replacen("\"timeout_ms\":15000", "\"timeout_ms\":18446744073709551615", 1);
        assert!(later != good && endless != good, "{good}");
        let twice = format!("{good}{good}");
        let huge = format!("{good}{}", " ".repeat(115_000));
        for (words, fds) in [
            ("{}", 12),
            ("\0", 12),
            (&good[..good.len() - 1], 12),
            (&*twice, 12),
            (&*wide, 12),
            (&*later, 12),
            (&*endless, 12),
            (&*huge, 12),
            (&*good, 0),
            (&*good, 11),
            (&*good, 14),
            (&*good, 100),
        ] {
            let (answer, _) = keeper.say(words.as_bytes(), fds);
            let shown = &words[..words.len().min(60)];
            assert!(answer.starts_with("{\"refused\":"), "{shown} with {fds}: {answer:?}");
        }
        assert!(!marker.exists());
        assert_eq!(host.sh("echo fine").await.ok(), "fine\n");
    });
}
