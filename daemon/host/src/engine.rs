//! One wasmtime engine for all plugins: its settings with their reasons, and the ticker that ends calls in time.

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use wasmtime::{Config, EngineWeak, InstanceAllocationStrategy, PoolingAllocationConfig};

use crate::{cache::Cache, error::HostError};

/// How an [`Engine`] is set up.
#[derive(Debug, Clone)]
pub struct EngineOptions {
    /// Where machine code is kept between starts; made with mode 0700 if it is not there. `None` compiles every time.
    pub cache_dir: Option<PathBuf>,
    /// Instances of all plugins together that may live at once, where the address space allows to set their places
    /// aside (about 8 GiB of it for each; no memory is used before an instance needs it).
    pub pool_instances: u32,
    /// How often the ticker looks for calls that are over time. A call may run this much longer than its limit.
    pub tick: Duration,
}

impl Default for EngineOptions {
    fn default() -> Self {
        // 5 ms: a tenth of a router's time limit, and 200 wake-ups a second are not seen in the processor's load.
        Self { cache_dir: None, pool_instances: 256, tick: Duration::from_millis(5) }
    }
}

/// Compiles plugins and holds what their instances share. A clone is another handle of the same engine; its ticker
/// stops with the last handle and the last plugin.
#[derive(Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

struct Inner {
    wasmtime: wasmtime::Engine,
    cache: Option<Cache>,
    pooling: bool,
    compilations: AtomicU64,
    ticker: Ticker,
}

impl Engine {
    /// Sets up wasmtime and starts the ticker.
    pub fn new(options: &EngineOptions) -> Result<Self, HostError> {
        let (wasmtime, pooling) = pooled_if_possible(options)?;
        let cache = match &options.cache_dir {
            Some(folder) => Some(Cache::open(folder, &wasmtime)?),
            None => None,
        };
        let ticker = Ticker::start(wasmtime.weak(), options.tick).map_err(HostError::Ticker)?;
        Ok(Self {
            inner: Arc::new(Inner { wasmtime, cache, pooling, compilations: AtomicU64::new(0), ticker }),
        })
    }

    /// Instances have places set aside for them. If not, the address space is limited (`ulimit -v`), and making an
    /// instance costs some tens of microseconds more.
    pub fn is_pooling(&self) -> bool {
        self.inner.pooling
    }

    /// How many components were compiled, and not found in the cache, since the start.
    pub fn compilations(&self) -> u64 {
        self.inner.compilations.load(Ordering::Relaxed)
    }

    pub(crate) fn wasmtime(&self) -> &wasmtime::Engine {
        &self.inner.wasmtime
    }

    pub(crate) fn cache(&self) -> Option<&Cache> {
        self.inner.cache.as_ref()
    }

    pub(crate) fn count_compilation(&self) {
        self.inner.compilations.fetch_add(1, Ordering::Relaxed);
    }

    /// The epochs that surely give a call this long. The one more is the tick that is already running.
    pub(crate) fn ticks(&self, time: Duration) -> u64 {
        let tick = self.inner.ticker.tick.as_nanos();
        u64::try_from(time.as_nanos().div_ceil(tick)).unwrap_or(u64::MAX / 2).saturating_add(1)
    }
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine")
            .field("pooling", &self.inner.pooling)
            .field("compilations", &self.compilations())
            .finish_non_exhaustive()
    }
}

/// Trying is the probe: wasmtime sets the whole pool's address space aside at once, or fails.
fn pooled_if_possible(options: &EngineOptions) -> Result<(wasmtime::Engine, bool), HostError> {
    let mut config = common_config();
    config.allocation_strategy(InstanceAllocationStrategy::Pooling(pool(options.pool_instances)));
    match wasmtime::Engine::new(&config) {
        Ok(engine) => Ok((engine, true)),
        Err(refused) => {
            tracing::warn!(
                reason = format!("{refused:#}"),
                instances = options.pool_instances,
                "no address space to pool plugin instances; making each one anew (raise `ulimit -v`)"
            );
            let mut config = common_config();
            config.allocation_strategy(InstanceAllocationStrategy::OnDemand);
            let engine = wasmtime::Engine::new(&config)
                .map_err(|refused| HostError::Engine { reason: format!("{refused:#}") })?;
            Ok((engine, false))
        }
    }
}

/// What does not depend on the machine. Everything here that changes machine code is in the cache's key by itself.
fn common_config() -> Config {
    let mut config = Config::new();
    config
        // Ends calls that are over time, at a loop's or function's start; costs a load and a compare there.
        .epoch_interruption(true)
        // A guest that calls itself without end traps here, with room left for the host on a thread's 2 MiB.
        .max_wasm_stack(512 << 10)
        // Start-up compiles several plugins, each on all cores.
        .parallel_compilation(true)
        // New instances share their first pages with the file and copy what they write.
        .memory_init_cow(true);
    config
}

/// The pool's places. All of them are address space; only what an instance touches becomes memory.
fn pool(instances: u32) -> PoolingAllocationConfig {
    let mut pool = PoolingAllocationConfig::new();
    pool.total_component_instances(instances)
        // A component holds a few core instances (its program, and the shims around it) and seldom two memories.
        .total_core_instances(instances.saturating_mul(8))
        .total_memories(instances.saturating_mul(2))
        .total_tables(instances.saturating_mul(4))
        // The place of a table; what a plugin may really have is in its own limits.
        .table_elements(100_000)
        .max_tables_per_module(4)
        // Plugins with whole language runtimes in them describe themselves at greater length.
        .max_component_instance_size(8 << 20)
        .max_core_instance_size(4 << 20)
        // Warm instances are kept by this crate, so that an unused place need not be.
        .max_unused_warm_slots(16);
    pool
}

/// The thread that counts epochs. It holds the engine weakly and ends when this is dropped.
struct Ticker {
    tick: Duration,
    stop: Option<mpsc::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Ticker {
    fn start(engine: EngineWeak, tick: Duration) -> std::io::Result<Self> {
        let tick = tick.max(Duration::from_micros(100));
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = thread::Builder::new().name("plugin-ticker".to_owned()).spawn(move || {
            while stopped.recv_timeout(tick) == Err(mpsc::RecvTimeoutError::Timeout) {
                let Some(engine) = engine.upgrade() else { return };
                engine.increment_epoch();
            }
        })?;
        Ok(Self { tick, stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Ticker {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the thread that ends plugin calls in time panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn engine(tick: Duration) -> Engine {
        Engine::new(&EngineOptions { tick, pool_instances: 4, ..EngineOptions::default() }).unwrap()
    }

    #[test]
    fn a_time_limit_is_never_cut_short_by_rounding() {
        let engine = engine(Duration::from_millis(5));
        assert_eq!(engine.ticks(Duration::from_millis(50)), 11);
        assert_eq!(engine.ticks(Duration::from_millis(51)), 12);
        assert_eq!(engine.ticks(Duration::from_nanos(1)), 2);
        assert!(engine.ticks(Duration::MAX) > 1 << 40);
    }

    #[test]
    fn the_ticker_ends_with_the_engine() {
        let engine = engine(Duration::from_millis(1));
        let weak = engine.wasmtime().weak();
        drop(engine);
        assert!(weak.upgrade().is_none(), "dropping waits for the thread, and nothing else holds the engine");
    }
}
