//! Folds many runs into few lines: what is identical is shown once, with the agents it came from.

use std::collections::BTreeMap;

use encoding_rs::Encoding;
use sally_common::wire::record::{ResultState, RunRecord, RunState, TextEncoding};

use super::{table, text};

/// Runs that ended the same way and said the same.
#[derive(Debug)]
pub(super) struct Group<'a> {
    /// One of them.
    pub run: &'a RunRecord,
    /// `zone/agent` of all.
    pub agents: Vec<(&'a str, &'a str)>,
}

/// Groups runs by state, ending, result and output; failures first, then the larger groups.
pub(super) fn fold(runs: &[RunRecord]) -> Vec<Group<'_>> {
    let mut groups: Vec<Group<'_>> = Vec::new();
    let mut known: BTreeMap<Key<'_>, usize> = BTreeMap::new();
    for run in runs {
        let at = *known.entry(key(run)).or_insert_with(|| {
            groups.push(Group { run, agents: Vec::new() });
            groups.len() - 1
        });
        groups[at].agents.push((run.zone.as_str(), run.agent.as_str()));
    }
    groups.sort_by_key(|g| (severity(g.run.state), std::cmp::Reverse(g.agents.len())));
    groups
}

/// State, exit code, signal, attempt; result and its state; both streams with what is missing; words.
type Key<'a> = ([Option<i32>; 3], u32, [&'a str; 2], [(&'a str, bool, u64); 2], [Option<&'a str>; 4]);

fn key(run: &RunRecord) -> Key<'_> {
    let result = run.result.as_ref().map_or("", |r| r.get());
    let failure = run.failure.as_ref().map(|f| f.text.as_str());
    let is_base64 = |encoding| encoding == TextEncoding::Base64;
    (
        [Some(run.state as i32), run.exit_code, run.signal],
        run.attempt,
        [result, run.result_state.map_or("", ResultState::word)],
        [
            (run.stdout.as_str(), is_base64(run.stdout_encoding), run.stdout_truncated_bytes),
            (run.stderr.as_str(), is_base64(run.stderr_encoding), run.stderr_truncated_bytes),
        ],
        [run.reason.as_deref(), run.message.as_deref(), failure, run.retry_at.as_deref()],
    )
}

/// What needs attention comes first.
fn severity(state: RunState) -> u8 {
    match state {
        RunState::Failed | RunState::TimedOut | RunState::Rejected => 0,
        RunState::Expired | RunState::Interrupted | RunState::Unknown => 1,
        RunState::Cancelled => 2,
        RunState::Pending | RunState::Dispatched | RunState::Running => 3,
        RunState::Succeeded => 4,
    }
}

/// The folded view: each group's output under its agents, then one table of all.
pub(super) fn render(
    runs: &[RunRecord],
    encoding: Option<&'static Encoding>,
    width: Option<usize>,
) -> String {
    let zones = runs.iter().map(|r| &r.zone).collect::<std::collections::BTreeSet<_>>().len();
    let groups = fold(runs);
    let mut shown = String::new();
    for group in &groups {
        let blocks = output(group.run, encoding);
        if !blocks.is_empty() {
            let agents = compress(&group.agents, zones > 1);
            let style = table::state_style(group.run.state);
            let mark = table::paint(style, table::state_mark(group.run.state));
            shown.push_str(&format!("{mark} {} ({})\n{blocks}\n", agents, group.run.state));
        }
    }
    let rows: Vec<Vec<String>> = groups
        .iter()
        .map(|g| {
            let agents = compress(&g.agents, zones > 1);
            vec![g.run.state.word().to_owned(), g.agents.len().to_string(), agents, answer(g.run)]
        })
        .collect();
    shown.push_str(&table::paint_states(&table::table(&["STATE", "N", "AGENTS", "RESULT"], &rows, width)));
    shown
}

/// A run's output as text for people, each stream ended by a line feed.
pub(super) fn output(run: &RunRecord, encoding: Option<&'static Encoding>) -> String {
    let mut shown = String::new();
    let streams = [
        ("", &run.stdout, run.stdout_encoding, run.stdout_truncated_bytes),
        ("stderr: ", &run.stderr, run.stderr_encoding, run.stderr_truncated_bytes),
    ];
    for (label, content, encoded, missing) in streams {
        let content = text::read(&bytes(content, encoded), encoding);
        for line in text::sanitise(&content).lines() {
            shown.push_str(&format!("{label}{line}\n"));
        }
        if missing > 0 {
            shown.push_str(&format!(
                "{label}… {missing} bytes of it are not shown here: sally job logs {} --raw\n",
                run.run.job()
            ));
        }
    }
    shown
}

/// The bytes behind a record's text.
pub(super) fn bytes(content: &str, encoding: TextEncoding) -> Vec<u8> {
    match encoding {
        TextEncoding::Utf8 => content.as_bytes().to_vec(),
        TextEncoding::Base64 => data_encoding::BASE64.decode(content.as_bytes()).unwrap_or_default(),
    }
}

