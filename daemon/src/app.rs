//! The one place that opens, links, spawns and drains.

mod parts;
mod reloads;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use arc_swap::ArcSwap;
use offpeak_core::retry::RetryBudget;
use offpeak_core::words::{Millis, Timestamp};
use offpeak_host::values::provider::CredentialPlace;
use offpeak_host::{Engine, EngineOptions, HostError};
use offpeak_store::disk::Disk;
use offpeak_store::{Options, Recovered, Store, StoreError};
use parking_lot::Mutex;
use reqwest::Url;
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use self::parts::check;
use self::parts::{Parts, check_cache, check_store};
use self::reloads::remember_spending;
pub use self::reloads::{ReloadError, Reloads};
use crate::alerts::{self, Alerts, Due, Target};
use crate::backends::{Backend, Backends};
use crate::beside::Beside;
use crate::clock::{Chance, Clock, RequestIds};
use crate::config::{self, Config};
use crate::costs::book::{self, BookError};
use crate::costs::ledger::{self, Pages};
use crate::costs::{Costs, Ledger};
use crate::engine;
use crate::fallback::Fallbacks;
use crate::gateway::Gateway;
use crate::health::Health;
use crate::held::Held;
use crate::history;
use crate::idle;
use crate::job_book::JobBook;
use crate::lane_book::{Commands, LaneBook};
use crate::lanes;
use crate::listen::Terms;
use crate::next_tries::NextTries;
use crate::plugins::{LoadError, Loader, Reloader, Seat, Seated};
use crate::room::{Bodies, Room};
use crate::spool::Spool;
use crate::telemetry::Metrics;
use crate::tenant::Tenants;
use crate::tenant::keys::{self, Pepper};
use crate::tls::{Tls, TlsError};
use crate::turns::Turns;
use crate::upstream::{self, Address, ClientError, Network, Upstream, credential_header};
use crate::watch;
use crate::webhook::{self, Guard, Sender};
use crate::workers::Workers;
use crate::{admin, admission, ingress, jobs, listen};

/// Connections to the admin plane at once.
const ADMIN_CONNECTIONS: usize = 256;

/// Retries that a backend gets for a thousand requests that were sent to it for the first time.
const RETRY_SHARE_PERMILLE: u64 = 200;

/// How often results whose retention is over are dropped, at most and at least; in between, so often that little is kept
/// beyond it.
const SWEEP_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(10));
const SWEEPS_A_RETENTION: u32 = 100;

/// An empty lane stays at least so long after its last use.
const LANES_STAY: Millis = Millis::from_mins(1);

