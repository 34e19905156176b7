//! What a script or binary is, by its bytes alone: checked where a task is submitted and again by the agent.
//!
//! The checks answer what the kernel would say badly: a carriage return in the `#!` line becomes "no such file",
//! a program for another processor "exec format error", a file without `#!` runs under whatever shell
//! happens to be there. Everything that would surely fail is refused with the next step to take.

use std::fmt;

/// The longest `#!` line, in bytes without its newline: the kernel looks at 256 bytes and cuts the rest.
pub const SHEBANG_BYTES: usize = 255;

const UTF8_BOM: &[u8] = b"\xef\xbb\xbf";

/// What a program is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProgramKind {
    /// A text that names its interpreter in its `#!` line.
    Script {
        /// The absolute path of the interpreter.
        interpreter: String,
        /// The one argument it gets before the script, if any, as the kernel passes it: in one piece.
        argument: Option<String>,
    },
    /// A text that needs an interpreter from outside.
    TextWithoutInterpreter,
    /// A zip archive (a Python or Java application): it needs an interpreter from outside.
    ArchiveWithoutInterpreter,
    /// A program for a processor.
    Elf {
        /// Which one.
        machine: Machine,
    },
}

/// A processor, as an ELF program names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Machine {
    /// ELF's `e_machine`.
    pub code: u16,
    /// 32 or 64.
    pub bits: u8,
    /// The order of bytes.
    pub little_endian: bool,
}

/// Number, bits and little-endianness by the names that `std::env::consts::ARCH` and people use.
const MACHINES: [(&str, Machine); 14] = [
    ("x86_64", Machine { code: 62, bits: 64, little_endian: true }),
    ("x86", Machine { code: 3, bits: 32, little_endian: true }),
    ("aarch64", Machine { code: 183, bits: 64, little_endian: true }),
    ("arm", Machine { code: 40, bits: 32, little_endian: true }),
    ("riscv64", Machine { code: 243, bits: 64, little_endian: true }),
    ("riscv32", Machine { code: 243, bits: 32, little_endian: true }),
    ("loongarch64", Machine { code: 258, bits: 64, little_endian: true }),
    ("powerpc64le", Machine { code: 21, bits: 64, little_endian: true }),
    ("powerpc64", Machine { code: 21, bits: 64, little_endian: false }),
    ("powerpc", Machine { code: 20, bits: 32, little_endian: false }),
    ("s390x", Machine { code: 22, bits: 64, little_endian: false }),
    ("mips64el", Machine { code: 8, bits: 64, little_endian: true }),
    ("mipsel", Machine { code: 8, bits: 32, little_endian: true }),
    ("mips", Machine { code: 8, bits: 32, little_endian: false }),
];

impl Machine {
    /// Returns the processor of that name (`x86_64`, `aarch64`, …).
    pub fn from_name(name: &str) -> Option<Self> {
        MACHINES.iter().find(|(have, _)| *have == name).map(|(_, machine)| *machine)
    }

    /// Returns the processor this program was built for; `None` for one that has no name here.
    pub fn current() -> Option<Self> {
        let name = match (std::env::consts::ARCH, cfg!(target_endian = "little")) {
            ("powerpc64", true) => "powerpc64le",
            ("mips64", true) => "mips64el",
            ("mips", true) => "mipsel",
            (name, _) => name,
        };
        Self::from_name(name)
    }
}

impl fmt::Display for Machine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some((name, _)) = MACHINES.iter().find(|(_, machine)| machine == self) {
            return f.write_str(name);
        }
        if self.code == 62 {
            return f.write_str("x32");
        }
        let order = if self.little_endian { "little" } else { "big" };
        write!(f, "the processor number {} ({} bit, {order} endian)", self.code, self.bits)
    }
}

