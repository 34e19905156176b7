//! The user's terminal while a shell is open in it: every key goes through, none means anything here.
#![forbid(unsafe_code)]

use std::io;
use std::os::fd::AsFd;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{FlushArg, SetArg, Termios, cfmakeraw, tcflush, tcgetattr, tcsetattr};
use nix::unistd::{getpgrp, tcgetpgrp};

use crate::sandbox::copy_terminal_size;

/// A terminal that is raw. Dropped, also by a panic, it is what it was before.
pub(super) struct Raw<F: AsFd> {
    user: F,
    before: Termios,
}

impl<F: AsFd> Raw<F> {
    /// Gives the settings and the size of the user's terminal to the one inside, and makes the user's raw.
    pub(super) fn enter(user: F, inside: impl AsFd) -> io::Result<Raw<F>> {
        let before = tcgetattr(&user)?;
        tcsetattr(&inside, SetArg::TCSANOW, &before)?;
        copy_terminal_size(&user, &inside)?;
        let mut raw = before.clone();
        cfmakeraw(&mut raw);
        tcsetattr(&user, SetArg::TCSANOW, &raw)?;
        Ok(Raw { user, before })
    }
}

impl<F: AsFd> Drop for Raw<F> {
    fn drop(&mut self) {
        let user = &self.user;
        // In the background it is another program's, set as that one wants it.
        if tcgetpgrp(user).is_ok_and(|group| group != getpgrp()) {
            return;
        }
        // In case that changes just now: a stopped process would restore nothing.
        let mut mask = SigSet::empty();
        mask.add(Signal::SIGTTOU);
        let _ = mask.thread_block();
        // What was typed for the shell inside, or answered by the terminal to a program inside, is for nobody outside.
        let _ = tcflush(user, FlushArg::TCIFLUSH);
        let _ = tcsetattr(user, SetArg::TCSANOW, &self.before);
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
    use super::*;
    use nix::pty::{Winsize, openpty};
    use nix::sys::termios::LocalFlags;

    #[test]
    fn it_is_raw_while_it_is_held_and_as_it_was_after_a_panic() {
        let size = Winsize { ws_row: 30, ws_col: 90, ws_xpixel: 0, ws_ypixel: 0 };
        let (user, inside) = (openpty(&size, None).unwrap(), openpty(None, None).unwrap());
        let mut before = tcgetattr(&user.slave).unwrap();
        before.local_flags.remove(LocalFlags::ECHOCTL);
        tcsetattr(&user.slave, SetArg::TCSANOW, &before).unwrap();
        let panicked = std::panic::catch_unwind(|| {
            let _raw = Raw::enter(&user.slave, &inside.master).unwrap();
            let now = tcgetattr(&user.slave).unwrap();
            assert!(!now.local_flags.intersects(LocalFlags::ECHO | LocalFlags::ICANON | LocalFlags::ISIG));
            panic!("on purpose");
        });
        let words = *panicked.unwrap_err().downcast::<&str>().unwrap();
        assert_eq!(words, "on purpose");
        assert!(tcgetattr(&user.slave).unwrap() == before);
        assert!(tcgetattr(&inside.slave).unwrap() == before, "the one inside has the user's settings");
    }
}
