//! The store on real files.
#![expect(clippy::unwrap_used, reason = "tests")]

use super::*;
use bytes::Bytes;
use sally_common::id::{Digest, JobId};
use std::collections::HashSet;
use std::time::{Duration, Instant, SystemTime};

const DAY: Duration = Duration::from_secs(24 * 3600);

fn key(stream: Stream) -> LogKey {
    LogKey { run: JobId::generate(1_790_000_000_000).run(3), attempt: 1, stream }
}

async fn logs(dir: &tempfile::TempDir) -> Logs {
    Logs::open(dir.path().join("logs"), LogSettings::default()).await.unwrap()
}

async fn blobs(dir: &tempfile::TempDir) -> Blobs {
    Blobs::open(dir.path().join("blobs"), BlobSettings::default()).await.unwrap()
}

fn bytes(n: usize) -> Bytes {
    (0..n).map(|i| u8::try_from(i * i % 251).unwrap()).collect::<Vec<u8>>().into()
}

fn names(dir: &std::path::Path) -> Vec<String> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => all.extend(names(&path)),
            false => all.push(path.file_name().unwrap().to_str().unwrap().to_owned()),
        }
    }
    all.sort();
    all
}

#[tokio::test]
async fn a_log_takes_each_byte_once_and_in_order() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, key, all) = (logs(&dir).await, key(Stream::Stdout), bytes(1000));
    assert_eq!(logs.status(&key).await.unwrap(), None);
    let put =
        async |from: usize, to: usize| logs.append(&key, from as u64, all.slice(from..to)).await.unwrap();
    assert_eq!(put(0, 300).await, Appended::Stored { bytes: 300 });
    assert_eq!(put(400, 500).await, Appended::Gap { wanted: 300 });
    assert_eq!(put(0, 300).await, Appended::Stored { bytes: 300 }, "a duplicate");
    assert_eq!(put(100, 200).await, Appended::Stored { bytes: 300 }, "an old piece");
    assert_eq!(put(200, 600).await, Appended::Stored { bytes: 600 }, "an overlap");
    assert_eq!(logs.sync_up_to(&key, 500).await.unwrap(), 600);
    let digest = Digest::of(&all);
    assert_eq!(logs.finish(&key, 1000, digest).await.unwrap(), Finished::Missing { wanted: 600 });
    assert_eq!(logs.status(&key).await.unwrap(), Some(LogStatus { stored: 600, ended: false }));
    assert_eq!(put(600, 1000).await, Appended::Stored { bytes: 1000 });
    assert_eq!(logs.finish(&key, 1000, digest).await.unwrap(), Finished::Whole);
    assert_eq!(logs.finish(&key, 1000, digest).await.unwrap(), Finished::Whole, "again");
    assert_eq!(put(0, 1000).await, Appended::Stored { bytes: 1000 }, "after the end");
    assert_eq!(put(1000, 1000).await, Appended::Stored { bytes: 1000 });
    assert_eq!(logs.sync_up_to(&key, 9999).await.unwrap(), 1000);
    let part = logs.read(&key, 900, 5000).await.unwrap().unwrap();
    assert_eq!((part.bytes, part.status), (all[900..].to_vec(), LogStatus { stored: 1000, ended: true }));
    assert!(logs.read(&key, 5000, 10).await.unwrap().unwrap().bytes.is_empty());
    let edges = logs.edges(&key, 10).await.unwrap().unwrap();
    assert_eq!((&edges.first[..], &edges.last[..]), (&all[..10], &all[990..]));
    let edges = logs.edges(&key, 500).await.unwrap().unwrap();
    assert_eq!((&edges.first[..], edges.last.len()), (&all[..], 0));
    assert_eq!(logs.used(), 1000);
}

#[tokio::test]
async fn a_log_goes_on_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (key, all) = (key(Stream::Stderr), bytes(700_000));
    let first = logs(&dir).await;
    first.append(&key, 0, all.slice(..400_000)).await.unwrap();
    drop(first);
    let second = logs(&dir).await;
    assert_eq!(second.used(), 400_000);
    let beyond = second.append(&key, 500_000, all.slice(500_000..)).await.unwrap();
    assert_eq!(beyond, Appended::Gap { wanted: 400_000 });
    second.append(&key, 300_000, all.slice(300_000..)).await.unwrap();
    assert_eq!(second.finish(&key, 700_000, Digest::of(&all)).await.unwrap(), Finished::Whole);
    assert_eq!(names(dir.path()), ["3-1.stderr"]);
}

