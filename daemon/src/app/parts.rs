//! What the configuration names besides the store: a start opens it, and `offpeak check` opens it by the same code and lets go
//! of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use offpeak_host::{Engine, EngineOptions};

use super::{StartError, Telling, open_alerts, open_backends, open_costs, open_tls};
use crate::alerts::Alerts;
use crate::backends::Backends;
use crate::clock::Clock;
use crate::config::Config;
use crate::costs::Costs;
use crate::gateway::Router;
use crate::plugins::Loader;
use crate::retries::Retries;
use crate::telemetry::Metrics;
use crate::upstream::{self, Network};

/// Folders in the store's own that are there after the first start.
const IN_THE_STORE: [&str; 2] = ["log", "files"];

pub(super) struct Parts {
    pub(super) costs: Costs,
    pub(super) retries: Retries,
    pub(super) router: Router,
    pub(super) alerts: Alerts,
    pub(super) telling: Option<Telling>,
    pub(super) backends: Backends,
}

impl Parts {
    /// Opens all of them, or says what is wrong with the first that cannot be used. `run` tells this run from others.
    pub(super) fn open(
        config: &Config,
        loader: &Loader,
        network: &Network,
        metrics: &Arc<Metrics>,
        run: u64,
    ) -> Result<Self, StartError> {
        let costs = open_costs(config, loader, metrics, run)?;
        let retries = loader.retry_policy(&config.plugins.retry_policy)?;
        let retries = Retries::new(retries, config.retry, metrics.clone());
        let chain = loader.chain(&config.plugins.routers)?.into_iter().map(|(_, plugin)| plugin);
        let router = Router::new(chain, loader.router(&config.plugins.router)?, &config.plugins);
        let (alerts, telling) = open_alerts(config)?;
        let backends = open_backends(config, loader, network)?;
        Ok(Self { costs, retries, router, alerts, telling, backends })
    }
}

/// Whether a start would find all that the configuration names as it must be: files, folders, plugins. It leaves nothing
/// behind, takes no address, and looks into no store, so that it may run beside a daemon at work.
pub fn check(config: &Config) -> Result<(), StartError> {
    upstream::install_crypto();
    open_tls(config)?;
    check_store(&config.store.folder)?;
    check_cache(&config.plugins.cache)?;
    let loader = Loader::new(engine(config)?, Clock::System);
    Parts::open(config, &loader, &Network::Http, &Arc::new(Metrics::new()), 0).map(drop)
}

/// Compiled code is read where it is kept already, and none is put there: a check leaves nothing behind.
fn engine(config: &Config) -> Result<Engine, StartError> {
    let cache = &config.plugins.cache;
    let options = |cache_dir| EngineOptions { cache_dir, ..EngineOptions::default() };
    let engine = Engine::new(&options(cache.is_dir().then(|| cache.clone())));
    Ok(engine.or_else(|_| Engine::new(&options(None)))?)
}

/// Whether the store's folder, and those in it, can be written to, or made where they are not there yet.
pub(super) fn check_store(folder: &Path) -> Result<(), StartError> {
    let check = |path| check_folder("store.folder", "the store", path);
    check(folder.to_owned())?;
    IN_THE_STORE.iter().try_for_each(|name| check(folder.join(name)))
}

/// Whether the folder of compiled plugins can be made, if it is not there yet. One that is there may be read only.
pub(super) fn check_cache(folder: &Path) -> Result<(), StartError> {
    if folder.is_dir() {
        return Ok(());
    }
    check_folder("plugins.cache", "the cache of compiled plugins", folder.to_owned())
}

fn check_folder(key: &'static str, what: &'static str, path: PathBuf) -> Result<(), StartError> {
    // A link that leads nowhere is there, and nothing can be made in its place.
    let there = path.ancestors().find(|path| path.symlink_metadata().is_ok());
    let there = there.unwrap_or_else(|| Path::new("."));
    let (is_folder, shown) = (there.metadata().map(|found| found.is_dir()), there.display());
    let problem = match is_folder {
        Err(error) => format!("and {shown} cannot be found: {error}"),
        Ok(false) => format!("and {shown} is not a folder"),
        // A file without a name: it is gone with its handle.
        Ok(true) => match tempfile::tempfile_in(there) {
            Ok(_) => return Ok(()),
            Err(error) => format!("and nothing can be written to {shown}: {error}"),
        },
    };
    Err(StartError::Folder { key, what, path, problem })
}
