//! The bounds, each with its unit and its reason. They hold on bytes, before anything is parsed.

/// Largest message to an agent's live subject, body only. A slow link carries many of them.
pub const LIVE_MESSAGE_MAX: usize = 16 * 1024;

/// Largest script that travels inside an order; a larger one, and every binary, goes by digest.
pub const INLINE_SCRIPT_MAX: usize = 16 * 1024;

/// Largest order. Room for an inline script, 64 KiB of parameters and arguments.
pub const ORDER_MAX: usize = 256 * 1024;

/// Largest program or standard input that an order may name by digest.
pub const BLOB_MAX: u64 = 64 * 1024 * 1024;

/// Payload of one chunk to an agent. Fits [`LIVE_MESSAGE_MAX`] with its head line.
pub const BLOB_CHUNK: usize = 15 * 1024;

/// Payload of one chunk of output from an agent, or of a blob from a caller. Far below the
/// broker's 1 MiB message limit, so that one chunk never holds up a heartbeat for long.
pub const STREAM_CHUNK: usize = 256 * 1024;

/// Bytes of one stream that an agent may have on the way without a receipt.
pub const STREAM_WINDOW: u64 = 4 * 1024 * 1024;

/// Files that one run may leave behind (design section 8).
pub const ARTIFACTS_MAX: usize = 64;

/// The same files together, bytes; an agent's configuration sets less.
pub const ARTIFACT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// Names, paths and errors of these files inside a result message, as JSON; what is beyond is counted.
pub const ARTIFACT_LIST_MAX: usize = 48 * 1024;

/// Output and result together that ride inside the result message; more is streamed.
pub const INLINE_OUTPUT_MAX: usize = 64 * 1024;

/// Largest state, ask, heartbeat, receipt or cancel.
pub const SMALL_MESSAGE_MAX: usize = 64 * 1024;

/// Largest result message: inline output in base64, a result of [`INLINE_OUTPUT_MAX`], and the rest.
pub const RESULT_MESSAGE_MAX: usize = 512 * 1024;

/// Largest structured result (design section 8).
pub const RESULT_MAX: u64 = 1024 * 1024;

/// Deepest structured result (design section 8).
pub const RESULT_DEPTH: usize = 64;

/// Largest parameters object.
pub const PARAMS_MAX: usize = 64 * 1024;

/// Largest request to, and part of a reply from, the controller.
pub const API_MESSAGE_MAX: usize = 768 * 1024;

/// Largest whole reply from the controller, all parts together.
pub const API_REPLY_MAX: usize = 64 * 1024 * 1024;

/// First and last part of a stream that a run record shows, each (design section 9).
pub const RECORD_STREAM_PART: u64 = 1024 * 1024;

/// Arguments of one program, and environment entries of one task.
pub const ARGS_MAX: usize = 1024;

/// Arguments and environment of one program together, in bytes. What is larger goes into parameters or input.
pub const WORDS_MAX: usize = 64 * 1024;

/// Most targets of one job.
pub const TARGETS_MAX: usize = 20_000;
/// Attempts of one run, the first included.
pub const ATTEMPTS_MAX: u32 = 100;

/// Kinds of ends that one order may name for another attempt.
pub const RETRY_ON_MAX: usize = 32;

/// The longest wait between two attempts, milliseconds.
pub const BACKOFF_MAX_MS: u64 = 24 * 3600 * 1000;

/// The highest priority of a job; the lowest is 0.
pub const PRIORITY_MAX: u8 = 9;

/// The priority of a job that names none.
pub const PRIORITY_DEFAULT: u8 = 4;

/// Secrets of one order for one agent.
pub const SECRETS_MAX: usize = 32;

/// One secret, opened, bytes.
pub const SECRET_BYTES_MAX: usize = 64 * 1024;
