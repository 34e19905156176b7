//! A result on its way: into the spool, out, and again until the controller's receipt.
#![forbid(unsafe_code)]

use std::time::Duration;

use sally_common::clock::now_ms;
use sally_common::id::Digest;
use sally_common::limit::STREAM_WINDOW;
use sally_common::subject::Channel;
use sally_common::wire::report::{ResultMessage, StreamEnd};
use sally_common::wire::{self, Kind};

use super::files::{RESULT_JSON, remove_dir};
use super::{Milestone, Run, Word};
use crate::delivery::memory::Ended;
use crate::runtime::outgoing::{self, Outgoing};

/// First and longest wait for a receipt before a result or a piece is sent again.
pub(super) const RESEND_FIRST: Duration = Duration::from_secs(2);
pub(super) const RESEND_MAX: Duration = Duration::from_secs(30);

/// A result without a receipt.
pub(super) struct Owed {
    body: Vec<u8>,
    ended: Option<Ended>,
    /// Output that did not ride in it.
    streams: Vec<Outgoing>,
    /// Whether it is in the journal's spool. If not, run folder and memory keep it.
    spooled: bool,
}

impl Owed {
    fn new(body: Vec<u8>, message: Option<&ResultMessage>, streams: Vec<Outgoing>) -> Self {
        let ended = message.map(|message| Ended::of(message, &body));
        Owed { body, ended, streams, spooled: false }
    }

    fn bytes(&self) -> u64 {
        self.body.len() as u64 + self.streams.iter().map(Outgoing::ready).sum::<u64>()
    }
}

impl Run {
    /// Puts the result into the spool and delivers it. The first publication does not wait for the disk: a
    /// result that is known early does no harm, and after a crash the run folder still has everything.
    pub(super) async fn owe(&mut self, body: Vec<u8>, open: Vec<Outgoing>) {
        sally_common::fail::point("agent.spool.before");
        let message = wire::read::<ResultMessage>(&body).ok();
        let streams = message.as_ref().map_or_else(Vec::new, |m| self.streams_of(m, open));
        self.make_lasting(&streams).await;
        let mut owed = Owed::new(body, message.as_ref(), streams);
        let spool = self.spool(&owed.body);
        if owed.streams.is_empty() {
            (owed.spooled, ()) = tokio::join!(spool, self.send_result(&owed.body));
        } else {
            owed.spooled = spool.await;
        }
        sally_common::fail::point("agent.spool.after");
        self.deliver(owed).await;
    }

    async fn spool(&self, body: &[u8]) -> bool {
        let note = &self.note;
        let written = self.shared.journal().finished(&note.run, note.attempt, note.expires_ms, body.to_vec());
        match written.wait().await {
            Ok(()) => true,
            Err(error) => {
                tracing::error!(run = %note.run, %error, "cannot spool a result; its run folder keeps it");
                false
            }
        }
    }

    /// What a result announces without carrying must outlast a power cut as the result does.
    async fn make_lasting(&self, streams: &[Outgoing]) {
        let files: Result<Vec<_>, _> = streams.iter().map(Outgoing::handle).collect();
        if streams.is_empty() {
            return;
        }
        let dir = self.dir();
        let sync = move || {
            files?.iter().try_for_each(std::fs::File::sync_all)?;
            std::fs::File::open(dir)?.sync_all()
        };
        let synced = tokio::task::spawn_blocking(sync).await.unwrap_or_else(|e| Err(e.into()));
        if let Err(error) = synced {
            tracing::error!(run = %self.note.run, %error, "cannot sync its output: a power cut may lose it");
            self.shared.count_loss("output-unsynced");
        }
    }

    /// The streams that this result announces without carrying.
    fn streams_of(&self, message: &ResultMessage, open: Vec<Outgoing>) -> Vec<Outgoing> {
        let is_inside = |end: &StreamEnd| end.inline.is_some();
        let mut streams: Vec<Outgoing> = open
            .into_iter()
            .filter(|s| match s.name.as_ref() {
                "stdout" => !is_inside(&message.stdout),
                "stderr" => !is_inside(&message.stderr),
                file => message.artifacts.iter().any(|a| a.stream.as_deref() == Some(file)),
            })
            .collect();
        if let Some(end) = &message.result_stream {
            match outgoing::reopen("result", &self.dir().join(RESULT_JSON), end) {
                Ok(stream) => streams.push(stream),
                Err(error) => tracing::warn!(run = %self.note.run, %error, "cannot read its result"),
            }
        }
        streams
    }

    /// What is owed of a result that another process put into the spool.
    pub(super) fn reopen(&self, body: Vec<u8>) -> Owed {
        let message = wire::read::<ResultMessage>(&body).ok();
        let streams = message.as_ref().map_or_else(Vec::new, |m| self.reopen_streams(m));
        Owed { spooled: true, ..Owed::new(body, message.as_ref(), streams) }
    }

