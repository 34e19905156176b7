//! Follows a try: its output as it comes, and Ctrl-C on the way to the script.
#![forbid(unsafe_code)]

use std::io;
use std::os::unix::fs::FileExt as _;

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::LocalError;
use super::show::Shown;
use crate::runtime::outgoing::Outgoing;
use crate::sandbox::{Event, Events, RunFolder};
use crate::script::{self, EventScanner};

/// Signals to this process, and where output is shown.
pub struct Watch {
    signals: [Signal; 3],
    shown: Option<[Shown; 2]>,
    interrupted: bool,
}

/// What was seen.
pub struct Seen {
    /// How it ended.
    pub end: Event,
    /// Whether it was asked to end from here.
    pub asked: bool,
    /// Whether whoever read the output went away.
    pub unread: bool,
    /// Standard output.
    pub stdout: Outgoing,
    /// Standard error.
    pub stderr: Outgoing,
    /// What the script asked to be masked.
    pub masks: Vec<String>,
    shown: Option<[Shown; 2]>,
    scanner: EventScanner,
    result_at: u64,
}

impl Watch {
    /// Listens to SIGINT, SIGTERM and SIGHUP from here on. To be called inside a runtime.
    ///
    /// # Errors
    /// Signals cannot be heard.
    pub fn new(show: bool) -> Result<Watch, LocalError> {
        let hear = |kind| signal(kind).map_err(LocalError::Launcher);
        let signals =
            [hear(SignalKind::interrupt())?, hear(SignalKind::terminate())?, hear(SignalKind::hangup())?];
        let shown = show.then(|| [Shown::stdout(), Shown::stderr()]);
        Ok(Watch { signals, shown, interrupted: false })
    }

    /// Whether a signal came already.
    pub fn was_interrupted(&mut self) -> bool {
        use futures_util::FutureExt as _;
        self.interrupted |= next(&mut self.signals).now_or_never().is_some();
        self.interrupted
    }

    /// Follows the script to its end. A first signal lets it end by TERM, another one kills it.
    pub async fn follow(&mut self, folder: &RunFolder, mut events: Events) -> Seen {
        let mut seen = Seen {
            end: Event::KeeperGone,
            asked: false,
            unread: false,
            stdout: Outgoing::new("stdout", folder.stdout_path()),
            stderr: Outgoing::new("stderr", folder.stderr_path()),
            masks: Vec::new(),
            shown: self.shown.take(),
            scanner: EventScanner::new(),
            result_at: 0,
        };
        loop {
            tokio::select! {
                event = events.next() => match event {
                    Ok(Event::Started) => {}
                    Ok(Event::Output) => {
                        seen.listen(folder);
                        if seen.pump().is_err() && !seen.unread {
                            seen.unread = true;
                            seen.ask(folder, true);
                        }
                    }
                    Ok(end) => {
                        seen.end = end;
                        return seen;
                    }
                    Err(error) => {
                        tracing::warn!(%error, "lost sight of the keeper");
                        return seen;
                    }
                },
                () = next(&mut self.signals) => seen.ask(folder, seen.asked),
            }
        }
    }
}

async fn next(signals: &mut [Signal; 3]) {
    let [interrupt, terminate, hangup] = signals;
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
}

impl Seen {
    fn ask(&mut self, folder: &RunFolder, hard: bool) {
        self.asked = true;
        let told = if hard { folder.kill() } else { folder.cancel() };
        if let Err(error) = told {
            tracing::warn!(%error, "could not tell the keeper to end the script");
        }
    }

    /// Takes in the rest of the output and shows it. `masks` is all that the script asked for.
    ///
    /// # Errors
    /// Its output cannot be read.
    pub fn finish(&mut self, masks: &[String]) -> io::Result<()> {
        masks.iter().for_each(|value| self.mask(value));
        self.stdout.take_all()?;
        self.stderr.take_all()?;
        self.unread |= self.show().is_err();
        Ok(())
    }

    fn mask(&mut self, value: &str) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            if let Err(error) = stream.mask(value) {
                tracing::error!(stream = %stream.name, %error, "cannot mask output; what follows is withheld");
            }
        }
        if !self.masks.iter().any(|have| have == value) {
            self.masks.push(value.to_owned());
        }
    }

    /// Hears what the script wants masked, before more output is shown.
    fn listen(&mut self, folder: &RunFolder) {
        let Ok(file) = std::fs::File::open(folder.result_path()) else { return };
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = file.read_at(&mut buffer, self.result_at) {
            self.result_at += length as u64;
            for event in self.scanner.push(&buffer[..length]) {
                if let script::Event::Mask(value) = event {
                    self.mask(&value);
                }
            }
        }
    }

    fn pump(&mut self) -> io::Result<()> {
        if self.shown.is_none() {
            return Ok(());
        }
        loop {
            let more = self.stdout.take_in()? | self.stderr.take_in()?;
            self.show()?;
            if !more {
                return Ok(());
            }
        }
    }

    /// Shows what is ready.
    fn show(&mut self) -> io::Result<()> {
        let Some([out, err]) = &mut self.shown else { return Ok(()) };
        for (stream, shown) in [(&mut self.stdout, out), (&mut self.stderr, err)] {
            while let Some(piece) = stream.next_piece(true)? {
                shown.write(&piece.bytes)?;
                stream.stored(piece.offset + piece.bytes.len() as u64);
            }
        }
        Ok(())
    }
}
