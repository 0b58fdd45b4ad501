//! What every request needs: the configuration made ready, and handles to the store, the plugins and the lanes.

use std::sync::Arc;

use arc_swap::ArcSwap;
use http::HeaderMap;
use offpeak_core::breaker::Report;
use offpeak_core::scheduler::Event;
use offpeak_core::turnaround::Way;
use offpeak_core::words::{BackendId, LaneKey, Mode, ModelId, Timestamp};
use offpeak_host::values::router::BodyNeed;
use offpeak_host::{AnyPlugin, PluginReport, RouterPlugin};
use offpeak_store::{Document, Store};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::aside::Aside;
use crate::backends::{Backend, Backends};
use crate::beside::Beside;
use crate::blocking::blocking;
use crate::clock::{Chance, Clock, RequestIds};
use crate::config::{self, ModelPatterns, OnRouterFailure};
use crate::costs::{Costs, Ledger};
use crate::documents::Numbers;
use crate::fallback::StandIn;
use crate::gather::Gather;
use crate::health::{Changed, Health};
use crate::held::Held;
use crate::job_book::JobBook;
use crate::lane_book::LaneBook;
use crate::lost_offers;
use crate::next_tries::NextTries;
use crate::plugins::sample::{self, Scene};
use crate::plugins::trial;
use crate::plugins::{self, Fresh, InUse, LoadError, Reloaded, Reloader, Seated};
use crate::retries::Retries;
use crate::room::{Books, Room};
use crate::spool::Spool;
use crate::telemetry::Metrics;
use crate::tenant::Tenants;

/// Shared by all requests and batches.
pub struct Gateway {
    /// The wall clock.
    pub clock: Clock,
    /// All randomness.
    pub chance: Chance,
    /// Names for requests that are not deferred.
    pub ids: RequestIds,
    /// Who may call.
    pub tenants: Tenants,
    /// Where requests go.
    pub backends: Arc<Backends>,
    /// Who decides where.
    pub router: ArcSwap<Router>,
    /// How plugins are loaded anew.
    pub plugins: Reloader,
    /// Why the configuration that was read again last was not taken in; none if it was, or was not read again.
    pub refused_configuration: Mutex<Option<String>>,
    /// What is kept.
    pub store: Store,
    /// What waits.
    pub lanes: LaneBook,
    /// Who waits for it.
    pub held: Arc<Held>,
    /// Jobs that have not ended.
    pub jobs: JobBook,
    /// Files that clients uploaded.
    pub spool: Spool,
    /// Names for files and jobs.
    pub numbers: Numbers,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What things cost.
    pub costs: Arc<Costs>,
    /// Where real-time calls are noted.
    pub ledger: Ledger,
    /// What follows from a failed attempt.
    pub retries: Retries,
    /// Which backends take work.
    pub health: Health,
    /// Calls that wait for others of their kind.
    pub gather: Arc<Gather>,
    /// What is run beside a batch.
    pub beside: Beside,
    /// What waits for its next try.
    pub next_tries: NextTries,
    /// The largest request body.
    pub max_body: usize,
    /// Whether there is room for what can wait.
    pub room: Room,
    /// How clients reach the data plane, for links; links are relative without it.
    pub public_url: Option<String>,
    /// How long results are kept, and with them idempotency keys.
    pub keep_results: offpeak_core::words::Millis,
    /// How long the ledger has an entry.
    pub keep_ledger: offpeak_core::words::Millis,
    /// The daemon is stopping.
    pub stopping: CancellationToken,
    /// Batches and rescues under way.
    pub tasks: tokio_util::task::TaskTracker,
    /// Where they run.
    pub runtime: tokio::runtime::Handle,
}

