//! Whose turn it is: work that was left behind goes before work that comes by.
//!
//! The controller decides the order: its answer to a question brings the first of what waits, each dispatch with the
//! question's nonce. Live dispatches overtake them on the way. So an agent that knows, or cannot know whether, something
//! waits takes only what answers a question of its own, until an answer says that nothing waits any more.
#![forbid(unsafe_code)]

use std::collections::VecDeque;

use sally_common::id::Nonce;

/// Questions whose answers are still taken: on a slow link one is asked again before its answer is there.
pub const QUESTIONS: usize = 8;

/// Answers that brought nothing marked although something waits, in a row, after which the controller is one that
/// marks nothing.
const BARE_ANSWERS: u8 = 2;

/// What is known of work that was left behind.
#[derive(Debug)]
pub struct Turn {
    behind: bool,
    /// Something was left since the last question.
    left: bool,
    questions: VecDeque<Nonce>,
    /// Something marked came since the last question.
    marked: bool,
    bare: u8,
}

impl Default for Turn {
    fn default() -> Self {
        Self::new()
    }
}

impl Turn {
    /// Nothing is known: something may wait.
    pub fn new() -> Self {
        Turn { behind: true, left: false, questions: VecDeque::new(), marked: false, bare: 0 }
    }

    /// Something may wait that was not heard of: the connection was away.
    pub fn doubt(&mut self) {
        self.behind = true;
        self.left = true;
    }

    /// A dispatch was left behind.
    pub fn leave(&mut self) {
        self.behind = true;
        self.left = true;
    }

    /// A question is asked.
    pub fn ask(&mut self, nonce: Nonce) {
        if self.questions.len() == QUESTIONS {
            self.questions.pop_front();
        }
        self.questions.push_back(nonce);
        (self.left, self.marked) = (false, false);
    }

    /// A question is answered: so much waits beyond what came with the answer. `credit` is what was asked for.
    /// Returns whether there is more to ask for.
    pub fn answer(&mut self, waiting: u64, credit: u32) -> bool {
        let waits = waiting > 0 || self.left;
        if self.marked || !waits {
            self.bare = 0;
        } else if credit > 0 {
            self.bare = self.bare.saturating_add(1);
        }
        self.behind = waits;
        waits
    }

    /// Whether a dispatch may be taken now. `answers` is the question that it says it answers.
    pub fn allows(&mut self, answers: Option<Nonce>) -> bool {
        if answers.is_some() {
            self.bare = 0;
        }
        let mine = answers.is_some_and(|nonce| self.questions.contains(&nonce));
        self.marked |= mine;
        mine || !self.behind || self.bare >= BARE_ANSWERS
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An agent that has heard that nothing waits.
    fn idle() -> Turn {
        let mut turn = Turn::new();
        turn.ask(Nonce::generate());
        assert!(!turn.answer(0, 4));
        turn
    }

    #[test]
    fn after_boot_nothing_goes_ahead_of_what_may_wait() {
        let mut turn = Turn::new();
        assert!(!turn.allows(None));
        let nonce = Nonce::generate();
        turn.ask(nonce);
        assert!(!turn.allows(None));
        assert!(turn.allows(Some(nonce)));
        assert!(!turn.allows(Some(Nonce::generate())), "somebody else's question");
    }

    #[test]
    fn live_work_is_taken_at_once_when_nothing_waits() {
        assert!(idle().allows(None));
    }

    #[test]
    fn a_question_out_of_mere_suspicion_holds_nothing_up() {
        let mut turn = idle();
        turn.ask(Nonce::generate());
        assert!(turn.allows(None));
    }

    #[test]
    fn what_was_left_goes_first() {
        let mut turn = idle();
        turn.leave();
        assert!(!turn.allows(None));
        let nonce = Nonce::generate();
        turn.ask(nonce);
        assert!(!turn.allows(None) && turn.allows(Some(nonce)));
        assert!(turn.answer(3, 1), "three more wait");
        assert!(!turn.allows(None));
        let nonce = Nonce::generate();
        turn.ask(nonce);
        assert!(turn.allows(Some(nonce)));
        assert!(!turn.answer(0, 1));
        assert!(turn.allows(None));
    }

    #[test]
    fn what_was_left_while_the_answer_was_on_its_way_is_asked_for() {
        let mut turn = idle();
        turn.leave();
        let nonce = Nonce::generate();
        turn.ask(nonce);
        assert!(turn.allows(Some(nonce)));
        turn.leave();
        assert!(turn.answer(0, 4), "the answer may be older than what was left");
        assert!(!turn.allows(None));
    }

    #[test]
    fn an_answer_that_comes_after_the_next_question_still_counts() {
        let mut turn = Turn::new();
        let (first, second) = (Nonce::generate(), Nonce::generate());
        turn.ask(first);
        turn.ask(second);
        assert!(turn.allows(Some(first)) && turn.allows(Some(second)));
        for _ in 0..QUESTIONS {
            turn.ask(Nonce::generate());
        }
        assert!(!turn.allows(Some(first)), "not for ever");
    }

    #[test]
    fn a_new_connection_is_a_doubt() {
        let mut turn = idle();
        turn.doubt();
        assert!(!turn.allows(None));
        turn.ask(Nonce::generate());
        assert!(!turn.answer(0, 4));
        assert!(turn.allows(None));
    }

    #[test]
    fn a_controller_that_marks_nothing_stalls_nobody() {
        let mut turn = Turn::new();
        for _ in 0..BARE_ANSWERS {
            turn.ask(Nonce::generate());
            assert!(!turn.allows(None));
            turn.leave();
            turn.answer(2, 4);
        }
        assert!(turn.allows(None));
        // Until one marks.
        let nonce = Nonce::generate();
        turn.ask(nonce);
        assert!(turn.allows(Some(nonce)));
        turn.answer(2, 4);
        assert!(!turn.allows(None));
    }

    #[test]
    fn a_question_without_credit_brings_nothing_and_proves_nothing() {
        let mut turn = Turn::new();
        for _ in 0..5 {
            turn.ask(Nonce::generate());
            assert!(turn.answer(2, 0));
        }
        assert!(!turn.allows(None));
    }
}
