//! Secrets sealed to one agent: only that agent's host can open them, whoever owns the broker or reads the ledger.
//!
//! A secret is sealed with curve keys of nkeys (X25519, XSalsa20-Poly1305, `xkv1`), by a key that is made for one
//! order and thrown away. Inside, beside the value, stand the request id and the key of the caller who signs
//! the order: a sealed secret that somebody copies into an order of their own does not open there.
#![forbid(unsafe_code)]

use nkeys::XKey;
use serde::{Deserialize, Serialize};

use crate::id::RequestId;
use crate::key::PublicKey;
use crate::limit::SECRET_BYTES_MAX;
use crate::wire::order::{OrderSignature, SealedSecret};

/// What is sealed.
#[derive(Serialize, Deserialize)]
struct Inside {
    request_id: RequestId,
    by: PublicKey,
    name: String,
    /// Base64.
    value: String,
}

/// Why a secret cannot be sealed or opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum SecretError {
    #[error("a secret has at most {SECRET_BYTES_MAX} bytes")]
    TooLarge,
    #[error(
        "a secret's name is 1 to 64 letters, digits, dots, dashes and underscores, and begins with no dot"
    )]
    BadName,
    #[error("this is no curve key")]
    BadKey,
    #[error("it was not sealed for this agent, or was altered")]
    NotForUs,
    #[error("it was sealed for another order")]
    OtherOrder,
}

/// The agent's secret curve key.
pub struct CurveKey(XKey);

impl CurveKey {
    /// A new one, from the system's random numbers.
    pub fn generate() -> Self {
        Self(XKey::new())
    }

    /// Reads a seed (`SX…`).
    pub fn from_seed(seed: &str) -> Result<Self, SecretError> {
        XKey::from_seed(seed.trim()).map(Self).map_err(|_| SecretError::BadKey)
    }

    /// The seed (`SX…`), to be kept in a file of mode 0600.
    pub fn seed(&self) -> Result<String, SecretError> {
        self.0.seed().map_err(|_| SecretError::BadKey)
    }

    /// The public key (`X…`).
    pub fn public(&self) -> String {
        self.0.public_key()
    }

    /// Opens a secret of an order with this request id and these signatures, which were checked before.
    pub fn open(
        &self,
        secret: &SealedSecret,
        request_id: &RequestId,
        signatures: &[OrderSignature],
    ) -> Result<Vec<u8>, SecretError> {
        let (from, sealed) = secret.sealed.split_once('.').ok_or(SecretError::NotForUs)?;
        let from = XKey::from_public_key(from).map_err(|_| SecretError::NotForUs)?;
        let sealed = data_encoding::BASE64.decode(sealed.as_bytes()).map_err(|_| SecretError::NotForUs)?;
        let opened = self.0.open(&sealed, &from).map_err(|_| SecretError::NotForUs)?;
        let inside: Inside = serde_json::from_slice(&opened).map_err(|_| SecretError::NotForUs)?;
        let signed = signatures.iter().any(|s| s.key == inside.by);
        if inside.request_id != *request_id || inside.name != secret.name || !signed {
            return Err(SecretError::OtherOrder);
        }
        let value =
            data_encoding::BASE64.decode(inside.value.as_bytes()).map_err(|_| SecretError::NotForUs)?;
        if value.len() > SECRET_BYTES_MAX { Err(SecretError::TooLarge) } else { Ok(value) }
    }
}

/// Seals a secret for one agent. `by` is the key that will sign the order with this request id.
pub fn seal(
    name: &str,
    value: &[u8],
    agent_key: &PublicKey,
    agent_curve_key: &str,
    request_id: &RequestId,
    by: &PublicKey,
) -> Result<SealedSecret, SecretError> {
    check_name(name)?;
    if value.len() > SECRET_BYTES_MAX {
        return Err(SecretError::TooLarge);
    }
    let to = XKey::from_public_key(agent_curve_key).map_err(|_| SecretError::BadKey)?;
    let inside = Inside {
        request_id: request_id.clone(),
        by: by.clone(),
        name: name.to_owned(),
        value: data_encoding::BASE64.encode(value),
    };
    let from = XKey::new();
    let text = serde_json::to_vec(&inside).map_err(|_| SecretError::BadName)?;
    let sealed = from.seal(&text, &to).map_err(|_| SecretError::BadKey)?;
    let sealed = format!("{}.{}", from.public_key(), data_encoding::BASE64.encode(&sealed));
    Ok(SealedSecret { name: name.to_owned(), agent_key: agent_key.clone(), sealed })
}

