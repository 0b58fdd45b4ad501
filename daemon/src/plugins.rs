//! Loads the plugins that the configuration names: at the start, and again while the daemon runs.
//!
//! All are loaded beside those at work: read, checked against their pins, compiled, linked, and asked to describe
//! themselves; one that comes in another's place is tried with an ordinary call, too. Only when all of them are there they are taken into use together; if one is not, nothing has changed.

pub mod sample;
mod settings;
pub mod trial;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

use offpeak_core::words::BackendId;
use offpeak_host::{
    AnyPlugin, CostPlugin, Engine, EnginePlugin, HostError, Limits, PluginError, PluginReport,
    ProviderPlugin, RetryPlugin, RouterPlugin, Source, read_file,
};
use tokio::sync::Mutex;
use tokio::task::JoinError;

use crate::clock::Clock;
use crate::config::{self, PluginLimits, PluginSource};

/// A plugin, and the bundled one that stands in for it where it fails.
#[derive(Debug, Clone)]
pub struct InUse<P> {
    /// The configured one.
    pub configured: Arc<P>,
    /// The bundled one, if the configured one is another.
    pub bundled: Option<Arc<P>>,
}

impl<P> InUse<P> {
    /// In the order in which they are asked.
    pub fn each(&self) -> impl Iterator<Item = &Arc<P>> {
        std::iter::once(&self.configured).chain(&self.bundled)
    }
}

/// What a reload has done to one plugin.
#[derive(Debug, Clone)]
pub struct Reloaded {
    /// The plugin that is at work now.
    pub plugin: PluginReport,
    /// The backend, if it is a provider's plugin or an engine's adapter.
    pub used_by: Option<BackendId>,
    /// SHA-256 of the one before.
    pub before: String,
    /// It is another one, or has other settings or limits.
    pub changed: bool,
}

/// A new plugin, or the one at work if that is the same: it is warm, and knows its past.
pub fn replace<P: AnyPlugin>(
    fresh: Arc<P>,
    at_work: &Arc<P>,
    used_by: Option<BackendId>,
) -> (Arc<P>, Reloaded) {
    let changed = !fresh.is_like(at_work);
    let next = if changed { fresh } else { at_work.clone() };
    let told = Reloaded { plugin: next.report(), used_by, before: at_work.report().sha256, changed };
    (next, told)
}

impl<P: AnyPlugin> InUse<P> {
    /// What comes after `at_work` when these have been loaded.
    pub fn replacing(self, at_work: &Self) -> (Self, Reloaded) {
        let (configured, told) = replace(self.configured, &at_work.configured, None);
        let bundled = match (self.bundled, &at_work.bundled) {
            (Some(fresh), Some(at_work)) => Some(replace(fresh, at_work, None).0),
            (fresh, _) => fresh,
        };
        (Self { configured, bundled }, told)
    }
}

/// A plugin cannot be taken into use.
#[derive(Debug, thiserror::Error)]
pub enum LoadError {
    /// It cannot be loaded.
    #[error("a plugin could not be loaded: {0}")]
    Plugin(#[from] HostError),
    /// That of a place in the configuration cannot be loaded.
    #[error("the plugin of [{table}] could not be loaded: {error}")]
    OfTable {
        /// Which place.
        table: String,
        /// Why.
        #[source]
        error: HostError,
    },
    /// It crashed when it read its settings, which is how plugins refuse them.
    #[error("{whose} does not take its settings in [{table}.config]: {why}")]
    Settings {
        /// Which plugin, in words.
        whose: String,
        /// Where its settings stand.
        table: String,
        /// What it said, and what to mend.
        why: String,
    },
    /// That of a backend cannot be loaded with the backend's settings.
    #[error("the plugin of the backend '{backend}' could not be loaded: {error}")]
    OfBackend {
        /// Which backend.
        backend: String,
        /// Why.
        #[source]
        error: HostError,
    },
    /// A backend names a provider plugin that is not there.
    #[error("the backend '{backend}' names the provider plugin '{provider}', and there is none of that name")]
    NoProvider {
        /// Which backend.
        backend: String,
        /// What it names.
        provider: String,
    },
    /// A provider plugin that wants the credential at another place.
    #[error(
        "the provider plugin of the backend '{backend}' wants the credential in another header than the one at work; that \
         needs a restart"
    )]
    OtherCredential {
        /// Which backend.
        backend: String,
    },
    /// A component that knows an engine's metrics in the place of one that does not, or the other way round.
    #[error(
        "of the provider plugin of the backend '{backend}' and the one at work, one knows an engine's metrics (world `engine`) and \
         the other does not; that needs a restart"
    )]
    OtherRoles {
        /// Which backend.
        backend: String,
    },
    /// One that was to come in another's place crashes.
    #[error(
        "with an ordinary call the new component does not work: {error}. It was asked: {asked}. Try it with `offpeak plugin check`"
    )]
    Crashes {
        /// What it was asked.
        asked: &'static str,
        /// What happened; it names the plugin and the function.
        #[source]
        error: PluginError,
    },
    /// Loading broke off.
    #[error("loading the plugins broke off: {0}")]
    BrokeOff(#[from] JoinError),
}

