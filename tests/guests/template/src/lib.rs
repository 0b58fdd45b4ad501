//! The templates for plugins in Rust, one a world, so that their tests run and they are compiled as long as there are some. That for a
//! provider is the example plugins/examples/parcel-post.

#![allow(clippy::wildcard_imports, reason = "a template brings all of its world's names")]

#[path = "../../../../sdk/rust/template/src/cost_policy.rs.template"]
mod cost_policy;
#[path = "../../../../sdk/rust/template/src/engine.rs.template"]
mod engine;
#[path = "../../../../plugins/examples/parcel-post/src/lib.rs"]
mod provider;
#[path = "../../../../sdk/rust/template/src/retry_policy.rs.template"]
mod retry_policy;
#[path = "../../../../sdk/rust/template/src/lib.rs.template"]
mod router;
