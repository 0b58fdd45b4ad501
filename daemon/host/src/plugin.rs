//! The life of one call, the same for every world: admit, take an instance, set its limits, call, judge, give back.
//!
//! Phases: a plugin is *linked and checked* once, when it is loaded; it is *instantiated* once for each place in the pool;
//! and it is *called* many times.

use std::{
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use wasmtime::{
    PoolConcurrencyLimitError, Store, Trap, UpdateDeadline,
    component::{InstancePre, Linker},
};

use crate::{
    engine::Engine,
    error::{HostError, PluginError, PluginErrorKind},
    health::{Health, PluginHealth},
    imports::{self, Shared, State},
    limits::Limits,
    load::{Component, Source},
    patience::Patience,
    pool::{Instance, Pool},
    slowness::Slowness,
    times::{PluginTimes, Times},
};

/// A plugin as operators see it.
#[derive(Debug, Clone)]
pub struct PluginReport {
    /// Its name in the configuration.
    pub name: String,
    /// The world that it implements.
    pub world: &'static str,
    /// The file that it was read from; none if it is bundled.
    pub file: Option<PathBuf>,
    /// SHA-256 of the component, in hex: which code is at work.
    pub sha256: String,
    /// Calls, and what became of them.
    pub health: PluginHealth,
    /// How long calls took.
    pub times: PluginTimes,
    /// Instances that live now, at work or waiting for it.
    pub instances: u32,
    /// The most linear memory that one instance has had after a call.
    pub memory_bytes: usize,
}

/// What tells one world from another.
pub(crate) trait World: Sized + Send + 'static {
    /// The world's name in wit/.
    const NAME: &'static str;
    /// The interface that a component of this world exports.
    const EXPORT: &'static str;
    /// Checked types and found functions, from which instances are made.
    type Pre: Send + Sync;

    fn check(linked: InstancePre<State>) -> wasmtime::Result<Self::Pre>;
    fn instantiate(checked: &Self::Pre, store: &mut Store<State>) -> wasmtime::Result<Self>;
}

/// A plugin of whichever world, for those who treat all alike.
pub trait AnyPlugin: Sized {
    /// Loads it and asks it to describe itself. `config_json` is the plugin's own table as the text of one JSON object;
    /// `now_ms` is the time in milliseconds since 1970.
    fn load(
        engine: &Engine,
        name: &str,
        source: Source<'_>,
        config_json: String,
        limits: Limits,
        now_ms: u64,
    ) -> Result<Self, HostError>;

    /// Name and version by its own description.
    fn describes_itself_as(&self) -> (&str, &str);

    /// The plugin as operators see it.
    fn report(&self) -> PluginReport;

    /// The other is the same code, with the same name, settings and limits.
    fn is_like(&self, other: &Self) -> bool;
}

/// What the typed plugins of all worlds have in common: how the world is found in a component, and what is known of a
/// plugin whatever it does. The plugin has the fields `plugin` and `description`.
macro_rules! plugin_of {
    ($plugin:ident, world $world:ident, $name:literal, $export:literal, $pre:ident) => {
        impl crate::plugin::World for $world {
            const NAME: &'static str = $name;
            const EXPORT: &'static str = $export;
            type Pre = $pre<crate::imports::State>;

            fn check(
                linked: wasmtime::component::InstancePre<crate::imports::State>,
            ) -> wasmtime::Result<Self::Pre> {
                $pre::new(linked)
            }

            fn instantiate(
                checked: &Self::Pre,
                store: &mut wasmtime::Store<crate::imports::State>,
            ) -> wasmtime::Result<Self> {
                checked.instantiate(store)
            }
        }

        impl $plugin {
            /// The plugin's name in the configuration.
            pub fn name(&self) -> &str {
                self.plugin.name()
            }

            /// SHA-256 of the component, in hex: which code is at work.
            pub fn sha256(&self) -> &str {
                self.plugin.sha256()
            }

            /// What the plugin said about itself when it was loaded.
            pub fn description(&self) -> &Description {
                &self.description
            }

            /// How the plugin has been doing.
            pub fn health(&self) -> crate::PluginHealth {
                self.plugin.health()
            }
        }

        impl crate::AnyPlugin for $plugin {
            fn load(
                engine: &Engine,
                name: &str,
                source: Source<'_>,
                config_json: String,
                limits: Limits,
                now_ms: u64,
            ) -> Result<Self, HostError> {
                Self::load(engine, name, source, config_json, limits, now_ms)
            }

            fn describes_itself_as(&self) -> (&str, &str) {
                (&self.description.name, &self.description.version)
            }

            fn report(&self) -> crate::PluginReport {
                self.plugin.report()
            }

            fn is_like(&self, other: &Self) -> bool {
                self.plugin.is_like(&other.plugin)
            }
        }
    };
}
pub(crate) use plugin_of;

