//! One task around the pure scheduler: events in, effects out to [`crate::batch`] and [`crate::rescue`].

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Duration;

use offpeak_core::batch::Journey;
use offpeak_core::depart::Reason;
use offpeak_core::extent::{self, Cargo, Range};
use offpeak_core::scheduler::{Effect, Event, Freight, Holder, Means, Reckoning, Scheduler};
use offpeak_core::turnaround::{Sketch, Way};
use offpeak_core::words::{BatchId, LaneId, LaneKey, Mode, Place, TenantId, Timestamp};
use offpeak_store::{BatchRecord, Document, Kind, LaneState, NewBatch, Order, Store, StoreError};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::gateway::Gateway;
use crate::journey;
use crate::lane_book::{Command, Commands, View, Waiting};
use crate::{batch, idle, orphaned, overdue, rescue};

/// A pause before trying again what the store refused.
const STORE_PAUSE: Duration = Duration::from_secs(1);

/// A pause before trying again what a plugin did not do.
const PLUGIN_PAUSE: Duration = Duration::from_secs(10);

/// Commands that are taken in before effects are run, at most.
const COMMANDS_AT_ONCE: usize = 1024;

/// Makes known what was in the store when the daemon started.
pub fn recover(gateway: &Arc<Gateway>, lanes: Vec<LaneState>, batches: Vec<BatchRecord>) {
    let now = gateway.clock.now();
    let mut waiting = Vec::new();
    let mut later = Vec::new();
    for state in lanes {
        match gateway.lanes.reopen(&gateway.backends, state.id, state.key.clone(), now) {
            Ok(is_sold) => {
                tell_of(gateway, &state, is_sold);
                waiting.extend(state.extents);
            }
            Err(error) => {
                tracing::error!(lane = state.id.0, %error, "the requests of a lane wait until its backend's plugin works");
                gateway.lanes.remember(state.id, state.extents);
                later.push((state.id, state.key));
            }
        }
    }
    // What is under way counts before anything leaves, and what is run beside a batch before the batch goes on.
    let journeys = batches.into_iter().filter_map(|record| Some((journey_of(&record)?, record)));
    let (beside, others): (Vec<_>, Vec<_>) =
        journeys.partition(|(journey, _)| matches!(journey, Journey::Beside { .. }));
    for (journey, record) in beside.into_iter().chain(others) {
        gateway.lanes.recovered(record, journey);
    }
    for extent in waiting {
        gateway.lanes.tell(Event::Appended(extent));
    }
    gateway.lanes.tell(Event::Tick);
    if !later.is_empty() {
        gateway.tasks.spawn(open_later(gateway.clone(), later));
    }
}

/// Tells of requests whose backend was taken out of the configuration, or sells nothing of what they ask for.
fn tell_of(gateway: &Gateway, LaneState { id, key, extents, .. }: &LaneState, is_sold: bool) {
    let requests: u64 = extents.iter().map(|extent| u64::from(extent.count)).sum();
    let (lane, backend, model) = (id.0, &key.backend, &key.model);
    if requests == 0 {
        return;
    }
    if !is_sold {
        tracing::error!(
            lane, %backend, %model, requests,
            "nobody sells what waits in a lane, or it may go to no other backend than its own: it waits until somebody does, \
             and gets an error when it is due; is a backend missing in the configuration?"
        );
    } else if gateway.backends.get(backend).is_none() {
        tracing::warn!(lane, %backend, %model, requests, "the backend of a lane is configured no more; its requests go to others");
    }
}

/// Opens lanes whose backend's plugin failed at the start.
async fn open_later(gateway: Arc<Gateway>, mut lanes: Vec<(LaneId, LaneKey)>) {
    while !lanes.is_empty() {
        tokio::select! {
            biased;
            () = gateway.stopping.cancelled() => return,
            () = tokio::time::sleep(PLUGIN_PAUSE) => {}
        }
        let now = gateway.clock.now();
        lanes.retain(|(id, key)| {
            // One that was removed meanwhile is made anew when it is needed.
            gateway.store.lane_key(*id).is_some()
                && gateway.lanes.reopen(&gateway.backends, *id, key.clone(), now).is_err()
        });
    }
}

