//! What several rows do to their worlds.

use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use nix::sys::signal::Signal;

use super::disk::{self, AGENT_DISK_MIB, BROKER_DISK_MIB};
use super::judge::Tally;
use super::link::{Line, Link};
use super::rows::{Row, judged, verdict};
use super::world::{Process, World};
use crate::effects::{Kind, send};
use crate::harness::programs;
use crate::netns;

/// Points tried in one world, one after the other. What dies again and again is started again later each time.
const POINTS_A_WORLD: usize = 4;

/// Worlds of one agent in which something happens at each point.
pub(super) fn at_each(row: &Row, points: &[&str], cancels: u64, strike: impl Fn(&mut World, &str) + Sync) {
    side_by_side(row, points.chunks(POINTS_A_WORLD), |points| {
        let mut world = World::new(1, 0);
        for point in *points {
            println!("{point}");
            strike(&mut world, point);
            if cancels > 0 {
                world.excuse("cancelled", cancels);
            }
            world.wait_for_end();
            world.points.clear();
        }
        world
    });
}

/// Several worlds at the same time, judged as one row.
pub(super) fn side_by_side<T: Sync + Send>(
    row: &Row,
    parts: impl Iterator<Item = T>,
    live: impl Fn(&T) -> World + Sync,
) {
    let parts: Vec<T> = parts.collect();
    let live = &live;
    let verdicts: Vec<_> = std::thread::scope(|scope| {
        let lives: Vec<_> = parts.iter().map(|part| scope.spawn(move || live(part).judge())).collect();
        lives.into_iter().map(|life| life.join().expect("a world")).collect()
    });
    let mut sum = Tally::default();
    let mut problems = Vec::new();
    for (tally, more) in verdicts {
        sum.add(&tally);
        problems.extend(more);
    }
    verdict(row, &sum, &problems);
}

/// A process dies while the agent stands still at a point.
pub(super) fn killed_beside(world: &mut World, point: &str, process: Process) {
    world.points.arm(point, "pause");
    world.submit(Kind::Short, 1);
    world.points.wait(point);
    world.kill_one(process, 0);
    world.points.go_on(point);
}

pub(super) fn frozen(row: &Row, name: &str) {
    let mut world = World::new(1, 15);
    for _ in 0..2 {
        world.some_jobs(3);
        let pid = world.up.pid_of(name).unwrap();
        world.freeze(pid, Duration::from_millis(2_500));
        world.wait_for_end();
    }
    judged(row, world);
}

pub(super) fn bad_line(row: &Row, line: Line, pause: Duration) {
    let mut world = World::new(2, 16);
    let link = Link::between(&mut world, 1);
    for _ in 0..2 {
        // One that runs through it, one that ends in it, one that comes in it.
        world.submit(Kind::Lines, 1);
        world.wait_for_start();
        world.submit(Kind::Short, 1);
        world.wait_for_start();
        link.set(line);
        world.struck();
        world.some_jobs(2);
        std::thread::sleep(pause);
        link.set(Line::Good);
        world.wait_for_end();
    }
    judged(row, world);
}

pub(super) fn dropped_by_the_kernel(row: &Row) {
    if let Some(reason) = netns::missing() {
        println!("SKIPPED {}: {reason}", row.name);
        return;
    }
    let zone = netns::Zone::new();
    let dir = tempfile::Builder::new().prefix("sally-").tempdir().unwrap();
    // The agent alone is in the namespace; scripts stay here, where their judge listens.
    let bin = dir.path().join("bin");
    std::fs::create_dir(&bin).unwrap();
    std::fs::copy(programs().join("sally"), bin.join("sally")).unwrap();
    let agent = programs().join("sally-agent");
    let script = format!(
        "#!/bin/sh\n[ \"$1\" != run ] || exec ip netns exec {} '{1}' \"$@\"\nexec '{1}' \"$@\"\n",
        zone.name,
        agent.display()
    );
    std::fs::write(bin.join("sally-agent"), script).unwrap();
    std::fs::set_permissions(bin.join("sally-agent"), PermissionsExt::from_mode(0o755)).unwrap();
    let mut world = World::of_program(&bin.join("sally"), dir, 1, 23, &["--listen", &zone.outside]);
    for directions in [&["ingress", "egress"][..], &["ingress"], &["egress"]] {
        world.submit(Kind::Lines, 1);
        world.wait_for_start();
        zone.drop_all(directions);
        world.struck();
        world.some_jobs(2);
        std::thread::sleep(Duration::from_secs(3));
        zone.pass_all();
        world.wait_for_end();
    }
    judged(row, world);
}