/// The daemon could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder that offpeak writes to.
    #[error(
        "{what} could not be opened: {key} is {path}, {problem}. Name a folder that offpeak may write to, or mend the rights of \
         this one"
    )]
    Folder {
        /// The key that names it.
        key: &'static str,
        /// What lies there.
        what: &'static str,
        /// Which.
        path: PathBuf,
        /// Why.
        problem: String,
    },
    /// The store.
    #[error("the store could not be opened: {0}")]
    Store(#[from] StoreError),
    /// The folder of files.
    #[error("the folder of uploaded files could not be opened: {0}")]
    Files(#[from] jobs::JobError),
    /// The engine that runs plugins.
    #[error("plugins cannot be run here: {0}")]
    Engine(#[from] HostError),
    /// A plugin.
    #[error(transparent)]
    Plugin(#[from] LoadError),
    /// A file.
    #[error("the plugin file {path} cannot be read: {source}. Check plugins in the configuration")]
    PluginFile {
        /// Which.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// An address.
    #[error(
        "the address {address} of server.{what} cannot be used: {source}. Is another offpeak running? Choose another address with \
             server.{what}"
    )]
    Listen {
        /// `listen` or `admin`.
        what: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// Threads.
    #[error(
        "the threads that serve connections could not be started: {0}. Lower server.threads, or allow more threads"
    )]
    Threads(std::io::Error),
    /// The secret of the keys' hashes.
    #[error("the file keys.secret in the store's folder cannot be used: {0}")]
    KeySecret(keys::SecretError),
    /// The webhook for alerts.
    #[error("alerts.{what} cannot be used: {problem}")]
    Alerts {
        /// `url` or `secret`.
        what: &'static str,
        /// Why.
        problem: String,
    },
    /// The files of TLS.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The price file.
    #[error(transparent)]
    Prices(#[from] BookError),
    /// The HTTP client.
    #[error(transparent)]
    Client(#[from] ClientError),
    /// A backend.
    #[error("the backend '{backend}' cannot be used: {problem}")]
    Backend {
        /// Which.
        backend: String,
        /// Why, and what to do.
        problem: String,
    },
}

/// What the daemon stands in. A simulation brings its own.
pub struct World {
    /// The wall clock.
    pub clock: Clock,
    /// All randomness.
    pub chance: Chance,
    /// Where the store lies, if not in the configured folder.
    pub place: Option<StorePlace>,
    /// The way to the backends.
    pub network: Network,
    /// Compiled plugins, if there are some already.
    pub engine: Option<Engine>,
}

/// A place for the store of a simulation. Its work is done by whoever asks for it, without threads.
pub struct StorePlace {
    /// The disk.
    pub disk: Arc<dyn Disk>,
    /// When a segment is full.
    pub segment_bytes: u32,
    /// After so much of the log the index is made durable.
    pub checkpoint_bytes: u64,
}

impl World {
    /// The real one.
    pub const fn real() -> Self {
        Self {
            clock: Clock::System,
            chance: Chance::system(),
            place: None,
            network: Network::Http,
            engine: None,
        }
    }
}

/// What the task that delivers alerts needs.
type Telling = (Due, Arc<Target>);

/// The daemon without its listeners: opened, and not yet at work.
pub struct Core {
    /// What every request needs: [`ingress::handle`] takes it.
    pub gateway: Arc<Gateway>,
    commands: Commands,
    recovered: Recovered,
    pages: Pages,
    telling: Option<Telling>,
}

/// The daemon without its listeners, at work.
pub struct Running {
    gateway: Arc<Gateway>,
    tasks: [JoinHandle<()>; 2],
}

impl Core {
    /// Opens the store and loads the plugins.
    pub async fn open(config: &Config, world: World) -> Result<Self, StartError> {
        // The store first: the plugins' cache lies in its folder by default, and what is wrong with the folder is better
        // said of the store.
        let weights =
            config.access.tenants().iter().map(|tenant| (tenant.id.clone(), tenant.share)).collect();
        let (lanes, commands) = LaneBook::new(weights);
        if world.place.is_none() {
            check_store(&config.store.folder)?;
        }
        let (store, recovered) = open_store(config, &lanes, &world)?;
        let spool = Spool::open(config.store.folder.join("files")).map_err(jobs::JobError::from)?;
        let numbers = jobs::largest_number(&store, &spool).await?;
        let engine = if let Some(engine) = &world.engine {
            engine.clone()
        } else {
            check_cache(&config.plugins.cache)?;
            Engine::new(&EngineOptions {
                cache_dir: Some(config.plugins.cache.clone()),
                pool_instances: config.plugins.instances,
                ..EngineOptions::default()
            })?
        };
        let records = keys::all(&store).await?;
        let pepper = open_pepper(config, &world, !records.is_empty())?;
        let World { clock, chance, network, .. } = world;
        let metrics = Arc::new(Metrics::new());
        let loader = Loader::new(engine, clock);
        let Parts { costs, retries, router, alerts, telling, backends } =
            Parts::open(config, &loader, &network, &metrics, chance.bits())?;
        let (ledger, pages) = Ledger::new(metrics.clone());
        let tenants = Tenants::new(pepper, records, alerts);
        let now = clock.now();
        // All that the ledger has is from before.
        remember_spending(tenants.meet(&config.access, now), &store, now, |_| Timestamp::NEVER).await?;
        tenants.set(&config.access, now);
        let gateway = Gateway {
            clock,
            ids: RequestIds::new(&chance),
            tenants,
            backends: Arc::new(backends),
            router: ArcSwap::from_pointee(router),
            plugins: Reloader::new(&loader, config),
            refused_configuration: Mutex::default(),
            store,
            lanes,
            jobs: JobBook::default(),
            spool,
            numbers,
            held: Arc::new(Held::new(config.server.held_max)),
            metrics,
            costs: Arc::new(costs),
            ledger,
            retries,
            health: Health::new(config.breaker),
            gather: Arc::default(),
            beside: Beside::default(),
            next_tries: NextTries::default(),
            max_body: config.server.max_body,
            room: Room { all: config.store.queue, bodies: Bodies::new(config.server.body_memory) },
            public_url: config.server.public_url.clone(),
            keep_results: config.store.keep_results,
            keep_ledger: config.costs.keep,
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            runtime: tokio::runtime::Handle::current(),
            chance,
        };
        gateway.backends.calibrations.remember(&gateway.store).await?;
        Ok(Self { gateway: Arc::new(gateway), commands, recovered, pages, telling })
    }

    /// Goes on with what was in the store.
    pub async fn start(self) -> Result<Running, StoreError> {
        let Self { gateway, commands, recovered, pages, telling } = self;
        let (costs, store, metrics) = (gateway.costs.clone(), gateway.store.clone(), gateway.metrics.clone());
        tokio::spawn(ledger::run(pages, costs, store, metrics, gateway.clock));
        if let Some((due, target)) = telling {
            let (store, clock, stop) = (gateway.store.clone(), gateway.clock, gateway.stopping.clone());
            let fresh = Arc::new(Notify::new());
            // What is spent last, while calls drain, is told too: so this one ends when it is closed.
            tokio::spawn(alerts::keep(due, store.clone(), clock, fresh.clone()));
            gateway.tasks.spawn(alerts::deliver_all(target, store, clock, fresh, stop));
        }
        gateway.tasks.spawn(watch::run(gateway.clone()));
        let (calibrations, store) = (gateway.backends.calibrations.clone(), gateway.store.clone());
        gateway.tasks.spawn(calibrations.run(store, gateway.stopping.clone()));
        report(&recovered);
        lanes::remember(&gateway).await?;
        lanes::recover(&gateway, recovered.lanes, recovered.open_batches);
        jobs::recover(&gateway).await?;
        for backend in gateway.backends.iter().filter(|backend| backend.engine.is_some()) {
            gateway.spawn(idle::watch(gateway.clone(), backend.clone()));
        }
        let tasks =
            [tokio::spawn(lanes::run(gateway.clone(), commands)), tokio::spawn(sweep(gateway.clone()))];
        Ok(Running { gateway, tasks })
    }
}

impl Running {
    /// Stops: nothing new is begun, what is under way has at most `drain`; then the store is closed.
    pub async fn stop(self, drain: Duration) -> Result<(), StoreError> {
        let Self { gateway, tasks } = self;
        gateway.stopping.cancel();
        for task in tasks {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task of the daemon did not end as it should");
            }
        }
        gateway.tasks.close();
        if tokio::time::timeout(drain, gateway.tasks.wait()).await.is_err() {
            tracing::warn!("calls of deferred requests were still under way when the drain time was over");
        }
        if let Err(error) = gateway.backends.calibrations.keep(&gateway.store).await {
            tracing::warn!(%error, "what was learnt of models' tokens could not be kept");
        }
        gateway.ledger.close().await;
        gateway.tenants.alerts().close().await;
        gateway.store.close().await
    }
}

/// A daemon that is ready to run.
pub struct App {
    core: Core,
    data: TcpListener,
    admin: TcpListener,
    workers: Workers,
    max_connections: usize,
    drain: Duration,
    tls: Option<Arc<Tls>>,
}

impl App {
    /// Opens the store, loads the plugins, and takes the addresses. Nothing is served yet.
    pub async fn open(config: &Config) -> Result<Self, StartError> {
        upstream::install_crypto();
        let tls = open_tls(config)?.map(Arc::new);
        let core = Core::open(config, World::real()).await?;
        let backends = core.gateway.backends.clone();
        let warm = move || backends.iter().for_each(|backend| backend.upstream.warm());
        let workers = Workers::start(config.server.threads, warm).map_err(StartError::Threads)?;
        let data = bind("listen", config.server.listen).await?;
        let admin = bind("admin", config.server.admin).await?;
        Ok(Self {
            core,
            data,
            admin,
            workers,
            max_connections: config.server.max_connections,
            drain: config.server.drain,
            tls,
        })
    }

    /// For configurations that are read again while the daemon runs.
    pub fn reloads(&self) -> Reloads {
        Reloads { gateway: self.core.gateway.clone(), tls: self.tls.clone() }
    }

    /// Where the data plane listens.
    pub fn data_address(&self) -> std::io::Result<SocketAddr> {
        self.data.local_addr()
    }

    /// Where the admin plane listens.
    pub fn admin_address(&self) -> std::io::Result<SocketAddr> {
        self.admin.local_addr()
    }

    /// Serves until `stop`; then lets what is under way finish, and closes the store.
    pub async fn run(self, stop: CancellationToken) -> Result<(), StoreError> {
        let Self { core, data, admin, workers, max_connections, drain, tls } = self;
        let gateway = core.gateway.clone();
        let running = core.start().await?;
        let serving = gateway.clone();
        if let Some(tls) = &tls {
            tokio::spawn(tls.clone().watch(stop.clone()));
        }
        let terms = Terms { max_connections, drain, tls };
        let data = listen::serve(data, Some(&workers), terms, stop.clone(), move |request| {
            ingress::handle(serving.clone(), request)
        });
        let administered = gateway.clone();
        let is_local = admin.local_addr().is_ok_and(|address| address.ip().is_loopback());
        let terms = Terms { max_connections: ADMIN_CONNECTIONS, drain: Duration::from_secs(1), tls: None };
        let admin = listen::serve(admin, None, terms, stop.clone(), move |request| {
            admin::handle(administered.clone(), is_local, request)
        });
        let letting_go = async {
            stop.cancelled().await;
            // Held calls and batches let go at once: what they stand for is in the store.
            gateway.stopping.cancel();
        };
        tokio::join!(data, admin, letting_go);
        workers.stop().await;
        running.stop(drain).await
    }
}

fn report(recovered: &Recovered) {
    let waiting: u64 =
        recovered.lanes.iter().flat_map(|lane| &lane.extents).map(|extent| u64::from(extent.count)).sum();
    tracing::info!(
        lanes = recovered.lanes.len(),
        waiting,
        open_batches = recovered.open_batches.len(),
        replayed = recovered.replayed,
        "the store is open"
    );
    if recovered.cut_off_bytes > 0 {
        tracing::warn!(
            bytes = recovered.cut_off_bytes,
            "the last write before the stop was not finished and was cut off; nothing acknowledged was in it"
        );
    }
    for part in &recovered.quarantined {
        tracing::error!(
            segment = part.segment,
            offset = part.offset,
            bytes = part.bytes,
            "a part of a segment is damaged; it was copied to the quarantine folder and skipped"
        );
    }
}

async fn sweep(gateway: Arc<Gateway>) {
    let retention: Duration = gateway.keep_results.into();
    let pause = (retention / SWEEPS_A_RETENTION).clamp(SWEEP_EVERY.0, SWEEP_EVERY.1);
    loop {
        tokio::select! {
            biased;
            () = gateway.stopping.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
        let needed = match jobs::tidy(&gateway).await {
            Ok(needed) => needed,
            Err(error) => {
                tracing::error!(%error, "old jobs and files could not be dropped; trying again later");
                continue;
            }
        };
        gateway.restore_rested();
        let before = gateway.clock.now().before(gateway.keep_results);
        if let Err(error) = history::tidy(&gateway.store, before).await {
            tracing::error!(%error, "what was kept of old attempts could not be dropped; trying again later");
        }
        if let Err(error) =
            ledger::tidy(&gateway.store, gateway.clock.now().before(gateway.keep_ledger)).await
        {
            tracing::error!(%error, "old entries of the ledger could not be dropped; trying again later");
        }
        match gateway.store.sweep_but(gateway.clock.now(), needed).await {
            Ok(swept) if swept.segments > 0 => {
                tracing::info!(segments = swept.segments, bytes = swept.bytes, "old segments were dropped");
            }
            Ok(_) => {}
            Err(error) => {
                tracing::error!(%error, "old segments could not be dropped; trying again later");
                continue;
            }
        }
        // Longer than anybody takes to put something into a lane that was handed out.
        let unused = gateway.keep_results.max(LANES_STAY);
        match gateway.lanes.remove_idle(&gateway.store, unused).await {
            Ok(0) => {}
            Ok(lanes) => tracing::info!(lanes, "lanes in which nothing is any more were removed"),
            Err(error) => tracing::error!(%error, "empty lanes could not be removed; trying again later"),
        }
    }
}

async fn bind(what: &'static str, address: SocketAddr) -> Result<TcpListener, StartError> {
    TcpListener::bind(address).await.map_err(|source| StartError::Listen { what, address, source })
}

fn open_store(config: &Config, lanes: &LaneBook, world: &World) -> Result<(Store, Recovered), StoreError> {
    let mut options = Options::new(config.store.folder.clone());
    options.segment_bytes = u32::try_from(config.store.segment).unwrap_or(u32::MAX);
    options.retention = config.store.keep_results;
    options.install_id_if_new = world.chance.bits();
    options.on_appended = Box::new(lanes.on_appended());
    match &world.place {
        None => Store::open(options, world.clock.now()),
        Some(place) => {
            options.inline = true;
            options.segment_bytes = place.segment_bytes;
            options.checkpoint_bytes = place.checkpoint_bytes;
            Store::open_on(place.disk.clone(), options, world.clock.now())
        }
    }
}

fn open_tls(config: &Config) -> Result<Option<Tls>, TlsError> {
    config.server.tls.clone().map(Tls::open).transpose()
}

/// The way to the operator, if there is one, and what the task at its other end needs.
fn open_alerts(config: &Config) -> Result<(Alerts, Option<Telling>), StartError> {
    let Some(configured) = &config.alerts else { return Ok((Alerts::none(), None)) };
    let wrong = |what, problem: String| StartError::Alerts { what, problem };
    let url = Url::parse(&configured.url).map_err(|error| wrong("url", error.to_string()))?;
    let secret = webhook::Secret::parse(configured.secret.expose());
    let secret = secret.map_err(|error| wrong("secret", error.to_string()))?;
    let guard = if configured.internal { Guard::Everywhere } else { Guard::Outside };
    let sender = Sender::new(guard).map_err(|error| wrong("url", error.to_string()))?;
    let (alerts, due) = Alerts::new();
    Ok((alerts, Some((due, Arc::new(Target { url, secret, sender })))))
}

/// The secret of the keys' hashes: in the store's folder, but for a store that lies elsewhere.
fn open_pepper(config: &Config, world: &World, are_keys_made: bool) -> Result<Pepper, StartError> {
    match world.place {
        Some(_) => Ok(Pepper::of(b"a store without a folder")),
        None => {
            Pepper::open(&config.store.folder, &world.chance, are_keys_made).map_err(StartError::KeySecret)
        }
    }
}

fn open_costs(
    config: &Config,
    loader: &Loader,
    metrics: &Arc<Metrics>,
    run: u64,
) -> Result<Costs, StartError> {
    let policy = loader.cost_policy(&config.plugins.cost_policy)?;
    let book = book::read(config.costs.prices.as_deref())?;
    tracing::info!(
        models = book.len(),
        built_in = offpeak_core::price::BUILT_IN_DATE,
        "the price book is open"
    );
    Ok(Costs::new(policy, book, metrics.clone(), run))
}

fn open_backends(config: &Config, loader: &Loader, network: &Network) -> Result<Backends, StartError> {
    let backends =
        config.backends.iter().map(|backend| open_backend(config, backend, loader, network).map(Arc::new));
    Ok(Backends::new(backends.collect::<Result<_, _>>()?, Fallbacks::new(&config.routes)))
}

fn open_backend(
    config: &Config,
    backend: &config::Backend,
    loader: &Loader,
    network: &Network,
) -> Result<Backend, StartError> {
    let unusable = |problem: String| StartError::Backend { backend: backend.id.to_string(), problem };
    let Seated { provider, adapter, .. } = loader.seat(&config.plugins, &Seat::from(backend))?;
    let place = match &provider.description().credential {
        CredentialPlace::Bearer => None,
        CredentialPlace::Header(name) => Some(name.as_str()),
    };
    let credential = match &backend.api_key {
        None => None,
        Some(key) => Some(credential_header(place, key.expose()).ok_or_else(|| {
            unusable("its api_key cannot be sent as an HTTP header; check for line ends in it".to_owned())
        })?),
    };
    let base = Url::parse(&backend.base_url).map_err(|error| unusable(format!("base_url: {error}")))?;
    let address = Address {
        base,
        credential,
        connect_timeout: millis(backend.connect_timeout),
        answer_timeout: millis(backend.answer_timeout),
    };
    let upstream = Upstream::new(address, network)?;
    Ok(Backend {
        id: backend.id.clone(),
        models: backend.models.clone(),
        lanes: backend.lanes.clone(),
        quota: admission::quota(&backend.limits),
        provider: ArcSwap::from_pointee(provider),
        upstream,
        turns: Turns::new(loader.clock, backend.lanes.rescue_concurrency),
        engine: adapter.map(|adapter| engine::Engine::new(adapter, &backend.engine, loader.clock)),
        retries: Mutex::new(RetryBudget::new(RETRY_SHARE_PERMILLE)),
        quota_a_minute: AtomicU64::new(0),
        listed: Mutex::default(),
    })
}

fn millis(duration: Duration) -> Millis {
    Millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use offpeak_host::{Limits, ProviderPlugin, Source};

    use super::*;
    use crate::backends::PrepareError;

    #[test]
    fn a_call_is_prepared_by_the_plugin_whose_offer_it_is() {
        upstream::install_crypto();
        let text = "[backends.b]\nbase_url = \"http://127.0.0.1:9\"\nmodels = [\"*\"]\nconfig.flex = true";
        let config = Config::from_text("offpeak.toml", text, &BTreeMap::new()).unwrap();
        let engine = Engine::new(&EngineOptions::default()).unwrap();
        let loader = Loader::new(engine.clone(), Clock::System);
        let backends = open_backends(&config, &loader, &Network::Http).unwrap();
        let (endpoint, now) = ("/v1/chat/completions", Clock::System.now());
        let menu = backends.menu(endpoint, "m", now).unwrap();
        let (seller, flex) = menu.pick("b", "flex").unwrap();
        // Another one takes its place, which sells no such thing.
        let bytes = Source::Bytes(offpeak_bundled::VLLM);
        let limits = Limits::provider();
        let next = ProviderPlugin::load(&engine, "vllm", bytes, "{}".to_owned(), limits, now.0).unwrap();
        seller.backend.provider.store(Arc::new(next));
        let refused = seller.backend.prepare(endpoint, "m", "flex", now).err();
        assert!(matches!(refused, Some(PrepareError::Refused(_))), "{refused:?}");
        let call = flex.call(&menu, seller, now).unwrap();
        assert_eq!((call.plugin().name(), call.named().offer), ("openai", "flex"));
    }
}
