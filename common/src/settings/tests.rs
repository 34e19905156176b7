use std::ffi::OsString;

use super::layers::{Layers, drop_in_dir};
use super::*;

fn schema() -> Schema {
    let labels: toml::Table = [("role".to_owned(), Value::from("web"))].into_iter().collect();
    Schema {
        title: "A program.".into(),
        env_prefix: "SALLY_TRY_",
        keys: vec![
            Key::new("name", Kind::Text, "Who it is.").required("web-1"),
            Key::new("slots", Kind::Integer(1, 256), "How many.").default(4).reload(),
            Key::new("first", Kind::Boolean, "Whether first.").default(false),
            Key::new("profiles", Kind::Texts, "What is allowed.").default(vec!["strict"]),
            Key::new("labels", Kind::Map, "For selectors.").example(labels),
            Key::new("script.env", Kind::Map, "For scripts."),
            Key::new("storage.max_bytes", Kind::Integer(1, i64::MAX as u64), "The most.").default(100),
            Key::new("storage.min_bytes", Kind::Integer(0, 10), "The least.").default(7),
        ],
    }
}

/// Writes files into a folder and reads the configuration `a.toml` there.
fn layers(files: &[(&str, &str)], environment: &[(&str, &str)]) -> (Layers, tempfile::TempDir) {
    let dir = tempfile::tempdir().expect("a folder");
    let main = dir.path().join("a.toml");
    std::fs::create_dir(drop_in_dir(&main)).expect("made");
    for (name, text) in files {
        std::fs::write(dir.path().join(name), text).expect("written");
    }
    let environment = environment.iter().map(|(name, value)| (OsString::from(name), OsString::from(value)));
    (Layers::read(&schema(), &main, environment), dir)
}

