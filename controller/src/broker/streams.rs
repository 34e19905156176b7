//! The one stream: made, and brought up to date, whenever a controller connects.
//!
//! It carries dispatches from controllers to the agents' live subjects. It is transport with history, never the record:
//! everything in it may be lost, and it has a bound. What agents write goes to no stream: whoever owes a message says it
//! again until it is receipted, so nothing would read it back.

use std::time::Duration;

use async_nats::jetstream::Context;
use async_nats::jetstream::context::GetStreamErrorKind;
use async_nats::jetstream::stream::{Config, DiscardPolicy, Republish, RetentionPolicy, StorageType};

const DAY: Duration = Duration::from_secs(24 * 60 * 60);
const MIB: i64 = 1024 * 1024;
/// The least that the server takes; no message of Sally's carries an id, so nothing needs to be remembered.
const DUPLICATE_WINDOW: Duration = Duration::from_millis(100);

/// The stream's name at the broker.
pub const TASKS: &str = "TASKS";

/// Returns how the stream should be, for subjects that begin with `prefix`.
pub fn config(prefix: &str) -> Config {
    let subject = |word: &str| format!("{prefix}.{word}.>");
    Config {
        name: TASKS.to_owned(),
        subjects: vec![subject("task")],
        republish: Some(Republish {
            source: subject("task"),
            destination: subject("live"),
            headers_only: false,
        }),
        max_age: 7 * DAY,
        max_bytes: 512 * MIB,
        // One agent's backlog never pushes out another's.
        max_messages_per_subject: 10_000,
        retention: RetentionPolicy::Limits,
        storage: StorageType::File,
        discard: DiscardPolicy::Old,
        max_messages: -1,
        max_consumers: -1,
        max_message_size: -1,
        num_replicas: 1,
        duplicate_window: DUPLICATE_WINDOW,
        deny_delete: true,
        ..Config::default()
    }
}

/// What provisioning did to a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// It was as it should be.
    None,
    /// It was not there; whatever the broker had known before is gone.
    Created,
    /// It was brought up to date.
    Updated,
}

/// A stream is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum StreamsError {
    /// The broker does not answer or refuses.
    #[error("cannot {action} the stream {name}: {cause}{}", hint(cause))]
    Broker {
        /// What was tried.
        action: &'static str,
        /// The stream.
        name: &'static str,
        /// What the broker said.
        cause: String,
    },
    /// It is there with another kind of storage, which cannot be changed.
    #[error(
        "the stream {name} is kept in {found} and must be kept in {wanted}: remove it at the broker, it will be made anew"
    )]
    Storage {
        /// The stream.
        name: &'static str,
        /// Where it is.
        found: &'static str,
        /// Where it should be.
        wanted: &'static str,
    },
}

/// Makes the stream, or brings it up to date. Doing it twice does nothing the second time.
///
/// # Errors
/// [`StreamsError`].
pub async fn provision(js: &Context, prefix: &str) -> Result<Change, StreamsError> {
    let wanted = config(prefix);
    let name = TASKS;
    let broker = |action: &'static str| move |cause: String| StreamsError::Broker { action, name, cause };
    let found = match js.get_stream(name).await {
        Ok(found) => found.cached_info().config.clone(),
        Err(error) => {
            let missing = matches!(error.kind(), GetStreamErrorKind::JetStream(ref e) if e.error_code() == async_nats::jetstream::ErrorCode::STREAM_NOT_FOUND);
            if !missing {
                return Err(broker("read")(error.to_string()));
            }
            js.create_stream(wanted).await.map_err(|e| broker("create")(e.to_string()))?;
            return Ok(Change::Created);
        }
    };
    if found.storage != wanted.storage {
        return Err(StreamsError::Storage {
            name,
            found: place(found.storage),
            wanted: place(wanted.storage),
        });
    }
    let Some(update) = update(&found, &wanted) else { return Ok(Change::None) };
    js.update_stream(update).await.map_err(|e| broker("update")(e.to_string()))?;
    Ok(Change::Updated)
}

/// Returns what to send so that `found` becomes `wanted`, or nothing when it is. What Sally has no opinion on (replicas,
/// placement, compression, and what newer servers add) stays as an operator has set it.
fn update(found: &Config, wanted: &Config) -> Option<Config> {
    let config = Config {
        subjects: wanted.subjects.clone(),
        no_ack: wanted.no_ack,
        republish: wanted.republish.clone(),
        max_age: wanted.max_age,
        max_bytes: wanted.max_bytes,
        max_messages: wanted.max_messages,
        max_messages_per_subject: wanted.max_messages_per_subject,
        max_message_size: wanted.max_message_size,
        discard: wanted.discard,
        discard_new_per_subject: false,
        allow_rollup: false,
        duplicate_window: wanted.duplicate_window,
        ..found.clone()
    };
    (config != *found).then_some(config)
}

fn place(storage: StorageType) -> &'static str {
    match storage {
        StorageType::File => "files",
        StorageType::Memory => "memory",
    }
}

fn hint(cause: &str) -> &'static str {
    if cause.contains("insufficient storage") {
        return "; give the broker more room (max_file_store, max_memory_store)";
    }
    ""
}

#[cfg(test)]
mod tests {
    use super::super::config::StoreLimits;
    use super::*;

    #[test]
    fn it_has_bounds_and_fits_into_the_store_of_up() {
        let config = config("sally");
        assert!(config.max_bytes > 0 && config.max_age > Duration::ZERO);
        assert!(config.max_bytes.cast_unsigned() <= StoreLimits::default().file_bytes);
        assert!(!config.allow_rollup && !config.allow_direct);
    }

    #[test]
    fn an_update_is_sent_only_when_something_of_ours_differs() {
        let wanted = config("sally");
        let mut found = Config { num_replicas: 3, ..wanted.clone() };
        assert_eq!(update(&found, &wanted), None, "replicas are the operator's");
        found.allow_rollup = true;
        assert_eq!(update(&found, &wanted).map(|c| (c.allow_rollup, c.num_replicas)), Some((false, 3)));
        found.allow_rollup = false;
        found.max_bytes = 1;
        assert_eq!(update(&found, &wanted).map(|c| c.max_bytes), Some(wanted.max_bytes));
    }
}
