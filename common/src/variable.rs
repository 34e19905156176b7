//! Which environment variables a task may set for its script. Checked when a task is submitted and again by the
//! agent.
//!
//! A task brings its code in its script, signed; a variable that makes an interpreter or the loader run other
//! code before it, or read it differently, is refused. What the sandbox sets itself cannot be overruled either;
//! the script may still change its own environment.

/// The longest name of a variable, in bytes.
pub const NAME_BYTES: usize = 128;

/// The longest value of a variable, in bytes.
pub const VALUE_BYTES: usize = 32 * 1024;

/// All variables of a task together, names and values, in bytes.
pub const TOTAL_BYTES: usize = 128 * 1024;

/// Set by the sandbox for every script.
const OWN: [&str; 3] = ["PATH", "HOME", "TMPDIR"];

/// Change what a shell, an interpreter or the loader does before or while it reads the script.
const STEERING: [&str; 28] = [
    "BASH_ENV",
    "BASHOPTS",
    "BASH_LOADABLES_PATH",
    "CDPATH",
    "ENV",
    "GCONV_PATH",
    "GETCONF_DIR",
    "GLIBC_TUNABLES",
    "GLOBIGNORE",
    "HOSTALIASES",
    "IFS",
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "LOCPATH",
    "NODE_OPTIONS",
    "NODE_PATH",
    "PERL5DB",
    "PERL5LIB",
    "PERL5OPT",
    "PERLLIB",
    "PROMPT_COMMAND",
    "PS4",
    "RUBYLIB",
    "RUBYOPT",
    "SHELLOPTS",
    "TZDIR",
    "ZDOTDIR",
    "_JAVA_OPTIONS",
];

/// The same for Python, where harmless variables share the prefix (`PYTHONUNBUFFERED`).
const STEERING_PYTHON: [&str; 8] = [
    "PYTHONBREAKPOINT",
    "PYTHONCASEOK",
    "PYTHONEXECUTABLE",
    "PYTHONHOME",
    "PYTHONINSPECT",
    "PYTHONPATH",
    "PYTHONSTARTUP",
    "PYTHONUSERBASE",
];

/// Why a variable is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VariableProblem {
    /// The name is not one that every shell accepts.
    #[error(
        "`{0}` cannot be the name of a variable; use letters, digits and _, no digit first, at most {NAME_BYTES}"
    )]
    Name(String),
    /// The value has a NUL byte, which no environment can hold.
    #[error("the value of {0} has a NUL byte in it")]
    Nul(String),
    /// The value is too long.
    #[error("the value of {0} has {1} bytes, at most {VALUE_BYTES} are allowed; pass it with -p or --stdin")]
    TooLong(String, usize),
    /// All variables together are too long.
    #[error(
        "the variables have {0} bytes together, at most {TOTAL_BYTES} are allowed; pass data with -p or --stdin"
    )]
    TooMuch(usize),
    /// `SALLY_*` is Sally's own.
    #[error("{0} is set by Sally and cannot be set by anyone else; choose another name")]
    Reserved(String),
    /// The sandbox sets it.
    #[error("{0} is set by the sandbox; a script that needs another one sets it itself")]
    Own(String),
    /// It would change which code runs.
    #[error("{0} changes how a loader or an interpreter works and is refused; set it in the script itself")]
    Steering(String),
}

/// Checks a variable whoever sets it: its form, and that it is not one of Sally's.
///
/// # Errors
/// With what is wrong with the name or the value.
pub fn check_form(name: &str, value: &str) -> Result<(), VariableProblem> {
    let inner = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let begins = name.bytes().next().is_some_and(|b| inner(b) && !b.is_ascii_digit());
    if !begins || name.len() > NAME_BYTES || !name.bytes().all(inner) {
        let shown = name.chars().filter(|c| !c.is_control()).take(NAME_BYTES).collect();
        return Err(VariableProblem::Name(shown));
    }
    if name.starts_with("SALLY_") {
        return Err(VariableProblem::Reserved(name.to_owned()));
    }
    if value.contains('\0') {
        return Err(VariableProblem::Nul(name.to_owned()));
    }
    if value.len() > VALUE_BYTES {
        return Err(VariableProblem::TooLong(name.to_owned(), value.len()));
    }
    Ok(())
}

/// Checks a variable that a task sets.
///
/// # Errors
/// With what is wrong, or why a task may not set it.
pub fn check_task_variable(name: &str, value: &str) -> Result<(), VariableProblem> {
    check_form(name, value)?;
    if OWN.contains(&name) {
        return Err(VariableProblem::Own(name.to_owned()));
    }
    if name.starts_with("LD_") || STEERING.contains(&name) || STEERING_PYTHON.contains(&name) {
        return Err(VariableProblem::Steering(name.to_owned()));
    }
    Ok(())
}

/// Checks all variables of a task.
///
/// # Errors
/// With the first one that is refused.
pub fn check_task_env<'v>(
    variables: impl IntoIterator<Item = (&'v str, &'v str)>,
) -> Result<(), VariableProblem> {
    let mut total = 0;
    for (name, value) in variables {
        check_task_variable(name, value)?;
        total += name.len() + value.len();
    }
    if total > TOTAL_BYTES { Err(VariableProblem::TooMuch(total)) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(name: &str, value: &str, part: &str) {
        match check_task_variable(name, value) {
            Ok(()) => unreachable!("{name} was accepted"),
            Err(problem) => assert!(problem.to_string().contains(part), "{name}: {problem}"),
        }
    }

    #[test]
    fn ordinary_variables_pass() {
        for name in ["A", "_x", "http_proxy", "PYTHONUNBUFFERED", "LANG", "TZ", "DEBIAN_FRONTEND", "LDAP_URI"]
        {
            assert_eq!(check_task_variable(name, "any value = at all\n"), Ok(()));
        }
        assert_eq!(check_task_variable(&"a".repeat(128), ""), Ok(()));
    }

    #[test]
    fn names_of_bad_form() {
        for name in ["", "1A", "A-B", "A B", "A=B", "é", "a\n", "BASH_FUNC_x%%", &"a".repeat(129)] {
            refused(name, "x", "cannot be the name");
        }
    }

    #[test]
    fn values_of_bad_form() {
        refused("A", "x\0y", "NUL");
        refused("A", &"x".repeat(VALUE_BYTES + 1), "at most 32768");
    }

    #[test]
    fn what_would_change_the_code_that_runs() {
        for name in
            ["LD_PRELOAD", "LD_LIBRARY_PATH", "BASH_ENV", "ENV", "IFS", "PYTHONSTARTUP", "PERL5OPT", "PS4"]
        {
            refused(name, "x", "refused; set it in the script");
        }
        refused("SALLY_JOB", "x", "set by Sally");
        refused("PATH", "/tmp", "set by the sandbox");
    }

    #[test]
    fn the_sum_is_bounded() {
        let value = "x".repeat(VALUE_BYTES);
        let names = ["A", "B", "C", "D"];
        assert!(check_task_env(names.map(|name| (name, value.as_str()))).is_err());
        assert!(check_task_env(names[..3].iter().map(|name| (*name, value.as_str()))).is_ok());
    }
}
