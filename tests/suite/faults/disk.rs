//! File systems of a test's own: small ones that fill up, and images of which a copy is what a power cut leaves.
//!
//! They need root; without it the rows that want one say aloud that they are skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::harness::run;

/// Whether file systems can be mounted here. Says aloud why not.
pub fn can_mount(row: &str) -> bool {
    let is_root = nix::unistd::geteuid().is_root();
    if !is_root {
        println!("SKIPPED {row}: mounting needs root");
    }
    is_root
}

#[track_caller]
fn sh(text: &str, args: &[&Path]) {
    run(Command::new("sh").args(["-euc", text, "-"]).args(args)).expect(0);
}

/// Something mounted, until it is dropped.
pub struct Mounted {
    at: PathBuf,
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Lazily: a process that a failed test left behind must not keep it.
        let _ = Command::new("umount").arg("-l").arg(&self.at).status();
    }
}

/// A file system in memory of so many KiB.
pub fn tmpfs(at: &Path, kib: u32) -> Mounted {
    fs::create_dir_all(at).unwrap();
    sh(&format!("mount -t tmpfs -o mode=0755,size={kib}k small \"$1\""), &[at]);
    Mounted { at: at.to_owned() }
}

/// A file system in an image file.
pub struct Image {
    /// Where it is mounted.
    pub at: PathBuf,
    file: PathBuf,
    _mounted: Mounted,
}

impl Image {
    /// Makes one of so many MiB: the image and where it is mounted are in this folder.
    pub fn make(dir: &Path, mib: u32) -> Image {
        let file = dir.join("image-0");
        // No file is written through the page cache of the image: what a copy of it holds was synced, or written out.
        sh(&format!("truncate -s {mib}M \"$1\"; mkfs.ext4 -q -F \"$1\""), &[&file]);
        let image = Image::mount(file, dir.join("mount-0"));
        // mkfs makes it, and it belongs to nobody here.
        let _ = fs::remove_dir(image.at.join("lost+found"));
        image
    }

    fn mount(file: PathBuf, at: PathBuf) -> Image {
        fs::create_dir_all(&at).unwrap();
        sh("mount -o loop \"$1\" \"$2\"", &[&file, &at]);
        Image { file, _mounted: Mounted { at: at.clone() }, at }
    }

    /// What a power cut at this moment leaves, mounted beside it.
    pub fn cut(&self) -> Image {
        let (file, at) = (next(&self.file), next(&self.at));
        fs::copy(&self.file, &file).unwrap();
        Image::mount(file, at)
    }
}

/// `image-1` after `image-0`.
fn next(path: &Path) -> PathBuf {
    let text = path.to_str().unwrap();
    let (stem, number) = text.rsplit_once('-').unwrap();
    PathBuf::from(format!("{stem}-{}", number.parse::<u32>().unwrap() + 1))
}

/// Lets a path lead to a folder elsewhere. What was there must be a link too, or nothing.
pub fn lead(path: &Path, to: &Path) {
    let draft = path.with_extension("link");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::os::unix::fs::symlink(to, &draft).unwrap();
    fs::rename(draft, path).unwrap();
}

/// Fills a file system up to its last byte, and gives the space back when dropped.
pub struct Full {
    file: PathBuf,
}

pub fn fill(dir: &Path) -> Full {
    use std::io::Write as _;
    let path = dir.join("ballast");
    let mut file = fs::File::create(&path).unwrap();
    let mut size = 64 * 1024;
    while size > 0 {
        if file.write_all(&vec![0; size]).is_err() {
            size /= 2;
        }
    }
    Full { file: path }
}

impl Drop for Full {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.file);
    }
}