#[tokio::test]
async fn a_log_with_a_wrong_digest_is_set_aside() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, key, all) = (logs(&dir).await, key(Stream::Stdout), bytes(100));
    logs.append(&key, 0, all.clone()).await.unwrap();
    let error = logs.finish(&key, 100, Digest::of(b"other")).await.unwrap_err();
    assert!(error.to_string().contains("3-1.stdout.bad"), "{error}");
    assert_eq!(names(dir.path()), ["3-1.stdout.bad"]);
    assert_eq!(logs.status(&key).await.unwrap(), None);
    logs.append(&key, 0, all.clone()).await.unwrap();
    let short = logs.finish(&key, 99, Digest::of(&all[..99])).await;
    assert!(matches!(short, Err(StoreError::WrongDigest { .. })), "more than announced");
    logs.append(&key, 0, all.clone()).await.unwrap();
    assert_eq!(logs.finish(&key, 100, Digest::of(&all)).await.unwrap(), Finished::Whole);
}

#[tokio::test]
async fn an_empty_stream_can_end() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, key) = (logs(&dir).await, key(Stream::Result));
    assert_eq!(logs.finish(&key, 0, Digest::of(b"")).await.unwrap(), Finished::Whole);
    assert_eq!(logs.status(&key).await.unwrap(), Some(LogStatus { stored: 0, ended: true }));
}

#[tokio::test]
async fn shuffled_and_doubled_chunks_make_the_same_log() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, key, all) = (logs(&dir).await, key(Stream::Stdout), bytes(50_000));
    let chunks: Vec<usize> = (0..50).flat_map(|i| [i, (i * 17) % 50]).collect();
    let mut rounds = 0;
    while logs.finish(&key, 50_000, Digest::of(&all)).await.unwrap() != Finished::Whole {
        let puts = chunks.iter().map(|c| {
            let (logs, key, piece) = (logs.clone(), key.clone(), all.slice(c * 1000..(c + 1) * 1000));
            let from = *c as u64 * 1000;
            tokio::spawn(async move { logs.append(&key, from, piece).await.unwrap() })
        });
        for put in puts.collect::<Vec<_>>() {
            put.await.unwrap();
        }
        rounds += 1;
        assert!(rounds <= 50, "each round stores at least one chunk");
    }
    assert_eq!(logs.read(&key, 0, 60_000).await.unwrap().unwrap().bytes, all);
}

#[tokio::test]
async fn more_logs_than_open_files_are_served() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, job) = (logs(&dir).await, JobId::generate(1));
    let key = |i: u32| LogKey { run: job.run(i), attempt: 1, stream: Stream::Stdout };
    for round in 0..2 {
        for i in 0..300 {
            let stored = logs.append(&key(i), round * 10, bytes(10)).await.unwrap();
            assert_eq!(stored, Appended::Stored { bytes: (round + 1) * 10 });
        }
    }
    let twice = [bytes(10), bytes(10)].concat();
    assert_eq!(logs.finish(&key(0), 20, Digest::of(&twice)).await.unwrap(), Finished::Whole);
    assert_eq!(logs.remove(&job).await.unwrap(), Swept { files: 300, bytes: 6000 });
    assert_eq!((logs.used(), names(dir.path()).len()), (0, 0));
    assert_eq!(logs.remove(&job).await.unwrap(), Swept::default());
}

#[tokio::test]
async fn old_and_too_many_logs_are_removed_but_not_the_spared() {
    let dir = tempfile::tempdir().unwrap();
    let settings = LogSettings { max_bytes: 250, max_stream: 120, ..LogSettings::default() };
    let logs = Logs::open(dir.path().join("logs"), settings).await.unwrap();
    let ids: Vec<JobId> = (1..=3).map(JobId::generate).collect();
    let key = |i: usize| LogKey { run: ids[i].run(0), attempt: 1, stream: Stream::Stdout };
    for i in 0..2 {
        logs.append(&key(i), 0, bytes(100)).await.unwrap();
    }
    let full = logs.append(&key(2), 0, bytes(100)).await;
    assert!(matches!(full, Err(StoreError::Bound { used: 200, bound: 250, .. })), "{full:?}");
    let long = logs.append(&key(0), 100, bytes(30)).await;
    assert!(matches!(long, Err(StoreError::TooLarge { bytes: 130, .. })), "{long:?}");
    assert_eq!(logs.append(&key(0), 0, bytes(100)).await.unwrap(), Appended::Stored { bytes: 100 });
    let now = SystemTime::now();
    assert_eq!(logs.sweep(now, HashSet::new()).await.unwrap(), Swept::default());
    let spared = HashSet::from([ids[0].clone()]);
    // The refused stream has a file without bytes, which goes too.
    assert_eq!(logs.sweep(now + 31 * DAY, spared).await.unwrap(), Swept { files: 2, bytes: 100 });
    assert!(logs.status(&key(0)).await.unwrap().is_some());
    assert!(logs.status(&key(1)).await.unwrap().is_none());
}

