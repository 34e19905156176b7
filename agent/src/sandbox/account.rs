//! Accounts of the host that a plan may ask to run as: looked up by the launcher when it starts.
#![forbid(unsafe_code)]

use super::wire::Mode;
use nix::unistd::{User, getgrouplist};
use std::collections::BTreeMap;
use std::ffi::CString;

/// Supplementary groups that go along with an account: as many as a user namespace's map takes without trouble.
const MAX_GROUPS: usize = 64;

/// An account of the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Account {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Its supplementary groups.
    pub(super) groups: Vec<u32>,
}

/// Those that the launcher's policy names, and why one of them cannot be used.
#[derive(Clone, Debug, Default)]
pub(super) struct Accounts(BTreeMap<String, Result<Account, String>>);

impl Accounts {
    /// Looks accounts up. One that cannot be used is known by the reason, and logged.
    pub(super) fn find(names: &[String], mode: Mode, agent: Option<u32>) -> Accounts {
        let mut all = BTreeMap::new();
        for name in names {
            let found = match mode {
                Mode::Root => look_up(name).and_then(|account| allowed(account, agent)),
                Mode::User => Err(format!("account {name} cannot be used: the launcher is not root")),
            };
            if let Err(problem) = &found {
                tracing::error!("{problem}");
            }
            all.insert(name.clone(), found);
        }
        Accounts(all)
    }

    /// The account of a name; the message says why it is not to be had.
    pub(super) fn get(&self, name: &str) -> Result<&Account, String> {
        match self.0.get(name) {
            Some(Ok(account)) => Ok(account),
            Some(Err(problem)) => Err(problem.clone()),
            None if self.0.is_empty() => Err(format!(
                "running as {name} is not allowed: this launcher allows no accounts (--allow-user)"
            )),
            None => {
                let names: Vec<_> = self.0.keys().map(String::as_str).collect();
                Err(format!("running as {name} is not allowed: this launcher allows {}", names.join(", ")))
            }
        }
    }

    /// Those that can be used.
    pub(super) fn names(&self) -> Vec<String> {
        self.0.iter().filter(|(_, account)| account.is_ok()).map(|(name, _)| name.clone()).collect()
    }
}

fn look_up(name: &str) -> Result<Account, String> {
    let failed = |error: nix::Error| format!("account {name} cannot be looked up: {error}");
    let user = User::from_name(name).map_err(failed)?;
    let user = user.ok_or_else(|| format!("there is no account {name} on this host"))?;
    let (uid, gid) = (user.uid.as_raw(), user.gid.as_raw());
    let c_name = CString::new(name).map_err(|_| format!("there is no account {name:?}"))?;
    let groups = getgrouplist(&c_name, user.gid).map_err(failed)?;
    let groups: Vec<u32> =
        groups.into_iter().map(|group| group.as_raw()).filter(|group| *group != gid).collect();
    if groups.len() > MAX_GROUPS {
        let count = groups.len();
        return Err(format!("account {name} is in {count} groups; at most {MAX_GROUPS} can go along"));
    }
    Ok(Account { name: name.to_owned(), uid, gid, groups })
}

/// Root is what profile `admin` is for, and the agent's own account could read the agent's keys.
fn allowed(account: Account, agent: Option<u32>) -> Result<Account, String> {
    let Account { name, uid, .. } = &account;
    if *uid == 0 {
        return Err(format!("account {name} is root and cannot be used: that is what profile admin is for"));
    }
    if Some(*uid) == agent {
        return Err(format!(
            "account {name} is the agent's own and cannot be used: a script could read its keys"
        ));
    }
    Ok(account)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    fn names(list: &[&str]) -> Vec<String> {
        list.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn only_what_the_policy_names_can_be_used_and_never_root_or_the_agent() {
        let all = Accounts::find(&names(&["nobody", "root", "no-such-account"]), Mode::Root, None);
        assert_eq!(all.names(), ["nobody"]);
        let nobody = all.get("nobody").unwrap();
        assert!(nobody.uid != 0 && !nobody.groups.contains(&nobody.gid));
        assert!(all.get("root").unwrap_err().contains("profile admin"));
        assert!(all.get("no-such-account").unwrap_err().contains("no account no-such-account"));
        assert!(all.get("daemon").unwrap_err().contains("allows no-such-account, nobody, root"));
        let uid = nobody.uid;
        let own = Accounts::find(&names(&["nobody"]), Mode::Root, Some(uid));
        assert!(own.get("nobody").unwrap_err().contains("the agent's own"));
        assert!(Accounts::default().get("x").unwrap_err().contains("allows no accounts"));
        let user = Accounts::find(&names(&["nobody"]), Mode::User, None);
        assert!(user.get("nobody").unwrap_err().contains("not root") && user.names().is_empty());
    }
}
