#![expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
use serde_json::json;

use super::super::jwt::tests::open;
use super::*;

const NOW: u64 = 1_700_000_000;

fn trust() -> Trust {
    let mut trust = Trust::new("sally").unwrap();
    trust.add_zone("dmz").unwrap();
    trust
}

fn user_claim(role: Role<'_>) -> Value {
    open(trust().user(role, KeyPair::new_user(), NOW, None).unwrap().jwt())
}

#[test]
fn an_agent_may_write_its_five_subjects_and_read_one() {
    let claim = user_claim(Role::Agent { zone: "dmz", agent: "a1" });
    let nats = &claim["nats"];
    assert_eq!(
        nats["pub"],
        json!({"allow": ["sally.state.dmz.a1", "sally.result.dmz.a1", "sally.log.dmz.a1",
                         "sally.heartbeat.dmz.a1", "sally.ask.dmz.a1"]})
    );
    assert_eq!(nats["sub"], json!({"allow": ["sally.live.dmz.a1"]}));
    assert!(nats.get("resp").is_none(), "a reply subject must stay under the publish rules");
}

#[test]
fn a_caller_asks_the_controller_and_reads_its_own_inbox_only() {
    let nats = user_claim(Role::Caller { name: "ann" })["nats"].clone();
    assert_eq!(nats["pub"], json!({"allow": ["sally.api.>"]}));
    assert_eq!(nats["sub"], json!({"allow": ["_INBOX_cli.ann.>"]}));
}

#[test]
fn the_system_and_zone_accounts_have_no_jetstream() {
    for (_, jwt) in trust().account_jwts(NOW).unwrap() {
        let claim = open(&jwt);
        let has = claim["nats"]["limits"].get("disk_storage").is_some();
        assert_eq!(has, claim["name"] == HUB_ACCOUNT, "{}", claim["name"]);
    }
}

#[test]
fn a_zone_imports_its_own_subjects_and_no_others() {
    let accounts = trust().account_jwts(NOW).unwrap();
    let zone = accounts.iter().map(|(_, jwt)| open(jwt)).find(|claim| claim["name"] == "dmz").unwrap();
    let subjects: Vec<_> = zone["nats"]["imports"]
        .as_array()
        .unwrap()
        .iter()
        .map(|i| format!("{} {}", i["type"].as_str().unwrap(), i["subject"].as_str().unwrap()))
        .collect();
    assert_eq!(
        subjects,
        [
            "service sally.state.dmz.>",
            "service sally.result.dmz.>",
            "service sally.log.dmz.>",
            "service sally.heartbeat.dmz.>",
            "service sally.ask.dmz.>",
            "service sally.enroll.dmz.>",
            "stream sally.live.dmz.>",
            "stream sally.enrolled.dmz.>"
        ]
    );
}

#[test]
fn kept_seeds_give_the_same_tree() {
    let first = trust();
    let text = serde_json::to_string(&first.seeds().unwrap()).unwrap();
    let again = Trust::from_seeds("sally", &serde_json::from_str(&text).unwrap()).unwrap();
    assert_eq!(first.account_jwts(NOW).unwrap(), again.account_jwts(NOW).unwrap());
    assert_eq!(first.operator_jwt(NOW).unwrap(), again.operator_jwt(NOW).unwrap());
}

#[test]
fn a_zone_is_added_once() {
    let mut trust = trust();
    let before = trust.account_jwts(NOW).unwrap();
    assert!(!trust.add_zone("dmz").unwrap());
    assert_eq!(before, trust.account_jwts(NOW).unwrap());
}

#[test]
fn seeds_of_the_wrong_kind_are_refused() {
    let mut seeds = trust().seeds().unwrap();
    seeds.operator = seeds.hub.clone();
    assert_eq!(Trust::from_seeds("sally", &seeds).err(), Some(TrustError::Seed("the operator".to_owned())));
}

#[test]
fn nothing_but_a_name_reaches_a_subject() {
    let trust = trust();
    for bad in ["", "*", ">", "a.b", "A", "-a", "a b", "ä", &"a".repeat(64)] {
        assert!(Trust::new(bad).is_err(), "prefix {bad:?}");
        for role in [Role::Agent { zone: "dmz", agent: bad }, Role::Caller { name: bad }] {
            assert!(trust.user(role, KeyPair::new_user(), NOW, None).is_err(), "{role:?}");
        }
    }
    let role = Role::Agent { zone: "shop", agent: "a" };
    assert_eq!(
        trust.user(role, KeyPair::new_user(), NOW, None).err(),
        Some(TrustError::NoZone("shop".to_owned()))
    );
}

#[test]
fn only_a_callers_inbox_is_answered() {
    assert!(is_caller_inbox(&format!("{}.x1.y", caller_inbox("ann"))));
    for subject in [
        "",
        "sally.task.dmz.a1",
        "_INBOX_ctl.x",
        "_INBOX_cli",
        "_INBOX_cli.ann",
        "_INBOX_cli..x",
        "_INBOX_cli.a.>",
    ] {
        assert!(!is_caller_inbox(subject), "{subject}");
    }
}

