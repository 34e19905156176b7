//! The plan: everything a keeper is told about one attempt. Pure data with its checks.
#![forbid(unsafe_code)]

use super::layer::Layer;
use super::network::{self, Destination};
use super::profile::{Profile, Shape};
use sally_common::name::ProfileName;
use sally_common::wire::order::is_account_name;
use serde::{Deserialize, Serialize};
use std::fmt::Write as _;

/// The version of the plan's form that this program reads and writes.
pub const PLAN_VERSION: u32 = 1;

/// The largest encoded plan, in bytes: one message on a socket. Room for arguments and environment of
/// `sally_common::limit::WORDS_MAX` with their escapes.
pub const MAX_PLAN_BYTES: usize = 112 * 1024;

/// The search path when a plan's environment has no `PATH`.
pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What to run and under which limits. Paths inside come from
/// [`BoxPaths`](super::paths::BoxPaths); outside paths do not occur.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub v: u32,
    /// The run's id. For logs and records only.
    pub run: String,
    /// The attempt's number. For logs and records only.
    pub attempt: u32,
    /// The level of isolation; of a profile that an operator defined, the one that it starts from.
    pub profile: Profile,
    /// The operator's profile, if it is one. Its definition is the launcher's; the plan has only the name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub defined: Option<ProfileName>,
    /// The account of the host to run as; else one of nobody (`admin`: root).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// What is executed.
    pub program: Program,
    /// For a script the arguments after it; for a command the command and its arguments.
    pub argv: Vec<String>,
    /// The whole environment, in order; nothing is added to it.
    pub env: Vec<(String, String)>,
    /// Time from the start of the program to TERM, in milliseconds.
    pub timeout_ms: u64,
    /// Time from TERM to KILL, in milliseconds.
    pub grace_ms: u64,
    /// How long processes that outlive the main one may go on, in milliseconds. Not waited when there are none.
    pub exit_grace_ms: u64,
    /// How much of everything.
    pub limits: Limits,
    /// How much of the work folder is kept in the run folder at the end, in bytes; 0: nothing.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub keep_bytes: u64,
    /// Layers without which the program must not start.
    #[serde(default)]
    pub require: Vec<Layer>,
    /// All that it may connect to, in place of the profile's network. Empty: nothing, in `host` too. `None`: as the
    /// profile has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub destinations: Option<Vec<Destination>>,
    /// A terminal in place of standard input, output and error; its master comes with the keeper's answer. Nothing that
    /// came over a network can ask for it, and only a launcher that was started for it has one.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub terminal: bool,
}

/// What is executed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", deny_unknown_fields)]
pub enum Program {
    /// The file that came with the run: by itself (`#!` or ELF), or by an interpreter.
    Script {
        /// A path, or a name that is looked up in the plan's `PATH` inside the sandbox. One word.
        interpreter: Option<String>,
    },
    /// `argv[0]`, looked up in the plan's `PATH` inside the sandbox.
    Command,
}

/// How much an attempt may use. Bytes unless said otherwise.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Limits {
    /// Kept of standard output; the rest is drained and counted.
    pub stdout_bytes: u64,
    /// Kept of standard error; the rest is drained and counted.
    pub stderr_bytes: u64,
    /// Kept of descriptor 3, and of the result file.
    pub result_bytes: u64,
    /// Work folder, temporary folder and result file together.
    pub work_bytes: u64,
    /// Files and directories in them, a number.
    pub work_files: u64,
    /// Files that the script leaves behind to be kept, together.
    pub artifact_bytes: u64,
    /// How many of them, a number.
    pub artifact_files: u64,
    /// The script and its parameters together.
    pub script_bytes: u64,
    /// The largest single file the script may write.
    pub file_bytes: u64,
    /// Open descriptors of one process, a number.
    pub open_files: u64,
    /// Processes and threads alive at once, a number.
    pub processes: u64,
    /// Memory of all processes together, the box's files included, swap counted too. Without a control group: private
    /// memory of each process.
    pub memory_bytes: u64,
    /// Processor time of all processes together, in milliseconds. Without a control group: of each process, in whole seconds.
    pub cpu_ms: u64,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the form that serde calls")]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// The limits that a configuration may set. That of the result is fixed by what a result may be.
const SETTABLE: &str = "the limits are stdout_bytes, stderr_bytes, work_bytes, work_files, artifact_bytes, \
    artifact_files, script_bytes, file_bytes, open_files, processes, memory_bytes and cpu_ms";

