//! The one place that opens, links, spawns and drains.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use offpeak_core::retry::RetryBudget;
use offpeak_core::words::Millis;
use offpeak_host::values::provider::CredentialPlace;
use offpeak_host::{Engine, EngineOptions, HostError, Limits, ProviderPlugin, RouterPlugin, Source};
use offpeak_store::disk::Disk;
use offpeak_store::{Options, Recovered, Store, StoreError};
use parking_lot::Mutex;
use reqwest::Url;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::backends::{Backend, Backends};
use crate::beside::Beside;
use crate::clock::{Chance, Clock, RequestIds};
use crate::config::{self, Config, PluginLimits, PluginSource};
use crate::gateway::{Gateway, Router};
use crate::health::Health;
use crate::held::Held;
use crate::job_book::JobBook;
use crate::lane_book::{Commands, LaneBook};
use crate::lanes;
use crate::spool::Spool;
use crate::telemetry::Metrics;
use crate::tenant::Tenants;
use crate::turns::Turns;
use crate::upstream::{self, Address, ClientError, Network, Upstream, credential_header};
use crate::{admin, ingress, jobs, listen};

/// Connections to the admin plane at once.
const ADMIN_CONNECTIONS: usize = 256;

/// Retries that a backend gets for a thousand requests that were sent to it for the first time.
const RETRY_SHARE_PERMILLE: u64 = 200;

/// How often results whose retention is over are dropped, at most and at least; in between, so often that little is kept
/// beyond it.
const SWEEP_EVERY: (Duration, Duration) = (Duration::from_secs(1), Duration::from_mins(10));
const SWEEPS_A_RETENTION: u32 = 100;

