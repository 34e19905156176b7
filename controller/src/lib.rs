//! The controller: the service, the command line, and the all-in-one.
//!
//! Rooms: [`service`] submits, dispatches, records and answers; [`ledger`] speaks to its database and
//! nothing else; [`store`] keeps files; [`broker`] runs a nats-server of our own; [`nats`] makes what a
//! broker of somebody else needs; [`supervise`] keeps child
//! programs running.

pub mod backup;
pub mod broker;
pub mod cli;
pub mod client;
pub mod context;
pub mod ledger;
pub mod nats;
pub mod serve;
pub mod service;
pub mod store;
pub mod supervise;
pub mod up;
