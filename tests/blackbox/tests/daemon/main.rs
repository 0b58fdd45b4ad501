//! The daemon as its users and its provider meet it: over HTTP, with the simulated provider in the same process.
//!
//! Nothing here looks inside. What a request cost, and how often it ran, is what the provider's bill says.

#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a helper that fails fails its test")]

mod admin;
mod again;
mod anthropic;
mod background;
mod bent;
mod breaker;
mod chaos;
mod checked;
mod costs;
mod credential;
mod described;
mod dialects;
mod door;
mod engines;
mod escalate;
mod expired;
mod isolation;
mod jobs;
mod ladder;
mod limits;
mod means;
mod lost;
mod message_batches;
mod models;
mod partial;
mod plugins;
mod refused;
mod removed;
mod reloading;
mod rescue;
mod responses;
mod restart;
mod results;
mod retries;
mod rig;
mod shares;
mod tenants;
mod tickets;
mod translated;
mod upstream;
mod wire;