impl Gateway {
    /// Runs work that outlives the call which asked for it: on the daemon's own runtime, not on a thread that serves
    /// connections and ends with them.
    pub fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        self.tasks.spawn_on(work, &self.runtime);
    }

    /// Tells the breaker of a backend how something ended; if that opens or closes it, everybody hears of it.
    pub fn report(&self, backend: &BackendId, mode: Mode, report: Report) {
        let Some(changed) = self.health.tell(backend, mode, report, self.clock.now()) else { return };
        let Changed { key: (backend, mode), until, document } = changed;
        if let Some(until) = until {
            let rest_s = until.since(self.clock.now()).0 / 1000;
            tracing::warn!(%backend, mode = mode.as_str(), rest_s, "a backend is out of order; it rests");
        } else {
            tracing::info!(%backend, mode = mode.as_str(), "a backend takes work again");
        }
        self.metrics.breaker(backend.as_str(), mode, until.is_some());
        self.lanes.tell(Event::Shut { backend, mode, until });
        self.keep(document);
    }

    /// The operator's own answer for a request that nobody answered by its deadline because its backend takes no calls; none
    /// if the backend does, or no route has one.
    pub fn stand_in(&self, key: &LaneKey, backend: &BackendId) -> Option<StandIn> {
        let fallbacks = &self.backends.fallbacks;
        let fallback = fallbacks.of(key.tenant.as_str(), key.endpoint.as_str(), key.model.as_str())?;
        let stand_in = fallback.stand_in()?;
        self.health.shut_until(backend, Mode::Realtime, self.clock.now()).map(|_| stand_in)
    }

    /// Takes an offer off the ladder that its provider refused to sell for the model. False if it is the backend's last one
    /// for now: then the refusal is the answer.
    pub fn lose(&self, way: &Way, endpoint: &str, why: &str) -> bool {
        let now = self.clock.now();
        let model = way.model.as_str();
        let menu = self.backends.menu(endpoint, model, now);
        let seller =
            menu.as_ref().ok().and_then(|menu| menu.sellers.iter().find(|one| one.backend.id == way.backend));
        let Some(seller) = seller else { return false };
        if seller.fastest().is_none_or(|fastest| fastest.name == way.offer) {
            return false;
        }
        let Some(document) = self.backends.lost.lose(way, why, now) else { return true };
        tracing::warn!(
            backend = %way.backend, offer = %way.offer, model, why, rest_h = lost_offers::REST.0 / 3_600_000,
            "the provider does not sell this offer for the model; it is not bought for a while, or until it is restored \
             by the admin plane"
        );
        self.ladder_changed(way, now);
        self.keep(document);
        true
    }

    /// Puts an offer back on the ladder. False if it was not lost.
    pub fn restore(&self, way: &Way) -> bool {
        let Some(document) = self.backends.lost.restore(way) else { return false };
        tracing::info!(backend = %way.backend, offer = %way.offer, model = %way.model, "an offer is bought again");
        self.ladder_changed(way, self.clock.now());
        self.keep(document);
        true
    }

    /// Puts the offers back whose rest is over: they are tried again.
    pub fn restore_rested(&self) {
        for way in self.backends.lost.rested(self.clock.now()) {
            self.restore(&way);
        }
    }

    fn ladder_changed(&self, way: &Way, now: Timestamp) {
        let lost = self.backends.lost.count(&way.backend, &way.offer);
        self.metrics.offers_lost(way.backend.as_str(), way.offer.as_str(), lost);
        self.backends.forget_menus();
        self.lanes.terms_changed(&self.backends, Some(&way.model), now);
    }

    /// Loads every plugin beside the one at work, and takes all of them into use or none: those that were chosen last, or
    /// `newer` ones. A request that is being decided about, a streamed answer and a batch under way go on with the
    /// plugin that they began with.
    pub async fn reload_plugins(&self, newer: Option<&config::Plugins>) -> Result<Vec<Reloaded>, LoadError> {
        let reloaded = self.load_and_replace(newer).await;
        self.metrics.plugins_reloaded(reloaded.is_ok());
        reloaded
    }

    async fn load_and_replace(&self, newer: Option<&config::Plugins>) -> Result<Vec<Reloaded>, LoadError> {
        let mut chosen = self.plugins.chosen.lock().await;
        let wanted = newer.unwrap_or(&chosen).clone();
        let fresh = self.plugins.load(wanted.clone()).await?;
        for Seated { backend: id, provider, adapter } in &fresh.seated {
            let Some(backend) = self.backends.get(id) else { continue };
            if backend.provider().description().credential != provider.description().credential {
                return Err(LoadError::OtherCredential { backend: id.to_string() });
            }
            if backend.engine.is_some() != adapter.is_some() {
                return Err(LoadError::OtherRoles { backend: id.to_string() });
            }
        }
        blocking(|| self.try_out(&fresh, &wanted))?;
        // Every lane's backend is asked anew what it sells, by its plugin.
        let reloaded = blocking(|| self.take_into_use(fresh, &wanted));
        *chosen = wanted;
        drop(chosen);
        for told in reloaded.iter().filter(|told| told.changed) {
            let (plugin, sha256) = (&told.plugin.name, &told.plugin.sha256);
            if *sha256 == told.before {
                tracing::info!(plugin, sha256, "a plugin is at work with other settings or limits");
            } else {
                tracing::info!(plugin, sha256, before = told.before, "another plugin is at work");
            }
        }
        Ok(reloaded)
    }

    /// Routers and policies that come in another's place bear an ordinary call. A router of the chain is asked about a tenant
    /// that is its own; where there is none, nothing is ordinary.
    fn try_out(&self, fresh: &Fresh, wanted: &config::Plugins) -> Result<(), LoadError> {
        let now = self.clock.now().0;
        let mut accounts = self.tenants.accounts();
        accounts.sort_by(|one, other| one.id.cmp(&other.id));
        let backends: Vec<_> =
            self.backends.iter().map(|backend| (backend.id.as_str(), backend.engine.is_some())).collect();
        let at_work = self.router.load();
        for ((name, router), named) in fresh.chain.iter().zip(&wanted.routers) {
            let Some(account) = accounts.iter().find(|account| named.tenants.matches(account.id.as_str()))
            else {
                continue;
            };
            let scene = Scene { tenant: account.id.as_str(), backends: &backends };
            let before = at_work.chain.iter().find(|link| link.plugin.name() == name);
            let before = before.map(|link| &*link.plugin);
            trial::run(&**router, before, "route", |router| sample::route_in(&scene, router, now))?;
        }
        let tenant = accounts.first().map(|account| account.id.as_str()).unwrap_or_default();
        let scene = Scene { tenant, backends: &backends };
        let (router, before) = (&*fresh.router.configured, &*at_work.plugins.configured);
        trial::run(router, Some(before), "route", |router| sample::route_in(&scene, router, now))?;
        let (policy, before) = (&*fresh.retries.configured, self.retries.policy.load());
        trial::run(policy, Some(&*before.configured), "judge", |policy| sample::judge(policy, now))?;
        let (policy, before) = (&*fresh.costs.configured, self.costs.policy.load());
        trial::run(policy, Some(&*before.configured), "assess", |policy| sample::assess(policy, now))
    }

    fn take_into_use(&self, fresh: Fresh, wanted: &config::Plugins) -> Vec<Reloaded> {
        let at_work = self.router.load();
        let (plugins, router) = fresh.router.replacing(&at_work.plugins);
        let (chain, mut told) = replace_chain(fresh.chain, &at_work.chain);
        self.router.store(Arc::new(Router::new(chain, plugins, wanted)));
        drop(at_work);
        told.extend([router, self.retries.replace(fresh.retries), self.costs.replace(fresh.costs)]);
        for Seated { backend: id, provider, adapter } in fresh.seated {
            let Some(backend) = self.backends.get(&id) else { continue };
            if let (Some(engine), Some(adapter)) = (&backend.engine, adapter) {
                let at_work = engine.plugin.load_full();
                let (adapter, reloaded) = plugins::replace(Arc::new(adapter), &at_work, Some(id.clone()));
                engine.plugin.store(adapter);
                told.push(reloaded);
            }
            let (provider, reloaded) = plugins::replace(Arc::new(provider), &backend.provider(), Some(id));
            backend.provider.store(provider);
            told.push(reloaded);
        }
        // What is sold, and how a call is sent, was the word of the plugins before.
        if told.iter().any(|told| told.changed && told.used_by.is_some()) {
            self.backends.forget_menus();
            self.lanes.terms_changed(&self.backends, None, self.clock.now());
        }
        told
    }

    /// Every plugin, in the order in which they are asked about a request, and the backend that it is for.
    pub fn plugin_reports(&self) -> Vec<(PluginReport, Option<BackendId>)> {
        let (router, retries, costs) =
            (self.router.load(), self.retries.policy.load(), self.costs.policy.load());
        let routers = router.each().map(|plugin| plugin.report());
        let policies = retries.each().map(|plugin| plugin.report());
        let policies = policies.chain(costs.each().map(|plugin| plugin.report()));
        let providers =
            self.backends.iter().map(|backend| (backend.provider().report(), Some(backend.id.clone())));
        let adapters = self.backends.iter().filter_map(|backend| {
            Some((backend.engine.as_ref()?.plugin.load().report(), Some(backend.id.clone())))
        });
        routers.chain(policies).map(|report| (report, None)).chain(providers).chain(adapters).collect()
    }

    /// What tells how much waits and may wait.
    pub fn books(&self) -> Books<'_> {
        Books { lanes: &self.lanes, backends: &self.backends, tenants: &self.tenants }
    }

    /// Looks into an answer's headers for the account's real-time quota: rescues are planned by it, and keep to their half.
    pub fn note_quota(&self, backend: &Backend, model: &ModelId, headers: &HeaderMap) {
        if let Some(a_minute) = backend.note_quota(model, headers) {
            self.lanes.tell(Event::Quota { backend: backend.id.clone(), a_minute });
        }
    }

    /// Writes a document in its own time. It is of use, and nothing is lost without it.
    pub fn keep(&self, document: Document) {
        let store = self.store.clone();
        self.spawn(async move {
            if let Err(error) = store.keep(vec![document]).await {
                tracing::warn!(%error, "what was learnt of a backend could not be kept");
            }
        });
    }
}

