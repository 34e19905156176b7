//! Delivery on the agent's side: what is remembered, what is taken, what is owed.
//!
//! - [`journal`]: the agent's durable memory of attempts and of results without a receipt, with
//!   the incarnation and the counter.
//! - [`memory`]: the same in memory, so that a decision needs no disk.
//! - [`admit`]: what to do with a dispatch, a pure decision; [`turn`]: whether work that waits goes first.
//! - [`room`]: whether there is room on the disk for another run; [`pause`] how long to ask for nothing when runs cannot
//!   be started.
//!
//! This room starts no process and knows nothing of sandboxes.

pub mod admit;
pub mod journal;
pub mod memory;
pub mod pause;
pub mod room;
pub mod turn;
