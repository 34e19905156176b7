//! Files are taken out of a work folder while a folder in it is a link to somewhere else every other moment. In a run
//! everything is dead by then; here somebody is not.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::artifacts::{NamedFile, collect};
use super::keep::keep;
use super::plan::Limits;
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use std::fs::{self, File};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

const TRIES: usize = 20_000;

/// Does something with a work folder in which `folder/file` is its own or the host's, until it says that it is done.
fn beside_a_swapper(mut work: impl FnMut(&Path) -> bool) {
    let dir = tempfile::tempdir().unwrap();
    let at = dir.path().join("work");
    fs::create_dir_all(at.join("folder")).unwrap();
    fs::create_dir(dir.path().join("host")).unwrap();
    fs::write(at.join("folder/file"), "mine").unwrap();
    fs::write(dir.path().join("host/file"), "secret").unwrap();
    symlink(dir.path().join("host"), at.join("link")).unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                let (folder, link) = (at.join("folder"), at.join("link"));
                renameat2(AT_FDCWD, &folder, AT_FDCWD, &link, RenameFlags::RENAME_EXCHANGE).unwrap();
            }
        });
        while !work(&at) {}
        stop.store(true, Ordering::Relaxed);
    });
}

/// Files that were taken, together.
fn target(dir: &Path) -> OwnedFd {
    File::options().create(true).append(true).read(true).open(dir.join("target")).unwrap().into()
}

#[test]
fn whoever_follows_links_is_led_astray() {
    let mut seen = [false; 2];
    beside_a_swapper(|work| {
        match fs::read(work.join("folder/file")).as_deref() {
            Ok(b"mine") => seen[0] = true,
            Ok(b"secret") => seen[1] = true,
            _ => {}
        }
        seen == [true; 2]
    });
}

#[test]
fn files_to_keep_are_taken_through_no_link_that_appears_meanwhile() {
    let out = tempfile::tempdir().unwrap();
    let (mut tries, mut taken) = (0, 0);
    beside_a_swapper(|work| {
        let target = target(out.path());
        nix::unistd::ftruncate(&target, 0).unwrap();
        let named = vec![NamedFile { name: "n".into(), path: "folder/file".into() }];
        let work = File::open(work).unwrap();
        let index = collect(work.as_fd(), target.as_fd(), named, &Limits::default(), &mut [0; 64]);
        let bytes = fs::read(out.path().join("target")).unwrap();
        assert_eq!(bytes, if index[0].error.is_none() { &b"mine"[..] } else { b"" });
        tries += 1;
        taken += usize::from(index[0].error.is_none());
        tries >= TRIES && taken > 0
    });
}

#[test]
fn a_work_folder_is_kept_through_no_link_that_appears_meanwhile() {
    let out = tempfile::tempdir().unwrap();
    let (mut tries, mut taken) = (0, 0);
    beside_a_swapper(|work| {
        let target = target(out.path());
        nix::unistd::ftruncate(&target, 0).unwrap();
        let work = File::open(work).unwrap();
        keep(work.as_fd(), &target, 1 << 20, &mut [0; 64]);
        let bytes = fs::read(out.path().join("target")).unwrap();
        let has = |word: &[u8]| bytes.windows(word.len()).any(|part| part == word);
        assert!(!has(b"secret"));
        tries += 1;
        taken += usize::from(has(b"mine"));
        tries >= TRIES / 10 && taken > 0
    });
}
