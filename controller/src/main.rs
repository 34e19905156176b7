//! `sally`: parses, runs, and maps to an exit code.

use std::process::ExitCode;

use sally::cli;

fn main() -> ExitCode {
    if let Some(error) = sally::supervise::guard::run_if_asked() {
        #[expect(clippy::print_stderr, reason = "the supervisor keeps it in the child's log")]
        {
            eprintln!("cannot become the child: {error}");
        }
        return ExitCode::FAILURE;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return ExitCode::from(cli::Exit::Internal.code()) };
    ExitCode::from(runtime.block_on(cli::main(std::env::args_os().collect(), &cli::Parts)))
}
