//! Random walks over every operation, compared with a naive twin that keeps each run's history and counts
//! runs anew each time. `SALLY_SEED=N` replays one walk.

use super::*;
use RunState::*;
use sally_common::wire::command::RunAttempt;
use sally_common::wire::order::Retry;
use sally_common::wire::record::JobState;
use std::collections::BTreeMap;

/// A small random source (xorshift), so that a seed replays.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % below as u64).unwrap()
    }
}

/// A run as the twin sees it, written from the promises and not from the ledger's code.
#[derive(Debug, Clone)]
struct Twin {
    owner: usize,
    expires: i64,
    state: RunState,
    /// Whether an agent, or a cancellation before dispatch, has said the word that stands.
    said: bool,
    attempt: u32,
    incarnation: Option<Incarnation>,
    cancel: bool,
    started: bool,
    /// Attempts in all that its task allows.
    attempts: u32,
    retry_at: Option<i64>,
    /// The attempt before this one, while this one waits or has not started.
    last: Option<Last>,
    /// Whether it is unknown because its agent fell silent.
    silent: bool,
}

/// How an attempt ended that is followed by another one.
#[derive(Debug, Clone)]
struct Last {
    state: RunState,
    said: bool,
    attempt: u32,
    incarnation: Option<Incarnation>,
    started: bool,
}

impl Twin {
    fn open(&self) -> bool {
        [Pending, Dispatched, Running].contains(&self.state)
    }

    fn waits_again(&self) -> bool {
        self.state == Pending && self.last.is_some()
    }

    /// The place of an agent's word on the ladder of promise 4.
    fn worth(state: RunState, started: bool) -> u8 {
        match state {
            Succeeded | Failed | TimedOut => 5,
            Cancelled => {
                if started {
                    5
                } else {
                    3
                }
            }
            Interrupted => 4,
            Rejected | Expired => 3,
            _ => 2,
        }
    }

    fn tell(
        &mut self,
        now: i64,
        who: usize,
        attempt: u32,
        state: RunState,
        started: bool,
        incarnation: Incarnation,
    ) -> &'static str {
        if who != self.owner {
            return "not its";
        }
        if attempt == 0 || attempt < self.attempt {
            return "stale";
        }
        let same = attempt == self.attempt;
        let again = self.last.clone().filter(|_| self.waits_again());
        let was_started = self.started || again.as_ref().is_some_and(|last| last.started);
        let started = started || (same && was_started);
        let has = match &again {
            Some(last) if last.said => Self::worth(last.state, last.started),
            Some(_) => 1,
            None if self.open() => 0,
            // Never sent, so the expiry is no guess.
            None if !self.said && self.attempt == 0 => 3,
            None if !self.said => 1,
            None => Self::worth(self.state, self.started),
        };
        if same && Self::worth(state, started) <= has {
            return "duplicate";
        }
        if state == Expired && self.last.as_ref().is_some_and(|last| attempt > last.attempt) {
            self.fall_back();
            return "committed";
        }
        // Started, and forgotten by its agent.
        let state = if state == Expired && same && self.started { Unknown } else { state };
        let may_follow = again.is_some() || !(self.said || (self.state == Expired && self.attempt == 0));
        *self = Twin { state, said: true, attempt, started, incarnation: Some(incarnation), ..self.clone() };
        self.last = None;
        self.silent = false;
        if may_follow && self.may_follow(now, 1.0) {
            let next = now + i64::try_from(retry(self.attempts).unwrap().pause_ms(attempt, 1.0)).unwrap();
            self.follow(next);
        } else {
            self.retry_at = None;
        }
        "committed"
    }

    /// Whether another attempt follows the state that it has, after a pause of this jitter.
    fn may_follow(&self, now: i64, jitter: f64) -> bool {
        let Some(retry) = retry(self.attempts) else { return false };
        let pause = i64::try_from(retry.pause_ms(self.attempt, jitter)).unwrap();
        let kind = [Failed, Interrupted, Unknown].contains(&self.state);
        kind && self.attempt > 0 && self.attempt < self.attempts && !self.cancel && now + pause < self.expires
    }

    fn follow(&mut self, at: i64) {
        self.last = Some(Last {
            state: self.state,
            said: self.said,
            attempt: self.attempt,
            incarnation: self.incarnation,
            started: self.started,
        });
        self.retry_at = self.retry_at.or(Some(at));
        (self.state, self.said, self.started) = (Pending, false, false);
    }

    fn fall_back(&mut self) {
        let last = self.last.take().unwrap();
        self.retry_at = None;
        (self.state, self.said, self.attempt) = (last.state, last.said, last.attempt);
        (self.incarnation, self.started) = (last.incarnation, last.started);
    }

    /// Takes over what the ledger made of a loss: the jitter of a pause is its own.
    fn lose(&mut self, change: &Change, now: i64) {
        (self.state, self.said) = (Unknown, false);
        self.silent = change.run.reason.as_deref() == Some("silent");
        self.last = None;
        let (least, most) = (self.may_follow(now, 0.0), self.may_follow(now, 1.0));
        match change.run.state {
            Pending => {
                assert!(least, "{self:?}");
                self.follow(change.run.retry_at_ms.unwrap());
            }
            _ => assert!(!most, "{self:?}"),
        }
    }
}

