//! `sally-agent sandbox shell` by the real program under a real terminal, as root and as an ordinary user.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod host;
mod place;

use host::{Host, in_both, plan, tree};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{Signal, kill};
use nix::sys::termios::{Termios, tcgetattr};
use nix::unistd::{Pid, geteuid, ttyname};
use place::{LIMIT, NOBODY, Place, until};
use sally_agent::sandbox::{Mode, Plan, Profile, RunInputs, SandboxError};
use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt as _;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Instant;

const SIZE: Winsize = Winsize { ws_row: 30, ws_col: 90, ws_xpixel: 0, ws_ypixel: 0 };

/// A user in front of a terminal, in which the program runs.
struct User {
    /// The keyboard and the screen; `None` once they are gone.
    desk: Option<File>,
    /// The terminal as programs have it.
    line: OwnedFd,
    child: Child,
    before: Termios,
    screen: String,
    /// Up to where the screen was read.
    read: usize,
}

impl User {
    /// Opens a shell in a session of its own, whose terminal is this one.
    fn open(place: &Place, args: &[&str]) -> User {
        let pty = openpty(&SIZE, None).unwrap();
        for fd in [&pty.master, &pty.slave] {
            fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        let end = || Stdio::from(pty.slave.try_clone().unwrap());
        let mut command = place.command_by(&["setsid", "--ctty"], &[&["sandbox", "shell"], args].concat());
        command.stdin(end()).stdout(end()).stderr(end()).env("TERM", "vt220");
        let (before, child) = (tcgetattr(&pty.slave).unwrap(), command.spawn().unwrap());
        let desk = Some(File::from(pty.master));
        User { desk, line: pty.slave, child, before, screen: String::new(), read: 0 }
    }

    /// The same, and waits for its first prompt.
    fn at_prompt(place: &Place, args: &[&str]) -> User {
        let mut user = User::open(place, args);
        user.sees(&format!("[{}]", args[0]));
        user
    }

    fn types(&mut self, text: &str) {
        self.desk.as_mut().unwrap().write_all(text.as_bytes()).unwrap();
    }

    /// Waits until the screen shows a text, after all that was waited for before. What is typed is on the screen too, so
    /// the text should be another one.
    #[track_caller]
    fn sees(&mut self, text: &str) {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(at) = self.screen[self.read..].find(text) {
                self.read += at + text.len();
                return;
            }
            assert!(Instant::now() < end && self.look(), "no {text:?} in {:?}", &self.screen[self.read..]);
        }
    }

    /// Takes what comes next; false after a long time in which nothing came.
    fn look(&mut self) -> bool {
        let Some(desk) = &mut self.desk else { return false };
        let mut fds = [PollFd::new(desk.as_fd(), PollFlags::POLLIN)];
        if poll(&mut fds, PollTimeout::try_from(LIMIT).unwrap()).unwrap() == 0 {
            return false;
        }
        let mut bytes = [0; 4096];
        let length = desk.read(&mut bytes).unwrap();
        self.screen.push_str(&String::from_utf8_lossy(&bytes[..length]));
        length > 0
    }

    /// Waits until the program has ended, reading all the while.
    #[track_caller]
    fn end(&mut self) -> ExitStatus {
        let end = Instant::now() + LIMIT;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "it goes on: {:?}", self.screen);
            let desk = self.desk.as_ref().map(|desk| PollFd::new(desk.as_fd(), PollFlags::POLLIN));
            let mut fds: Vec<_> = desk.into_iter().collect();
            if poll(&mut fds, PollTimeout::from(10u8)).unwrap() > 0 {
                self.look();
            }
        }
    }

    /// Waits for an end with this exit code, after which the terminal is what it was and nothing is left.
    #[track_caller]
    fn ends_with(&mut self, code: i32, place: &Place) {
        assert_eq!(self.end().code(), Some(code), "{}", self.screen);
        assert!(tcgetattr(&self.line).unwrap() == self.before, "the terminal is as it was");
        place.nothing_is_left();
    }
}

