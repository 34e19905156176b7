//! Programs that scripts are made of, at work in each profile: what the layers take away must not be theirs.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

mod host;

use host::{Host, in_both, profile};
use sally_agent::sandbox::{Profile, RunInputs};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::Path;

/// A program's name, and shell text that ends with 0 if the program did its work.
type Tool = (&'static str, &'static str);

/// What needs neither network nor host.
const EVERYWHERE: [Tool; 30] = [
    (
        "sh",
        "echo a | tee b | cat > c; [ $(cat c) = a ]; (exit 3) || [ $? = 3 ]; trap 'exit 0' TERM; kill $$; sleep 5",
    ),
    (
        "bash",
        "bash -c 'set -e; diff <(echo a) <(echo a); coproc cat; a=(1 2); [[ ${#a[@]} = 2 ]]; (sleep 0.01 & wait); \
         echo x > /dev/null; echo y > /dev/stderr; exec 7<>file; echo ok >&7; ulimit -n; printf \"%(%s)T\"'",
    ),
    (
        "python3",
        "/usr/bin/python3 -c 'import threading,subprocess,sqlite3,ssl,hashlib,tempfile,multiprocessing as m,asyncio,os,\
         socket,mmap,json,signal,time,select\n\
         t=threading.Thread(target=lambda:None);t.start();t.join()\n\
         assert subprocess.run([\"echo\",\"x\"],capture_output=True).stdout==b\"x\\n\"\n\
         sqlite3.connect(\"a.db\").execute(\"create table t(a)\")\n\
         ssl.create_default_context();tempfile.NamedTemporaryFile()\n\
         from multiprocessing import shared_memory as s\n\
         if os.access(\"/dev/shm\",os.W_OK):\n\
         \x20c=m.get_context(\"fork\");q=c.Queue();p=c.Process(target=q.put,args=(7,));p.start();assert q.get()==7;p.join()\n\
         \x20b=s.SharedMemory(create=True,size=64);b.close();b.unlink()\n\
         asyncio.run(asyncio.create_subprocess_exec(\"true\"))\n\
         a,b=socket.socketpair();a.send(b\"1\");assert b.recv(1)==b\"1\"\n\
         os.memfd_create(\"x\");os.sched_getaffinity(0);os.pidfd_open(os.getpid());select.epoll()'",
    ),
    (
        "perl",
        "perl -e 'use POSIX; use Socket; my $p=fork(); exit 0 unless $p; waitpid($p,0); open(F,\">x\"); utime(1,1,\"x\"); print `echo hi`'",
    ),
    ("awk", "[ $(printf '1\\n2\\n' | awk '{s+=$1} END {print s}') = 3 ]"),
    (
        "sqlite3",
        "sqlite3 t.db 'pragma journal_mode=wal; create table t(a); insert into t values(1); select * from t;' | grep -q 1",
    ),
    ("java", "java -Xmx64m -version"),
    (
        "node",
        "node -e 'const c=require(\"child_process\");c.execSync(\"true\");require(\"fs\").writeFileSync(\"x\",\"y\");setTimeout(()=>0,5)'",
    ),
    (
        "git",
        "git init -q r && cd r && echo a > a && git add a && git -c user.name=a -c user.email=a@b commit -qm a && git log --oneline | grep -q a",
    ),
    (
        "openssl",
        "openssl rand -hex 8 && openssl req -x509 -newkey rsa:2048 -nodes -keyout k -out c -days 1 -subj /CN=x && openssl x509 -in c -noout -enddate",
    ),
    (
        "find",
        "mkdir -p a/b && touch a/b/c && find . -name c -newermt 2000-01-01 | xargs -P2 -n1 ls | grep -q c",
    ),
    ("tar", "echo a > a && tar czf a.tgz a && tar xzOf a.tgz | grep -q a"),
    ("xz", "echo a | xz -T2 | xz -d | grep -q a"),
    ("sort", "seq 100000 | sort --parallel=2 -rn | head -1 | grep -q 100000"),
    (
        "cp",
        "echo a > a && cp --reflink=auto -a a b && mv b c && ln c d && ln -s d e && chmod 600 e && cat e && rm -f c",
    ),
    (
        "dd",
        "dd if=/dev/zero of=x bs=4k count=16 conv=fsync 2>/dev/null && truncate -s 1M x && fallocate -l 2M x",
    ),
    ("mkfifo", "mkfifo f && (echo a > f &) && grep -q a < f"),
    ("flock", "flock l true && timeout 5 true && nice -n 5 true && nohup true"),
    ("ps", "ps -ef | grep -q ps && ps aux && pgrep -f ps; pidof sh"),
    ("df", "df -h . && du -sh . && stat . && stat -f ."),
    ("id", "id; uname -a && hostname && date && nproc && getent passwd root"),
    (
        "free",
        "free -m; uptime; cat /proc/meminfo | grep -q MemTotal && cat /proc/cpuinfo | grep -q processor",
    ),
    ("curl", "curl --version && curl -s file:///etc/passwd | grep -q root"),
    ("jq", "echo '{\"a\":1}' | jq -e .a"),
    ("gcc", "echo 'int main(){return 0;}' > a.c && gcc a.c -o a && ./a"),
    ("make", "printf 'all:\\n\\ttrue\\n' > Makefile && make -j2"),
    ("gpg", "gpg --version"),
    ("file", "file /bin/sh"),
    ("rsync", "mkdir a && touch a/b && rsync -a a/ c/ && [ -e c/b ]"),
    ("systemd-analyze", "systemd-analyze --version && systemd-escape a/b"),
];

