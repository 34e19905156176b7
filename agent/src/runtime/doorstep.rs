//! Dispatches of the direct lane that came before a controller welcomed this agent: an agent that has just started. The
//! direct lane waits for nobody, but a welcome is a matter of moments, so they are kept for it, and judged then. Those for
//! which it comes too late are told so while the controller still listens.
#![forbid(unsafe_code)]

use std::collections::VecDeque;
use std::time::Duration;

use sally_common::id::RunId;
use sally_common::wire::command::Dispatch;
use tokio::time::Instant;

use super::intake::CheckedOrder;

/// How long one is kept. A controller gives up a direct dispatch without a sign of life after five seconds.
pub const PATIENCE: Duration = Duration::from_secs(3);
/// Dispatches kept: each has up to 16 KiB.
const MOST: usize = 32;

/// A dispatch, and its order if it came along.
pub type Visitor = (Dispatch, Option<CheckedOrder>);

/// See the module.
#[derive(Default)]
pub struct Doorstep {
    waiting: VecDeque<(Instant, Visitor)>,
}

impl Doorstep {
    /// Keeps a dispatch, in place of what was kept of its run. Gives it back when there is no room.
    pub fn keep(&mut self, visitor: Visitor, now: Instant) -> Result<(), Box<Visitor>> {
        self.forget(&visitor.0.run);
        if self.waiting.len() >= MOST {
            return Err(Box::new(visitor));
        }
        self.waiting.push_back((now, visitor));
        Ok(())
    }

    /// All that is kept, the oldest first.
    pub fn take_all(&mut self) -> Vec<Visitor> {
        self.waiting.drain(..).map(|(_, visitor)| visitor).collect()
    }

    /// What has waited for too long.
    pub fn overdue(&mut self, now: Instant) -> Vec<Visitor> {
        let count =
            self.waiting.iter().take_while(|(since, _)| now.duration_since(*since) >= PATIENCE).count();
        self.waiting.drain(..count).map(|(_, visitor)| visitor).collect()
    }

    /// Lets go of a run that will not be taken.
    pub fn forget(&mut self, run: &RunId) {
        self.waiting.retain(|(_, (kept, _))| kept.run != *run);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::delivery::admit::tests::dispatch;
    use sally_common::id::JobId;

    fn visitor(run: u32) -> Visitor {
        let job: JobId = "01kc5qxyz0abcdefghjkmnpqrs".parse().expect("an id");
        (Dispatch { run: job.run(run), ..dispatch() }, None)
    }

    fn runs(all: &[Visitor]) -> Vec<String> {
        all.iter().map(|(d, _)| d.run.to_string().rsplit('-').next().unwrap_or_default().to_owned()).collect()
    }

    #[test]
    fn they_wait_for_the_welcome_in_their_order() {
        let (mut doorstep, now) = (Doorstep::default(), Instant::now());
        for run in [3, 1, 2, 1] {
            assert!(doorstep.keep(visitor(run), now).is_ok());
        }
        doorstep.forget(&visitor(3).0.run);
        assert_eq!(runs(&doorstep.take_all()), ["2", "1"], "said again, it is the newest");
        assert!(doorstep.take_all().is_empty());
    }

    #[test]
    fn nobody_waits_for_long_and_not_many_do() {
        let (mut doorstep, now) = (Doorstep::default(), Instant::now());
        assert!(doorstep.keep(visitor(1), now).is_ok());
        assert!(doorstep.keep(visitor(2), now + PATIENCE / 2).is_ok());
        assert!(doorstep.overdue(now + PATIENCE / 2).is_empty());
        assert_eq!(runs(&doorstep.overdue(now + PATIENCE)), ["1"]);
        assert_eq!(runs(&doorstep.overdue(now + PATIENCE * 2)), ["2"]);
        for run in 0..MOST as u32 {
            assert!(doorstep.keep(visitor(run), now).is_ok());
        }
        assert!(doorstep.keep(visitor(0), now).is_ok(), "the same run takes its own place");
        let back = doorstep.keep(visitor(99), now).expect_err("there is no room");
        assert_eq!(back.0.run, visitor(99).0.run);
    }
}
