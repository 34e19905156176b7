//! `sally serve`: the controller service as a program.
#![forbid(unsafe_code)]

use std::path::Path;

use sally_common::notify;
use sally_common::settings::layers::Layers;
use tokio::sync::{mpsc, watch};

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

/// Serves until `stop` is set. For each word of `hangup` the settings are read again.
///
/// # Errors
/// [`ServeError`].
pub async fn run(
    config: &Path,
    stop: watch::Receiver<bool>,
    mut hangup: mpsc::Receiver<()>,
) -> Result<(), ServeError> {
    let mut layers = settings::layers(config);
    let settings = settings::load(config)?;
    std::fs::create_dir_all(&settings.data_dir)
        .map_err(|error| ServeError::DataDir { path: settings.data_dir.display().to_string(), error })?;
    // A backup of the data folder finds keys and settings by this list.
    let list = settings.data_dir.join(crate::backup::FILES);
    let files = serde_json::to_vec_pretty(&settings.files).unwrap_or_default();
    if let Err(error) = std::fs::write(&list, files) {
        tracing::warn!(path = %list.display(), %error, "cannot write the list of settings files");
    }
    let (reload, reloads) = mpsc::channel(1);
    let mut service = std::pin::pin!(service::run(settings, stop, reloads));
    loop {
        tokio::select! {
            outcome = &mut service => return Ok(outcome?),
            Some(()) = hangup.recv() => read_again(config, &mut layers, &reload),
        }
    }
}

/// Reads the settings again. Ones with problems change nothing.
fn read_again(config: &Path, layers: &mut Layers, reload: &mpsc::Sender<settings::Settings>) {
    notify::reloading();
    match settings::load(config) {
        Ok(settings) => {
            let newer = settings::layers(config);
            layers.log_changes(&settings::schema::schema(), &newer);
            *layers = newer;
            // Full means that ones which were read just now wait already; they are as new.
            let _ = reload.try_send(settings);
            notify::ready("serves; settings read again");
        }
        Err(error) => {
            tracing::error!("the settings stay as they were: {error}");
            notify::ready("serves; the settings have problems and stay as they were");
        }
    }
}
