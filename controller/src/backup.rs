//! A controller's backup: the ledger, the keys and settings without which it is worth little, and the programs and input of
//! jobs that have not ended. One file.
//!
//! The file is one line of JSON (the [`Manifest`]), then the bytes of the files it names, one after the other. It holds
//! secret keys and is readable by its owner only. Programs (`blobs/`) of jobs that have ended and output (`logs/`) are not in
//! it, and no agent's journal: an old copy of a journal does harm, a new one is made.
//!
//! The ledger is copied while a controller writes to it, as it was at one moment.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::os::unix::fs::{OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Component, Path, PathBuf};

use futures_util::TryStreamExt as _;
use sally_common::clock::now_ms;
use sally_common::id::Digest;
use sally_common::wire::{self, order::Order};
use serde::{Deserialize, Serialize};
use sqlx::sqlite::SqliteConnectOptions;
use sqlx::{ConnectOptions as _, Connection as _, Row as _};

/// The version of the file's form.
const VERSION: u32 = 1;
/// Longest manifest, bytes.
const MANIFEST_MAX: u64 = 4 * 1024 * 1024;
/// Largest file beside the ledger, bytes. Keys and settings are small.
const SMALL_MAX: u64 = 16 * 1024 * 1024;
/// Programs and input of jobs that have not ended: how many, and how many bytes, at most. Those of the oldest jobs go first.
const BLOBS_MAX: usize = 4_096;
const BLOBS_BYTES_MAX: u64 = 1024 * 1024 * 1024;
/// The list of a `serve`'s key and settings files, in its data folder.
pub const FILES: &str = "files.json";
const LEDGER: &str = "ledger.db";

/// What is in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The version of the form.
    pub sally_backup: u32,
    /// The program that made it.
    pub version: String,
    /// When, Unix milliseconds.
    pub created_ms: i64,
    /// The files in the order of their bytes.
    pub files: Vec<Entry>,
    /// How many programs and inputs of jobs that have not ended are not among them: there was no room for them, or they could
    /// not be read. Runs that need them are refused by their agents.
    #[serde(default)]
    pub blobs_left_out: u64,
}

/// A file in a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    /// Relative to the folder it was taken of.
    pub path: PathBuf,
    /// Its length.
    pub bytes: u64,
    /// Its digest.
    pub digest: Digest,
    /// Its permissions.
    pub mode: u32,
}

/// Why there is no backup, or nothing was restored.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum BackupError {
    #[error("{0} holds no ledger: name the data_dir of `sally serve`, or the --dir of `sally up`")]
    NoLedger(PathBuf),
    #[error("cannot {action} {path}: {error}")]
    Io { action: &'static str, path: PathBuf, error: std::io::Error },
    #[error("cannot copy the ledger {path}: {error}")]
    Ledger { path: PathBuf, error: sqlx::Error },
    #[error("{0} is no backup of Sally's, or is cut off in its first line")]
    NotABackup(PathBuf),
    #[error(
        "{path} is a backup of version {found}, this program reads version {VERSION}: use a newer program"
    )]
    Newer { path: PathBuf, found: u32 },
    #[error("{path} is damaged: {file} is not what was backed up; use another backup, nothing was changed")]
    Damaged { path: PathBuf, file: PathBuf },
    #[error("{path} names the file {file}, which would be outside the folder; nothing was changed")]
    Outside { path: PathBuf, file: PathBuf },
    #[error(
        "{0} is not empty: name another folder, or add --force to replace the ledger, keys and settings in it"
    )]
    NotEmpty(PathBuf),
    #[error("a controller uses {0}: stop it first")]
    InUse(PathBuf),
}

type Result<T> = std::result::Result<T, BackupError>;

fn io(action: &'static str, path: &Path) -> impl FnOnce(std::io::Error) -> BackupError {
    let path = path.to_owned();
    move |error| BackupError::Io { action, path, error }
}

/// Backs up a controller, whether it runs or not, into a new file. `dir` is the `data_dir` of a `sally serve` or the
/// folder of a `sally up`.
///
/// # Errors
/// No ledger there; a file that cannot be read or written. An existing `file` is replaced only by a whole backup.
pub async fn create(dir: &Path, file: &Path) -> Result<Manifest> {
    let beside = |end: &str| {
        let mut name = file.as_os_str().to_owned();
        name.push(end);
        PathBuf::from(name)
    };
    let (copy, part) = (beside(".ledger"), beside(".part"));
    let made = write(dir, &copy, &part).await;
    // Whatever happened, no copy of the ledger stays beside.
    let _ = fs::remove_file(&copy);
    if made.is_err() {
        let _ = fs::remove_file(&part);
    }
    let manifest = made?;
    fs::rename(&part, file).map_err(io("rename to", file))?;
    sync_parent(file)?;
    Ok(manifest)
}