/// What was learnt of backends by earlier runs.
pub async fn remember(gateway: &Gateway) -> Result<(), StoreError> {
    for (key, value) in all(&gateway.store, Kind::Turnaround).await? {
        let read = (postcard::from_bytes::<Way>(&key), postcard::from_bytes::<Sketch>(&value));
        if let (Ok(way), Ok(sketch)) = read {
            gateway.lanes.tell(Event::Known(way, sketch));
        } else {
            tracing::warn!("a turnaround that was kept cannot be read; it is learnt anew");
        }
    }
    for (key, value) in all(&gateway.store, Kind::LostOffer).await? {
        if !gateway.backends.lost.remember(&key, &value) {
            tracing::warn!("an offer that was lost cannot be read; it is tried again");
        }
    }
    for (way, _) in gateway.backends.lost.all() {
        let lost = gateway.backends.lost.count(&way.backend, &way.offer);
        gateway.metrics.offers_lost(way.backend.as_str(), way.offer.as_str(), lost);
    }
    for (key, value) in all(&gateway.store, Kind::Breaker).await? {
        if let Some(((backend, mode), until)) = gateway.health.restore(&key, &value) {
            gateway.metrics.breaker(backend.as_str(), mode, true);
            gateway.lanes.tell(Event::Shut { backend, mode, until: Some(until) });
        }
    }
    Ok(())
}

/// All documents of a kind that has few.
async fn all(store: &Store, kind: Kind) -> Result<Vec<(bytes::Bytes, bytes::Bytes)>, StoreError> {
    let mut found = Vec::new();
    let mut from = Bound::Unbounded;
    loop {
        let page = store.documents(kind, (from, Bound::Unbounded), Order::Ascending, 1000).await?;
        let Some((last, _)) = page.last() else { return Ok(found) };
        from = Bound::Excluded(last.clone());
        found.extend(page);
    }
}

/// The task's own: the scheduler, and the way to the batches under way.
struct Task {
    gateway: Arc<Gateway>,
    scheduler: Scheduler,
    stops: BTreeMap<BatchId, CancellationToken>,
    wake_at: Timestamp,
    /// Tenants with lanes, and what the scheduler was told that they have.
    tenants: BTreeSet<TenantId>,
    means: HashMap<Holder, Means>,
    /// What it was told of lanes' requests.
    reckoned: HashMap<LaneId, (Reckoning, Option<Arc<str>>)>,
    commands: Commands,
    /// What came while the task waited for the store.
    later: VecDeque<Command>,
}

/// What is reckoned of requests is told again when it has changed by more than this part.
const RECKONED_PART: u64 = 16;

/// Runs the scheduler until the daemon stops.
pub async fn run(gateway: Arc<Gateway>, commands: Commands) {
    let mut task = Task {
        gateway: gateway.clone(),
        scheduler: Scheduler::new(),
        stops: BTreeMap::new(),
        wake_at: Timestamp::NEVER,
        tenants: BTreeSet::new(),
        means: HashMap::new(),
        reckoned: HashMap::new(),
        commands,
        later: VecDeque::new(),
    };
    let mut waiting_commands = Vec::new();
    loop {
        let pause: Duration =
            task.wake_at.since(gateway.clock.now()).min(offpeak_core::words::Millis::from_hours(1)).into();
        waiting_commands.extend(task.later.drain(..));
        let pause = if waiting_commands.is_empty() { pause } else { Duration::ZERO };
        tokio::select! {
            biased;
            () = gateway.stopping.cancelled() => return,
            taken = task.commands.recv_many(&mut waiting_commands, COMMANDS_AT_ONCE) => {
                if taken == 0 {
                    return;
                }
            }
            () = tokio::time::sleep(pause) => waiting_commands.push(Command::Event(Event::Tick)),
        }
        if let Some(event) = task.news_of_means() {
            task.step(event).await;
        }
        for command in waiting_commands.drain(..) {
            match command {
                Command::Event(event) => task.step(event).await,
                Command::Recovered(record, journey) => task.recovered(*record, journey).await,
                Command::Close(lanes, reply) => {
                    let closed: Vec<LaneId> =
                        lanes.into_iter().filter(|lane| task.scheduler.close(*lane)).collect();
                    // If one comes again under its number, it is told anew what its requests take.
                    for lane in &closed {
                        task.reckoned.remove(lane);
                    }
                    drop(reply.send(closed));
                }
                Command::View(reply) => task.show(reply),
            }
        }
        publish(&gateway, &task.scheduler);
    }
}

