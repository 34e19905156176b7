//! Files that scripts left behind: listed, and written into a folder.
//!
//! What a script says is a name, never a path: each file is written below the folder that the reader named,
//! whatever the name is, and is compared with the signed length and digest.

use std::collections::HashSet;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use clap::Args;
use sally_common::id::Digest;
use sally_common::wire::artifact::Artifact;
use sally_common::wire::record::RunRecord;
use serde::Serialize;
use serde_json::json;
use sha2::{Digest as _, Sha256};

use super::args::{Format, OutputArgs};
use super::logs::{self, Read};
use super::{CliError, Exit, format, job, out, table, text};
use crate::client::Client;

/// The name under which a file is written until it is whole.
const UNFINISHED: &str = ".sally-unfinished";
/// The longest file name, in bytes.
const NAME_MAX: usize = 255;

/// Which files.
#[derive(Debug, Args)]
pub struct ArtifactsArgs {
    /// The job
    #[arg(value_name = "ID|latest")]
    id: String,
    /// This agent's only: NAME or ZONE/NAME, with * and ?
    #[arg(short, long, value_name = "NAME|GLOB")]
    agent: Option<String>,
    /// Write them into this folder, as AGENT.artifacts/NAME
    #[arg(long, value_name = "DIR")]
    output_dir: Option<PathBuf>,
    #[command(flatten)]
    format: OutputArgs,
}

/// One file, as it is listed.
#[derive(Serialize)]
struct Row<'a> {
    run: String,
    agent: &'a str,
    zone: &'a str,
    name: &'a str,
    path: &'a str,
    bytes: Option<u64>,
    digest: Option<String>,
    error: Option<String>,
    /// Where it was written.
    file: Option<String>,
}

const COLUMNS: [&str; 9] = ["run", "agent", "zone", "name", "path", "bytes", "digest", "error", "file"];

/// What became of one file here.
pub(super) enum Saved {
    /// It is whole, and here.
    At(PathBuf),
    /// The agent could not keep it.
    NeverKept,
    /// It was kept and could not be had: why.
    NotHere(String),
}

/// `sally job artifacts`.
pub(super) async fn artifacts(client: &Client, args: &ArtifactsArgs) -> Result<Exit, CliError> {
    let job = job::find(client, &args.id).await?;
    let runs = job::of_agent(client.runs(&job.id, &[], false).await?, args.agent.as_deref())?;
    let mut rows = Vec::new();
    let mut missing = 0;
    for run in &runs {
        let saved = match &args.output_dir {
            Some(dir) => save(client, dir, run, &prefix(run, &runs)).await?,
            None => Vec::new(),
        };
        missing += saved.iter().filter(|s| matches!(s, Saved::NotHere(_))).count();
        let saved = saved.into_iter().map(Some).chain(std::iter::repeat_with(|| None));
        rows.extend(run.artifacts.iter().zip(saved).map(|(artifact, saved)| row(run, artifact, saved)));
    }
    print(&rows, job.id.as_str(), args.format.output)?;
    if rows.is_empty() && args.format.output == Format::Table {
        out::note("no run of this job named a file; a script does it with `sally-task artifact PATH`")?;
    }
    if missing > 0 {
        return Err(CliError::internal(format!("{missing} of {} files could not be had", rows.len())));
    }
    Ok(Exit::Success)
}

/// The beginning of an agent's file names: with the zone before it if two zones have the name.
fn prefix(run: &RunRecord, all: &[RunRecord]) -> String {
    let twins = all.iter().any(|other| other.agent == run.agent && other.zone != run.zone);
    if twins { format!("{}.{}", run.zone, run.agent) } else { run.agent.to_string() }
}

fn row<'a>(run: &'a RunRecord, artifact: &'a Artifact, saved: Option<Saved>) -> Row<'a> {
    let (file, problem) = match saved {
        Some(Saved::At(path)) => (Some(path.display().to_string()), None),
        Some(Saved::NotHere(why)) => (None, Some(why)),
        Some(Saved::NeverKept) | None => (None, None),
    };
    Row {
        run: run.run.to_string(),
        agent: run.agent.as_str(),
        zone: run.zone.as_str(),
        name: &artifact.name,
        path: &artifact.path,
        bytes: artifact.bytes,
        digest: artifact.digest.map(|digest| digest.to_string()),
        error: artifact.error.clone().or(problem),
        file,
    }
}

