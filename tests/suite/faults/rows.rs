//! The rows: each fault by itself, with jobs before, during and after it.

use std::time::Duration;

use nix::sys::signal::Signal;

use super::blows::{
    at_each, bad_line, clocks, cut_power_of_the_agent, cut_power_of_the_broker, dropped_by_the_kernel,
    frozen, full_disk, killed_beside, roll_journal_back, side_by_side,
};
use super::disk::{AGENT_DISK_MIB, CONTROLLER_DISK_KIB, can_mount};
use super::judge::Tally;
use super::link::{Line, Link};
use super::points;
use super::replay::Replay;
use super::table;
use super::world::{Process, World};
use super::{ledgers, twins, versions};
use crate::effects::{Kind, lives, send};
use crate::harness::eventually;

/// One row of the table.
pub struct Row {
    /// The test's name.
    pub name: &'static str,
    /// What happens, for the table.
    pub fault: &'static str,
}

/// Runs a row: what it does to a world, and the judgement.
pub(super) fn judged(row: &Row, world: World) {
    let (tally, problems) = world.judge();
    verdict(row, &tally, &problems);
}

/// Rows that do not hold yet, and why. They are run and shown as they are, and fail no test.
pub const OPEN: &[(&str, &str)] = &[];

/// Why a row is open, if it is.
pub fn open(name: &str) -> Option<&'static str> {
    OPEN.iter().find(|(row, _)| *row == name).map(|(_, why)| *why)
}

pub(super) fn verdict(row: &Row, tally: &Tally, problems: &[String]) {
    assert!(tally.struck > 0, "{}: no fault struck", row.name);
    table::record(row.name, tally);
    if let Some(why) = open(row.name) {
        println!("OPEN {}: {why}: {}", row.name, problems.join("\n"));
        return;
    }
    assert!(problems.is_empty(), "{} ({} faults):\n{}", row.name, tally.struck, problems.join("\n"));
}

macro_rules! rows {
    ($($name:ident: $fault:literal, $run:expr;)*) => {
        /// Every row, in the order of the table.
        pub const ROWS: &[Row] = &[$(Row { name: stringify!($name), fault: $fault }),*];
        $(
            #[test]
            fn $name() {
                let row = Row { name: stringify!($name), fault: $fault };
                let run: fn(&Row) = $run;
                run(&row);
            }
        )*
    };
}

