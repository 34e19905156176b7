//! The list of keys against what is read from it, and against the file that packages ship.

use std::path::Path;

use sally_common::key::SigningKey;
use sally_common::settings::show;

use super::tests::{GOOD, load_text};
use super::*;

#[test]
fn drop_ins_and_places_of_problems() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let path = dir.path().join("agent.toml");
    std::fs::create_dir(dir.path().join("agent.toml.d")).expect("made");
    std::fs::write(&path, "zone = \"dmz\"\nslots = 0\nstate_dir = \"state\"\n").expect("written");
    std::fs::write(dir.path().join("agent.toml.d/1.toml"), "name = \"A\"\nprofiles = [\"root\"]\n")
        .expect("written");
    let error = load(&path).expect_err("bad");
    let told: Vec<String> = error.problems.iter().map(ToString::to_string).collect();
    let dir = dir.path().display();
    for part in [
        format!("slots: 0 is not between 1 and 256 ({dir}/agent.toml:2)"),
        "url: is missing".to_owned(),
        format!("key: cannot read the signing key {dir}/state/agent.seed"),
        format!("creds: cannot read {dir}/state/agent.creds"),
        format!("trust: cannot read {dir}/state/trust.json"),
    ] {
        assert!(told.iter().any(|t| t.starts_with(&part) || t.contains(&part)), "{part} in {told:#?}");
    }
    let ends = |key: &str| format!("({dir}/agent.toml.d/1.toml:{})", if key == "name" { 1 } else { 2 });
    for key in ["name", "profiles"] {
        let found = told.iter().find(|t| t.starts_with(&format!("{key}: "))).expect("told");
        assert!(found.ends_with(&ends(key)), "{found}");
    }
    assert_eq!(state_dir(&path).expect("the folder can be read"), Path::new(&format!("{dir}/state")));
}

/// The list of keys and what is read from it say the same.
#[test]
fn every_key_can_be_written_and_its_default_is_what_counts_without_it() {
    let schema = schema::schema();
    let commented = show::commented(&schema);
    let mut shown = show::uncommented(&commented).expect("its defaults are TOML");
    for key in schema.keys.iter().filter(|key| key.default.is_none()) {
        let example = key.example.clone().expect("what has no default has an example");
        let (section, name) = key.split();
        let mut table = &mut shown;
        for word in section.split('.').filter(|word| !word.is_empty()) {
            let inner = table.entry(word).or_insert_with(|| toml::Table::new().into());
            table = inner.as_table_mut().expect("a section");
        }
        table.insert(name.to_owned(), example);
    }
    let written: Written = toml::Value::Table(shown).try_into().expect("every key is known");
    let own = |name: &str| Some(Path::new(schema::STATE_DIR).join(name));
    assert_eq!(written.creds, own(schema::CREDS));
    assert_eq!(written.key, own(schema::KEY));
    assert_eq!(written.curve_key, own(schema::CURVE_KEY));
    assert_eq!(written.trust, own(schema::TRUST));

    let with_defaults = |text: &str| {
        let mut table: toml::Table = show::uncommented(&commented).expect("TOML");
        if text.is_empty() {
            table.clear();
        }
        // What is beside the test's own files.
        for key in ["creds", "key", "curve_key", "trust", "state_dir"] {
            table.remove(key);
        }
        let mut base: toml::Table = GOOD.parse().expect("TOML");
        base.extend(table);
        let mut config = load_text(&base.to_string()).expect("good");
        // Each is in a folder of its own.
        for path in [
            &mut config.creds,
            &mut config.curve_key,
            &mut config.state_dir,
            &mut config.launcher_socket,
            &mut config.profiles_dir,
        ] {
            *path = path.file_name().expect("a name").into();
        }
        config.key = SigningKey::from_secret([1; 32]);
        format!("{config:?}")
    };
    assert_eq!(with_defaults("every default written out"), with_defaults(""));
}

#[test]
fn the_shipped_file_is_the_commented_list_of_keys() {
    let shipped = include_str!("../../../packaging/etc/agent.toml");
    let wanted = show::commented(&schema::schema());
    assert_eq!(shipped, wanted, "write it anew: sally-agent config default > packaging/etc/agent.toml");
}