/// A year of processor time, in milliseconds: no limit in practice.
const CPU_YEAR_MS: u64 = 366 * 24 * 3600 * 1000;

const MIB: u64 = 1024 * 1024;

impl Default for Limits {
    /// What a task gets that asks for nothing.
    fn default() -> Self {
        Self {
            stdout_bytes: 256 * MIB,
            stderr_bytes: 64 * MIB,
            result_bytes: MIB,
            work_bytes: 256 * MIB,
            work_files: 16 * 1024,
            artifact_bytes: 64 * MIB,
            artifact_files: 64,
            script_bytes: 64 * MIB,
            file_bytes: 256 * MIB,
            open_files: 1024,
            processes: 256,
            memory_bytes: 1024 * MIB,
            cpu_ms: CPU_YEAR_MS,
        }
    }
}

impl Limits {
    /// The names of those that [`Limits::set`] knows.
    pub const SETTABLE_NAMES: [&str; 12] = [
        "stdout_bytes",
        "stderr_bytes",
        "work_bytes",
        "work_files",
        "artifact_bytes",
        "artifact_files",
        "script_bytes",
        "file_bytes",
        "open_files",
        "processes",
        "memory_bytes",
        "cpu_ms",
    ];

    /// What a launcher grants at most unless it is told otherwise.
    pub const CEILING: Limits = Limits {
        stdout_bytes: 16 * 1024 * MIB,
        stderr_bytes: 16 * 1024 * MIB,
        result_bytes: 64 * MIB,
        work_bytes: 16 * 1024 * MIB,
        work_files: 1024 * 1024,
        artifact_bytes: 1024 * MIB,
        artifact_files: 64,
        script_bytes: 256 * MIB,
        file_bytes: 16 * 1024 * MIB,
        open_files: 64 * 1024,
        processes: 16 * 1024,
        memory_bytes: 1024 * 1024 * MIB,
        cpu_ms: CPU_YEAR_MS,
    };

    /// Checks every limit against `ceiling`; the message names the first that is larger.
    pub fn check_within(&self, ceiling: &Limits) -> Result<(), String> {
        match self.named().into_iter().zip(ceiling.named()).find(|((_, want), (_, most))| want > most) {
            None => Ok(()),
            Some(((name, want), (_, most))) => {
                Err(format!("limit {name} = {want} is more than {most}, the most this launcher allows"))
            }
        }
    }

    /// Sets a limit by its name, as the agent's configuration does; the message says what is wrong.
    pub fn set(&mut self, name: &str, value: u64) -> Result<(), String> {
        let most = Limits::CEILING.named().into_iter().find(|(known, _)| *known == name);
        let field = match name {
            "stdout_bytes" => &mut self.stdout_bytes,
            "stderr_bytes" => &mut self.stderr_bytes,
            "work_bytes" => &mut self.work_bytes,
            "work_files" => &mut self.work_files,
            "artifact_bytes" => &mut self.artifact_bytes,
            "artifact_files" => &mut self.artifact_files,
            "script_bytes" => &mut self.script_bytes,
            "file_bytes" => &mut self.file_bytes,
            "open_files" => &mut self.open_files,
            "processes" => &mut self.processes,
            "memory_bytes" => &mut self.memory_bytes,
            "cpu_ms" => &mut self.cpu_ms,
            _ => return Err(format!("no limit is called {name}; {SETTABLE}")),
        };
        match most {
            Some((_, most)) if (1..=most).contains(&value) => *field = value,
            _ => return Err(format!("{name} = {value} is not between 1 and {}", most.map_or(0, |(_, m)| m))),
        }
        Ok(())
    }

    /// Every limit with its name, which is also that of the agent's configuration.
    pub fn named(&self) -> [(&'static str, u64); 13] {
        [
            ("stdout_bytes", self.stdout_bytes),
            ("stderr_bytes", self.stderr_bytes),
            ("result_bytes", self.result_bytes),
            ("work_bytes", self.work_bytes),
            ("work_files", self.work_files),
            ("artifact_bytes", self.artifact_bytes),
            ("artifact_files", self.artifact_files),
            ("script_bytes", self.script_bytes),
            ("file_bytes", self.file_bytes),
            ("open_files", self.open_files),
            ("processes", self.processes),
            ("memory_bytes", self.memory_bytes),
            ("cpu_ms", self.cpu_ms),
        ]
    }
}

impl Plan {
    /// Reads a plan from bytes that may be anything, and checks it.
    pub fn parse(bytes: &[u8]) -> Result<Plan, String> {
        if bytes.len() > MAX_PLAN_BYTES {
            return Err(format!("plan of {} bytes is larger than {MAX_PLAN_BYTES}", bytes.len()));
        }
        let plan: Plan = serde_json::from_slice(bytes).map_err(|e| format!("plan cannot be read: {e}"))?;
        plan.check()?;
        Ok(plan)
    }

