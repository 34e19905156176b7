//! Keys: who signs, and how a signature is checked.
//!
//! Ed25519 in the text form of nkeys (`U…` public, `SU…` seed), so that operators have one kind of
//! key text. A signature covers the message's domain, a zero byte, and the exact body bytes; a
//! signature of one kind can therefore never be offered as another.
//!
//! These keys sign Sally's messages and nothing else. The key with which a program logs in to
//! the broker is another one: the broker picks the nonce that such a key signs, so it could ask
//! for a signature over an order.

use ed25519_dalek::{Signature as DalekSignature, Signer, VerifyingKey};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::path::Path;
use std::str::FromStr;

use crate::wire::Kind;

/// Why a key could not be read or a signature did not hold.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The text is not a public key of the form `U…`.
    #[error("\"{0}\" is not a public key: expected 56 characters starting with U")]
    NotPublic(String),
    /// The text is not a seed. The text itself is never shown.
    #[error("not a signing seed: expected 58 characters starting with SU")]
    NotSeed,
    /// The seed file could not be read.
    #[error("cannot read the signing key {path}: {source}")]
    Read {
        /// The file.
        path: String,
        /// What the system said.
        source: std::io::Error,
    },
}

/// A public key, the identity of an agent, a controller or a caller.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct PublicKey {
    text: String,
    bytes: [u8; 32],
}

impl PublicKey {
    /// Whether `signature` is this key's over `body` in the domain of `kind`. Strict: small-order
    /// keys and non-canonical signatures are refused (RFC 8032 5.1.7, ed25519-dalek
    /// `verify_strict`).
    pub fn verify(&self, kind: Kind, body: &[u8], signature: &Signature) -> bool {
        let Ok(key) = VerifyingKey::from_bytes(&self.bytes) else { return false };
        key.verify_strict(&signed_bytes(kind, body), &DalekSignature::from_bytes(&signature.0)).is_ok()
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;
    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bad = || KeyError::NotPublic(crate::name::show(text));
        if text.len() != 56 || !text.starts_with('U') {
            return Err(bad());
        }
        // The text has a checksum. That the bytes are a point of the curve is found when a signature is checked, which
        // costs that anyway; a key that is none signs nothing.
        let (_, bytes) = nkeys::from_public_key(text).map_err(|_| bad())?;
        Ok(Self { text: text.to_owned(), bytes })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for PublicKey {
    type Error = KeyError;
    fn try_from(text: String) -> Result<Self, KeyError> {
        text.parse()
    }
}

impl From<PublicKey> for String {
    fn from(key: PublicKey) -> String {
        key.to_string()
    }
}

/// A signature, 64 bytes, written in base64url without padding.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Signature([u8; 64]);

impl FromStr for Signature {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let bytes = data_encoding::BASE64URL_NOPAD.decode(text.as_bytes()).ok();
        let bytes: Option<[u8; 64]> = bytes.and_then(|b| b.try_into().ok());
        bytes.map(Self).ok_or_else(|| "not a signature: expected 86 characters of base64url".to_owned())
    }
}

impl TryFrom<String> for Signature {
    type Error = String;
    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Signature> for String {
    fn from(signature: Signature) -> String {
        signature.to_string()
    }
}

impl fmt::Display for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&data_encoding::BASE64URL_NOPAD.encode(&self.0))
    }
}

impl fmt::Debug for Signature {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A private key that signs.
#[derive(Clone)]
pub struct SigningKey {
    key: ed25519_dalek::SigningKey,
    public: PublicKey,
}

impl SigningKey {
    /// Makes a new key from the system's random source.
    pub fn generate() -> Self {
        Self::from_secret(crate::id::random_bytes())
    }

    /// The key of a 32-byte secret.
    pub fn from_secret(secret: [u8; 32]) -> Self {
        let key = ed25519_dalek::SigningKey::from_bytes(&secret);
        let text = nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::User, secret)
            .map(|pair| pair.public_key())
            .unwrap_or_default();
        let public = PublicKey { text, bytes: key.verifying_key().to_bytes() };
        Self { key, public }
    }

    /// Reads the text of a seed, `SU…`.
    pub fn from_seed(text: &str) -> Result<Self, KeyError> {
        let (kind, secret) = nkeys::decode_seed(text.trim()).map_err(|_| KeyError::NotSeed)?;
        if nkeys::KeyPairType::from(kind) != nkeys::KeyPairType::User {
            return Err(KeyError::NotSeed);
        }
        Ok(Self::from_secret(secret))
    }

    /// Reads a seed file.
    pub fn read(path: &Path) -> Result<Self, KeyError> {
        let text = std::fs::read_to_string(path)
            .map_err(|source| KeyError::Read { path: path.display().to_string(), source })?;
        Self::from_seed(&text)
    }

    /// The seed's text. It is a secret: write it to files of mode 0600 only.
    pub fn seed(&self) -> String {
        let pair = nkeys::KeyPair::new_from_raw(nkeys::KeyPairType::User, self.key.to_bytes());
        pair.and_then(|p| p.seed()).unwrap_or_default()
    }

    /// The public half.
    pub fn public(&self) -> &PublicKey {
        &self.public
    }

    /// Signs a body in the domain of its kind.
    pub fn sign(&self, kind: Kind, body: &[u8]) -> Signature {
        Signature(self.key.sign(&signed_bytes(kind, body)).to_bytes())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey of {}", self.public)
    }
}

fn signed_bytes(kind: Kind, body: &[u8]) -> Vec<u8> {
    let domain = kind.domain().as_bytes();
    let mut bytes = Vec::with_capacity(domain.len() + 1 + body.len());
    bytes.extend_from_slice(domain);
    bytes.push(0);
    bytes.extend_from_slice(body);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_secret([n; 32])
    }

    #[test]
    fn keys_read_back_in_the_text_form_of_nkeys() {
        let key = key(7);
        let again = SigningKey::from_seed(&key.seed()).expect("its own seed");
        assert_eq!(again.public(), key.public());
        let public = key.public().to_string();
        assert_eq!(public.len(), 56);
        assert_eq!(&public.parse::<PublicKey>().expect("its own text"), key.public());
        for bad in ["", "U", &public[1..], &public.to_lowercase(), &public.replace(&public[5..6], "0")] {
            assert!(bad.parse::<PublicKey>().is_err(), "{bad}");
        }
        assert!(SigningKey::from_seed("SU").is_err());
    }

    #[test]
    fn a_signature_holds_for_its_key_kind_and_bytes_only() {
        let signature = key(1).sign(Kind::Order, b"body");
        assert!(key(1).public().verify(Kind::Order, b"body", &signature));
        assert!(!key(2).public().verify(Kind::Order, b"body", &signature));
        assert!(!key(1).public().verify(Kind::Dispatch, b"body", &signature));
        assert!(!key(1).public().verify(Kind::Order, b"bodz", &signature));
        assert!(!key(1).public().verify(Kind::Order, b"", &signature));
    }

    #[test]
    fn a_small_order_key_signs_nothing() {
        // The identity point: under plain verification it accepts a forged signature for any body.
        let mut identity = [0; 32];
        identity[0] = 1;
        let mut forged = [0; 64];
        forged[0] = 1;
        assert!(!PublicKey { text: String::new(), bytes: identity }.verify(
            Kind::Order,
            b"anything",
            &Signature(forged)
        ));
    }

    #[test]
    fn debug_output_holds_no_secret() {
        let key = key(3);
        assert!(!format!("{key:?}").contains(&key.seed()));
    }
}