impl Drop for User {
    fn drop(&mut self) {
        // After a test that failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn what_is_typed_is_done_inside_and_the_end_is_that_of_the_shell() {
    for place in Place::all() {
        let mut user = User::at_prompt(&place, &["strict"]);
        user.types("echo uid=$(id -u). pid=$$. $TERM. $(tty). $SALLY_AGENT.\n");
        user.sees("uid=");
        user.sees(". pid=");
        user.sees(". vt220. /dev/pts/0. local.");
        let uid = user.screen.rsplit_once("uid=").unwrap().1.split_once('.').unwrap().0.to_owned();
        if place.as_user && geteuid().is_root() {
            assert_eq!(uid, NOBODY.to_string());
        } else {
            assert_ne!(uid, "0");
        }
        user.types("ls /etc/shadow; echo code=$?.\n");
        user.sees("cannot access '/etc/shadow'");
        user.sees("code=2.");
        // Each by another way to the same terminal.
        for way in ["/dev/tty", "/dev/stderr", "$(tty)"] {
            user.types(&format!("echo by$((40+2)) >{way}\n"));
            user.sees("by42");
        }
        user.types("jobs; set -o | grep -c 'monitor.*on'; echo n=$?.\n");
        user.sees("n=0.");
        user.types("exit 7\n");
        user.ends_with(7, &place);
    }
}

#[test]
fn ctrl_c_and_ctrl_z_are_for_what_runs_inside() {
    for place in Place::all() {
        let mut user = User::at_prompt(&place, &["strict"]);
        user.types("sh -c 'echo start$((1))ed; exec sleep 600'\n");
        user.sees("start1ed");
        user.types("\x03");
        user.sees("[strict]");
        user.types("echo ended=$?.\n");
        user.sees("ended=130.");
        user.types("sh -c 'echo start$((2))ed; exec sleep 600'\n");
        user.sees("start2ed");
        user.types("\x1a");
        user.sees("Stopped");
        user.types("kill -KILL %1; disown -a; echo still$((40+2))\n");
        user.sees("still42");
        // Its meaning is the shell's from the prompt on; before that it is the terminal's, and is lost.
        user.sees("[strict]");
        user.types("\x04");
        user.ends_with(0, &place);
    }
}

#[test]
fn the_size_of_the_window_is_seen_and_its_changes_too() {
    for place in Place::all() {
        let mut user = User::at_prompt(&place, &["strict"]);
        user.types("echo size=$(stty size).\n");
        user.sees("size=30 90.");
        let line = Stdio::from(user.line.try_clone().unwrap());
        assert!(
            Command::new("stty").args(["rows", "41", "cols", "111"]).stdin(line).status().unwrap().success()
        );
        user.types("until [ \"$(stty size)\" = '41 111' ]; do sleep 0.02; done; echo chang$((1))d\n");
        user.sees("chang1d");
        user.types("exit\n");
        user.ends_with(0, &place);
    }
}

#[test]
fn at_the_time_limit_it_ends_with_all_that_runs_in_it() {
    for place in Place::all() {
        let mut user = User::at_prompt(&place, &["strict", "--timeout", "1500ms"]);
        user.types("setsid sleep 600 & sleep 600\n");
        user.ends_with(124, &place);
        assert!(user.screen.contains("time limit"), "{}", user.screen);
        // One that does not want to end.
        let limits = ["strict", "--timeout", "1500ms", "--grace", "200ms"];
        let mut user = User::at_prompt(&place, &limits);
        user.types("trap '' HUP TERM\n");
        user.ends_with(124, &place);
    }
}

#[test]
fn a_signal_ends_it_and_the_terminal_is_as_it_was() {
    for place in Place::all() {
        for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGUSR1] {
            let mut user = User::at_prompt(&place, &["strict"]);
            assert!(tcgetattr(&user.line).unwrap() != user.before, "raw while it is open");
            user.types("sh -c 'echo start$((1))ed; exec sleep 600'\n");
            user.sees("start1ed");
            kill(Pid::from_raw(user.child.id() as i32), signal).unwrap();
            user.ends_with(128 + signal as i32, &place);
        }
    }
}

#[test]
fn a_terminal_that_goes_away_takes_the_shell_with_it() {
    for place in Place::all() {
        let mut user = User::at_prompt(&place, &["strict"]);
        user.desk = None;
        let status = user.end();
        assert_eq!(status.code(), Some(128 + Signal::SIGHUP as i32), "{status}");
        place.nothing_is_left();
    }
}

#[test]
fn killed_it_leaves_no_process() {
    for place in Place::all() {
        let mut user = User::at_prompt(&place, &["strict"]);
        assert!(!place.processes().is_empty(), "its launcher names the folder");
        user.child.kill().unwrap();
        user.child.wait().unwrap();
        until("its launcher and all below are gone", || place.processes().is_empty());
    }
}

#[test]
fn nobody_below_has_the_users_terminal() {
    for place in Place::all() {
        for profile in ["strict", "host"] {
            let mut user = User::open(&place, &[profile, "--shell", "sh"]);
            user.types("echo read$((0))\n");
            user.sees("read0");
            let terminal = fs::metadata(ttyname(&user.line).unwrap()).unwrap();
            let mut looked = 0;
            for pid in tree(user.child.id() as i32).into_iter().skip(1) {
                for entry in fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten() {
                    let Ok(file) = fs::metadata(entry.path()) else { continue };
                    looked += 1;
                    let same = (file.dev(), file.ino()) == (terminal.dev(), terminal.ino());
                    assert!(!same, "process {pid} has it as {:?}", entry.file_name());
                }
            }
            assert!(looked > 10, "launcher, keeper, init and shell have descriptors");
            user.types("exit\n");
            user.ends_with(0, &place);
        }
    }
}

