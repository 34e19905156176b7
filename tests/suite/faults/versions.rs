//! Programs of another version, one minor version newer and older, beside those of this one: they say fields that nobody knows
//! yet, or lack those that came last.

use super::manner::Manner;
use super::world::World;
use crate::effects::Kind;
use crate::harness::eventually;

const NEWER: &str = "newer 0.99.0";
const OLDER: &str = "older 0.0.1";

/// Agent and controller are upgraded and downgraded, one after the other, with runs under way.
pub fn side_by_side() -> World {
    let mut world = World::new(2, 26);
    for (agents, controller) in
        [(NEWER, ""), (OLDER, ""), ("", NEWER), ("", OLDER), (OLDER, NEWER), (NEWER, OLDER), ("", "")]
    {
        for agent in 1..=2 {
            world.submit(Kind::Lines, agent);
            world.wait_for_start();
        }
        world.points.set("version.sally-agent", agents);
        world.points.set("version.sally", controller);
        for name in ["local-1", "serve", "local-2"] {
            world.kill_and_wait(name);
        }
        let said = agents.split_once(' ').map_or(env!("CARGO_PKG_VERSION"), |(_, version)| version);
        for agent in 1..=2 {
            eventually("the agent says its version", || {
                world.agent(agent).filter(|record| record["version"] == said)
            });
        }
        for (n, manner) in
            (1..).zip([Manner::Plain, Manner::Idempotent, Manner::Priority(7), Manner::LatestOnly])
        {
            world.submit_in(manner, Kind::Instant, 1 + n % 2);
        }
        world.submit_in(Manner::Idempotent, Kind::Second, 1);
        world.submit_in(Manner::Direct, Kind::Large, 2);
        let cancelled = world.jobs() + 1;
        world.cancel_number(cancelled);
        world.submit(Kind::Short, 1);
        if agents == OLDER {
            refused_by_name(&world);
        }
        world.wait_for_all_ends();
    }
    world
}

/// Secrets came after the first version: an agent that has no key for them is named, and nothing is submitted.
fn refused_by_name(world: &World) {
    let file = world.up.scratch().join("secret");
    std::fs::write(&file, "word").unwrap();
    let secret = format!("word=@{}", file.display());
    let said = world.sally(&["exec", "-a", "local-2", "--detach", "--secret", &secret, "--", "true"]);
    assert_ne!(said.code, 0, "{}", said.text());
    assert!(said.stderr.contains("local-2") && said.stderr.contains("sealed"), "{}", said.stderr);
}
