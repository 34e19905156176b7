//! Who is enrolled: the decision, and that it is kept.

use sally_common::id::Digest;
use sally_common::key::SigningKey;
use sally_common::name::{Agent, User, Zone};
use sally_common::wire::enrol::NotEnrolled;

use super::super::Ledger;
use super::super::roster::{Asking, EnrolledRow, RevokedRow, TokenRow, judge};

fn zone(name: &str) -> Zone {
    Zone::new(name).expect("a name")
}

fn token(id: &str, uses: u32) -> TokenRow {
    TokenRow {
        id: id.into(),
        zone: zone("dmz"),
        key_digest: Digest::of(id.as_bytes()),
        by: User::new("ann").expect("a name"),
        created_ms: 0,
        expires_ms: 1_000,
        uses,
        used: 0,
    }
}

fn asking(id: &str, agent: &str, key: u8) -> Asking {
    Asking {
        token: id.into(),
        key_digest: Digest::of(id.as_bytes()),
        member: EnrolledRow {
            zone: zone("dmz"),
            agent: Agent::new(agent).expect("a name"),
            key: SigningKey::from_secret([key; 32]).public().clone(),
            user: format!("U{key}"),
        },
        is_taken: false,
        at_ms: 10,
    }
}

#[test]
fn a_token_enrols_its_zone_in_time_and_as_often_as_it_may() {
    let (row, ask) = (token("t", 1), asking("t", "web-1", 1));
    let check =
        |ask: &Asking, token: Option<&TokenRow>, named: Option<&EnrolledRow>| judge(ask, token, named, false);
    assert_eq!(check(&ask, Some(&row), None), Ok(true));
    assert_eq!(check(&ask, None, None), Err(NotEnrolled::UnknownToken));
    let forged = Asking { key_digest: Digest::of(b"other"), ..ask.clone() };
    assert_eq!(check(&forged, Some(&row), None), Err(NotEnrolled::UnknownToken));
    let mut abroad = ask.clone();
    abroad.member.zone = zone("shop");
    assert_eq!(check(&abroad, Some(&row), None), Err(NotEnrolled::OtherZone));
    let used = TokenRow { used: 1, ..row.clone() };
    assert_eq!(check(&ask, Some(&used), None), Err(NotEnrolled::UsedUp));
    let late = Asking { at_ms: 1_000, ..ask.clone() };
    assert_eq!(check(&late, Some(&row), None), Err(NotEnrolled::Expired));
    let other = asking("t", "web-1", 2).member;
    assert_eq!(check(&ask, Some(&row), Some(&other)), Err(NotEnrolled::NameTaken));
    assert_eq!(
        check(&Asking { is_taken: true, ..ask.clone() }, Some(&row), None),
        Err(NotEnrolled::NameTaken)
    );
    assert_eq!(judge(&ask, Some(&row), None, true), Err(NotEnrolled::Revoked));
    // The answer was lost: the same again is no second use, whenever it comes.
    assert_eq!(check(&late, Some(&used), Some(&ask.member)), Ok(false));
}

#[tokio::test(flavor = "current_thread")]
async fn what_was_enrolled_and_revoked_is_there_after_a_restart() {
    let dir = tempfile::tempdir().expect("a folder");
    let path = dir.path().join("ledger.db");
    let ledger = Ledger::open(&path).await.expect("opened");
    ledger.add_token(token("t", 2)).await.expect("kept");
    let (first, second) = (asking("t", "web-1", 1), asking("t", "web-2", 2));
    assert_eq!(ledger.enrol(first.clone()).await.expect("answered"), Ok(true));
    assert_eq!(ledger.enrol(first.clone()).await.expect("answered"), Ok(false));
    assert_eq!(ledger.enrol(second.clone()).await.expect("answered"), Ok(true));
    assert_eq!(ledger.enrol(asking("t", "web-3", 3)).await.expect("answered"), Err(NotEnrolled::UsedUp));
    let row = RevokedRow {
        zone: zone("dmz"),
        agent: first.member.agent.clone(),
        key: first.member.key.clone(),
        user: Some("U1".into()),
        at_ms: 20,
        by: User::new("ann").expect("a name"),
    };
    ledger.revoke(row.clone()).await.expect("kept");
    ledger.close().await;
    let ledger = Ledger::open(&path).await.expect("opened");
    assert_eq!(ledger.enrolled().await.expect("read"), [second.member]);
    assert_eq!(ledger.revoked().await.expect("read"), [row]);
    assert_eq!(ledger.enrol(first).await.expect("answered"), Err(NotEnrolled::Revoked));
    ledger.add_token(token("u", 1)).await.expect("kept");
    assert_eq!(ledger.enrol(asking("u", "web-1", 4)).await.expect("answered"), Ok(true), "the name is free");
    ledger.forget_tokens(1_001).await.expect("done");
    assert_eq!(
        ledger.enrol(asking("u", "web-9", 5)).await.expect("answered"),
        Err(NotEnrolled::UnknownToken)
    );
    ledger.close().await;
}
