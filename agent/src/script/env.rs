//! The environment a script starts with: clean, and the same on every host.
//!
//! Later ones win: what every script gets, then the agent's `[script.env]`, then what the task sets. Nobody can
//! set `SALLY_*`, and only the sandbox sets `HOME` and `TMPDIR`. The agent's owner may set `PATH` and loader
//! variables, a task may not (see [`sally_common::variable`]).

use jiff::Timestamp;
use sally_common::variable::{VariableProblem, check_form, check_task_env};

/// Where the time zone is UTC unless the agent or the task says otherwise.
const DEFAULT_TZ: &str = "UTC";

/// What the environment is made of. Paths are those that the script sees, inside its box.
#[derive(Debug, Clone)]
pub struct EnvContext<'a> {
    /// The profile's search path, without the folder of `sally-task`.
    pub path: &'a str,
    /// The folder of `sally-task`, put before the search path.
    pub bin: &'a str,
    /// The work folder, also `HOME`.
    pub work: &'a str,
    /// The folder for temporary files.
    pub tmp: &'a str,
    /// The file with the parameters.
    pub params_file: &'a str,
    /// The folder with the secrets.
    pub secrets_dir: &'a str,
    /// The second door for results.
    pub result_file: &'a str,
    /// The job's id.
    pub job: &'a str,
    /// The run's id.
    pub run: &'a str,
    /// The attempt's number.
    pub attempt: u64,
    /// The agent's name.
    pub agent: &'a str,
    /// The zone's name.
    pub zone: &'a str,
    /// When the run is timed out.
    pub deadline: Timestamp,
    /// The agent's `[script.env]`.
    pub agent_env: &'a [(String, String)],
    /// What the task sets.
    pub task_env: &'a [(String, String)],
}

/// Why there is no environment.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// The task sets something it may not.
    #[error("the task's environment: {0}")]
    Task(VariableProblem),
    /// The agent's configuration sets something it may not.
    #[error("[script.env] in the agent's configuration: {0}")]
    Agent(VariableProblem),
}

/// Returns the environment, each name once, Sally's own first.
///
/// # Errors
/// With the variable that is refused and why.
pub fn build_env(context: &EnvContext<'_>) -> Result<Vec<(String, String)>, EnvError> {
    check_agent_env(context.agent_env)?;
    let task = context.task_env.iter().map(|(name, value)| (name.as_str(), value.as_str()));
    check_task_env(task).map_err(EnvError::Task)?;
    let mut env = base(context);
    for (name, value) in context.agent_env.iter().chain(context.task_env) {
        match env.iter_mut().find(|(have, _)| have == name) {
            Some((_, old)) => old.clone_from(value),
            None => env.push((name.clone(), value.clone())),
        }
    }
    Ok(env)
}

/// Checks the agent's `[script.env]`, for the agent's start and for `build_env`.
///
/// # Errors
/// With the first variable that is refused.
pub fn check_agent_env(variables: &[(String, String)]) -> Result<(), EnvError> {
    for (name, value) in variables {
        check_form(name, value).map_err(EnvError::Agent)?;
        if name == "HOME" || name == "TMPDIR" {
            return Err(EnvError::Agent(VariableProblem::Own(name.clone())));
        }
    }
    Ok(())
}

