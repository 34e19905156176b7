//! Secrets of an attempt: sealed until its start, opened in memory, masked in all that leaves.
//!
//! The run folder keeps them sealed, so that an agent process that takes a run over can mask what the first one did.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;

use sally_common::id::RequestId;
use sally_common::key::PublicKey;
use sally_common::secret::CurveKey;
use sally_common::wire::order::{Order, OrderSignature, SealedSecret};
use serde::{Deserialize, Serialize};

use crate::script::{Masker, NotMasked};

/// What an order has for this agent, as it came.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    request_id: RequestId,
    signatures: Vec<OrderSignature>,
    secrets: Vec<SealedSecret>,
}

/// Opened secrets, by name.
pub type Opened = Vec<(String, Vec<u8>)>;

impl Sealed {
    /// Those for the agent with this key; `None` if the order has no secrets at all. An order that has a secret for
    /// others and not for this agent cannot be what its caller meant.
    pub fn of(
        order: &Order,
        signatures: &[OrderSignature],
        key: &PublicKey,
    ) -> Result<Option<Sealed>, String> {
        let all = &order.task.secrets;
        if all.is_empty() {
            return Ok(None);
        }
        let secrets: Vec<SealedSecret> = all.iter().filter(|s| s.agent_key == *key).cloned().collect();
        let mut missing: BTreeSet<&str> = all.iter().map(|s| s.name.as_str()).collect();
        for secret in &secrets {
            missing.remove(secret.name.as_str());
        }
        if !missing.is_empty() {
            let names: Vec<&str> = missing.into_iter().collect();
            return Err(format!(
                "secret {} is not sealed for this agent; submit the job again",
                names.join(", ")
            ));
        }
        let signatures = signatures.to_vec();
        Ok(Some(Sealed { request_id: order.request_id.clone(), signatures, secrets }))
    }

    /// Opens them all.
    pub fn open(&self, key: &CurveKey) -> Result<Opened, String> {
        let open = |secret: &SealedSecret| {
            let opened = key.open(secret, &self.request_id, &self.signatures);
            let value = opened.map_err(|error| format!("secret {}: {error}", secret.name))?;
            Ok((secret.name.clone(), value))
        };
        self.secrets.iter().map(open).collect()
    }
}

/// What of opened secrets is masked: values that are text. Others are no text that could be found in text.
pub fn masks(opened: &Opened) -> Vec<String> {
    opened.iter().filter_map(|(_, value)| String::from_utf8(value.clone()).ok()).collect()
}

/// Whether all of them can be masked together. Values that are too short for it are known to be shown.
pub fn check_masks(masks: &[String]) -> Result<(), String> {
    let mut masker = Masker::new();
    let full = masks.iter().any(|value| masker.add(value) == Err(NotMasked::TooMuch));
    if full {
        Err("its secrets are too large to be masked: 256 KiB, each value and each of its lines".into())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sally_common::key::SigningKey;
    use sally_common::secret::seal;
    use sally_common::wire::Kind;

    struct World {
        agent: SigningKey,
        curve: CurveKey,
        caller: SigningKey,
        order: Order,
    }

    impl World {
        fn seal(&mut self, name: &str, agent: &SigningKey, curve: &CurveKey) {
            let (id, by) = (&self.order.request_id, self.caller.public());
            let secret = seal(name, b"hunter2", agent.public(), &curve.public(), id, by);
            self.order.task.secrets.push(secret.expect("sealed"));
        }

        fn signatures(&self) -> Vec<OrderSignature> {
            let signature = self.caller.sign(Kind::Order, b"order");
            vec![OrderSignature { key: self.caller.public().clone(), signature }]
        }

        fn sealed(&self) -> Result<Option<Sealed>, String> {
            Sealed::of(&self.order, &self.signatures(), self.agent.public())
        }
    }

    fn world() -> World {
        let order = serde_json::json!({
            "v": 1, "request_id": "r-1", "by": "ann", "created_ms": 0, "expires_ms": 1,
            "targets": {"all": true},
            "task": {"program": {"kind": "command"}, "args": ["true"], "profile": "strict", "timeout_ms": 1, "grace_ms": 1},
        });
        World {
            agent: SigningKey::from_secret([1; 32]),
            curve: CurveKey::generate(),
            caller: SigningKey::from_secret([2; 32]),
            order: serde_json::from_value(order).expect("an order"),
        }
    }

    #[test]
    fn an_order_without_secrets_has_none() {
        assert_eq!(world().sealed(), Ok(None));
    }

    #[test]
    fn ours_are_opened_and_masked_and_those_of_others_are_left() {
        let mut w = world();
        let (agent, curve) = (
            SigningKey::from_secret([1; 32]),
            CurveKey::from_seed(&w.curve.seed().expect("seed")).expect("key"),
        );
        w.seal("token", &agent, &curve);
        w.seal("token", &SigningKey::from_secret([9; 32]), &CurveKey::generate());
        let sealed = w.sealed().expect("ours").expect("some");
        let opened = sealed.open(&w.curve).expect("opened");
        assert_eq!(opened, [("token".to_owned(), b"hunter2".to_vec())]);
        assert_eq!(masks(&opened), ["hunter2"]);
        assert!(!serde_json::to_string(&sealed).expect("text").contains("hunter2"));
    }

    #[test]
    fn one_that_is_sealed_for_others_alone_is_named() {
        let mut w = world();
        w.seal("token", &SigningKey::from_secret([9; 32]), &CurveKey::generate());
        assert!(w.sealed().expect_err("missing").contains("secret token is not sealed for this agent"));
    }

    #[test]
    fn what_cannot_be_masked_is_refused_before_it_is_used() {
        assert_eq!(check_masks(&["hunter2".into(), "x".into()]), Ok(()));
        let large: Vec<String> = (0..5).map(|n| format!("{n}").repeat(60_000)).collect();
        assert!(check_masks(&large).expect_err("too much").contains("too large to be masked"));
    }

    #[test]
    fn one_that_does_not_open_is_named() {
        let mut w = world();
        let agent = SigningKey::from_secret([1; 32]);
        w.seal("token", &agent, &CurveKey::generate());
        let error = w.sealed().expect("ours").expect("some").open(&w.curve).expect_err("another key");
        assert!(error.contains("secret token"), "{error}");
    }
}
