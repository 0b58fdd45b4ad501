//! What offpeak keeps: lanes of deferred requests, batches, outcomes.
//!
//! - **The log is the truth.** Every change is a record at the end of an append-only segment file; it is acknowledged
//!   after one sync for all that arrived meanwhile ([group commit](Store::append)). Bodies lie in the log and nowhere
//!   else.
//! - **The index follows.** A second thread applies the records to redb, in the log's order and by nothing but the
//!   log. It is made durable now and then, together with the position up to which it has the log; after a crash it is
//!   brought up to date from there. Readers wait until it has what was durable when they asked.
//! - **A lane never reuses a position**, so a request's place is its identity. A retry is a new entry that points to
//!   the request's body where it lies.
//! - **Whole files go.** A segment is deleted when nothing in it is unfinished and its answers were kept long enough.
//!
//! Operation by operation: [`Store`]. One file each: `engine` (plan, write, sync), `planner` (places, duplicates),
//! `log/` (records, segments, recovery), `keeper` (apply, checkpoint, sweep, heal), `index/` (tables and queries),
//! `threads` (who runs when), `audit` (is all of it whole), [`disk`] (what is asked of a disk, so that a simulation can put faults there).

mod audit;
mod codec;
pub mod disk;
mod engine;
mod error;
mod index;
mod keeper;
mod log;
mod migrate;
mod open;
mod ops;
mod options;
mod planner;
mod shared;
mod store;
#[cfg(test)]
mod tests;
mod threads;
mod values;

pub use error::StoreError;
pub use options::{OnAppended, Options};
pub use store::Store;
pub use values::{
    Appended, Audit, BatchEnd, BatchRecord, BodyAt, Chunk, Compacted, Counts, Damaged, Document, Entry,
    Finished, FinishedChunk, Idempotency, IdleLane, Kind, LaneState, NewBatch, NewOutcome, NewRequest, Order,
    Outcome, Quarantined, Recorded, Recovered, Selection, Standing, Stats, Swept, Tally, Unfinished, Verdict,
    Waiting,
};

use sha2::{Digest, Sha256};

/// The hash by which a repeated body is recognised: the first 64 bits of its SHA-256. The same on every machine and in
/// every version, because it is stored.
pub fn body_hash(body: &[u8]) -> u64 {
    let digest = Sha256::digest(body);
    digest.iter().take(8).fold(0, |hash, &byte| (hash << 8) | u64::from(byte))
}
