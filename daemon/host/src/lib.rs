//! The plugin host: everything that knows wasmtime, behind typed functions.
//!
//! A plugin is a WebAssembly component that implements one world of `wit/`. [`Engine`] compiles it (once, and keeps the
//! machine code on disk), [`RouterPlugin`] and [`ProviderPlugin`] link it, ask it to describe itself and call it. All
//! functions are synchronous and return within the time that [`Limits`] gives them; whoever calls decides on which
//! thread that is.
//!
//! What holds for every call:
//! - it is bounded in memory, tables, time, log lines and the size of its answer;
//! - a trap, a time-out or a wrong answer is a [`PluginError`] that names the plugin; the instance is thrown away, the
//!   next call gets a fresh one, and nothing else in the process notices;
//! - a plugin that keeps failing is taken out of use for a while ([`PluginHealth`]), and its calls fail at once;
//! - a plugin can reach nothing but `log`, `config` and `now`.
//!
//! Reading order:
//! - [`engine`]: wasmtime's settings and the ticker that ends calls;
//! - `load`, `cache`, `precompiled`: from a `.wasm` file to machine code, and the files that keep it;
//! - [`limits`]: what a call may use up;
//! - `patience`: when a call is over time;
//! - `slowness`: which plugins take long;
//! - `imports`: what a plugin may call;
//! - [`inspect`]: what a component is, before any of its code has run;
//! - `pool`, [`health`], `times`, `plugin`: the life of one call, the same for every world;
//! - [`router`], [`provider`], [`adapter`], [`retry`], [`cost`]: one file a world, the typed functions;
//! - [`values`]: the records that travel, as the WIT files define them;
//! - [`error`]: what can go wrong.

pub mod adapter;
pub mod cost;
pub mod engine;
pub mod error;
pub mod health;
pub mod inspect;
pub mod limits;
pub mod provider;
pub mod retry;
pub mod router;
pub mod values;

mod bindings;
mod cache;
mod imports;
mod load;
mod patience;
mod plugin;
mod pool;
mod precompiled;
mod slowness;
mod times;

pub use adapter::EnginePlugin;
pub use cost::CostPlugin;
pub use engine::{Engine, EngineOptions};
pub use error::{HostError, PluginError, PluginErrorKind};
pub use health::PluginHealth;
pub use inspect::{Import, Inspection, WorldName};
pub use limits::Limits;
pub use load::{Component, Source, read_file};
pub use plugin::{AnyPlugin, PluginReport};
pub use provider::ProviderPlugin;
pub use retry::RetryPlugin;
pub use router::RouterPlugin;
pub use times::PluginTimes;