async fn write(dir: &Path, copy: &Path, part: &Path) -> Result<Manifest> {
    let is_up = dir.join("serve.toml").is_file() && dir.join("controller").join(LEDGER).is_file();
    let ledger = if is_up { PathBuf::from("controller").join(LEDGER) } else { PathBuf::from(LEDGER) };
    if !dir.join(&ledger).is_file() {
        return Err(BackupError::NoLedger(dir.to_owned()));
    }
    copy_ledger(&dir.join(&ledger), copy).await?;
    let mut sources = vec![(ledger, copy.to_owned())];
    sources.extend(if is_up { files_of_up(dir)? } else { files_of_serve(dir)? });
    let mut files = Vec::with_capacity(sources.len());
    let blobs_dir = if is_up { Path::new("controller/blobs") } else { Path::new("blobs") };
    let (mut blobs, mut blobs_left_out) = (Vec::new(), 0);
    for (path, source) in &sources {
        let mode = if source == copy { 0o600 } else { mode_of(source)? };
        let (bytes, digest) = digest_of(source)?;
        files.push(Entry { path: path.clone(), bytes, digest, mode });
    }
    let mut room = BLOBS_BYTES_MAX;
    for wanted in blobs_needed(copy).await? {
        let path = blobs_dir.join(wanted.to_string());
        let source = dir.join(&path);
        // One that is not what its name says is worth nothing, and one that went away meanwhile is not needed any more.
        let found = digest_of(&source).ok().filter(|(bytes, digest)| *digest == wanted && *bytes <= room);
        let Some((bytes, digest)) = found.filter(|_| files.len() < sources.len() + BLOBS_MAX) else {
            blobs_left_out += 1;
            continue;
        };
        room -= bytes;
        files.push(Entry { path: path.clone(), bytes, digest, mode: 0o600 });
        blobs.push((path, source));
    }
    sources.extend(blobs);
    let version = env!("CARGO_PKG_VERSION").to_owned();
    let manifest = Manifest { sally_backup: VERSION, version, created_ms: now_ms(), files, blobs_left_out };
    let mut out = create_private(part)?;
    let mut line = serde_json::to_vec(&manifest).unwrap_or_default();
    line.push(b'\n');
    out.write_all(&line).map_err(io("write", part))?;
    for (entry, (_, source)) in manifest.files.iter().zip(&sources) {
        let file = File::open(source).map_err(io("read", source))?;
        let copied = std::io::copy(&mut file.take(entry.bytes), &mut out).map_err(io("write", part))?;
        if copied != entry.bytes {
            return Err(BackupError::Damaged { path: part.to_owned(), file: source.clone() });
        }
    }
    out.sync_all().map_err(io("write", part))?;
    Ok(manifest)
}

async fn copy_ledger(ledger: &Path, copy: &Path) -> Result<()> {
    let fail = |error: sqlx::Error| BackupError::Ledger { path: ledger.to_owned(), error };
    match fs::remove_file(copy) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(io("remove", copy)(error)),
        _ => {}
    }
    // Made first, so that nobody else can read it.
    drop(create_private(copy)?);
    let options = SqliteConnectOptions::new().filename(ledger).create_if_missing(false);
    let mut db = options.disable_statement_logging().connect().await.map_err(fail)?;
    let copied =
        sqlx::query("VACUUM INTO ?").bind(copy.to_string_lossy().into_owned()).execute(&mut db).await;
    db.close().await.map_err(fail)?;
    copied.map(|_| ()).map_err(fail)
}

