//! Asks the cost policy, and holds the price book.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use offpeak_core::money::Money;
use offpeak_core::outcome::DidItRun;
use offpeak_core::price::PriceBook;
use offpeak_core::quota::Demand;
use offpeak_core::usage::Usage;
use offpeak_core::words::{Mode, TenantId, Timestamp};
use offpeak_host::CostPlugin;
use offpeak_host::values::cost;
use parking_lot::RwLock;

use super::{Charge, Purpose, Sale, Taken, Took};
use crate::plugins::{InUse, Reloaded};
use crate::telemetry::Metrics;

/// The cost policy, the one that stands in for it, and the price book.
pub struct Costs {
    /// The policy.
    pub policy: ArcSwap<InUse<CostPlugin>>,
    book: ArcSwap<PriceBook>,
    metrics: Arc<Metrics>,
    /// Makes ledger keys of one millisecond different.
    next: AtomicU64,
    /// Which policy and book these are: another number for each change.
    generation: AtomicU64,
    /// Models without a price that were complained of.
    unpriced: RwLock<std::collections::HashSet<String>>,
}

/// So many models without a price are complained of; clients choose the names.
const COMPLAINTS: usize = 100;

impl Costs {
    /// With a policy and a book. `run` is drawn anew at each start.
    pub fn new(policy: InUse<CostPlugin>, book: PriceBook, metrics: Arc<Metrics>, run: u64) -> Self {
        let next = AtomicU64::new(run);
        Self {
            policy: ArcSwap::from_pointee(policy),
            book: ArcSwap::from_pointee(book),
            metrics,
            next,
            generation: AtomicU64::new(0),
            unpriced: RwLock::default(),
        }
    }

    /// From now on these prices hold.
    pub fn set_book(&self, book: PriceBook) {
        self.book.store(Arc::new(book));
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// From now on this one is asked.
    pub fn replace(&self, fresh: InUse<CostPlugin>) -> Reloaded {
        let (policy, told) = fresh.replacing(&self.policy.load());
        self.policy.store(Arc::new(policy));
        self.generation.fetch_add(1, Ordering::AcqRel);
        told
    }

    /// A number that no other entry of this millisecond has.
    pub fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// What attempts of one sale cost: one charge for each, in order. If no policy can tell, they are charged nothing to
    /// their own tenants and marked as unpriced; what was counted is kept.
    pub fn charge<'a>(
        &self,
        sale: &Sale,
        taken: impl ExactSizeIterator<Item = &'a Taken> + Clone,
        now: Timestamp,
    ) -> Vec<Charge> {
        if taken.len() == 0 {
            return Vec::new();
        }
        self.assess(sale, taken.clone(), now).unwrap_or_else(|| taken.map(unpriced).collect())
    }

