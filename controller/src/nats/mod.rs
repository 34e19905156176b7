//! `sally nats`: what somebody who runs a broker needs of Sally.
//!
//! In reading order:
//! - [`folder`]: how files are written, kept and never replaced.
//! - [`init`]: everything for a broker, a controller and a first caller; [`zone`] an account more, and the broker of a zone.
//! - [`tls`]: an authority and a certificate, where nobody gives one.
//! - [`push`]: gives accounts that have changed to a running broker.
//! - [`check`]: what a credential may and may not do, tried at the broker.
//!
//! What anybody may do is decided in `sally_common::nats::claims`, for `sally up` and for this room alike. Nothing is printed here.
#![forbid(unsafe_code)]

pub mod check;
pub mod folder;
pub mod init;
pub mod push;
pub mod tls;
pub mod zone;