/// The blobs that the orders of jobs name which have not ended, those of the oldest first.
async fn blobs_needed(ledger: &Path) -> Result<Vec<Digest>> {
    let fail = |error: sqlx::Error| BackupError::Ledger { path: ledger.to_owned(), error };
    let options = SqliteConnectOptions::new().filename(ledger).create_if_missing(false);
    let mut db = options.disable_statement_logging().connect().await.map_err(fail)?;
    let sql = "SELECT o.body FROM jobs AS j JOIN orders AS o ON o.job = j.id WHERE j.ended_ms IS NULL ORDER BY j.id";
    let (mut seen, mut needed) = (BTreeSet::new(), Vec::new());
    let mut orders = sqlx::query(sql).fetch(&mut db);
    while let Some(row) = orders.try_next().await.map_err(fail)? {
        let body: Vec<u8> = row.try_get(0).map_err(fail)?;
        // One that this program cannot read is sent as it is, and its blobs are asked for in vain.
        let Ok(order) = wire::read::<Order>(&body) else { continue };
        needed.extend(order.blobs().map(|c| c.digest).filter(|digest| seen.insert(*digest)));
    }
    drop(orders);
    db.close().await.map_err(fail)?;
    Ok(needed)
}

/// Keys, credentials, settings; of the local agents only what makes them who they are.
fn files_of_up(dir: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let mut all = Vec::new();
    for name in ["serve.toml", "trust.json", "agents.json"] {
        if dir.join(name).is_file() {
            all.push((PathBuf::from(name), dir.join(name)));
        }
    }
    for folder in ["keys", "creds"] {
        files_in(dir, Path::new(folder), &mut all)?;
    }
    for agent in list(&dir.join("agents"))? {
        if let Some(name) = agent.file_name() {
            files_in(dir, &Path::new("agents").join(name), &mut all)?;
        }
    }
    Ok(all)
}

/// The files that a `serve` was configured with, as it wrote them down; they come back in `settings/`.
fn files_of_serve(dir: &Path) -> Result<Vec<(PathBuf, PathBuf)>> {
    let list = dir.join(FILES);
    let Ok(text) = fs::read_to_string(&list) else { return Ok(Vec::new()) };
    let files: Vec<PathBuf> =
        serde_json::from_str(&text).map_err(|e| io("read", &list)(std::io::Error::other(e)))?;
    let mut all = Vec::new();
    for (n, file) in files.iter().enumerate() {
        let Some(name) = file.file_name() else { continue };
        let named = |name: &Path| Path::new("settings").join(name);
        let path = named(Path::new(name));
        let taken = all.iter().any(|(p, _): &(PathBuf, PathBuf)| *p == path);
        let path = if taken { named(Path::new(&format!("{n}-{}", name.to_string_lossy()))) } else { path };
        all.push((path, file.clone()));
    }
    Ok(all)
}

fn files_in(dir: &Path, folder: &Path, all: &mut Vec<(PathBuf, PathBuf)>) -> Result<()> {
    for path in list(&dir.join(folder))? {
        let small = fs::symlink_metadata(&path).is_ok_and(|m| m.is_file() && m.len() <= SMALL_MAX);
        if let Some(name) = path.file_name().filter(|_| small) {
            all.push((folder.join(name), path.clone()));
        }
    }
    Ok(())
}

fn list(folder: &Path) -> Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder).map_err(io("list", folder))?;
    let mut all: Vec<PathBuf> = entries.filter_map(|e| e.ok().map(|e| e.path())).collect();
    all.sort();
    Ok(all)
}

/// Puts a backup into a folder. Everything is checked before anything is written.
///
/// # Errors
/// No backup, of a newer version, or damaged; a folder that is not empty (without `force`) or in use.
pub fn restore(file: &Path, dir: &Path, force: bool) -> Result<Manifest> {
    let (manifest, start) = read_manifest(file)?;
    check(file, &manifest, start)?;
    if !force && dir.is_dir() && !list(dir)?.is_empty() {
        return Err(BackupError::NotEmpty(dir.to_owned()));
    }
    fs::create_dir_all(dir).map_err(io("make", dir))?;
    let _locks = lock_ledgers(dir, &manifest)?;
    let mut reader = BufReader::new(File::open(file).map_err(io("read", file))?);
    reader.seek_relative(start).map_err(io("read", file))?;
    for entry in &manifest.files {
        place(&mut reader, file, entry, &dir.join(&entry.path))?;
    }
    Ok(manifest)
}

