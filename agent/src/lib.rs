//! The agent: pulls tasks into an isolated zone, runs them in a sandbox, reports.
//!
//! Rooms: [`config`] is what was configured, checked; [`delivery`] remembers and decides, and starts no
//! process; [`sandbox`] isolates and knows nothing of the broker; [`script`] is what a script is given and
//! how it answers; [`kept`] holds work folders of failed runs; [`local`] is what people ask on the host; [`runtime`] is the loop that joins them.

pub mod config;
pub mod delivery;
pub mod kept;
pub mod local;
pub mod runtime;
pub mod sandbox;
pub mod script;
