//! An attempt under way: its output on the way out, what its script says, and words from the controller.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::time::Duration;

use sally_common::clock::now_ms;
use sally_common::limit::INLINE_OUTPUT_MAX;
use sally_common::wire::report::{LogChunk, News};
use sally_common::wire::{self, VERSION};
use tokio::time::{Instant, sleep_until};

use super::conclude::mask_text;
use super::deliver::{RESEND_FIRST, RESEND_MAX, stored};
use super::files::CANCEL_ASKED;
use super::{Run, Word};
use crate::runtime::outcome;
use crate::runtime::outgoing::Outgoing;
use crate::sandbox::{Event, Events, RunFolder};
use crate::script::{self, EventScanner};

/// A run that ends sooner than this needs no *started* report and no live output: its result says all.
const LIVE_AFTER: Duration = Duration::from_millis(100);

/// An adopted run is said to have started after this, not at once: its last agent may have died on the very
/// way to the word "go", and then its keeper says within moments that it never started.
const ADOPTED_LIVE_AFTER: Duration = Duration::from_secs(1);

/// Small output is gathered this long before it is sent.
const GATHER: Duration = Duration::from_millis(20);

/// An attempt under way.
pub(super) struct Live {
    pub(super) folder: RunFolder,
    pub(super) events: Events,
    pub(super) stdout: Outgoing,
    pub(super) stderr: Outgoing,
    /// Files that the script left behind, once it has ended.
    pub(super) artifacts: Vec<Outgoing>,
    pub(super) scanner: EventScanner,
    pub(super) result_at: u64,
    /// Whether output goes ahead of the result.
    pub(super) streaming: bool,
    /// When the controller is told that it runs, if it was not told.
    pub(super) announce_at: Option<Instant>,
    pub(super) progress: Option<script::Progress>,
    /// Values that the script asked to be masked, and the attempt's secrets.
    pub(super) masks: Vec<String>,
}

impl Live {
    /// An attempt whose program was let go just now.
    pub(super) fn begun(folder: RunFolder, events: Events, masks: &[String]) -> Self {
        Self::new(folder, events, masks, false, LIVE_AFTER)
    }

    /// An attempt that another agent process began.
    pub(super) fn adopted(folder: RunFolder, events: Events, masks: &[String]) -> Self {
        Self::new(folder, events, masks, true, ADOPTED_LIVE_AFTER)
    }

    fn new(
        folder: RunFolder,
        events: Events,
        masks: &[String],
        streaming: bool,
        announce_after: Duration,
    ) -> Self {
        let mut live = Live {
            stdout: Outgoing::new("stdout", folder.stdout_path()),
            stderr: Outgoing::new("stderr", folder.stderr_path()),
            artifacts: Vec::new(),
            folder,
            events,
            scanner: EventScanner::new(),
            result_at: 0,
            streaming,
            announce_at: Some(Instant::now() + announce_after),
            progress: None,
            masks: Vec::new(),
        };
        for value in masks {
            live.mask(value);
        }
        live
    }

    /// Takes a value out of all that leaves from here on.
    pub(super) fn mask(&mut self, value: &str) {
        for stream in [&mut self.stdout, &mut self.stderr] {
            if let Err(error) = stream.mask(value) {
                tracing::error!(stream = %stream.name, %error, "cannot mask output; what follows is withheld");
            }
        }
        if !self.masks.iter().any(|have| have == value) {
            self.masks.push(value.to_owned());
        }
    }

    /// All that may have to be sent beside the result.
    pub(super) fn into_streams(self) -> Vec<Outgoing> {
        [self.stdout, self.stderr].into_iter().chain(self.artifacts).collect()
    }

    /// Lets no more output leave.
    pub(super) fn withhold(&mut self) {
        self.stdout.withhold();
        self.stderr.withhold();
    }
}