fn print(rows: &[Row<'_>], job: &str, form: Format) -> Result<(), CliError> {
    match form {
        Format::Json => out::json(&json!({ "job": { "id": job }, "artifacts": rows }))?,
        Format::Jsonl => rows.iter().try_for_each(out::json_line)?,
        Format::Yaml => out::quoted(&format::yaml(&json!({ "job": { "id": job }, "artifacts": rows }))?)?,
        Format::Csv => out::quoted(&format::csv(&COLUMNS, rows, &[])?)?,
        Format::Name => rows.iter().try_for_each(|row| out::quoted(&format!("{}\n", row.name)))?,
        Format::Table | Format::Wide => out::styled(&listing(rows, form == Format::Wide))?,
    }
    Ok(())
}

fn listing(rows: &[Row<'_>], wide: bool) -> String {
    let line = |row: &Row<'_>| {
        let what = row.error.as_deref().or(row.file.as_deref()).unwrap_or(row.path);
        vec![
            row.agent.to_owned(),
            text::sanitise_line(row.name),
            row.bytes.map(|n| n.to_string()).unwrap_or_default(),
            text::sanitise_line(what),
        ]
    };
    let rows: Vec<Vec<String>> = rows.iter().map(line).collect();
    let width = if wide { None } else { table::terminal_width() };
    table::table(&["AGENT", "NAME", "BYTES", "PATH, FILE OR ERROR"], &rows, width)
}

/// Writes a run's files as `PREFIX.artifacts/NAME`. What cannot be had is said on stderr, and is no error.
pub(super) async fn save(
    client: &Client,
    folder: &Path,
    run: &RunRecord,
    prefix: &str,
) -> Result<Vec<Saved>, CliError> {
    let dir = folder.join(format!("{prefix}.artifacts"));
    if run.artifacts.iter().any(|artifact| artifact.stream.is_some()) {
        std::fs::create_dir_all(&dir).map_err(|e| cannot_write(&dir, run, &e))?;
    }
    // No file gets the name of what is being written.
    let mut taken = HashSet::from([UNFINISHED.to_owned()]);
    let mut saved = Vec::new();
    for artifact in &run.artifacts {
        let one = match (&artifact.stream, artifact.bytes, artifact.digest) {
            (Some(stream), Some(bytes), Some(digest)) => {
                let path = dir.join(free_name(&artifact.name, &mut taken));
                let whole = Whole { stream, bytes, digest };
                match fetch(client, run, &whole, &dir.join(UNFINISHED), &path).await? {
                    None => Saved::At(path),
                    Some(why) => Saved::NotHere(why),
                }
            }
            _ => Saved::NeverKept,
        };
        note(run, artifact, &one)?;
        saved.push(one);
    }
    Ok(saved)
}

fn note(run: &RunRecord, artifact: &Artifact, saved: &Saved) -> Result<(), CliError> {
    let why = match saved {
        Saved::At(_) => return Ok(()),
        Saved::NeverKept => artifact.error.as_deref().unwrap_or("its agent does not keep files"),
        Saved::NotHere(why) => why,
    };
    let name = text::sanitise_line(&artifact.name);
    Ok(out::note(&format!("{}: no file \"{name}\": {}", run.agent, text::sanitise_line(why)))?)
}

/// A file as its agent signed for it.
struct Whole<'a> {
    stream: &'a str,
    bytes: u64,
    digest: Digest,
}

/// Writes one file; it has its name only once it is what was signed. Returns why it could not be had.
async fn fetch(
    client: &Client,
    run: &RunRecord,
    whole: &Whole<'_>,
    unfinished: &Path,
    path: &Path,
) -> Result<Option<String>, CliError> {
    let failed = |e: std::io::Error| cannot_write(path, run, &e);
    let mut file = File::create(unfinished).map_err(failed)?;
    let (mut hasher, mut gaps) = (Sha256::new(), 0);
    let take = |read: Read<'_>| match read {
        Read::Bytes(bytes) => {
            hasher.update(bytes);
            file.write_all(bytes).map_err(failed)
        }
        Read::Gap(bytes) => {
            gaps += bytes;
            Ok(())
        }
    };
    let drained = logs::drain(client, &run.run, whole.stream, 0, true, take).await?;
    let digest = Digest::from_bytes(hasher.finalize().into());
    let why = if drained.next == 0 && whole.bytes > 0 {
        Some("the controller has removed it since".to_owned())
    } else if gaps > 0 || drained.next != whole.bytes || digest != whole.digest {
        Some(format!("{} bytes came that are not the {} that its agent signed", drained.next, whole.bytes))
    } else {
        None
    };
    match why {
        None => std::fs::rename(unfinished, path).map_err(failed)?,
        Some(_) => std::fs::remove_file(unfinished).map_err(failed)?,
    }
    Ok(why)
}

fn cannot_write(path: &Path, run: &RunRecord, error: &std::io::Error) -> CliError {
    CliError::internal(format!("cannot write {}: {error}", path.display()))
        .hint(format!("the controller has it: sally job artifacts {} --output-dir DIR", run.run.job()))
}

/// A file name that is one path component and that no other file of the run has. Case is not told apart: some file
/// systems do not.
fn free_name(name: &str, taken: &mut HashSet<String>) -> String {
    let plain = !matches!(name, "" | "." | "..")
        && name.len() <= NAME_MAX
        && !name.chars().any(|c| c.is_control() || matches!(c, '/' | '\\'));
    let name = if plain { name } else { "unnamed" };
    let mut free = name.to_owned();
    let mut count = 1;
    while !taken.insert(free.to_lowercase()) {
        count += 1;
        let suffix = format!(".{count}");
        let mut end = name.len().min(NAME_MAX - suffix.len());
        while !name.is_char_boundary(end) {
            end -= 1;
        }
        free = format!("{}{suffix}", &name[..end]);
    }
    free
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stays_inside_the_folder_and_is_there_once() {
        let mut taken = HashSet::from([UNFINISHED.to_owned()]);
        let mut free = |name: &str| free_name(name, &mut taken);
        assert_eq!(free("report.html"), "report.html");
        assert_eq!(free("report.html"), "report.html.2");
        assert_eq!(free("Report.html"), "Report.html.3");
        assert_eq!(free(UNFINISHED), format!("{UNFINISHED}.2"));
        assert_eq!(free("-rf"), "-rf");
        for (n, bad) in
            ["", ".", "..", "../x", "/etc/passwd", "a/b", "a\\b", "a\0b", "a\nb"].iter().enumerate()
        {
            let name = free(bad);
            assert_eq!(name, if n == 0 { "unnamed".to_owned() } else { format!("unnamed.{}", n + 1) });
            assert_eq!(Path::new(&name).components().count(), 1);
        }
        let long = "文".repeat(85);
        assert_eq!(free(&long), long);
        let second = free(&long);
        assert!(second.len() <= NAME_MAX && second.ends_with(".2"), "{}", second.len());
        assert_eq!(free(&"x".repeat(256)), "unnamed.10");
    }
}
