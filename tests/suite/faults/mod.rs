//! Faults against promises: each row of `docs/guarantees.md` is a test here, and a random walk goes over them all.
//!
//! - [`world`]: one `up` with scripts whose effects a listener of the test counts; [`judge`] compares them with what
//!   callers are told and with the ledger; [`points`] are the named places where programs die.
//! - [`rows`]: the faults, one after the other; [`blows`] what several of them do. [`walk`]: drawn from a seed, in any order; [`schedule`] what is drawn,
//!   [`manner`] the ways in which jobs are submitted, and taken back.
//! - [`ledgers`]: lost and restored; [`twins`]: a copy of an agent; [`versions`]: programs of other versions.
//! - [`link`]: a bad connection; [`replay`]: a broker that says everything again; [`disk`]: file systems of a test's own.
//! - [`table`]: the document.
//!
//! A new row is one entry of the list in [`rows`]: its name, its words for the table, and a function over a [`world::World`].

mod blows;
mod disk;
mod judge;
mod ledgers;
mod link;
mod manner;
pub mod points;
mod replay;
mod rows;
mod schedule;
mod table;
mod twins;
mod versions;
mod walk;
mod world;
