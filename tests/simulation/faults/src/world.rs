//! What outlives the daemon: true time, the provider, the clients, and what was seen.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use offpeak_core::words::Timestamp;
use offpeak_host::Engine;
use offpeak_store::disk::memory::MemoryDisk;
use parking_lot::Mutex;
use provider_sim::{ExecutionKey, Provider, SimResponse, execution_key};
use tempfile::TempDir;
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::api::Api;
use crate::client::Client;
use crate::dice::Dice;
use crate::plan::{EPOCH, End, LifePlan, Plan};

/// A run's world.
pub(crate) struct World {
    pub(crate) plan: Plan,
    pub(crate) provider: Provider,
    pub(crate) engine: Engine,
    /// For files that clients upload; the store is elsewhere.
    pub(crate) folder: TempDir,
    pub(crate) clients: Vec<Arc<Mutex<Client>>>,
    pub(crate) dice: Mutex<Dice>,
    /// Requests that reach the provider only after their caller has given up, by when.
    late: Mutex<BTreeMap<(u64, u64), Request<Bytes>>>,
    /// The last answers, by path.
    pub(crate) before: Mutex<HashMap<String, Response<Bytes>>>,
    /// What was sent in real time, for deferred requests too.
    rescued: Mutex<BTreeSet<ExecutionKey>>,
    /// How often what happened.
    counts: Mutex<BTreeMap<&'static str, u64>>,
    pub(crate) notes: Notes,
}

/// One life of the daemon, as the world sees it.
pub(crate) struct Life {
    pub(crate) world: Arc<World>,
    pub(crate) plan: LifePlan,
    pub(crate) disk: Arc<MemoryDisk>,
    /// True time at its begin, in milliseconds since [`EPOCH`].
    begins_ms: u64,
    since: Instant,
    calls: Mutex<u64>,
    is_over: AtomicBool,
    pub(crate) bell: Notify,
}

/// What happened, as one number that two runs of one seed must agree on; and in words, if somebody wants to read it.
pub(crate) struct Notes {
    hash: Mutex<u64>,
    pub(crate) are_told: bool,
    violations: Mutex<Vec<String>>,
}

impl Notes {
    pub(crate) fn new(are_told: bool) -> Self {
        Self { hash: Mutex::new(0xcbf2_9ce4_8422_2325), are_told, violations: Mutex::default() }
    }

    /// Something happened at a time.
    pub(crate) fn note(&self, at_ms: u64, what: &dyn Fn() -> String) {
        let text = what();
        let mut hash = self.hash.lock();
        for byte in at_ms.to_le_bytes().iter().chain(text.as_bytes()) {
            *hash = (*hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
        }
        drop(hash);
        if self.are_told {
            let seconds = at_ms / 1000;
            let (days, hours) = (seconds / 86_400, seconds / 3600 % 24);
            let (minutes, rest) = (seconds / 60 % 60, at_ms % 60_000);
            println!("{days}d {hours:02}:{minutes:02}:{:02}.{:03} {text}", rest / 1000, rest % 1000);
        }
    }

    /// Something happened that must not.
    pub(crate) fn violation(&self, what: String) {
        if self.are_told {
            println!("VIOLATION {what}");
        }
        self.violations.lock().push(what);
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().clone()
    }

    pub(crate) fn hash(&self) -> u64 {
        *self.hash.lock()
    }
}

impl World {
    pub(crate) fn new(plan: Plan, engine: Engine, are_told: bool) -> std::io::Result<Arc<Self>> {
        Ok(Arc::new(Self {
            folder: tempfile::tempdir()?,
            provider: plan.provider(),
            clients: (0..plan.clients.len()).map(|_| Arc::default()).collect(),
            dice: Mutex::new(Dice::new(plan.seed, 3)),
            late: Mutex::default(),
            before: Mutex::default(),
            rescued: Mutex::default(),
            counts: Mutex::default(),
            notes: Notes::new(are_told),
            plan,
            engine,
        }))
    }

