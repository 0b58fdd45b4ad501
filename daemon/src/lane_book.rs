//! What the shell knows of lanes, and the way to the task that decides about them.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use offpeak_core::batch::Journey;
use offpeak_core::extent::Extent;
use offpeak_core::fair::USUAL_WEIGHT;
use offpeak_core::lane::Sums;
use offpeak_core::scheduler::{Event, LaneTerms, LaneView, VoyageView};
use offpeak_core::turnaround::Way;
use offpeak_core::words::{LaneId, LaneKey, Millis, ModelId, TenantId, Timestamp};
use offpeak_host::PluginError;
use offpeak_store::{BatchRecord, Store, StoreError};
use parking_lot::{Mutex, RwLock};
use tokio::sync::{mpsc, oneshot};
use tokio::time::Instant;

use crate::backends::Backends;

/// Lanes that the store is asked to remove in one go.
const REMOVED_AT_ONCE: usize = 256;

/// The way to the lanes' task, and what everybody else needs to know of lanes.
pub struct LaneBook {
    commands: mpsc::UnboundedSender<Command>,
    book: RwLock<HashMap<LaneKey, Known>>,
    /// Who makes or removes lanes has this.
    changing: tokio::sync::Mutex<()>,
    /// The time from which uses are counted.
    since: Instant,
    waiting: RwLock<Waiting>,
    usual: RwLock<HashMap<Way, Millis>>,
    weights: HashMap<TenantId, u32>,
    /// What was found in lanes that could not be opened when the daemon started.
    found: Mutex<HashMap<LaneId, Vec<Extent>>>,
}

/// A lane that may be used.
struct Known {
    lane: LaneId,
    /// When it was handed out last, in milliseconds.
    used: AtomicU64,
}

/// What waits: by tenant, by what has bounds of its own, in all.
#[derive(Debug, Default)]
pub struct Waiting {
    /// By tenant.
    pub tenants: HashMap<TenantId, Sums>,
    /// By tenant and model, where something does.
    pub models: HashMap<TenantId, HashMap<ModelId, Sums>>,
    /// By API key that has limits of its own for deferred work, where something does.
    pub keys: HashMap<Arc<str>, Sums>,
    /// By lane, where something does.
    pub lanes: HashMap<LaneId, Sums>,
    /// In all.
    pub all: Sums,
}

impl Waiting {
    /// What waits in a lane.
    pub fn add(&mut self, lane: LaneId, key: LaneKey, sums: Sums) {
        let LaneKey { tenant, model, api_key, .. } = key;
        let of_model = self.models.entry(tenant.clone()).or_default().entry(model).or_default();
        let of_key = (!api_key.is_empty()).then(|| self.keys.entry(api_key).or_default());
        let of_tenant = self.tenants.entry(tenant).or_default();
        for all in [of_model, of_tenant, &mut self.all].into_iter().chain(of_key) {
            *all = all.plus(sums);
        }
        self.lanes.insert(lane, sums);
    }
}

/// There is no lane for a request.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// It could not be made.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody would take what waits in it.
    #[error(
        "the backend '{backend}' does not sell the offer '{offer}' of '{model}' as something that can be deferred; \
             was it taken out of the configuration?"
    )]
    NotSold {
        /// The backend that the lane is for.
        backend: String,
        /// The offer.
        offer: String,
        /// The model.
        model: String,
    },
    /// The backend's plugin failed.
    #[error(transparent)]
    Plugin(#[from] PluginError),
}

/// What the task is told.
pub enum Command {
    /// For the scheduler.
    Event(Event),
    /// A batch of an earlier run goes on.
    Recovered(Box<BatchRecord>, Journey),
    /// Show what waits and what is under way.
    View(oneshot::Sender<View>),
    /// Forget these lanes, and say which are forgotten: those in which nothing waits.
    Close(Vec<LaneId>, oneshot::Sender<Vec<LaneId>>),
}

/// What the scheduler knows.
#[derive(Debug, Default)]
pub struct View {
    /// All lanes.
    pub lanes: Vec<LaneView>,
    /// What is under way.
    pub voyages: Vec<VoyageView>,
}

/// The task's end of the way.
pub type Commands = mpsc::UnboundedReceiver<Command>;

impl LaneBook {
    /// A way, and its other end. The way has no bound of its own: what is sent on it is one small event a group commit,
    /// and requests are bounded where they are accepted.
    pub fn new(weights: HashMap<TenantId, u32>) -> (Self, Commands) {
        let (commands, receiver) = mpsc::unbounded_channel();
        let (book, waiting, usual) = (RwLock::default(), RwLock::default(), RwLock::default());
        let (changing, since) = (tokio::sync::Mutex::default(), Instant::now());
        let found = Mutex::default();
        (Self { commands, book, changing, since, waiting, usual, weights, found }, receiver)
    }

    /// A tenant's share, in hundredths of the usual one.
    pub fn weight(&self, tenant: &TenantId) -> u32 {
        self.weights.get(tenant).copied().unwrap_or(USUAL_WEIGHT)
    }

