//! What a caller asks a controller, over request and reply on `<prefix>.api.<verb>`.
//!
//! A request is signed by its caller, a reply by the controller. A reply is one line of JSON; output follows it as raw
//! bytes after a line feed, and the signed line names their digest. A reply larger than one message travels in parts:
//! each has the header `Sally-Part: N/M`, the first also the signature.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::id::{Digest, JobId, Nonce, RequestId, RunId};
use crate::key::PublicKey;
use crate::name::{Agent, Zone};
use crate::selector::Targets;
use crate::wire::command::Lane;
use crate::wire::order::OrderSignature;
use crate::wire::record::{AgentRecord, JobRecord, RunRecord, RunState};

/// Header of a part of a reply: `N/M`, from 1.
pub const HEADER_PART: &str = "Sally-Part";

/// A signed request.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// Wire version.
    pub v: u32,
    /// The caller's wall clock, Unix milliseconds.
    pub at_ms: i64,
    /// Ties the reply to this request.
    pub nonce: Nonce,
    /// What is asked.
    pub call: Call,
}

/// A signed reply.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Reply {
    /// Wire version.
    pub v: u32,
    /// The request's nonce.
    pub nonce: Nonce,
    /// The answer.
    pub outcome: ReplyOutcome,
    /// The digest of the bytes that follow this line, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub payload: Option<Digest>,
}

/// An answer or an error.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ReplyOutcome {
    /// The answer, of the call's own shape.
    Ok(Box<RawValue>),
    /// It could not be done.
    Error(ApiError),
}

/// An error for the caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    /// What kind.
    pub code: ErrorCode,
    /// What was wrong and where.
    pub message: String,
    /// What to do next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hint: Option<String>,
}

/// The kind of an error; each has an exit code of the command line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ErrorCode {
    /// The request makes no sense: exit 2.
    Usage,
    /// No agent matched: exit 4.
    NoTarget,
    /// Not allowed: exit 6.
    Denied,
    /// Same request id, another body: exit 8.
    Conflict,
    /// No such job, run or agent: exit 1, or 2 when the id was ambiguous.
    NotFound,
    /// The controller failed: exit 1.
    Internal,
}