/// Where a provider plugin is used, and with which settings.
#[derive(Debug, Clone)]
pub struct Seat {
    /// The backend.
    pub backend: BackendId,
    /// The plugin's name.
    pub provider: String,
    /// The plugin's settings at this backend.
    pub config: String,
    /// The backend is an engine by its configuration: the plugin must know its metrics.
    pub is_engine: bool,
}

impl From<&config::Backend> for Seat {
    fn from(backend: &config::Backend) -> Self {
        let config::Backend { id, provider, config, engine, .. } = backend;
        let (backend, provider, config) = (id.clone(), provider.clone(), config.clone());
        Self { backend, provider, config, is_engine: engine.is_set }
    }
}

/// Every plugin, loaded and not yet at work.
pub struct Fresh {
    /// The routers of the chain, by their names.
    pub chain: Vec<(String, Arc<RouterPlugin>)>,
    /// The router behind them.
    pub router: InUse<RouterPlugin>,
    /// The retry policy.
    pub retries: InUse<RetryPlugin>,
    /// The cost policy.
    pub costs: InUse<CostPlugin>,
    /// The plugins of the backends.
    pub seated: Vec<Seated>,
}

/// The plugins of one backend: one component, in one role or two.
pub struct Seated {
    /// The backend.
    pub backend: BackendId,
    /// What knows its wire.
    pub provider: ProviderPlugin,
    /// What knows its metrics, if it is an engine.
    pub adapter: Option<EnginePlugin>,
}

/// What was chosen last, and the means to load it anew.
pub struct Reloader {
    loader: Loader,
    seats: Vec<Seat>,
    /// Held during a reload, so that there is one at a time.
    pub chosen: Mutex<config::Plugins>,
}

impl Reloader {
    /// For the plugins and backends of a configuration.
    pub fn new(loader: &Loader, config: &config::Config) -> Self {
        let seats = config.backends.iter().map(Seat::from).collect();
        Self { loader: loader.afresh(), seats, chosen: Mutex::new(config.plugins.clone()) }
    }

    /// Loads all of these, or says what is wrong with the first that cannot be loaded. Compiling takes its time, on
    /// another thread.
    pub async fn load(&self, plugins: config::Plugins) -> Result<Fresh, LoadError> {
        let (loader, seats) = (self.loader.afresh(), self.seats.clone());
        tokio::task::spawn_blocking(move || loader.all(&plugins, &seats)).await?
    }
}

/// What loading needs, whatever is loaded.
#[derive(Debug, Clone)]
pub struct Loader {
    /// Compiles them.
    engine: Engine,
    /// Their clock.
    pub clock: Clock,
    /// What was read so far. A file may be replaced at any moment, and all who use it are to have the same component.
    files: Arc<parking_lot::Mutex<BTreeMap<PathBuf, Arc<[u8]>>>>,
}

/// Loads a plugin of a world: its name, source, settings and limits.
type Load<'a, P> = dyn Fn(&str, Source<'_>, String, Limits) -> Result<P, HostError> + 'a;

/// Why the plugin of a place in the configuration, with these settings, cannot be loaded; `load` tries it with others.
fn of_table<'a, P>(
    table: &'a str,
    plugin: &'a str,
    config: &'a str,
    load: impl Fn(String) -> Result<P, HostError> + 'a,
) -> impl FnOnce(HostError) -> LoadError + 'a {
    move |error| match settings::refusal(&error, config, |config| load(config).is_ok()) {
        Some(why) => {
            LoadError::Settings { whose: format!("the plugin '{plugin}'"), table: table.to_owned(), why }
        }
        None => LoadError::OfTable { table: table.to_owned(), error },
    }
}

/// A plugin of a policy's kind: what differs between the worlds.
struct Kind<'a, P> {
    /// Where it stands in the configuration.
    table: &'static str,
    /// What the configured one is called,
    name: &'static str,
    /// and the bundled one.
    bundled_name: &'static str,
    bundled: &'static [u8],
    defaults: Limits,
    load: &'a Load<'a, P>,
}

impl Loader {
    /// One that has read nothing.
    pub fn new(engine: Engine, clock: Clock) -> Self {
        Self { engine, clock, files: Arc::default() }
    }

    /// The same, and files are read again.
    fn afresh(&self) -> Self {
        Self::new(self.engine.clone(), self.clock)
    }