fn retry(attempts: u32) -> Option<Retry> {
    (attempts > 1).then_some(Retry { attempts, on: vec![], backoff_ms: 100, backoff_max_ms: 1_000 })
}

fn word(settled: &Settled) -> &'static str {
    match settled {
        Settled::Committed(_) => "committed",
        Settled::Duplicate { .. } => "duplicate",
        Settled::Stale { .. } => "stale",
        Settled::NotIts => "not its",
        Settled::Unknown => "unknown",
    }
}

struct Walk {
    dice: Dice,
    ledger: Ledger,
    agents: Vec<Who>,
    twins: BTreeMap<RunId, Twin>,
    now: i64,
}

impl Walk {
    fn pick(&mut self) -> Option<RunId> {
        let n = self.twins.len();
        (n > 0).then(|| self.dice.roll(n)).and_then(|i| self.twins.keys().nth(i).cloned())
    }

    fn attempt_near(&mut self, run: &RunId) -> u32 {
        let attempt = self.twins[run].attempt;
        match self.dice.roll(8) {
            0 => attempt.saturating_sub(1),
            1 => attempt + 1,
            _ => attempt,
        }
    }

    /// Mostly the run's own agent.
    fn who(&mut self, run: &RunId) -> usize {
        let owner = self.twins[run].owner;
        if self.dice.roll(10) == 0 { self.dice.roll(self.agents.len()) } else { owner }
    }

    async fn step(&mut self) {
        self.now += i64::try_from(self.dice.roll(300)).unwrap();
        match self.dice.roll(21) {
            0 | 1 => self.submit().await,
            2..=5 => self.dispatch().await,
            6 | 7 => self.start().await,
            8..=12 => self.settle().await,
            13 => self.refuse().await,
            14 => self.progress().await,
            15 => self.cancel().await,
            16 => self.expire().await,
            17 => self.lose().await,
            18 => self.unknown().await,
            19 => self.release().await,
            _ => self.burst().await,
        }
    }

    async fn submit(&mut self) {
        let n = 1 + self.dice.roll(12);
        let owners: Vec<usize> = (0..n).map(|_| self.dice.roll(self.agents.len())).collect();
        let mut targets: Vec<NewRun> = owners.iter().map(|o| self.agents[*o].target()).collect();
        for (target, owner) in targets.iter_mut().zip(&owners) {
            target.dispatch_to = (self.dice.roll(2) == 0).then(|| self.agents[*owner].incarnation);
        }
        let sent: Vec<Option<Incarnation>> = targets.iter().map(|t| t.dispatch_to).collect();
        let mut new = new_job(&format!("r{}", self.twins.len()), self.now, targets);
        let attempts = [1, 1, 2, 4][self.dice.roll(4)];
        new.retry = retry(attempts);
        new.expires_ms = self.now + 500 + i64::try_from(self.dice.roll(4000)).unwrap();
        let expires = new.expires_ms;
        let job = created(&self.ledger, new).await;
        for ((index, owner), incarnation) in (0..).zip(owners).zip(sent) {
            let twin = Twin {
                owner,
                expires,
                state: if incarnation.is_some() { Dispatched } else { Pending },
                said: false,
                attempt: u32::from(incarnation.is_some()),
                incarnation,
                cancel: false,
                started: false,
                attempts,
                retry_at: None,
                last: None,
                silent: false,
            };
            self.twins.insert(job.id.run(index), twin);
        }
    }