/// The routers, in the order in which they are asked.
pub struct Router {
    /// Those of the chain.
    pub chain: Vec<Link>,
    /// The one behind them, and the bundled one: it decides where that one passes.
    pub plugins: InUse<RouterPlugin>,
    /// What happens when the configured one fails.
    pub on_failure: OnRouterFailure,
    /// Who waits for the configured one while it is slow.
    pub aside: Aside,
}

/// A router of the chain.
pub struct Link {
    /// The plugin.
    pub plugin: Arc<RouterPlugin>,
    /// About whose requests it is asked.
    pub tenants: ModelPatterns,
    /// What happens when it fails: the next one is asked, or the request is rejected.
    pub on_failure: OnRouterFailure,
    /// Who waits for it while it is slow.
    pub aside: Aside,
}

/// Loaded routers in the place of those at work. One that is new has nothing before it.
fn replace_chain(
    fresh: Vec<(String, Arc<RouterPlugin>)>,
    at_work: &[Link],
) -> (Vec<Arc<RouterPlugin>>, Vec<Reloaded>) {
    let next = fresh.into_iter().map(|(name, plugin)| {
        if let Some(link) = at_work.iter().find(|link| link.plugin.name() == name) {
            return plugins::replace(plugin, &link.plugin, None);
        }
        let told = Reloaded { plugin: plugin.report(), used_by: None, before: String::new(), changed: true };
        (plugin, told)
    });
    next.unzip()
}

