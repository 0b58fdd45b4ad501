//! The log: an append-only sequence of records in numbered segment files. It is the truth; the index is derived from it.

pub(crate) mod read;
pub(crate) mod record;
pub(crate) mod recover;
pub(crate) mod segment;
pub(crate) mod writer;

pub(crate) use record::{Change, Ended, Location, Logged, Position, Request, Requeued};
