//! The controller.

pub mod broker;
pub mod supervise;