fn read_manifest(file: &Path) -> Result<(Manifest, i64)> {
    let mut reader = BufReader::new(File::open(file).map_err(io("read", file))?);
    let mut line = Vec::new();
    reader.by_ref().take(MANIFEST_MAX).read_until(b'\n', &mut line).map_err(io("read", file))?;
    let not = || BackupError::NotABackup(file.to_owned());
    if line.last() != Some(&b'\n') {
        return Err(not());
    }
    #[derive(Deserialize)]
    struct Head {
        sally_backup: u32,
    }
    let head: Head = serde_json::from_slice(&line).map_err(|_| not())?;
    if head.sally_backup != VERSION {
        return Err(BackupError::Newer { path: file.to_owned(), found: head.sally_backup });
    }
    let manifest: Manifest = serde_json::from_slice(&line).map_err(|_| not())?;
    for entry in &manifest.files {
        let inside = entry.path.components().all(|c| matches!(c, Component::Normal(_)));
        if !inside || entry.path.as_os_str().is_empty() {
            return Err(BackupError::Outside { path: file.to_owned(), file: entry.path.clone() });
        }
    }
    Ok((manifest, i64::try_from(line.len()).unwrap_or(i64::MAX)))
}

fn check(file: &Path, manifest: &Manifest, start: i64) -> Result<()> {
    let mut reader = BufReader::new(File::open(file).map_err(io("read", file))?);
    reader.seek_relative(start).map_err(io("read", file))?;
    for entry in &manifest.files {
        let (bytes, digest) = digest(&mut reader.by_ref().take(entry.bytes)).map_err(io("read", file))?;
        if bytes != entry.bytes || digest != entry.digest {
            return Err(BackupError::Damaged { path: file.to_owned(), file: entry.path.clone() });
        }
    }
    Ok(())
}

/// Keeps controllers away from the ledgers that are replaced, until the locks are dropped.
fn lock_ledgers(dir: &Path, manifest: &Manifest) -> Result<Vec<File>> {
    let mut locks = Vec::new();
    for entry in manifest.files.iter().filter(|e| e.path.ends_with(LEDGER)) {
        let ledger = dir.join(&entry.path);
        let folder = ledger.parent().unwrap_or(dir);
        fs::create_dir_all(folder).map_err(io("make", folder))?;
        let path = folder.join(format!("{LEDGER}.lock"));
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let lock = lock.map_err(io("open", &path))?;
        if lock.try_lock().is_err() {
            return Err(BackupError::InUse(dir.to_owned()));
        }
        locks.push(lock);
        // They belong to the ledger that is replaced.
        for end in ["-wal", "-shm"] {
            let path = folder.join(format!("{LEDGER}{end}"));
            match fs::remove_file(&path) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(io("remove", &path)(error));
                }
                _ => {}
            }
        }
    }
    Ok(locks)
}

fn place(reader: &mut impl Read, file: &Path, entry: &Entry, path: &Path) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(io("make", folder))?;
    let mut name = path.as_os_str().to_owned();
    name.push(".restored");
    let part = PathBuf::from(name);
    let mut out = create_private(&part)?;
    let copied = std::io::copy(&mut reader.take(entry.bytes), &mut out).map_err(io("write", &part))?;
    if copied != entry.bytes {
        return Err(BackupError::Damaged { path: file.to_owned(), file: entry.path.clone() });
    }
    out.set_permissions(fs::Permissions::from_mode(entry.mode & 0o700)).map_err(io("write", &part))?;
    out.sync_all().map_err(io("write", &part))?;
    fs::rename(&part, path).map_err(io("rename to", path))?;
    sync_parent(path)
}

fn create_private(path: &Path) -> Result<File> {
    let file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path);
    file.map_err(io("make", path))
}