    async fn dispatch(&mut self) {
        let mut marks = Vec::new();
        let mut expected = Vec::new();
        for _ in 0..1 + self.dice.roll(6) {
            let Some(run) = self.pick() else { return };
            let first = self.twins[&run].attempt == 0 && self.dice.roll(8) > 0;
            let attempt = if first { 1 } else { self.attempt_near(&run) };
            let incarnation = match self.dice.roll(8) {
                0 => Incarnation::generate(),
                _ => self.agents[self.twins[&run].owner].incarnation,
            };
            let twin = self.twins.get_mut(&run).unwrap();
            let fresh = attempt == twin.attempt + 1 && [Pending, Dispatched].contains(&twin.state);
            let again =
                twin.state == Dispatched && attempt == twin.attempt && twin.incarnation == Some(incarnation);
            let paused = twin.retry_at.is_some_and(|at| self.now < at);
            let ok = !twin.cancel && self.now < twin.expires && (fresh || again) && !paused;
            if ok {
                twin.retry_at = None;
                *twin = Twin { state: Dispatched, attempt, incarnation: Some(incarnation), ..twin.clone() };
            }
            expected.push(ok);
            marks.push(DispatchMark { run, attempt, incarnation, at_ms: self.now });
        }
        assert_eq!(self.ledger.dispatch(marks).await.unwrap(), expected);
    }

    async fn start(&mut self) {
        let Some(run) = self.pick() else { return };
        let (who, attempt) = (self.who(&run), self.attempt_near(&run));
        let mark = self.agents[who].start(&run, attempt, self.now);
        let incarnation = mark.incarnation;
        let noted = self.ledger.started(mark).await.unwrap();
        let twin = self.twins.get_mut(&run).unwrap();
        let newer = attempt > twin.attempt && !twin.said;
        let takes = match twin.state {
            Pending => attempt > twin.attempt || twin.last.is_none(),
            Dispatched => true,
            Expired => !twin.said,
            Unknown if twin.silent => !twin.said,
            _ => newer,
        };
        let never_sent = twin.state == Expired && twin.attempt == 0;
        match noted {
            Noted::NotIts => assert_ne!(who, twin.owner),
            Noted::Stale => assert!((attempt == 0 || attempt < twin.attempt) && who == twin.owner),
            Noted::Changed(change) => {
                assert!(takes && !never_sent && who == twin.owner && attempt >= twin.attempt, "{twin:?}");
                assert!(!change.job_ended);
                let incarnation = Some(incarnation);
                *twin = Twin { state: Running, attempt, incarnation, started: true, ..twin.clone() };
                (twin.last, twin.retry_at) = (None, None);
            }
            Noted::Same => assert!(!takes || never_sent, "{twin:?}"),
            Noted::Unknown => panic!("{run} is known"),
        }
    }

    async fn settle(&mut self) {
        let Some(run) = self.pick() else { return };
        let (told, who) = self.outcome(&run);
        let settled = self.ledger.settle(told.clone()).await.unwrap();
        self.check_settled(&told, who, &settled);
    }

    fn outcome(&mut self, run: &RunId) -> (Settlement, usize) {
        let ends: Vec<RunState> = RunState::ALL.into_iter().filter(|s| s.is_end()).collect();
        let state = ends[self.dice.roll(ends.len())];
        let (who, attempt) = (self.who(run), self.attempt_near(run));
        let mut told = self.agents[who].outcome(run, attempt, state);
        told.started_ms = told.started_ms.filter(|_| self.dice.roll(3) > 0);
        told.at_ms = self.now;
        (told, who)
    }

    fn check_settled(&mut self, told: &Settlement, who: usize, settled: &Settled) {
        let twin = self.twins.get_mut(&told.run).unwrap();
        let before = twin.clone();
        let started = told.started_ms.is_some();
        let expected = twin.tell(self.now, who, told.attempt, told.state, started, told.incarnation);
        assert_eq!(word(settled), expected, "{told:?} on {before:?}");
        if let Settled::Committed(change) = settled {
            assert_eq!(change.correction, !before.open());
            let digest = Some(Digest::of(&told.report.body));
            let last = change.run.last.as_ref().and_then(|last| last.report_digest);
            let fell_back = told.state == Expired && before.last.is_some();
            assert!(fell_back || change.run.report_digest == digest || last == digest, "{change:?}");
            twin.retry_at = change.run.retry_at_ms;
        }
    }