    /// For the store: tells the lanes of what was appended durably.
    pub fn on_appended(&self) -> impl Fn(&[Extent]) + Send + Sync + use<> {
        let commands = self.commands.clone();
        move |extents: &[Extent]| {
            for extent in extents {
                send(&commands, Command::Event(Event::Appended(*extent)));
            }
        }
    }

    /// The lane of this key; it is made if there is none.
    pub async fn lane(
        &self,
        store: &Store,
        backends: &Backends,
        key: LaneKey,
        now: Timestamp,
    ) -> Result<LaneId, LaneError> {
        if let Some(lane) = self.use_of(&key) {
            return Ok(lane);
        }
        let _changing = self.changing.lock().await;
        // Somebody else may have made it meanwhile.
        if let Some(lane) = self.use_of(&key) {
            return Ok(lane);
        }
        if !backends.is_deferrable(&key, now)? {
            return Err(not_sold(&key));
        }
        let lane = store.lane(&key).await?;
        // The scheduler hears of a lane before of anything in it: this is sent before the caller can append.
        self.open(backends, lane, key, now)?;
        Ok(lane)
    }

    /// The lane of this key, if it is known. Whoever gets it may append to it for a while: it is not removed meanwhile.
    fn use_of(&self, key: &LaneKey) -> Option<LaneId> {
        let book = self.book.read();
        let known = book.get(key)?;
        known.used.store(self.elapsed(), Ordering::Relaxed);
        Some(known.lane)
    }

