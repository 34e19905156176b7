//! `docs/guarantees.md`: its numbers are written by the runs, its rows are those of the suite.

use std::collections::BTreeMap;
use std::fs;
use std::io::Write as _;
use std::path::PathBuf;

use serde_json::{Value, json};

use super::judge::{PROMISES, Tally};
use super::rows::ROWS;
use crate::harness::repository;

/// Where runs leave their numbers, if they are wanted: one line of JSON each.
const VARIABLE: &str = "SALLY_GUARANTEES";

const BEGIN: &str = "<!-- the table is written by `make guarantees` -->\n";
const END: &str = "<!-- end of the table -->\n";

/// Notes what a row has seen. Lines of several processes come whole.
pub fn record(row: &str, tally: &Tally) {
    println!("{row}: {} faults, promises {:?}, runs {:?}", tally.struck, tally.promises, tally.outcomes);
    let Some(path) = std::env::var_os(VARIABLE) else { return };
    let line = json!({"row": row, "struck": tally.struck, "promises": tally.promises.map(|(h, t)| [h, t]),
                      "outcomes": tally.outcomes});
    let mut file = fs::OpenOptions::new().create(true).append(true).open(path).unwrap();
    file.write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn read(path: &std::path::Path) -> BTreeMap<String, Tally> {
    let mut all: BTreeMap<String, Tally> = BTreeMap::new();
    for line in fs::read_to_string(path).unwrap().lines() {
        let value: Value = serde_json::from_str(line).unwrap();
        let pair = |v: &Value| (v[0].as_u64().unwrap(), v[1].as_u64().unwrap());
        let mut tally = Tally { struck: value["struck"].as_u64().unwrap(), ..Tally::default() };
        for (sum, v) in tally.promises.iter_mut().zip(value["promises"].as_array().unwrap()) {
            *sum = pair(v);
        }
        let outcomes = value["outcomes"].as_object().unwrap().iter();
        tally.outcomes = outcomes.map(|(k, v)| (k.clone(), v.as_u64().unwrap())).collect();
        all.entry(value["row"].as_str().unwrap().to_owned()).or_default().add(&tally);
    }
    all
}

/// The table as text: a row for each fault, a column for each promise.
fn render(all: &BTreeMap<String, Tally>) -> String {
    let mut text = format!("| row | fault | struck | {} | runs ended as |\n", PROMISES.join(" | "));
    text.push_str(&format!("| --- | --- | --- |{} --- |\n", " --- |".repeat(PROMISES.len())));
    for row in ROWS {
        let tally = all.get(row.name).unwrap_or_else(|| panic!("{} was not run", row.name));
        let cells = tally.promises.iter().map(|(held, tried)| {
            assert!(*tried > 0, "{}: a promise was not tried", row.name);
            if held == tried { format!("{tried}") } else { format!("**{held} of {tried}**") }
        });
        let outcomes: Vec<String> = tally.outcomes.iter().map(|(s, n)| format!("{s} {n}")).collect();
        let cells: Vec<String> = cells.collect();
        text.push_str(&format!(
            "| `{}` | {} | {} | {} | {} |\n",
            row.name,
            row.fault,
            tally.struck,
            cells.join(" | "),
            outcomes.join(", ")
        ));
    }
    text
}

fn page() -> PathBuf {
    repository().join("docs/guarantees.md")
}

fn split(text: &str) -> (&str, &str, &str) {
    let (head, rest) = text.split_once(BEGIN).unwrap();
    let (table, tail) = rest.split_once(END).unwrap();
    (head, table, tail)
}

/// `make guarantees` runs this last: it puts the numbers into the page.
#[test]
#[ignore = "writes the page; make guarantees runs it"]
fn write_the_table() {
    let numbers = std::env::var_os(VARIABLE).expect("SALLY_GUARANTEES names the file with the numbers");
    let text = fs::read_to_string(page()).unwrap();
    let (head, _, tail) = split(&text);
    let table = render(&read(numbers.as_ref()));
    fs::write(page(), format!("{head}{BEGIN}{table}{END}{tail}")).unwrap();
}

/// The page has the rows of the suite, with their words, and no empty cell.
#[test]
fn the_page_has_every_row_and_no_empty_cell() {
    let text = fs::read_to_string(page()).unwrap();
    let (_, table, _) = split(&text);
    let lines: Vec<Vec<&str>> =
        table.lines().skip(2).map(|l| l.trim_matches('|').split('|').map(str::trim).collect()).collect();
    let found: Vec<(&str, &str)> = lines.iter().map(|cells| (cells[0].trim_matches('`'), cells[1])).collect();
    let wanted: Vec<(&str, &str)> = ROWS.iter().map(|row| (row.name, row.fault)).collect();
    assert_eq!(found, wanted, "run `make guarantees`");
    for cells in &lines {
        assert_eq!(cells.len(), 4 + PROMISES.len(), "{cells:?}");
        assert!(cells.iter().all(|c| !c.is_empty()), "{cells:?}");
        let is_open = super::rows::open(cells[0].trim_matches('`')).is_some();
        assert!(is_open || !cells.iter().any(|c| c.contains("**")), "{cells:?}");
    }
}
