//! The order: what a caller signs.
//!
//! An order says what may run, where, and until when. It is signed once, by the caller, over its
//! exact bytes; controllers and agents pass those bytes on unchanged.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use std::collections::BTreeMap;

use crate::id::{Digest, RequestId};
use crate::key::{PublicKey, Signature};
use crate::limit;
use crate::name::{ProfileName, TaskName, User};
use crate::selector::Targets;
pub use crate::wire::retry::{Retry, RetryOn};

/// A signature over an order's bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OrderSignature {
    /// Who signed.
    pub key: PublicKey,
    /// Over the domain of orders and the order's bytes.
    pub signature: Signature,
}

/// The layer that a task with [`Task::user`] requires: that the agent runs it as the account it names.
pub const ACCOUNT_LAYER: &str = "account";

/// Whether a text can be the name of an account: a bound and an alphabet, no more. Hosts know which there are.
pub fn is_account_name(text: &str) -> bool {
    let inner = |b: &u8| b.is_ascii_alphanumeric() || b"._-$".contains(b);
    (1..=32).contains(&text.len()) && text.as_bytes().iter().all(inner) && !text.starts_with(['-', '.'])
}

/// What may run where.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Order {
    /// Wire version.
    pub v: u32,
    /// The caller's own id of this submission.
    pub request_id: RequestId,
    /// The caller's name, for records. What counts is the key that signed.
    pub by: User,
    /// When it was signed, Unix milliseconds.
    pub created_ms: i64,
    /// After this time no agent starts it, Unix milliseconds.
    pub expires_ms: i64,
    /// Who is meant.
    pub targets: Targets,
    /// What is to run.
    pub task: Task,
}

/// What is to run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    /// The stored task's name, or the script's file name, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// The stored task, if it is one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<TaskName>,
    /// The program.
    pub program: Program,
    /// Arguments: of the script, or the command with its arguments.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    /// Environment that the task sets.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// The parameters, a JSON object.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub params: Option<Box<RawValue>>,
    /// Standard input; `/dev/null` if none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stdin: Option<Content>,
    /// Secrets, each sealed to one agent's key.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<SealedSecret>,
    /// The level of isolation asked for. An agent that does not know the name refuses it by name.
    pub profile: ProfileName,
    /// Sandbox layers without which it must not run.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub require_layers: Vec<String>,
    /// The account of the agent's host to run as; none: an account of nobody. Whoever sets it also requires the layer
    /// [`ACCOUNT_LAYER`], so that an agent which does not know this field refuses the task.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Whether the agent keeps the work folder of a run that failed, for looking into.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub keep: bool,
    /// Wall time that the run may take, milliseconds on the agent's monotonic clock.
    pub timeout_ms: u64,
    /// Time between TERM and KILL, milliseconds.
    pub grace_ms: u64,
    /// Whether a run without a structured result has failed.
    #[serde(default)]
    pub require_result: bool,
    /// Whether running it again does no harm.
    #[serde(default)]
    pub idempotent: bool,
    /// When another attempt is made. Only an idempotent task may have it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry: Option<Retry>,
}

/// The program of a task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Program {
    /// A script or binary that travels with the order.
    Script {
        /// Its bytes.
        content: Content,
        /// What runs it, if not its own first line.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        interpreter: Option<String>,
    },
    /// A command of the agent's host: the task's first argument.
    Command,
}

/// Bytes that an order carries or names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Content {
    /// Their digest.
    pub digest: Digest,
    /// How many they are.
    pub bytes: u64,
    /// The bytes themselves, if they are text of at most [`limit::INLINE_SCRIPT_MAX`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

impl Content {
    /// Describes these bytes, with the bytes inside if they are small text.
    pub fn of(bytes: &[u8]) -> Self {
        let text = std::str::from_utf8(bytes).ok().filter(|_| bytes.len() <= limit::INLINE_SCRIPT_MAX);
        Self { digest: Digest::of(bytes), bytes: bytes.len() as u64, text: text.map(str::to_owned) }
    }

