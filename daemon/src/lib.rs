//! offpeak: a batch gateway daemon for LLM traffic.
//!
//! The modules stand in reading order, which is also the direction in which they use each other: a module uses only what
//! stands after it, and the crates below (`offpeak-host`, `offpeak-store`, `offpeak-core`). ARCHITECTURE.md beside this
//! crate tells the life of a request with the names of these files.

pub mod cli;
pub mod author;
pub mod demo;
pub mod asking;
pub mod app;
pub mod operate;
pub mod watch;
pub mod listen;
pub mod workers;
pub mod tls;
pub mod admin;
pub mod ingress;
pub mod jobs;
pub mod route;
pub mod dispatch;
pub mod defer;
pub mod lanes;
pub mod batch;
pub mod idle;
pub mod rescue;
pub mod overdue;
pub mod outcomes;
pub mod delivery;
pub mod gateway;
pub mod room;
pub mod job_book;
pub mod history;
pub mod sent;
pub mod journey;
pub mod health;
pub mod beside;
pub mod held;
pub mod lane_book;
pub mod tenant;
pub mod gather;
pub mod envelope;
pub mod rewrite;
pub mod backends;
pub mod lost_offers;
pub mod fallback;
pub mod retries;
pub mod costs;
pub mod engine;
pub mod turns;
pub mod admission;
pub mod browser;
pub mod budgets;
pub mod alerts;
pub mod webhook;
pub mod reply;
pub mod upstream;
pub mod jsonl;
pub mod documents;
pub mod spool;
pub mod merge;
pub mod members;
pub mod body;
pub mod telemetry;
pub mod plugins;
pub mod blocking;
pub mod clock;
pub mod config;
