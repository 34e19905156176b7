//! The broker of `sally up`: finding a nats-server, its folder and configuration, running it, and its stream.
//!
//! In reading order:
//! - [`find`]: which nats-server, and what to say when there is none.
//! - [`state`]: the folder everything is kept in, its lock, keys and credentials.
//! - [`config`]: the server's configuration, as text.
//! - [`process`]: the supervised server; [`port`] the one it gets.
//! - [`streams`]: the stream of any broker Sally uses, of `up` or an existing one.
//!
//! This room prints nothing and holds no job: the broker is a cache, not the record.

pub mod config;
pub mod find;
pub mod port;
pub mod process;
pub mod state;
pub mod streams;