    /// Whether what is inside agrees with the digest and the size.
    pub fn is_consistent(&self) -> bool {
        self.bytes <= limit::BLOB_MAX
            && self
                .text
                .as_ref()
                .is_none_or(|t| t.len() as u64 == self.bytes && Digest::of(t.as_bytes()) == self.digest)
    }
}

/// A secret that only one agent can open.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SealedSecret {
    /// The file's name in the secrets folder.
    pub name: String,
    /// Whose.
    pub agent_key: PublicKey,
    /// The sealed bytes, base64.
    pub sealed: String,
}

/// What is wrong with an order, in words for its caller.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadOrder(pub String);

impl Order {
    /// Checks what no type can: bounds, texts without NUL, consistency. Controller and agent both
    /// ask before they use anything of it.
    pub fn check(&self) -> Result<(), BadOrder> {
        let task = &self.task;
        let fail = |text: String| Err(BadOrder(text));
        if self.targets.is_empty() {
            return fail("the order names no target".into());
        }
        for selector in &self.targets.selectors {
            if let Err(e) = crate::selector::Selector::parse(selector) {
                return fail(e.to_string());
            }
        }
        if self.expires_ms <= self.created_ms {
            return fail("the order expires before it was made".into());
        }
        if task.args.len() > limit::ARGS_MAX || task.env.len() > limit::ARGS_MAX {
            return fail(format!("more than {} arguments or environment entries", limit::ARGS_MAX));
        }
        let entries = task.env.iter().flat_map(|(k, v)| [k, v]);
        if task.args.iter().chain(entries).any(|text| text.contains('\0')) {
            return fail("an argument or environment entry contains a NUL byte".into());
        }
        let entries = task.env.iter().flat_map(|(k, v)| [k, v]);
        let words: usize = task.args.iter().chain(entries).map(|text| text.len() + 1).sum();
        if words > limit::WORDS_MAX {
            let most = limit::WORDS_MAX;
            return fail(format!(
                "arguments and environment have {words} bytes, more than {most}: use -P or --stdin"
            ));
        }
        if let Some(retry) = &task.retry {
            retry.check(task.idempotent).map_err(BadOrder)?;
        }
        if task.timeout_ms == 0 {
            return fail("the timeout is zero".into());
        }
        if let Some(user) = &task.user {
            if !is_account_name(user) {
                return fail(format!("\"{}\" cannot be the name of an account", crate::name::show(user)));
            }
            if !task.require_layers.iter().any(|layer| layer == ACCOUNT_LAYER) {
                return fail(format!(
                    "a task for an account requires the layer {ACCOUNT_LAYER}, and this one does not"
                ));
            }
        }
        if task.require_layers.len() > limit::ARGS_MAX {
            return fail(format!("more than {} layers are required", limit::ARGS_MAX));
        }
        if task.params.as_ref().is_some_and(|p| p.get().len() > limit::PARAMS_MAX) {
            return fail(format!("the parameters are larger than {} bytes", limit::PARAMS_MAX));
        }
        if task.params.as_ref().is_some_and(|p| !p.get().starts_with('{')) {
            return fail("the parameters are not a JSON object".into());
        }
        match &task.program {
            Program::Command if task.args.is_empty() => return fail("there is no command".into()),
            Program::Script { content, .. } if !content.is_consistent() => {
                return fail("the script does not match its digest, or is too large".into());
            }
            Program::Script { content, .. } if content.bytes == 0 => {
                return fail("the script is empty".into());
            }
            _ => {}
        }
        if task.stdin.as_ref().is_some_and(|c| !c.is_consistent()) {
            return fail("the standard input does not match its digest, or is too large".into());
        }
        Ok(())
    }

    /// The blobs that the order names without carrying them.
    pub fn blobs(&self) -> impl Iterator<Item = &Content> {
        let script = match &self.task.program {
            Program::Script { content, .. } => Some(content),
            Program::Command => None,
        };
        script.into_iter().chain(&self.task.stdin).filter(|c| c.text.is_none())
    }
}