/// The daemon could not be started.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error("the store could not be opened: {0}")]
    Store(#[from] StoreError),
    /// The folder of files.
    #[error("the folder of uploaded files could not be opened: {0}")]
    Files(#[from] jobs::JobError),
    /// A plugin.
    #[error("a plugin could not be loaded: {0}")]
    Plugin(#[from] HostError),
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
    /// TLS.
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

/// The daemon without its listeners: opened, and not yet at work.
pub struct Core {
    /// What every request needs: [`ingress::handle`] takes it.
    pub gateway: Arc<Gateway>,
    commands: Commands,
    recovered: Recovered,
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
        let (store, recovered) = open_store(config, &lanes, &world)?;
        let spool = Spool::open(config.store.folder.join("files")).map_err(jobs::JobError::from)?;
        let numbers = jobs::largest_number(&store, &spool).await?;
        let engine = match &world.engine {
            Some(engine) => engine.clone(),
            None => Engine::new(&EngineOptions {
                cache_dir: Some(config.plugins.cache.clone()),
                ..EngineOptions::default()
            })?,
        };
        let World { clock, chance, network, .. } = world;
        let gateway = Gateway {
            clock,
            ids: RequestIds::new(&chance),
            tenants: Tenants::new(&config.access, chance.wide()),
            backends: Arc::new(open_backends(config, &engine, clock, &network)?),
            router: open_router(config, &engine, clock)?,
            store,
            lanes,
            jobs: JobBook::default(),
            spool,
            numbers,
            held: Arc::new(Held::new(config.server.held_max)),
            metrics: Arc::new(Metrics::new()),
            retry: config.retry,
            health: Health::new(config.breaker),
            beside: Beside::default(),
            max_body: config.server.max_body,
            public_url: config.server.public_url.clone(),
            keep_results: config.store.keep_results,
            stopping: CancellationToken::new(),
            tasks: TaskTracker::new(),
            chance,
        };
        Ok(Self { gateway: Arc::new(gateway), commands, recovered })
    }

    /// Goes on with what was in the store.
    pub async fn start(self) -> Result<Running, StoreError> {
        let Self { gateway, commands, recovered } = self;
        report(&recovered);
        lanes::remember(&gateway).await?;
        lanes::recover(&gateway, recovered.lanes, recovered.open_batches);
        jobs::recover(&gateway).await?;
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
        gateway.store.close().await
    }
}

/// A daemon that is ready to run.
pub struct App {
    core: Core,
    data: TcpListener,
    admin: TcpListener,
    max_connections: usize,
    drain: Duration,
}

impl App {
    /// Opens the store, loads the plugins, and takes the addresses. Nothing is served yet.
    pub async fn open(config: &Config) -> Result<Self, StartError> {
        upstream::install_crypto();
        let core = Core::open(config, World::real()).await?;
        let data = bind("listen", config.server.listen).await?;
        let admin = bind("admin", config.server.admin).await?;
        Ok(Self {
            core,
            data,
            admin,
            max_connections: config.server.max_connections,
            drain: config.server.drain,
        })
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
        let Self { core, data, admin, max_connections, drain } = self;
        let gateway = core.gateway.clone();
        let running = core.start().await?;
        let serving = gateway.clone();
        let data = listen::serve(data, max_connections, drain, stop.clone(), move |request| {
            ingress::handle(serving.clone(), request)
        });
        let administered = gateway.clone();
        let admin =
            listen::serve(admin, ADMIN_CONNECTIONS, Duration::from_secs(1), stop.clone(), move |request| {
                admin::handle(administered.clone(), request)
            });
        let letting_go = async {
            stop.cancelled().await;
            // Held calls and batches let go at once: what they stand for is in the store.
            gateway.stopping.cancel();
        };
        tokio::join!(data, admin, letting_go);
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
        match gateway.store.sweep_but(gateway.clock.now(), needed).await {
            Ok(swept) if swept.segments > 0 => {
                tracing::info!(segments = swept.segments, bytes = swept.bytes, "old segments were dropped");
            }
            Ok(_) => {}
            Err(error) => tracing::error!(%error, "old segments could not be dropped; trying again later"),
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

fn open_router(config: &Config, engine: &Engine, clock: Clock) -> Result<Router, StartError> {
    let router = &config.plugins.router;
    let limits = limits(&Limits::router(), &router.limits);
    let bundled = || {
        let source = Source::Bytes(offpeak_bundled::SLA_ROUTER);
        RouterPlugin::load(engine, "sla-router", source, "{}".to_owned(), Limits::router(), clock.now().0)
    };
    let (name, source) = match &router.source {
        PluginSource::Bundled => ("sla-router", Source::Bytes(offpeak_bundled::SLA_ROUTER)),
        PluginSource::File(path) => ("router", Source::File(path)),
    };
    let configured = RouterPlugin::load(engine, name, source, router.config.clone(), limits, clock.now().0)?;
    let bundled = matches!(router.source, PluginSource::File(_)).then(bundled).transpose()?;
    Ok(Router { configured, bundled, on_failure: router.on_failure })
}

fn open_backends(
    config: &Config,
    engine: &Engine,
    clock: Clock,
    network: &Network,
) -> Result<Backends, StartError> {
    let backends = config
        .backends
        .iter()
        .map(|backend| open_backend(config, backend, engine, clock, network).map(Arc::new));
    Ok(Backends::new(backends.collect::<Result<_, _>>()?))
}

fn open_backend(
    config: &Config,
    backend: &config::Backend,
    engine: &Engine,
    clock: Clock,
    network: &Network,
) -> Result<Backend, StartError> {
    let unusable = |problem: String| StartError::Backend { backend: backend.id.to_string(), problem };
    let chosen = config
        .plugins
        .provider(&backend.provider)
        .ok_or_else(|| unusable(format!("there is no provider plugin '{}'", backend.provider)))?;
    let source = match &chosen.source {
        PluginSource::Bundled => {
            let bundled = offpeak_bundled::PROVIDERS.into_iter().find(|(name, _)| *name == chosen.name);
            let (_, component) = bundled
                .ok_or_else(|| unusable(format!("the provider plugin '{}' is not bundled", chosen.name)))?;
            Source::Bytes(component)
        }
        PluginSource::File(path) => Source::File(path),
    };
    let limits = limits(&Limits::provider(), &chosen.limits);
    let provider =
        ProviderPlugin::load(engine, &chosen.name, source, backend.config.clone(), limits, clock.now().0)?;
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
        provider,
        upstream,
        turns: Turns::new(clock, backend.lanes.rescue_concurrency),
        retries: Mutex::new(RetryBudget::new(RETRY_SHARE_PERMILLE)),
        quota_a_minute: AtomicU64::new(0),
        listed: Mutex::default(),
    })
}

fn limits(defaults: &Limits, configured: &PluginLimits) -> Limits {
    Limits { memory_bytes: configured.memory, call: configured.time_limit, ..defaults.clone() }
}

fn millis(duration: Duration) -> Millis {
    Millis(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX))
}
