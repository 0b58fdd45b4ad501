//! What a configuration that is read again changes in a daemon that runs.

use std::collections::BTreeMap;
use std::sync::Arc;

use offpeak_core::budget::Period;
use offpeak_core::scheduler::Event;
use offpeak_core::words::Timestamp;
use offpeak_store::{Store, StoreError};

use crate::alerts;
use crate::blocking::blocking;
use crate::budgets::{Before, Purse};
use crate::config::Config;
use crate::costs::book::{self, BookError};
use crate::costs::report::{self, Dimension, Query};
use crate::gateway::Gateway;
use crate::plugins::LoadError;
use crate::tls::Tls;

/// Takes in a configuration that was read again, as far as that goes without a restart: tenants with their keys, limits and
/// budgets, the plugins, the price book, and the TLS files.
#[derive(Clone)]
pub struct Reloads {
    pub(super) gateway: Arc<Gateway>,
    pub(super) tls: Option<Arc<Tls>>,
}

/// A configuration was right by itself, and something that it names was not.
#[derive(Debug, thiserror::Error)]
pub enum ReloadError {
    /// The price file; nothing has changed.
    #[error(transparent)]
    Prices(#[from] BookError),
    /// A plugin; nothing has changed.
    #[error("{0}. Nothing has changed")]
    Plugins(#[from] LoadError),
    /// The ledger: what budgets have left is not known.
    #[error("what was spent could not be read from the ledger: {0}. Nothing has changed")]
    Store(#[from] StoreError),
}

impl Reloads {
    /// The configuration that was read again was not taken in. Operators hear of it where they reload plugins.
    pub fn refused(&self, why: String) {
        *self.gateway.refused_configuration.lock() = Some(why);
    }

    /// From now on this configuration holds.
    pub async fn apply(&self, config: &Config) -> Result<(), ReloadError> {
        let book = book::read(config.costs.prices.as_deref())?;
        let models = book.len();
        let now = self.gateway.clock.now();
        let unknown = self.gateway.tenants.meet(&config.access, now);
        remember_spending(unknown, &self.gateway.store, now, Purse::since).await?;
        self.gateway.reload_plugins(Some(&config.plugins)).await?;
        self.gateway.costs.set_book(book);
        self.gateway.tenants.set(&config.access, self.gateway.clock.now());
        // What waited for its rate or for money may leave by the new ones.
        let gateway = &self.gateway;
        blocking(|| gateway.lanes.terms_changed(&gateway.backends, None, gateway.clock.now()));
        self.gateway.lanes.tell(Event::Tick);
        if let Some(tls) = &self.tls {
            tls.reload();
        }
        *self.gateway.refused_configuration.lock() = None;
        let tenants = config.access.tenants().len();
        tracing::info!(
            tenants,
            models,
            "the configuration was read again; what is not of tenants, plugins, prices or TLS waits for a restart"
        );
        Ok(())
    }
}

/// Tells purses what the ledger has from before they began to count.
pub(super) async fn remember_spending(
    purses: Vec<Arc<Purse>>,
    store: &Store,
    now: Timestamp,
    since: impl Fn(&Purse) -> Timestamp,
) -> Result<(), StoreError> {
    let mut alike: BTreeMap<Timestamp, Vec<Arc<Purse>>> = BTreeMap::new();
    for purse in purses {
        alike.entry(since(&purse)).or_default().push(purse);
    }
    let told = if alike.is_empty() { Vec::new() } else { alerts::told_before(store).await? };
    for (to, purses) in alike {
        let mut sums = Vec::new();
        for period in [Period::Day, Period::Month] {
            let query = Query { by: vec![Dimension::Tenant], from: period.start(now), to, tenant: None };
            // A purse may have begun before this period did.
            let rows = if query.from < to { report::sum(store, &query).await?.rows } else { Vec::new() };
            sums.push((period, rows));
        }
        for purse in purses {
            let name = Some(purse.tenant().as_str());
            let before = sums.iter().filter_map(|(period, rows)| {
                let (_, sums) = rows.iter().find(|(row, _)| row.first().map(String::as_str) == name)?;
                let told = told.iter().find_map(|told| told.percent_of(purse.tenant(), *period, now));
                Some(Before { period: *period, spent: sums.cost, told: told.unwrap_or(0) })
            });
            purse.remember(&before.collect::<Vec<_>>(), now);
        }
    }
    Ok(())
}
