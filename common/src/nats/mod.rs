//! Everything about the broker that both programs need: who may say what, and how a connection behaves.
//!
//! In reading order:
//! - [`version`]: which servers Sally works with.
//! - [`jwt`]: signing one claim; [`accounts`]: the whole tree of operator, accounts and users; `claims`: what each may do.
//! - [`creds`]: the file a user connects with.
//! - [`connect`]: one connection that comes back by itself and says what went wrong.
//!
//! This room never looks inside a message. What a message says is proved by Sally's own signatures; the
//! permissions here are the second line.

pub mod accounts;
mod claims;
pub mod connect;
pub mod creds;
pub mod jwt;
pub mod version;