/// What can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Call {
    /// Store a blob's chunk; the answer is [`BlobStored`]. The bytes follow the request's line feed.
    Blob {
        /// The whole blob.
        digest: Digest,
        /// Where these bytes begin.
        offset: u64,
        /// How many the whole has.
        total: u64,
    },
    /// Submit a job; the answer is [`Submitted`].
    Submit(Submit),
    /// Which agents a submission would reach; the answer is [`Resolved`].
    Resolve {
        /// Whom.
        targets: Targets,
    },
    /// One job without its runs; the answer is a [`JobRecord`].
    Job {
        /// Id, unique prefix, or `latest`.
        id: String,
    },
    /// A page of a job's runs; the answer is [`RunPage`].
    Runs {
        /// The job.
        job: JobId,
        /// From this run number on.
        from: u32,
        /// Whether output and results are wanted.
        content: bool,
        /// Only runs in these states; all if empty.
        #[serde(default)]
        states: Vec<RunState>,
    },
    /// Jobs, newest first; the answer is [`JobPage`].
    Jobs {
        /// Older than this one.
        #[serde(default)]
        before: Option<JobId>,
        /// At most so many.
        limit: u32,
    },
    /// A piece of a run's stream; the answer is [`LogPart`].
    Log {
        /// The run.
        run: RunId,
        /// `stdout`, `stderr` or `artifact-N`.
        stream: String,
        /// From this byte on.
        offset: u64,
    },
    /// Cancel a job's runs; the answer is [`Cancelled`].
    Cancel {
        /// Id, unique prefix, or `latest`.
        id: String,
        /// No TERM first.
        #[serde(default)]
        hard: bool,
    },
    /// Cancel what was or will be submitted with a request id, whether the job exists yet or not; the answer is
    /// [`RequestCancelled`].
    CancelRequest {
        /// The request id.
        request_id: RequestId,
        /// No TERM first.
        #[serde(default)]
        hard: bool,
    },
    /// The order of a job, for another job like it; the answer is [`OrderText`].
    Order {
        /// The job.
        job: JobId,
    },
    /// Runs that wait for an agent, in the order in which it will get them; the answer is [`RunPage`].
    Waiting {
        /// The agent's zone.
        zone: Zone,
        /// The agent.
        agent: Agent,
        /// The number of the first one.
        from: u32,
        /// At most so many.
        limit: u32,
    },
    /// Cancel every run that waits for these agents and has not started; the answer is [`Purged`].
    Purge {
        /// The agents.
        targets: Targets,
    },
    /// Give these agents no new work, or give it again; the answer is [`Drained`].
    Drain {
        /// The agents.
        targets: Targets,
        /// Whether they drain from now on.
        drain: bool,
    },
    /// Ask these agents for a sign of life; the answer is [`Pinged`].
    Ping {
        /// The agents.
        targets: Targets,
        /// How long to wait, milliseconds by the controller's monotonic clock.
        wait_ms: u64,
    },
    /// Forget an agent that will not come back: its waiting runs are cancelled; the answer is [`Purged`].
    Forget {
        /// The agent's zone.
        zone: Zone,
        /// The agent.
        agent: Agent,
    },
    /// Make a token with which hosts are enrolled; the answer is [`EnrolToken`]. Its secret parts stay with the caller.
    EnrolToken {
        /// The zone.
        zone: Zone,
        /// For how long, milliseconds by the controller's clock.
        ttl_ms: u64,
        /// For how many hosts.
        uses: u32,
        /// The public half of the key that proves it.
        key: PublicKey,
        /// The public key of the broker's user that goes with it.
        user: String,
    },
    /// Believe an agent no more and cut it off at the broker; the answer is [`Revoked`].
    Revoke {
        /// The agent's zone.
        zone: Zone,
        /// The agent.
        agent: Agent,
    },
    /// Watch a job: events go to the caller's inbox until 40 s have passed since the last such call; the answer is the [`JobRecord`].
    Watch {
        /// The job.
        job: JobId,
        /// Where to.
        inbox: String,
        /// Live output too.
        output: bool,
    },
    /// Agents; the answer is [`AgentPage`].
    Agents,
    /// The controller's version; the answer is [`Hello`].
    Hello,
}

impl Call {
    /// The call's word: its subject is `<prefix>.api.<verb>`, its tag in the body the same.
    pub fn verb(&self) -> &'static str {
        match self {
            Call::Blob { .. } => "blob",
            Call::Submit(_) => "submit",
            Call::Resolve { .. } => "resolve",
            Call::Job { .. } => "job",
            Call::Runs { .. } => "runs",
            Call::Jobs { .. } => "jobs",
            Call::Log { .. } => "log",
            Call::Cancel { .. } => "cancel",
            Call::CancelRequest { .. } => "cancel-request",
            Call::Order { .. } => "order",
            Call::Waiting { .. } => "waiting",
            Call::Purge { .. } => "purge",
            Call::Drain { .. } => "drain",
            Call::Ping { .. } => "ping",
            Call::Forget { .. } => "forget",
            Call::EnrolToken { .. } => "enrol-token",
            Call::Revoke { .. } => "revoke",
            Call::Watch { .. } => "watch",
            Call::Agents => "agents",
            Call::Hello => "hello",
        }
    }
}

/// A submission.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Submit {
    /// The order's exact bytes.
    pub order: String,
    /// Who signed it.
    pub signatures: Vec<OrderSignature>,
    /// What to do with targets that are offline.
    #[serde(default)]
    pub offline: Offline,
    /// Which of an agent's waiting runs goes first: 0 to [`crate::limit::PRIORITY_MAX`], higher first, in order of
    /// submission within one.
    #[serde(default = "priority", skip_serializing_if = "is_default_priority")]
    pub priority: u8,
    /// Runs of earlier jobs with the same key that still wait for their agent are replaced by this job's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_only: Option<String>,
    /// How its dispatches travel.
    #[serde(default, skip_serializing_if = "Lane::is_queue")]
    pub lane: Lane,
    /// The job that this one repeats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_of: Option<JobId>,
    /// Where events go, if the caller watches from the start.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub watch: Option<String>,
    /// Live output too.
    #[serde(default)]
    pub watch_output: bool,
}

