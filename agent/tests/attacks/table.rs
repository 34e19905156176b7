//! The table of attacks as it stands in the documentation, made from the registry.

use crate::destinations::{DESTINATIONS, Try};
use crate::elsewhere::ELSEWHERE;
use crate::mode_name;
use crate::registry::{Attack, Case, attacks};
use sally_agent::sandbox::{Layer, Profile};
use std::fmt::Write as _;
use std::fs;
use std::path::Path;

const BEGIN: &str = "<!-- attacks: made by agent/tests/attacks.rs with UPDATE_DOCS=1 -->\n";
const END: &str = "<!-- attacks: end -->\n";

/// Compares the documentation with the registry, or writes it.
pub(crate) fn check() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR"));
    for row in ELSEWHERE {
        let (file, name) = row.test;
        let folder = if file.starts_with("src/") { "" } else { "tests/" };
        let source = fs::read_to_string(manifest.join(format!("{folder}{file}.rs"))).unwrap();
        assert!(source.contains(&format!("#[test]\nfn {name}()")), "no test {name} in {file}.rs");
    }
    let page = manifest.join("../docs/sandbox.md");
    let text = fs::read_to_string(&page).unwrap();
    let (before, rest) = text.split_once(BEGIN).expect("the mark before the table");
    let (old, after) = rest.split_once(END).expect("the mark after the table");
    let new = table();
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&page, format!("{before}{BEGIN}{new}{END}{after}")).unwrap();
    } else {
        assert_eq!(old, new, "docs/sandbox.md: run this test again with UPDATE_DOCS=1");
    }
}

fn table() -> String {
    let mut text = String::from(
        "| attack | refused in | done without | refused by what is left without | test |\n| --- | --- | --- | --- | --- |\n",
    );
    for attack in attacks() {
        let Attack { what, test, .. } = attack;
        let (refused, done, held) = (profiles(attack.profiles), done(attack), cases(attack.holds));
        let _ = writeln!(text, "| {what} | {refused} | {done} | {held} | `attacks::{test}` |");
    }
    for Try { what, test, opens, holds, unseen, .. } in DESTINATIONS {
        let names = |layers: &[Layer]| layers.iter().map(|layer| layer.name()).collect::<Vec<_>>().join("+");
        let done = if opens.is_empty() { format!("not shown: {unseen}") } else { names(opens) };
        let held = holds.iter().map(|layers| names(layers)).collect::<Vec<_>>().join(", ");
        let _ =
            writeln!(text, "| {what} | list of destinations | {done} | {held} | `destinations::{test}` |");
    }
    for row in ELSEWHERE {
        let (file, test) = row.test;
        let _ =
            writeln!(text, "| {} | every profile | kept out by: {} | | `{file}::{test}` |", row.what, row.by);
    }
    text
}

fn profiles(profiles: &[Profile]) -> String {
    if profiles == Profile::ALL {
        return "every profile".into();
    }
    profiles.iter().map(|profile| format!("`{profile}`")).collect::<Vec<_>>().join(", ")
}

fn done(attack: &Attack) -> String {
    let shown = cases(attack.opens);
    match (shown.is_empty(), attack.unseen) {
        (_, "") => shown,
        (true, why) => format!("not shown: {why}"),
        (false, why) => format!("{shown}; not shown in {why}"),
    }
}

fn cases(cases: &[Case]) -> String {
    let one = |(mode, profile, layers): &Case| {
        let layers: Vec<_> = layers.iter().map(|layer: &Layer| layer.name()).collect();
        let mut text = layers.join("+");
        if let Some(mode) = mode {
            let _ = write!(text, " ({})", mode_name(*mode));
        }
        if *profile != Profile::Strict {
            let _ = write!(text, " (`{profile}`)");
        }
        text
    };
    cases.iter().map(one).collect::<Vec<_>>().join(", ")
}
