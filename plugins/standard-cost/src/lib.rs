//! The default cost policy: list prices for what the provider counted, charged to the tenant whose request it was.
//!
//! How tokens become money is in [`charge`] and [`Prices`], pure functions; this file is the border to the daemon.

mod charge;
mod config;
mod prices;

pub use charge::charge;
pub use config::{Config, Hourly};
pub use prices::{Prices, Tariff};

use offpeak_plugin::{
    Configured,
    cost_policy::{Charge, CostPolicy, Description, Outcome, Sale},
};

static CONFIG: Configured<Config> = Configured::new();

struct StandardCost;

impl CostPolicy for StandardCost {
    fn describe() -> Description {
        CONFIG.get(); // a wrong configuration is refused when the plugin is loaded
        Description { name: "standard-cost".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }

    fn assess(sale: Sale, outcomes: Vec<Outcome>) -> Result<Vec<Charge>, String> {
        let prices = Prices::of(&sale);
        Ok(outcomes.into_iter().map(|outcome| charge(&sale, &prices, outcome, CONFIG.get())).collect())
    }
}

offpeak_plugin::export_cost_policy!(StandardCost);