#[test]
fn the_oldest_go_first_and_no_more_than_needed() {
    let at = |days: u32| SystemTime::UNIX_EPOCH + days * DAY;
    let items = [(at(5), 10), (at(1), 10), (at(9), 10), (at(3), 10)];
    let doomed = |age: u32, bytes: u64| disk::doomed(&items, at(10), age * DAY, bytes);
    assert_eq!(doomed(100, 40), [] as [usize; 0]);
    assert_eq!(doomed(100, 25), [1, 3]);
    assert_eq!(doomed(6, 40), [1, 3]);
    assert_eq!(doomed(0, 0), [1, 3, 0, 2]);
}

#[tokio::test]
async fn a_blob_is_seen_only_when_it_is_whole_and_right() {
    let dir = tempfile::tempdir().unwrap();
    let (blobs, all) = (blobs(&dir).await, bytes(1000));
    let digest = Digest::of(&all);
    let put = async |from: usize, to: usize| {
        blobs.put_chunk(digest, from as u64, 1000, all.slice(from..to)).await.unwrap()
    };
    assert_eq!(put(0, 400).await, BlobState { bytes: 400, complete: false });
    assert_eq!(blobs.read(digest, 0, 10).await.unwrap(), None);
    assert_eq!(put(600, 1000).await, BlobState { bytes: 400, complete: false }, "a gap");
    assert_eq!(blobs.state(digest).await.unwrap(), BlobState { bytes: 400, complete: false });
    assert_eq!(put(0, 600).await, BlobState { bytes: 600, complete: false }, "an overlap");
    assert_eq!(put(600, 1000).await, BlobState { bytes: 1000, complete: true });
    assert_eq!(put(0, 10).await, BlobState { bytes: 1000, complete: true }, "known");
    let part = blobs.read(digest, 990, 100).await.unwrap().unwrap();
    assert_eq!((part.bytes, part.total), (all[990..].to_vec(), 1000));
    assert_eq!(names(dir.path()), [digest.to_string()]);
    assert_eq!(blobs.used(), 1000);
}

#[tokio::test]
async fn a_wrong_blob_is_refused_and_can_be_sent_again() {
    let dir = tempfile::tempdir().unwrap();
    let (blobs, all) = (blobs(&dir).await, bytes(1000));
    let digest = Digest::of(&all);
    let wrong = blobs.put_chunk(digest, 0, 1000, vec![7; 1000].into()).await;
    assert!(matches!(wrong, Err(StoreError::WrongDigest { .. })), "{wrong:?}");
    assert_eq!((blobs.used(), names(dir.path()).len()), (0, 0));
    let beyond = blobs.put_chunk(digest, 500, 1000, all.clone()).await;
    assert!(matches!(beyond, Err(StoreError::TooLarge { .. })), "{beyond:?}");
    assert_eq!(blobs.put(all).await.unwrap(), digest);
    let huge = blobs.put_chunk(digest, 0, u64::MAX, Bytes::new()).await;
    assert!(matches!(huge, Err(StoreError::TooLarge { .. })), "{huge:?}");
    assert_eq!(blobs.put(Bytes::new()).await.unwrap(), Digest::of(b""));
}

#[tokio::test]
async fn an_upload_goes_on_after_a_restart_and_from_two_callers_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let all = bytes(400_000);
    let digest = Digest::of(&all);
    let first = blobs(&dir).await;
    first.put_chunk(digest, 0, 400_000, all.slice(..100_000)).await.unwrap();
    drop(first);
    let second = blobs(&dir).await;
    let callers = (0..2).map(|_| {
        let (blobs, all) = (second.clone(), all.clone());
        tokio::spawn(async move {
            let mut state = blobs.state(digest).await.unwrap();
            while !state.complete {
                let from = usize::try_from(state.bytes).unwrap();
                let piece = all.slice(from..(from + 30_000).min(400_000));
                state = blobs.put_chunk(digest, state.bytes, 400_000, piece).await.unwrap();
            }
        })
    });
    for caller in callers.collect::<Vec<_>>() {
        caller.await.unwrap();
    }
    assert_eq!(second.read(digest, 0, 500_000).await.unwrap().unwrap().bytes, all);
    assert_eq!(second.used(), 400_000);
}

