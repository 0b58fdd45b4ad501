//! One task around the pure scheduler: events in, effects out to [`crate::batch`] and [`crate::rescue`].

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use offpeak_core::batch::Journey;
use offpeak_core::depart::Reason;
use offpeak_core::lane::Sums;
use offpeak_core::scheduler::{Effect, Event, Freight, Scheduler};
use offpeak_core::words::{TenantId, Timestamp};
use offpeak_store::{BatchRecord, LaneState, NewBatch};

use crate::gateway::Gateway;
use crate::lane_book::{Command, Commands};
use crate::{batch, rescue};

/// A pause before trying again what the store refused.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// Commands that are taken in before effects are run, at most.
const COMMANDS_AT_ONCE: usize = 1024;

/// Makes known what was in the store when the daemon started.
pub fn recover(gateway: &Arc<Gateway>, lanes: Vec<LaneState>, batches: Vec<BatchRecord>) {
    let now = gateway.clock.now();
    for state in lanes {
        match gateway.lanes.open(&gateway.backends, state.id, state.key, now) {
            Ok(()) => {
                for extent in state.extents {
                    gateway.lanes.tell(Event::Appended(extent));
                }
            }
            Err(error) => {
                tracing::error!(lane = state.id.0, %error, "the requests of a lane are kept and wait for the next start");
            }
        }
    }
    for record in batches {
        spawn(gateway, record, true);
    }
    gateway.lanes.tell(Event::Tick);
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
            biased;
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
        headers: freight.headers,
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
                let NewBatch { backend, endpoint, model, offer, headers, ranges, created_at, progress } =
                    batch;
                return Some(BatchRecord {
                    id,
                    backend,
                    endpoint,
                    model,
                    offer,
                    headers,
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
                    biased;
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
                headers: record.headers.clone(),
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
    gateway.lanes.publish(by_tenant);
    gateway.metrics.waiting(all.count, all.bytes, now.since(oldest).0);
}