pub(super) fn full_disk(row: &Row, part: &str, kib: u32) {
    let dir = tempfile::Builder::new().prefix("sally-").tempdir().unwrap();
    let small = tempfile::tempdir().unwrap();
    let mounted = disk::tmpfs(small.path(), kib);
    disk::lead(&dir.path().join("up").join(part), small.path());
    let mut world = World::in_folder(dir, 1, 17);
    for _ in 0..2 {
        world.submit(Kind::Lines, 1);
        world.wait_for_start();
        let full = disk::fill(small.path());
        world.struck();
        let away = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(2_500));
            drop(full);
        });
        world.some_jobs(2);
        away.join().unwrap();
        world.wait_for_end();
    }
    // A run whose output or result found no room fails and says so.
    world.excuse("failed", 6);
    judged(row, world);
    drop(mounted);
}

pub(super) fn clocks(row: &Row, program: &str, expired: u64) {
    const HOUR: i64 = 3_600_000;
    let mut world = World::new(1, 18);
    let far = if expired > 0 { 400 * 24 * HOUR } else { HOUR };
    let mut is_far = false;
    for offset in if expired > 0 { vec![HOUR, -HOUR, far, -far, 0] } else { vec![HOUR, -HOUR] } {
        world.submit(Kind::Lines, 1);
        if !is_far {
            world.wait_for_start();
        }
        is_far = expired > 0 && offset == far;
        world.points.clock(program, offset);
        world.struck();
        world.some_jobs(1);
        world.wait_for_end();
    }
    if expired > 0 {
        world.excuse("expired", expired);
    }
    judged(row, world);
}

pub(super) fn cut_power_of_the_broker(row: &Row) {
    let dir = tempfile::Builder::new().prefix("sally-").tempdir().unwrap();
    let images = tempfile::tempdir().unwrap();
    let mut all = vec![disk::Image::make(images.path(), BROKER_DISK_MIB)];
    let store = dir.path().join("up/jetstream");
    disk::lead(&store, &all[0].at);
    let mut world = World::in_folder(dir, 2, 19);
    for _ in 0..3 {
        world.some_jobs(3);
        world.submit(Kind::Lines, 2);
        disk::cut_power_of_broker(&mut world, &mut all);
    }
    judged(row, world);
}

pub(super) fn cut_power_of_the_agent(row: &Row) {
    let dir = tempfile::Builder::new().prefix("sally-").tempdir().unwrap();
    let images = tempfile::tempdir().unwrap();
    let mut all = vec![disk::Image::make(images.path(), AGENT_DISK_MIB)];
    let state = dir.path().join("up/agents/local-1/state");
    disk::lead(&state, &all[0].at);
    let mut world = World::in_folder(dir, 1, 20);
    for boot in 0..4 {
        world.some_jobs(3);
        world.submit(Kind::Lines, 1);
        world.wait_for_start();
        world.excuse("interrupted", 4);
        disk::cut_power_of_agents(&mut world, &mut all, boot);
        world.wait_for_end();
    }
    judged(row, world);
}

pub(super) fn roll_journal_back(row: &Row) {
    let mut world = World::new(1, 21);
    world.some_jobs(3);
    world.wait_for_all_ends();
    let journal = world.agent_dir(1).join("state/journal.redb");
    let copy = journal.with_extension("copy");
    let pid = world.up.pid_of("local-1").unwrap();
    send(pid, Signal::SIGSTOP);
    std::fs::copy(&journal, &copy).unwrap();
    send(pid, Signal::SIGCONT);
    world.some_jobs(3);
    world.wait_for_all_ends();
    world.submit(Kind::Lines, 1);
    world.wait_for_start();
    // The copy does not know what runs; its folder does, and it is never run again.
    let before = world.agent(1).unwrap();
    assert_eq!(world.up.pid_of("local-1"), Some(pid), "the same process all the time");
    send(pid, Signal::SIGSTOP);
    std::fs::remove_file(&journal).unwrap();
    std::fs::copy(&copy, &journal).unwrap();
    world.kill_and_wait("local-1");
    world.wait_for_other_incarnation(&before);
    world.some_jobs(2);
    judged(row, world);
}
