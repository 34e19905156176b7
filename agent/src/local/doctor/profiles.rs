//! Runs a program that does nothing in each profile and tells what was really enforced.
#![forbid(unsafe_code)]

use std::path::Path;
use std::time::Duration;

use sally_common::name::ProfileName;
use serde::Serialize;

use super::Finding;
use super::host::{Facts, cgroup_remedy};
use crate::local::scratch::{Purpose, Scratch, Talk};
use crate::sandbox::{
    DEFAULT_PATH, Definitions, Event, Hold, Layer, Layers, Limits, Outcome, PLAN_VERSION, Plan, Profile,
    Program, RunFolder, RunInputs, SandboxError, Shape,
};

/// How long a program that does nothing may take.
const TRIAL_LIMIT: Duration = Duration::from_secs(15);

/// One profile, tried.
#[derive(Debug, Serialize)]
pub struct Trial {
    /// The profile.
    pub profile: ProfileName,
    /// What it is, or starts from.
    pub base: Profile,
    /// Whether a program ran in it.
    pub works: bool,
    /// The kernel uid it had.
    pub uid: Option<u32>,
    /// Why it did not run.
    pub problem: Option<String>,
    /// What was enforced.
    pub layers: Layers,
}

/// Tries every profile that confines, `admin` where it is wanted, and each of the operator's. One that is in `wanted` and
/// does not work is a failure.
pub async fn try_all(
    facts: &Facts,
    wanted: &[ProfileName],
    profiles_dir: &Path,
) -> (Vec<Trial>, Vec<Finding>) {
    let purpose = Purpose {
        widest: Profile::Admin,
        profiles_dir: profiles_dir.to_owned(),
        users: Vec::new(),
        allow: Vec::new(),
        talk: Talk::Silent,
        terminal: false,
    };
    let scratch = match Scratch::start(purpose).await {
        Ok(scratch) => scratch,
        Err(error) => {
            let next = "the message names what cannot be made or reached; set TMPDIR to a folder that this account may \
                        write and every account may pass through";
            return (Vec::new(), vec![Finding::fail("launcher on trial", error.to_string(), next)]);
        }
    };
    let definitions = Definitions::read(profiles_dir);
    let (mut trials, mut findings) = (Vec::new(), Vec::new());
    let admin = Some(Profile::Admin).filter(|admin| wanted.contains(&admin.to_name()));
    let mut shapes: Vec<Shape> = Profile::ALL.into_iter().chain(admin).map(Shape::built_in).collect();
    for (name, definition) in definitions.iter() {
        match definition {
            Ok(definition) => {
                shapes.push(Shape { defined: Some(name.clone()), ..Shape::built_in(definition.base) });
            }
            Err(problem) => {
                findings.push(unusable(name.as_str(), problem.to_string(), wanted.contains(name)))
            }
        }
    }
    findings.extend(definitions.problems.iter().map(|problem| unusable("folder", problem.clone(), true)));
    for name in wanted.iter().filter(|name| !name.is_built_in()) {
        if !definitions.iter().any(|(known, _)| known == name) {
            let problem = definitions.get(name).map_or_else(|problem| problem, |_| String::new());
            findings.push(unusable(name.as_str(), problem, true));
        }
    }
    for (number, shape) in shapes.into_iter().enumerate() {
        let is_wanted = wanted.contains(&shape.name());
        let trial = try_one(&scratch, number, shape).await;
        findings.push(finding(&trial, facts, is_wanted));
        trials.push(trial);
    }
    findings.insert(0, control_groups(&trials, facts));
    (trials, findings)
}

/// A definition that cannot be used.
fn unusable(name: &str, problem: String, is_wanted: bool) -> Finding {
    let (check, next) = (format!("profile {name}"), "correct the file, and restart the launcher");
    if is_wanted { Finding::fail(check, problem, next) } else { Finding::warn(check, problem, next) }
}

async fn try_one(scratch: &Scratch, number: usize, shape: Shape) -> Trial {
    let (profile, base) = (shape.name(), shape.profile);
    let nothing = Trial { profile, base, works: false, uid: None, problem: None, layers: Layers::new() };
    let record = match tokio::time::timeout(TRIAL_LIMIT, run_true(scratch, number, shape)).await {
        Err(_) => {
            let problem = format!("it did not end within {} s", TRIAL_LIMIT.as_secs());
            return Trial { problem: Some(problem), ..nothing };
        }
        Ok(Err(error)) => return Trial { problem: Some(error.to_string()), ..nothing },
        Ok(Ok(None)) => return Trial { problem: Some("its keeper died".into()), ..nothing },
        Ok(Ok(Some(record))) => record,
    };
    let works = record.outcome == Outcome::Exited { code: 0 };
    let problem = match record.outcome {
        Outcome::Exited { code: 0 } => None,
        Outcome::SetupFailed { step, message, .. } => Some(format!("step {step}: {message}")),
        Outcome::NotFound { what } => Some(format!("{what} is not there inside")),
        Outcome::ExecFailed { message, .. } => Some(message),
        _ => Some("a program that does nothing did not end well".to_owned()),
    };
    Trial { works, uid: Some(record.uid), problem, layers: record.layers, ..nothing }
}

