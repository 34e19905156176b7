//! The controller.

pub mod ledger;
pub mod store;
