//! The result of a finished run: from the bytes of descriptor 3 and of `SALLY_RESULT_FILE` to one typed result.
//!
//! Each door carries a stream of JSON values in any layout. Within a door objects merge in order and later keys
//! win. Between the doors there is no order, so what both say must agree, or the result is `invalid`.
//! What stood before the first bad byte is still reported as events (a mask, above all, must not get lost with
//! the result), but never as a result.

use sally_common::json::{self, JsonError, JsonText, Members, Node, Parser};
use serde::{Deserialize, Serialize};

use super::event::{Artifact, EVENT_BYTES, Event, Failure, LogEvent, Progress, read_event};

/// How many log events are kept, the first ones; the rest is counted.
pub const LOGS_KEPT: usize = 1000;

/// How many artifacts a run may name; one more makes the result `invalid`.
pub const ARTIFACTS_MAX: usize = 256;

/// How many values a run may mask; one more makes the result `invalid`, since dropping one would leak it.
pub const MASKS_MAX: usize = 256;

/// The bytes that came through one door.
#[derive(Debug, Clone, Copy, Default)]
pub struct Door<'a> {
    /// What was kept: all of it, or its beginning.
    pub bytes: &'a [u8],
    /// How many bytes came, kept or not.
    pub seen: u64,
}

impl<'a> Door<'a> {
    /// Returns a door of which everything was kept.
    pub fn whole(bytes: &'a [u8]) -> Self {
        Self { bytes, seen: bytes.len() as u64 }
    }
}

/// What a result may cost, checked on bytes before they are parsed.
#[derive(Debug, Clone, Copy)]
pub struct ResultLimits {
    /// Bytes of the result's values, both doors together, events not counted.
    pub result_bytes: u64,
    /// Bytes of one door with its events. A keeper that keeps less than this makes long runs `oversize` early.
    pub stream_bytes: u64,
    /// Nesting of a value.
    pub depth: usize,
}

impl Default for ResultLimits {
    fn default() -> Self {
        Self { result_bytes: 1 << 20, stream_bytes: 8 << 20, depth: 64 }
    }
}

/// What became of the result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum ResultState {
    /// The script gave none (events are no result).
    Absent,
    /// There is one.
    Valid,
    /// What came is not what the contract allows.
    Invalid,
    /// More came than the limit allows.
    Oversize,
    /// It is JSON, but not of the shape that the task promised.
    SchemaMismatch,
}

/// Why there is no result, although the script wrote something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResultError {
    /// Bytes before the bad one, in the door that the message names. Absent where no one byte is to blame.
    pub offset: Option<u64>,
    /// What is wrong: a lower-case fragment for people.
    pub message: String,
}

/// All that a script said through its result doors.
#[derive(Debug, Clone, PartialEq)]
pub struct ScriptResult {
    /// What became of the result.
    pub state: ResultState,
    /// The result; present exactly when the state is `Valid`.
    pub json: Option<JsonText>,
    /// Present when the state is `Invalid`, `Oversize` or `SchemaMismatch`.
    pub error: Option<ResultError>,
    /// The last `@fail`.
    pub failure: Option<Failure>,
    /// The last `@changed`.
    pub changed: Option<bool>,
    /// The last `@progress`.
    pub progress: Option<Progress>,
    /// Every `@artifact`, in order, each once.
    pub artifacts: Vec<Artifact>,
    /// Every `@mask`, in order, each once.
    pub masks: Vec<String>,
    /// The first [`LOGS_KEPT`] `@log` events.
    pub logs: Vec<LogEvent>,
    /// How many `@log` events came after those.
    pub logs_dropped: u64,
    /// How many single `@keys` this version does not know.
    pub unknown_events: u64,
}

impl ScriptResult {
    /// Returns the reason why what the script said makes the run `failed`, whatever its exit code; `None` if the
    /// exit code decides.
    pub fn failed_reason(&self, require_result: bool) -> Option<&'static str> {
        match self.state {
            ResultState::Invalid => Some("result-invalid"),
            ResultState::Oversize => Some("result-oversize"),
            ResultState::SchemaMismatch => Some("result-schema-mismatch"),
            _ if self.failure.is_some() => Some("script-failed"),
            ResultState::Absent if require_result => Some("result-missing"),
            ResultState::Absent | ResultState::Valid => None,
        }
    }
}

