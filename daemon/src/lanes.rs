//! One task around the pure scheduler: events in, effects out to [`crate::batch`] and [`crate::rescue`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use offpeak_core::batch::Journey;
use offpeak_core::depart::Reason;
use offpeak_core::extent::Extent;
use offpeak_core::lane::Sums;
use offpeak_core::scheduler::{Effect, Event, Freight, LaneView, Scheduler};
use offpeak_core::words::{LaneId, LaneKey, TenantId, Timestamp};
use offpeak_store::{BatchRecord, LaneState, NewBatch, StoreError};
use parking_lot::RwLock;
use tokio::sync::{mpsc, oneshot};

use crate::gateway::Gateway;
use crate::{batch, rescue};

/// A pause before trying again what the store refused.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Commands that are taken in before effects are run, at most.
const COMMANDS_AT_ONCE: usize = 1024;

/// The way to the lanes' task.
pub struct Lanes {
    commands: mpsc::UnboundedSender<Command>,
    book: RwLock<HashMap<LaneKey, LaneId>>,
    waiting: RwLock<HashMap<TenantId, Sums>>,
}

/// There is no lane for a request.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// It could not be made.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Nobody would take what waits in it.
    #[error("the backend does not sell this offer as something that can be deferred")]
    NotSold,
}

/// What the task is told.
pub enum Command {
    /// For the scheduler.
    Event(Event),
    /// Show what waits.
    View(oneshot::Sender<Vec<LaneView>>),
}

/// The task's end of the way.
pub type Commands = mpsc::UnboundedReceiver<Command>;

