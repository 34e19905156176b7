//! Named fail points: places where a test makes a program die, stand still, or meet a failing disk.
//!
//! Only debug builds have them. A build without debug assertions, as every release is, has none of this code: each
//! function here is empty there, and a test compiles this very file both ways and looks.
//!
//! `SALLY_FAIL` names a folder. Whoever writes the file `FOLDER/NAME` arms the point of that name, in every process
//! that sees the folder; the process that comes by first takes the file, so that one arming has one effect,
//! whatever is started again afterwards. The content is `ACTION` or `ACTION:NTH`, the NTH time that anyone comes by:
//!
//! - `abort`: the process ends at once, as by a signal. Nothing is flushed, closed or said.
//! - `pause`: the thread stands still until the file `FOLDER/NAME.hit` is removed.
//! - `error`: an operation that is asked through [`io`] fails as by a full disk.
//!
//! Each time `FOLDER/NAME.hit` appears before the action, with the process id in it.
//! `FOLDER/version.PROGRAM` with `newer VERSION` or `older VERSION` makes `PROGRAM` speak as one of another version: it says
//! `VERSION`, and has fields that nobody knows yet, or lacks those that came last.
//! `FOLDER/clock.PROGRAM` holds milliseconds by which the wall clock of `PROGRAM` is wrong; other files stand in for
//! facts of the host, see [`stand_in`].

/// A place that a test can name.
#[inline]
pub fn point(name: &str) {
    #[cfg(debug_assertions)]
    armed::act(name);
    #[cfg(not(debug_assertions))]
    let _ = name;
}

/// A place where an operation on a disk can be made to fail.
///
/// # Errors
/// When a test asked for it: no space.
#[inline]
pub fn io(name: &str) -> std::io::Result<()> {
    #[cfg(debug_assertions)]
    if armed::act(name) {
        return Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
    }
    #[cfg(not(debug_assertions))]
    let _ = name;
    Ok(())
}

/// By how many milliseconds this program's wall clock is to be wrong.
#[inline]
pub fn clock_offset_ms() -> i64 {
    #[cfg(debug_assertions)]
    return armed::clock_offset_ms();
    #[cfg(not(debug_assertions))]
    0
}

/// What a test puts in the place of a fact of this host, such as `boot_id`.
#[inline]
pub fn stand_in(name: &str) -> Option<String> {
    #[cfg(debug_assertions)]
    return armed::stand_in(name);
    #[cfg(not(debug_assertions))]
    {
        let _ = name;
        None
    }
}

/// The version that this program says it has.
#[inline]
pub fn version(own: &str) -> String {
    #[cfg(debug_assertions)]
    if let Some((_, version)) = armed::other_version() {
        return version;
    }
    own.to_owned()
}

/// Whether this program is to speak as one of another version: `newer` or `older`.
#[inline]
pub fn other_version() -> Option<String> {
    #[cfg(debug_assertions)]
    return armed::other_version().map(|(kind, _)| kind);
    #[cfg(not(debug_assertions))]
    None
}

#[cfg(debug_assertions)]
mod armed {
    use std::fs;
    use std::path::{Path, PathBuf};
    use std::sync::OnceLock;
    use std::time::Duration;

    /// How often a paused process looks whether it may go on.
    const LOOK_EVERY: Duration = Duration::from_millis(2);

    fn folder() -> Option<&'static Path> {
        static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
        FOLDER.get_or_init(|| std::env::var_os("SALLY_FAIL").map(PathBuf::from)).as_deref()
    }

    /// Does what the point is armed with. Returns whether an error was asked for.
    pub(super) fn act(name: &str) -> bool {
        folder().is_some_and(|folder| act_in(folder, name))
    }

    pub(super) fn act_in(folder: &Path, name: &str) -> bool {
        let file = folder.join(name);
        let taken = folder.join(format!("{name}.taken.{}", std::process::id()));
        // Whoever moves the file has it; the others find nothing.
        if fs::rename(&file, &taken).is_err() {
            return false;
        }
        let text = fs::read_to_string(&taken).unwrap_or_default();
        let (action, nth) = text.trim().split_once(':').unwrap_or((text.trim(), "1"));
        let nth: u32 = nth.parse().unwrap_or(1);
        if nth > 1 {
            let _ = fs::write(&taken, format!("{action}:{}", nth - 1));
            let _ = fs::rename(&taken, &file);
            return false;
        }
        let hit = folder.join(format!("{name}.hit"));
        let _ = fs::write(&taken, std::process::id().to_string());
        let _ = fs::rename(&taken, &hit);
        match action {
            "abort" => std::process::abort(),
            "pause" => {
                while hit.exists() {
                    std::thread::sleep(LOOK_EVERY);
                }
                false
            }
            "error" => true,
            _ => false,
        }
    }

    /// The file's name of this program.
    fn program() -> &'static str {
        static NAME: OnceLock<String> = OnceLock::new();
        NAME.get_or_init(|| {
            let program = std::env::current_exe().ok();
            program.as_deref().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned()
        })
    }

    pub(super) fn clock_offset_ms() -> i64 {
        stand_in(&format!("clock.{}", program())).and_then(|text| text.parse().ok()).unwrap_or(0)
    }

    /// As which version it speaks: newer or older, and which.
    pub(super) fn other_version() -> Option<(String, String)> {
        folder()?;
        let text = stand_in(&format!("version.{}", program()))?;
        text.split_once(' ').map(|(kind, version)| (kind.to_owned(), version.to_owned()))
    }

    pub(super) fn stand_in(name: &str) -> Option<String> {
        let text = fs::read_to_string(folder()?.join(name)).ok()?;
        Some(text.trim().to_owned())
    }
}

#[cfg(all(test, debug_assertions))]
mod tests {
    use super::armed::act_in;

    #[test]
    fn one_arming_has_one_effect() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        let armed = dir.path().join("a.point");
        assert!(!act_in(dir.path(), "a.point"), "nothing is armed");
        std::fs::write(&armed, "error").expect("written");
        assert!(!act_in(dir.path(), "another.point"));
        assert!(act_in(dir.path(), "a.point"));
        assert!(!act_in(dir.path(), "a.point"), "it was taken");
        let hit = std::fs::read_to_string(dir.path().join("a.point.hit")).expect("read");
        assert_eq!(hit, std::process::id().to_string());
    }

    #[test]
    fn the_nth_time_counts() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("p"), "error:3").expect("written");
        assert_eq!([(); 4].map(|()| act_in(dir.path(), "p")), [false, false, true, false]);
    }

    #[test]
    fn a_pause_ends_when_its_file_goes() {
        let dir = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(dir.path().join("p"), "pause").expect("written");
        std::thread::scope(|scope| {
            let paused = scope.spawn(|| act_in(dir.path(), "p"));
            while !dir.path().join("p.hit").exists() {
                std::thread::yield_now();
            }
            assert!(!paused.is_finished());
            std::fs::remove_file(dir.path().join("p.hit")).expect("removed");
            assert!(!paused.join().expect("it ends"));
        });
    }
}