impl Task {
    /// Shows what waits and what is under way. It may be asked for in the midst of a step; what is shown to have left has
    /// made room by then.
    fn show(&self, reply: oneshot::Sender<View>) {
        publish(&self.gateway, &self.scheduler);
        let view = View {
            lanes: self.scheduler.lanes().collect(),
            voyages: self.scheduler.voyages(self.gateway.clock.now()).collect(),
        };
        // Whoever asked may have gone.
        drop(reply.send(view));
    }

    /// Waits for the store, which may take as long as its disk is full; whoever asks meanwhile what waits is answered. All
    /// else is done afterwards, in its order.
    async fn answering<T>(&mut self, waited_for: impl Future<Output = T>) -> T {
        let mut waited_for = std::pin::pin!(waited_for);
        loop {
            let command = tokio::select! {
                biased;
                done = &mut waited_for => return done,
                command = self.commands.recv() => command,
            };
            match command {
                Some(Command::View(reply)) => self.show(reply),
                Some(command) => self.later.push_back(command),
                None => return waited_for.await,
            }
        }
    }

    /// One event, and what follows from it.
    async fn step(&mut self, event: Event) {
        if let Event::Ended { batch, .. } = &event {
            self.stops.remove(batch);
            self.gateway.beside.forget(*batch);
        }
        // What leaves is under way, which is an event in turn.
        let mut events = self.about(&event);
        events.push(event);
        while let Some(event) = events.pop() {
            let effects = self.scheduler.step(event, self.gateway.clock.now());
            self.wake_at = effects.wake_at.unwrap_or(Timestamp::NEVER);
            for effect in effects.effects {
                events.extend(self.act(effect).await);
            }
        }
    }

    async fn act(&mut self, effect: Effect) -> Option<Event> {
        match effect {
            Effect::Batch { freight, cargo, reason } => {
                let journey = Journey::Batch { cargo: cargo.clone(), progress: None };
                let record =
                    self.leave(freight.clone(), extent::ranges(&cargo), reason, journey.clone()).await?;
                let (batch, since) = (record.id, record.created_at);
                self.spawn(record, journey);
                Some(Event::UnderWay { batch, freight, cargo, since, is_recovered: false })
            }
            Effect::Realtime { freight, cargo } => {
                let ranges = extent::ranges(&cargo);
                let record = self.leave(freight.clone(), ranges, Reason::Rescue, Journey::Realtime).await?;
                let batch = record.id;
                self.spawn(record, Journey::Realtime);
                Some(Event::Sent { batch, freight, cargo, is_beside: false, is_recovered: false })
            }
            Effect::Hedge { batch, freight, cargo } => {
                self.gateway.beside.begin(batch, &cargo);
                let requests = cargo.iter().map(|cargo| cargo.range.len()).sum();
                self.gateway.metrics.escalated(freight.backend.as_str(), "hedge", requests);
                let journey = Journey::Beside { batch, cargo: cargo.clone() };
                let record = self.leave(freight.clone(), Vec::new(), Reason::Rescue, journey.clone()).await?;
                let batch = record.id;
                self.spawn(record, journey);
                Some(Event::Sent { batch, freight, cargo, is_beside: true, is_recovered: false })
            }
            Effect::Cancel { batch, deadline } => {
                // One whose backend is configured no more cannot be stopped.
                let stop = self.stops.get(&batch)?;
                let in_s = deadline.since(self.gateway.clock.now()).0 / 1000;
                tracing::warn!(%batch, deadline_in_s = in_s, "a batch threatens its deadline; the provider is asked to stop it");
                stop.cancel();
                let now = self.gateway.clock.now();
                let view = self.scheduler.voyages(now).find(|voyage| voyage.batch == batch)?;
                let backend = view.freight.backend;
                self.gateway.metrics.escalated(backend.as_str(), "cancel", view.requests);
                None
            }
            Effect::Expire { extents, lack } => {
                let gateway = self.gateway.clone();
                self.gateway.spawn(overdue::give_up(gateway, extents, lack));
                None
            }
            Effect::Keep(way, sketch) => {
                let keys = (postcard::to_allocvec(&way), postcard::to_allocvec(&sketch));
                if let (Ok(key), Ok(value)) = keys {
                    let (key, value) = (key.into(), Some(value.into()));
                    self.gateway.keep(Document { kind: Kind::Turnaround, key, value });
                }
                None
            }
        }
    }