fn base(context: &EnvContext<'_>) -> Vec<(String, String)> {
    // Rounded down: a script must never believe that it has longer.
    let deadline = Timestamp::from_second(context.deadline.as_second()).unwrap_or(context.deadline);
    [
        ("PATH", format!("{}:{}", context.bin, context.path)),
        ("HOME", context.work.to_owned()),
        ("TMPDIR", context.tmp.to_owned()),
        ("LANG", "C.UTF-8".to_owned()),
        ("TZ", DEFAULT_TZ.to_owned()),
        ("SALLY_JOB", context.job.to_owned()),
        ("SALLY_RUN", context.run.to_owned()),
        ("SALLY_ATTEMPT", context.attempt.to_string()),
        ("SALLY_AGENT", context.agent.to_owned()),
        ("SALLY_ZONE", context.zone.to_owned()),
        ("SALLY_DEADLINE", deadline.to_string()),
        ("SALLY_PARAMS_FILE", context.params_file.to_owned()),
        ("SALLY_SECRETS_DIR", context.secrets_dir.to_owned()),
        ("SALLY_RESULT_FD", "3".to_owned()),
        ("SALLY_RESULT_FILE", context.result_file.to_owned()),
    ]
    .map(|(name, value)| (name.to_owned(), value))
    .to_vec()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use super::*;

    fn pairs(list: &[(&str, &str)]) -> Vec<(String, String)> {
        list.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    fn build(agent: &[(&str, &str)], task: &[(&str, &str)]) -> Result<Vec<(String, String)>, EnvError> {
        build_env(&EnvContext {
            path: "/usr/bin:/bin",
            bin: "/run/sally/bin",
            work: "/work",
            tmp: "/tmp",
            params_file: "/in/params.json",
            secrets_dir: "/in/secrets",
            result_file: "/out/result",
            job: "j1",
            run: "r1",
            attempt: 2,
            agent: "web-1",
            zone: "dmz",
            deadline: "2026-01-02T03:04:05.999Z".parse().unwrap(),
            agent_env: &pairs(agent),
            task_env: &pairs(task),
        })
    }

    #[track_caller]
    fn check(agent: &[(&str, &str)], task: &[(&str, &str)], name: &str, expected: &str) {
        let env = build(agent, task).unwrap();
        let values: Vec<&str> =
            env.iter().filter(|(have, _)| have == name).map(|(_, v)| v.as_str()).collect();
        assert_eq!(values, [expected]);
    }

    #[test]
    fn exactly_the_contract_and_nothing_else() {
        let env: Vec<String> =
            build(&[], &[]).unwrap().into_iter().map(|(name, value)| format!("{name}={value}")).collect();
        let expected = [
            "PATH=/run/sally/bin:/usr/bin:/bin",
            "HOME=/work",
            "TMPDIR=/tmp",
            "LANG=C.UTF-8",
            "TZ=UTC",
            "SALLY_JOB=j1",
            "SALLY_RUN=r1",
            "SALLY_ATTEMPT=2",
            "SALLY_AGENT=web-1",
            "SALLY_ZONE=dmz",
            "SALLY_DEADLINE=2026-01-02T03:04:05Z",
            "SALLY_PARAMS_FILE=/in/params.json",
            "SALLY_SECRETS_DIR=/in/secrets",
            "SALLY_RESULT_FD=3",
            "SALLY_RESULT_FILE=/out/result",
        ];
        assert_eq!(env, expected);
    }

    #[test]
    fn the_task_wins_over_the_agent_and_the_agent_over_the_default() {
        check(&[("TZ", "Asia/Shanghai")], &[], "TZ", "Asia/Shanghai");
        check(&[("TZ", "Asia/Shanghai")], &[("TZ", "Europe/Paris")], "TZ", "Europe/Paris");
        check(&[("https_proxy", "http://p:1")], &[("A", "b")], "https_proxy", "http://p:1");
        check(&[("PATH", "/opt/bin:/usr/bin")], &[], "PATH", "/opt/bin:/usr/bin");
    }

    #[test]
    fn refusals_say_who_set_it() {
        let message =
            |agent: &[(&str, &str)], task: &[(&str, &str)]| build(agent, task).unwrap_err().to_string();
        assert!(message(&[], &[("LD_PRELOAD", "x")]).starts_with("the task's environment: LD_PRELOAD"));
        assert!(message(&[], &[("SALLY_RUN", "x")]).contains("SALLY_RUN is set by Sally"));
        assert!(message(&[("SALLY_RUN", "x")], &[]).starts_with("[script.env]"));
        assert!(message(&[("HOME", "/root")], &[]).contains("HOME is set by the sandbox"));
        assert!(message(&[], &[("A", "x\0")]).contains("NUL"));
        assert!(build(&[("LD_LIBRARY_PATH", "/opt/lib")], &[]).is_ok());
    }
}
