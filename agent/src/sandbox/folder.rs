//! The run folder: the agent's side of an attempt on disk. The keeper gets descriptors of what is in it,
//! never a path; an agent that restarted opens it again and knows everything that the first one knew.
#![forbid(unsafe_code)]

use super::SandboxError;
use super::attempt::{CONTROL_CANCEL, CONTROL_KILL};
use super::record::{Collected, ExitRecord, MAX_RECORD_BYTES, RECORD_ROOM};
use super::secrets;
use super::wire::{Inputs, PlanFds};
use nix::fcntl::{OFlag, open};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::stat::Mode;
use nix::unistd::{mkfifo, pipe2, write};
use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Seek as _, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt as _};
use std::path::{Path, PathBuf};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;

/// The folder of one attempt.
#[derive(Clone, Debug)]
pub struct RunFolder {
    dir: PathBuf,
}

/// What a run brings with it, besides its plan.
#[derive(Debug, Default)]
pub struct RunInputs {
    /// The script's bytes; `None` for a command.
    pub script: Option<Script>,
    /// The parameters: a JSON object. Empty means `{}`.
    pub params: Vec<u8>,
    /// Secrets: names that [`check_secret_name`](super::check_secret_name) allows, and values of any bytes. At most
    /// [`SECRETS_MAX`](super::SECRETS_MAX), together at most [`SECRETS_BYTES_MAX`](super::SECRETS_BYTES_MAX).
    pub secrets: Vec<(String, Vec<u8>)>,
    /// Standard input; `None` for `/dev/null`.
    pub stdin: Option<File>,
}

/// Where a script's bytes are.
#[derive(Debug)]
pub enum Script {
    /// In memory.
    Bytes(Vec<u8>),
    /// In a file open for reading. It must not change any more.
    File(File),
}

/// What the agent holds of an attempt that was not sent yet: the descriptors for the keeper, and the word
/// that starts the script. Dropped, the attempt never starts.
#[derive(Debug)]
pub struct Handover {
    pub(super) fds: PlanFds,
    pub(super) go: Go,
}

/// The agent's word that the script may start.
#[derive(Debug)]
#[must_use = "dropped, the attempt ends as not_started"]
pub struct Go(OwnedFd);

impl Go {
    /// Lets the script start. To be called once the attempt's *started* mark is on disk.
    pub fn release(self) {
        // The one byte always fits. If nobody reads it any more, the attempt has ended already and its
        // exit record (or the keeper's silence) says how.
        let _ = write(&self.0, b"g");
    }
}

/// Something that a keeper did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Event {
    /// The script was executed.
    Started,
    /// There is more in the output files.
    Output,
    /// The exit record is there.
    Exited,
    /// The keeper is dead and left no exit record: the run was interrupted.
    KeeperGone,
}

impl RunFolder {
    /// Creates the folder (its parent must exist) with everything an attempt needs.
    pub fn create(dir: &Path, inputs: RunInputs) -> Result<(RunFolder, Handover), SandboxError> {
        let folder = RunFolder { dir: dir.to_owned() };
        let secrets = secrets::encode(&inputs.secrets).map_err(SandboxError::Secrets)?;
        DirBuilder::new().mode(0o700).create(dir).map_err(|e| SandboxError::path("create", dir, e))?;
        for fifo in [folder.events_path(), folder.control_path()] {
            mkfifo(&fifo, Mode::from_bits_truncate(0o600))
                .map_err(|e| SandboxError::path("create", &fifo, e.into()))?;
        }
        folder.hand_over(inputs, &secrets, OFlag::O_CREAT | OFlag::O_EXCL)
    }

    /// Makes the folder from one that [`RunFolder::empty`] has put aside. New files cost more than all else
    /// here: a file system looks long for an inode when many have just been removed.
    pub fn reuse(spare: &Path, dir: &Path, inputs: RunInputs) -> Result<(RunFolder, Handover), SandboxError> {
        let secrets = secrets::encode(&inputs.secrets).map_err(SandboxError::Secrets)?;
        fs::rename(spare, dir).map_err(|e| SandboxError::path("rename", spare, e))?;
        RunFolder { dir: dir.to_owned() }.hand_over(inputs, &secrets, OFlag::empty())
    }

