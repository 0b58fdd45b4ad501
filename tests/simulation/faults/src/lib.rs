//! A fault simulation: the whole daemon (its logic, the real store on a disk in memory, the real plugins), the simulated
//! provider and clients in one process, on virtual time, from one seed.
//!
//! [`run`] plays one seed: lives of the daemon with faults between and within them, then a calm one in which everything
//! must come to its end; then the provider's bill and what the clients have seen are held against the promises.
//!
//! Reading order: `plan` says what a seed stands for, `life` runs the daemon once until it dies, `client` and `job` ask
//! in the words of `api`, `wire` is the network, `world` what outlives the daemon, `record` what it wrote down about a
//! request, `check` the invariants, `excuses` what faults explain, `tamper` what shows that the checks can fail.

mod api;
mod check;
mod client;
mod dice;
mod excuses;
mod job;
mod life;
mod plan;
mod record;
mod tamper;
mod unwritable;
mod week;
mod wire;
mod world;

use std::cell::Cell;
use std::collections::BTreeMap;
use std::panic::{self, AssertUnwindSafe};
use std::path::Path;
use std::sync::Once;

use offpeak_host::{Engine, EngineOptions, HostError};
use tempfile::TempDir;

use crate::plan::Plan;
pub use crate::tamper::Tampering;
pub use crate::unwritable::unwritable;
pub use crate::week::{Day, Week, week};
use crate::world::World;

/// What a run came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// Two runs of one seed have the same.
    pub hash: u64,
    /// Promises that were broken; empty if all is well.
    pub violations: Vec<String>,
    /// What happened how often: faults, and in parentheses what they are to be compared with.
    pub counts: BTreeMap<&'static str, u64>,
}

impl Outcome {
    /// What to type to see it again.
    #[must_use]
    pub fn replay(&self) -> String {
        format!("cargo run -p fault-simulation -- --seed {} --tell", self.seed)
    }
}

/// Everything that may go wrong, as [`Outcome::counts`] has it. Some hundred seeds have all of it.
pub const FAULTS: [&str; 42] = [
    "batch: cancelled by somebody else",
    "batch: items never run, expires",
    "batch: refused at validation",
    "batch: refused for some lines",
    "batch: stalls and expires",
    "call: 429",
    "call: 5xx",
    "call: 5xx after its effect",
    "call: answer broken off",
    "call: answer cut unnoticed",
    "call: garbage for an answer",
    "client: cancels",
    "client: cancels a job",
    "client: hangs up",
    "clock: set back",
    "clock: set forward",
    "daemon: dies at some time",
    "daemon: dies before a call has its effect",
    "daemon: dies between a call's effect and its answer",
    "daemon: dies in the middle of a disk operation",
    "daemon: stops in good order",
    "disk: a write that was not synced is lost",
    "disk: an operation fails",
    "disk: full",
    "disk: power fails",
    "item: 400",
    "item: 429",
    "item: 5xx",
    "item: without a response",
    "network: an older answer once more",
    "network: connection refused",
    "network: effect after the caller gave up",
    "network: lost after its effect",
    "network: lost before its effect",
    "network: timeout after its effect",
    "network: timeout before its effect",
    "provider: dies during a call",
    "provider: is down",
    "results: a line is garbage",
    "results: a line of nobody",
    "results: a line twice",
    "results: file cut off",
];

/// The plugins, compiled once for all seeds.
#[derive(Debug)]
pub struct Plugins {
    engine: Engine,
    _cache: Option<TempDir>,
}

/// The plugins could not be made ready.
#[derive(Debug, thiserror::Error)]
pub enum PluginsError {
    /// There is no place for their machine code.
    #[error("no folder for the plugins' machine code: {0}")]
    Folder(#[from] std::io::Error),
    /// The host.
    #[error(transparent)]
    Host(#[from] HostError),
}

impl Plugins {
    /// For all seeds of a process.
    pub fn new() -> Result<Self, PluginsError> {
        let cache = tempfile::tempdir()?;
        let kept = Self::kept_in(&cache.path().join("plugins"))?;
        Ok(Self { _cache: Some(cache), ..kept })
    }

    /// For several processes: what one has compiled is used by the next.
    pub fn kept_in(folder: &Path) -> Result<Self, PluginsError> {
        let options = EngineOptions { cache_dir: Some(folder.to_owned()), ..EngineOptions::default() };
        Ok(Self { engine: Engine::new(&options)?, _cache: None })
    }
}

thread_local! {
    /// A task of the daemon panicked on this thread; the runtime would keep that to itself.
    static PANICKED: Cell<bool> = const { Cell::new(false) };
}

/// The daemon is killed at one of its calls to the provider, in a world in which nothing else goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Crash {
    /// Its clients ask Anthropic's API, or else OpenAI's.
    pub of_messages: bool,
    /// At which call, counted from 1.
    pub call: u64,
    /// Before the call has its effect, or else between the effect and its answer.
    pub is_before: bool,
    /// With the process, the power goes: what was not synced is lost.
    pub loses_power: bool,
}

/// Plays a seed. `is_told` prints what happens.
pub fn run(seed: u64, plugins: &Plugins, is_told: bool) -> Outcome {
    run_plan(Plan::new(seed), plugins, is_told)
}

/// Plays one crash. It has happened if [`Outcome::counts`] knows of a daemon that dies.
pub fn run_crash(crash: &Crash, plugins: &Plugins, is_told: bool) -> Outcome {
    run_plan(Plan::crash(crash), plugins, is_told)
}

/// Plays a world in which nothing goes wrong, and breaks a promise, if one is to be broken, before the checks.
pub fn run_tampered(tampering: Option<Tampering>, plugins: &Plugins) -> Outcome {
    run_plan(Plan { tampering, ..Plan::quiet() }, plugins, false)
}

fn run_plan(plan: Plan, plugins: &Plugins, is_told: bool) -> Outcome {
    notice_panics();
    PANICKED.set(false);
    let seed = plan.seed;
    let world = match World::new(plan, plugins.engine.clone(), is_told) {
        Ok(world) => world,
        Err(error) => {
            let violations = vec![format!("no folder for the run: {error}")];
            return Outcome { seed, hash: 0, violations, counts: BTreeMap::new() };
        }
    };
    if is_told {
        println!("{:#?}", world.plan);
    }
    let played = panic::catch_unwind(AssertUnwindSafe(|| play(&world)));
    match played {
        Ok(Ok(())) => {}
        Ok(Err(what)) => world.notes.violation(what),
        Err(_) => world.notes.violation("the simulation panicked".to_owned()),
    }
    if PANICKED.get() {
        world.notes.violation("a task panicked".to_owned());
    }
    let (hash, violations) = (world.notes.hash(), world.notes.violations());
    Outcome { seed, hash, violations, counts: world.counts() }
}

fn play(world: &std::sync::Arc<World>) -> Result<(), String> {
    let mut left = life::nothing();
    let lives = world.plan.lives.iter().chain([&plan::LAST]);
    for (number, plan) in (0..).zip(lives) {
        left = life::run(world, number, plan, &left)?;
    }
    Ok(())
}

fn notice_panics() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            PANICKED.set(true);
            before(info);
        }));
    });
}
