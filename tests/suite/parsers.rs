//! Every parser that takes bytes from a script or the wire, over the seeds of the fuzzer and many mutations of them.
//! The targets are those of `make fuzz`, which searches for longer and knows where it has been. A mutation is made of
//! the seed's bytes and a number, so that a failure repeats: `SALLY_MUTATIONS=N` says how many of each target, 3000 if it
//! is not set.

#[path = "../../fuzz/src/targets/mod.rs"]
mod targets;

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn files(dir: &Path) -> Vec<(String, Vec<u8>)> {
    let mut files: Vec<_> = fs::read_dir(dir)
        .unwrap_or_else(|error| panic!("{}: {error}", dir.display()))
        .map(|entry| entry.unwrap().path())
        .map(|path| (path.display().to_string(), fs::read(&path).unwrap()))
        .collect();
    files.sort();
    files
}

/// The seeds of a target: its own, and for those of the wire what the golden files pin.
fn seeds(target: &str) -> Vec<(String, Vec<u8>)> {
    let golden = || files(&root().join("common/golden")).into_iter();
    // The empty line between headers and body.
    let split = |text: &[u8]| {
        let gap = text.windows(2).position(|pair| pair == b"\n\n").map(|at| (at + 1, at + 2));
        let (head, body) = gap.unwrap_or(if text.starts_with(b"\n") { (0, 1) } else { (0, 0) });
        (text[..head].to_vec(), text[body..].to_vec())
    };
    match target {
        "message" => golden().map(|(name, text)| (name, split(&text).1)).collect(),
        "envelope" => golden()
            .map(|(name, text)| {
                let (head, body) = split(&text);
                (name, [head, body].join(&0))
            })
            .collect(),
        _ => files(&root().join("fuzz/seeds").join(target)),
    }
}

/// Numbers that look random and are the same each time (xorshift).
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, most: usize) -> usize {
        (self.next() % (most.max(1) as u64)) as usize
    }
}

/// Pieces that parsers stumble over.
const PIECES: [&[u8]; 20] = [
    b"{",
    b"}",
    b"[",
    b"]",
    b"\"",
    b"\\",
    b",",
    b":",
    b"\0",
    b"\n",
    b"\r\n",
    b"\xff",
    b"\\ud800",
    b"\\u0000",
    b"1e999",
    b"-",
    b"18446744073709551616",
    b"null",
    b"../",
    b"\x1b[",
];

fn mutate(seed: &[u8], other: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    let mut bytes = seed.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len() + 1);
        match numbers.below(8) {
            0 => bytes.truncate(at),
            1 if at < bytes.len() => bytes[at] ^= 1 << numbers.below(8),
            2 if at < bytes.len() => bytes[at] = numbers.next() as u8,
            3 if at < bytes.len() => drop(bytes.drain(at..(at + 1 + numbers.below(8)).min(bytes.len()))),
            4 => drop(bytes.splice(at..at, PIECES[numbers.below(PIECES.len())].iter().copied())),
            5 => {
                let end = (at + numbers.below(32)).min(bytes.len());
                let copy = bytes[at..end].to_vec();
                let to = numbers.below(bytes.len() + 1);
                drop(bytes.splice(to..to, copy));
            }
            6 => {
                let from = numbers.below(other.len() + 1);
                let rest = other[from..].to_vec();
                bytes.truncate(at);
                bytes.extend(rest);
            }
            // Deep, and long.
            _ => {
                let piece = PIECES[numbers.below(PIECES.len())];
                let many = piece.repeat(1 + numbers.below(200));
                drop(bytes.splice(at..at, many));
            }
        }
    }
    bytes
}

#[test]
fn no_bytes_break_a_parser() {
    let mutations = std::env::var("SALLY_MUTATIONS").ok().and_then(|n| n.parse().ok()).unwrap_or(3000usize);
    for (target, run) in targets::ALL {
        let seeds = seeds(target);
        assert!(seeds.len() >= 3, "{target} has {} seeds", seeds.len());
        let mut numbers = Numbers(0x5a11_5a11_5a11_5a11);
        let mut cases = 0;
        let mut check = |name: &str, bytes: &[u8]| {
            cases += 1;
            let done = catch_unwind(AssertUnwindSafe(|| run(bytes)));
            assert!(done.is_ok(), "{target} of {name}: {:?}", bytes.escape_ascii().to_string());
        };
        check("nothing", b"");
        for (at, (name, seed)) in seeds.iter().enumerate() {
            check(name, seed);
            for end in (0..seed.len()).step_by(1 + seed.len() / 200) {
                check(name, &seed[..end]);
            }
            for _ in 0..mutations.div_ceil(seeds.len()) {
                let other = &seeds[(at + 1 + numbers.below(seeds.len())) % seeds.len()].1;
                check(name, &mutate(seed, other, &mut numbers));
            }
        }
        println!("{target}: {} seeds, {cases} cases", seeds.len());
    }
}