/// Which of the two time limits a call has.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Pace {
    /// On the way of a request.
    Request,
    /// Off that way.
    Step,
}

/// A time limit, and the same in epochs.
#[derive(Debug, Clone, Copy)]
struct Time {
    limit: Duration,
    ticks: u64,
}

pub(crate) struct Plugin<W: World> {
    engine: Engine,
    shared: Arc<Shared>,
    sha256: String,
    file: Option<PathBuf>,
    checked: W::Pre,
    limits: Limits,
    request_time: Time,
    step_time: Time,
    pool: Pool<W>,
    health: Health,
    times: Times,
    slowness: Slowness,
    memory_bytes: AtomicUsize,
}

impl<W: World> Plugin<W> {
    /// Compiles, links and checks a component. No code of the plugin has run yet when this returns.
    pub(crate) fn load(
        engine: &Engine,
        name: &str,
        source: Source<'_>,
        config_json: String,
        limits: Limits,
    ) -> Result<Self, HostError> {
        serde_json::from_str::<serde_json::Map<String, serde_json::Value>>(&config_json)
            .map_err(|source| HostError::Config { plugin: name.into(), source })?;
        let component = engine.load(name, source)?;
        let checked = link::<W>(engine, &component)?;
        let time = |limit| Time { limit, ticks: engine.ticks(limit) };
        Ok(Self {
            engine: engine.clone(),
            shared: Arc::new(Shared::new(Arc::clone(&component.name), config_json)),
            sha256: component.sha256().to_owned(),
            file: source.file().map(Into::into),
            checked,
            request_time: time(limits.call),
            step_time: time(limits.step),
            pool: Pool::new(limits.warm_instances.min(limits.max_instances), limits.max_instances),
            health: Health::new(),
            times: Times::new(),
            slowness: Slowness::default(),
            memory_bytes: AtomicUsize::new(0),
            limits,
        })
    }

    pub(crate) fn name(&self) -> &str {
        &self.shared.name
    }

    pub(crate) fn sha256(&self) -> &str {
        &self.sha256
    }

    pub(crate) fn health(&self) -> PluginHealth {
        self.health.report()
    }

    pub(crate) fn report(&self) -> PluginReport {
        PluginReport {
            name: self.name().to_owned(),
            world: W::NAME,
            file: self.file.clone(),
            sha256: self.sha256.clone(),
            health: self.health(),
            times: self.times.report(),
            instances: self.pool.live(),
            memory_bytes: self.memory_bytes.load(Ordering::Relaxed),
        }
    }

    /// The same code, with the same name, settings and limits.
    pub(crate) fn is_like(&self, other: &Self) -> bool {
        self.sha256 == other.sha256
            && self.file == other.file
            && self.limits == other.limits
            && self.shared.is_like(&other.shared)
    }

    /// Its calls take long enough for others to notice who share a thread with them.
    pub(crate) fn is_slow(&self, now_ms: u64) -> bool {
        self.slowness.is_slow(now_ms)
    }