    async fn refuse(&mut self) {
        let Some(run) = self.pick() else { return };
        let (who, attempt) = (self.who(&run), self.attempt_near(&run));
        let (reason, state) =
            [("policy", Rejected), ("expired", Expired), ("cancelled", Cancelled), ("replayed", Rejected)]
                [self.dice.roll(4)];
        let settled = self.ledger.refuse(self.agents[who].refusal(&run, attempt, reason)).await.unwrap();
        let incarnation = self.agents[who].incarnation;
        let twin = self.twins.get_mut(&run).unwrap();
        let expected = match reason {
            "replayed" if who != twin.owner => "not its",
            "replayed" if attempt == 0 || attempt < twin.attempt => "stale",
            "replayed" => "duplicate",
            _ => twin.tell(700, who, attempt, state, false, incarnation),
        };
        assert_eq!(word(&settled), expected);
    }

    async fn progress(&mut self) {
        let Some(run) = self.pick() else { return };
        let attempt = self.attempt_near(&run);
        let twin = &self.twins[&run];
        let agent_key = self.agents[twin.owner].public();
        let mark = ProgressMark { run, attempt, agent_key, json: "{}".into() };
        let noted = self.ledger.progress(mark).await.unwrap();
        let changes = twin.open() && !twin.waits_again() && attempt > 0 && attempt == twin.attempt;
        assert_eq!(matches!(noted, Noted::Changed(_)), changes, "{noted:?} {twin:?}");
    }

    async fn cancel(&mut self) {
        let Some(run) = self.pick() else { return };
        let hard = self.dice.roll(2) == 0;
        let answer = self.ledger.cancel(run.job(), self.now, hard).await.unwrap().unwrap();
        let (mut ended, mut tell) = (Vec::new(), Vec::new());
        for (id, twin) in self.twins.iter_mut().filter(|(id, _)| id.job() == run.job()) {
            match twin.state {
                Pending => {
                    *twin = Twin { state: Cancelled, said: true, cancel: true, ..twin.clone() };
                    (twin.last, twin.retry_at) = (None, None);
                    ended.push(id.clone());
                }
                _ if twin.said || twin.attempt == 0 => {}
                _ => {
                    twin.cancel = true;
                    tell.push(id.clone());
                }
            }
        }
        assert_eq!(answer.cancelled.iter().map(|r| r.id.clone()).collect::<Vec<_>>(), ended);
        assert_eq!(answer.tell.iter().map(|r| r.id.clone()).collect::<Vec<_>>(), tell);
        assert!(answer.tell.iter().all(|r| r.cancel_requested_ms.is_some() && (!hard || r.cancel_hard)));
    }

    async fn expire(&mut self) {
        let answer = self.ledger.expire(self.now).await.unwrap();
        let mut expected = Vec::new();
        for (id, twin) in &mut self.twins {
            if [Pending, Dispatched].contains(&twin.state) && twin.expires <= self.now {
                match twin.waits_again() {
                    true => twin.fall_back(),
                    false => twin.state = Expired,
                }
                expected.push(id.clone());
            }
        }
        assert_eq!(answer.changes.iter().map(|c| c.run.id.clone()).collect::<Vec<_>>(), expected);
        for change in &answer.changes {
            let twin = &self.twins[&change.run.id];
            assert_eq!(change.run.is_final, twin.said || twin.attempt == 0);
        }
    }

    async fn lose(&mut self) {
        let which = self.dice.roll(self.agents.len());
        if self.dice.roll(2) == 0 {
            self.agents[which].incarnation = Incarnation::generate();
        }
        let who = self.agents[which].clone();
        // A renewed journal says what it still holds.
        let open = |t: &Twin| t.owner == which && [Dispatched, Running].contains(&t.state);
        let dice = &mut self.dice;
        let held: Vec<RunAttempt> = self
            .twins
            .iter()
            .filter(|(_, t)| open(t) && dice.roll(4) == 0)
            .map(|(run, t)| RunAttempt { run: run.clone(), attempt: t.attempt })
            .collect();
        let answer =
            self.ledger.lost_journal(&who.zone, &who.name, who.incarnation, &held, self.now).await.unwrap();
        let mut changes = answer.changes.iter();
        for (id, twin) in &mut self.twins {
            if !open(twin) || twin.incarnation == Some(who.incarnation) {
                continue;
            }
            if held.iter().any(|h| h.run == *id) {
                twin.incarnation = Some(who.incarnation);
                continue;
            }
            let change = changes.next().unwrap();
            assert_eq!(change.run.id, *id);
            twin.lose(change, self.now);
        }
        assert!(changes.next().is_none());
    }

    async fn unknown(&mut self) {
        let Some(run) = self.pick() else { return };
        let reason = ["silent", "forgotten"][self.dice.roll(2)];
        let changes = self.ledger.unknown(vec![run.clone()], self.now, reason, "no word").await.unwrap();
        let twin = self.twins.get_mut(&run).unwrap();
        let held = [Dispatched, Running].contains(&twin.state);
        assert_eq!(changes.len(), usize::from(held));
        if held {
            twin.lose(&changes[0], self.now);
        }
    }

