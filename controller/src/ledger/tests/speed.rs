//! Measures; gates nothing. `cargo test --release -p sally --lib ledger::tests::speed -- --ignored --nocapture`

use super::*;
use std::io::Write as _;
use std::time::{Duration, Instant};

fn say(line: &str) {
    std::io::stderr().write_all(format!("{line}\n").as_bytes()).unwrap();
}

fn middle(mut all: Vec<Duration>) -> String {
    all.sort();
    format!("p50 {:?}, p95 {:?}", all[all.len() / 2], all[all.len() * 95 / 100])
}

#[tokio::test]
#[ignore = "a measurement"]
async fn how_fast() {
    let dir = tempfile::tempdir_in(".").unwrap();
    let mut file = std::fs::File::create(dir.path().join("floor")).unwrap();
    let mut floor = Vec::new();
    for _ in 0..200 {
        let begun = Instant::now();
        file.write_all(&[0; 8192]).unwrap();
        file.sync_data().unwrap();
        floor.push(begun.elapsed());
    }
    say(&format!("write of 8 KiB and fdatasync: {}", middle(floor)));
    let ledger = open(&dir).await;
    let agent = Who::new(0);
    let (mut submits, mut dispatches, mut settles) = (Vec::new(), Vec::new(), Vec::new());
    for i in 0..500 {
        let new = new_job(&format!("r{i}"), i, vec![agent.target()]);
        let begun = Instant::now();
        let job = created(&ledger, new).await;
        submits.push(begun.elapsed());
        let run = job.id.run(0);
        let begun = Instant::now();
        ledger.dispatch(vec![agent.mark(&run, 1, i)]).await.unwrap();
        dispatches.push(begun.elapsed());
        let told = agent.outcome(&run, 1, RunState::Succeeded);
        let begun = Instant::now();
        committed(ledger.settle(told).await.unwrap());
        settles.push(begun.elapsed());
    }
    say(&format!("lone submit:   {}", middle(submits)));
    say(&format!("lone dispatch: {}", middle(dispatches)));
    say(&format!("lone settle:   {}", middle(settles)));
    let n: u32 = 20_000;
    let begun = Instant::now();
    let job = created(&ledger, new_job("big", 1, vec![agent.target(); n as usize])).await;
    say(&format!("submit of {n} runs: {:?}", begun.elapsed()));
    let begun = Instant::now();
    ledger.dispatch((0..n).map(|i| agent.mark(&job.id.run(i), 1, 2)).collect()).await.unwrap();
    say(&format!("dispatch of {n} runs: {:?}", begun.elapsed()));
    let told: Vec<Settlement> =
        (0..n).map(|i| agent.outcome(&job.id.run(i), 1, RunState::Succeeded)).collect();
    let begun = Instant::now();
    futures_util::future::join_all(told.into_iter().map(|t| ledger.settle(t))).await;
    let rate = f64::from(n) / begun.elapsed().as_secs_f64();
    say(&format!("{n} settles at once: {rate:.0} per second"));
    let begun = Instant::now();
    assert_eq!(ledger.runs(&job.id, 0, n, &[RunState::Succeeded]).await.unwrap().len(), n as usize);
    say(&format!("read of {n} runs: {:?}", begun.elapsed()));
}
