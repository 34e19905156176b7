//! The layers of isolation and how a report speaks of them.
#![forbid(unsafe_code)]

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

/// One layer of isolation. Its name in plans, reports and on the command line is the snake-case form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layer {
    /// An own user namespace: capabilities inside mean nothing outside.
    User,
    /// A kernel uid that no other slot and not the agent has.
    Uid,
    /// An own mount namespace for each attempt.
    Mount,
    /// An own pid namespace: the whole tree ends with its init.
    Pid,
    /// An own network namespace without any interface in use.
    Net,
    /// Own System V and POSIX message queues, semaphores and shared memory.
    Ipc,
    /// An own host name record.
    Uts,
    /// A private, read-only root file system (`host`: the host's, read-only, which is `degraded`).
    Root,
    /// No program can gain privileges by being executed.
    NoNewPrivs,
    /// All five capability sets are empty.
    Capabilities,
    /// Limits of the process: open files, processes, file size, locked memory, no core files.
    Rlimits,
    /// Nothing open but descriptors 0 to 3.
    ClosedDescriptors,
    /// Exactly the variables of the plan.
    Environment,
    /// A system call filter: an allow-list, with some calls limited by their arguments.
    Seccomp,
    /// Landlock rules on files, TCP (`strict`), abstract sockets and signals. An older kernel knows less: `degraded`.
    Landlock,
    /// Control groups limit and count the whole tree: all three below. `degraded`: some of them.
    Cgroup,
    /// Memory and swap of the tree by control group; beyond it the tree is killed.
    CgroupMemory,
    /// Processes of the tree by control group.
    CgroupPids,
    /// Processor time of the tree by control group: weight and account.
    CgroupCpu,
    /// A share of the processors that the tree cannot go beyond; only where a profile's definition sets one.
    CgroupCpuQuota,
    /// How fast the tree may use disks, by control group; only where a profile's definition limits it.
    CgroupIo,
    /// The script runs as the account that the plan names; only where it names one.
    Account,
}

impl Layer {
    /// Layers that are reported only where something asks for them.
    pub const ON_DEMAND: [Layer; 3] = [Layer::CgroupCpuQuota, Layer::CgroupIo, Layer::Account];

    /// Every layer that each report has, in the order of reports.
    pub const ALL: [Layer; 19] = [
        Layer::User,
        Layer::Uid,
        Layer::Mount,
        Layer::Pid,
        Layer::Net,
        Layer::Ipc,
        Layer::Uts,
        Layer::Root,
        Layer::NoNewPrivs,
        Layer::Capabilities,
        Layer::Rlimits,
        Layer::ClosedDescriptors,
        Layer::Environment,
        Layer::Seccomp,
        Layer::Landlock,
        Layer::Cgroup,
        Layer::CgroupMemory,
        Layer::CgroupPids,
        Layer::CgroupCpu,
    ];

    /// The name used everywhere outside the code.
    pub fn name(self) -> &'static str {
        match self {
            Layer::User => "user",
            Layer::Uid => "uid",
            Layer::Mount => "mount",
            Layer::Pid => "pid",
            Layer::Net => "net",
            Layer::Ipc => "ipc",
            Layer::Uts => "uts",
            Layer::Root => "root",
            Layer::NoNewPrivs => "no_new_privs",
            Layer::Capabilities => "capabilities",
            Layer::Rlimits => "rlimits",
            Layer::ClosedDescriptors => "closed_descriptors",
            Layer::Environment => "environment",
            Layer::Seccomp => "seccomp",
            Layer::Landlock => "landlock",
            Layer::Cgroup => "cgroup",
            Layer::CgroupMemory => "cgroup_memory",
            Layer::CgroupPids => "cgroup_pids",
            Layer::CgroupCpu => "cgroup_cpu",
            Layer::CgroupCpuQuota => "cgroup_cpu_quota",
            Layer::CgroupIo => "cgroup_io",
            Layer::Account => "account",
        }
    }
}

impl fmt::Display for Layer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for Layer {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Layer::ALL.into_iter().chain(Layer::ON_DEMAND).find(|layer| layer.name() == name).ok_or_else(|| {
            let names: Vec<_> = Layer::ALL.iter().chain(&Layer::ON_DEMAND).map(|l| l.name()).collect();
            format!("no layer is called {name:?}; the layers are {}", names.join(", "))
        })
    }
}

/// How far a layer holds. Always the outcome of a check, never of the intention.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Hold {
    /// In force, as checked from inside.
    Enforced,
    /// In force in part; `docs/sandbox.md` says for each layer what is missing then.
    Degraded,
    /// Not there.
    Absent,
}

/// What a sandbox really enforced: every layer with its state.
pub type Layers = BTreeMap<Layer, Hold>;

/// Returns the layers of `required` that `layers` does not show as enforced.
pub fn missing(layers: &Layers, required: &[Layer]) -> Vec<Layer> {
    required.iter().copied().filter(|layer| layers.get(layer) != Some(&Hold::Enforced)).collect()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn every_layer_has_one_name_in_text_and_in_json() {
        for layer in Layer::ALL.into_iter().chain(Layer::ON_DEMAND) {
            assert_eq!(layer.name().parse(), Ok(layer));
            assert_eq!(serde_json::to_string(&layer).unwrap_or_default(), format!("\"{layer}\""));
        }
    }

    #[test]
    fn an_unknown_layer_is_refused_with_the_list() {
        let message = "selinux".parse::<Layer>().unwrap_err();
        assert!(message.contains("selinux") && message.contains("no_new_privs"), "{message}");
    }

    #[test]
    fn only_enforced_satisfies_a_requirement() {
        let layers = Layers::from([(Layer::Net, Hold::Enforced), (Layer::Root, Hold::Degraded)]);
        assert_eq!(missing(&layers, &[Layer::Net]), []);
        assert_eq!(missing(&layers, &[Layer::Net, Layer::Root, Layer::Cgroup]), [Layer::Root, Layer::Cgroup]);
    }
}
