//! The world `engine`: what a self-hosted engine's metrics mean.

use crate::{
    Engine, HostError, Limits, PluginError, Source,
    bindings::adapter::{Engine as Adapter, EnginePre},
    plugin::{Pace, Plugin, plugin_of},
    values::adapter::{Description, Load, Look, Sight, UnderWay},
};

/// Things that are read at one look, at most, as `wit/engine.wit` promises.
const LOOKS_MAX: usize = 8;

plugin_of!(EnginePlugin, world Adapter, "engine", "offpeak:plugin/adapting@0.1.0", EnginePre);

/// A plugin of the world `engine`, loaded and ready. Calls may come from many threads at once.
pub struct EnginePlugin {
    plugin: Plugin<Adapter>,
    description: Description,
    looks: Vec<Look>,
}

impl EnginePlugin {
    /// Loads an engine adapter, asks it to describe itself and what there is to read. `config_json` is the plugin's own
    /// table as the text of one JSON object; `now_ms` is the time in milliseconds since 1970.
    pub fn load(
        engine: &Engine,
        name: &str,
        source: Source<'_>,
        config_json: String,
        limits: Limits,
        now_ms: u64,
    ) -> Result<Self, HostError> {
        let plugin = Plugin::<Adapter>::load(engine, name, source, config_json, limits)?;
        let description = plugin.call(
            "describe",
            Pace::Step,
            now_ms,
            |store, world| world.offpeak_plugin_adapting().call_describe(store),
            |_| Ok(()),
        )?;
        let looks = plugin.call(
            "looks",
            Pace::Step,
            now_ms,
            |store, world| world.offpeak_plugin_adapting().call_looks(store),
            |looks: &Vec<Look>| match looks.len() {
                ..=LOOKS_MAX => Ok(()),
                many => Err(format!(
                    "it wants to read {many} things at each look, which is more than {LOOKS_MAX}"
                )),
            },
        )?;
        Ok(Self { plugin, description, looks })
    }

    /// What there is to read at each look, as the plugin said when it was loaded.
    pub fn looks(&self) -> &[Look] {
        &self.looks
    }

    /// What was read means: one sight for each of [`Self::looks`], in order.
    pub fn interpret(
        &self,
        sights: &[Sight<'_>],
        under_way: UnderWay,
        now_ms: u64,
    ) -> Result<Load, PluginError> {
        self.plugin
            .call(
                "interpret",
                Pace::Step,
                now_ms,
                |store, world| world.offpeak_plugin_adapting().call_interpret(store, sights, under_way),
                |_| Ok(()),
            )?
            .map_err(|reason| self.plugin.refused("interpret", &reason))
    }
}
