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
    #[error("data_dir: cannot make {path}: {error}")]
    DataDir { path: String, error: std::io::Error },
    #[error(transparent)]
    Service(#[from] ServiceError),
}

/// Serves until `stop` is set.
pub async fn run(config: &Path, stop: watch::Receiver<bool>) -> Result<(), ServeError> {
    let settings = settings::load(config)?;
    std::fs::create_dir_all(&settings.data_dir)
        .map_err(|error| ServeError::DataDir { path: settings.data_dir.display().to_string(), error })?;
    // A backup of the data folder finds keys and settings by this list.
    let list = settings.data_dir.join(crate::backup::FILES);
    let files = serde_json::to_vec_pretty(&settings.files).unwrap_or_default();
    if let Err(error) = std::fs::write(&list, files) {
        tracing::warn!(path = %list.display(), %error, "cannot write the list of settings files");
    }
    Ok(service::run(settings, stop).await?)
}
