//! The controller.

pub mod broker;
pub mod ledger;
pub mod store;
pub mod supervise;