    /// Calls the plugin once. `check` sees the answer before the caller does; what it refuses is a bad answer.
    pub(crate) fn call<T>(
        &self,
        call: &'static str,
        pace: Pace,
        now_ms: u64,
        run: impl FnOnce(&mut Store<State>, &W) -> wasmtime::Result<T>,
        check: impl FnOnce(&T) -> Result<(), String>,
    ) -> Result<T, PluginError> {
        let time = match pace {
            Pace::Request => self.request_time,
            Pace::Step => self.step_time,
        };
        self.health.admit(now_ms).map_err(|kind| self.error(call, kind))?;
        // Where others wait behind a call. A step is made where they do not.
        let watched = matches!(pace, Pace::Request).then(|| self.slowness.begin(now_ms));
        let begun = Instant::now();
        let answer = self.instance(now_ms).and_then(|mut instance| {
            arm(&mut instance.store, time, now_ms);
            let answer = run(&mut instance.store, &instance.world)
                .map_err(|error| self.judge(&error, &instance.store, time))?;
            check(&answer).map_err(PluginErrorKind::BadAnswer)?;
            self.note_memory(instance.store.data().meter.memory_bytes());
            if !instance.store.data().meter.is_bloated() {
                self.pool.give_back(instance);
            }
            Ok(answer)
        });
        let took = begun.elapsed();
        self.times.took(took);
        if watched.is_some_and(|watched| self.slowness.end(&watched, took, now_ms)) {
            let took_ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
            tracing::warn!(plugin = self.name(), took_ms, "a plugin takes long");
        }
        match answer {
            Ok(answer) => {
                self.health.succeeded(self.name());
                Ok(answer)
            }
            Err(kind) => {
                self.health.failed(self.name(), &kind, now_ms);
                Err(self.error(call, kind))
            }
        }
    }

    /// Instances seldom grow, so a call that finds nothing new writes nothing that others read.
    fn note_memory(&self, bytes: usize) {
        if bytes > self.memory_bytes.load(Ordering::Relaxed) {
            self.memory_bytes.fetch_max(bytes, Ordering::Relaxed);
        }
    }

    /// The error for an answer that says "no", which is no failure of the plugin.
    pub(crate) fn refused(&self, call: &'static str, reason: &str) -> PluginError {
        self.error(call, PluginErrorKind::Refused(imports::one_line(reason)))
    }

    fn error(&self, call: &'static str, kind: PluginErrorKind) -> PluginError {
        PluginError { plugin: Arc::clone(&self.shared.name), call, kind }
    }

    fn instance(&self, now_ms: u64) -> Result<Instance<W>, PluginErrorKind> {
        if let Some(warm) = self.pool.take() {
            return Ok(warm);
        }
        let Some(place) = self.pool.reserve() else {
            return Err(PluginErrorKind::Busy { max: self.pool.max() });
        };
        let mut store = Store::new(self.engine.wasmtime(), State::new(&self.shared, &self.limits, now_ms));
        store.limiter(|state| &mut state.meter);
        store.epoch_deadline_callback(|mut context| match context.data_mut().patience.more() {
            Some(ticks) => Ok(UpdateDeadline::Continue(ticks)),
            None => Err(Trap::Interrupt.into()),
        });
        store.set_hostcall_fuel(self.limits.answer_bytes);
        // A component may run code while it is instantiated.
        arm(&mut store, self.step_time, now_ms);
        match W::instantiate(&self.checked, &mut store) {
            Ok(world) => Ok(Instance::new(store, world, place)),
            Err(error) if error.is::<Trap>() || store.data().meter.refused_memory() => {
                Err(self.judge(&error, &store, self.step_time))
            }
            Err(error) if error.is::<PoolConcurrencyLimitError>() => Err(PluginErrorKind::NoPlace),
            Err(error) => Err(PluginErrorKind::CannotStart(format!("{error:#}"))),
        }
    }

    /// What a failed call means.
    fn judge(&self, error: &wasmtime::Error, store: &Store<State>, time: Time) -> PluginErrorKind {
        // wasmtime keeps this error's type to itself.
        const TOO_MUCH_DATA: &str = "fuel allocated for hostcalls has been exhausted";
        tracing::debug!(plugin = self.name(), error = format!("{error:?}"), "a plugin call failed");
        let state = store.data();
        match error.downcast_ref::<Trap>() {
            Some(Trap::Interrupt) => PluginErrorKind::Timeout { limit: time.limit },
            _ if state.meter.refused_memory() => {
                PluginErrorKind::OutOfMemory { limit_bytes: self.limits.memory_bytes }
            }
            Some(trap) => PluginErrorKind::Trap {
                message: match &state.last_error {
                    Some(line) => format!("{line} ({trap})"),
                    None => trap.to_string(),
                },
                said: state.last_error.clone(),
            },
            None => {
                let reason = error.root_cause().to_string();
                PluginErrorKind::BadAnswer(if reason.contains(TOO_MUCH_DATA) {
                    format!("it handed over more than {} bytes in one call", self.limits.answer_bytes)
                } else {
                    reason
                })
            }
        }
    }
}