/// What to do with targets that are offline.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Offline {
    /// Their runs wait.
    #[default]
    Wait,
    /// They are left out.
    Skip,
    /// The submission is refused.
    Fail,
}

fn priority() -> u8 {
    crate::limit::PRIORITY_DEFAULT
}

fn is_default_priority(priority: &u8) -> bool {
    *priority == crate::limit::PRIORITY_DEFAULT
}

/// A blob's state after a chunk.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct BlobStored {
    /// Bytes stored from the start.
    pub bytes: u64,
    /// Whether it is whole and its digest right.
    pub complete: bool,
}

/// A job was accepted.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Submitted {
    /// The job.
    pub job: JobRecord,
    /// Whether it was made now, or is the answer to the same request made before.
    pub created: bool,
    /// Its targets in the order of its runs.
    pub targets: Vec<Target>,
}

/// A resolved target.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Target {
    /// The zone.
    pub zone: Zone,
    /// The agent.
    pub agent: Agent,
    /// Whether it was online when the targets were resolved.
    pub online: bool,
    /// Its key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_key: Option<PublicKey>,
    /// Its public curve key, to which secrets are sealed; none: it has said none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub curve_key: Option<String>,
}

/// Targets that a submission would reach.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resolved {
    /// The targets.
    pub targets: Vec<Target>,
}

/// A page of runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RunPage {
    /// The runs.
    pub runs: Vec<RunRecord>,
    /// Where the next page begins, if there is one.
    pub next: Option<u32>,
}

/// A page of jobs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JobPage {
    /// The jobs, newest first.
    pub jobs: Vec<JobRecord>,
    /// Whether there are older ones.
    pub more: bool,
}

/// The agents that the controller knows.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentPage {
    /// By zone and name.
    pub agents: Vec<AgentRecord>,
}

/// A piece of a stream; its bytes follow the reply's line.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPart {
    /// Where the bytes begin.
    pub offset: u64,
    /// Bytes stored so far.
    pub stored: u64,
    /// Whether the stream has ended, so that `stored` is all of it.
    pub ended: bool,
    /// Bytes beyond the bound, counted and gone.
    pub dropped: u64,
}

/// A cancellation is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Cancelled {
    /// The job.
    pub job: JobRecord,
    /// Runs that it is meant for; 0 when all had ended.
    pub runs: u64,
}

/// A cancellation by request id is stored.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RequestCancelled {
    /// The job, if it exists already; else its submission will be cancelled when it comes.
    pub job: Option<JobRecord>,
    /// Runs that it is meant for.
    pub runs: u64,
}

/// An order as it was signed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderText {
    /// Its exact bytes.
    pub order: String,
    /// Who signed it.
    pub signatures: Vec<OrderSignature>,
    /// What was asked for targets that were offline.
    pub offline: Offline,
    /// Its priority.
    pub priority: u8,
    /// How its dispatches travelled.
    #[serde(default)]
    pub lane: Lane,
}

/// Waiting work was cancelled.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Purged {
    /// Runs.
    pub runs: u64,
    /// Agents.
    pub agents: Vec<Target>,
}

/// A token was made; the caller joins it with what it kept.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnrolToken {
    /// Its id.
    pub id: Nonce,
    /// The broker's JWT for the host that uses it.
    pub jwt: String,
    /// Unix milliseconds after which it is worthless.
    pub expires_ms: i64,
}

/// An agent was revoked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoked {
    /// Its zone.
    pub zone: Zone,
    /// Its name.
    pub agent: Agent,
    /// Waiting runs that were cancelled, and those that it held, which are unknown now.
    pub runs: u64,
    /// Why the broker still lets it in, if it does. The controller believes it no more in any case.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// Agents were told to drain or to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Drained {
    /// The agents.
    pub agents: Vec<Target>,
}