async fn run_true(
    scratch: &Scratch,
    number: usize,
    shape: Shape,
) -> Result<Option<crate::sandbox::ExitRecord>, SandboxError> {
    let plan = Plan {
        v: PLAN_VERSION,
        run: "doctor".into(),
        attempt: 1,
        profile: shape.profile,
        defined: shape.defined,
        user: None,
        program: Program::Command,
        argv: vec!["true".into()],
        env: vec![("PATH".into(), DEFAULT_PATH.into())],
        timeout_ms: 10_000,
        grace_ms: 100,
        exit_grace_ms: 0,
        limits: Limits::default(),
        keep_bytes: 0,
        require: Vec::new(),
        destinations: None,
        terminal: false,
    };
    let (folder, handover) = RunFolder::create(&scratch.run_dir(number), RunInputs::default())?;
    let mut events = folder.events()?;
    scratch.launcher().start(0, &plan, handover).await?.go.release();
    loop {
        match events.next().await? {
            Event::Started | Event::Output => {}
            Event::Exited => return folder.exit_record(),
            Event::KeeperGone => return Ok(None),
        }
    }
}

fn finding(trial: &Trial, facts: &Facts, is_wanted: bool) -> Finding {
    let check = format!("profile {}", trial.profile);
    if let Some(problem) = &trial.problem {
        let next = "the lines about user namespaces and /proc say which setting forbids it";
        return if is_wanted {
            Finding::fail(check, problem, next)
        } else {
            Finding::warn(check, problem, next)
        };
    }
    let mut found = "works".to_owned();
    for (hold, word) in [(Hold::Enforced, "enforced"), (Hold::Degraded, "degraded"), (Hold::Absent, "absent")]
    {
        let names: Vec<_> =
            trial.layers.iter().filter(|(_, h)| **h == hold).map(|(layer, _)| layer.name()).collect();
        if !names.is_empty() {
            found += &format!("; {word}: {}", names.join(" "));
        }
    }
    let mut remedies: Vec<String> =
        trial.layers.iter().filter_map(|(layer, hold)| remedy(trial.base, *layer, *hold, facts)).collect();
    remedies.dedup();
    if remedies.is_empty() {
        Finding::pass(check, found)
    } else {
        Finding::warn(check, found, remedies.join("\n"))
    }
}

/// What to do about a layer that is less than its profile should have.
fn remedy(profile: Profile, layer: Layer, hold: Hold, facts: &Facts) -> Option<String> {
    if hold == Hold::Enforced {
        return None;
    }
    match layer {
        // By design.
        layer if profile == Profile::Admin && layer != Layer::Rlimits => match layer {
            Layer::CgroupCpuQuota | Layer::CgroupIo => rate_remedy(layer),
            _ => None,
        },
        Layer::Net if profile != Profile::Strict => None,
        Layer::Root if profile == Profile::Host => None,
        Layer::Uid if !facts.root => None,
        // They have lines of their own.
        Layer::Cgroup | Layer::CgroupMemory | Layer::CgroupPids | Layer::CgroupCpu => None,
        Layer::CgroupCpuQuota | Layer::CgroupIo => rate_remedy(layer),
        Layer::Landlock if facts.landlock < crate::sandbox::WHOLE_LANDLOCK => None,
        Layer::Pid => Some(
            "pid: something is mounted over parts of /proc, so the kernel refuses a fresh one: run outside of the \
             container, or with its /proc unmasked (podman: --security-opt unmask=ALL, docker: \
             --security-opt systempaths=unconfined)"
                .into(),
        ),
        other => Some(format!("{other}: this host should have it; docs/sandbox.md, Layers, says what it needs")),
    }
}

fn rate_remedy(layer: Layer) -> Option<String> {
    Some(match layer {
        Layer::CgroupIo => format!(
            "{layer}: rates of disks need control groups of version 2 with the controller io handed down \
             (Delegate=yes), and disks that the kernel can hold to rates"
        ),
        _ => format!(
            "{layer}: the share of the processors needs the controller cpu, with bandwidth control in the kernel"
        ),
    })
}

fn control_groups(trials: &[Trial], facts: &Facts) -> Finding {
    let check = "control groups";
    let Some(layers) = trials.iter().find(|trial| trial.works).map(|trial| &trial.layers) else {
        return Finding::warn(check, "not tried: no profile works", "see the lines about profiles");
    };
    let missing: Vec<_> = [Layer::CgroupMemory, Layer::CgroupPids, Layer::CgroupCpu]
        .into_iter()
        .filter(|layer| layers.get(layer) != Some(&Hold::Enforced))
        .map(Layer::name)
        .collect();
    if missing.is_empty() {
        return Finding::pass(check, "memory, processes and processor time are limited for the whole tree");
    }
    Finding::warn(
        check,
        format!("{} absent: limits hold for each process by itself", missing.join(", ")),
        cgroup_remedy(facts),
    )
}
