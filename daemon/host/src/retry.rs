//! The world `retry-policy`: what a failed attempt means.

use wasmtime::{Store, component::InstancePre};

use crate::{
    Engine, HostError, Limits, PluginError, PluginHealth, PluginReport, Source,
    bindings::retry::{RetryPolicy, RetryPolicyPre},
    imports::State,
    plugin::{Pace, Plugin, World},
    values::retry::{Attempt, Description, Meaning},
};

impl World for RetryPolicy {
    const NAME: &'static str = "retry-policy";
    const EXPORT: &'static str = "offpeak:plugin/judging@0.1.0";
    type Pre = RetryPolicyPre<State>;

    fn check(linked: InstancePre<State>) -> wasmtime::Result<Self::Pre> {
        RetryPolicyPre::new(linked)
    }

    fn instantiate(checked: &Self::Pre, store: &mut Store<State>) -> wasmtime::Result<Self> {
        checked.instantiate(store)
    }
}

/// A plugin of the world `retry-policy`, loaded and ready. Calls may come from many threads at once.
pub struct RetryPlugin {
    plugin: Plugin<RetryPolicy>,
    description: Description,
}

impl RetryPlugin {
    /// Loads a retry policy and asks it to describe itself. `config_json` is the plugin's own table as the text of one JSON
    /// object; `now_ms` is the time in milliseconds since 1970.
    pub fn load(
        engine: &Engine,
        name: &str,
        source: Source<'_>,
        config_json: String,
        limits: Limits,
        now_ms: u64,
    ) -> Result<Self, HostError> {
        let plugin = Plugin::<RetryPolicy>::load(engine, name, source, config_json, limits)?;
        let description = plugin.call(
            "describe",
            Pace::Step,
            now_ms,
            |store, world| world.offpeak_plugin_judging().call_describe(store),
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

    /// What the plugin said about itself when it was loaded.
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

    /// What an attempt that did not succeed means.
    pub fn judge(&self, attempt: &Attempt<'_>, now_ms: u64) -> Result<Meaning, PluginError> {
        self.plugin.call(
            "judge",
            Pace::Request,
            now_ms,
            |store, world| world.offpeak_plugin_judging().call_judge(store, attempt.clone()),
            |_| Ok(()),
        )
    }
}
