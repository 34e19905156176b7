//! The program of attacks.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// The compiled attacks. Made once, by the C compiler that Rust links with, and again when the source is newer.
pub(crate) fn attacker() -> PathBuf {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/attacks");
    let [program_source, escapes, header] =
        ["attacker.c", "escapes.c", "attacker.h"].map(|name| folder.join(name));
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("attacker");
    let age = |path: &Path| fs::metadata(path).and_then(|file| file.modified()).ok();
    let newest = [&program_source, &escapes, &header].into_iter().map(|path| age(path)).max().flatten();
    if age(&program).is_none_or(|made| Some(made) < newest) {
        // Under another name first: several tests may do this at the same time.
        let fresh = program.with_extension(std::process::id().to_string());
        let flags = ["-O1", "-Wall", "-Wextra", "-Werror", "-static", "-o"];
        let made = Command::new("cc").args(flags).arg(&fresh).args([&program_source, &escapes]).status();
        assert!(
            made.is_ok_and(|status| status.success()),
            "the attacks need a C compiler (cc) with a static C library"
        );
        fs::rename(fresh, &program).unwrap();
    }
    program
}
