//! The benchmarks: what offpeak costs in the path, at the disk and in memory, beside what it is measured against.
//!
//! Each benchmark is one file with a `run` that returns its figures; figures are written as Markdown and as JSON by
//! `report`. Nothing here is a test: what is measured is reported, whatever it is.
//!
//! | file | holds |
//! | --- | --- |
//! | `overhead` | offpeak in the path beside nginx, a bare proxy and the straight way, plain and streaming |
//! | `bare` | that bare proxy, a process of its own |
//! | `plugin` | what warm calls of plugins cost, and their start |
//! | `hostile` | what others feel of a stranger's hostile router |
//! | `durable` | durable acceptance, the figures of `ingest` in one report |
//! | `ingest` | the store beside the bare disk |
//! | `jobs` | a job of 50,000 requests through its whole path, and how fast input is checked |
//! | `memory` | resident memory with much waiting: queued requests, held calls |
//! | `engine` | an engine of one's own: merging, a job, mixed load, a day of bursts, length buckets |
//! | `targets` | the daemon and nginx as processes, with their configurations |
//! | `upstream` | the fast provider that stands behind all of them, a process of its own |
//! | `load` | the load generator |
//! | `process`, `machine` | what the operating system tells of processes and of the machine |

pub mod bare;
pub mod durable;
pub mod engine;
pub mod error;
pub mod hostile;
pub mod ingest;
pub mod jobs;
pub mod load;
pub mod machine;
pub mod memory;
pub mod overhead;
pub mod plugin;
pub mod process;
pub mod report;
pub mod talk;
pub mod targets;
pub mod upstream;