#[test]
fn a_token_of_enrolment_asks_on_one_subject_and_hears_on_one() {
    let claim = user_claim(Role::Enroller { zone: "dmz", token: "t1" });
    assert_eq!(claim["nats"]["pub"], json!({"allow": ["sally.enroll.dmz.t1"]}));
    assert_eq!(claim["nats"]["sub"], json!({"allow": ["sally.enrolled.dmz.t1"]}));
    let subjects = ("sally.enroll.dmz.t1".to_owned(), "sally.enrolled.dmz.t1".to_owned());
    assert_eq!(enrolment_subjects("sally", "dmz", "t1"), subjects);
}

#[test]
fn who_gives_accounts_to_the_broker_may_do_nothing_else() {
    let claim = user_claim(Role::Accounts);
    assert_eq!(
        claim["nats"]["pub"],
        json!({"allow": ["$SYS.REQ.CLAIMS.UPDATE", "$SYS.REQ.ACCOUNT.*.CLAIMS.LOOKUP"]})
    );
    assert_eq!(claim["nats"]["sub"], json!({"allow": ["_INBOX_acc.>"]}));
}

#[test]
fn accounts_are_issued_by_the_signing_key_that_the_operator_names() {
    let trust = trust();
    let operator = open(&trust.operator_jwt(NOW).unwrap());
    let signing = &operator["nats"]["signing_keys"][0];
    for (_, jwt) in trust.account_jwts(NOW).unwrap() {
        assert_eq!(&open(&jwt)["iss"], signing);
        assert_ne!(open(&jwt)["iss"], operator["iss"]);
    }
}

/// What the controller is given issues agents and revokes them, and cannot speak as hub, operator or system.
#[test]
fn an_issuer_can_do_what_a_controller_must_and_no_more() {
    let whole = trust();
    let issuer = Trust::from_seeds("sally", &whole.issuer().unwrap()).unwrap();
    let user = KeyPair::new_user().public_key();
    let role = Role::Agent { zone: "dmz", agent: "a1" };
    assert_eq!(issuer.user_jwt(role, &user, NOW, None), whole.user_jwt(role, &user, NOW, None));
    assert_eq!(issuer.zone_jwt("dmz", NOW), whole.zone_jwt("dmz", NOW));
    for role in [Role::Controller, Role::Caller { name: "ann" }, Role::Accounts] {
        let refused = issuer.user_jwt(role, &user, NOW, None);
        assert!(matches!(refused, Err(TrustError::CannotSign(_))), "{role:?}");
    }
    assert!(issuer.operator_jwt(NOW).is_err() && issuer.seeds().is_err());
}

#[test]
fn a_revoked_user_stands_in_its_zones_account() {
    let mut trust = trust();
    let user = KeyPair::new_user().public_key();
    trust.revoke("dmz", &user, NOW).unwrap();
    trust.revoke("dmz", &user, NOW - 5).unwrap();
    let claim = open(&trust.zone_jwt("dmz", NOW).unwrap().1);
    assert_eq!(claim["nats"]["revocations"], json!({ user.as_str(): NOW }), "the later time counts");
    assert_eq!(trust.revoke("shop", &user, NOW), Err(TrustError::NoZone("shop".to_owned())));
    let account = trust.zone_account("dmz").unwrap();
    assert_eq!(trust.revoke("dmz", &account, NOW), Err(TrustError::NotAUser(account)));
}

/// A broker keeps the newest account that it was given. What a start writes anew must not be newer than a revocation.
#[test]
fn what_has_not_changed_is_issued_with_the_same_text() {
    let mut first = trust();
    first.note_issued(NOW);
    let kept = serde_json::to_string(&first.seeds().unwrap()).unwrap();
    let mut again = Trust::from_seeds("sally", &serde_json::from_str(&kept).unwrap()).unwrap();
    assert_eq!(again.account_jwts(NOW + 9).unwrap(), first.account_jwts(NOW).unwrap());
    assert_eq!(again.operator_jwt(NOW + 9).unwrap(), first.operator_jwt(NOW).unwrap());
    let user = KeyPair::new_user().public_key();
    again.revoke("dmz", &user, NOW + 9).unwrap();
    assert_eq!(open(&again.zone_jwt("dmz", NOW + 9).unwrap().1)["iat"], NOW + 9, "a change is newer");
    again.add_zone("shop").unwrap();
    again.note_issued(NOW + 10);
    assert_eq!(open(&again.zone_jwt("shop", NOW + 11).unwrap().1)["iat"], NOW + 10);
}

#[test]
fn a_role_is_known_by_its_users_name_and_says_what_it_may() {
    for role in [
        Role::Controller,
        Role::Caller { name: "ann" },
        Role::Agent { zone: "dmz", agent: "a1" },
        Role::Agent { zone: "leaf", agent: "a1" },
        Role::Leaf { zone: "dmz" },
        Role::Accounts,
    ] {
        let mut trust = trust();
        trust.add_zone("leaf").unwrap();
        let claim = open(trust.user(role, KeyPair::new_user(), NOW, None).unwrap().jwt());
        assert_eq!(Role::of_name(claim["name"].as_str().unwrap()), Some(role));
    }
    assert_eq!(Role::of_name("a b"), None);
    let agent = Role::Agent { zone: "dmz", agent: "a1" };
    assert!(agent.may("sally", Attempt::Publish, "sally.result.dmz.a1"));
    assert!(!agent.may("sally", Attempt::Subscribe, "sally.result.dmz.a1"));
    assert!(!agent.may("sally", Attempt::Publish, "sally.result.dmz.a2"));
}