    /// Empties the folder and puts it aside under this name. Only for an attempt whose [`Event::Exited`] was heard
    /// here: its keeper writes to none of the files any more. `also` names the caller's own files in it; with any
    /// other file in it the folder stays, emptied, and an error is returned.
    pub fn empty(&self, spare: &Path, also: &[&str]) -> Result<(), SandboxError> {
        let own = [self.stdout_path(), self.stderr_path(), self.result_path(), self.result_file_path()];
        let own =
            own.into_iter().chain([self.artifacts_path()]).chain(also.iter().map(|name| self.dir.join(name)));
        reserve(&File::from(open_at(&self.exit_path(), OFlag::O_WRONLY)?))
            .map_err(|e| SandboxError::path("empty", &self.exit_path(), e))?;
        let mut expected = 3; // The record, and two fifos that hold nothing when nobody has them open.
        for path in own {
            expected += 1;
            if fs::metadata(&path).map_err(|e| SandboxError::path("read", &path, e))?.len() > 0 {
                drop(open_at(&path, OFlag::O_WRONLY | OFlag::O_TRUNC)?);
            }
        }
        let entries = fs::read_dir(&self.dir).map_err(|e| SandboxError::path("read", &self.dir, e))?;
        if entries.count() != expected {
            let more = io::Error::other("it holds other files");
            return Err(SandboxError::path("put aside", &self.dir, more));
        }
        fs::rename(&self.dir, spare).map_err(|e| SandboxError::path("rename", &self.dir, e))
    }

    fn hand_over(
        self,
        inputs: RunInputs,
        secrets: &[u8],
        fresh: OFlag,
    ) -> Result<(RunFolder, Handover), SandboxError> {
        let folder = self;
        // Open for reading too, so that there is no moment without a reader; the keeper only writes.
        let events = open_at(&folder.events_path(), OFlag::O_RDWR | OFlag::O_NONBLOCK)?;
        let control = open_at(&folder.control_path(), OFlag::O_RDWR | OFlag::O_NONBLOCK)?;
        // Readable too: the keeper looks in the last three for names of files to keep.
        let output = OFlag::O_RDWR | OFlag::O_APPEND | fresh;
        let (wait, go) = pipe2(OFlag::O_CLOEXEC).map_err(|e| SandboxError::Io("make a pipe", e.into()))?;
        let script = match inputs.script {
            Some(Script::File(file)) => file.into(),
            Some(Script::Bytes(bytes)) => in_memory(&bytes)?,
            None => in_memory(b"")?,
        };
        let exit = File::from(open_at(&folder.exit_path(), OFlag::O_WRONLY | fresh)?);
        if exit.metadata().is_ok_and(|m| m.len() < RECORD_ROOM as u64) {
            reserve(&exit).map_err(|e| SandboxError::path("write", &folder.exit_path(), e))?;
        }
        let params: &[u8] = if inputs.params.is_empty() { b"{}" } else { &inputs.params };
        let fds = PlanFds {
            stdout: open_at(&folder.stdout_path(), output)?,
            stderr: open_at(&folder.stderr_path(), output)?,
            result: open_at(&folder.result_path(), output)?,
            result_file: open_at(&folder.result_file_path(), output)?,
            artifacts: open_at(&folder.artifacts_path(), output)?,
            exit: exit.into(),
            events,
            control,
            inputs: Inputs {
                go: wait,
                script,
                params: in_memory(params)?,
                secrets: in_memory(secrets)?,
                stdin: inputs.stdin.map(Into::into),
            },
        };
        Ok((folder, Handover { fds, go: Go(go) }))
    }

