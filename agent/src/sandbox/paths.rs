//! Where things are inside a sandbox: the box.
#![forbid(unsafe_code)]

use std::path::{Path, PathBuf};

/// The box of `strict` and `net`, whose root is private, and of `host` where the launcher is root.
pub const BOX: &str = "/run/sally/box";

/// The paths of an attempt as its script sees them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BoxPaths {
    base: PathBuf,
}

impl BoxPaths {
    /// The paths below a box.
    pub fn new(base: impl Into<PathBuf>) -> Self {
        Self { base: base.into() }
    }

    /// The box itself.
    pub fn base(&self) -> &Path {
        &self.base
    }

    /// The work folder: `HOME` and the current directory, empty at the start.
    pub fn work(&self) -> PathBuf {
        self.base.join("work")
    }

    /// `TMPDIR`.
    pub fn tmp(&self) -> PathBuf {
        self.base.join("tmp")
    }

    /// The script. The script's processes can read and execute it, not write it.
    pub fn script(&self) -> PathBuf {
        self.base.join("in/script")
    }

    /// `SALLY_PARAMS_FILE`.
    pub fn params(&self) -> PathBuf {
        self.base.join("in/params.json")
    }

    /// `SALLY_SECRETS_DIR`.
    pub fn secrets(&self) -> PathBuf {
        self.base.join("secrets")
    }

    /// `SALLY_RESULT_FILE`. Not there until the script writes it.
    pub fn result_file(&self) -> PathBuf {
        self.base.join("out/result")
    }

    /// The folder with `sally-task`, to be part of `PATH`.
    pub fn bin(&self) -> PathBuf {
        self.base.join("bin")
    }
}