/// A run's ending and result on one line.
pub(super) fn answer(run: &RunRecord) -> String {
    let mut parts: Vec<String> = Vec::new();
    match (run.signal, run.exit_code) {
        (Some(signal), _) => parts.push(format!("signal {signal}")),
        (None, Some(code)) if code != 0 => parts.push(format!("exit {code}")),
        _ => {}
    }
    // These reasons say what stands there already.
    let is_said = !parts.is_empty() && matches!(run.reason.as_deref(), Some("exit-code" | "signal"));
    if let Some(failure) = &run.failure {
        parts.push(format!("{}: {}", failure.code, failure.text));
    }
    if is_said {
        // What an agent adds to them: where a work folder is kept, what to use in the place of sudo.
        let more = run.message.as_deref().and_then(|message| message.split_once("; "));
        parts.extend(more.map(|(_, more)| more.to_owned()));
    }
    if !is_said && (run.state != RunState::Succeeded || run.failure.is_some()) {
        let why = run.message.as_deref().or(run.reason.as_deref());
        parts.extend(why.map(str::to_owned));
    }
    match (run.result_state, &run.result) {
        (Some(ResultState::Valid), Some(result)) => parts.push(result.get().to_owned()),
        (Some(ResultState::Absent | ResultState::Valid) | None, _) => {}
        (Some(bad), _) => {
            let known = run.message.as_deref().unwrap_or_default();
            let detail = run.result_error.as_ref().map(|e| {
                let place = e.offset.map(|at| format!(" at byte {at}")).unwrap_or_default();
                // The run's message is usually this one; nobody wants to read it twice.
                if e.message == known { place } else { format!("{place}: {}", e.message) }
            });
            parts.push(format!("result {}{}", bad.word(), detail.unwrap_or_default()));
        }
    }
    match &run.retry_at {
        Some(at) => {
            parts.push(format!("attempt {} ended, the next one {}", run.attempt, table::local_time(at)))
        }
        None if run.attempt > 1 => parts.push(format!("attempt {}", run.attempt)),
        None => {}
    }
    match run.leftovers {
        0 => {}
        1 => parts.push("1 process outlived it and was ended".to_owned()),
        n => parts.push(format!("{n} processes outlived it and were ended")),
    }
    text::sanitise_line(&parts.join(" · "))
}

/// Shortens names that differ in their number only: `local-[1-3,7]`.
pub(super) fn compress(agents: &[(&str, &str)], with_zone: bool) -> String {
    let mut families: BTreeMap<(String, usize), Vec<u64>> = BTreeMap::new();
    let mut plain: Vec<String> = Vec::new();
    for (zone, agent) in agents {
        let name = if with_zone { format!("{zone}/{agent}") } else { (*agent).to_owned() };
        let stem = name.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned();
        let digits = &name[stem.len()..];
        // A leading zero makes the width part of the name.
        let width = if digits.starts_with('0') && digits.len() > 1 { digits.len() } else { 0 };
        match digits.parse::<u64>() {
            Ok(number) => families.entry((stem, width)).or_default().push(number),
            Err(_) => plain.push(name),
        }
    }
    merge_widths(&mut families);
    let mut shown: Vec<String> =
        families.into_iter().map(|((stem, width), n)| family(&stem, width, n)).collect();
    shown.extend(plain);
    shown.sort();
    shown.join(" ")
}

/// `09` and `10` are of one family: numbers as wide as a padded one join it.
fn merge_widths(families: &mut BTreeMap<(String, usize), Vec<u64>>) {
    let padded: Vec<(String, usize)> = families.keys().filter(|(_, width)| *width > 0).cloned().collect();
    for (stem, width) in padded {
        let Some(free) = families.get_mut(&(stem.clone(), 0)) else { continue };
        let (same, other): (Vec<u64>, Vec<u64>) = free.iter().partition(|n| n.to_string().len() == width);
        *free = other;
        if free.is_empty() {
            families.remove(&(stem.clone(), 0));
        }
        families.entry((stem, width)).or_default().extend(same);
    }
}

fn family(stem: &str, width: usize, mut numbers: Vec<u64>) -> String {
    numbers.sort_unstable();
    numbers.dedup();
    let mut ranges: Vec<(u64, u64)> = Vec::new();
    for n in &numbers {
        match ranges.last_mut() {
            Some((_, end)) if *end + 1 == *n => *end = *n,
            _ => ranges.push((*n, *n)),
        }
    }
    let range = |(a, b): &(u64, u64)| match a == b {
        true => format!("{a:0width$}"),
        false => format!("{a:0width$}-{b:0width$}"),
    };
    let text = ranges.iter().map(range).collect::<Vec<_>>().join(",");
    if numbers.len() == 1 { format!("{stem}{text}") } else { format!("{stem}[{text}]") }
}

#[cfg(test)]
#[path = "fold_tests.rs"]
mod tests;
