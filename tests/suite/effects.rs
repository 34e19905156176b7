//! The world outside Sally: scripts tell a listener of the test when they start and when they end, and wait until it has
//! heard them. Whatever Sally says afterwards is compared with that.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{LIMIT, eventually};

pub fn nothing_lives(token: &str) {
    let mut left = Vec::new();
    let until = Instant::now() + LIMIT;
    while Instant::now() < until {
        left = processes(token);
        if left.is_empty() {
            return;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    panic!("still there: {left:?}");
}

/// What a job does and says.
#[derive(Debug, Clone, Copy)]
pub struct Job {
    pub number: u64,
    pub kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Ends at once; its output rides in the result.
    Instant,
    /// Lives for 0.3 seconds and says little.
    Short,
    /// 0.3 seconds and more output than a result carries.
    Large,
    /// Fails at its first attempt, like [`Kind::Instant`] at the next.
    Second,
    /// Two seconds of lines.
    Lines,
    /// Ten seconds of lines.
    Long,
}

impl Kind {
    pub fn random(random: &mut Random) -> Kind {
        [Kind::Instant, Kind::Instant, Kind::Short, Kind::Large, Kind::Lines][random.below(5) as usize]
    }
}

/// Lines of [`Kind::Large`], of fifty bytes each.
pub const LARGE_LINES: usize = 6_000;

impl Job {
    pub fn script(&self) -> String {
        let work = match self.kind {
            Kind::Instant => "echo once".to_owned(),
            Kind::Second => "[ $SALLY_ATTEMPT -gt 1 ] || exit 3; echo once".to_owned(),
            Kind::Short => "echo before; sleep 0.3; echo after".to_owned(),
            Kind::Large => format!("sleep 0.15; printf '%049d\\n' {{1..{LARGE_LINES}}}; sleep 0.15"),
            Kind::Lines => "for i in {1..20}; do echo line $i; sleep 0.1; done".to_owned(),
            Kind::Long => "for i in {1..100}; do echo line $i; sleep 0.1; done".to_owned(),
        };
        let number = self.number;
        format!(
            "tell() {{ exec 9<>/dev/tcp/127.0.0.1/$KILLS_PORT && echo \"$1 $SALLY_RUN $SALLY_ATTEMPT {number}\" >&9 \
             && read -r heard <&9 && exec 9>&- || exit 9; }}\n\
             tell START; echo \"run $SALLY_RUN\"; {work}; echo '{{\"job\":{number}}}' >&3; tell END"
        )
    }

    pub fn stdout(&self, run: &str) -> String {
        let lines = |n: usize| (1..=n).map(|i| format!("line {i}\n")).collect();
        let work: String = match self.kind {
            Kind::Instant | Kind::Second => "once\n".into(),
            Kind::Short => "before\nafter\n".into(),
            Kind::Large => (1..=LARGE_LINES).map(|i| format!("{i:049}\n")).collect(),
            Kind::Lines => lines(20),
            Kind::Long => lines(100),
        };
        format!("run {run}\n{work}")
    }

    pub fn result(&self) -> Value {
        json!({"job": self.number})
    }
}

/// The judge's ear: what scripts said they did, each once it was written down.
pub struct Effects {
    pub port: u16,
    heard: Arc<Mutex<Vec<[String; 4]>>>,
}

impl Effects {
    pub fn listen() -> Effects {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let heard: Arc<Mutex<Vec<[String; 4]>>> = Arc::default();
        let ears = heard.clone();
        // It ends with the test's process.
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let heard = ears.clone();
                std::thread::spawn(move || hear(&stream, &heard));
            }
        });
        Effects { port, heard }
    }

    pub fn count(&self, word: &str, run: &str) -> usize {
        self.heard.lock().unwrap().iter().filter(|line| line[0] == word && line[1] == run).count()
    }

    pub fn starts(&self, run: &str) -> usize {
        self.count("START", run)
    }

    pub fn ends(&self, run: &str) -> usize {
        self.count("END", run)
    }

    /// How often a run's script said that it started and that it ended, by attempt.
    pub fn attempts(&self, run: &str) -> BTreeMap<u64, (usize, usize)> {
        let mut all = BTreeMap::<u64, (usize, usize)>::new();
        for [word, _, attempt, _] in self.heard.lock().unwrap().iter().filter(|line| line[1] == run) {
            let counts = all.entry(attempt.parse().unwrap()).or_default();
            match word.as_str() {
                "START" => counts.0 += 1,
                _ => counts.1 += 1,
            }
        }
        all
    }

    pub fn runs(&self) -> BTreeSet<String> {
        self.heard.lock().unwrap().iter().map(|line| line[1].clone()).collect()
    }

    pub fn wait_for_start(&self, number: u64) {
        let number = number.to_string();
        eventually("the script starts", || {
            self.heard.lock().unwrap().iter().any(|l| l[0] == "START" && l[3] == number).then_some(())
        });
    }
}

fn hear(stream: &TcpStream, heard: &Mutex<Vec<[String; 4]>>) {
    let mut line = String::new();
    if BufReader::new(stream).read_line(&mut line).is_err() {
        return;
    }
    let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let Ok(words) = words.try_into() else { return };
    heard.lock().unwrap().push(words);
    // A script that was killed meanwhile does not read it.
    let _ = (&*stream).write_all(b"heard\n");
}

/// SplitMix64: small, and good enough to choose victims.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next() % n
    }

    pub fn between(&mut self, (from, to): (u64, u64)) -> Duration {
        Duration::from_millis(from + self.below(to - from + 1))
    }
}

pub fn seed() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    if let Ok(given) = std::env::var("SALLY_SEED") {
        return given.parse().expect("SALLY_SEED is a number");
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().as_nanos() as u64;
    now.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % 1_000_000_000
}

pub fn send(pid: i32, signal: Signal) {
    kill(Pid::from_raw(pid), signal).unwrap();
}

pub fn lives(pid: i32) -> bool {
    name_of(pid).is_some()
}

/// A process's name; `None` for one that only waits to be reaped.
pub fn name_of(pid: i32) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (head, tail) = stat.rsplit_once(')')?;
    let ended = tail.trim_start().starts_with(['Z', 'X']);
    (!ended).then(|| head.split_once('(').map_or("", |(_, name)| name).to_owned())
}

/// Whether a process has this word in its arguments or its environment.
pub fn mentions(pid: i32, token: &str) -> bool {
    ["cmdline", "environ"].iter().any(|file| {
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap_or_default();
        bytes.windows(token.len()).any(|part| part == token.as_bytes())
    })
}

pub fn processes(token: &str) -> Vec<(i32, String)> {
    let all = std::fs::read_dir("/proc").unwrap().flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse().ok())
        .filter(|pid| mentions(*pid, token))
        .filter_map(|pid| Some((pid, name_of(pid)?)))
        .collect()
}

/// A run without its output, for a message.
pub fn show(run: &Value) -> String {
    let mut run = run.clone();
    for name in ["stdout", "stderr"] {
        let text = run[name].as_str().unwrap_or_default();
        let short: String = text.chars().take(300).collect();
        run[name] = json!(format!("{} bytes: {short}", text.len()));
    }
    run.as_object_mut().unwrap().remove("sandbox");
    run.to_string()
}
