//! Tests of the journal.
use super::*;
use sally_common::id::JobId;

fn open(dir: &tempfile::TempDir) -> (Journal, Recovered) {
    Journal::open(&dir.path().join("journal.redb")).expect("opens")
}

fn ended() -> Ended {
    let state = sally_common::wire::record::RunState::Failed;
    Ended { state, exit_code: Some(7), finished_ms: 9, digest: Digest::of(b"gone") }
}

fn dir() -> tempfile::TempDir {
    tempfile::tempdir().expect("a temporary folder")
}

#[tokio::test]
async fn what_was_answered_is_there_after_a_restart() {
    let dir = dir();
    let job = JobId::generate(1);
    let incarnation = {
        let (journal, recovered) = open(&dir);
        assert!(recovered.fresh && recovered.spool.is_empty());
        let ended = ended();
        journal.started(&job.run(0), 1, 10, Digest::of(b"")).wait().await.expect("written");
        journal.finished(&job.run(1), 3, 10, b"body".to_vec()).wait().await.expect("written");
        journal.finished(&job.run(2), 1, 10, b"gone".to_vec()).wait().await.expect("written");
        journal.receipted(&job.run(2), 1, 10, Some(ended)).wait().await.expect("written");
        recovered.incarnation
    };
    let (_journal, recovered) = open(&dir);
    assert!(!recovered.fresh);
    assert_eq!(recovered.incarnation, incarnation);
    let phase = |n: u32| recovered.memory.get(&job.run(n)).map(|k| (k.attempt, k.phase));
    assert_eq!(phase(0), Some((1, Phase::Started)));
    assert_eq!(phase(1), Some((3, Phase::Finished)));
    assert_eq!(recovered.memory.get(&job.run(2)).and_then(|k| k.ended), Some(ended()));
    assert_eq!(recovered.spool, [Spooled { run: job.run(1), attempt: 3, body: b"body".to_vec() }]);
}

#[tokio::test]
async fn a_mark_that_was_taken_back_is_gone() {
    let dir = dir();
    let job = JobId::generate(1);
    {
        let (journal, _) = open(&dir);
        journal.started(&job.run(0), 1, 10, Digest::of(b"")).wait().await.expect("written");
        journal.unstarted(&job.run(0), None).wait().await.expect("written");
        journal.started(&job.run(1), 1, 10, Digest::of(b"")).wait().await.expect("written");
        journal.started(&job.run(2), 2, 10, Digest::of(b"")).wait().await.expect("written");
        let before = Some(Known::new(1, Phase::Receipted, 10));
        journal.unstarted(&job.run(2), before).wait().await.expect("written");
    }
    let (_journal, recovered) = open(&dir);
    assert!(recovered.memory.get(&job.run(0)).is_none());
    assert!(recovered.memory.get(&job.run(1)).is_some());
    let older = recovered.memory.get(&job.run(2)).map(|k| (k.attempt, k.phase));
    assert_eq!(older, Some((1, Phase::Receipted)), "an older attempt stays refused");
}

#[tokio::test]
async fn the_end_of_an_older_attempt_takes_no_mark_away() {
    let dir = dir();
    let run = JobId::generate(1).run(0);
    {
        let (journal, _) = open(&dir);
        journal.finished(&run, 1, 10, b"first".to_vec()).wait().await.expect("written");
        journal.started(&run, 2, 10, Digest::of(b"")).wait().await.expect("written");
        journal.receipted(&run, 1, 10, Some(ended())).wait().await.expect("written");
    }
    let (_journal, recovered) = open(&dir);
    let known = recovered.memory.get(&run).map(|k| (k.attempt, k.phase));
    assert_eq!(known, Some((2, Phase::Started)));
    assert!(recovered.spool.is_empty());
}

#[tokio::test]
async fn a_new_incarnation_counts_anew_and_keeps_what_is_known() {
    let dir = dir();
    let job = JobId::generate(1);
    let (old, new) = {
        let (mut journal, recovered) = open(&dir);
        journal.finished(&job.run(0), 1, 10, b"body".to_vec()).wait().await.expect("written");
        let (incarnation, written) = journal.renew();
        assert_eq!(journal.incarnation(), recovered.incarnation, "not before it is on disk");
        written.wait().await.expect("written");
        journal.renewed(incarnation);
        assert_eq!((journal.incarnation(), journal.next_counter().0), (incarnation, 1));
        (recovered.incarnation, incarnation)
    };
    assert_ne!(old, new);
    let (mut journal, recovered) = open(&dir);
    assert_eq!((recovered.incarnation, recovered.spool.len()), (new, 1));
    assert!(!recovered.fresh && recovered.memory.get(&job.run(0)).is_some());
    assert!(journal.next_counter().0 > COUNTER_STEP);
}