rows! {
    agent_killed_at_each_step: "the agent dies at each step from dispatch to receipt", |row| {
        at_each(row, points::AGENT, 0, |world, point| {
            world.points.arm(point, "abort");
            world.submit(Kind::Short, 1);
            world.points.wait(point);
            world.struck();
        });
    };
    agent_killed_with_four_runs: "the agent dies at each step while four runs are under way", |row| {
        at_each(row, points::AGENT, 0, |world, point| {
            world.points.arm(point, "abort:2");
            for kind in [Kind::Instant, Kind::Large, Kind::Short, Kind::Instant] {
                world.submit(kind, 1);
            }
            world.points.wait(point);
            world.struck();
        });
    };
    controller_killed_at_each_step: "the controller dies at each step from submission to receipt", |row| {
        at_each(row, points::CONTROLLER, 0, |world, point| {
            world.points.arm(point, "abort");
            world.submit_meanwhile(Kind::Short, "local-1", 1, |world| {
                world.points.wait(point);
                world.struck();
            });
        });
    };
    launcher_killed_at_each_step: "the launcher dies while the agent stands at each step", |row| {
        at_each(row, points::AGENT, 0, |world, point| killed_beside(world, point, Process::Launcher));
    };
    keeper_killed_at_each_step: "the run's keeper dies while the agent stands at each step", |row| {
        at_each(row, points::AGENT, 0, |world, point| {
            world.points.arm(point, "pause");
            world.submit(Kind::Short, 1);
            world.points.wait(point);
            for pid in world.pids(Process::Keeper) {
                send(pid, Signal::SIGKILL);
            }
            world.struck();
            world.excuse("interrupted", 1);
            world.points.go_on(point);
        });
    };
    controller_killed_beside_each_step: "the controller dies while the agent stands at each step", |row| {
        at_each(row, points::AGENT, 0, |world, point| killed_beside(world, point, Process::Controller));
    };
    broker_killed_at_each_step: "the broker dies while the agent stands at each step", |row| {
        at_each(row, points::AGENT, 0, |world, point| killed_beside(world, point, Process::Broker));
    };
    broker_killed_beside_the_controller: "the broker dies while the controller stands at each step", |row| {
        at_each(row, points::CONTROLLER, 0, |world, point| {
            world.points.arm(point, "pause");
            world.submit_meanwhile(Kind::Short, "local-1", 1, |world| {
                world.points.wait(point);
                world.kill_one(Process::Broker, 0);
                world.points.go_on(point);
            });
        });
    };
    agent_stopped_with_runs: "the agent is stopped with runs under way, and started again", |row| {
        let mut world = World::new(1, 1);
        for _ in 0..3 {
            world.submit(Kind::Lines, 1);
            world.wait_for_start();
            let pid = world.up.pid_of("local-1").unwrap();
            send(pid, Signal::SIGTERM);
            eventually("it ends", || (!lives(pid)).then_some(()));
            world.struck();
        }
        judged(row, world);
    };
    host_power_cut_under_the_agent: "the agent's host loses power; its disk is a copy of what was written out", |row| {
        if can_mount(row.name) {
            cut_power_of_the_agent(row);
        }
    };
    broker_killed: "the broker dies at random moments, twenty times", |row| {
        side_by_side(row, 1..=4, |seed| {
            let mut world = World::new(1, *seed);
            for _ in 0..5 {
                world.some_jobs(1);
                let pause = world.random.between((0, 150));
                std::thread::sleep(pause);
                world.kill_and_wait("nats-server");
            }
            world
        });
    };
    broker_frozen: "the broker stands still for longer than a question waits", |row| {
        let mut world = World::new(2, 3);
        world.some_jobs(4);
        for pause in [500, 3_000] {
            world.submit(Kind::Lines, 1);
            world.wait_for_start();
            let pid = world.up.pid_of("nats-server").unwrap();
            world.freeze(pid, Duration::from_millis(pause));
        }
        judged(row, world);
    };
    broker_power_cut: "the broker's host loses power; its disk is a copy of what was written out", |row| {
        if can_mount(row.name) {
            cut_power_of_the_broker(row);
        }
    };
    broker_storage_erased: "everything the broker stored is gone, with runs under way", |row| {
        let mut world = World::new(2, 4);
        for _ in 0..3 {
            world.some_jobs(2);
            world.submit(Kind::Lines, 2);
            world.replace_store(None);
        }
        judged(row, world);
    };
    broker_storage_rolled_back: "the broker comes back with an older copy of its storage", |row| {
        let mut world = World::new(2, 5);
        for n in 0..3 {
            world.some_jobs(2);
            let copy = world.copy_of_store(&format!("copy-{n}"));
            world.some_jobs(3);
            world.submit(Kind::Lines, 2);
            world.replace_store(Some(&copy));
        }
        judged(row, world);
    };
    link_silent: "the agent's connection drops everything, in both directions, then passes again", |row| {
        bad_line(row, Line::Silent, Duration::from_secs(4));
    };
    link_deaf: "the agent's connection passes only what the agent says", |row| {
        bad_line(row, Line::Deaf, Duration::from_secs(4));
    };
    link_dropped_by_the_kernel: "the kernel drops all packets of the agent's network namespace: in, out, both", |row| {
        dropped_by_the_kernel(row);
    };
    link_reset: "the agent's connections are reset, and refused for a while", |row| {
        bad_line(row, Line::Reset, Duration::from_secs(2));
    };
    link_slow: "the agent's connection passes 50 kB each second, a few bytes at a time", |row| {
        let mut world = World::new(1, 6);
        let link = Link::between(&mut world, 1);
        link.set(Line::Slow);
        world.struck();
        world.some_jobs(3);
        world.wait_for_end();
        link.set(Line::Good);
        judged(row, world);
    };
    link_cut_in_messages: "the agent's connection is cut in the middle of messages, and speaks nonsense", |row| {
        let mut world = World::new(1, 7);
        let link = Link::between(&mut world, 1);
        for bytes in [1, 37, 150, 700, 1_500, 2_300] {
            if bytes % 2 == 1 { link.garbage_after(bytes) } else { link.cut_after(bytes) }
            world.some_jobs(2);
            eventually("the connection is cut", || link.was_cut().then_some(()));
            world.struck();
        }
        judged(row, world);
    };
    messages_repeated_and_reordered: "all that went by is said again five times, in another order", |row| {
        let mut world = World::new(2, 8);
        let replay = Replay::listen(&world);
        for n in 0..3 {
            world.some_jobs(3);
            world.submit(Kind::Lines, 1);
            // While some are under way, and once all have ended.
            assert!(replay.again(5, n) > 0);
            world.struck();
            world.wait_for_end();
            assert!(replay.again(5, n + 10) > 0);
            world.struck();
        }
        drop(replay);
        judged(row, world);
    };
    agent_frozen: "the agent stands still for longer than the controller waits before it repeats itself", |row| {
        frozen(row, "local-1");
    };
    controller_frozen: "the controller stands still while results arrive", |row| frozen(row, "serve");
    launcher_frozen: "the launcher stands still while runs are to begin", |row| frozen(row, "local-1.launcher");
    journal_cannot_be_written: "the agent's journal cannot be written, now and then", |row| {
        let mut world = World::new(1, 9);
        for nth in 1..=6 {
            world.points.arm("agent.journal.commit", &format!("error:{nth}"));
            world.some_jobs(2);
            world.points.wait("agent.journal.commit");
            world.struck();
        }
        judged(row, world);
    };
    ledger_cannot_be_written: "the controller's ledger cannot be written, now and then", |row| {
        let mut world = World::new(1, 10);
        for nth in 1..=6 {
            world.points.arm("controller.ledger.commit", &format!("error:{nth}"));
            world.some_jobs(2);
            world.points.wait("controller.ledger.commit");
            world.struck();
        }
        judged(row, world);
    };
    disk_full_at_the_agent: "the agent's disk is full to the last byte, then has room again", |row| {
        if can_mount(row.name) {
            full_disk(row, "agents/local-1/state", AGENT_DISK_MIB * 1024);
        }
    };
    disk_full_at_the_controller: "the controller's disk is full to the last byte, then has room again", |row| {
        if can_mount(row.name) {
            full_disk(row, "controller", CONTROLLER_DISK_KIB);
        }
    };
    clock_of_the_agent_jumps: "the agent's clock jumps by an hour and by 400 days, forward and back", |row| {
        // What it then takes for expired is said to be expired, and not run.
        clocks(row, "sally-agent", 4);
    };
    clock_of_the_controller_jumps: "the clock of controller and callers jumps by an hour, forward and back", |row| {
        clocks(row, "sally", 0);
    };
    journal_lost: "the agent's journal is removed with runs under way", |row| {
        let mut world = World::new(1, 11);
        world.some_jobs(3);
        world.wait_for_all_ends();
        world.submit(Kind::Lines, 1);
        world.wait_for_start();
        // A new journal is a new incarnation, and what runs is taken up by its folder.
        let before = world.agent(1).unwrap();
        std::fs::remove_file(world.agent_dir(1).join("state/journal.redb")).unwrap();
        world.kill_and_wait("local-1");
        world.wait_for_other_incarnation(&before);
        world.some_jobs(2);
        judged(row, world);
    };
    journal_damaged: "the agent's journal is cut short and written over, then moved away by a person", |row| {
        let mut world = World::new(1, 12);
        world.some_jobs(2);
        world.wait_for_all_ends();
        world.submit(Kind::Lines, 1);
        world.wait_for_start();
        let journal = world.agent_dir(1).join("state/journal.redb");
        let before = world.agent(1).unwrap();
        std::fs::write(&journal, vec![0x5a; 5_000]).unwrap();
        world.kill_and_wait("local-1");
        let log = world.up.dir().join("log/local-1.log");
        eventually("it says what is wrong", || {
            std::fs::read_to_string(&log).unwrap().contains("cannot open the journal").then_some(())
        });
        std::fs::rename(&journal, journal.with_extension("damaged")).unwrap();
        world.wait_for_other_incarnation(&before);
        world.some_jobs(2);
        judged(row, world);
    };
    journal_rolled_back: "the agent comes back with an older copy of its journal, taken while it ran", |row| {
        roll_journal_back(row);
    };
    journal_cloned: "a copy of the agent's state is started beside it, twice, with a run under way", |row| {
        judged(row, twins::cloned());
    };
    ledger_lost: "the controller's ledger is removed with a run under way", |row| judged(row, ledgers::lost());
    ledger_restored: "the controller's ledger is replaced by an older `sally backup` with a run under way", |row| {
        judged(row, ledgers::restored());
    };
    versions_side_by_side: "agents and controller are of newer and of older versions, and change under runs", |row| {
        judged(row, versions::side_by_side());
    };
    credentials_refused: "the broker refuses the agent's credentials for a while", |row| {
        let mut world = World::new(1, 13);
        let creds = world.agent_dir(1).join("agent.creds");
        let right = std::fs::read(&creds).unwrap();
        world.submit(Kind::Lines, 1);
        world.wait_for_start();
        // Another agent's, who may not speak here: those of a caller.
        let wrong = std::fs::read_dir(world.up.dir().join("creds")).unwrap().flatten().map(|e| e.path());
        let wrong = wrong.into_iter().find(|p| p.to_string_lossy().contains("caller")).unwrap();
        std::fs::copy(wrong, &creds).unwrap();
        world.kill_and_wait("local-1");
        world.some_jobs(2);
        std::thread::sleep(Duration::from_secs(1));
        std::fs::write(&creds, right).unwrap();
        world.kill_and_wait("local-1");
        judged(row, world);
    };
    controller_slow_with_many_results: "the controller stands still while the results of sixteen agents arrive", |row| {
        let mut world = World::new(16, 22);
        world.submit_to(Kind::Short, "local-*", 16);
        world.submit_to(Kind::Large, "local-*", 16);
        let pid = world.up.pid_of("serve").unwrap();
        world.freeze(pid, Duration::from_secs(3));
        judged(row, world);
    };
    many_agents_reconnect: "sixteen agents reconnect at once, each with a run under way", |row| {
        let mut world = World::new(16, 14);
        for _ in 0..2 {
            world.submit_to(Kind::Short, "local-*", 16);
            world.kill_and_wait("nats-server");
        }
        judged(row, world);
    };
    cancelled_at_each_step: "a run is cancelled while the agent stands at each step", |row| {
        at_each(row, points::AGENT, 1, |world, point| {
            world.points.arm(point, "pause");
            let id = world.submit(Kind::Short, 1);
            world.points.wait(point);
            for _ in 0..2 {
                world.sally(&["job", "cancel", &id]).expect(0);
            }
            world.struck();
            world.points.go_on(point);
        });
    };
    everything_at_random: "one to four of the faults above at random moments of a stream of jobs (`make soak`)", |row| {
        super::walk::walk(row);
    };
}

/// A tally is recorded under names that exist.
#[test]
fn rows_have_names_of_their_own() {
    let names: std::collections::BTreeSet<_> = ROWS.iter().map(|row| row.name).collect();
    assert_eq!(names.len(), ROWS.len());
    assert!(OPEN.iter().all(|(name, _)| names.contains(name)));
    assert_eq!(Tally::default().promises.len(), super::judge::PROMISES.len());
}