/// Reads what came through descriptor 3 and through `SALLY_RESULT_FILE`.
pub fn read_result(fd3: &Door<'_>, file: &Door<'_>, limits: &ResultLimits) -> ScriptResult {
    let mut first = read_door(fd3, limits, limits.result_bytes);
    let left = limits.result_bytes.saturating_sub(first.result_bytes);
    let mut second = read_door(file, limits, left);
    let named = |trouble: Trouble, door: &str| match trouble {
        Trouble::Invalid(offset, message) => (Some(offset), format!("{door}: {message}")),
        Trouble::Oversize(message) => (None, message),
    };
    let (state, error, json) = match (first.trouble.take(), second.trouble.take()) {
        // Too much outweighs bad form: the bytes behind the limit were never judged.
        (Some(trouble @ Trouble::Oversize(_)), _) | (_, Some(trouble @ Trouble::Oversize(_))) => {
            (ResultState::Oversize, Some(named(trouble, "")), None)
        }
        (Some(trouble), _) => (ResultState::Invalid, Some(named(trouble, "descriptor 3")), None),
        (None, Some(trouble)) => (ResultState::Invalid, Some(named(trouble, "SALLY_RESULT_FILE")), None),
        (None, None) => match join(&mut first, &mut second) {
            Ok(Some(json)) => (ResultState::Valid, None, Some(json)),
            Ok(None) => (ResultState::Absent, None, None),
            Err(message) => (ResultState::Invalid, Some((None, message)), None),
        },
    };
    let error = error.map(|(offset, message)| ResultError { offset, message });
    let mut said = first.said;
    said.add_all(second.said);
    said.into_result(state, json, error)
}

enum Trouble {
    Invalid(u64, String),
    Oversize(String),
}

/// What one door held.
#[derive(Default)]
struct Content<'a> {
    objects: Option<Members<'a>>,
    lone: Option<Node<'a>>,
    said: Said,
    result_bytes: u64,
    trouble: Option<Trouble>,
}

/// The events of one door.
#[derive(Default)]
struct Said {
    failure: Option<Failure>,
    changed: Option<bool>,
    progress: Option<Progress>,
    artifacts: Vec<Artifact>,
    masks: Vec<String>,
    logs: Vec<LogEvent>,
    logs_dropped: u64,
    unknown: u64,
}

fn read_door<'a>(door: &Door<'a>, limits: &ResultLimits, budget: u64) -> Content<'a> {
    let (text, broken) = json::utf8_prefix(door.bytes);
    let mut content = Content::default();
    let mut trouble = read_values(text, limits, budget, &mut content).err();
    // Text that stops at a broken byte looks unfinished to the parser; the byte is the truth.
    if let Some(error) = broken {
        let unfinished = matches!(&trouble, Some(Trouble::Invalid(at, _)) if *at >= error.offset as u64);
        if trouble.is_none() || unfinished {
            trouble = Some(Trouble::Invalid(error.offset as u64, error.message));
        }
    }
    let over = |limit: u64| {
        format!(
            "{} bytes came through the result door, the limit is {limit}; keep large data as an artifact",
            door.seen
        )
    };
    if door.seen > limits.stream_bytes {
        trouble = Some(Trouble::Oversize(over(limits.stream_bytes)));
    } else if door.seen > door.bytes.len() as u64 {
        trouble = Some(Trouble::Oversize(over(door.bytes.len() as u64)));
    }
    content.trouble = trouble;
    content
}

fn read_values<'a>(
    text: &'a str,
    limits: &ResultLimits,
    budget: u64,
    content: &mut Content<'a>,
) -> Result<(), Trouble> {
    let mut parser = Parser::new(text, limits.depth);
    // White space belongs to the value before it; white space before the first value is the result's.
    let mut from = 0;
    let mut is_event = false;
    let oversize = |total: u64| {
        let (seen, limit) = (total + (limits.result_bytes - budget), limits.result_bytes);
        Trouble::Oversize(format!("the result is {seen} bytes or more, the limit is {limit}"))
    };
    loop {
        parser.skip_space();
        if !is_event {
            content.result_bytes += (parser.offset() - from) as u64;
        }
        from = parser.offset();
        if content.result_bytes > budget {
            return Err(oversize(content.result_bytes));
        }
        let left = usize::try_from(budget - content.result_bytes).unwrap_or(usize::MAX);
        parser.set_max_bytes(left.max(EVENT_BYTES));
        let (at, node) = match parser.next_value() {
            Ok(Some(value)) => value,
            Ok(None) => return Ok(()),
            Err(error) if error.too_long => return Err(oversize(content.result_bytes + left as u64 + 1)),
            Err(JsonError { offset, message, .. }) => return Err(Trouble::Invalid(offset as u64, message)),
        };
        let length = parser.offset() - at;
        is_event =
            take_value(node, length, content).map_err(|message| Trouble::Invalid(at as u64, message))?;
    }
}

