use super::*;
use sally_common::key::SigningKey;

fn place() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().expect("a folder");
    let store = Store::at(dir.path().join("config"), dir.path().join("state"));
    (dir, store)
}

fn file(user: &str) -> ContextFile {
    ContextFile {
        version: 1,
        url: "nats://127.0.0.1:4222".into(),
        creds: "caller.creds".into(),
        signing_key: "keys/caller.seed".into(),
        user: User::new(user).expect("name"),
        prefix: None,
        controllers: vec![SigningKey::from_secret([1; 32]).public().clone()],
        inbox: None,
        ca_file: None,
        tls_first: false,
    }
}

#[test]
fn paths_are_relative_to_the_file() {
    let (dir, _) = place();
    let path = dir.path().join("context.toml");
    write_context(&path, &file("ann")).expect("written");
    let context = Context::read(&path).expect("read");
    assert_eq!(context.creds, dir.path().join("caller.creds"));
    assert_eq!(context.signing_key, dir.path().join("keys/caller.seed"));
    assert_eq!(context.inbox, "_INBOX_cli.ann");
    assert_eq!(context.prefix, Prefix::default());
}

#[test]
fn the_asked_one_then_the_selected_one_then_the_last_up() {
    let (dir, store) = place();
    assert!(matches!(store.find(None), Err(ContextError::None)));
    let up = dir.path().join("up/context.toml");
    write_context(&up, &file("ann")).expect("written");
    store.remember_last_up(&up).expect("remembered");
    assert_eq!(store.find(None).expect("the last up"), up);

    let stored = store.add("prod", &up).expect("added");
    assert_eq!(store.find(None).expect("still the last up"), up);
    store.select("prod").expect("selected");
    assert_eq!(store.find(None).expect("the selected one"), stored);
    let context = Context::read(&stored).expect("read");
    assert_eq!(
        context.creds,
        dir.path().join("up/caller.creds"),
        "a stored one points to where it came from"
    );

    assert_eq!(store.find(Some("./x.toml")).expect("a path"), PathBuf::from("./x.toml"));
    let unknown = store.find(Some("dev")).map_err(|e| e.to_string());
    assert_eq!(unknown, Err("there is no context \"dev\"; there are: prod".to_owned()));
    store.remove("prod").expect("removed");
    assert_eq!(store.find(None).expect("the last up again"), up);
    assert!(store.list().is_empty());
}

#[test]
fn a_bad_file_says_what_is_wrong() {
    let (dir, _) = place();
    let path = dir.path().join("c.toml");
    for (text, expected) in [
        ("url = ", "is not a context"),
        ("version = 1\nurll = \"x\"", "unknown field `urll`"),
        ("version = 1", "missing field"),
    ] {
        fs::write(&path, text).expect("written");
        let error = Context::read(&path).map(|_| ()).map_err(|e| e.to_string()).expect_err(text);
        assert!(error.contains(expected) && error.contains("c.toml"), "{error}");
    }
    let newer = ContextFile { version: 2, ..file("ann") };
    write_context(&path, &newer).expect("written");
    assert!(Context::read(&path).is_err_and(|e| e.to_string().contains("version 2")));
    let nobody = ContextFile { controllers: vec![], ..file("ann") };
    write_context(&path, &nobody).expect("written");
    assert!(Context::read(&path).is_err_and(|e| e.to_string().contains("controllers")));
}

#[test]
fn a_name_is_no_path() {
    let (_dir, store) = place();
    for bad in ["", "..", "A", "a b"] {
        assert!(matches!(store.select(bad), Err(ContextError::BadName(_))), "{bad}");
    }
}
