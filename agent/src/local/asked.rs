//! The sandbox that somebody asks for on this host: options, policy and plan, the same for a script that is tried and for
//! a shell.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};
use std::time::Duration;

use sally_common::clock::now_ms;
use sally_common::duration;
use sally_common::id::JobId;
use sally_common::name::{Agent, ProfileName, Zone};

use super::judged::Head;
use super::scratch::{Purpose, Scratch, Talk};
use crate::config::{self, ScriptPolicy};
use crate::runtime::run::start::EXIT_GRACE_MS;
use crate::sandbox::{self, Definitions, Destination, Layer, Limits, PROFILES_DIR, Plan, Shape};
use crate::script;

/// Options of a sandbox, beside its profile.
#[derive(Clone, Debug, clap::Args)]
pub struct SandboxArgs {
    /// Let it connect to this and to nothing else, in place of the profile's network: HOST:PORT, ADDRESS:PORT or
    /// NETWORK:PORT, as db.example:5432, 10.2.0.0/24:8000-8010, *:443; repeatable
    #[arg(long, value_name = "HOST:PORT")]
    pub allow: Vec<Destination>,
    /// Folder of the operator's profiles [default: that of the configuration, else /etc/sally/profiles.d]
    #[arg(long, value_name = "DIR")]
    pub profiles_dir: Option<PathBuf>,
    /// Run as this account of this host; only as root
    #[arg(long, value_name = "NAME")]
    pub user: Option<String>,
    /// Layers that must be in force, as net,seccomp,cgroup-memory
    #[arg(long, value_name = "LAYER,…", value_delimiter = ',', value_parser = required_layer)]
    pub require: Vec<Layer>,
    /// Longest time it may run: then it is told to end (TERM, for a shell HUP), and KILL after --grace
    #[arg(long, value_name = "DUR", default_value = "1h", value_parser = duration::parse_positive)]
    pub timeout: Duration,
    /// Time between being told to end and KILL
    #[arg(long, value_name = "DUR", default_value = "10s", value_parser = duration::parse)]
    pub grace: Duration,
    /// A variable of its environment: NAME=VALUE; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// A limit, named as in `[limits]` of the configuration, such as memory_bytes=67108864; repeatable
    #[arg(long, value_name = "NAME=VALUE")]
    pub limit: Vec<String>,
    /// Take allowed profiles, limits, [script.env], name and zone from this configuration; its keys are not read
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// What was asked for, read and checked before anything is started.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The options.
    pub args: &'a SandboxArgs,
    /// The profile's name.
    pub profile: &'a ProfileName,
    /// What the profile means on this host.
    pub shape: Shape,
    /// How much of everything.
    pub limits: Limits,
    /// Who it is for the record.
    pub head: Head,
    policy: ScriptPolicy,
    env: Vec<(String, String)>,
}

