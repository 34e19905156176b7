//! Who may sign what: the key list that every agent and caller pins.
//!
//! The list is versioned and expires; a holder never goes back to a lower version. Several
//! controllers, rotation and M-of-N callers are all the same mechanism: more keys on the list, and
//! a threshold above one.

use serde::{Deserialize, Serialize};

use crate::key::PublicKey;
use crate::name::User;
use crate::wire::{Kind, OrderSignature, Refusal};

/// The pinned keys.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrustList {
    /// Counts up with every change.
    pub version: u64,
    /// After this wall-clock time the list trusts nobody. Unix milliseconds.
    pub expires_ms: i64,
    /// How many different callers must have signed an order.
    pub threshold: u32,
    /// Keys that may sign dispatches, receipts, cancels, answers and chunks.
    pub controllers: Vec<PublicKey>,
    /// Keys that may sign orders.
    pub callers: Vec<Caller>,
}

/// One caller: a person or a program that submits.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Caller {
    /// The name that records show.
    pub name: User,
    /// The key that signs the caller's orders.
    pub key: PublicKey,
}

impl TrustList {
    /// Whether this key may speak as a controller now.
    pub fn is_controller(&self, key: &PublicKey, now_ms: i64) -> bool {
        now_ms < self.expires_ms && self.controllers.contains(key)
    }

    /// The caller who holds this key.
    pub fn caller(&self, key: &PublicKey) -> Option<&Caller> {
        self.callers.iter().find(|c| &c.key == key)
    }

    /// Checks an order's signatures: each must hold, each must be of another listed caller, and
    /// there must be enough. Returns the callers in the order of their signatures.
    pub fn check_order(
        &self,
        order: &[u8],
        signatures: &[OrderSignature],
        now_ms: i64,
    ) -> Result<Vec<&Caller>, Refusal> {
        if signatures.is_empty() {
            return Err(Refusal::Unsigned);
        }
        if now_ms >= self.expires_ms {
            return Err(Refusal::TrustExpired);
        }
        let mut callers: Vec<&Caller> = Vec::new();
        for signature in signatures.iter().take(MAX_SIGNATURES) {
            let caller = self.caller(&signature.key).ok_or(Refusal::UnknownKey)?;
            if !signature.key.verify(Kind::Order, order, &signature.signature) {
                return Err(Refusal::BadSignature);
            }
            if !callers.contains(&caller) {
                callers.push(caller);
            }
        }
        if callers.len() < self.threshold.max(1) as usize {
            return Err(Refusal::TooFewSignatures);
        }
        Ok(callers)
    }
}

/// Signatures on one order that are looked at; verifying costs time, so a flood is cut here.
const MAX_SIGNATURES: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::key::SigningKey;

    fn key(n: u8) -> SigningKey {
        SigningKey::from_secret([n; 32])
    }

    fn list(threshold: u32) -> TrustList {
        let caller =
            |n: u8, name: &str| Caller { name: User::new(name).expect("name"), key: key(n).public().clone() };
        TrustList {
            version: 1,
            expires_ms: 1_000,
            threshold,
            controllers: vec![key(9).public().clone()],
            callers: vec![caller(1, "ann"), caller(2, "bob")],
        }
    }

    fn sign(n: u8) -> OrderSignature {
        OrderSignature { key: key(n).public().clone(), signature: key(n).sign(Kind::Order, b"order") }
    }

    fn check(threshold: u32, signatures: &[OrderSignature], now: i64) -> Result<usize, Refusal> {
        list(threshold).check_order(b"order", signatures, now).map(|c| c.len())
    }

    #[test]
    fn an_order_needs_listed_callers_and_enough_of_them() {
        assert_eq!(check(1, &[sign(1)], 0), Ok(1));
        assert_eq!(check(2, &[sign(1), sign(2)], 0), Ok(2));
        assert_eq!(check(1, &[], 0), Err(Refusal::Unsigned));
        assert_eq!(check(1, &[sign(3)], 0), Err(Refusal::UnknownKey));
        assert_eq!(check(1, &[sign(9)], 0), Err(Refusal::UnknownKey), "a controller is no caller");
        assert_eq!(check(2, &[sign(1)], 0), Err(Refusal::TooFewSignatures));
        assert_eq!(check(2, &[sign(1), sign(1)], 0), Err(Refusal::TooFewSignatures), "one person twice");
        assert_eq!(check(1, &[sign(1)], 1_000), Err(Refusal::TrustExpired));
        let stolen = OrderSignature { key: key(2).public().clone(), ..sign(1) };
        assert_eq!(check(1, &[stolen], 0), Err(Refusal::BadSignature));
    }

    #[test]
    fn only_listed_controllers_speak_and_only_in_time() {
        assert!(list(1).is_controller(key(9).public(), 0));
        assert!(!list(1).is_controller(key(1).public(), 0), "a caller is no controller");
        assert!(!list(1).is_controller(key(9).public(), 1_000));
    }
}