#[test]
fn a_file_that_failed_is_opened_anew() {
    let dir = dir();
    let path = dir.path().join("journal.redb");
    drop(open(&dir));
    let path_of_none = dir.path().join("absent/journal.redb");
    let mut store = Store { path: path_of_none, database: None, commits: Arc::default() };
    let job = JobId::generate(1);
    let write = || Write::Run { run: job.run(0), known: Known::new(1, Phase::Started, 10) };
    assert!(store.commit(&[write()]).is_err());
    store.path = path;
    assert_eq!(store.commit(&[write()]), Ok(()));
    drop(store);
    assert!(open(&dir).1.memory.get(&job.run(0)).is_some());
}

#[tokio::test]
async fn the_counter_never_repeats() {
    let dir = dir();
    let mut last = 0;
    for _ in 0..3 {
        let (mut journal, _) = open(&dir);
        for _ in 0..COUNTER_STEP + 5 {
            let (counter, pending) = journal.next_counter();
            assert!(counter > last);
            last = counter;
            if let Some(pending) = pending {
                pending.wait().await.expect("written");
            }
        }
    }
}

#[test]
fn another_file_is_another_incarnation() {
    assert_ne!(open(&dir()).1.incarnation, open(&dir()).1.incarnation);
}

#[test]
fn a_damaged_file_is_an_error_that_says_what_to_do() {
    let dir = dir();
    let path = dir.path().join("journal.redb");
    std::fs::write(&path, b"this is no database at all").expect("written");
    let error = Journal::open(&path).err().map(|e| e.to_string()).unwrap_or_default();
    assert!(error.contains("journal.redb") && error.contains("move it away"), "{error}");
}

#[tokio::test]
async fn many_at_once_share_a_commit() {
    let dir = dir();
    let (journal, _) = open(&dir);
    let job = JobId::generate(1);
    let all: Vec<_> = (0..500).map(|n| journal.started(&job.run(n), 1, 0, Digest::of(b""))).collect();
    for pending in all {
        pending.wait().await.expect("written");
    }
    drop(journal);
    assert_eq!(open(&dir).1.memory.len(), 500);
}

#[tokio::test]
async fn every_lasting_commit_is_counted_in_the_file_itself() {
    let dir = dir();
    let run = JobId::generate(1).run(0);
    let told = {
        let (mut journal, _) = open(&dir);
        assert_eq!(journal.commits(), 0, "as it was found");
        journal.welcomed();
        let before = journal.commits();
        journal.started(&run, 1, 10, Digest::of(b"")).wait().await.expect("written");
        assert_eq!(journal.commits(), before + 1);
        journal.finished(&run, 1, 10, b"body".to_vec()).wait().await.expect("written");
        assert_eq!(journal.commits(), before + 2);
        journal.receipted(&run, 1, 10, None).wait().await.expect("written");
        journal.prune(vec![run.clone()]).wait().await.expect("written");
        assert_eq!(journal.commits(), before + 2, "what may be lost does not count");
        journal.commits()
    };
    assert!(open(&dir).0.commits() >= told, "what was told is found again");
}

#[tokio::test]
async fn an_older_copy_does_not_catch_up_before_it_is_welcome() {
    let dir = dir();
    let run = JobId::generate(1).run(0);
    let (file, copy) = (dir.path().join("journal.redb"), dir.path().join("copy"));
    let told = {
        let (mut journal, _) = open(&dir);
        journal.welcomed();
        std::fs::copy(&file, &copy).expect("copied while it is in use");
        journal.started(&run, 1, 10, Digest::of(b"")).wait().await.expect("written");
        journal.commits()
    };
    std::fs::copy(&copy, &file).expect("put back");
    let (mut journal, recovered) = open(&dir);
    assert!(recovered.memory.get(&run).is_none(), "it does not know what was started");
    assert!(journal.commits() < told);
    for n in 0..5 {
        journal.finished(&run, n, 10, b"body".to_vec()).wait().await.expect("written");
        assert!(journal.commits() < told, "its own commits do not hide that");
    }
    journal.welcomed();
    assert!(journal.commits() > told);
}