/// What asks for the name of its user: in `host` the uid of a slot has none.
const WITH_A_NAME: [Tool; 2] =
    [("id", "[ $(id -un) = sally ] && whoami"), ("ssh-keygen", "ssh-keygen -q -t ed25519 -N '' -f key")];

/// What has the host's network. `$URL` is a server there.
const WITH_NETWORK: [Tool; 6] = [
    ("curl", "curl -sS $URL | grep -q hello"),
    (
        "python3",
        "/usr/bin/python3 -c 'import urllib.request,os;assert b\"hello\" in urllib.request.urlopen(os.environ[\"URL\"]).read()'",
    ),
    ("bash", "bash -c 'exec 5<>/dev/tcp/127.0.0.1/$PORT; echo >&5; head -1 <&5 | grep -q HTTP'"),
    ("getent", "getent hosts localhost"),
    (
        "perl",
        "perl -MIO::Socket::INET -e '$s=IO::Socket::INET->new(\"127.0.0.1:$ENV{PORT}\") or die $!; print $s \"\\n\"; <$s> =~ /HTTP/ or die'",
    ),
    (
        "node",
        "node -e 'require(\"http\").get(process.env.URL,r=>r.on(\"data\",d=>console.log(String(d)))).on(\"error\",e=>{throw e})' | grep -q hello",
    ),
];

/// What looks at the host.
const INSPECTION: [Tool; 11] = [
    ("ps", "[ $(ps -e | wc -l) -gt 5 ] && ps -eo pid,user,args | grep -q launcher"),
    ("ss", "ss -tln && ss -tln | grep -q :$PORT && ss -xa && ss -uan && ss -s"),
    ("ip", "ip addr | grep -q 127.0.0.1 && ip -j link && ip route"),
    ("df", "df -h / | grep -q / && df -i"),
    ("mount", "mount | grep -q ' / '; findmnt / || true"),
    ("journalctl", "journalctl -n 1 --no-pager; [ $? -le 1 ]"),
    ("lsblk", "lsblk; [ $? -le 32 ]"),
    ("top", "top -b -n 1 | head -3"),
    ("uptime", "uptime && free -m && cat /proc/loadavg && cat /proc/net/tcp | grep -q :"),
    ("sysctl", "sysctl -n kernel.ostype | grep -q Linux"),
    ("dpkg", "dpkg -l | head -3 && dpkg -S /bin/sh"),
];

#[expect(clippy::print_stderr, reason = "what is not tried must be seen")]
fn is_here(name: &str) -> bool {
    let folders = ["/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin"];
    let here = folders.iter().any(|folder| Path::new(folder).join(name).exists());
    if !here {
        eprintln!("not tried: this host has no {name}");
    }
    here
}

/// Answers every connection with a word, until the test ends.
fn serve() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = stream.read(&mut [0; 512]);
            let _ = stream.write_all(b"HTTP/1.0 200 OK\r\nContent-Length: 6\r\n\r\nhello\n");
        }
    });
    port
}

/// Runs every tool in every profile of the list and names all that fail.
fn all_work(tools: &'static [Tool], profiles: &'static [Profile]) {
    let port = serve();
    in_both(async |mode| {
        let host = Host::start(mode, &[]).await;
        let mut failed = Vec::new();
        for &profile in profiles {
            for (name, text) in tools.iter().filter(|(name, _)| is_here(name)) {
                let mut plan = self::profile(profile, text);
                let home = host.launcher.box_paths(profile).work().display().to_string();
                plan.env = vec![
                    ("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()),
                    ("HOME".into(), home.clone()),
                    ("TMPDIR".into(), home),
                    ("LANG".into(), "C.UTF-8".into()),
                    ("PORT".into(), port.to_string()),
                    ("URL".into(), format!("http://127.0.0.1:{port}/")),
                ];
                let ended = host.run(&plan, RunInputs::default()).await;
                if ended.record.outcome != (sally_agent::sandbox::Outcome::Exited { code: 0 }) {
                    let outcome = &ended.record.outcome;
                    failed.push(format!("{profile} {name}: {outcome:?}\n{}{}", ended.stdout, ended.stderr));
                }
            }
        }
        assert!(failed.is_empty(), "{mode:?}: {}", failed.join("\n"));
    });
}

#[test]
fn common_programs_work_in_every_profile() {
    all_work(&EVERYWHERE, &Profile::ALL);
    all_work(&WITH_A_NAME, &[Profile::Strict, Profile::Net]);
}

#[test]
fn programs_reach_the_network_where_the_profile_has_it() {
    all_work(&WITH_NETWORK, &[Profile::Net, Profile::Host]);
}

#[test]
fn programs_that_inspect_a_host_work_in_host() {
    all_work(&INSPECTION, &[Profile::Host]);
}