impl<'a> Asked<'a> {
    /// Reads configuration, profile and options; the message says what makes no sense.
    ///
    /// # Errors
    /// With what is wrong.
    pub fn read(profile: &'a ProfileName, args: &'a SandboxArgs) -> Result<Asked<'a>, String> {
        let mut policy = match &args.config {
            Some(path) => config::script_policy(path).map_err(|e| e.to_string())?,
            None => ScriptPolicy {
                name: Agent::new("local").map_err(|e| e.to_string())?,
                zone: Zone::new("local").map_err(|e| e.to_string())?,
                profiles: vec![profile.clone()],
                profiles_dir: PathBuf::from(PROFILES_DIR),
                users: args.user.iter().cloned().collect(),
                script_env: Vec::new(),
                limits: Limits::default(),
            },
        };
        if let Some(dir) = &args.profiles_dir {
            policy.profiles_dir.clone_from(dir);
        }
        let shape = shape(profile, args.user.as_deref(), &policy.profiles_dir)?;
        let mut limits = policy.limits;
        for text in &args.limit {
            let (name, value) = pair(text, "--limit", "memory_bytes=67108864")?;
            let number = value.parse().map_err(|_| {
                format!("--limit {}: the value is not a whole number", sally_common::name::show(text))
            })?;
            limits.set(name, number).map_err(|problem| format!("--limit {problem}"))?;
        }
        let mut env: Vec<(String, String)> = Vec::new();
        for text in &args.env {
            let (name, value) = pair(text, "--env", "NAME=VALUE")?;
            if env.iter().any(|(known, _)| known == name) {
                return Err(format!("--env {}: it is given twice", sally_common::name::show(name)));
            }
            env.push((name.to_owned(), value.to_owned()));
        }
        let asked_ms = now_ms();
        let run = JobId::generate(asked_ms).run(0);
        let head = Head { run, agent: policy.name.clone(), zone: policy.zone.clone(), asked_ms };
        Ok(Asked { args, profile, shape, limits, head, policy, env })
    }

    /// Sets a variable unless it is set already.
    pub fn set_env_default(&mut self, name: &str, value: &str) {
        let known = |list: &[(String, String)]| list.iter().any(|(have, _)| have == name);
        if !known(&self.env) && !known(&self.policy.script_env) {
            self.env.push((name.to_owned(), value.to_owned()));
        }
    }

    /// Why an agent with this policy would refuse it.
    pub fn refusal(&self) -> Option<String> {
        let (profile, policy) = (self.profile, &self.policy);
        if !policy.profiles.contains(profile) {
            let allowed: Vec<_> = policy.profiles.iter().map(|p| p.as_str()).collect();
            return Some(format!("profile {profile} is not allowed here, only {}", allowed.join(", ")));
        }
        let user = self.args.user.as_ref().filter(|user| !policy.users.contains(user))?;
        Some(format!("running as {user} is not allowed here"))
    }

    /// The launcher that it needs.
    pub fn purpose(&self, talk: Talk, terminal: bool) -> Purpose {
        Purpose {
            widest: self.shape.profile,
            profiles_dir: self.policy.profiles_dir.clone(),
            users: self.args.user.iter().cloned().collect(),
            allow: self.args.allow.clone(),
            talk,
            terminal,
        }
    }

    /// The plan of a program in that launcher, without a terminal.
    ///
    /// # Errors
    /// With the variable that cannot be set.
    pub fn plan(
        &self,
        scratch: &Scratch,
        program: sandbox::Program,
        argv: Vec<String>,
    ) -> Result<Plan, String> {
        let timeout_ms = duration::ms(self.args.timeout);
        Ok(Plan {
            v: sandbox::PLAN_VERSION,
            run: self.head.run.to_string(),
            attempt: 1,
            profile: self.shape.profile,
            defined: self.shape.defined.clone(),
            user: self.shape.user.clone(),
            program,
            argv,
            env: self.environment(scratch, timeout_ms)?,
            timeout_ms,
            grace_ms: duration::ms(self.args.grace),
            exit_grace_ms: EXIT_GRACE_MS,
            limits: Limits { result_bytes: script::ResultLimits::default().stream_bytes, ..self.limits },
            keep_bytes: 0,
            require: self.args.require.clone(),
            destinations: super::explain::listed(&self.args.allow),
            terminal: false,
        })
    }

    fn environment(&self, scratch: &Scratch, timeout_ms: u64) -> Result<Vec<(String, String)>, String> {
        let head = &self.head;
        let paths = scratch.launcher().box_paths(self.shape.profile);
        let text = |path: PathBuf| path.to_string_lossy().into_owned();
        let deadline_ms = now_ms().saturating_add(i64::try_from(timeout_ms).unwrap_or(i64::MAX));
        script::build_env(&script::EnvContext {
            path: sandbox::DEFAULT_PATH,
            bin: &text(paths.bin()),
            work: &text(paths.work()),
            tmp: &text(paths.tmp()),
            params_file: &text(paths.params()),
            secrets_dir: &text(paths.secrets()),
            result_file: &text(paths.result_file()),
            job: head.run.job().as_str(),
            run: &head.run.to_string(),
            attempt: 1,
            agent: head.agent.as_str(),
            zone: head.zone.as_str(),
            deadline: jiff::Timestamp::from_millisecond(deadline_ms).unwrap_or(jiff::Timestamp::MAX),
            agent_env: &self.policy.script_env,
            task_env: &self.env,
        })
        .map_err(|e| e.to_string())
    }
}

/// What a profile's name means on this host.
fn shape(name: &ProfileName, user: Option<&str>, dir: &Path) -> Result<Shape, String> {
    let built_in = name.as_str().parse().ok();
    let profile = match built_in {
        Some(profile) => profile,
        None => Definitions::read(dir).get(name)?.base,
    };
    let (defined, user) = (built_in.is_none().then(|| name.clone()), user.map(str::to_owned));
    Ok(Shape { defined, user, ..Shape::built_in(profile) })
}

fn required_layer(text: &str) -> Result<Layer, String> {
    text.replace('-', "_").parse()
}

fn pair<'a>(text: &'a str, option: &str, form: &str) -> Result<(&'a str, &'a str), String> {
    text.split_once('=').filter(|(name, _)| !name.is_empty()).ok_or_else(|| {
        format!("{option} \"{}\": write it as NAME=VALUE, such as {form}", sally_common::name::show(text))
    })
}