#[tokio::test]
async fn blobs_are_bounded_in_size_and_age() {
    let dir = tempfile::tempdir().unwrap();
    let settings = BlobSettings { max_bytes: 250, ..BlobSettings::default() };
    let blobs = Blobs::open(dir.path(), settings).await.unwrap();
    let one = blobs.put(vec![1; 100].into()).await.unwrap();
    let two = blobs.put(vec![2; 100].into()).await.unwrap();
    let full = blobs.put(vec![3; 100].into()).await;
    assert!(matches!(full, Err(StoreError::Bound { .. })), "{full:?}");
    let unfinished = Digest::of(b"x");
    blobs.put_chunk(unfinished, 0, 50, vec![4; 20].into()).await.unwrap();
    let now = SystemTime::now();
    let swept = blobs.sweep(now + 2 * DAY, HashSet::new()).await.unwrap();
    assert_eq!(swept, Swept { files: 1, bytes: 20 }, "the part");
    let swept = blobs.sweep(now + 31 * DAY, HashSet::from([two])).await.unwrap();
    assert_eq!(swept, Swept { files: 1, bytes: 100 });
    assert_eq!(blobs.read(one, 0, 1).await.unwrap(), None);
    assert_eq!((blobs.read(two, 0, 1).await.unwrap().unwrap().total, blobs.used()), (100, 100));
}

#[tokio::test]
async fn a_full_disk_is_said_and_leaves_nothing_half_visible() {
    // Every write to this device fails as on a full disk.
    let dir = tempfile::tempdir().unwrap();
    let (logs, key) = (logs(&dir).await, key(Stream::Stdout));
    let folder = dir.path().join("logs").join(key.run.job().as_str());
    std::fs::create_dir(&folder).unwrap();
    std::os::unix::fs::symlink("/dev/full", folder.join("3-1.stdout.part")).unwrap();
    // The device reads as endless zeros, so only writing is tried here.
    let mut file = growing::Growing::empty(&folder.join("3-1.stdout.part")).unwrap();
    let error = file.append(0, b"hello").unwrap_err();
    assert!(matches!(error, StoreError::Full { .. }), "{error:?}");
    assert_eq!(file.len(), 0);
    assert_eq!(logs.used(), 0);
}

#[tokio::test]
async fn a_folder_that_cannot_be_made_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, b"").unwrap();
    let error = Logs::open(file.join("logs"), LogSettings::default()).await.err().unwrap();
    assert!(error.to_string().contains("file/logs"), "{error}");
    assert!(Blobs::open(file.join("blobs"), BlobSettings::default()).await.is_err());
}

#[tokio::test]
async fn a_hundred_megabytes_pass() {
    let dir = tempfile::tempdir().unwrap();
    let (logs, key, chunk) = (logs(&dir).await, key(Stream::Stdout), bytes(256 * 1024));
    let begun = Instant::now();
    let mut hasher = <sha2::Sha256 as sha2::Digest>::new();
    let mut hashing = Duration::ZERO;
    for i in 0..400_u64 {
        logs.append(&key, i * chunk.len() as u64, chunk.clone()).await.unwrap();
        let now = Instant::now();
        sha2::Digest::update(&mut hasher, &chunk);
        hashing += now.elapsed();
    }
    let written = begun.elapsed() - hashing;
    let digest = Digest::from_bytes(sha2::Digest::finalize(hasher).into());
    assert_eq!(logs.finish(&key, 400 * 256 * 1024, digest).await.unwrap(), Finished::Whole);
    let rate = 100.0 * 1.048_576 / written.as_secs_f64();
    let whole = 100.0 * 1.048_576 / (begun.elapsed() - hashing).as_secs_f64();
    let line = format!("log: {rate:.0} MB/s, {whole:.0} MB/s with the last sync\n");
    std::io::Write::write_all(&mut std::io::stderr(), line.as_bytes()).unwrap();
}
