//! Signing one NATS claim: a JWT of algorithm `ed25519-nkey`.

use data_encoding::{BASE32_NOPAD, BASE64URL_NOPAD};
use nkeys::KeyPair;
use serde_json::{Value, json};
use sha2::{Digest, Sha512_256};

const HEADER: &[u8] = br#"{"typ":"JWT","alg":"ed25519-nkey"}"#;

/// Who a claim is about, and for how long it holds.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// Public nkey of the operator, account or user.
    pub key: &'a str,
    /// The name shown by the broker.
    pub name: &'a str,
    /// When it was issued, in seconds since 1970.
    pub issued_at: u64,
    /// When it ends, in seconds since 1970; the broker drops the connection then. `None`: never.
    pub expires_at: Option<u64>,
}

/// The signing key cannot sign: it was made from a public key alone.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[error("cannot sign a broker credential: the key of {issuer} has no seed here")]
pub struct CannotSign {
    /// Public nkey of the one that should have signed.
    pub issuer: String,
}

/// Returns the signed JWT that says `claims` about `subject`, issued by `issuer`.
///
/// The same arguments give the same text. Its id is the digest of the claim, as the broker's own tools make it.
///
/// # Errors
/// When `issuer` holds no seed.
pub fn sign(issuer: &KeyPair, subject: Subject<'_>, claims: Value) -> Result<String, CannotSign> {
    let mut claim = json!({
        "jti": "",
        "iat": subject.issued_at,
        "iss": issuer.public_key(),
        "name": subject.name,
        "sub": subject.key,
        "nats": claims,
    });
    if let Some(expires_at) = subject.expires_at {
        claim["exp"] = expires_at.into();
    }
    claim["jti"] = BASE32_NOPAD.encode(&Sha512_256::digest(claim.to_string())).into();

    let body = format!(
        "{}.{}",
        BASE64URL_NOPAD.encode(HEADER),
        BASE64URL_NOPAD.encode(claim.to_string().as_bytes())
    );
    let signature = issuer.sign(body.as_bytes()).map_err(|_| CannotSign { issuer: issuer.public_key() })?;
    Ok(format!("{body}.{}", BASE64URL_NOPAD.encode(&signature)))
}

/// What a JWT says, unchecked: whoever let its holder in has checked it. `None` if it is no JWT.
pub fn peek(jwt: &str) -> Option<Value> {
    let payload = BASE64URL_NOPAD.decode(jwt.split('.').nth(1)?.as_bytes()).ok()?;
    serde_json::from_slice(&payload).ok()
}

/// Whether two JWTs are of one issuer and allow the same, whenever they were issued.
pub fn say_the_same(one: &str, other: &str) -> bool {
    let said = |jwt: &str| peek(jwt).map(|mut claim| (claim["iss"].take(), claim["nats"].take()));
    said(one).is_some_and(|one| said(other) == Some(one))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
pub(super) mod tests {
    use super::*;

    /// Takes a JWT apart and checks its signature: (claim, issuer's public key).
    pub(in crate::nats) fn open(jwt: &str) -> Value {
        let (body, signature) = jwt.rsplit_once('.').unwrap();
        let (header, payload) = body.split_once('.').unwrap();
        assert_eq!(BASE64URL_NOPAD.decode(header.as_bytes()).unwrap(), HEADER);
        let claim: Value =
            serde_json::from_slice(&BASE64URL_NOPAD.decode(payload.as_bytes()).unwrap()).unwrap();
        let issuer = KeyPair::from_public_key(claim["iss"].as_str().unwrap()).unwrap();
        issuer.verify(body.as_bytes(), &BASE64URL_NOPAD.decode(signature.as_bytes()).unwrap()).unwrap();
        claim
    }

    #[test]
    fn a_claim_is_signed_and_carries_its_times() {
        let issuer = KeyPair::new_account();
        let subject = Subject { key: "UABC", name: "n", issued_at: 10, expires_at: Some(20) };
        let jwt = sign(&issuer, subject, json!({"type": "user"})).unwrap();
        let claim = open(&jwt);
        assert_eq!(claim["iat"], 10);
        assert_eq!(claim["exp"], 20);
        assert_eq!(claim["sub"], "UABC");
        assert_eq!(claim["nats"]["type"], "user");
        assert_eq!(claim["jti"].as_str().unwrap().len(), 52);
        assert_eq!(jwt, sign(&issuer, subject, json!({"type": "user"})).unwrap(), "same input, same text");
    }

    #[test]
    fn a_claim_without_end_has_no_exp() {
        let subject = Subject { key: "U", name: "n", issued_at: 1, expires_at: None };
        let claim = open(&sign(&KeyPair::new_operator(), subject, json!({})).unwrap());
        assert!(claim.get("exp").is_none());
    }

    #[test]
    fn what_was_issued_at_another_time_says_the_same() {
        let (issuer, other) = (KeyPair::new_account(), KeyPair::new_account());
        let jwt = |issuer: &KeyPair, at: u64, claims: Value| {
            sign(issuer, Subject { key: "U", name: "n", issued_at: at, expires_at: None }, claims).unwrap()
        };
        let first = jwt(&issuer, 1, json!({"a": 1}));
        assert!(say_the_same(&first, &jwt(&issuer, 2, json!({"a": 1}))));
        for differs in [jwt(&issuer, 1, json!({"a": 2})), jwt(&other, 1, json!({"a": 1})), String::new()] {
            assert!(!say_the_same(&first, &differs));
        }
        assert!(!say_the_same("", "") && peek("a.b.c").is_none());
    }

    #[test]
    fn a_public_key_cannot_sign() {
        let public = KeyPair::new_account().public_key();
        let issuer = KeyPair::from_public_key(&public).unwrap();
        let subject = Subject { key: "U", name: "n", issued_at: 1, expires_at: None };
        assert_eq!(sign(&issuer, subject, json!({})), Err(CannotSign { issuer: public }));
    }
}