/// The one place where a call's limits are set.
fn arm(store: &mut Store<State>, time: Time, now_ms: u64) {
    store.set_epoch_deadline(time.ticks);
    let state = store.data_mut();
    state.patience = Patience::new(time.limit, time.ticks);
    state.now_ms = now_ms;
    state.last_error = None;
}

fn link<W: World>(engine: &Engine, component: &Component) -> Result<W::Pre, HostError> {
    check_imports::<W>(engine, component)?;
    check_export::<W>(engine, component)?;
    let mut linker = Linker::new(engine.wasmtime());
    imports::link(&mut linker).map_err(|error| HostError::Engine { reason: format!("{error:#}") })?;
    linker.instantiate_pre(&component.compiled).and_then(W::check).map_err(|error| HostError::WrongTypes {
        plugin: Arc::clone(&component.name),
        world: W::NAME,
        reason: format!("{error:#}"),
    })
}

fn check_imports<W: World>(engine: &Engine, component: &Component) -> Result<(), HostError> {
    let imports = component.imports(engine);
    let unknown: Vec<String> =
        imports.iter().filter(|import| !import.offered).map(|import| format!("`{}`", import.name)).collect();
    if unknown.is_empty() {
        return Ok(());
    }
    Err(HostError::UnknownImports {
        plugin: Arc::clone(&component.name),
        world: W::NAME,
        imports: unknown.join(", "),
        offered: imports::OFFERED,
    })
}

fn check_export<W: World>(engine: &Engine, component: &Component) -> Result<(), HostError> {
    let exports = component.exports(engine);
    if exports.iter().any(|name| fits(name, W::EXPORT)) {
        return Ok(());
    }
    let found = if exports.is_empty() {
        "it exports nothing".to_owned()
    } else {
        let names: Vec<String> = exports.iter().map(|name| format!("`{name}`")).collect();
        format!(
            "it exports {}; name it where such a plugin belongs, or build it for this world",
            names.join(", ")
        )
    };
    Err(HostError::WrongWorld {
        plugin: Arc::clone(&component.name),
        world: W::NAME,
        missing: W::EXPORT,
        found,
    })
}

/// Whether an interface can stand for another: the same name, and a compatible version (before 1.0 the second number
/// tells).
pub(crate) fn fits(name: &str, wanted: &str) -> bool {
    fn series(name: &str) -> Option<(&str, &str)> {
        let (interface, version) = name.split_once('@')?;
        Some((interface, version.rsplit_once('.')?.0))
    }
    series(name).is_some() && series(name) == series(wanted)
}

#[cfg(test)]
mod tests {
    use wasmtime::component::TypedFunc;

    use super::*;
    use crate::EngineOptions;

    /// A world of its own, so that a few lines of text are a component of it: one function that answers a string.
    struct Teller(TypedFunc<(), (String,)>);

    impl World for Teller {
        const NAME: &'static str = "teller";
        const EXPORT: &'static str = "offpeak:test/telling@0.1.0";
        type Pre = InstancePre<State>;

        fn check(linked: InstancePre<State>) -> wasmtime::Result<Self::Pre> {
            Ok(linked)
        }

        fn instantiate(checked: &Self::Pre, store: &mut Store<State>) -> wasmtime::Result<Self> {
            let instance = checked.instantiate(&mut *store)?;
            Ok(Self(instance.get_typed_func(&mut *store, "tell")?))
        }
    }