    /// A request is sent in real time.
    pub(crate) fn sent_now(&self, api: Api, body: &Bytes) {
        self.rescued.lock().extend(execution_key(api.path(), body));
    }

    /// The request with this prompt was sent in real time.
    pub(crate) fn was_rescued(&self, api: Api, prompt: &str) -> bool {
        api.key(prompt).is_some_and(|key| self.rescued.lock().contains(&key))
    }

    /// Counts what happened.
    pub(crate) fn count(&self, what: &'static str) {
        self.count_many(what, 1);
    }

    pub(crate) fn count_many(&self, what: &'static str, times: u64) {
        if times > 0 {
            *self.counts.lock().entry(what).or_default() += times;
        }
    }

    /// What happened how often, the provider's own faults included.
    pub(crate) fn counts(&self) -> BTreeMap<&'static str, u64> {
        let mut counts = self.counts.lock().clone();
        counts.extend(self.provider.faults().counts());
        counts
    }

    /// The provider's answer to a call that reaches it at this time.
    pub(crate) fn ask(&self, at_ms: u64, request: Request<Bytes>) -> SimResponse {
        self.pass_to(at_ms);
        self.provider.handle(request)
    }

    /// The provider gets this only then.
    pub(crate) fn ask_late(&self, at_ms: u64, request: Request<Bytes>) {
        let mut late = self.late.lock();
        let number = late.len() as u64;
        late.insert((at_ms, number), request);
    }

    /// The provider's time is this, and what came to it until then has been done.
    pub(crate) fn pass_to(&self, at_ms: u64) {
        loop {
            let due = self.late.lock().first_key_value().map(|(key, _)| *key).filter(|(at, _)| *at <= at_ms);
            let Some(key) = due else { break };
            let Some(request) = self.late.lock().remove(&key) else { break };
            self.set_clock(key.0);
            let path = request.uri().path().to_owned();
            let answer = self.provider.handle(request);
            self.notes.note(key.0, &|| format!("late: {path} {}", answer.status));
        }
        self.set_clock(at_ms);
    }

    fn set_clock(&self, at_ms: u64) {
        let clock = self.provider.clock();
        let ahead = (EPOCH + at_ms).saturating_sub(clock.now().0);
        clock.advance(std::time::Duration::from_millis(ahead));
    }
}

impl Life {
    pub(crate) fn new(world: Arc<World>, plan: LifePlan, disk: Arc<MemoryDisk>, begins_ms: u64) -> Arc<Self> {
        if let End::AtDiskStep(step) = plan.end {
            disk.power_off_at(disk.steps() + step);
        }
        let failing = plan.disk_errors.map_or(0..0, |(after, count)| {
            let from = disk.steps() + after;
            from..from + count
        });
        disk.fail_steps(failing);
        Arc::new(Self {
            world,
            plan,
            disk,
            begins_ms,
            since: Instant::now(),
            calls: Mutex::new(0),
            is_over: AtomicBool::new(false),
            bell: Notify::new(),
        })
    }

    /// True time.
    pub(crate) fn now_ms(&self) -> u64 {
        self.begins_ms + u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// True time as a wall clock that is right shows it.
    pub(crate) fn wall(&self) -> Timestamp {
        Timestamp(EPOCH + self.now_ms())
    }

    pub(crate) fn note(&self, what: &dyn Fn() -> String) {
        self.world.notes.note(self.now_ms(), what);
    }

    /// The daemon is dead: nothing that it still does reaches anybody.
    pub(crate) fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Relaxed) || self.disk.is_off()
    }

    pub(crate) fn end(&self) {
        self.is_over.store(true, Ordering::Relaxed);
        self.bell.notify_one();
    }

    /// Goes on only in a process that lives.
    pub(crate) async fn alive(&self) {
        if self.is_over() {
            self.bell.notify_one();
            std::future::pending::<()>().await;
        }
    }

    /// Counts a call to the provider: which one it is.
    pub(crate) fn count_call(&self) -> u64 {
        let mut calls = self.calls.lock();
        *calls += 1;
        *calls
    }
}
