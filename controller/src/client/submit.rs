//! Submitting: the order signed once, what it names sent first, and the same bytes again when no answer came.

use sally_common::id::Digest;
use sally_common::key::SigningKey;
use sally_common::limit;
use sally_common::wire::api::{BlobStored, Call, Offline, Submit, Submitted};
use sally_common::wire::order::{Order, OrderSignature};
use sally_common::wire::{self, Kind};

use super::{CALL_TIMEOUT, Client, ClientError, Watch};

/// Times that one submission is sent. It has a request id, so the second is answered like the first.
const TRIES: u32 = 3;
/// Answers in a row that may bring an upload no further.
const STALLS: u32 = 3;

/// How a job is submitted.
#[derive(Debug, Clone, Copy, Default)]
pub struct SubmitOptions {
    /// What to do with targets that are offline.
    pub offline: Offline,
    /// Watch the job from its first moment.
    pub watch: bool,
    /// Live output too.
    pub output: bool,
}

/// Writes an order and signs it: its exact bytes as text, and the signature.
pub fn sign_order(key: &SigningKey, order: &Order) -> (String, OrderSignature) {
    let bytes = wire::to_bytes(order);
    let signature = OrderSignature { key: key.public().clone(), signature: key.sign(Kind::Order, &bytes) };
    (String::from_utf8(bytes).unwrap_or_default(), signature)
}

impl Client {
    /// Stores these bytes at the controller, from where a broken upload stopped.
    ///
    /// # Errors
    /// As [`Client::call`], and [`ClientError::Upload`] when the controller gets no further.
    pub async fn upload(&self, bytes: &[u8]) -> Result<Digest, ClientError> {
        let digest = Digest::of(bytes);
        let total = bytes.len() as u64;
        let (mut offset, mut stalls) = (0, 0);
        loop {
            let chunk = chunk(bytes, offset);
            let call = Call::Blob { digest, offset, total };
            let stored: BlobStored = self.call_with(call, Some(chunk), CALL_TIMEOUT).await?;
            if stored.complete {
                return Ok(digest);
            }
            if stored.bytes > total {
                return Err(ClientError::Upload("it has more bytes than there are".to_owned()));
            }
            stalls = if stored.bytes > offset { 0 } else { stalls + 1 };
            if stalls >= STALLS {
                return Err(ClientError::Upload(format!("it stays at byte {} of {total}", stored.bytes)));
            }
            offset = stored.bytes;
        }
    }

    /// Signs and submits an order. `blobs` are the contents that it names without carrying them. With
    /// [`SubmitOptions::watch`] the watch has begun before the job exists, so no event is missed.
    ///
    /// # Errors
    /// As [`Client::call`]; [`ClientError::Uncertain`] when the submission was sent and no answer came.
    pub async fn submit(
        &self,
        order: &Order,
        blobs: &[Vec<u8>],
        options: SubmitOptions,
    ) -> Result<(Submitted, Option<Watch>), ClientError> {
        for blob in blobs {
            self.upload(blob).await?;
        }
        let (text, signature) = sign_order(&self.inner.key, order);
        let events = if options.watch { Some(self.subscribe_watch().await?) } else { None };
        let submit = Submit {
            order: text,
            signatures: vec![signature],
            offline: options.offline,
            priority: sally_common::limit::PRIORITY_DEFAULT,
            latest_only: None,
            lane: sally_common::wire::command::Lane::Queue,
            retry_of: None,
            watch: events.as_ref().map(|e| e.subject.clone()),
            watch_output: options.output,
        };
        let submitted = self.submit_until_known(order, submit).await?;
        let watch = events.map(|events| Watch::start(self.clone(), events, &submitted.job, options.output));
        Ok((submitted, watch))
    }

    async fn submit_until_known(&self, order: &Order, submit: Submit) -> Result<Submitted, ClientError> {
        let mut tries = 0;
        loop {
            tries += 1;
            match self.call(Call::Submit(submit.clone())).await {
                // Nobody was there to take it, in this try and in all before.
                Err(error @ ClientError::NoController { .. }) if tries == 1 && is_refused(&error) => {
                    return Err(error);
                }
                Err(error) if error.is_unreachable() && tries < TRIES && !is_refused(&error) => {}
                Err(error) if error.is_unreachable() => {
                    return Err(ClientError::Uncertain {
                        request_id: order.request_id.clone(),
                        cause: error.to_string(),
                    });
                }
                other => return other,
            }
        }
    }
}

/// Whether the broker said that nobody listens, so that the message reached nobody.
fn is_refused(error: &ClientError) -> bool {
    matches!(error, ClientError::NoController { detail, .. } if detail.is_empty())
}

fn chunk(bytes: &[u8], offset: u64) -> &[u8] {
    let start = usize::try_from(offset).unwrap_or(usize::MAX).min(bytes.len());
    let end = start.saturating_add(limit::STREAM_CHUNK).min(bytes.len());
    &bytes[start..end]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_cover_all_bytes_and_no_more() {
        let bytes = vec![7; limit::STREAM_CHUNK + 5];
        assert_eq!(chunk(&bytes, 0).len(), limit::STREAM_CHUNK);
        assert_eq!(chunk(&bytes, limit::STREAM_CHUNK as u64).len(), 5);
        assert!(chunk(&bytes, bytes.len() as u64).is_empty());
        assert!(chunk(&bytes, u64::MAX).is_empty());
    }
}
