//! What plugins have done, as they tell when somebody reads the metrics: a call itself counts nothing here.

use std::sync::atomic::{AtomicU64, Ordering};

use offpeak_core::words::BackendId;
use offpeak_host::PluginReport;
use parking_lot::Mutex;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// A plugin in its place. A name may be at work in several: the configured one and the bundled one, and at each backend.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Place {
    plugin: String,
    role: &'static str,
    backend: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfCalls {
    plugin: String,
    role: &'static str,
    backend: String,
    quantile: &'static str,
}

#[derive(Default)]
pub(super) struct PluginUse {
    calls: Family<Place, Counter>,
    failures: Family<Place, Counter>,
    traps: Family<Place, Counter>,
    timeouts: Family<Place, Counter>,
    seconds: Family<Place, Counter<f64, AtomicU64>>,
    quantiles: Family<OfCalls, Gauge<f64, AtomicU64>>,
    out_of_use: Family<Place, Gauge>,
    instances: Family<Place, Gauge>,
    memory: Family<Place, Gauge>,
    /// Held from the filling to the reading: two who read at once see all of it.
    reading: Mutex<()>,
}

impl PluginUse {
    pub(super) fn describe(&self, r: &mut Registry) {
        r.register("plugin_calls", "Calls of a plugin since it was loaded", self.calls.clone());
        r.register("plugin_failed_calls", "Those of them that had no usable answer", self.failures.clone());
        r.register("plugin_traps", "Those of them in which it crashed", self.traps.clone());
        r.register("plugin_timeouts", "Those of them that took too long", self.timeouts.clone());
        r.register("plugin_call_seconds", "Time that its calls took together", self.seconds.clone());
        r.register(
            "plugin_call_time_seconds",
            "What its calls took, since it was loaded: half of them, 99 of a hundred, the longest",
            self.quantiles.clone(),
        );
        r.register(
            "plugin_out_of_use",
            "1 while a plugin rests after repeated failures",
            self.out_of_use.clone(),
        );
        r.register("plugin_instances", "Its instances that live now", self.instances.clone());
        r.register(
            "plugin_instance_bytes",
            "The most linear memory that one instance of it has had",
            self.memory.clone(),
        );
    }

    /// Has the plugins of now, and no others, in what `read` reads.
    pub(super) fn with<T>(
        &self,
        plugins: &[(PluginReport, Option<BackendId>)],
        read: impl FnOnce() -> T,
    ) -> T {
        let _whole = self.reading.lock();
        self.forget();
        for (report, backend) in plugins {
            self.set(report, backend.as_ref().map_or("", BackendId::as_str));
        }
        read()
    }

    fn forget(&self) {
        for counters in [&self.calls, &self.failures, &self.traps, &self.timeouts] {
            counters.clear();
        }
        for gauges in [&self.out_of_use, &self.instances, &self.memory] {
            gauges.clear();
        }
        self.seconds.clear();
        self.quantiles.clear();
    }

    fn set(&self, report: &PluginReport, backend: &str) {
        let place = Place { plugin: report.name.clone(), role: report.world, backend: backend.to_owned() };
        let health = report.health;
        for (counters, count) in [
            (&self.calls, health.calls),
            (&self.failures, health.errors),
            (&self.traps, health.traps),
            (&self.timeouts, health.timeouts),
        ] {
            counters.get_or_create(&place).inner().store(count, Ordering::Relaxed);
        }
        let times = report.times;
        self.seconds.get_or_create(&place).inc_by(times.total.as_secs_f64());
        for (quantile, time) in [("0.5", times.p50), ("0.99", times.p99), ("1", times.max)] {
            let Place { plugin, role, backend } = place.clone();
            let labels = OfCalls { plugin, role, backend, quantile };
            self.quantiles.get_or_create(&labels).set(time.as_secs_f64());
        }
        self.out_of_use.get_or_create(&place).set(i64::from(health.out_of_use));
        self.instances.get_or_create(&place).set(i64::from(report.instances));
        self.memory.get_or_create(&place).set(i64::try_from(report.memory_bytes).unwrap_or(i64::MAX));
    }
}
