//! Tables of words, and times and colours for people.

use anstyle::{AnsiColor, Style};
use comfy_table::{ContentArrangement, Table, presets};
use sally_common::wire::record::RunState;

/// The narrowest that a shortened last column becomes.
const LAST_MIN: usize = 24;

/// Lays out rows under a header. If a width is given, the last column is shortened to fit.
pub(super) fn table(header: &[&str], rows: &[Vec<String>], width: Option<usize>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    table.set_header(header.to_vec());
    let room = width.map(|width| last_room(header, rows, width));
    for row in rows {
        let mut row = row.clone();
        if let (Some(room), Some(last)) = (room, row.last_mut()) {
            *last = shorten(last, room);
        }
        table.add_row(row);
    }
    table.column_iter_mut().for_each(|column| {
        column.set_padding((0, 2));
    });
    table.lines().map(|line| format!("{}\n", line.trim_end())).collect()
}

fn last_room(header: &[&str], rows: &[Vec<String>], width: usize) -> usize {
    let before = header.len().saturating_sub(1);
    let widest =
        |i: usize| rows.iter().map(|r| r[i].chars().count()).chain([header[i].len()]).max().unwrap_or(0);
    let used: usize = (0..before).map(|i| widest(i) + 2).sum();
    width.saturating_sub(used).max(LAST_MIN)
}

/// Cuts a text to so many characters, with a mark.
pub(super) fn shorten(text: &str, room: usize) -> String {
    if text.chars().count() <= room {
        return text.to_owned();
    }
    let kept: String = text.chars().take(room.saturating_sub(1)).collect();
    format!("{kept}…")
}

/// The width of the reader's terminal, if it is one.
pub(super) fn terminal_width() -> Option<usize> {
    Table::new().width().map(usize::from).filter(|_| super::out::is_terminal())
}

/// The colour of a run's state. It never carries meaning alone: the word stands there too.
pub(super) fn state_style(state: RunState) -> Style {
    let colour = match state {
        RunState::Succeeded => AnsiColor::Green,
        RunState::Failed | RunState::TimedOut | RunState::Rejected => AnsiColor::Red,
        RunState::Expired | RunState::Interrupted | RunState::Unknown => AnsiColor::Magenta,
        RunState::Cancelled => AnsiColor::Yellow,
        RunState::Pending | RunState::Dispatched | RunState::Running => AnsiColor::Cyan,
    };
    colour.on_default()
}

/// The mark of a run's state.
pub(super) fn state_mark(state: RunState) -> &'static str {
    match state {
        RunState::Succeeded => "✓",
        RunState::Failed | RunState::Rejected => "✗",
        RunState::TimedOut => "⏱",
        RunState::Cancelled => "–",
        RunState::Expired | RunState::Interrupted | RunState::Unknown => "?",
        RunState::Pending | RunState::Dispatched | RunState::Running => "…",
    }
}

/// Wraps a text in a style.
pub(super) fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// Colours the state that a line begins with.
pub(super) fn paint_states(table: &str) -> String {
    let paint_line = |line: &str| {
        let word = line.split(' ').next().unwrap_or("");
        match RunState::of_word(word) {
            Some(state) => format!("{}{}\n", paint(state_style(state), word), &line[word.len()..]),
            None => format!("{line}\n"),
        }
    };
    table.lines().map(paint_line).collect()
}

/// A record's time in local time with its offset.
pub(super) fn local_time(rfc3339: &str) -> String {
    in_zone(rfc3339, jiff::tz::TimeZone::system())
}

fn in_zone(rfc3339: &str, zone: jiff::tz::TimeZone) -> String {
    match rfc3339.parse::<jiff::Timestamp>() {
        Ok(time) => time.to_zoned(zone).strftime("%Y-%m-%d %H:%M:%S%:z").to_string(),
        Err(_) => super::text::sanitise_line(rfc3339),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows(rows: &[&[&str]]) -> Vec<Vec<String>> {
        rows.iter().map(|r| r.iter().map(|c| (*c).to_owned()).collect()).collect()
    }

    #[test]
    fn columns_line_up() {
        let text =
            table(&["STATE", "N", "RESULT"], &rows(&[&["failed", "10", "x"], &["succeeded", "1", ""]]), None);
        assert_eq!(text, "STATE      N   RESULT\nfailed     10  x\nsucceeded  1\n");
    }

    #[test]
    fn the_last_column_is_cut_with_a_mark() {
        let long = "y".repeat(100);
        let text = table(&["A", "B"], &rows(&[&["a", &long]]), Some(40));
        assert!(text.lines().all(|l| l.chars().count() <= 40), "{text}");
        assert!(text.ends_with("y…\n"));
        assert!(table(&["A", "B"], &rows(&[&["a", &long]]), None).contains(&long));
    }

    #[test]
    fn people_see_local_time_with_its_offset() {
        let zone = jiff::tz::TimeZone::fixed(jiff::tz::offset(8));
        assert_eq!(in_zone("2026-11-21T23:00:00.123Z", zone.clone()), "2026-11-22 07:00:00+08:00");
        assert_eq!(in_zone("?\u{1b}", zone), "?\\x1b");
    }
}
