//! `sally`: parses, runs, and maps to an exit code.

use std::process::ExitCode;

use sally::cli::{self, CliError, ServeArgs, Services, UpArgs};

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let Ok(runtime) = runtime else { return ExitCode::from(cli::Exit::Internal.code()) };
    ExitCode::from(runtime.block_on(cli::main(std::env::args_os().collect(), &Parts)))
}

/// The commands that are more than a caller.
struct Parts;

impl Services for Parts {
    async fn up(&self, _args: UpArgs) -> Result<(), CliError> {
        Err(CliError::internal("this build has no `up`"))
    }

    async fn serve(&self, _args: ServeArgs) -> Result<(), CliError> {
        Err(CliError::internal("this build has no `serve`"))
    }
}