    /// Opens a folder that another agent process created.
    pub fn open(dir: &Path) -> Result<RunFolder, SandboxError> {
        let folder = RunFolder { dir: dir.to_owned() };
        let path = folder.events_path();
        fs::metadata(&path).map_err(|e| SandboxError::path("open", &path, e))?;
        Ok(folder)
    }

    /// The folder itself.
    pub fn path(&self) -> &Path {
        &self.dir
    }

    /// Standard output, as far as it was kept.
    pub fn stdout_path(&self) -> PathBuf {
        self.dir.join("stdout")
    }

    /// Standard error, as far as it was kept.
    pub fn stderr_path(&self) -> PathBuf {
        self.dir.join("stderr")
    }

    /// What was written to descriptor 3, as far as it was kept.
    pub fn result_path(&self) -> PathBuf {
        self.dir.join("result")
    }

    /// What was in the result file at the end, as far as it was kept.
    pub fn result_file_path(&self) -> PathBuf {
        self.dir.join("result-file")
    }

    /// File number `at` of the exit record's `artifacts`, once [`RunFolder::unpack_artifacts`] has made it.
    pub fn artifact_path(&self, at: usize) -> PathBuf {
        self.dir.join(format!("artifact.{at}"))
    }

    /// Makes `artifact.N` for each file that was kept, N being its place in the exit record's list, and returns that
    /// list. To be called after [`Event::Exited`]; called again it changes nothing. Needs as much room again as the
    /// files have.
    pub fn unpack_artifacts(&self) -> Result<Vec<Collected>, SandboxError> {
        let index = self.exit_record()?.map(|record| record.artifacts).unwrap_or_default();
        let bundle = self.artifacts_path();
        let mut source = File::open(&bundle).map_err(|e| SandboxError::path("read", &bundle, e))?;
        let mut start = 0;
        for (at, entry) in index.iter().enumerate().filter(|(_, entry)| entry.error.is_none()) {
            let path = self.artifact_path(at);
            if fs::metadata(&path).map_or(0, |m| m.len() + 1) != entry.bytes + 1 {
                let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
                let mut target = File::from(open_at(&path, flags)?);
                let copied = source
                    .seek(io::SeekFrom::Start(start))
                    .and_then(|_| io::copy(&mut (&mut source).take(entry.bytes), &mut target))
                    .map_err(|e| SandboxError::path("write", &path, e))?;
                if copied != entry.bytes {
                    let torn =
                        io::Error::new(io::ErrorKind::UnexpectedEof, "it is shorter than its index says");
                    return Err(SandboxError::path("read", &bundle, torn));
                }
            }
            start += entry.bytes;
        }
        Ok(index)
    }

    /// The file that holds all that was kept: the files that the script named, and behind them its work folder, at the
    /// place that the exit record's `kept` names.
    pub fn artifacts_path(&self) -> PathBuf {
        self.dir.join("artifacts")
    }

    /// The exit record. [`RunFolder::exit_record`] reads it.
    pub fn exit_path(&self) -> PathBuf {
        self.dir.join("exit")
    }

    fn events_path(&self) -> PathBuf {
        self.dir.join("events")
    }

    fn control_path(&self) -> PathBuf {
        self.dir.join("control")
    }

    /// Listens to the keeper. Call it inside a tokio runtime, by one reader at a time.
    pub fn events(&self) -> Result<Events, SandboxError> {
        let path = self.events_path();
        let receiver = pipe::OpenOptions::new()
            .open_receiver(&path)
            .map_err(|e| SandboxError::path("open", &path, e))?;
        let ended = self.exit_record()?.is_some();
        let mut events = Events { receiver, folder: self.clone(), ended, pending: Vec::new() };
        // A FIFO that has no writer when it is opened never becomes readable, not even at its end: it is asked
        // once without waiting. From a writer that is there the end is heard.
        let mut bytes = [0u8; 512];
        match nix::unistd::read(&events.receiver, &mut bytes) {
            Ok(length) => events.heard(&bytes[..length]),
            Err(nix::errno::Errno::EAGAIN) => {}
            Err(errno) => return Err(SandboxError::path("read", &path, errno.into())),
        }
        Ok(events)
    }

