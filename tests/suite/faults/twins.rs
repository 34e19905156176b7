//! Two processes with one identity: a copy of an agent's state beside the agent.

use std::process::{Child, Command, Stdio};
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::sys::signal::kill;
use nix::unistd::Pid;

use super::world::{World, copy_folder};
use crate::effects::{Kind, send};
use crate::harness::{eventually, programs};

/// A second agent on a copy of the first one's state, with a launcher of its own.
struct Twin(Child);

impl Twin {
    /// Copies the state at one instant and starts an agent on it.
    fn start(world: &World, number: u32) -> Twin {
        let dir = world.agent_dir(1);
        let copy = format!("twin-{number}");
        let pid = world.up.pid_of("local-1").unwrap();
        send(pid, Signal::SIGSTOP);
        copy_folder(&dir.join("state"), &dir.join(&copy));
        send(pid, Signal::SIGCONT);
        let config = std::fs::read_to_string(dir.join("agent.toml")).unwrap();
        let mut config: toml::Table = toml::from_str(&config).unwrap();
        config.remove("launcher_socket");
        config.insert("state_dir".into(), copy.clone().into());
        let path = dir.join(format!("{copy}.toml"));
        std::fs::write(&path, config.to_string()).unwrap();
        let log = std::fs::File::create(world.up.dir().join(format!("log/{copy}.log"))).unwrap();
        let mut command = Command::new(programs().join("sally-agent"));
        command.args(["run", "--config"]).arg(path).env("SALLY_FAIL", &world.points.dir);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        Twin(command.spawn().unwrap())
    }

    /// Ends it as a person does who has seen what is wrong.
    fn stop(mut self) {
        kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM).unwrap();
        eventually("the copy ends", || self.0.try_wait().unwrap());
    }
}

impl Drop for Twin {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Twice: a copy is started beside the agent, is noticed, and is ended. Work that comes meanwhile waits, and is done once.
pub fn cloned() -> World {
    let mut world = World::new(1, 25);
    world.some_jobs(2);
    world.wait_for_all_ends();
    for number in 1..=2 {
        world.submit(Kind::Lines, 1);
        world.wait_for_start();
        let twin = Twin::start(&world, number);
        world.struck();
        eventually("two processes are noticed", || {
            let problem = world.agent(1)?["problem"].as_str()?.to_owned();
            problem.contains("two processes").then_some(())
        });
        let id = world.submit(Kind::Short, 1);
        world.submit(Kind::Instant, 1);
        // For as long as both speak nothing starts.
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(world.show(&id).unwrap()["runs"][0]["state"], "pending");
        twin.stop();
        world.wait_for_all_ends();
    }
    world
}