/// Why a program cannot run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ProgramProblem {
    /// There is nothing in it.
    #[error("the file is empty")]
    Empty,
    /// A text with neither `#!` nor an interpreter.
    #[error(
        "the file does not begin with `#!`, and no interpreter is given; \
         begin it with a line like `#!/bin/sh`, or name one with --interpreter"
    )]
    NoInterpreter,
    /// Windows line endings.
    #[error(
        "the `#!` line ends with a carriage return, so the system would look for an interpreter `{0}\\r`; \
         the file has Windows line endings: --fix-crlf removes them"
    )]
    CarriageReturn(String),
    /// `#!` and nothing behind it.
    #[error("the `#!` line names no interpreter; write one like `#!/bin/sh`")]
    EmptyShebang,
    /// The kernel would look for it in the work folder.
    #[error("the `#!` line names `{0}`, which is not an absolute path; write `#!/usr/bin/env {0}`")]
    RelativeInterpreter(String),
    /// The kernel would cut it.
    #[error("the `#!` line has {0} bytes, the system reads {SHEBANG_BYTES}; shorten it or use --interpreter")]
    LongShebang(usize),
    /// `env` gets everything behind it as one word.
    #[error(
        "`#!{0} {1}`: the system passes `{1}` as one word, which is no program's name; write `#!{0} -S {1}`"
    )]
    EnvWords(String, String),
    /// `#!` is not at the very beginning.
    #[error(
        "a UTF-8 byte order mark stands before `#!`, so the system does not see it; save the file without BOM"
    )]
    BomBeforeShebang,
    /// Text in two-byte characters.
    #[error("the file is UTF-16 text; save it as UTF-8 without BOM")]
    Utf16,
    /// A text with a NUL byte.
    #[error("a NUL byte stands at byte {0}: this is neither text nor a program that Linux can run")]
    Nul(usize),
    /// A program of another system.
    #[error("this is a program for {0}, agents run on Linux")]
    OtherSystem(&'static str),
    /// A broken ELF file.
    #[error("this begins like an ELF program but is cut off or damaged")]
    DamagedElf,
    /// An ELF file that cannot be started.
    #[error("this is an ELF file but not a program: it is {0}")]
    NotAProgram(&'static str),
    /// A program for another processor.
    #[error("this is an ELF program for {program}, the agent runs on {host}")]
    OtherMachine {
        /// What it was built for.
        program: Machine,
        /// What the agent has.
        host: Machine,
    },
    /// An archive and no interpreter.
    #[error("this is a zip archive; name what runs it with --interpreter")]
    ArchiveNeedsInterpreter,
}

/// Says what a program is, or why it can be none. An interpreter from outside is not considered.
///
/// # Errors
/// With the first thing that would keep it from running wherever it is sent.
pub fn inspect(bytes: &[u8]) -> Result<ProgramKind, ProgramProblem> {
    look(bytes, false)
}

/// Says what a program is, and whether it can run with or without `--interpreter`.
///
/// With an interpreter the `#!` line does not matter, so nothing about it is refused.
///
/// # Errors
/// As [`inspect`], and when it needs an interpreter and has none.
pub fn check(bytes: &[u8], interpreter_given: bool) -> Result<ProgramKind, ProgramProblem> {
    match look(bytes, interpreter_given)? {
        ProgramKind::TextWithoutInterpreter if !interpreter_given => Err(ProgramProblem::NoInterpreter),
        ProgramKind::ArchiveWithoutInterpreter if !interpreter_given => {
            Err(ProgramProblem::ArchiveNeedsInterpreter)
        }
        kind => Ok(kind),
    }
}

/// Checks that a program without `--interpreter` is one for the host's processor. Scripts fit everywhere; whether a
/// 64 bit host also runs its 32 bit sibling's programs is left to its kernel.
///
/// # Errors
/// With both processors in words.
pub fn check_machine(kind: &ProgramKind, host: Machine) -> Result<(), ProgramProblem> {
    match kind {
        ProgramKind::Elf { machine } if *machine != host && !is_sibling(*machine, host) => {
            Err(ProgramProblem::OtherMachine { program: *machine, host })
        }
        _ => Ok(()),
    }
}

fn is_sibling(program: Machine, host: Machine) -> bool {
    let named = |machine| MACHINES.iter().find(|(_, m)| *m == machine).map(|(name, _)| *name);
    matches!((named(program), named(host)), (Some("x86"), Some("x86_64")) | (Some("arm"), Some("aarch64")))
}

/// Returns the text with Unix line endings. What has a NUL byte in it is no text and comes back as it is.
pub fn fix_crlf(bytes: &[u8]) -> Vec<u8> {
    if bytes.contains(&0) {
        return bytes.to_vec();
    }
    // Without a single newline, carriage returns alone end the lines (or the only line).
    let alone = !bytes.contains(&b'\n');
    let mut out = Vec::with_capacity(bytes.len());
    for (i, &byte) in bytes.iter().enumerate() {
        match (byte, bytes.get(i + 1)) {
            (b'\r', Some(b'\n') | None) if !alone => {}
            (b'\r', _) if alone => out.push(b'\n'),
            _ => out.push(byte),
        }
    }
    out
}

fn look(bytes: &[u8], interpreter_given: bool) -> Result<ProgramKind, ProgramProblem> {
    if bytes.is_empty() {
        return Err(ProgramProblem::Empty);
    }
    if bytes.starts_with(b"\x7fELF") {
        return elf(bytes).map(|machine| ProgramKind::Elf { machine });
    }
    if let Some(system) = other_system(bytes) {
        return Err(ProgramProblem::OtherSystem(system));
    }
    if is_zip(bytes) {
        return Ok(ProgramKind::ArchiveWithoutInterpreter);
    }
    if bytes.starts_with(b"\xff\xfe") || bytes.starts_with(b"\xfe\xff") {
        return Err(ProgramProblem::Utf16);
    }
    let shebang = bytes.starts_with(b"#!").then(|| bytes.split(|b| *b == b'\n').next().unwrap_or(bytes));
    if let Some(at) = nul_in_text(bytes, shebang) {
        return Err(ProgramProblem::Nul(at));
    }
    match shebang {
        _ if interpreter_given => Ok(ProgramKind::TextWithoutInterpreter),
        Some(line) => read_shebang(line),
        None if bytes.strip_prefix(UTF8_BOM).is_some_and(|rest| rest.starts_with(b"#!")) => {
            Err(ProgramProblem::BomBeforeShebang)
        }
        None => Ok(ProgramKind::TextWithoutInterpreter),
    }
}

/// A zip archive may follow a `#!` line: that is how Python applications are made (`python3 -m zipapp`).
fn nul_in_text(bytes: &[u8], shebang: Option<&[u8]>) -> Option<usize> {
    let line = shebang.map_or(0, <[u8]>::len);
    if shebang.is_some() && bytes.get(line + 1..).is_some_and(is_zip) {
        return bytes[..line].iter().position(|b| *b == 0);
    }
    bytes.iter().position(|b| *b == 0)
}

fn is_zip(bytes: &[u8]) -> bool {
    bytes.starts_with(b"PK\x03\x04")
}

fn read_shebang(line: &[u8]) -> Result<ProgramKind, ProgramProblem> {
    let text = String::from_utf8_lossy(&line[2..]);
    let (name, rest) = match text.trim_matches([' ', '\t', '\r']).split_once([' ', '\t']) {
        Some((name, rest)) => (name, rest.trim_matches([' ', '\t', '\r'])),
        None => (text.trim_matches([' ', '\t', '\r']), ""),
    };
    if name.is_empty() {
        return Err(ProgramProblem::EmptyShebang);
    }
    if line.contains(&b'\r') {
        let name = name.split('\r').next().unwrap_or(name);
        return Err(ProgramProblem::CarriageReturn(name.to_owned()));
    }
    if line.len() > SHEBANG_BYTES {
        return Err(ProgramProblem::LongShebang(line.len()));
    }
    if !name.starts_with('/') {
        return Err(ProgramProblem::RelativeInterpreter(name.to_owned()));
    }
    if name.ends_with("/env") && rest.contains([' ', '\t']) && !rest.starts_with('-') {
        return Err(ProgramProblem::EnvWords(name.to_owned(), rest.to_owned()));
    }
    let argument = (!rest.is_empty()).then(|| rest.to_owned());
    Ok(ProgramKind::Script { interpreter: name.to_owned(), argument })
}

fn other_system(bytes: &[u8]) -> Option<&'static str> {
    const MACH_O: [&[u8]; 3] = [b"\xcf\xfa\xed\xfe", b"\xce\xfa\xed\xfe", b"\xca\xfe\xba\xbe"];
    if bytes.starts_with(b"MZ") && bytes.contains(&0) {
        return Some("Windows");
    }
    MACH_O.iter().any(|magic| bytes.starts_with(magic)).then_some("macOS (or Java)")
}