    /// Asks the keeper to end the attempt: TERM, and KILL after the plan's grace. Has no effect if it has ended.
    pub fn cancel(&self) -> Result<(), SandboxError> {
        self.order(CONTROL_CANCEL)
    }

    /// Asks the keeper to kill the attempt now. Has no effect if it has ended.
    pub fn kill(&self) -> Result<(), SandboxError> {
        self.order(CONTROL_KILL)
    }

    fn order(&self, order: u8) -> Result<(), SandboxError> {
        let path = self.control_path();
        match File::from(open_at(&path, OFlag::O_RDWR | OFlag::O_NONBLOCK)?).write_all(&[order]) {
            // Full of orders that say the same.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            done => done.map_err(|e| SandboxError::path("write to", &path, e)),
        }
    }

    /// Reads the exit record; `None` if there is none yet (or, the keeper dead, only a torn one).
    pub fn exit_record(&self) -> Result<Option<ExitRecord>, SandboxError> {
        let path = self.exit_path();
        let mut bytes = Vec::with_capacity(RECORD_ROOM + 1);
        File::open(&path)
            .and_then(|file| file.take(MAX_RECORD_BYTES as u64).read_to_end(&mut bytes))
            .map_err(|e| SandboxError::path("read", &path, e))?;
        Ok(ExitRecord::from_line(&bytes))
    }
}

/// What a keeper does, as it happens.
#[derive(Debug)]
pub struct Events {
    receiver: pipe::Receiver,
    folder: RunFolder,
    ended: bool,
    pending: Vec<Event>,
}

impl Events {
    /// Waits for the next event. Repeated `Output` is one. After `Exited` or `KeeperGone` it says the same
    /// again. Cancel-safe.
    pub async fn next(&mut self) -> Result<Event, SandboxError> {
        loop {
            if let Some(event) = self.pending.pop() {
                return Ok(event);
            }
            if self.ended {
                return self.end();
            }
            let mut bytes = [0u8; 512];
            let failed = |e| SandboxError::path("read", &self.folder.events_path(), e);
            let length = self.receiver.read(&mut bytes).await.map_err(failed)?;
            self.heard(&bytes[..length]);
        }
    }

    /// Takes in what was read; nothing is the end.
    fn heard(&mut self, bytes: &[u8]) {
        self.ended |= bytes.is_empty() || bytes.contains(&b'x');
        // Popped from the end: the start is news before the output.
        for (byte, event) in [(b'o', Event::Output), (b's', Event::Started)] {
            if bytes.contains(&byte) {
                self.pending.push(event);
            }
        }
    }

    fn end(&mut self) -> Result<Event, SandboxError> {
        self.ended = true;
        let record = self.folder.exit_record()?;
        Ok(if record.is_some() { Event::Exited } else { Event::KeeperGone })
    }
}

fn open_at(path: &Path, flags: OFlag) -> Result<OwnedFd, SandboxError> {
    open(path, flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::from_bits_truncate(0o600))
        .map_err(|e| SandboxError::path("open", path, e.into()))
}

/// Writes zeros where the exit record will be, over one that may be there: the disk may be full when it is written. A
/// file system that has taken bytes takes others in their place (those that copy on write keep some room of their own).
fn reserve(exit: &File) -> io::Result<()> {
    exit.write_all_at(&[0; RECORD_ROOM], 0)?;
    exit.set_len(RECORD_ROOM as u64)
}

/// Bytes as a file without a place.
fn in_memory(bytes: &[u8]) -> Result<OwnedFd, SandboxError> {
    let failed = |e| SandboxError::Io("keep a file in memory", e);
    let file = memfd_create(c"sally", MFdFlags::MFD_CLOEXEC).map_err(|e| failed(e.into()))?;
    let mut file = File::from(file);
    file.write_all(bytes).map_err(failed)?;
    Ok(file.into())
}