    /// A plugin's file, if it is in one.
    fn file(&self, plugin: &str, source: &PluginSource) -> Result<Option<Arc<[u8]>>, HostError> {
        let PluginSource::File(path) = source else { return Ok(None) };
        let mut files = self.files.lock();
        if let Some(read) = files.get(path) {
            return Ok(Some(read.clone()));
        }
        let read: Arc<[u8]> = read_file(plugin, path)?.into();
        files.insert(path.clone(), read.clone());
        Ok(Some(read))
    }

    fn all(&self, plugins: &config::Plugins, seats: &[Seat]) -> Result<Fresh, LoadError> {
        Ok(Fresh {
            chain: self.chain(&plugins.routers)?,
            router: self.router(&plugins.router)?,
            retries: self.retry_policy(&plugins.retry_policy)?,
            costs: self.cost_policy(&plugins.cost_policy)?,
            seated: seats.iter().map(|seat| self.seat(plugins, seat)).collect::<Result<_, LoadError>>()?,
        })
    }

    /// The routers that are asked first. No bundled one stands in for one of them: the next one does.
    pub fn chain(
        &self,
        chosen: &[config::NamedRouter],
    ) -> Result<Vec<(String, Arc<RouterPlugin>)>, LoadError> {
        let load = |config::NamedRouter { name, router, .. }: &config::NamedRouter| {
            let source = match &router.source {
                PluginSource::Bundled => Source::Bytes(offpeak_bundled::SLA_ROUTER),
                PluginSource::File(path) => Source::File(path),
            };
            let source = pinned(&source, router.sha256.as_deref());
            let limits = limits(&Limits::router(), &router.limits);
            let (config, now) = (router.config.clone(), self.clock.now().0);
            let table = format!("plugins.routers.{name}");
            let load = |config| RouterPlugin::load(&self.engine, name, source, config, limits.clone(), now);
            let plugin = load(config).map_err(of_table(&table, name, &router.config, load))?;
            Ok((name.clone(), Arc::new(plugin)))
        };
        chosen.iter().map(load).collect()
    }

    /// The router.
    pub fn router(&self, chosen: &config::RouterPlugin) -> Result<InUse<RouterPlugin>, LoadError> {
        let kind = Kind {
            table: "plugins.router",
            name: "router",
            bundled_name: "sla-router",
            bundled: offpeak_bundled::SLA_ROUTER,
            defaults: Limits::router(),
            load: &|name, source, config, limits| {
                RouterPlugin::load(&self.engine, name, source, config, limits, self.clock.now().0)
            },
        };
        let config::RouterPlugin { source, sha256, config, on_failure: _, limits } = chosen;
        kind.in_use(self, source, sha256.as_deref(), config, limits)
    }

    /// The retry policy.
    pub fn retry_policy(&self, chosen: &config::Policy) -> Result<InUse<RetryPlugin>, LoadError> {
        let kind = Kind {
            table: "plugins.retry_policy",
            name: "retry-policy",
            bundled_name: "standard-retry",
            bundled: offpeak_bundled::STANDARD_RETRY,
            defaults: Limits::router(),
            load: &|name, source, config, limits| {
                RetryPlugin::load(&self.engine, name, source, config, limits, self.clock.now().0)
            },
        };
        kind.in_use(self, &chosen.source, chosen.sha256.as_deref(), &chosen.config, &chosen.limits)
    }

    /// The cost policy.
    pub fn cost_policy(&self, chosen: &config::Policy) -> Result<InUse<CostPlugin>, LoadError> {
        let kind = Kind {
            table: "plugins.cost_policy",
            name: "cost-policy",
            bundled_name: "standard-cost",
            bundled: offpeak_bundled::STANDARD_COST,
            defaults: Limits::provider(),
            load: &|name, source, config, limits| {
                CostPlugin::load(&self.engine, name, source, config, limits, self.clock.now().0)
            },
        };
        kind.in_use(self, &chosen.source, chosen.sha256.as_deref(), &chosen.config, &chosen.limits)
    }

    /// The plugins of one backend, with its settings.
    pub fn seat(&self, plugins: &config::Plugins, seat: &Seat) -> Result<Seated, LoadError> {
        let tried = |config| self.seated(plugins, &Seat { config, ..seat.clone() });
        self.seated(plugins, seat).map_err(|error| match error {
            LoadError::Plugin(error) => {
                match settings::refusal(&error, &seat.config, |config| tried(config).is_ok()) {
                    Some(why) => LoadError::Settings {
                        whose: format!("the plugin '{}' of the backend '{}'", seat.provider, seat.backend),
                        table: format!("backends.{}", seat.backend),
                        why,
                    },
                    None => LoadError::OfBackend { backend: seat.backend.to_string(), error },
                }
            }
            other => other,
        })
    }

