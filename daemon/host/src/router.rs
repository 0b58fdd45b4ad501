//! The world `router`: decides how a request is run.

use wasmtime::{Store, component::InstancePre};

use crate::{
    Engine, HostError, Limits, PluginError, PluginHealth, PluginReport, Source,
    bindings::router::{Router, RouterPre},
    imports::State,
    plugin::{Pace, Plugin, World},
    values::router::{Candidate, Decision, Description, Envelope},
};

impl World for Router {
    const NAME: &'static str = "router";
    const EXPORT: &'static str = "offpeak:plugin/routing@0.1.0";
    type Pre = RouterPre<State>;

    fn check(linked: InstancePre<State>) -> wasmtime::Result<Self::Pre> {
        RouterPre::new(linked)
    }

    fn instantiate(checked: &Self::Pre, store: &mut Store<State>) -> wasmtime::Result<Self> {
        checked.instantiate(store)
    }
}

/// A plugin of the world `router`, loaded and ready. Calls may come from many threads at once; to swap a plugin, load
/// the new one beside it and replace the handle.
pub struct RouterPlugin {
    plugin: Plugin<Router>,
    description: Description,
}

impl RouterPlugin {
    /// Loads a router and asks it to describe itself. `config_json` is the plugin's own table as the text of one JSON
    /// object; `now_ms` is the time in milliseconds since 1970.
    pub fn load(
        engine: &Engine,
        name: &str,
        source: Source<'_>,
        config_json: String,
        limits: Limits,
        now_ms: u64,
    ) -> Result<Self, HostError> {
        let plugin = Plugin::<Router>::load(engine, name, source, config_json, limits)?;
        let description = plugin.call(
            "describe",
            Pace::Step,
            now_ms,
            |store, world| world.offpeak_plugin_routing().call_describe(store),
            |_| Ok(()),
        )?;
        Ok(Self { plugin, description })
    }

    /// The plugin's name in the configuration.
    pub fn name(&self) -> &str {
        self.plugin.name()
    }

    /// SHA-256 of the component, in hex: which code is at work.
    pub fn sha256(&self) -> &str {
        self.plugin.sha256()
    }

    /// What the plugin said about itself when it was loaded: above all, how much of a request it wants to see.
    pub fn description(&self) -> &Description {
        &self.description
    }

    /// How the plugin has been doing.
    pub fn health(&self) -> PluginHealth {
        self.plugin.health()
    }

    /// The plugin as operators see it.
    pub fn report(&self) -> PluginReport {
        self.plugin.report()
    }

    /// The other is the same code, with the same name, settings and limits.
    pub fn is_like(&self, other: &Self) -> bool {
        self.plugin.is_like(&other.plugin)
    }

    /// Decides how one request is run. Whether a chosen backend and offer are among the candidates is for the caller to
    /// check.
    pub fn route(
        &self,
        envelope: &Envelope<'_>,
        candidates: &[Candidate<'_>],
        now_ms: u64,
    ) -> Result<Decision, PluginError> {
        self.plugin.call(
            "route",
            Pace::Request,
            now_ms,
            |store, world| world.offpeak_plugin_routing().call_route(store, envelope.clone(), candidates),
            |_| Ok(()),
        )
    }
}
