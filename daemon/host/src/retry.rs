//! The world `retry-policy`: what a failed attempt means.

use crate::{
    Engine, HostError, Limits, PluginError, Source,
    bindings::retry::{RetryPolicy, RetryPolicyPre},
    plugin::{Pace, Plugin, plugin_of},
    values::retry::{Attempt, Description, Meaning},
};

plugin_of!(RetryPlugin, world RetryPolicy, "retry-policy", "offpeak:plugin/judging@0.1.0", RetryPolicyPre);

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
