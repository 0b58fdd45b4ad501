//! A simulated provider with the APIs of OpenAI and of Anthropic.
//!
//! It is strict like the real thing (field names, statuses, error bodies, limits) and it keeps the bill, so that what
//! traffic cost is measured at the provider instead of believed. It comes as a library, for tests in the same process,
//! and as the binary `provider-sim`.
//!
//! Reading order: [`Sim`] builds a [`Provider`], the core without sockets (request and time in, response out);
//! [`Server`] puts it on a port. Inside, `provider.rs` shows the life of a call, `realtime.rs` and `batches.rs` do the
//! work on OpenAI's side, `anthropic.rs` on Anthropic's, `bill.rs` charges for it. `engine.rs` makes
//! it a self-hosted engine instead.
//!
//! What a client can check without asking the simulator:
//! - the answer to a prompt is a function of model and prompt: [`expected_answer`], [`expected_embedding`];
//! - tokens are counted by [`count_tokens`];
//! - prices are those of [`price_of`].
//!
//! Time is provider time ([`SimTime`]), which a [`Clock`] derives from real time or which a test advances by hand.
//! Nothing inside sleeps: what a batch has become is worked out from the time when somebody asks.

mod admin;
mod answer;
mod anthropic;
mod batches;
mod bill;
mod clock;
mod config;
mod dialect;
mod embeddings;
mod engine;
mod error;
mod faults;
mod files;
mod ids;
mod multipart;
mod pace;
mod pagination;
mod prices;
mod prompt_cache;
mod provider;
mod quota;
mod realtime;
mod reply;
mod responses;
mod route;
mod scenario;
mod server;
mod sse;
mod stalls;
mod wire;
mod work;

pub use answer::{Answer, Finish, answer, count_tokens, expected_answer, expected_embedding};
pub use bill::{Bill, BillLine, ExecutionKey, Executions, Usage, execution_key};
pub use clock::{Clock, SimTime};
pub use config::{Builder, Limits, Pace, RealtimeLimits, Sim, Timing};
pub use engine::{
    EngineAnswer, EngineModel, EngineOptions, EngineStats, EngineStatus, Prompt, Rejection, Submission,
};
pub use faults::{
    BatchFault, BatchRule, Fault, FaultControl, FaultOrder, Faults, HttpRule, ItemFault, ItemRule, Target,
    TargetGroup,
};
pub use prices::{Mode, PicoDollars, Prices, price_of};
pub use provider::Provider;
pub use reply::{Delivery, SimBody, SimResponse};
pub use route::Endpoint;
pub use scenario::{NotSold, Scenario};
pub use server::{Handle, Server};
pub use stalls::Stall;