/// Reads the first 20 bytes of an ELF file: class, byte order, type and machine.
fn elf(bytes: &[u8]) -> Result<Machine, ProgramProblem> {
    let bits = match bytes.get(4) {
        Some(1) => 32,
        Some(2) => 64,
        _ => return Err(ProgramProblem::DamagedElf),
    };
    let little_endian = match bytes.get(5) {
        Some(1) => true,
        Some(2) => false,
        _ => return Err(ProgramProblem::DamagedElf),
    };
    let header = if bits == 64 { 64 } else { 52 };
    if bytes.len() < header {
        return Err(ProgramProblem::DamagedElf);
    }
    let half = |at: usize| {
        let pair = [bytes[at], bytes[at + 1]];
        if little_endian { u16::from_le_bytes(pair) } else { u16::from_be_bytes(pair) }
    };
    match half(16) {
        2 | 3 => Ok(Machine { code: half(18), bits, little_endian }),
        1 => Err(ProgramProblem::NotAProgram("an object file, which a linker has yet to make a program of")),
        4 => Err(ProgramProblem::NotAProgram("the core dump of one")),
        _ => Err(ProgramProblem::DamagedElf),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on should stop")]

    use super::*;

    #[track_caller]
    fn script(text: &str, interpreter: &str, argument: Option<&str>) {
        let expected = ProgramKind::Script {
            interpreter: interpreter.to_owned(),
            argument: argument.map(str::to_owned),
        };
        assert_eq!(inspect(text.as_bytes()), Ok(expected), "{text:?}");
    }

    #[track_caller]
    fn refused(bytes: impl AsRef<[u8]>, part: &str) {
        let bytes = bytes.as_ref();
        let problem = check(bytes, false).expect_err(&String::from_utf8_lossy(bytes)).to_string();
        assert!(problem.contains(part), "{problem}");
    }

    fn elf_file(class: u8, order: u8, kind: u16, machine: u16) -> Vec<u8> {
        let mut bytes = vec![0; 64];
        bytes[..6].copy_from_slice(&[0x7f, b'E', b'L', b'F', class, order]);
        let half = |n: u16| if order == 1 { n.to_le_bytes() } else { n.to_be_bytes() };
        bytes[16..18].copy_from_slice(&half(kind));
        bytes[18..20].copy_from_slice(&half(machine));
        bytes
    }

    #[test]
    fn shebang_lines() {
        script("#!/bin/sh\necho", "/bin/sh", None);
        script("#!/bin/sh", "/bin/sh", None);
        script("#! /bin/sh -eu \necho", "/bin/sh", Some("-eu"));
        script("#!/usr/bin/env python3\n", "/usr/bin/env", Some("python3"));
        script("#!/usr/bin/env -S python3 -u\n", "/usr/bin/env", Some("-S python3 -u"));
        script("#!/usr/bin/awk -f\n", "/usr/bin/awk", Some("-f"));
        script("#!\t/bin/sh\t-x\t\n", "/bin/sh", Some("-x"));
        script("#!/bin/sh\necho a\r\n", "/bin/sh", None);
    }

    #[test]
    fn shebang_lines_that_fail() {
        refused("#!/bin/sh\r\necho\r\n", "--fix-crlf");
        refused("#!/bin/sh\r\necho\r\n", "interpreter `/bin/sh\\r`");
        refused("#!/bin/sh\recho\r", "interpreter `/bin/sh\\r`");
        refused("#!/usr/bin/env python3\r\n", "--fix-crlf");
        refused("#!\necho", "names no interpreter");
        refused("#!  \r\n", "names no interpreter");
        refused("#!python3\n", "#!/usr/bin/env python3");
        refused("#!/usr/bin/env python3 -u\n", "-S python3 -u");
        refused(format!("#!/{}\n", "x".repeat(253)), "256 bytes");
        assert!(check(format!("#!/{}\n", "x".repeat(252)).as_bytes(), false).is_ok());
        refused("\u{feff}#!/bin/sh\n", "byte order mark");
    }

    #[test]
    fn texts_without_interpreter() {
        refused("", "is empty");
        refused("echo hi\n", "--interpreter");
        refused("\n#!/bin/sh\n", "--interpreter");
        assert_eq!(inspect(b"echo hi\n"), Ok(ProgramKind::TextWithoutInterpreter));
        for text in ["echo hi\n", "#!/bin/sh\r\n", "#!python3\n", "\u{feff}#!/bin/sh"] {
            assert_eq!(check(text.as_bytes(), true), Ok(ProgramKind::TextWithoutInterpreter), "{text:?}");
        }
        assert_eq!(check(b"", true), Err(ProgramProblem::Empty));
        assert_eq!(check(b"a\0b", true), Err(ProgramProblem::Nul(1)));
    }

    #[test]
    fn what_is_no_text() {
        refused(b"#!/bin/sh\necho \0\n", "at byte 15");
        refused(b"\xff\xfe#\0!\0", "UTF-16");
        refused(b"\xfe\xff\0#\0!", "UTF-16");
        refused(b"MZ\x90\0", "Windows");
        refused(b"\xcf\xfa\xed\xfe\0", "macOS");
        refused(b"PK\x03\x04\0\0", "zip archive");
        assert_eq!(check(b"PK\x03\x04\0", true), Ok(ProgramKind::ArchiveWithoutInterpreter));
        assert!(check(b"#!/usr/bin/python3\nPK\x03\x04\0\0", false).is_ok());
        assert!(check("#!/bin/sh\n# \u{e9}".as_bytes(), false).is_ok());
        assert!(check(b"#!/bin/sh\n# \xe9 latin-1", false).is_ok());
    }

    #[test]
    fn elf_programs() {
        let host = Machine::from_name("x86_64").unwrap();
        let fits = |bytes: &[u8]| check(bytes, false).and_then(|kind| check_machine(&kind, host));
        assert_eq!(fits(&elf_file(2, 1, 2, 62)), Ok(()));
        assert_eq!(fits(&elf_file(2, 1, 3, 62)), Ok(()));
        assert_eq!(fits(b"#!/bin/sh\n"), Ok(()));
        let message = |bytes: &[u8]| fits(bytes).unwrap_err().to_string();
        let expected = "this is an ELF program for aarch64, the agent runs on x86_64";
        assert_eq!(message(&elf_file(2, 1, 3, 183)), expected);
        assert_eq!(fits(&elf_file(1, 1, 3, 3)), Ok(()), "the kernel decides about 32 bit");
        assert!(message(&elf_file(1, 1, 3, 40)).contains("for arm,"));
        assert!(message(&elf_file(1, 1, 3, 62)).contains("for x32,"));
        assert!(message(&elf_file(2, 2, 3, 22)).contains("for s390x,"));
        assert!(message(&elf_file(2, 2, 3, 999)).contains("number 999 (64 bit, big endian)"));
    }

    #[test]
    fn elf_files_that_are_no_programs() {
        refused(b"\x7fELF", "cut off");
        refused(&elf_file(2, 1, 3, 62)[..63], "cut off");
        refused(elf_file(3, 1, 3, 62), "damaged");
        refused(elf_file(2, 1, 1, 62), "object file");
        refused(elf_file(2, 1, 4, 62), "core dump");
    }

    #[test]
    fn this_very_program_fits_its_host() {
        let bytes = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let kind = check(&bytes, false).unwrap();
        assert_eq!(Machine::current().map(|host| check_machine(&kind, host)), Some(Ok(())));
    }

    #[test]
    fn fixing_line_endings() {
        let fixed = |text: &str| String::from_utf8(fix_crlf(text.as_bytes())).unwrap();
        assert_eq!(fixed("#!/bin/sh\r\necho a\r\n"), "#!/bin/sh\necho a\n");
        assert_eq!(fixed("#!/bin/sh\r"), "#!/bin/sh\n");
        assert_eq!(fixed("#!/bin/sh\recho a\r"), "#!/bin/sh\necho a\n");
        assert_eq!(fixed("a\nprintf 'x\ry'\n"), "a\nprintf 'x\ry'\n");
        assert_eq!(fixed("a\r\nb\r"), "a\nb");
        assert_eq!(fix_crlf(b"\x7fELF\0\r\n"), b"\x7fELF\0\r\n");
        let text = "#!/bin/sh\r\necho\r\n".as_bytes();
        assert!(check(text, false).is_err() && check(&fix_crlf(text), false).is_ok());
    }
}
