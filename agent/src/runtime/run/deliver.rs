//! A result on its way: into the spool, out, and again until the controller's receipt.
#![forbid(unsafe_code)]

use std::time::Duration;

use sally_common::id::Digest;
use sally_common::subject::Channel;
use sally_common::wire::report::ResultMessage;
use sally_common::wire::{self, Kind};

use super::files::{RESULT_JSON, remove_dir};
use super::{Milestone, Run, Word};
use crate::runtime::outgoing::{self, Outgoing};

/// First and longest wait for a receipt before a result or a piece is sent again.
pub(super) const RESEND_FIRST: Duration = Duration::from_secs(2);
pub(super) const RESEND_MAX: Duration = Duration::from_secs(30);

impl Run {
    /// Puts the result into the spool and delivers it. The first publication does not wait for the disk: a
    /// result that is known early does no harm, and after a crash the run folder still has everything.
    pub(super) async fn owe(&mut self, body: Vec<u8>, streams: Vec<Outgoing>) {
        sally_common::fail::point("agent.spool.before");
        let streams = self.streams_of(&body, streams);
        let written = self.shared.journal().finished(
            &self.note.run,
            self.note.attempt,
            self.note.expires_ms,
            body.clone(),
        );
        let spool = async {
            match written.wait().await {
                Ok(()) => true,
                Err(error) => {
                    tracing::error!(run = %self.note.run, %error, "cannot spool a result; its run folder keeps it");
                    false
                }
            }
        };
        if streams.is_empty() {
            tokio::join!(spool, self.send_result(&body));
        } else {
            spool.await;
        }
        sally_common::fail::point("agent.spool.after");
        self.tell(Milestone::Finished(self.note.run.clone(), self.note.attempt)).await;
        self.deliver(body, streams).await;
    }

    /// The streams that this result announces without carrying.
    fn streams_of(&self, body: &[u8], open: Vec<Outgoing>) -> Vec<Outgoing> {
        let Ok(message) = wire::read::<ResultMessage>(body) else { return Vec::new() };
        let announced = [("stdout", &message.stdout), ("stderr", &message.stderr)];
        let mut streams: Vec<Outgoing> = open
            .into_iter()
            .filter(|s| announced.iter().any(|(name, end)| *name == s.name && end.inline.is_none()))
            .collect();
        if let Some(end) = &message.result_stream {
            match outgoing::reopen("result", &self.dir().join(RESULT_JSON), end) {
                Ok(stream) => streams.push(stream),
                Err(error) => tracing::warn!(run = %self.note.run, %error, "cannot read its result"),
            }
        }
        streams
    }

    pub(super) fn reopen_streams(&self, body: &[u8]) -> Vec<Outgoing> {
        let Ok(message) = wire::read::<ResultMessage>(body) else { return Vec::new() };
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
        streams
    }

    async fn send_result(&self, body: &[u8]) {
        sally_common::fail::point("agent.result.before-publish");
        let envelope = wire::Envelope::seal_bytes(Kind::Result, &self.shared.config.key, body.to_vec());
        self.shared.publish(Channel::Result, envelope).await;
        sally_common::fail::point("agent.result.after-publish");
    }

    /// Sends streams, then the result, again and again until the controller's receipt.
    pub(super) async fn deliver(&mut self, body: Vec<u8>, mut streams: Vec<Outgoing>) {
        let digest = Digest::of(&body);
        let mut sent_result = streams.is_empty();
        let mut pause = RESEND_FIRST;
        for stream in &mut streams {
            self.send_pieces(stream, true).await;
        }
        loop {
            if !sent_result && streams.iter().all(Outgoing::is_delivered) {
                sent_result = true;
                self.send_result(&body).await;
            }
            tokio::select! {
                word = self.words.recv() => match word {
                    Some(Word::Receipt { digest: theirs }) if theirs == digest => break,
                    Some(Word::Stored { stream, bytes }) => {
                        pause = RESEND_FIRST;
                        let mut all: Vec<&mut Outgoing> = streams.iter_mut().collect();
                        if stored(&mut all, &stream, bytes) {
                            sent_result = false;
                        }
                        for stream in &mut streams {
                            self.send_pieces(stream, true).await;
                        }
                    }
                    Some(Word::Again) => {
                        pause = RESEND_FIRST;
                        self.send_all_again(&body, &mut streams).await;
                    }
                    Some(Word::Receipt { .. } | Word::Cancel { .. }) => {}
                    None => return,
                },
                changed = self.connected.changed() => {
                    if changed.is_err() { return }
                    self.send_all_again(&body, &mut streams).await;
                }
                () = tokio::time::sleep(pause) => {
                    pause = (pause * 2).min(RESEND_MAX);
                    self.send_all_again(&body, &mut streams).await;
                }
            }
        }
        sally_common::fail::point("agent.receipt.before-journal");
        let done = self.shared.journal().receipted(&self.note.run, self.note.attempt, self.note.expires_ms);
        // The receipt is remembered before the folder goes; if the note is lost, the controller receipts again.
        let _ = done.wait().await;
        sally_common::fail::point("agent.receipt.after-journal");
        if self.reusable {
            self.shared.put_aside(&self.dir());
        } else {
            remove_dir(&self.dir());
        }
        sally_common::fail::point("agent.receipt.after-folder");
        self.tell(Milestone::Receipted(self.note.run.clone(), self.note.attempt)).await;
    }

    async fn send_all_again(&self, body: &[u8], streams: &mut [Outgoing]) {
        for stream in streams.iter_mut() {
            stream.rewind();
            self.send_pieces(stream, true).await;
        }
        if streams.iter().all(Outgoing::is_delivered) {
            self.send_result(body).await;
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
