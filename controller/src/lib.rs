//! The controller.

pub mod ledger;