    /// Goes on with a batch of an earlier run.
    async fn recovered(&mut self, record: BatchRecord, journey: Journey) {
        let freight = Freight {
            backend: record.backend.clone(),
            offer: record.offer.clone(),
            endpoint: record.endpoint.clone(),
            model: record.model.clone(),
            headers: record.headers.clone(),
        };
        let (is_beside, cargo) = match &journey {
            Journey::Realtime => {
                let gateway = self.gateway.clone();
                (false, self.answering(cargo_of(&gateway.store, &record.ranges)).await)
            }
            Journey::Beside { batch, cargo } => {
                self.gateway.beside.begin(*batch, cargo);
                (true, cargo.clone())
            }
            Journey::Batch { cargo, .. } => {
                let beside = |part: &Cargo| {
                    let first = Place { lane: part.range.lane, seq: part.range.from };
                    self.gateway.beside.covers(record.id, first)
                };
                let cargo = cargo.iter().copied().filter(|part| !beside(part)).collect();
                let (batch, since) = (record.id, record.created_at);
                self.spawn(record, journey);
                self.step(Event::UnderWay { batch, freight, cargo, since, is_recovered: true }).await;
                return;
            }
        };
        let batch = record.id;
        self.spawn(record, journey);
        self.step(Event::Sent { batch, freight, cargo, is_beside, is_recovered: true }).await;
    }

    /// What the scheduler is to be told beside an event, the last first.
    fn about(&mut self, event: &Event) -> Vec<Event> {
        match event {
            Event::Opened { lane, key, .. } => {
                self.tenants.insert(key.tenant.clone());
                let means = self.news_of_means();
                means.into_iter().chain(self.news_of_lane(*lane, key)).collect()
            }
            Event::Settled { lane, .. } => {
                let key = self.gateway.store.lane_key(*lane);
                key.and_then(|key| self.news_of_lane(*lane, &key)).into_iter().collect()
            }
            _ => Vec::new(),
        }
    }

    /// What tenants have now, of those for whom that has changed.
    fn news_of_means(&mut self) -> Option<Event> {
        let (tenants, now) = (&self.gateway.tenants, self.gateway.clock.now());
        let have: HashMap<Holder, Means> =
            self.tenants.iter().flat_map(|tenant| tenants.means(tenant, now)).collect();
        let is_news = |(holder, means): &(&Holder, &Means)| {
            self.means.get(holder).copied().unwrap_or_default() != **means
        };
        let changed = have.iter().filter(is_news).map(|(holder, means)| (holder.clone(), *means));
        let gone = self.means.keys().filter(|holder| !have.contains_key(*holder));
        let gone = gone.map(|holder| (holder.clone(), Means::default()));
        let news: Vec<(Holder, Means)> = changed.chain(gone).collect();
        self.means = have;
        (!news.is_empty()).then_some(Event::Means(news))
    }

    /// What a lane's requests will probably take, if that is not what was told of it.
    fn news_of_lane(&mut self, lane: LaneId, key: &LaneKey) -> Option<Event> {
        let backends = &self.gateway.backends;
        let provider = backends.get(&key.backend)?.provider();
        let (input_price, output_price) = self.gateway.costs.list_prices(provider.name(), key.model.as_str());
        let demand = backends.calibrations.of(&key.backend, &key.endpoint, &key.model).demand(1000, None);
        let reckoning =
            Reckoning { input_permille: demand.input, output: demand.output, input_price, output_price };
        let account = self.gateway.tenants.account(&key.tenant);
        let models = account.and_then(|account| account.limited_models(key.model.as_str()));
        let (told, told_models) = self.reckoned.get(&lane).cloned().unwrap_or_default();
        let differs = |a: u64, b: u64| a.abs_diff(b) > a.max(b) / RECKONED_PART;
        let is_news = differs(told.input_permille, reckoning.input_permille)
            || differs(told.output, reckoning.output)
            || (told.input_price, told.output_price) != (input_price, output_price)
            || told_models != models;
        is_news.then(|| {
            self.reckoned.insert(lane, (reckoning, models.clone()));
            Event::Reckons { lane, reckoning, models }
        })
    }

