//! Carries bytes between the user's terminal and the one inside, in a thread of its own: the user's terminal is shared with
//! whoever started this program, so it is not made non-blocking, and a write to it may wait for long.
//!
//! One piece of bounded size is on its way in each direction; nothing is read before the last piece is written.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::unistd::{read, write};
use tokio::sync::oneshot;

use crate::sandbox::copy_terminal_size;

/// The largest piece, in bytes: as much as a terminal takes at once.
const PIECE: usize = 4096;

/// Why no more bytes are carried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stopped {
    /// Nobody has the terminal inside any more.
    Inside,
    /// The user's terminal is gone.
    Outside,
}

/// The thread at work.
pub(super) struct Relay {
    master: Arc<OwnedFd>,
    end: oneshot::Receiver<Stopped>,
    stopped: Option<Stopped>,
}

impl Relay {
    /// Starts to carry bytes between standard input and output and the terminal with this master.
    pub(super) fn start(master: OwnedFd) -> io::Result<Relay> {
        fcntl(&master, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
        let master = Arc::new(master);
        let (tell, end) = oneshot::channel();
        let inside = master.clone();
        std::thread::Builder::new().name("relay".into()).spawn(move || {
            let (stdin, stdout) = (io::stdin(), io::stdout());
            // Nobody waits for it once the program ends.
            let _ = tell.send(carry(stdin.as_fd(), stdout.as_fd(), inside.as_fd()));
        })?;
        Ok(Relay { master, end, stopped: None })
    }

    /// Gives the terminal inside the size of the user's.
    pub(super) fn resize(&self) {
        // Without a size it is as it was.
        let _ = copy_terminal_size(io::stdin(), &*self.master);
    }

    /// Waits until nothing is carried any more. Cancel-safe; afterwards it says the same again.
    pub(super) async fn stopped(&mut self) -> Stopped {
        match self.stopped {
            Some(stopped) => stopped,
            // A thread that panicked carries nothing either.
            None => *self.stopped.insert((&mut self.end).await.unwrap_or(Stopped::Outside)),
        }
    }
}

/// A piece on its way.
struct Piece {
    bytes: [u8; PIECE],
    from: usize,
    to: usize,
}

impl Piece {
    fn new() -> Piece {
        Piece { bytes: [0; PIECE], from: 0, to: 0 }
    }

    fn is_empty(&self) -> bool {
        self.from == self.to
    }

    /// Takes the next piece from a descriptor that is ready. Whether it goes on.
    fn take(&mut self, source: BorrowedFd<'_>) -> bool {
        match read(source, &mut self.bytes) {
            Ok(length) => {
                (self.from, self.to) = (0, length);
                length > 0
            }
            Err(Errno::EAGAIN | Errno::EINTR) => true,
            Err(_) => false,
        }
    }

    /// Gives what it can to a descriptor that is ready. Whether it goes on.
    fn give(&mut self, target: BorrowedFd<'_>) -> bool {
        match write(target, &self.bytes[self.from..self.to]) {
            Ok(length) => {
                self.from += length;
                true
            }
            Err(Errno::EAGAIN | Errno::EINTR) => true,
            Err(_) => false,
        }
    }
}

/// Carries until one side is gone. What came from inside before that is shown.
fn carry(keys: BorrowedFd<'_>, screen: BorrowedFd<'_>, inside: BorrowedFd<'_>) -> Stopped {
    let (mut typed, mut shown) = (Piece::new(), Piece::new());
    loop {
        let wanted = [
            (keys, PollFlags::POLLIN, typed.is_empty()),
            (inside, PollFlags::POLLOUT, !typed.is_empty()),
            (inside, PollFlags::POLLIN, shown.is_empty()),
            (screen, PollFlags::POLLOUT, !shown.is_empty()),
        ];
        let [may_take_typed, may_give_typed, may_take_shown, may_give_shown] = wait(wanted);
        if may_give_shown && !shown.give(screen) {
            return Stopped::Outside;
        }
        if may_take_shown && !shown.take(inside) {
            return Stopped::Inside;
        }
        if may_give_typed && !typed.give(inside) {
            // Its end is seen where it is read, after all that it wrote.
            typed = Piece::new();
        }
        if may_take_typed && !typed.take(keys) {
            return Stopped::Outside;
        }
    }
}

/// Waits until one of those that are wanted is ready. A descriptor at its end is ready for everything, so one from which
/// nothing is wanted is not waited for.
fn wait<const N: usize>(wanted: [(BorrowedFd<'_>, PollFlags, bool); N]) -> [bool; N] {
    let mut fds: Vec<PollFd<'_>> =
        wanted.iter().filter(|(.., on)| *on).map(|(fd, flags, _)| PollFd::new(*fd, *flags)).collect();
    if poll(&mut fds, PollTimeout::NONE).is_err() {
        return [false; N];
    }
    let mut answers = fds.iter().map(|fd| fd.any() == Some(true));
    wanted.map(|(.., on)| on && answers.next() == Some(true))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
    use std::fs::File;
    use std::io::{Read as _, Write as _};
    use std::thread::JoinHandle;

    fn pair() -> (File, OwnedFd) {
        let (a, b) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty()).unwrap();
        (a.into(), b)
    }

    /// The other ends of keys, screen and inside, and the thread.
    fn start() -> (File, File, File, JoinHandle<Stopped>) {
        let ((keys, a), (screen, b), (inside, c)) = (pair(), pair(), pair());
        fcntl(&c, FcntlArg::F_SETFL(OFlag::O_NONBLOCK)).unwrap();
        let thread = std::thread::spawn(move || carry(a.as_fd(), b.as_fd(), c.as_fd()));
        (keys, screen, inside, thread)
    }

    #[test]
    fn more_than_a_piece_goes_through_both_ways_whole() {
        let (mut keys, mut screen, inside, thread) = start();
        let sent: Vec<u8> = (0..50_000u32).map(|n| (n % 251) as u8).collect();
        let echoed = sent.clone();
        let mut echo = inside.try_clone().unwrap();
        let echo = std::thread::spawn(move || {
            let mut heard = vec![0; echoed.len()];
            echo.read_exact(&mut heard).unwrap();
            echo.write_all(&heard).unwrap();
            heard == echoed
        });
        let typed = sent.clone();
        let typing = std::thread::spawn(move || {
            keys.write_all(&typed).unwrap();
            keys
        });
        let mut seen = vec![0; sent.len()];
        screen.read_exact(&mut seen).unwrap();
        assert!(echo.join().unwrap() && seen == sent);
        let keys = typing.join().unwrap();
        drop(inside);
        assert_eq!(thread.join().unwrap(), Stopped::Inside);
        drop(keys);
    }

    #[test]
    fn the_last_output_is_shown_and_a_terminal_that_is_gone_is_told() {
        let (keys, mut screen, mut inside, thread) = start();
        inside.write_all(b"bye").unwrap();
        drop(inside);
        assert_eq!(thread.join().unwrap(), Stopped::Inside);
        let mut seen = String::new();
        screen.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "bye");
        drop(keys);

        let (keys, screen, inside, thread) = start();
        drop(keys);
        assert_eq!(thread.join().unwrap(), Stopped::Outside);
        drop((screen, inside));
    }
}
