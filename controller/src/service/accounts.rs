//! The broker's accounts, as far as they are this controller's to issue: credentials of agents, and who is let in no more.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use sally_common::clock::now_ms;
use sally_common::name::Zone;
use sally_common::nats::accounts::{Role, Trust, TrustError, TrustSeeds};
use sally_common::subject::Prefix;
use tokio::sync::watch;

use super::Service;
use crate::nats::push::{PushError, Target, push};

/// How long after the broker did not take an account it is given again.
const PAUSE: Duration = Duration::from_secs(5);

/// What the controller issues with, and what it has revoked.
pub struct Accounts {
    /// None: this controller may not issue.
    trust: Mutex<Option<Trust>>,
    /// Users of zones that are let in no more, with the time up to which what they hold is worthless, in seconds since 1970.
    revoked: Mutex<BTreeMap<(Zone, String), u64>>,
    target: Target,
}

impl Accounts {
    /// Takes up the keys.
    ///
    /// # Errors
    /// When they are damaged.
    pub fn new(
        prefix: &Prefix,
        seeds: Option<&TrustSeeds>,
        revoked: Vec<(Zone, String, u64)>,
        target: Target,
    ) -> Result<Self, TrustError> {
        let revoked = revoked.into_iter().map(|(zone, user, at)| ((zone, user), at)).collect();
        let accounts = Self { trust: Mutex::default(), revoked: Mutex::new(revoked), target };
        accounts.take(prefix, seeds)?;
        Ok(accounts)
    }

    /// Takes up the keys as they are now.
    ///
    /// # Errors
    /// When they are damaged; what was there before stays.
    pub fn take(&self, prefix: &Prefix, seeds: Option<&TrustSeeds>) -> Result<(), TrustError> {
        let mut trust = seeds.map(|seeds| Trust::from_seeds(prefix.as_str(), seeds)).transpose()?;
        for ((zone, user), at) in self.revoked().iter() {
            if let Some(trust) = &mut trust {
                // A zone that is not there any more lets nobody in.
                let _ = trust.revoke(zone.as_str(), user, *at);
            }
        }
        *self.trust() = trust;
        Ok(())
    }

    fn trust(&self) -> MutexGuard<'_, Option<Trust>> {
        self.trust.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn revoked(&self) -> MutexGuard<'_, BTreeMap<(Zone, String), u64>> {
        self.revoked.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether this controller may issue, and knows this zone.
    ///
    /// # Errors
    /// What to do about it.
    pub fn knows(&self, zone: &Zone) -> Result<(), String> {
        match self.trust().as_ref() {
            None => {
                Err("this controller has no key to issue credentials with: `issuer` in its configuration"
                    .into())
            }
            Some(trust) if !trust.zones().any(|known| known == zone.as_str()) => Err(format!(
                "zone {zone} has no account: `sally nats zone add {zone}`, then reload the controller with its new issuer.json"
            )),
            Some(_) => Ok(()),
        }
    }

    /// Issues credentials for a key that is elsewhere. `expires` in seconds since 1970.
    ///
    /// # Errors
    /// Why not.
    pub fn issue(&self, role: Role<'_>, user: &str, expires: Option<u64>) -> Result<String, String> {
        let trust = self.trust();
        let trust = trust.as_ref().ok_or("this controller may not issue credentials")?;
        trust.user_jwt(role, user, now_s(), expires).map_err(|error| error.to_string())
    }

    /// Lets a user in no more. It counts at the broker when the account has been given to it.
    pub fn revoke(&self, zone: &Zone, user: &str, at_s: u64) {
        self.revoked().insert((zone.clone(), user.to_owned()), at_s);
        if let Some(trust) = self.trust().as_mut() {
            let _ = trust.revoke(zone.as_str(), user, at_s);
        }
    }

    fn zone_jwts(&self) -> Result<Vec<(String, String)>, TrustError> {
        let trust = self.trust();
        let Some(trust) = trust.as_ref() else { return Ok(Vec::new()) };
        trust.zones().map(|zone| trust.zone_jwt(zone, now_s())).collect()
    }

    /// Gives every zone's account to the broker.
    ///
    /// # Errors
    /// Why it did not take one.
    pub async fn push(&self) -> Result<(), PushError> {
        let jwts = self.zone_jwts().unwrap_or_else(|error| {
            tracing::error!(%error, "cannot issue the accounts of zones");
            Vec::new()
        });
        if jwts.is_empty() { Ok(()) } else { push(&self.target, &jwts).await }
    }
}

fn now_s() -> u64 {
    u64::try_from(now_ms() / 1000).unwrap_or(0)
}

/// Where accounts go.
pub fn target(url: &str, creds: PathBuf, ca_file: Option<PathBuf>, tls_first: bool) -> Target {
    Target { url: url.to_owned(), creds, ca_file, tls_first }
}

/// Gives the broker the accounts after every connection, since one that was away may have older ones, and whenever
/// `changed` says so; tries again until it has them.
pub async fn keep(
    service: Arc<Service>,
    mut connected: watch::Receiver<u64>,
    mut changed: watch::Receiver<u64>,
    mut stop: watch::Receiver<bool>,
) {
    let mut done = true;
    loop {
        tokio::select! {
            more = connected.changed() => if more.is_err() { return },
            more = changed.changed() => if more.is_err() { return },
            () = tokio::time::sleep(PAUSE), if !done => {}
            _ = stop.changed() => return,
        }
        let pushed = tokio::select! {
            pushed = service.accounts.push() => pushed,
            _ = stop.changed() => return,
        };
        if let Err(error) = &pushed {
            tracing::warn!(%error, "the broker does not take the accounts of zones");
        }
        done = pushed.is_ok();
    }
}
