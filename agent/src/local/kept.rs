//! `sally-agent kept ls|rm`: work folders of failed runs that are kept on this host.
#![forbid(unsafe_code)]

use std::path::Path;

use sally_common::clock::rfc3339;
use serde_json::json;

use super::{Form, LocalError};
use crate::kept::{self, KeptRun};

/// What is kept, for people or for programs.
///
/// # Errors
/// The folder cannot be read.
pub fn ls(state_dir: &Path, output: Form) -> Result<String, LocalError> {
    let all = all(state_dir)?;
    Ok(match output {
        Form::Json => {
            let one = |kept: &KeptRun| json!({"run": kept.run, "bytes": kept.bytes, "kept_at": rfc3339(kept.kept_ms), "path": kept.path});
            let list: Vec<_> = all.iter().map(one).collect();
            format!("{:#}\n", json!({"schema": 1, "kept": list}))
        }
        Form::Table if all.is_empty() => "nothing is kept\n".to_owned(),
        Form::Table => all
            .iter()
            .map(|kept| format!("{}  {:>12}  {}\n", rfc3339(kept.kept_ms), kept.bytes, kept.path.display()))
            .collect(),
    })
}

/// Removes some, by their run or `RUN.ATTEMPT`, or every one. A name that fits none is an error, and nothing is removed.
///
/// # Errors
/// There is no such one, or it cannot be removed.
pub fn rm(state_dir: &Path, runs: &[String]) -> Result<usize, LocalError> {
    let all = all(state_dir)?;
    let fits = |kept: &KeptRun, name: &str| {
        kept.run == name || kept.run.rsplit_once('.').is_some_and(|(run, _)| run == name)
    };
    if let Some(name) = runs.iter().find(|name| !all.iter().any(|kept| fits(kept, name))) {
        return Err(LocalError::NotKept(sally_common::name::show(name)));
    }
    let chosen: Vec<_> =
        all.iter().filter(|kept| runs.is_empty() || runs.iter().any(|name| fits(kept, name))).collect();
    for kept in &chosen {
        let path = kept.path.clone();
        std::fs::remove_file(&path).map_err(|error| LocalError::File { what: "remove", path, error })?;
    }
    Ok(chosen.len())
}

fn all(state_dir: &Path) -> Result<Vec<KeptRun>, LocalError> {
    super::check(state_dir)?;
    kept::list(state_dir).map_err(|error| LocalError::File {
        what: "read",
        path: kept::folder(state_dir),
        error,
    })
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "a test fails by panicking")]
    use super::*;

    #[test]
    fn folders_are_listed_and_removed_by_run() {
        let dir = tempfile::tempdir().unwrap();
        assert!(matches!(ls(&dir.path().join("none"), Form::Table), Err(LocalError::NoState(_))));
        std::fs::create_dir_all(dir.path().join("runs")).unwrap();
        std::fs::write(dir.path().join("journal.redb"), "").unwrap();
        assert_eq!(ls(dir.path(), Form::Table).unwrap(), "nothing is kept\n");
        let folder = kept::folder(dir.path());
        std::fs::create_dir(&folder).unwrap();
        for run in ["x-0.1", "x-0.2", "y-0.1"] {
            std::fs::write(folder.join(format!("{run}.tar")), "12345").unwrap();
        }
        assert_eq!(ls(dir.path(), Form::Table).unwrap().lines().count(), 3);
        let json: serde_json::Value = serde_json::from_str(&ls(dir.path(), Form::Json).unwrap()).unwrap();
        assert_eq!((&json["kept"][0]["bytes"], json["kept"].as_array().unwrap().len()), (&5.into(), 3));
        assert!(rm(dir.path(), &["x-0".into(), "z-0".into()]).unwrap_err().to_string().contains("z-0"));
        assert_eq!(rm(dir.path(), &["x-0".into()]).unwrap(), 2);
        assert_eq!(rm(dir.path(), &[]).unwrap(), 1);
        assert_eq!(ls(dir.path(), Form::Table).unwrap(), "nothing is kept\n");
    }
}
