use std::path::Path;

use sally_common::settings::show;

use super::*;

fn load_text(text: &str) -> Result<Settings, String> {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let write = |name: &str, text: &str| std::fs::write(dir.path().join(name), text).expect("written");
    write("c.seed", &SigningKey::from_secret([1; 32]).seed());
    write("trust.json", r#"{"version":1,"expires_ms":1,"threshold":1,"controllers":[],"callers":[]}"#);
    write("agents.json", "[]");
    write("serve.toml", text);
    load(&dir.path().join("serve.toml")).map_err(|e| e.to_string())
}

const GOOD: &str = "url = \"nats://127.0.0.1:4222\"\nkey = \"c.seed\"\ntrust = \"trust.json\"\nagents = \"agents.json\"\n\
    creds = \"c.creds\"\ndata_dir = \"data\"\n";

#[test]
fn every_problem_is_told_at_once() {
    let text = "key = \"none\"\nagents = \"serve.toml\"\nbound = 3\ndata_dir = \"data\"\nprefix = \"a.b\"\n[bounds]\njobs_days = 0\n";
    let error = load_text(text).expect_err("bad");
    for part in [
        "url: is missing",
        "key: ",
        "agents: ",
        "bound: is no key; did you mean bounds",
        "prefix: ",
        "bounds.jobs_days: 0 is not between 1 and",
        "data/trust.json",
    ] {
        assert!(error.contains(part), "{part} in {error}");
    }
}

#[test]
fn every_key_can_be_written_and_its_default_is_what_counts_without_it() {
    let schema = schema::schema();
    let shown = show::uncommented(&show::commented(&schema)).expect("its defaults are TOML");
    let written: Written = toml::Value::Table(shown.clone()).try_into().expect("every key is known");
    let own = |name: &str| Some(Path::new(schema::DATA_DIR).join(name));
    assert_eq!(written.key, own(schema::KEY));
    assert_eq!(written.creds, own(schema::CREDS));
    assert_eq!(written.trust, own(schema::TRUST));
    assert_eq!(written.agents, own(schema::AGENTS));
    assert_eq!(written.data_dir.as_deref(), Some(Path::new(schema::DATA_DIR)));
    assert_eq!(written.bounds, Bounds::default());
    let without = load_text(GOOD).expect("good");
    assert_eq!(written.prefix.as_deref(), Some(without.prefix.as_str()));
    for key in schema.keys.iter().filter(|key| key.default.is_none()) {
        assert!(key.required || key.path == "ca_file", "{} has neither default nor test", key.path);
    }
}

#[test]
fn the_shipped_file_is_the_commented_list_of_keys() {
    let shipped = include_str!("../../../../packaging/etc/serve.toml");
    let wanted = show::commented(&schema::schema());
    assert_eq!(shipped, wanted, "write it anew: sally serve config default > packaging/etc/serve.toml");
}
