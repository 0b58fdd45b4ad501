//! The simulator over HTTP, as clients meet it. Provider time is moved by hand, so nothing here waits.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod batches;
mod engine;
mod faults;
mod files;
mod message_batches;
mod messages;
mod program;
mod realtime;
mod rig;
mod scenarios;
