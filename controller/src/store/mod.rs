//! The store: the controller's own files, which are too large for the ledger.
//!
//! In reading order: [`blobs`] holds programs and input by their digest; [`logs`] holds streams of output by
//! run, attempt and stream; `growing` is a file that grows at its end and knows its digest; `disk` are the
//! steps on the file system; `error` says what went wrong and what to do.
//!
//! The store knows neither broker nor database. Names of files are made of checked ids only. Who opens a folder
//! as a store must be the only one that writes there.
#![forbid(unsafe_code)]

pub mod blobs;
mod disk;
mod error;
mod growing;
pub mod logs;

#[cfg(test)]
mod tests;

pub use blobs::{BlobPart, BlobSettings, BlobState, Blobs};
pub use disk::Swept;
pub use error::StoreError;
pub use logs::{Appended, Edges, Finished, LogKey, LogPart, LogSettings, LogStatus, Logs, Stream};
