//! What agent, launcher and keeper tell each other.

use sally_agent::sandbox::{
    Access, ExitRecord, Limits, MAX_PLAN_BYTES, Plan, Profile, ProfileDefinition, readers,
};
use sally_common::name::ProfileName;

/// A plan that is believed reads back as the same, and can be described.
pub(super) fn plan(bytes: &[u8]) {
    let Ok(plan) = Plan::parse(bytes) else { return };
    assert!(!plan.describe().is_empty());
    assert!(!plan.search_path().contains('\0'));
    let _ = plan.limits.check_within(&Limits::CEILING);
    let again = serde_json::to_vec(&plan).expect("a plan is written");
    if again.len() <= MAX_PLAN_BYTES {
        assert_eq!(Plan::parse(&again), Ok(plan));
    }
}

/// An operator's profile: one that is refused says why, one that is believed asks for nothing relative, and for no more
/// than any host allows.
pub(super) fn profile(bytes: &[u8]) {
    let name: ProfileName = "site".parse().expect("a name");
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match ProfileDefinition::parse(&name, text) {
        Err(problems) => assert!(!problems.is_empty() && problems.iter().all(|p| !p.is_empty())),
        Ok(definition) => {
            assert_eq!(definition.limits(Limits::default()).check_within(&Limits::CEILING), Ok(()));
            for access in [Access::Hide, Access::Read, Access::Write] {
                assert!(definition.paths_to(access).all(|path| path.is_absolute()));
            }
        }
    }
}

/// Messages on the sockets: each is read as the same once it was written.
pub(super) fn launcher(bytes: &[u8]) {
    for written in readers::reread_message(bytes) {
        assert!(
            readers::reread_message(&written).contains(&written),
            "{}",
            String::from_utf8_lossy(&written)
        );
    }
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(profile) = text.parse::<Profile>()
    {
        assert_eq!(profile.to_string(), text);
    }
}

/// A record that is believed is one line, and reads back as the same.
pub(super) fn record(bytes: &[u8]) {
    let Some(record) = ExitRecord::from_line(bytes) else { return };
    let line = record.to_line();
    assert_eq!(line.iter().position(|byte| *byte == b'\n'), Some(line.len() - 1));
    assert_eq!(ExitRecord::from_line(&line).as_ref(), Some(&record));
    // A torn one is none.
    assert_eq!(ExitRecord::from_line(&line[..line.len() - 1]), None);
}

/// The message with the secrets: nothing is added, lost or moved.
pub(super) fn secrets(bytes: &[u8]) {
    if let Some(again) = readers::reread_secrets(bytes) {
        assert_eq!(again, bytes);
    }
}
