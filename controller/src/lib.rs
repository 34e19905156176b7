//! The controller, and the caller's side of it.
//!
//! In reading order: [`context`] is which controller a caller speaks to and as whom, [`client`] is the
//! caller's side of its API, [`cli`] is everything that people type and read; [`broker`] and [`supervise`]
//! are the children of `sally up`; [`ledger`] and [`store`] are the durable record.

pub mod broker;
pub mod cli;
pub mod client;
pub mod context;
pub mod ledger;
pub mod store;
pub mod supervise;
