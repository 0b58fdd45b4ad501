//! What offpeak decides, as pure functions: state + event + time in, state + effects out.
//!
//! This crate holds no socket, clock, file or random source, and its manifest names no crate that has one. One decider
//! a file.

pub mod batch;
pub mod breaker;
pub mod buckets;
pub mod budget;
pub mod calibrate;
pub mod depart;
pub mod escalate;
pub mod extent;
pub mod fair;
pub mod gate;
pub mod job;
pub mod lane;
pub mod ledger;
pub mod merge;
pub mod money;
pub mod offers;
pub mod outcome;
pub mod pace;
pub mod price;
pub mod quota;
pub mod reserve;
pub mod retry;
pub mod room;
pub mod scheduler;
pub mod sizing;
pub mod sla;
pub mod tempo;
pub mod turnaround;
pub mod usage;
pub mod words;
