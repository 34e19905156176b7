//! Finding a nats-server that is new enough.

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use sally_common::nats::version::{OLDEST_SUPPORTED, Version};
use tokio::process::Command;

/// The variable that names the server to use.
pub const VARIABLE: &str = "SALLY_NATS_SERVER";
/// Where `make nats-server` puts the project's own copy, below the project's folder.
const OWN_COPY: &str = "build/nats-server/nats-server";
/// A server says its version in a few milliseconds.
const VERSION_LIMIT: Duration = Duration::from_secs(10);

/// Where to look, best first.
#[derive(Debug, Clone, Default)]
pub struct Search {
    /// What `--nats-server` said. Nothing else is tried then.
    pub flag: Option<PathBuf>,
    /// What `SALLY_NATS_SERVER` said. Nothing after it is tried then.
    pub variable: Option<OsString>,
    /// The running program; the project's own copy is looked for in the folders above it.
    pub program: Option<PathBuf>,
    /// `PATH`.
    pub path: Option<OsString>,
}

impl Search {
    /// Takes variable, program and `PATH` from this process.
    pub fn from_process(flag: Option<PathBuf>) -> Self {
        Self {
            flag,
            variable: std::env::var_os(VARIABLE).filter(|value| !value.is_empty()),
            program: std::env::current_exe().ok(),
            path: std::env::var_os("PATH"),
        }
    }
}

/// A server that can be used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NatsServer {
    /// The program.
    pub path: PathBuf,
    /// What it says it is.
    pub version: Version,
}

/// No server can be used.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum FindError {
    /// Nowhere.
    #[error(
        "no nats-server found (looked at --nats-server, {VARIABLE}, the project's {OWN_COPY} and PATH); {}",
        how_to_get()
    )]
    Missing,
    /// What was named does not run.
    #[error("{} ({origin}) is not a nats-server that runs here: {problem}; {}", path.display(), how_to_get())]
    NotAServer {
        /// The program.
        path: PathBuf,
        /// Who named it.
        origin: &'static str,
        /// What happened.
        problem: String,
    },
    /// Too old.
    #[error("{} ({origin}) is nats-server {version}, and Sally needs {OLDEST_SUPPORTED} or newer; {}", path.display(), how_to_get())]
    TooOld {
        /// The program.
        path: PathBuf,
        /// Who named it.
        origin: &'static str,
        /// What it says it is.
        version: Version,
    },
}

/// Finds the server to use.
///
/// What was named by flag or variable must work; it is never passed over in silence. The project's own copy and `PATH`
/// are tried in turn; when none of them works, the error is about the first that was there.
///
/// # Errors
/// [`FindError`], which says how to get one.
pub async fn find(search: &Search) -> Result<NatsServer, FindError> {
    if let Some(path) = &search.flag {
        return check(path, "named by --nats-server").await;
    }
    if let Some(value) = &search.variable {
        return check(Path::new(value), "named by SALLY_NATS_SERVER").await;
    }
    let mut first_problem = None;
    for (path, origin) in candidates(search) {
        match check(&path, origin).await {
            Ok(server) => return Ok(server),
            Err(problem) => {
                first_problem.get_or_insert(problem);
            }
        }
    }
    Err(first_problem.unwrap_or(FindError::Missing))
}

fn candidates(search: &Search) -> Vec<(PathBuf, &'static str)> {
    let own =
        search.program.iter().flat_map(|program| program.ancestors().skip(1)).map(|dir| dir.join(OWN_COPY));
    let on_path = search.path.iter().flat_map(std::env::split_paths).map(|dir| dir.join("nats-server"));
    let own = own.map(|path| (path, "the project's own copy"));
    own.chain(on_path.map(|path| (path, "found in PATH"))).filter(|(path, _)| path.is_file()).collect()
}

async fn check(path: &Path, origin: &'static str) -> Result<NatsServer, FindError> {
    let version = version(path).await.map_err(|problem| FindError::NotAServer {
        path: path.to_owned(),
        origin,
        problem,
    })?;
    if !version.is_supported() {
        return Err(FindError::TooOld { path: path.to_owned(), origin, version });
    }
    // The supervisor starts it from anywhere, so a relative path must not depend on where we are now.
    let path = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    Ok(NatsServer { path, version })
}