/// Agents and how soon they answered.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Pinged {
    /// One for each target.
    pub agents: Vec<Ping>,
}

/// One agent's answer to a ping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ping {
    /// The zone.
    pub zone: Zone,
    /// The agent.
    pub agent: Agent,
    /// From the question to the answer at the controller, milliseconds; none: no answer in time.
    pub rtt_ms: Option<f64>,
    /// Its clock minus the controller's, milliseconds, as far as the round trip tells.
    pub skew_ms: Option<i64>,
}

/// The controller introduces itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// The controller's version.
    pub version: String,
    /// The broker's version.
    pub broker: String,
    /// The request id namespace is per ledger; this is the ledger's own id.
    #[serde(default)]
    pub ledger: String,
    /// The caller as the controller knows it.
    pub caller: String,
    /// A request id as an example of the form.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub request_id: Option<RequestId>,
}

/// Something a caller watches has changed. Signed, except for output, whose bytes follow a line feed
/// and whose digest the final record has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Event {
    /// Wire version.
    pub v: u32,
    /// The job.
    pub job: JobId,
    /// What happened.
    pub change: Change,
}

/// What happened to a watched job. The tag stands beside the content and before it: a tag inside would make
/// serde copy the record, and a structured result does not survive that.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "what", content = "of", rename_all = "kebab-case")]
pub enum Change {
    /// A run changed its state or its progress. Output and result are inside once it has ended, if small.
    Run {
        /// The run.
        run: Box<RunRecord>,
        /// Whether the record is whole: output and result are all inside.
        whole: bool,
        /// The job, if it ended with this run: then no [`Change::Ended`] follows.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        ended: Option<Box<JobRecord>>,
    },
    /// Output arrived; the bytes follow the line feed.
    Output {
        /// The run.
        run: RunId,
        /// The agent.
        agent: Agent,
        /// `stdout` or `stderr`.
        stream: String,
        /// Where the bytes begin.
        offset: u64,
    },
    /// The job ended, and no run's change said so.
    Ended {
        /// The job.
        job: Box<JobRecord>,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_verb_is_the_tag() {
        let job = JobId::generate(1);
        for call in [
            Call::Blob { digest: Digest::of(b""), offset: 0, total: 0 },
            Call::Resolve { targets: Targets::default() },
            Call::Job { id: "latest".into() },
            Call::Runs { job: job.clone(), from: 0, content: false, states: vec![] },
            Call::Jobs { before: None, limit: 1 },
            Call::Log { run: job.run(0), stream: "stdout".into(), offset: 0 },
            Call::Cancel { id: "latest".into(), hard: false },
            Call::CancelRequest { request_id: "r-1".parse().expect("an id"), hard: false },
            Call::Order { job: job.clone() },
            Call::Waiting {
                zone: Zone::new("dmz").expect("a name"),
                agent: Agent::new("a").expect("a name"),
                from: 0,
                limit: 1,
            },
            Call::Purge { targets: Targets::default() },
            Call::Drain { targets: Targets::default(), drain: true },
            Call::Ping { targets: Targets::default(), wait_ms: 1 },
            Call::Forget { zone: Zone::new("dmz").expect("a name"), agent: Agent::new("a").expect("a name") },
            Call::EnrolToken {
                zone: Zone::new("dmz").expect("a name"),
                ttl_ms: 1,
                uses: 1,
                key: crate::key::SigningKey::generate().public().clone(),
                user: "U".into(),
            },
            Call::Revoke { zone: Zone::new("dmz").expect("a name"), agent: Agent::new("a").expect("a name") },
            Call::Watch { job, inbox: "x".into(), output: false },
            Call::Agents,
            Call::Hello,
        ] {
            let json = serde_json::to_value(&call).expect("a call is JSON");
            assert_eq!(json["call"], call.verb());
        }
    }
}