    async fn release(&mut self) {
        let changes = self.ledger.release(self.now).await.unwrap();
        let mut expected = std::collections::BTreeSet::new();
        for (id, twin) in &mut self.twins {
            if twin.retry_at.is_some_and(|at| at <= self.now) {
                twin.retry_at = None;
                expected.insert(id.clone());
            }
        }
        assert_eq!(
            changes.iter().map(|c| c.run.id.clone()).collect::<std::collections::BTreeSet<_>>(),
            expected
        );
    }

    /// Many outcomes in one batch, each twice: answered in the order in which they were sent.
    async fn burst(&mut self) {
        let mut sent = Vec::new();
        for _ in 0..20 {
            let Some(run) = self.pick() else { return };
            let (told, who) = self.outcome(&run);
            sent.push((told.clone(), who));
            sent.push((told, who));
        }
        let all = sent.iter().map(|(told, _)| self.ledger.settle(told.clone()));
        let answers = futures_util::future::join_all(all).await;
        for ((told, who), settled) in sent.iter().zip(answers) {
            self.check_settled(told, *who, &settled.unwrap());
        }
    }

    /// Everything that is kept by difference must equal what is counted anew.
    async fn check(&self) {
        let mut jobs: BTreeMap<JobId, BTreeMap<RunState, u64>> = BTreeMap::new();
        let mut waiting = BTreeMap::new();
        for (id, twin) in &self.twins {
            *jobs.entry(id.job().clone()).or_default().entry(twin.state).or_insert(0) += 1;
            if [Pending, Dispatched].contains(&twin.state) && !twin.cancel {
                let who = &self.agents[twin.owner];
                *waiting.entry((who.zone.clone(), who.name.clone())).or_insert(0) += 1;
            }
        }
        assert_eq!(self.ledger.waiting_counts().await.unwrap(), waiting);
        let mut open = Vec::new();
        for (id, counts) in jobs {
            let job = self.ledger.job(&id).await.unwrap().unwrap();
            assert_eq!(job.counts, counts);
            let ended = counts.keys().all(|s| s.is_end());
            assert_eq!(job.ended_ms.is_some(), ended);
            assert_eq!(job.state(), JobState::of_counts(&counts));
            if !ended {
                open.push(id.clone());
            }
            for run in self.ledger.runs(&id, 0, 100, &[]).await.unwrap() {
                let twin = &self.twins[&run.id];
                let is_final = twin.said || (twin.state == Expired && twin.attempt == 0);
                assert_eq!((run.state, run.attempt, run.is_final), (twin.state, twin.attempt, is_final));
                assert_eq!(run.cancel_requested_ms.is_some(), twin.cancel, "{twin:?}");
                assert_eq!(run.incarnation, twin.incarnation);
                assert_eq!(run.started_ms.is_some(), twin.started, "{twin:?}");
                assert_eq!(run.retry_at_ms, twin.retry_at, "{twin:?}");
            }
        }
        let found: Vec<JobId> = self.ledger.open_jobs().await.unwrap().into_iter().map(|j| j.id).collect();
        let found: std::collections::BTreeSet<JobId> = found.into_iter().collect();
        assert_eq!(found, open.into_iter().collect());
    }
}

async fn walk(seed: u64, steps: usize) {
    let dir = tempfile::tempdir().unwrap();
    let mut walk = Walk {
        dice: Dice(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
        ledger: open(&dir).await,
        agents: (0..5).map(Who::new).collect(),
        twins: BTreeMap::new(),
        now: 1_000_000,
    };
    for step in 0..steps {
        walk.step().await;
        if step % 10 == 9 {
            walk.check().await;
        }
        if step % 100 == 99 {
            walk.ledger.close().await;
            walk.ledger = open(&dir).await;
            walk.check().await;
        }
    }
}

#[tokio::test]
async fn counts_and_states_equal_a_naive_twin() {
    let seeds: Vec<u64> = match std::env::var("SALLY_SEED") {
        Ok(seed) => vec![seed.parse().unwrap()],
        Err(_) => (1..=8).collect(),
    };
    for seed in seeds {
        let local = tokio::task::LocalSet::new();
        let result = local.run_until(async { tokio::task::spawn_local(walk(seed, 250)).await }).await;
        assert!(result.is_ok(), "replay with SALLY_SEED={seed}");
    }
}