    fn elapsed(&self) -> u64 {
        u64::try_from(self.since.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Removes lanes of which nothing is left in the store and that nobody has used for so long. Returns how many.
    pub async fn remove_idle(&self, store: &Store, unused: Millis) -> Result<usize, StoreError> {
        let _changing = self.changing.lock().await;
        let idle = store.idle_lanes().await?;
        // The lanes of earlier runs count as used when this one began.
        let Some(before) = self.elapsed().checked_sub(unused.0) else { return Ok(0) };
        let keys = idle.iter().filter_map(|idle| Some((store.lane_key(idle.id)?, *idle)));
        let (mut taken, mut gone) = (Vec::new(), Vec::new());
        {
            let mut book = self.book.write();
            for (key, idle) in keys {
                match book.get(&key).map(|known| known.used.load(Ordering::Relaxed)) {
                    // Its backend is configured no more, or does not sell this.
                    None => gone.push(idle),
                    Some(used) if used <= before => {
                        taken.extend(book.remove(&key).map(|known| (key, known, idle)));
                    }
                    Some(_) => {}
                }
            }
        }
        let closed = self.close(taken.iter().map(|(_, known, _)| known.lane).collect()).await;
        for (key, known, idle) in taken {
            if closed.contains(&known.lane) {
                gone.push(idle);
            } else {
                // What waits in it was cancelled, and leaves with its batch.
                self.book.write().insert(key, known);
            }
        }
        let mut removed = 0;
        for some in gone.chunks(REMOVED_AT_ONCE) {
            removed += store.remove_lanes(some.to_vec()).await?.len();
        }
        Ok(removed)
    }

    /// Has the scheduler forget lanes; none are forgotten when the daemon is stopping.
    async fn close(&self, lanes: Vec<LaneId>) -> Vec<LaneId> {
        if lanes.is_empty() {
            return lanes;
        }
        let (reply, closed) = oneshot::channel();
        send(&self.commands, Command::Close(lanes, reply));
        closed.await.unwrap_or_default()
    }

    /// The lanes of a tenant, in the order of their numbers.
    pub fn of_tenant(&self, tenant: &TenantId) -> Vec<LaneId> {
        let book = self.book.read();
        let mut lanes: Vec<LaneId> =
            book.iter().filter(|(key, _)| key.tenant == *tenant).map(|(_, known)| known.lane).collect();
        lanes.sort_unstable();
        lanes
    }

    /// What waits in a tenant's lanes; as of the last step of the scheduler.
    pub fn waiting_of(&self, tenant: &TenantId) -> Sums {
        self.waiting.read().tenants.get(tenant).copied().unwrap_or_default()
    }

    /// What waits of some of a tenant's models; as of the last step of the scheduler.
    pub fn waiting_of_models(&self, tenant: &TenantId, is_one: impl Fn(&ModelId) -> bool) -> Sums {
        let waiting = self.waiting.read();
        let models = waiting.models.get(tenant).into_iter().flatten();
        models.filter(|(model, _)| is_one(model)).map(|(_, sums)| *sums).sum()
    }

    /// What waits of an API key that has limits of its own for deferred work; as of the last step of the scheduler.
    pub fn waiting_of_key(&self, api_key: &str) -> Sums {
        self.waiting.read().keys.get(api_key).copied().unwrap_or_default()
    }

    /// What waits in the lane of this key; as of the last step of the scheduler.
    pub fn waiting_in(&self, key: &LaneKey) -> Sums {
        let Some(lane) = self.book.read().get(key).map(|known| known.lane) else { return Sums::default() };
        self.waiting.read().lanes.get(&lane).copied().unwrap_or_default()
    }

    /// What waits in all lanes; as of the last step of the scheduler.
    pub fn waiting_in_all(&self) -> Sums {
        self.waiting.read().all
    }

    /// A batch of an earlier run goes on.
    pub fn recovered(&self, record: BatchRecord, journey: Journey) {
        send(&self.commands, Command::Recovered(Box::new(record), journey));
    }

    /// Tells the scheduler.
    pub fn tell(&self, event: Event) {
        send(&self.commands, Command::Event(event));
    }

    /// All lanes; empty when the daemon is stopping.
    pub async fn view(&self) -> Vec<LaneView> {
        self.whole_view().await.lanes
    }

    /// Everything that the scheduler knows; nothing when the daemon is stopping.
    pub async fn whole_view(&self) -> View {
        let (reply, view) = oneshot::channel();
        send(&self.commands, Command::View(reply));
        view.await.unwrap_or_default()
    }

    /// These stood in a lane when the daemon started. The scheduler is told when the lane is opened, before of anything that
    /// is appended later.
    pub fn remember(&self, lane: LaneId, found: Vec<Extent>) {
        self.found.lock().insert(lane, found);
    }

    /// Makes a lane known to the scheduler, if its backend is configured and sells this.
    pub fn open(
        &self,
        backends: &Backends,
        lane: LaneId,
        key: LaneKey,
        now: Timestamp,
    ) -> Result<(), LaneError> {
        let terms = backends.terms(&key, self.weight(&key.tenant), now)?.ok_or_else(|| not_sold(&key))?;
        self.open_with(lane, key, terms);
        Ok(())
    }

    /// Makes a lane of an earlier run known again. Where nobody sells what it holds any more, that waits until somebody does,
    /// or is given up when it is due. False if it is so.
    pub fn reopen(
        &self,
        backends: &Backends,
        lane: LaneId,
        key: LaneKey,
        now: Timestamp,
    ) -> Result<bool, PluginError> {
        let weight = self.weight(&key.tenant);
        let terms = backends.terms(&key, weight, now)?;
        let is_sold = terms.is_some();
        self.open_with(lane, key, terms.unwrap_or_else(|| LaneTerms::of_nothing(weight)));
        Ok(is_sold)
    }

    fn open_with(&self, lane: LaneId, key: LaneKey, terms: LaneTerms) {
        // Whoever opens it at the same time waits until all that was found in it is told.
        let mut found = self.found.lock();
        self.tell(Event::Opened { lane, key: key.clone(), terms });
        for extent in found.remove(&lane).unwrap_or_default() {
            self.tell(Event::Appended(extent));
        }
        drop(found);
        self.book.write().insert(key, Known { lane, used: AtomicU64::new(self.elapsed()) });
    }

    /// A model is sold otherwise than before, or, without one, the configuration was read again: lanes are told. Those for
    /// which that cannot be found out stay as they are.
    pub fn terms_changed(&self, backends: &Backends, model: Option<&ModelId>, now: Timestamp) {
        // Plugins are asked, which takes its time: lanes are made and removed meanwhile.
        let lanes: Vec<(LaneKey, LaneId)> = {
            let book = self.book.read();
            let lanes = book.iter().filter(|(key, _)| model.is_none_or(|model| key.model == *model));
            lanes.map(|(key, known)| (key.clone(), known.lane)).collect()
        };
        for (key, lane) in lanes {
            let terms = match backends.terms(&key, self.weight(&key.tenant), now) {
                Ok(Some(terms)) => terms,
                Ok(None) => {
                    let (backend, model) = (&key.backend, &key.model);
                    tracing::warn!(lane = lane.0, %backend, %model, "what waits in a lane is not sold any more; it waits until it is, or gets an error when it is due");
                    LaneTerms::of_nothing(self.weight(&key.tenant))
                }
                Err(error) => {
                    tracing::error!(lane = lane.0, %error, "a lane does not know that its offers have changed");
                    continue;
                }
            };
            // One that was removed meanwhile is not made known again.
            let book = self.book.read();
            if book.get(&key).is_some_and(|known| known.lane == lane) {
                self.tell(Event::Opened { lane, key, terms });
            }
        }
    }

    /// How long a way of buying takes by what was seen of it; none if there is no lane that is bought so.
    pub fn usual(&self, way: &Way) -> Option<Millis> {
        self.usual.read().get(way).copied()
    }

    /// Puts the lanes' sums, and how long batches take, where requests find them.
    pub fn publish(&self, waiting: Waiting, usual: HashMap<Way, Millis>) {
        *self.waiting.write() = waiting;
        if *self.usual.read() != usual {
            *self.usual.write() = usual;
        }
    }
}

fn not_sold(key: &LaneKey) -> LaneError {
    LaneError::NotSold {
        backend: key.backend.to_string(),
        offer: key.offer.to_string(),
        model: key.model.to_string(),
    }
}

fn send(commands: &mpsc::UnboundedSender<Command>, command: Command) {
    // The task outlives everybody but the daemon itself; what is told to it then is in the store for the next start.
    if commands.send(command).is_err() {
        tracing::debug!("the lanes have stopped");
    }
}
