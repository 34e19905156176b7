//! Paths and devices of an operator's profile as mounts of a keeper's root.
//!
//! What they name is opened before the keeper gives up the launcher's uid, through no link, so that a path can be shown
//! whose parents are closed to scripts. What a script may do with it is still for the permissions of its uid.
#![forbid(unsafe_code)]

use super::definition::{Access, PathChange, ProfileDefinition};
use super::step::{Step, StepError};
use super::sys::{self, MountFlags};
use super::template::{bind_all, c_path, make_dir, make_file, set_flags, tmpfs};
use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{SFlag, fstat};
use std::fs;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

const STEP: &str = "profile";

/// One path of the host, opened.
struct Source {
    change: PathChange,
    fd: OwnedFd,
    is_dir: bool,
}

/// Everything that a definition adds to a root, or takes from it.
#[derive(Default)]
pub(super) struct Extras {
    /// Parents before children.
    paths: Vec<Source>,
    devices: Vec<(PathBuf, OwnedFd)>,
}

impl Extras {
    /// Opens all that a definition names.
    pub(super) fn open(definition: Option<&ProfileDefinition>) -> Result<Extras, StepError> {
        let Some(definition) = definition else { return Ok(Extras::default()) };
        let mut extras = Extras::default();
        for change in &definition.paths {
            let fd = open_plainly(&change.path)?;
            let is_dir = kind(&fd, &change.path)? == SFlag::S_IFDIR;
            extras.paths.push(Source { change: change.clone(), fd, is_dir });
        }
        for path in &definition.devices {
            let fd = open_plainly(path)?;
            if kind(&fd, path)? != SFlag::S_IFCHR {
                let message = format!("{} is no character device any more", path.display());
                return Err(StepError::other(STEP, message));
            }
            extras.devices.push((path.clone(), fd));
        }
        Ok(extras)
    }

    /// Mounts everything below a root that is still being made. All of it is made read-only with the root.
    pub(super) fn mount(&self, root: &Path) -> Result<(), StepError> {
        for Source { change, fd, is_dir } in &self.paths {
            let target = below(root, &change.path);
            make_place(&target, *is_dir)?;
            match (change.access, is_dir) {
                (Access::Read | Access::Write, _) => bind_all(&by_number(fd), &target)?,
                (Access::Hide, true) => tmpfs(&target, "mode=0755,size=64k,nr_inodes=256")?,
                // A device on a mount without devices: it is there, and nobody can open it.
                (Access::Hide, false) => bind_all(Path::new("/dev/null"), &target)?,
            }
        }
        for (path, fd) in &self.devices {
            let target = below(root, path);
            make_place(&target, false)?;
            bind_all(&by_number(fd), &target)?;
        }
        Ok(())
    }

    /// Gives each mount the flags it has for good, once the whole root was made read-only.
    pub(super) fn set_flags(&self, root: &Path) -> Result<(), StepError> {
        let confined = MountFlags::NO_SUID.and(MountFlags::NO_DEV);
        for Source { change, .. } in &self.paths {
            let target = below(root, &change.path);
            if change.access == Access::Write {
                let shown = change.path.display();
                sys::make_mount_writable(&c_path(&target), confined)
                    .step(STEP, format!("making {shown} writable (it must be so on the host)"))?;
            } else {
                // Also below one that was made writable just now.
                set_flags(&target, true, MountFlags::READ_ONLY.and(confined))?;
            }
        }
        for (path, _) in &self.devices {
            set_flags(&below(root, path), false, MountFlags::READ_ONLY.and(MountFlags::NO_SUID))?;
        }
        Ok(())
    }

    /// The devices once more, in a root whose mounts have lost theirs.
    pub(super) fn mount_devices(&self, root: &Path) -> Result<(), StepError> {
        for (path, fd) in &self.devices {
            bind_all(&by_number(fd), &below(root, path))?;
            set_flags(&below(root, path), false, MountFlags::READ_ONLY.and(MountFlags::NO_SUID))?;
        }
        Ok(())
    }
}

/// Opens a path that leads through no link.
fn open_plainly(path: &Path) -> Result<OwnedFd, StepError> {
    let how =
        OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    openat2(nix::fcntl::AT_FDCWD, path, how).map_err(|errno| {
        let mut error = StepError::new(STEP, errno, path.display());
        if errno == Errno::ELOOP {
            error.message.push_str("; it leads through a link now, and did not when the launcher started");
        }
        error
    })
}

fn kind(fd: &OwnedFd, path: &Path) -> Result<SFlag, StepError> {
    let status = fstat(fd).step(STEP, path.display())?;
    Ok(SFlag::from_bits_truncate(status.st_mode) & SFlag::S_IFMT)
}

fn by_number(fd: &OwnedFd) -> PathBuf {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

fn below(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}

/// Makes the mount point if it is not there.
fn make_place(target: &Path, is_dir: bool) -> Result<(), StepError> {
    if fs::symlink_metadata(target).is_ok() {
        return Ok(());
    }
    let missing: Vec<&Path> =
        target.ancestors().skip(1).take_while(|folder| fs::symlink_metadata(folder).is_err()).collect();
    missing.into_iter().rev().try_for_each(make_dir)?;
    if is_dir { make_dir(target) } else { make_file(target, b"", 0o444) }
}