fn told(layers: &Layers) -> Vec<String> {
    layers.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn later_layers_win_key_by_key() {
    let files = [
        ("a.toml", "name = 'a'\nslots = 1\n[labels]\nrole = 'web'\ntier = '1'\n[storage]\nmax_bytes = 5\n"),
        ("a.toml.d/20-b.toml", "slots = 3\n"),
        ("a.toml.d/10-a.toml", "slots = 2\n[labels]\ntier = '2'\n[storage]\nmin_bytes = 1\n"),
        ("a.toml.d/30-c.toml.dpkg-old", "slots = 9\n"),
        ("a.toml.d/.hidden.toml", "slots = 9\n"),
    ];
    let (layers, dir) = layers(&files, &[("SALLY_TRY_STORAGE_MAX_BYTES", "6"), ("SALLY_LOG", "info")]);
    assert_eq!(told(&layers), [""; 0]);
    let expected = "name = 'a'\nslots = 3\n[labels]\nrole = 'web'\ntier = '2'\n[storage]\nmax_bytes = 6\nmin_bytes = 1\n";
    assert_eq!(layers.table(), expected.parse::<toml::Table>().expect("TOML"));
    let file = |name: &str, line| Origin::File(dir.path().join(name), line);
    assert_eq!(layers.origin("slots"), file("a.toml.d/20-b.toml", 1));
    assert_eq!(layers.origin("labels"), file("a.toml", 4));
    assert_eq!(layers.origin("storage.max_bytes"), Origin::Variable("SALLY_TRY_STORAGE_MAX_BYTES".into()));
    assert_eq!(layers.origin("first"), Origin::Default);
}

#[test]
fn every_problem_of_every_layer_is_told_with_its_place() {
    let files = [
        ("a.toml", "slots = 300\nfirst = 'yes'\nprofils = []\nstorage = 3\nlabels.role = 1\n"),
        ("a.toml.d/1.toml", "[storage]\nslots = 2\nmax_byte = 2\nsomething = 2\n[stoarge]\n"),
        ("a.toml.d/2.toml", "slots = \n"),
    ];
    let environment =
        [("SALLY_TRY_SLOST", "1"), ("SALLY_TRY_FIRST", "maybe"), ("SALLY_TRY_LABELS", "role,tier=1")];
    let (layers, dir) = layers(&files, &environment);
    let told = told(&layers);
    let dir = dir.path().display();
    for part in [
        format!("slots: 300 is not between 1 and 256 ({dir}/a.toml:1)"),
        format!("first: \"yes\" is not true or false ({dir}/a.toml:2)"),
        format!("profils: is no key; did you mean profiles? ({dir}/a.toml:3)"),
        format!("storage: 3 is not a section: write [storage] and its keys below ({dir}/a.toml:4)"),
        format!("labels.role: 1 is not a text in quotes ({dir}/a.toml:5)"),
        format!(
            "storage.slots: is no key of [storage]; slots stands above the first section ({dir}/a.toml.d/1.toml:2)"
        ),
        format!(
            "storage.max_byte: is no key; did you mean max_bytes, in [storage]? ({dir}/a.toml.d/1.toml:3)"
        ),
        format!(
            "storage.something: is no key; the keys here are max_bytes, min_bytes ({dir}/a.toml.d/1.toml:4)"
        ),
        "the environment variable SALLY_TRY_SLOST is of no key; did you mean SALLY_TRY_SLOTS?".to_owned(),
        "first: maybe is not true or false (environment variable SALLY_TRY_FIRST)".to_owned(),
        "labels: \"role\" is not NAME=VALUE (environment variable SALLY_TRY_LABELS)".to_owned(),
        format!("name: is missing: Who it is; write it into {dir}/a.toml, as in name = \"web-1\""),
    ] {
        assert!(told.contains(&part), "{part}\nis not in\n{}", told.join("\n"));
    }
    assert!(told.iter().any(|p| p.starts_with("not TOML: ") && p.ends_with("2.toml:1)")), "{told:?}");
    assert!(told.iter().any(|p| p.starts_with("stoarge: is no key; did you mean storage?")), "{told:?}");
}

#[test]
fn a_missing_file_is_one_problem_and_a_missing_folder_none() {
    let dir = tempfile::tempdir().expect("a folder");
    let layers =
        Layers::read(&schema(), &dir.path().join("none.toml"), [("SALLY_TRY_NAME".into(), "a".into())]);
    let told = told(&layers);
    assert_eq!(told.len(), 1, "{told:?}");
    assert!(told[0].starts_with("cannot read ") && told[0].contains("none.toml"), "{told:?}");
}

#[test]
fn variables_are_read_by_the_kind_of_their_key() {
    let environment = [
        ("SALLY_TRY_NAME", "true"),
        ("SALLY_TRY_PROFILES", "strict, net"),
        ("SALLY_TRY_SCRIPT_ENV", "{ HTTP_PROXY = 'http://a,b' }"),
        ("SALLY_TRY_LABELS", "role=web,tier=a=b"),
        ("SALLY_TRY_FIRST", "true"),
    ];
    let (layers, _dir) = layers(&[("a.toml", "")], &environment);
    assert_eq!(told(&layers), [""; 0]);
    let expected = "name = 'true'\nfirst = true\nprofiles = ['strict', 'net']\nlabels = { role = 'web', tier = 'a=b' }\n\
        script.env.HTTP_PROXY = 'http://a,b'\n";
    assert_eq!(layers.table(), expected.parse::<toml::Table>().expect("TOML"));
}

#[test]
fn the_commented_file_sets_nothing_and_shows_every_default() {
    let text = show::commented(&schema());
    assert!(text.parse::<toml::Table>().expect("TOML").is_empty(), "{text}");
    let shown = show::uncommented(&text).expect("its defaults are TOML");
    for key in schema().keys.iter().filter(|key| key.default.is_some()) {
        let found =
            key.path.split('.').try_fold(&Value::Table(shown.clone()), |at, word| at.get(word)).cloned();
        assert_eq!(found, key.default, "{} in\n{text}", key.path);
    }
    assert!(
        text.contains(
            "# Who it is. Required. Environment: SALLY_TRY_NAME.\n# for example: name = \"web-1\"\n"
        ),
        "{text}"
    );
    assert!(text.contains("# for example: [labels]\n# for example: role = \"web\"\n"), "{text}");
}

#[test]
fn resolved_values_say_where_they_came_from_and_are_toml() {
    let (layers, dir) =
        layers(&[("a.toml", "slots = 2\n[script.env]\n'a b' = 'c'\n")], &[("SALLY_TRY_NAME", "x")]);
    let text = show::values(&schema(), &layers, true);
    for (start, end) in [
        ("name = \"x\" ", "# environment variable SALLY_TRY_NAME".to_owned()),
        ("slots = 2 ", format!("# {}/a.toml:1", dir.path().display())),
        ("max_bytes = 100 ", "# default".to_owned()),
        ("\"a b\" = \"c\" ", format!("# {}/a.toml:3", dir.path().display())),
    ] {
        assert!(text.lines().any(|l| l.starts_with(start) && l.ends_with(&end)), "{start} in\n{text}");
    }
    let read: toml::Table = text.parse().expect("TOML");
    assert_eq!(read["storage"]["max_bytes"], Value::Integer(100));
    assert!(!show::values(&schema(), &layers, false).contains("default"));
}

#[test]
fn the_json_schema_has_every_key() {
    let json = show::json_schema(&schema());
    assert_eq!(json["required"], serde_json::json!(["name"]));
    assert_eq!(json["properties"]["slots"]["maximum"], 256);
    assert_eq!(json["properties"]["slots"]["x-environment"], "SALLY_TRY_SLOTS");
    assert_eq!(json["properties"]["storage"]["properties"]["max_bytes"]["default"], 100);
    assert_eq!(json["properties"]["storage"]["additionalProperties"], false);
    assert_eq!(json["properties"]["script"]["properties"]["env"]["type"], "object");
}

#[test]
fn changes_are_told_apart_by_what_a_running_program_takes() {
    let (before, _a) = layers(&[("a.toml", "name = 'a'\nslots = 4\n[labels]\nrole = 'web'\n")], &[]);
    let (same, _b) = layers(&[("a.toml", "name = 'a'\n[labels]\nrole = 'web'\n")], &[]);
    assert_eq!(
        before.changes(&schema(), &same),
        (vec![], vec![]),
        "a default that is written changes nothing"
    );
    let (after, _c) = layers(&[("a.toml", "name = 'b'\nslots = 5\n[labels]\nrole = 'db'\n")], &[]);
    assert_eq!(before.changes(&schema(), &after), (vec!["slots"], vec!["name", "labels"]));
}

#[test]
fn a_near_word_is_found_and_a_far_one_is_not() {
    let known = || ["slots", "storage", "profiles"].into_iter();
    assert_eq!(nearest("slost", known()), Some("slots"));
    assert_eq!(nearest("profile", known()), Some("profiles"));
    assert_eq!(nearest("timeout", known()), None);
    assert_eq!(distance("", "abc"), 3);
}
