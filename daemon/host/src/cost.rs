//! The world `cost-policy`: what an outcome cost, and whom it is charged to.

use crate::{
    Engine, HostError, Limits, PluginError, Source,
    bindings::cost::{CostPolicy, CostPolicyPre},
    plugin::{Pace, Plugin, plugin_of},
    values::cost::{Charge, Description, Outcome, Sale},
};

plugin_of!(CostPlugin, world CostPolicy, "cost-policy", "offpeak:plugin/costing@0.1.0", CostPolicyPre);

/// A plugin of the world `cost-policy`, loaded and ready. Calls may come from many threads at once.
pub struct CostPlugin {
    plugin: Plugin<CostPolicy>,
    description: Description,
}

impl CostPlugin {
    /// Loads a cost policy and asks it to describe itself. `config_json` is the plugin's own table as the text of one JSON
    /// object; `now_ms` is the time in milliseconds since 1970.
    pub fn load(
        engine: &Engine,
        name: &str,
        source: Source<'_>,
        config_json: String,
        limits: Limits,
        now_ms: u64,
    ) -> Result<Self, HostError> {
        let plugin = Plugin::<CostPolicy>::load(engine, name, source, config_json, limits)?;
        let description = plugin.call(
            "describe",
            Pace::Step,
            now_ms,
            |store, world| world.offpeak_plugin_costing().call_describe(store),
            |_| Ok(()),
        )?;
        Ok(Self { plugin, description })
    }

    /// What outcomes of one sale cost: one charge for each, in order, and none of them below zero.
    pub fn assess(
        &self,
        sale: &Sale<'_>,
        outcomes: &[Outcome<'_>],
        now_ms: u64,
    ) -> Result<Vec<Charge>, PluginError> {
        let answer = self.plugin.call(
            "assess",
            Pace::Step,
            now_ms,
            |store, world| world.offpeak_plugin_costing().call_assess(store, sale.clone(), outcomes),
            |answer| answer.as_ref().map_or(Ok(()), |charges| check(charges, outcomes.len())),
        )?;
        answer.map_err(|reason| self.plugin.refused("assess", &reason))
    }
}

fn check(charges: &[Charge], expected: usize) -> Result<(), String> {
    if charges.len() != expected {
        return Err(format!("it made {} charges for {expected} outcomes", charges.len()));
    }
    if charges.iter().any(|charge| charge.cost < 0 || charge.realtime_cost < 0) {
        return Err("a cost is below zero".to_owned());
    }
    if charges.iter().any(|charge| charge.tenant.is_empty() || charge.tenant.len() > 256) {
        return Err("a tenant's name is empty or longer than 256 bytes".to_owned());
    }
    Ok(())
}