async fn version(path: &Path) -> Result<Version, String> {
    let mut command = Command::new(absolute_or_here(path));
    command.arg("--version").stdin(Stdio::null()).kill_on_drop(true);
    let output = tokio::time::timeout(VERSION_LIMIT, command.output())
        .await
        .map_err(|_| format!("it did not say its version within {} s", VERSION_LIMIT.as_secs()))?
        .map_err(|error| error.to_string())?;
    Version::from_version_output(&String::from_utf8_lossy(&output.stdout))
        .ok_or_else(|| "it does not say its version as nats-server does".to_owned())
}

/// A bare name would be looked up in `PATH`; here a path is a path.
fn absolute_or_here(path: &Path) -> PathBuf {
    if path.parent().is_none_or(|parent| parent.as_os_str() == OsStr::new("")) {
        return Path::new(".").join(path);
    }
    path.to_owned()
}

fn how_to_get() -> String {
    format!(
        "get one with `make nats-server` in the project's folder, or install the package nats-server of Debian 13 or newer, \
         or take a release of the NATS project, {OLDEST_SUPPORTED} or newer, and name it in {VARIABLE}"
    )
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "a failed unwrap is the test's failure")]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    /// A program that says it is this version.
    fn server(path: &Path, version: &str) -> PathBuf {
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, format!("#!/bin/sh\necho 'nats-server: v{version}'\n")).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path.to_owned()
    }

    #[tokio::test]
    async fn the_order_is_flag_variable_own_copy_path() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let flag = server(&root.join("flag/x"), "2.15.1");
        let variable = server(&root.join("variable/x"), "2.15.2");
        let own = server(&root.join("project/build/nats-server/nats-server"), "2.15.3");
        let on_path = server(&root.join("bin/nats-server"), "2.15.4");
        let mut search = Search {
            flag: Some(flag.clone()),
            variable: Some(variable.clone().into()),
            program: Some(root.join("project/target/debug/sally")),
            path: Some(root.join("bin").into()),
        };
        assert_eq!(find(&search).await.unwrap().path, flag);
        search.flag = None;
        assert_eq!(find(&search).await.unwrap().path, variable);
        search.variable = None;
        assert_eq!(find(&search).await.unwrap().path, own);
        search.program = None;
        assert_eq!(find(&search).await.unwrap().path, on_path);
        search.path = None;
        let missing = find(&search).await.unwrap_err();
        assert_eq!(missing, FindError::Missing);
        assert!(
            missing.to_string().contains("make nats-server") && missing.to_string().contains("Debian 13")
        );
    }

    #[tokio::test]
    async fn an_old_own_copy_is_passed_over_an_old_named_one_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path();
        let old = server(&root.join("project/build/nats-server/nats-server"), "2.9.10");
        let good = server(&root.join("bin/nats-server"), "2.10.27");
        let mut search = Search {
            program: Some(root.join("project/target/debug/sally")),
            path: Some(root.join("bin").into()),
            ..Search::default()
        };
        assert_eq!(find(&search).await.unwrap().path, good);
        search.path = None;
        let error = find(&search).await.unwrap_err().to_string();
        assert!(error.contains("2.9.10") && error.contains("needs 2.10.27"), "{error}");
        search.flag = Some(old);
        assert!(matches!(find(&search).await, Err(FindError::TooOld { .. })));
    }

    #[tokio::test]
    async fn what_is_not_a_server_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let not = dir.path().join("x");
        let flag = |path: &Path| Search { flag: Some(path.to_owned()), ..Search::default() };
        for content in [None, Some("#!/bin/sh\necho hello\n"), Some("#!/nonexistent\n")] {
            if let Some(content) = content {
                std::fs::write(&not, content).unwrap();
                std::fs::set_permissions(&not, std::fs::Permissions::from_mode(0o755)).unwrap();
            }
            let error = find(&flag(&not)).await.unwrap_err();
            assert!(matches!(error, FindError::NotAServer { .. }), "{error}");
            assert!(error.to_string().starts_with(&*not.to_string_lossy()), "{error}");
        }
    }
}
