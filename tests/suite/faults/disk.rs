//! File systems of a test's own: small ones that fill up, and images of which a copy is what a power cut leaves.
//!
//! They need root; without it the rows that want one say aloud that they are skipped.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::world::World;
use crate::effects::{lives, send};
use crate::harness::{eventually, run};

/// An agent admits runs only with room for each slot's output and result beside what it keeps free.
pub const AGENT_DISK_MIB: u32 = 640;
pub const BROKER_DISK_MIB: u32 = 48;
pub const CONTROLLER_DISK_KIB: u32 = 24 * 1024;

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

/// The broker's host loses power, with the last of these images for its storage; the next one is a copy of it.
pub fn cut_power_of_broker(world: &mut World, all: &mut Vec<Image>) {
    let pid = eventually("a broker", || world.up.pid_of("nats-server").filter(|pid| lives(*pid)));
    send(pid, Signal::SIGSTOP);
    let cut = all[all.len() - 1].cut();
    lead(&world.store(), &cut.at);
    all.push(cut);
    world.kill_and_wait("nats-server");
}

/// The host of all agents loses power, with the last of these images for the state of the first; the next one is a copy
/// of it. Then it is another boot.
pub fn cut_power_of_agents(world: &mut World, all: &mut Vec<Image>, boot: u64) {
    // Nobody starts anything anew meanwhile, which would use what is lost.
    send(world.up.pid(), Signal::SIGSTOP);
    let host = world.pids_on_agents_host();
    // Everything stops at one instant.
    for pid in &host {
        let _ = kill(Pid::from_raw(*pid), Signal::SIGSTOP);
    }
    let cut = all[all.len() - 1].cut();
    lead(&world.agent_dir(1).join("state"), &cut.at);
    all.push(cut);
    world.points.set("boot_id", &format!("boot-{boot}"));
    for pid in &host {
        // A keeper's death is the end of its whole tree.
        let _ = kill(Pid::from_raw(*pid), Signal::SIGKILL);
    }
    eventually("the host is dead", || host.iter().all(|pid| !lives(*pid)).then_some(()));
    send(world.up.pid(), Signal::SIGCONT);
    world.struck();
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