    fn seated(&self, plugins: &config::Plugins, seat: &Seat) -> Result<Seated, LoadError> {
        let chosen = Chosen::of(plugins, seat)?;
        let (name, config, now) = (&chosen.plugin.name, &seat.config, self.clock.now().0);
        let file = self.file(name, &chosen.plugin.source)?;
        let (limits, origin) = (|| chosen.limits.clone(), chosen.origin(file.as_deref()));
        let source = pinned(&origin, chosen.plugin.sha256.as_deref());
        let provider = ProviderPlugin::load(&self.engine, name, source, config.clone(), limits(), now)?;
        let adapter = if chosen.may_adapt() || seat.is_engine {
            match EnginePlugin::load(&self.engine, name, source, config.clone(), limits(), now) {
                Ok(adapter) => Some(adapter),
                Err(HostError::WrongWorld { .. }) if !seat.is_engine => None,
                Err(error) => return Err(error.into()),
            }
        } else {
            None
        };
        Ok(Seated { backend: seat.backend.clone(), provider, adapter })
    }
}

/// What the configuration says of a backend's provider plugin.
struct Chosen<'a> {
    plugin: &'a config::ProviderPlugin,
    limits: Limits,
    /// The bundled one.
    bundled: &'static [u8],
}

impl<'a> Chosen<'a> {
    fn of(plugins: &'a config::Plugins, seat: &Seat) -> Result<Self, LoadError> {
        let missing =
            || LoadError::NoProvider { backend: seat.backend.to_string(), provider: seat.provider.clone() };
        let plugin = plugins.provider(&seat.provider).ok_or_else(missing)?;
        let bundled = match &plugin.source {
            PluginSource::Bundled => {
                let bundled = offpeak_bundled::PROVIDERS.into_iter().find(|(name, _)| *name == plugin.name);
                bundled.ok_or_else(missing)?.1
            }
            PluginSource::File(_) => &[],
        };
        Ok(Self { plugin, limits: limits(&Limits::provider(), &plugin.limits), bundled })
    }

    /// It may know an engine's metrics too: of the bundled ones that is known, and what is in a file is seen by loading it.
    fn may_adapt(&self) -> bool {
        match self.plugin.source {
            PluginSource::Bundled => offpeak_bundled::ENGINES.contains(&&*self.plugin.name),
            PluginSource::File(_) => true,
        }
    }

    /// Where it comes from.
    fn origin<'b>(&'b self, file: Option<&'b [u8]>) -> Source<'b> {
        read(&self.plugin.source, file).unwrap_or(Source::Bytes(self.bundled))
    }
}

impl<P> Kind<'_, P> {
    fn in_use(
        &self,
        loader: &Loader,
        source: &PluginSource,
        sha256: Option<&str>,
        config: &str,
        chosen: &PluginLimits,
    ) -> Result<InUse<P>, LoadError> {
        let limits = limits(&self.defaults, chosen);
        let bundled = Source::Bytes(self.bundled);
        let unreadable = |error| LoadError::OfTable { table: self.table.to_owned(), error };
        let file = loader.file(self.name, source).map_err(unreadable)?;
        let (name, source, stand_in) = match read(source, file.as_deref()) {
            None => (self.bundled_name, bundled, None),
            Some(read) => (self.name, read, Some(bundled)),
        };
        let load = |config| (self.load)(name, pinned(&source, sha256), config, limits.clone());
        let configured = load(config.to_owned()).map_err(of_table(self.table, name, config, load))?;
        let load_bundled =
            |source| (self.load)(self.bundled_name, source, "{}".to_owned(), self.defaults.clone());
        Ok(InUse {
            configured: Arc::new(configured),
            bundled: stand_in.map(load_bundled).transpose()?.map(Arc::new),
        })
    }
}

/// What was read of a plugin's file; none if it is in none.
fn read<'a>(source: &'a PluginSource, file: Option<&'a [u8]>) -> Option<Source<'a>> {
    match source {
        PluginSource::Bundled => None,
        PluginSource::File(path) => Some(Source::Read(path, file.unwrap_or_default())),
    }
}

fn pinned<'a>(source: &'a Source<'a>, sha256: Option<&'a str>) -> Source<'a> {
    sha256.map_or(*source, |sha256| Source::Pinned(source, sha256))
}

fn limits(defaults: &Limits, configured: &PluginLimits) -> Limits {
    let max_instances = configured.instances.unwrap_or(defaults.max_instances);
    Limits {
        memory_bytes: configured.memory,
        call: configured.time_limit,
        max_instances,
        // Of what is made for a rush, a quarter is kept.
        warm_instances: (max_instances / 4).max(1),
        ..defaults.clone()
    }
}