    fn reopen_streams(&self, message: &ResultMessage) -> Vec<Outgoing> {
        let dir = self.dir();
        let all = [
            ("stdout", "stdout", Some(&message.stdout)),
            ("stderr", "stderr", Some(&message.stderr)),
            ("result", RESULT_JSON, message.result_stream.as_ref()),
        ];
        let mut streams = Vec::new();
        for (name, file, end) in all {
            let Some(end) = end.filter(|end| end.inline.is_none()) else { continue };
            match outgoing::reopen(name, &dir.join(file), end) {
                Ok(stream) => streams.push(stream),
                Err(error) => {
                    tracing::warn!(run = %self.note.run, %error, "output that was announced cannot be read");
                    self.shared.count_loss("output-unreadable");
                }
            }
        }
        streams.extend(self.reopen_artifacts(message));
        streams
    }

    /// Sends what the window of all streams together allows: many files must not flood the broker.
    async fn send_streams(&self, streams: &mut [Outgoing]) {
        let mut under_way = 0;
        for stream in streams {
            if under_way >= STREAM_WINDOW {
                return;
            }
            self.send_pieces(stream, true).await;
            under_way += stream.under_way();
        }
    }

    async fn send_result(&self, body: &[u8]) {
        sally_common::fail::point("agent.result.before-publish");
        let envelope = wire::Envelope::seal_bytes(Kind::Result, &self.shared.config.key, body.to_vec());
        self.shared.publish(Channel::Result, envelope).await;
        sally_common::fail::point("agent.result.after-publish");
    }

    /// Sends streams, then the result, again and again until the controller's receipt.
    pub(super) async fn deliver(&mut self, mut owed: Owed) {
        self.tell(Milestone::Finished {
            run: self.note.run.clone(),
            attempt: self.note.attempt,
            bytes: owed.bytes(),
            since_ms: owed.ended.map_or_else(now_ms, |ended| ended.finished_ms),
        })
        .await;
        let digest = Digest::of(&owed.body);
        let mut sent_result = owed.streams.is_empty();
        let mut pause = RESEND_FIRST;
        self.send_streams(&mut owed.streams).await;
        loop {
            if !sent_result && owed.streams.iter().all(Outgoing::is_delivered) {
                sent_result = true;
                self.send_result(&owed.body).await;
            }
            tokio::select! {
                word = self.words.recv() => match word {
                    Some(Word::Receipt { digest: theirs }) if theirs == digest => break,
                    Some(Word::Stored { stream, bytes }) => {
                        pause = RESEND_FIRST;
                        let mut all: Vec<&mut Outgoing> = owed.streams.iter_mut().collect();
                        if stored(&mut all, &stream, bytes) {
                            sent_result = false;
                        }
                        self.send_streams(&mut owed.streams).await;
                    }
                    Some(Word::Again) => {
                        pause = RESEND_FIRST;
                        self.send_all_again(&mut owed).await;
                    }
                    Some(Word::GiveUp) => {
                        tracing::error!(run = %self.note.run, "gave up a result that no controller took for too long");
                        self.shared.count_loss("result-too-old");
                        break;
                    }
                    Some(Word::Receipt { .. } | Word::Cancel { .. } | Word::Yield(_)) => {}
                    None => return,
                },
                changed = self.connected.changed() => {
                    if changed.is_err() { return }
                    self.send_all_again(&mut owed).await;
                }
                () = tokio::time::sleep(pause) => {
                    pause = (pause * 2).min(RESEND_MAX);
                    if !owed.spooled {
                        owed.spooled = self.spool(&owed.body).await;
                    }
                    self.send_all_again(&mut owed).await;
                }
            }
        }
        self.receipted(owed.ended).await;
    }

    async fn receipted(&mut self, ended: Option<Ended>) {
        sally_common::fail::point("agent.receipt.before-journal");
        let done =
            self.shared.journal().receipted(&self.note.run, self.note.attempt, self.note.expires_ms, ended);
        // The receipt is remembered before the folder goes; if the note is lost, the controller receipts again.
        let _ = done.wait().await;
        sally_common::fail::point("agent.receipt.after-journal");
        if self.reusable {
            self.shared.put_aside(&self.dir());
        } else {
            remove_dir(&self.dir());
        }
        sally_common::fail::point("agent.receipt.after-folder");
        self.tell(Milestone::Receipted(self.note.run.clone(), self.note.attempt, ended)).await;
    }

    async fn send_all_again(&self, owed: &mut Owed) {
        owed.streams.iter_mut().for_each(Outgoing::rewind);
        self.send_streams(&mut owed.streams).await;
        if owed.streams.iter().all(Outgoing::is_delivered) {
            self.send_result(&owed.body).await;
        }
    }
}

/// Notes a receipt. Returns whether the controller has less than it said before.
pub(super) fn stored(streams: &mut [&mut Outgoing], name: &str, bytes: u64) -> bool {
    let Some(stream) = streams.iter_mut().find(|s| s.name == name) else { return false };
    let was_delivered = stream.is_delivered();
    stream.stored(bytes);
    if was_delivered && !stream.is_delivered() {
        stream.rewind();
        return true;
    }
    false
}
