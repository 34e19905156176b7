//! What goes into the ledger and what comes out of it. Not the wire's types, except for names, ids, keys and
//! states. Times are Unix milliseconds.

mod answers;
mod rows;
mod told;

pub use answers::*;
pub use rows::*;
pub use told::*;