    /// Checks that the plan is well-formed; the message says what is not.
    pub fn check(&self) -> Result<(), String> {
        if self.v != PLAN_VERSION {
            return Err(format!("plan has version {}, this program knows {PLAN_VERSION}", self.v));
        }
        if self.program == Program::Command && self.argv.first().is_none_or(String::is_empty) {
            return Err("plan runs a command but names none".into());
        }
        if let Program::Script { interpreter: Some(name) } = &self.program
            && (name.is_empty() || name.contains('\0'))
        {
            return Err("plan has an empty interpreter, or one with a NUL byte".into());
        }
        if let Some(at) = self.argv.iter().position(|arg| arg.contains('\0')) {
            return Err(format!("argument {at} has a NUL byte, which no program can be given"));
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) || value.contains('\0') {
                return Err(format!("environment variable {name:?} has a name or value that cannot be set"));
            }
        }
        let mut names: Vec<_> = self.env.iter().map(|(name, _)| name).collect();
        names.sort_unstable();
        if let Some(pair) = names.windows(2).find(|pair| pair[0] == pair[1]) {
            return Err(format!("environment variable {:?} is given twice", pair[0]));
        }
        if self.user.as_deref().is_some_and(|user| !is_account_name(user)) {
            return Err("plan names an account that no host can have".into());
        }
        if self.keep_bytes > Limits::CEILING.work_bytes {
            return Err(format!("plan keeps more than {} bytes", Limits::CEILING.work_bytes));
        }
        if self.timeout_ms == 0 {
            return Err("plan has a timeout of 0 ms".into());
        }
        let limits = &self.limits;
        for (name, value) in [
            // 0 means "no limit" to tmpfs.
            ("work_bytes", limits.work_bytes),
            ("work_files", limits.work_files),
            ("processes", limits.processes),
            ("memory_bytes", limits.memory_bytes),
            ("cpu_ms", limits.cpu_ms),
        ] {
            if value == 0 {
                return Err(format!("limit {name} is 0"));
            }
        }
        if self.profile == Profile::Admin && self.is_listed() {
            return Err("profile admin is root on the host: no list of destinations can hold it".into());
        }
        self.destinations.as_deref().map_or(Ok(()), network::check)
    }

    /// Whether it has a list of destinations in place of the profile's network.
    pub fn is_listed(&self) -> bool {
        self.destinations.is_some()
    }

    /// What a keeper must be made for to carry it out.
    pub fn shape(&self) -> Shape {
        Shape {
            profile: self.profile,
            defined: self.defined.clone(),
            user: self.user.clone(),
            listed: self.is_listed(),
            terminal: self.terminal,
        }
    }

    /// Returns the search path for commands: the plan's own `PATH`, or the default.
    pub fn search_path(&self) -> &str {
        self.env.iter().find(|(name, _)| name == "PATH").map_or(DEFAULT_PATH, |(_, value)| value)
    }