#[test]
fn typing_into_the_terminal_is_refused_inside() {
    for place in Place::all() {
        let mut user = User::at_prompt(&place, &["strict"]);
        for (name, number) in [("TIOCSTI", "0x5412"), ("TIOCLINUX", "0x541c"), ("TIOCSETD", "0x5423")] {
            let call = format!(
                "perl -e 'my $c = \"x\"; print ioctl(STDIN, {number}, $c) ? \"done\" : \"no: $!\", \".\\n\"'"
            );
            user.types(&format!("{call}\n"));
            user.sees("no: Operation not permitted.");
            user.types(&format!("echo {name} was trie$((0))\n"));
            user.sees("was trie0");
        }
        user.types("exit\n");
        user.ends_with(0, &place);
    }
}

#[test]
fn no_further_terminal_can_be_made_inside() {
    for place in Place::all() {
        for (profile, ways) in [("strict", &["/dev/pts/ptmx"][..]), ("host", &["/dev/pts/ptmx", "/dev/ptmx"])]
        {
            let mut user = User::open(&place, &[profile, "--shell", "sh"]);
            for way in ways {
                user.types(&format!("(exec 9<>{way}) || echo refus$((0))d\n"));
                user.sees("refus0d");
            }
            // The mount is read-only: its owner cannot open it up.
            user.types("chmod 666 /dev/pts/ptmx || echo clos$((0))d\n");
            user.sees("clos0d");
            user.types("exit\n");
            user.ends_with(0, &place);
        }
    }
}

#[test]
fn an_operators_profile_and_limits_hold_as_for_a_script() {
    for place in Place::all() {
        fs::create_dir(place.dir.path().join("profiles.d")).unwrap();
        place.file("profiles.d/looking.toml", "base = \"strict\"\n[limits]\nopen_files = 77\n");
        let folder = place.dir.path().join("profiles.d").to_string_lossy().into_owned();
        let args =
            ["looking", "--profiles-dir", &folder, "--env", "COLOUR=red", "--limit", "file_bytes=8192"];
        if place.as_user && geteuid().is_root() {
            // Only files of root or of the launcher's own account are read, and these are root's.
            assert!(fs::metadata(&folder).unwrap().uid() == 0);
        }
        let mut user = User::at_prompt(&place, &args);
        user.types("echo files=$(ulimit -n). size=$(ulimit -f). $COLOUR.\n");
        user.sees("files=77. size=8. red.");
        user.types("exit\n");
        user.ends_with(0, &place);
    }
}

#[test]
fn without_a_terminal_it_says_what_to_use() {
    let place = Place::new(!geteuid().is_root());
    let output = place.run(&["sandbox", "shell", "strict"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("sally-agent test FILE"));
    place.nothing_is_left();
}

#[test]
fn what_cannot_be_opened_says_why_with_the_terminal_as_it_was() {
    for place in Place::all() {
        let mut user = User::open(&place, &["strict", "--shell", "no-such-shell"]);
        user.sees("no-such-shell does not exist in the sandbox");
        user.ends_with(1, &place);
        let mut user = User::open(&place, &["nowhere"]);
        user.sees("nowhere");
        user.ends_with(2, &place);
        let config = place.file(
            "agent.toml",
            "name = \"web-1\"\nzone = \"dmz\"\nurl = \"nats://x\"\ncreds = \"none\"\nkey = \"none\"\n\
             trust = \"none\"\nstate_dir = \"none\"\n",
        );
        let mut user = User::open(&place, &["net", "--config", &config]);
        user.sees("only strict");
        user.ends_with(6, &place);
    }
}

#[test]
fn the_launcher_of_an_agent_gives_no_terminal() {
    in_both(async |mode: Mode| {
        let host = Host::start(mode, &["--max-profile", "host"]).await;
        for profile in Profile::ALL {
            let plan = Plan { terminal: true, profile, ..plan("true") };
            match host.begin(0, &plan, RunInputs::default()).await {
                Err(SandboxError::Refused(message)) => assert!(message.contains("no terminals"), "{message}"),
                other => panic!("{profile}: {:?}", other.map(|_| "accepted").map_err(|e| e.to_string())),
            }
        }
        assert_eq!(host.sh("tty || true").await.ok(), "not a tty\n");
    });
}