fn sync_parent(path: &Path) -> Result<()> {
    let parent = path.parent().filter(|p| !p.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(parent).and_then(|dir| dir.sync_all()).map_err(io("sync", parent))
}

fn mode_of(path: &Path) -> Result<u32> {
    Ok(fs::metadata(path).map_err(io("read", path))?.permissions().mode())
}

fn digest_of(path: &Path) -> Result<(u64, Digest)> {
    let mut file = File::open(path).map_err(io("read", path))?;
    digest(&mut file).map_err(io("read", path))
}

fn digest(reader: &mut impl Read) -> std::io::Result<(u64, Digest)> {
    use sha2::Digest as _;
    let mut hash = sha2::Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    let mut total = 0u64;
    loop {
        match reader.read(&mut buffer)? {
            0 => return Ok((total, Digest::from_bytes(hash.finalize().into()))),
            n => {
                hash.update(&buffer[..n]);
                total += n as u64;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]
    use super::*;
    use crate::ledger::Ledger;

    async fn serve_dir() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::create_dir(dir.path().join("etc")).unwrap();
        fs::write(dir.path().join("etc/key"), "seed").unwrap();
        let data = dir.path().join("data");
        fs::create_dir(&data).unwrap();
        let files = vec![dir.path().join("etc/key")];
        fs::write(data.join(FILES), serde_json::to_vec(&files).unwrap()).unwrap();
        dir
    }

    #[tokio::test]
    async fn a_running_controller_is_backed_up_and_restored_elsewhere() {
        let dir = serve_dir().await;
        let data = dir.path().join("data");
        let ledger = Ledger::open(data.join(LEDGER)).await.unwrap();
        let request = "early".parse().unwrap();
        ledger.cancel_request(&request, 5, true).await.unwrap();
        let file = dir.path().join("backup");
        let manifest = create(&data, &file).await.unwrap();
        assert_eq!(manifest.files.len(), 2);
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
        let names: Vec<_> = list(dir.path()).unwrap();
        assert_eq!(names.len(), 3, "nothing is left beside the backup: {names:?}");

        let new = dir.path().join("new");
        assert_eq!(restore(&file, &new, false).unwrap(), manifest);
        assert_eq!(fs::read_to_string(new.join("settings/key")).unwrap(), "seed");
        let restored = Ledger::open(new.join(LEDGER)).await.unwrap();
        assert_eq!(restored.id(), ledger.id());
        assert!(matches!(restore(&file, &new, false), Err(BackupError::NotEmpty(_))));
        assert!(
            matches!(restore(&file, &new, true), Err(BackupError::InUse(_))),
            "a controller writes to it"
        );
        restored.close().await;
        restore(&file, &new, true).unwrap();
        ledger.close().await;
    }

    #[tokio::test]
    async fn an_up_folder_is_backed_up_with_its_keys_and_without_its_agents_journals() {
        let dir = tempfile::tempdir().unwrap();
        let up = dir.path().join("up");
        for folder in ["controller", "keys", "creds", "agents/local-1/state"] {
            fs::create_dir_all(up.join(folder)).unwrap();
        }
        for file in ["serve.toml", "trust.json", "agents.json", "keys/controller", "creds/controller.creds"] {
            fs::write(up.join(file), file).unwrap();
        }
        fs::write(up.join("agents/local-1/agent.key"), "seed").unwrap();
        fs::write(up.join("agents/local-1/state/journal.redb"), "journal").unwrap();
        Ledger::open(up.join("controller").join(LEDGER)).await.unwrap().close().await;
        let file = dir.path().join("backup");
        create(&up, &file).await.unwrap();
        let new = dir.path().join("new");
        restore(&file, &new, false).unwrap();
        assert_eq!(fs::read_to_string(new.join("agents/local-1/agent.key")).unwrap(), "seed");
        assert_eq!(fs::read_to_string(new.join("keys/controller")).unwrap(), "keys/controller");
        assert!(!new.join("agents/local-1/state").exists());
        Ledger::open(new.join("controller").join(LEDGER)).await.unwrap().close().await;
    }

    #[tokio::test]
    async fn what_is_no_whole_backup_changes_nothing() {
        let dir = serve_dir().await;
        let data = dir.path().join("data");
        let file = dir.path().join("backup");
        assert!(matches!(create(&data, &file).await, Err(BackupError::NoLedger(_))));
        Ledger::open(data.join(LEDGER)).await.unwrap().close().await;
        create(&data, &file).await.unwrap();
        let good = fs::read(&file).unwrap();
        let new = dir.path().join("new");
        let check = |bytes: &[u8]| {
            fs::write(&file, bytes).unwrap();
            let error = restore(&file, &new, false).unwrap_err();
            assert!(!new.exists(), "{error}");
            error
        };
        let mut bad = good.clone();
        *bad.last_mut().unwrap() ^= 1;
        assert!(matches!(check(&bad), BackupError::Damaged { .. }));
        assert!(matches!(check(&good[..good.len() - 1]), BackupError::Damaged { .. }));
        assert!(matches!(check(&good[..20]), BackupError::NotABackup(_)));
        assert!(matches!(check(b"PK\x03\x04 something else\n"), BackupError::NotABackup(_)));
        assert!(matches!(check(b"{\"sally_backup\":9}\n"), BackupError::Newer { found: 9, .. }));
        let line = good.iter().position(|b| *b == b'\n').unwrap();
        let mut manifest: Manifest = serde_json::from_slice(&good[..line]).unwrap();
        manifest.files[0].path = "../ledger.db".into();
        let mut out = serde_json::to_vec(&manifest).unwrap();
        out.extend(&good[line..]);
        assert!(matches!(check(&out), BackupError::Outside { .. }));
    }
}