    /// Seals what leaves. None if the daemon stops before; it is in its lane then.
    async fn leave(
        &mut self,
        freight: Freight,
        ranges: Vec<Range>,
        reason: Reason,
        journey: Journey,
    ) -> Option<BatchRecord> {
        let requests = match &journey {
            Journey::Beside { cargo, .. } => cargo.iter().map(|cargo| cargo.range.len()).sum(),
            Journey::Batch { .. } | Journey::Realtime => ranges.iter().map(Range::len).sum(),
        };
        let batch = NewBatch {
            backend: freight.backend.clone(),
            endpoint: freight.endpoint,
            model: freight.model,
            offer: freight.offer,
            headers: freight.headers,
            ranges,
            created_at: self.gateway.clock.now(),
            progress: journey::encode(&journey),
        };
        let gateway = self.gateway.clone();
        let record = self.answering(seal(&gateway, batch)).await?;
        self.gateway.metrics.sealed(freight.backend.as_str(), reason, requests);
        if let Some(backend) = self.gateway.backends.get(&freight.backend) {
            backend.retries.lock().earn(requests);
        }
        tracing::info!(
            batch = %record.id, backend = %record.backend, offer = %record.offer, model = %record.model, requests,
            reason = reason.as_str(), "a batch leaves"
        );
        Some(record)
    }

    /// Starts, or goes on with, a batch.
    fn spawn(&mut self, record: BatchRecord, journey: Journey) {
        let gateway = self.gateway.clone();
        let Some(backend) = gateway.backends.get(&record.backend).cloned() else {
            self.gateway.spawn(orphaned::see_through(gateway, record, journey));
            return;
        };
        let here = gateway.clone();
        match journey {
            Journey::Realtime => {
                let ranges = record.ranges.clone();
                here.spawn(rescue::run(gateway, backend, record, ranges));
            }
            Journey::Beside { cargo, .. } => {
                here.spawn(rescue::run(gateway, backend, record, extent::ranges(&cargo)));
            }
            Journey::Batch { cargo, progress } => {
                let stop = CancellationToken::new();
                self.stops.insert(record.id, stop.clone());
                let is_idle = backend.engine.is_some()
                    && here.backends.sale(&record, here.clock.now()).mode == Mode::Engine;
                if is_idle {
                    here.spawn(idle::drive(gateway, backend, record, cargo, stop));
                } else {
                    here.spawn(batch::drive(gateway, backend, record, cargo, progress, stop));
                }
            }
        }
    }
}

/// What an earlier run's rescue was made of, as far as it matters for what it will cost: all requests of a range are
/// reckoned as the first one.
async fn cargo_of(store: &Store, ranges: &[Range]) -> Vec<Cargo> {
    let mut all = Vec::with_capacity(ranges.len());
    for range in ranges {
        let first = Place { lane: range.lane, seq: range.from };
        let entry = store.about(first).await;
        let entry = entry.unwrap_or_else(|error| {
            tracing::error!(lane = range.lane.0, %error, "what a rescue will cost is not known");
            None
        });
        let (tokens, deadline) =
            entry.map_or((0, Timestamp::NEVER), |e| (e.extent.tokens, e.extent.earliest_deadline));
        all.push(Cargo { range: *range, tokens: tokens.saturating_mul(range.len()), deadline });
    }
    all
}

fn journey_of(record: &BatchRecord) -> Option<Journey> {
    match journey::decode(&record.progress) {
        Ok(journey) => Some(journey),
        Err(error) => {
            tracing::error!(
                batch = %record.id, %error,
                "the stored progress of this batch cannot be read; it is left as it is. Was it written by a newer offpeak?"
            );
            None
        }
    }
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

/// Puts the lanes' sums where requests and metrics find them.
fn publish(gateway: &Gateway, scheduler: &Scheduler) {
    let now = gateway.clock.now();
    let mut waiting = Waiting::default();
    let mut oldest = now;
    let mut usual = HashMap::new();
    for view in scheduler.lanes() {
        for plan in view.plans {
            let way = Way { backend: plan.backend, offer: plan.offer, model: view.key.model.clone() };
            usual.insert(way, plan.usual);
        }
        if view.sums.count > 0 {
            waiting.add(view.lane, view.key, view.sums);
        }
        oldest = oldest.min(view.oldest.unwrap_or(now));
    }
    let all = waiting.all;
    gateway.lanes.publish(waiting, usual);
    for (tenant, money) in scheduler.committed() {
        if let Some(account) = gateway.tenants.account(tenant) {
            account.purse().defer(money);
        }
    }
    gateway.metrics.waiting(all.count, all.bytes, now.since(oldest).0);
}