impl Router {
    /// As the configuration has it. The plugins are those that it names, in its order.
    pub fn new(
        chain: impl IntoIterator<Item = Arc<RouterPlugin>>,
        plugins: InUse<RouterPlugin>,
        wanted: &config::Plugins,
    ) -> Self {
        let link = |(plugin, named): (Arc<RouterPlugin>, &config::NamedRouter)| Link {
            plugin,
            tenants: named.tenants.clone(),
            on_failure: named.router.on_failure,
            aside: Aside::default(),
        };
        let chain = chain.into_iter().zip(&wanted.routers).map(link).collect();
        Self { chain, plugins, on_failure: wanted.router.on_failure, aside: Aside::default() }
    }

    /// Those of the chain that are asked about a tenant's requests.
    pub fn chain_of(&self, tenant: &str) -> impl Iterator<Item = &Link> {
        self.chain.iter().filter(move |link| link.tenants.matches(tenant))
    }

    /// Where a tenant's requests wait to be decided about, if one of its routers takes long.
    pub fn aside_of(&self, tenant: &str, now: Timestamp) -> Option<&Aside> {
        let in_chain = self.chain_of(tenant).map(|link| (&link.plugin, &link.aside));
        let behind = (&self.plugins.configured, &self.aside);
        in_chain.chain([behind]).find(|(plugin, _)| plugin.is_slow(now.0)).map(|(_, aside)| aside)
    }

    /// Every router, in the order in which they are asked.
    pub fn each(&self) -> impl Iterator<Item = &Arc<RouterPlugin>> {
        self.chain.iter().map(|link| &link.plugin).chain(self.plugins.each())
    }

    /// Some router looks at bodies.
    pub fn sees_bodies(&self) -> bool {
        self.each().any(|plugin| !matches!(plugin.description().body, BodyNeed::None))
    }
}