    /// A teller around a core module with a memory and a function `tell` that gives the address of pointer and length.
    fn tell(module: &str) -> Result<String, PluginError> {
        let text = format!(
            r#"(component
                (core module $m {module})
                (core instance $i (instantiate $m))
                (func $tell (result string) (canon lift (core func $i "tell") (memory (core memory $i "memory"))))
                (instance $telling)
                (export "tell" (func $tell))
                (export "offpeak:test/telling@0.1.0" (instance $telling)))"#
        );
        let component = wat::parse_str(text).unwrap();
        let engine = Engine::new(&EngineOptions { pool_instances: 2, ..EngineOptions::default() }).unwrap();
        let limits = Limits {
            memory_bytes: 1 << 20,
            table_elements: 1000,
            call: Duration::from_secs(30),
            step: Duration::from_millis(300),
            ..Limits::router()
        };
        let plugin =
            Plugin::<Teller>::load(&engine, "teller", Source::Bytes(&component), "{}".to_owned(), limits)
                .unwrap();
        plugin
            .call("tell", Pace::Request, 0, |store, world| world.0.call(store, ()), |_| Ok(()))
            .map(|(text,)| text)
    }

    fn failure(module: &str) -> PluginErrorKind {
        tell(module).unwrap_err().kind
    }

    const AT_ZERO: &str = r#"(func (export "tell") (result i32) i32.const 0)"#;

    #[test]
    fn a_string_comes_back() {
        // Pointer 8, length 2, and the text behind them.
        let module = format!(
            r#"(memory (export "memory") 1) (data (i32.const 0) "\08\00\00\00\02\00\00\00hi") {AT_ZERO}"#
        );
        assert_eq!(tell(&module).unwrap(), "hi");
    }

    #[test]
    fn a_string_that_is_none_is_a_bad_answer() {
        for data in
            [r"\08\00\00\00\02\00\00\00\ff\fe", r"\08\00\00\00\ff\ff\ff\7f", r"\ff\ff\ff\ff\02\00\00\00"]
        {
            let module = format!(r#"(memory (export "memory") 1) (data (i32.const 0) "{data}") {AT_ZERO}"#);
            let kind = failure(&module);
            assert!(matches!(kind, PluginErrorKind::BadAnswer(_)), "{data}: {kind:?}");
        }
        let wild = r#"(memory (export "memory") 1) (func (export "tell") (result i32) i32.const -4)"#;
        assert!(matches!(failure(wild), PluginErrorKind::BadAnswer(_)));
    }

    #[test]
    fn a_start_function_is_held_to_the_limits_too() {
        let start = |body: &str| {
            failure(&format!(r#"(memory (export "memory") 1) {AT_ZERO} (func $s {body}) (start $s)"#))
        };
        assert!(matches!(start("unreachable"), PluginErrorKind::Trap { .. }));
        assert_eq!(
            start("(loop $again (br $again))"),
            PluginErrorKind::Timeout { limit: Duration::from_millis(300) }
        );
    }

    #[test]
    fn too_much_memory_or_table_from_the_start_is_refused() {
        let kind = failure(&format!(r#"(memory (export "memory") 17) {AT_ZERO}"#));
        assert_eq!(kind, PluginErrorKind::OutOfMemory { limit_bytes: 1 << 20 });
        let kind = failure(&format!(r#"(memory (export "memory") 1) (table 1001 funcref) {AT_ZERO}"#));
        assert!(matches!(kind, PluginErrorKind::CannotStart(_)), "{kind:?}");
    }

    #[test]
    fn a_growing_table_meets_its_limit() {
        // table.grow answers -1 where it is refused, and the guest traps of its own accord.
        let module = r#"(memory (export "memory") 1) (table $t 10 funcref)
            (func (export "tell") (result i32)
                (if (i32.eq (table.grow $t (ref.null func) (i32.const 1000)) (i32.const -1)) (then unreachable))
                i32.const 0)"#;
        assert!(matches!(failure(module), PluginErrorKind::Trap { .. }));
    }

    #[test]
    fn interfaces_fit_by_name_and_compatible_version() {
        assert!(fits("offpeak:plugin/host@0.1.0", "offpeak:plugin/host@0.1.0"));
        assert!(fits("offpeak:plugin/host@0.1.7", "offpeak:plugin/host@0.1.0"));
        assert!(!fits("offpeak:plugin/host@0.2.0", "offpeak:plugin/host@0.1.0"));
        assert!(!fits("wasi:cli/environment@0.2.3", "offpeak:plugin/host@0.1.0"));
        assert!(!fits("host", "host"), "an interface without a version is nobody's");
    }
}