impl Run {
    /// Follows the attempt to its end, sending output ahead if there is much or it takes long.
    pub(super) async fn follow(&mut self, live: &mut Live) -> Event {
        let live_at = Instant::now() + LIVE_AFTER;
        let mut gather_until: Option<Instant> = None;
        let mut resend_at: Option<Instant> = None;
        loop {
            let pump_at = gather_until.or(live.announce_at);
            tokio::select! {
                event = live.events.next() => match event {
                    Ok(Event::Started) => {}
                    Ok(Event::Output) => {
                        if gather_until.is_none() && live.streaming {
                            gather_until = Some(Instant::now() + GATHER);
                        }
                        if !live.streaming && output_is_large(&live.folder) {
                            live.streaming = true;
                            gather_until = Some(Instant::now());
                        }
                    }
                    Ok(end) => return end,
                    Err(error) => {
                        tracing::warn!(run = %self.note.run, %error, "lost sight of a keeper");
                        return Event::KeeperGone;
                    }
                },
                () = sleep_until(pump_at.unwrap_or(live_at)), if pump_at.is_some() => {
                    if live.announce_at.take().is_some() {
                        live.streaming = true;
                        self.news(News::Started { started_ms: now_ms() }).await;
                    }
                    gather_until = None;
                    if self.pump(live).await {
                        gather_until = Some(Instant::now());
                    }
                    resend_at = waiting(live).then(|| Instant::now() + RESEND_FIRST);
                }
                () = sleep_until(resend_at.unwrap_or(live_at)), if resend_at.is_some() => {
                    live.stdout.rewind();
                    live.stderr.rewind();
                    self.pump(live).await;
                    resend_at = waiting(live).then(|| Instant::now() + RESEND_MAX);
                }
                word = self.words.recv() => match word {
                    Some(Word::Cancel { hard }) => {
                        // For whoever judges the end, in this process or the next.
                        if let Err(error) = std::fs::write(self.dir().join(CANCEL_ASKED), b"") {
                            tracing::warn!(run = %self.note.run, %error, "cannot note a cancellation");
                        }
                        let told = if hard { live.folder.kill() } else { live.folder.cancel() };
                        if let Err(error) = told {
                            tracing::warn!(run = %self.note.run, %error, "could not tell the keeper to end the run");
                        }
                    }
                    Some(Word::Stored { stream, bytes }) => {
                        stored(&mut [&mut live.stdout, &mut live.stderr], &stream, bytes);
                        if self.pump(live).await {
                            gather_until = Some(Instant::now());
                        }
                        resend_at = waiting(live).then(|| Instant::now() + RESEND_FIRST);
                    }
                    Some(Word::Again) => self.news(News::Started { started_ms: now_ms() }).await,
                    Some(Word::Receipt { .. } | Word::Yield(_) | Word::GiveUp) => {}
                    // The loop is gone: the agent stops, the keeper goes on, the next agent adopts.
                    None => return std::future::pending().await,
                }
            }
        }
    }

    /// Takes in new output and sends what the window allows. Returns whether there may be more at once.
    async fn pump(&mut self, live: &mut Live) -> bool {
        self.listen(live).await;
        let mut more = false;
        for stream in [&mut live.stdout, &mut live.stderr] {
            let taken = stream.take_in();
            match taken {
                Ok(taken) => more |= taken,
                Err(error) => tracing::warn!(run = %self.note.run, %error, "cannot read its output"),
            }
            self.send_pieces(stream, true).await;
        }
        more
    }

    pub(super) async fn send_pieces(&self, stream: &mut Outgoing, flush: bool) {
        loop {
            match stream.next_piece(flush) {
                Ok(Some(piece)) => {
                    let head = LogChunk {
                        v: VERSION,
                        run: self.note.run.clone(),
                        attempt: self.note.attempt,
                        stream: stream.name.to_string(),
                        offset: piece.offset,
                    };
                    self.shared.publish_piece(wire::join_head(&head, &piece.bytes)).await;
                }
                Ok(None) => return,
                Err(error) => {
                    tracing::warn!(run = %self.note.run, %error, "cannot read its output");
                    return;
                }
            }
        }
    }

    /// Reads new events of the script: secrets to mask before more output leaves, and progress.
    async fn listen(&mut self, live: &mut Live) {
        use std::os::unix::fs::FileExt;
        let Ok(file) = std::fs::File::open(live.folder.result_path()) else { return };
        let mut buffer = vec![0; 64 * 1024];
        while let Ok(length @ 1..) = file.read_at(&mut buffer, live.result_at) {
            live.result_at += length as u64;
            for event in live.scanner.push(&buffer[..length]) {
                match event {
                    script::Event::Mask(value) => live.mask(&value),
                    script::Event::Progress(progress) => live.progress = Some(progress),
                    _ => {}
                }
            }
        }
        if live.streaming
            && !self.withheld
            && let Some(said) = live.progress.take()
        {
            let progress = outcome::progress(&said, |text| mask_text(text, &live.masks));
            self.news(News::Progress { progress }).await;
        }
    }
}

fn waiting(live: &Live) -> bool {
    live.stdout.is_waiting() || live.stderr.is_waiting()
}

fn output_is_large(folder: &RunFolder) -> bool {
    let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |m| m.len());
    size(folder.stdout_path()) + size(folder.stderr_path()) > INLINE_OUTPUT_MAX as u64
}