    /// What the first policy says that can tell.
    fn assess<'a>(
        &self,
        sale: &Sale,
        taken: impl Iterator<Item = &'a Taken>,
        now: Timestamp,
    ) -> Option<Vec<Charge>> {
        let book = self.book.load();
        let prices = book.find(&sale.provider, sale.model.as_str());
        let rates = prices.iter().flat_map(|prices| &prices.rates);
        let rates: Vec<_> =
            rates.map(|rate| cost::Rate { name: &rate.name, price: rate.price.to_i64() }).collect();
        let shown = shown_sale(sale, &rates);
        let outcomes: Vec<_> = taken.map(shown_outcome).collect();
        for policy in self.policy.load().each() {
            match policy.assess(&shown, &outcomes, now.0) {
                Ok(charges) => {
                    let charges: Vec<Charge> = charges.into_iter().map(charge).collect();
                    if charges.iter().any(|charge| !charge.priced) {
                        self.complain(sale);
                    }
                    return Some(charges);
                }
                Err(error) => {
                    self.metrics.plugin_failed(policy.name());
                    tracing::error!(plugin = policy.name(), %error, "a cost policy failed");
                }
            }
        }
        None
    }

    /// Whether there is a price for what is bought: the policy is asked once what a made-up answer would cost, and again when
    /// it or the book has changed.
    pub fn has_price(&self, sale: &Sale, now: Timestamp) -> bool {
        let generation = self.generation.load(Ordering::Acquire);
        if let Some((_, known)) = sale.priced.lock().filter(|(of, _)| *of == generation) {
            return known;
        }
        let answer = Taken {
            tenant: TenantId::from("nobody"),
            purpose: Purpose::First,
            ran: DidItRun::Ran,
            status: Some(200),
            tier: None,
            usage: Some(Usage { input: 1000, output: 1000, ..Usage::default() }),
            estimated: true,
            wasted: false,
            took: Took::NO_TIME,
        };
        // A policy that fails is asked again by the next request.
        let Some(charges) = self.assess(sale, std::iter::once(&answer), now) else { return false };
        let found = charges.iter().all(|charge| charge.priced);
        *sale.priced.lock() = Some((generation, found));
        found
    }

    /// What a request will probably cost: for reservations, not for bills.
    pub fn estimate(&self, sale: &Sale, demand: Demand) -> Money {
        let (input, output) = *sale.rough.get_or_init(|| {
            let (input, output) = self.list_prices(&sale.provider, sale.model.as_str());
            (input.permille(sale.permille), output.permille(sale.permille))
        });
        let of = |price: Money, tokens| price.times(tokens).unwrap_or_default();
        of(input, demand.input) + of(output, demand.output)
    }

    /// What a token of input and of output costs in real time, by the book.
    pub fn list_prices(&self, provider: &str, model: &str) -> (Money, Money) {
        let book = self.book.load();
        let prices = book.find(provider, model);
        let price = |name: &str| {
            let rate = prices.and_then(|prices| prices.rates.iter().find(|rate| &*rate.name == name));
            rate.map_or(Money::ZERO, |rate| rate.price)
        };
        (price("input_cost_per_token"), price("output_cost_per_token"))
    }

    /// Says once of each model that nobody knows its price.
    fn complain(&self, sale: &Sale) {
        let model = sale.model.as_str();
        if self.unpriced.read().contains(model) {
            return;
        }
        let mut known = self.unpriced.write();
        if known.len() < COMPLAINTS && known.insert(model.to_owned()) {
            tracing::warn!(
                model,
                backend = %sale.backend,
                "there is no price for this model: what it costs is not in the ledger. Name a price file in costs.prices"
            );
        }
    }
}

fn shown_sale<'a>(sale: &'a Sale, rates: &'a [cost::Rate<'a>]) -> cost::Sale<'a> {
    cost::Sale {
        backend: sale.backend.as_str(),
        endpoint: sale.endpoint.as_str(),
        model: sale.model.as_str(),
        offer: sale.offer.as_str(),
        mode: match sale.mode {
            Mode::Realtime => cost::Mode::Realtime,
            Mode::Background => cost::Mode::Background,
            Mode::Batch => cost::Mode::Batch,
            Mode::Engine => cost::Mode::Engine,
        },
        price_permille: sale.permille,
        rates,
    }
}

fn shown_outcome(taken: &Taken) -> cost::Outcome<'_> {
    cost::Outcome {
        tenant: taken.tenant.as_str(),
        purpose: match taken.purpose {
            Purpose::First => cost::Purpose::First,
            Purpose::Retry => cost::Purpose::Retry,
            Purpose::Rescue => cost::Purpose::Rescue,
        },
        ran: match taken.ran {
            DidItRun::NotSent => cost::DidItRun::NotSent,
            DidItRun::Refused => cost::DidItRun::Refused,
            DidItRun::Unknown => cost::DidItRun::Unknown,
            DidItRun::Ran => cost::DidItRun::Ran,
        },
        status: taken.status,
        tier: taken.tier.as_deref(),
        usage: taken.usage.map(|usage| cost::Usage {
            input: usage.input,
            cached: usage.cached,
            cache_written: usage.cache_written,
            cache_written_one_hour: usage.cache_written_1h,
            audio_input: usage.audio_input,
            output: usage.output,
            reasoning: usage.reasoning,
            audio_output: usage.audio_output,
        }),
        wasted: taken.wasted,
        took_ms: taken.took.ms,
        together: taken.took.together,
    }
}

fn charge(charge: cost::Charge) -> Charge {
    Charge {
        tenant: TenantId::from(charge.tenant),
        cost: Money(charge.cost.into()),
        realtime: Money(charge.realtime_cost.into()),
        priced: charge.priced,
    }
}

fn unpriced(taken: &Taken) -> Charge {
    Charge { tenant: taken.tenant.clone(), cost: Money::ZERO, realtime: Money::ZERO, priced: false }
}