    /// Says in plain lines what the sandbox will do.
    pub fn describe(&self) -> String {
        let mut text = String::new();
        let program = match &self.program {
            Program::Script { interpreter: None } => "the script by itself".to_owned(),
            Program::Script { interpreter: Some(name) } => format!("the script by {name}"),
            Program::Command => format!("the command {}", self.argv.first().map_or("", |a| a)),
        };
        let network = match (&self.destinations, self.profile) {
            (Some(list), _) if !list.is_empty() => {
                let list: Vec<_> = list.iter().map(ToString::to_string).collect();
                format!("connections to {} and nothing else", list.join(" "))
            }
            (Some(_), _) | (None, Profile::Strict) => "an own network namespace with no network".to_owned(),
            (None, Profile::Net | Profile::Host | Profile::Admin) => "the host's network".to_owned(),
        };
        let files = match self.profile {
            Profile::Strict | Profile::Net => "a private read-only root with the host's programs",
            Profile::Host => "the host's whole file system, read-only",
            Profile::Admin => "the host's whole file system, writable, as root",
        };
        let lines = [
            format!("run {program} under profile {}", self.shape().name()),
            format!("give it {network} and {files}"),
            format!("send TERM after {} ms, KILL {} ms later", self.timeout_ms, self.grace_ms),
            format!("kill what is left {} ms after the main process has ended", self.exit_grace_ms),
            format!(
                "let it use {} bytes of memory, {} processes and {} ms of processor time",
                self.limits.memory_bytes, self.limits.processes, self.limits.cpu_ms
            ),
            format!(
                "let it write {} bytes in {} files; keep {} bytes of stdout, {} of stderr, {} of result",
                self.limits.work_bytes,
                self.limits.work_files,
                self.limits.stdout_bytes,
                self.limits.stderr_bytes,
                self.limits.result_bytes
            ),
        ];
        for line in lines {
            let _ = writeln!(text, "{line}");
        }
        if self.terminal {
            let _ = writeln!(text, "give it a terminal of its own as input and output");
        }
        if !self.require.is_empty() {
            let names: Vec<_> = self.require.iter().map(|l| l.name()).collect();
            let _ = writeln!(text, "refuse to start without {}", names.join(", "));
        }
        text
    }
}

#[cfg(test)]
pub(super) mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    pub(in crate::sandbox) fn plan() -> Plan {
        Plan {
            v: PLAN_VERSION,
            run: "01j".into(),
            attempt: 1,
            profile: Profile::Strict,
            defined: None,
            user: None,
            program: Program::Command,
            argv: vec!["true".into()],
            env: vec![("PATH".into(), "/bin".into())],
            timeout_ms: 1000,
            grace_ms: 100,
            exit_grace_ms: 100,
            limits: Limits::default(),
            keep_bytes: 0,
            require: vec![],
            destinations: None,
            terminal: false,
        }
    }

    fn refused(change: impl FnOnce(&mut Plan), words: &str) {
        let mut plan = plan();
        change(&mut plan);
        let message = plan.check().unwrap_err();
        assert!(message.contains(words), "{message:?} should contain {words:?}");
    }

    #[test]
    fn a_plan_survives_its_encoding() {
        let bytes = serde_json::to_vec(&plan()).unwrap_or_default();
        assert_eq!(Plan::parse(&bytes), Ok(plan()));
    }

    #[test]
    fn what_cannot_be_run_is_refused_by_name() {
        refused(|p| p.v = 9, "version 9");
        refused(|p| p.argv.clear(), "names none");
        refused(|p| p.argv.push("a\0b".into()), "argument 1");
        refused(|p| p.program = Program::Script { interpreter: Some(String::new()) }, "interpreter");
        refused(|p| p.env.push(("A=B".into(), String::new())), "A=B");
        refused(|p| p.env.push(("PATH".into(), String::new())), "twice");
        refused(|p| p.timeout_ms = 0, "timeout");
        refused(|p| p.user = Some("-x".into()), "account");
        refused(|p| p.keep_bytes = u64::MAX, "keeps more");
        refused(|p| p.limits.work_bytes = 0, "work_bytes");
    }

    #[test]
    fn bytes_that_are_no_plan_are_an_error() {
        for bytes in [&b""[..], b"{}", b"[]", b"\xff", b"null", b"{\"v\":1}"] {
            assert!(Plan::parse(bytes).unwrap_err().contains("cannot be read"));
        }
        assert!(Plan::parse(&vec![b' '; MAX_PLAN_BYTES + 1]).unwrap_err().contains("larger"));
        let unknown =
            serde_json::to_string(&plan()).unwrap_or_default().replace("\"v\":1", "\"v\":1,\"x\":1");
        assert!(Plan::parse(unknown.as_bytes()).unwrap_err().contains("unknown field"));
    }

    #[test]
    fn the_description_names_what_matters() {
        let mut plan = plan();
        plan.require = vec![Layer::Net];
        let text = plan.describe();
        for words in ["profile strict", "no network", "TERM after 1000 ms", "without net"] {
            assert!(text.contains(words), "{text}");
        }
        assert!(!text.contains("terminal"));
        plan.terminal = true;
        assert!(plan.describe().contains("a terminal of its own"));
        plan.destinations = Some(vec!["db:5432".parse().unwrap()]);
        assert!(plan.describe().contains("connections to db:5432 and nothing else"));
    }
}
