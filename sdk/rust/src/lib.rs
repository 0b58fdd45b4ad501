//! Write [offpeak](https://github.com/offpeak/offpeak) plugins in Rust.
//!
//! A plugin is a WebAssembly component that takes one role. It does no I/O: it gets values and returns values, and the
//! daemon acts on them. This crate brings the role as a trait, a macro that makes a component of it, the plugin's own
//! configuration as a type, the daemon's log and its clock.
//!
//! | role | feature | trait | macro |
//! | --- | --- | --- | --- |
//! | routing policy | `router` | [`router::Router`] | [`export_router!`] |
//! | provider | `provider` | [`provider::Provider`] | [`export_provider!`] |
//! | retry policy | `retry-policy` | [`retry_policy::RetryPolicy`] | [`export_retry_policy!`] |
//! | engine adapter | `engine` | [`engine::Engine`] | [`export_engine!`] |
//! | cost policy | `cost-policy` | [`cost_policy::CostPolicy`] | [`export_cost_policy!`] |
//!
//! # A router
//!
//! This is all of it. It sends whatever can wait to the cheapest offer, and the rest to the next router.
//!
#![cfg_attr(feature = "router", doc = "```")]
#![cfg_attr(not(feature = "router"), doc = "```text")]
//! use offpeak_plugin::router::*;
//!
//! struct Cheapest;
//!
//! impl Router for Cheapest {
//!     fn describe() -> Description {
//!         Description { name: "cheapest".into(), version: "1".into(), body: BodyNeed::None, headers: vec![] }
//!     }
//!
//!     fn route(envelope: Envelope, candidates: Vec<Candidate>) -> Decision {
//!         if envelope.sla == Sla::Realtime {
//!             return Decision::Pass;
//!         }
//!         let offers = candidates.iter().flat_map(|c| c.offers.iter().map(move |offer| (c, offer)));
//!         let Some((at, offer)) = offers.min_by_key(|(_, offer)| offer.price_permille) else {
//!             return Decision::Pass;
//!         };
//!         let (backend, offer) = (at.backend.clone(), offer.name.clone());
//!         Decision::Choose(Choice { backend, offer, within_ms: None, lane: String::new() })
//!     }
//! }
//!
//! offpeak_plugin::export_router!(Cheapest);
//! # fn main() {}
//! ```
//!
//! How to build it and name it in the daemon's configuration is in the README beside this crate's manifest.

extern crate self as offpeak_plugin;

#[cfg(feature = "provider")]
pub mod batch;
#[doc(hidden)]
pub mod bindings;
mod config;
#[cfg(feature = "cost-policy")]
pub mod cost_policy;
mod duration;
#[cfg(feature = "engine")]
pub mod engine;
mod host;
#[cfg(feature = "provider")]
pub mod provider;
#[cfg(feature = "retry-policy")]
pub mod retry_policy;
#[cfg(feature = "router")]
pub mod router;

#[doc(inline)]
pub use bindings::base::offpeak::plugin::types::{DidItRun, Header, Mode, Offer};
pub use config::{ConfigError, Configured, config, parse_config};
pub use duration::Duration;
#[doc(hidden)]
pub use host::log_panics;
pub use host::{Level, log, now_ms};

/// The README's example is compiled as well.
#[cfg(all(doctest, feature = "router"))]
#[doc = include_str!("../README.md")]
struct Readme;