/// Whether a secret may have this name: it becomes a file name.
pub fn check_name(name: &str) -> Result<(), SecretError> {
    let fine = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
    let good = (1..=64).contains(&name.len()) && !name.starts_with('.') && name.bytes().all(fine);
    if good { Ok(()) } else { Err(SecretError::BadName) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SigningKey;
    use crate::wire::Kind;

    struct World {
        agent: SigningKey,
        curve: CurveKey,
        caller: SigningKey,
        request: RequestId,
    }

    fn world() -> World {
        World {
            agent: SigningKey::from_secret([1; 32]),
            curve: CurveKey::generate(),
            caller: SigningKey::from_secret([2; 32]),
            request: "r-1".parse().expect("an id"),
        }
    }

    fn signature(key: &SigningKey) -> OrderSignature {
        OrderSignature { key: key.public().clone(), signature: key.sign(Kind::Order, b"order") }
    }

    fn sealed(w: &World) -> SealedSecret {
        let (agent, caller) = (w.agent.public(), w.caller.public());
        seal("token", b"hunter2", agent, &w.curve.public(), &w.request, caller).expect("sealed")
    }

    #[test]
    fn the_agent_opens_it_and_nobody_else() {
        let w = world();
        let secret = sealed(&w);
        assert!(!secret.sealed.contains("hunter2"));
        assert_eq!(
            w.curve.open(&secret, &w.request, &[signature(&w.caller)]).as_deref(),
            Ok(&b"hunter2"[..])
        );
        let other = CurveKey::generate();
        assert_eq!(other.open(&secret, &w.request, &[signature(&w.caller)]), Err(SecretError::NotForUs));
    }

    #[test]
    fn a_copy_in_another_order_does_not_open() {
        let w = world();
        let secret = sealed(&w);
        let thief = SigningKey::from_secret([3; 32]);
        assert_eq!(w.curve.open(&secret, &w.request, &[signature(&thief)]), Err(SecretError::OtherOrder));
        let request = "r-2".parse().expect("an id");
        assert_eq!(w.curve.open(&secret, &request, &[signature(&w.caller)]), Err(SecretError::OtherOrder));
        let renamed = SealedSecret { name: "other".into(), ..secret };
        assert_eq!(w.curve.open(&renamed, &w.request, &[signature(&w.caller)]), Err(SecretError::OtherOrder));
    }

    #[test]
    fn every_altered_bit_is_noticed() {
        let w = world();
        let secret = sealed(&w);
        let (from, text) = secret.sealed.split_once('.').expect("two parts");
        let bytes = data_encoding::BASE64.decode(text.as_bytes()).expect("base64");
        for bit in 0..bytes.len() * 8 {
            let mut bytes = bytes.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let sealed = format!("{from}.{}", data_encoding::BASE64.encode(&bytes));
            let altered = SealedSecret { sealed, ..secret.clone() };
            assert!(w.curve.open(&altered, &w.request, &[signature(&w.caller)]).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_seed_reads_back() {
        let key = CurveKey::generate();
        let again = CurveKey::from_seed(&key.seed().expect("a seed")).expect("read");
        assert_eq!(key.public(), again.public());
        assert!(CurveKey::from_seed("SUAB").is_err());
    }

    #[test]
    fn names_are_file_names() {
        for name in ["a", "db-password", "tls.key", "A_1"] {
            assert_eq!(check_name(name), Ok(()), "{name}");
        }
        for name in ["", ".", "..", ".a", "a/b", "a b", "ä", &"x".repeat(65)] {
            assert_eq!(check_name(name), Err(SecretError::BadName), "{name}");
        }
    }
}
