//! What a component is, before any of its code has run: for those who write plugins, and for those who are handed one.

use std::{fmt, sync::Arc};

use crate::{
    bindings,
    engine::Engine,
    error::HostError,
    imports,
    load::{Component, Source},
    plugin::{World, fits},
};

/// A world of `wit/` that the daemon calls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WorldName {
    /// Decides how a request is run.
    Router,
    /// A provider's wire formats and batch protocol.
    Provider,
    /// What a self-hosted engine's metrics mean.
    Engine,
    /// What a failed attempt means.
    RetryPolicy,
    /// What an outcome cost.
    CostPolicy,
}

impl WorldName {
    /// All of them, each with the interface that its components export.
    const ALL: [(Self, &'static str); 5] = [
        (Self::Router, bindings::router::Router::EXPORT),
        (Self::Provider, bindings::provider::Provider::EXPORT),
        (Self::Engine, bindings::adapter::Engine::EXPORT),
        (Self::RetryPolicy, bindings::retry::RetryPolicy::EXPORT),
        (Self::CostPolicy, bindings::cost::CostPolicy::EXPORT),
    ];

    /// As wit/ spells it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Router => bindings::router::Router::NAME,
            Self::Provider => bindings::provider::Provider::NAME,
            Self::Engine => bindings::adapter::Engine::NAME,
            Self::RetryPolicy => bindings::retry::RetryPolicy::NAME,
            Self::CostPolicy => bindings::cost::CostPolicy::NAME,
        }
    }
}

impl fmt::Display for WorldName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a component imports.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Import {
    /// The interface.
    pub name: String,
    /// The daemon has it.
    pub offered: bool,
}

/// A component, looked at from outside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inspection {
    /// Size of the `.wasm`.
    pub bytes: usize,
    /// SHA-256 of the `.wasm`, in lower-case hex.
    pub sha256: Arc<str>,
    /// What it wants to be given.
    pub imports: Vec<Import>,
    /// What it has to offer.
    pub exports: Vec<String>,
    /// The worlds of the daemon that it may be a plugin of, by what it exports.
    pub worlds: Vec<WorldName>,
}

impl Engine {
    /// Looks at a component; none of its code runs.
    pub fn inspect(&self, plugin: &str, source: Source<'_>) -> Result<Inspection, HostError> {
        let component = self.load(plugin, source)?;
        let exports = component.exports(self);
        let worlds =
            WorldName::ALL.iter().filter(|(_, export)| exports.iter().any(|name| fits(name, export)));
        Ok(Inspection {
            bytes: component.bytes(),
            sha256: component.sha256().into(),
            imports: component.imports(self),
            worlds: worlds.map(|(world, _)| *world).collect(),
            exports,
        })
    }
}

impl Component {
    pub(crate) fn imports(&self, engine: &Engine) -> Vec<Import> {
        let names = self.compiled.component_type();
        let names = names.imports(engine.wasmtime()).map(|(name, _)| name.to_owned());
        let offered = |name: &str| imports::OFFERED_NAMES.iter().any(|offered| fits(name, offered));
        names.map(|name| Import { offered: offered(&name), name }).collect()
    }

    pub(crate) fn exports(&self, engine: &Engine) -> Vec<String> {
        let names = self.compiled.component_type();
        names.exports(engine.wasmtime()).map(|(name, _)| name.to_owned()).collect()
    }
}
