//! `sally`.
fn main() -> std::process::ExitCode {
    if let Some(error) = sally::supervise::guard::run_if_asked() {
        #[expect(clippy::print_stderr, reason = "the supervisor keeps it in the child's log")]
        {
            eprintln!("cannot become the child: {error}");
        }
        return std::process::ExitCode::from(1);
    }
    std::process::ExitCode::SUCCESS
}