impl Lanes {
    /// A way, and its other end. The way has no bound of its own: what is sent on it is one small event a group commit,
    /// and requests are bounded where they are accepted.
    pub fn new() -> (Self, Commands) {
        let (commands, receiver) = mpsc::unbounded_channel();
        (Self { commands, book: RwLock::default(), waiting: RwLock::default() }, receiver)
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
    pub async fn lane(&self, gateway: &Gateway, key: LaneKey) -> Result<LaneId, LaneError> {
        if let Some(lane) = self.book.read().get(&key) {
            return Ok(*lane);
        }
        let lane = gateway.store.lane(&key).await?;
        // The scheduler hears of a lane before of anything in it: this is sent before the caller can append.
        if self.open(gateway, lane, key) { Ok(lane) } else { Err(LaneError::NotSold) }
    }

    /// The lanes of a tenant.
    pub fn of_tenant(&self, tenant: &TenantId) -> Vec<LaneId> {
        self.book.read().iter().filter(|(key, _)| key.tenant == *tenant).map(|(_, lane)| *lane).collect()
    }

    /// What waits in a tenant's lanes; as of the last step of the scheduler.
    pub fn waiting_of(&self, tenant: &TenantId) -> Sums {
        self.waiting.read().get(tenant).copied().unwrap_or_default()
    }

    /// Tells the scheduler.
    pub fn tell(&self, event: Event) {
        send(&self.commands, Command::Event(event));
    }

    /// All lanes; empty when the daemon is stopping.
    pub async fn view(&self) -> Vec<LaneView> {
        let (reply, view) = oneshot::channel();
        send(&self.commands, Command::View(reply));
        view.await.unwrap_or_default()
    }

    /// Makes the lane known to the scheduler, if its backend is configured and sells this.
    fn open(&self, gateway: &Gateway, lane: LaneId, key: LaneKey) -> bool {
        match gateway.backends.terms(&key, gateway.clock.now()) {
            Ok(Some((terms, gate))) => {
                self.tell(Event::Opened { lane, key: key.clone(), terms, gate });
                self.book.write().insert(key, lane);
                true
            }
            Ok(None) => {
                tracing::error!(
                    lane = lane.0, backend = %key.backend, offer = %key.offer, model = %key.model,
                    "the lane's backend no longer sells this; its requests are kept and wait until the configuration \
                     has it again"
                );
                false
            }
            Err(error) => {
                tracing::error!(lane = lane.0, %error, "the lane waits: its backend's plugin failed");
                gateway.metrics.plugin_failed(&error.plugin);
                false
            }
        }
    }

    /// Makes known what was in the store when the daemon started.
    pub fn recover(&self, gateway: &Arc<Gateway>, lanes: Vec<LaneState>, batches: Vec<BatchRecord>) {
        for state in lanes {
            if self.open(gateway, state.id, state.key) {
                for extent in state.extents {
                    self.tell(Event::Appended(extent));
                }
            }
        }
        for record in batches {
            spawn(gateway, record, true);
        }
        self.tell(Event::Tick);
    }
}

fn send(commands: &mpsc::UnboundedSender<Command>, command: Command) {
    // The task outlives everybody but the daemon itself; what is told to it then is in the store for the next start.
    if commands.send(command).is_err() {
        tracing::debug!("the lanes have stopped");
    }
}

/// Runs the scheduler until the daemon stops.
pub async fn run(gateway: Arc<Gateway>, mut commands: Commands) {
    let mut scheduler = Scheduler::new();
    let mut wake_at = Timestamp::NEVER;
    let mut waiting_commands = Vec::new();
    loop {
        let pause: Duration =
            wake_at.since(gateway.clock.now()).min(offpeak_core::words::Millis::from_hours(1)).into();
        tokio::select! {
            () = gateway.stopping.cancelled() => return,
            taken = commands.recv_many(&mut waiting_commands, COMMANDS_AT_ONCE) => {
                if taken == 0 {
                    return;
                }
            }
            () = tokio::time::sleep(pause) => waiting_commands.push(Command::Event(Event::Tick)),
        }
        for command in waiting_commands.drain(..) {
            match command {
                Command::Event(event) => {
                    let effects = scheduler.step(event, gateway.clock.now());
                    wake_at = effects.wake_at.unwrap_or(Timestamp::NEVER);
                    for effect in effects.effects {
                        depart(&gateway, effect).await;
                    }
                }
                Command::View(reply) => {
                    // Whoever asked may have gone.
                    drop(reply.send(scheduler.lanes().collect()));
                }
            }
        }
        publish(&gateway, &scheduler);
    }
}

/// Seals a batch and sets it on its way.
async fn depart(gateway: &Arc<Gateway>, effect: Effect) {
    let (freight, ranges, reason, journey) = match effect {
        Effect::Batch { freight, ranges, reason } => (freight, ranges, reason, Journey::Batch(None)),
        Effect::Realtime { freight, range } => (freight, vec![range], Reason::Rescue, Journey::Realtime),
    };
    let requests = ranges.iter().map(offpeak_core::extent::Range::len).sum();
    let created_at = gateway.clock.now();
    let progress = batch::encode(&journey);
    let batch = NewBatch {
        backend: freight.backend.clone(),
        endpoint: freight.endpoint,
        model: freight.model,
        offer: freight.offer,
        ranges,
        created_at,
        progress,
    };
    let Some(record) = seal(gateway, batch).await else { return };
    gateway.metrics.sealed(freight.backend.as_str(), reason, requests);
    tracing::info!(
        batch = %record.id, backend = %record.backend, model = %record.model, requests, reason = reason.as_str(),
        "a batch leaves"
    );
    spawn(gateway, record, false);
}

/// Until the store takes it: the scheduler has given these requests away. Not at all if the daemon stops before; they
/// are still in their lanes then.
async fn seal(gateway: &Gateway, batch: NewBatch) -> Option<BatchRecord> {
    loop {
        match gateway.store.seal(batch.clone()).await {
            Ok(id) => {
                let NewBatch { backend, endpoint, model, offer, ranges, created_at, progress } = batch;
                return Some(BatchRecord {
                    id,
                    backend,
                    endpoint,
                    model,
                    offer,
                    ranges,
                    created_at,
                    version: 0,
                    progress,
                    ended: None,
                });
            }
            Err(error) => {
                tracing::error!(%error, "a batch could not be sealed; trying again");
                tokio::select! {
                    () = gateway.stopping.cancelled() => return None,
                    () = tokio::time::sleep(STORE_PAUSE) => {}
                }
            }
        }
    }
}

/// Starts, or goes on with, a batch.
fn spawn(gateway: &Arc<Gateway>, record: BatchRecord, is_recovered: bool) {
    let journey = match batch::decode(&record.progress) {
        Ok(journey) => journey,
        Err(error) => {
            tracing::error!(
                batch = %record.id, %error,
                "the stored progress of this batch cannot be read; it is left as it is. Was it written by a newer offpeak?"
            );
            return;
        }
    };
    let Some(backend) = gateway.backends.get(&record.backend).cloned() else {
        tracing::error!(
            batch = %record.id, backend = %record.backend,
            "the backend of a batch under way is no longer configured; the batch goes on when it is"
        );
        return;
    };
    let gateway = gateway.clone();
    match journey {
        Journey::Realtime => {
            gateway.tasks.clone().spawn(rescue::run(gateway, backend, record));
        }
        Journey::Batch(progress) => {
            let freight = Freight {
                backend: record.backend.clone(),
                offer: record.offer.clone(),
                endpoint: record.endpoint.clone(),
                model: record.model.clone(),
            };
            if is_recovered {
                gateway.lanes.tell(Event::Readmitted(freight.clone()));
            }
            gateway.tasks.clone().spawn(batch::drive(gateway, backend, record, progress, freight));
        }
    }
}

/// Puts the lanes' sums where requests and metrics find them.
fn publish(gateway: &Gateway, scheduler: &Scheduler) {
    let now = gateway.clock.now();
    let mut by_tenant: HashMap<TenantId, Sums> = HashMap::new();
    let mut all = Sums::default();
    let mut oldest = now;
    for view in scheduler.lanes() {
        let sums = by_tenant.entry(view.key.tenant).or_default();
        sums.count += view.sums.count;
        sums.bytes += view.sums.bytes;
        all.count += view.sums.count;
        all.bytes += view.sums.bytes;
        oldest = oldest.min(view.oldest.unwrap_or(now));
    }
    *gateway.lanes.waiting.write() = by_tenant;
    gateway.metrics.waiting(all.count, all.bytes, now.since(oldest).0);
}