/// Takes one value in; returns whether it was an event.
fn take_value<'a>(node: Node<'a>, length: usize, content: &mut Content<'a>) -> Result<bool, String> {
    match node {
        Node::Object(members) => {
            if let Some(event) = read_event(&members)? {
                if length > EVENT_BYTES {
                    return Err(format!("an event of {length} bytes; at most {EVENT_BYTES} are allowed"));
                }
                content.said.add(event)?;
                return Ok(true);
            }
            if content.lone.is_some() {
                return Err(
                    "an object after a lone value; a result is either objects or one other value".to_owned()
                );
            }
            content.objects.get_or_insert_default().merge(members);
        }
        leaf @ Node::Leaf(_) => {
            if content.objects.is_some() {
                return Err("a lone value among objects; give it a key, as in {\"items\": […]}".to_owned());
            }
            if content.lone.is_some() {
                return Err("a second lone value; put several into one array or object".to_owned());
            }
            content.lone = Some(leaf);
        }
    }
    Ok(false)
}

/// Joins what both doors said, if they agree.
fn join(first: &mut Content<'_>, second: &mut Content<'_>) -> Result<Option<JsonText>, String> {
    const BOTH: &str = "descriptor 3 and SALLY_RESULT_FILE";
    let mixed = (first.lone.is_some() && second.objects.is_some())
        || (first.objects.is_some() && second.lone.is_some());
    if mixed {
        return Err(format!("{BOTH}: one has a lone value, the other has objects"));
    }
    if differ(&first.said.changed, &second.said.changed) {
        return Err(format!("{BOTH} say different things with @changed"));
    }
    if differ(&first.said.failure, &second.said.failure) {
        return Err(format!("{BOTH} say different things with @fail"));
    }
    if let (Some(a), Some(b)) = (&first.lone, &second.lone)
        && a.to_json() != b.to_json()
    {
        return Err(format!("{BOTH} carry different values"));
    }
    let objects = match (first.objects.take(), second.objects.take()) {
        (Some(mut a), Some(b)) => {
            if let Some(path) = a.conflict(&b) {
                return Err(format!("{BOTH} set `{path}` to different values"));
            }
            a.merge(b);
            Some(a)
        }
        (a, b) => a.or(b),
    };
    let node = objects.map(Node::Object).or(first.lone.take()).or(second.lone.take());
    Ok(node.map(|node| node.to_json()))
}

fn differ<T: PartialEq>(a: &Option<T>, b: &Option<T>) -> bool {
    matches!((a, b), (Some(a), Some(b)) if a != b)
}

impl Said {
    fn add(&mut self, event: Event) -> Result<(), String> {
        match event {
            Event::Progress(progress) => self.progress = Some(progress),
            Event::Log(_) if self.logs.len() >= LOGS_KEPT => self.logs_dropped += 1,
            Event::Log(log) => self.logs.push(log),
            Event::Artifact(artifact) => {
                push_new(&mut self.artifacts, artifact, ARTIFACTS_MAX).ok_or("too many @artifact events")?;
            }
            Event::Mask(value) => {
                push_new(&mut self.masks, value, MASKS_MAX).ok_or("too many @mask events")?;
            }
            Event::Changed(changed) => self.changed = Some(changed),
            Event::Fail(failure) => self.failure = Some(failure),
            Event::Unknown => self.unknown += 1,
        }
        Ok(())
    }

    /// Adds the other door's events; where only one can stand, descriptor 3 has it (see [`join`] for what must
    /// agree).
    fn add_all(&mut self, other: Said) {
        self.failure = self.failure.take().or(other.failure);
        self.changed = self.changed.or(other.changed);
        self.progress = self.progress.take().or(other.progress);
        self.unknown += other.unknown;
        self.logs_dropped += other.logs_dropped;
        let room = LOGS_KEPT.saturating_sub(self.logs.len());
        self.logs_dropped += other.logs.len().saturating_sub(room) as u64;
        self.logs.extend(other.logs.into_iter().take(room));
        for artifact in other.artifacts {
            push_new(&mut self.artifacts, artifact, 2 * ARTIFACTS_MAX);
        }
        for value in other.masks {
            push_new(&mut self.masks, value, 2 * MASKS_MAX);
        }
    }

    fn into_result(
        self,
        state: ResultState,
        json: Option<JsonText>,
        error: Option<ResultError>,
    ) -> ScriptResult {
        ScriptResult {
            state,
            json,
            error,
            failure: self.failure,
            changed: self.changed,
            progress: self.progress,
            artifacts: self.artifacts,
            masks: self.masks,
            logs: self.logs,
            logs_dropped: self.logs_dropped,
            unknown_events: self.unknown,
        }
    }
}

/// Appends `item` unless it is there already; `None` if there is no room for it.
fn push_new<T: PartialEq>(items: &mut Vec<T>, item: T, max: usize) -> Option<()> {
    if items.contains(&item) {
        return Some(());
    }
    (items.len() < max).then(|| items.push(item))
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
