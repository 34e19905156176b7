//! `sally serve`: the controller service as a program.
#![forbid(unsafe_code)]

use std::path::Path;

use tokio::sync::watch;

use crate::service::{self, ServiceError, settings};

/// Why it cannot serve.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "each variant's message is its documentation")]
pub enum ServeError {
    #[error(transparent)]
    Settings(#[from] settings::SettingsError),
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// Serves until `stop` is set.
pub async fn run(config: &Path, stop: watch::Receiver<bool>) -> Result<(), ServeError> {
    let settings = settings::load(config)?;
    Ok(service::run(settings, stop).await?)
}
