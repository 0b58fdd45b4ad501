//! Requests that a batch would answer too late, or has not answered in time: each is run by itself in real time, as many at
//! once as the provider bears.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{self, StreamExt};
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};
use http::{Method, Response, StatusCode};
use offpeak_core::breaker::Report;
use offpeak_core::extent::Range;
use offpeak_core::outcome::{DidItRun, Ending};
use offpeak_core::retry::{Class, LAST_CHANCE, Verdict};
use offpeak_core::scheduler::Event;
use offpeak_core::turnaround::Way;
use offpeak_core::words::{Millis, Mode, OfferName, Place, TenantId, Timestamp};
use offpeak_host::PluginError;
use offpeak_host::values::provider::Refusal;
use offpeak_store::{BatchRecord, Entry, Selection, StoreError};
use serde::de::IgnoredAny;
use tokio::time::Instant;

use crate::admission::{Admission, admit_late};
use crate::backends::{Backend, DressError, Dressed, PrepareError, PreparedCall};
use crate::costs::{SharedSale, Took};
use crate::damaged;
use crate::fallback::StandIn;
use crate::gateway::Gateway;
use crate::history::{self, Note};
use crate::outcomes::{self, Attempt, Source};
use crate::retries::{Meaning, OUT_OF_ORDER};
use crate::rewrite;
use crate::sent::{self, Sent};
use crate::turns::Asker;
use crate::upstream::{self, CREDENTIAL_REFUSED, SendError};

/// Bodies that are in memory at once, in bytes.
pub const CHUNK_BYTES: usize = 4 << 20;

/// The largest answer of one call.
const ANSWER_MAX: usize = 64 << 20;

/// A pause before trying again what the store or the plugin refused.
pub const PAUSE: Duration = Duration::from_secs(1);

/// While a backend is out of order, it is looked at again after this time at the latest.
const LOOK_AGAIN: Millis = Millis::from_secs(5);

/// So long before its deadline a request gets the answer of its route, if its backend takes no calls: until then the backend
/// may be well again, and after it nobody waits for an answer.
const LAST_MOMENT: Millis = Millis::from_secs(1);

/// What is to be done with a request that is about to be sent.
enum Gate {
    /// It is sent.
    Open,
    /// Its backend takes no calls, and another one does.
    Elsewhere,
    /// Its backend takes no calls, and its time is over: it gets this answer.
    Over(StandIn),
}

/// A way to run a request now.
struct Rung {
    way: Way,
    usual: Millis,
    call: PreparedCall,
    sale: SharedSale,
}

/// One rescue under way.
struct Rescue<'a> {
    gateway: &'a Arc<Gateway>,
    backend: &'a Arc<Backend>,
    record: &'a BatchRecord,
    /// From the offer that was chosen to the fastest one. Never empty.
    rungs: Vec<Rung>,
    /// What was on record when it began, or went on.
    tried: BTreeMap<Place, Sent>,
}

/// Runs what has no outcome yet. Each request is on record before it is sent. After a crash this goes on with what is left;
/// what was under way then may have run, and real-time APIs cannot be asked: that is an attempt with an unknown end, and the
/// retry policy decides, on record, whether there is another. A daemon that is told to stop begins nothing new here, but
/// waits for what it has sent.
pub async fn run(gateway: Arc<Gateway>, backend: Arc<Backend>, record: BatchRecord, ranges: Vec<Range>) {
    loop {
        match run_to_the_end(&gateway, &backend, &record, ranges.clone()).await {
            Ok(()) | Err(StoreError::Closed) => return,
            Err(error) => {
                tracing::error!(batch = %record.id, %error, "a rescue is held up by the store; it goes on by itself");
            }
        }
        if pause(&gateway, PAUSE).await.is_none() {
            return;
        }
    }
}

async fn run_to_the_end(
    gateway: &Arc<Gateway>,
    backend: &Arc<Backend>,
    record: &BatchRecord,
    ranges: Vec<Range>,
) -> Result<(), StoreError> {
    let Some(rungs) = prepare(gateway, backend, record).await else { return Ok(()) };
    let tried = sent::all(&gateway.store, record.id).await?;
    let tried = tried.into_iter().map(|sent| (sent.place, sent)).collect();
    let rescue = Rescue { gateway, backend, record, rungs, tried };
    rescue.give_up_interrupted().await?;
    let mut selection = Some(Selection::from(ranges));
    while let Some(what) = selection {
        let chunk = damaged::sound(gateway, what, CHUNK_BYTES).await?;
        selection = chunk.rest;
        let attempts = stream::iter(chunk.entries)
            .map(|entry| rescue.run_one(entry))
            .buffer_unordered(backend.lanes.rescue_concurrency);
        let mut attempts = std::pin::pin!(attempts);
        while let Some(attempt) = attempts.next().await {
            if let Some((attempt, sale)) = attempt {
                record_surely(gateway, &rescue.source(sale), vec![attempt]).await?;
            }
        }
        if gateway.stopping.is_cancelled() {
            return Ok(());
        }
    }
    sent::forget(&gateway.store, record.id).await?;
    gateway.store.end(record.id, gateway.clock.now(), "rescued").await?;
    gateway.metrics.ended(record.backend.as_str(), "rescued");
    gateway.lanes.tell(Event::Over(record.id));
    Ok(())
}

/// What was under way when the daemon stopped may have run.
pub async fn give_up_interrupted(
    gateway: &Arc<Gateway>,
    source: &Source,
    tried: impl Iterator<Item = &Sent>,
) -> Result<(), StoreError> {
    for Sent { place, tries, .. } in tried.filter(|sent| sent.is_under_way).copied() {
        let ending = Ending::Failed {
            ran: DidItRun::Unknown,
            code: "interrupted".into(),
            message: "offpeak was stopped while the provider may have run this request".into(),
        };
        let (retry_after, request_id, body) = (None, None, Bytes::new());
        let took = Took::NO_TIME;
        let attempt = Attempt { place, ending, tries, retry_after, request_id, body, took };
        tracing::warn!(%place, batch = %source.batch, "a request that was being run by itself was interrupted");
        outcomes::record(gateway, source, vec![attempt]).await?;
    }
    Ok(())
}

/// Records how attempts ended. They were paid for, so they are not given up while the store is in trouble.
pub async fn record_surely(
    gateway: &Arc<Gateway>,
    source: &Source,
    attempts: Vec<Attempt>,
) -> Result<(), StoreError> {
    loop {
        match outcomes::record(gateway, source, attempts.clone()).await {
            Err(error) if error.is_temporary() => {
                tracing::error!(batch = %source.batch, answers = attempts.len(), %error, "answers wait for the store");
                tokio::time::sleep(PAUSE).await;
            }
            recorded => return recorded,
        }
    }
}

/// The ways to an answer now. Waits while the plugin is out of order; none if the daemon stops before.
async fn prepare(gateway: &Gateway, backend: &Backend, record: &BatchRecord) -> Option<Vec<Rung>> {
    loop {
        match ways(gateway, backend, record) {
            Ok(rungs) => return Some(rungs),
            Err(error) => {
                tracing::error!(batch = %record.id, %error, "requests wait: their call could not be prepared");
                pause(gateway, PAUSE).await?;
            }
        }
    }
}

/// Whose a request is. A lane that nobody knows has no tenant to be fair to; its requests are answered all the same.
pub fn tenant_of(gateway: &Gateway, entry: &Entry) -> TenantId {
    let key = gateway.store.lane_key(entry.place.lane);
    key.map_or_else(|| TenantId::from(""), |key| key.tenant)
}

/// Who asks for a turn with a request.
pub fn asker<'a>(gateway: &Gateway, tenant: &'a TenantId, entry: &Entry) -> Asker<'a> {
    Asker {
        model: None,
        tenant,
        weight: gateway.lanes.weight(tenant),
        deadline: entry.deadline,
        tokens: u64::from(entry.tokens),
    }
}

/// None if the daemon stops meanwhile.
pub async fn pause(gateway: &Gateway, pause: Duration) -> Option<()> {
    tokio::select! {
        biased;
        () = gateway.stopping.cancelled() => None,
        () = tokio::time::sleep(pause) => Some(()),
    }
}

/// The offer that was chosen, then the faster ones.
fn ways(gateway: &Gateway, backend: &Backend, record: &BatchRecord) -> Result<Vec<Rung>, PrepareError> {
    let (endpoint, model) = (record.endpoint.as_str(), record.model.as_str());
    let now = gateway.clock.now();
    let menu = gateway.backends.menu(endpoint, model, now).ok();
    let found = menu.as_ref().and_then(|menu| {
        let seller = menu.sellers.iter().find(|seller| seller.backend.id == backend.id)?;
        Some((menu, seller))
    });
    let (menu, seller) = found.unzip();
    let mut offers: Vec<_> = seller
        .iter()
        .flat_map(|seller| &seller.offers)
        .filter(|offer| offer.mode() == Mode::Realtime)
        .collect();
    offers.sort_by_key(|offer| (offer.terms.usual_ms, offer.terms.price_permille));
    let fastest = offers.first().map(|offer| offer.terms.usual_ms);
    let chosen = offers.iter().find(|offer| offer.name == record.offer).map(|offer| offer.terms.usual_ms);
    // An offer that is gone, or was never one for now, is replaced by the fastest.
    let slowest = chosen.or(fastest);
    offers.retain(|offer| Some(offer.terms.usual_ms) <= slowest && offer.terms.price_permille <= 1000);
    if let (true, Some(seller)) = (offers.is_empty(), seller) {
        offers.extend(seller.fastest());
    }
    let rungs: Vec<Rung> = offers
        .iter()
        .rev()
        .map(|offer| {
            let way = Way {
                backend: backend.id.clone(),
                offer: OfferName::from(offer.terms.name.as_str()),
                model: record.model.clone(),
            };
            let call = backend.prepare(endpoint, model, offer.name.as_str(), now)?;
            let (menu, seller) = menu.zip(seller).ok_or_else(no_realtime_offer)?;
            let sale = offer.sale(menu, seller);
            Ok(Rung { way, usual: Millis(offer.terms.usual_ms), call, sale })
        })
        .collect::<Result<_, PrepareError>>()?;
    if rungs.is_empty() {
        return Err(no_realtime_offer());
    }
    Ok(rungs)
}

fn no_realtime_offer() -> PrepareError {
    PrepareError::Refused(Refusal {
        code: "no_realtime_offer".into(),
        message: "the backend sells this model in no real-time mode".into(),
        param: None,
    })
}

impl Rescue<'_> {
    fn source(&self, sale: SharedSale) -> Source {
        Source { batch: self.record.id, backend: self.record.backend.clone(), mode: Mode::Realtime, sale }
    }

    async fn give_up_interrupted(&self) -> Result<(), StoreError> {
        let Some(rung) = self.rungs.first() else { return Ok(()) };
        give_up_interrupted(self.gateway, &self.source(rung.sale.clone()), self.tried.values()).await
    }

    /// Puts a request on record just before it is sent. False if there is nothing to send any more: it was cancelled, its job
    /// is over, or another way was first with its answer. None if the daemon stops before the store takes it.
    async fn is_to_be_sent(&self, place: Place, tries: u16) -> Option<bool> {
        loop {
            match self.put_on_record(place, tries).await {
                Ok(is_open) => return Some(is_open),
                Err(error) => self.wait_for_the_store(error).await?,
            }
        }
    }

    async fn put_on_record(&self, place: Place, tries: u16) -> Result<bool, StoreError> {
        let store = &self.gateway.store;
        let waits_here = store.wait_here(vec![place]).await? == [true];
        if waits_here {
            store.keep(vec![sent::record(self.record.id, Sent { place, tries, is_under_way: true })]).await?;
        }
        Ok(waits_here)
    }

    /// A try failed, and there will be another: both is on record. When that will be is told before, so that whoever reads of the
    /// failure can read of that, too.
    async fn note_failure(&self, entry: &Entry, tries: u16, ended: &Attempt) -> Option<()> {
        let sent = Sent { place: entry.place, tries, is_under_way: false };
        let note = Note {
            at: self.gateway.clock.now(),
            attempts: entry.attempts.saturating_add(tries),
            batch: self.record.id,
            backend: self.backend.id.clone(),
            mode: Mode::Realtime,
            what: history::in_words(&ended.ending),
        };
        loop {
            match self.keep_failure(entry.origin, sent, note.clone()).await {
                Ok(()) => return Some(()),
                Err(error) => self.wait_for_the_store(error).await?,
            }
        }
    }

    async fn keep_failure(&self, origin: Place, sent: Sent, note: Note) -> Result<(), StoreError> {
        let store = &self.gateway.store;
        let mut documents = vec![sent::record(self.record.id, sent)];
        documents.extend(history::with(store, origin, note).await?);
        store.keep(documents).await
    }

    /// None if the daemon stops before.
    async fn wait_for_the_store(&self, error: StoreError) -> Option<()> {
        if matches!(error, StoreError::Closed) {
            return None;
        }
        tracing::error!(batch = %self.record.id, %error, "a request that is to be run by itself waits for the store");
        pause(self.gateway, PAUSE).await
    }

    /// Runs one request, again and again as the retry policy says, and returns how the last attempt ended; none if there is
    /// nothing to run any more, or the daemon stops between two attempts.
    async fn run_one(&self, entry: Entry) -> Option<(Attempt, SharedSale)> {
        let (gateway, backend) = (self.gateway, self.backend);
        let tenant = tenant_of(gateway, &entry);
        let due = self.due(&entry).await?;
        let asker =
            Asker { model: Some(&self.record.model), deadline: due, ..asker(gateway, &tenant, &entry) };
        let (mut tries, mut rung) =
            (self.tried.get(&entry.place).map_or(0, |sent| sent.tries), self.rungs.iter());
        let mut way = rung.next()?;
        loop {
            match self.wait_for_health(&entry, due).await? {
                Gate::Open => {}
                Gate::Elsewhere => return Some((self.not_sent(&entry, tries), way.sale.clone())),
                Gate::Over(answer) => {
                    self.answer_instead(&entry, tries, answer).await?;
                    return None;
                }
            }
            // First: who waits for the quota keeps no turn from those who are due sooner.
            let admission = self.admitted(&entry, way, due).await?;
            // Several rescues may run at once; the backend's turns are for all of them.
            let turn = backend.turns.take(&asker).await;
            if gateway.stopping.is_cancelled() {
                return None;
            }
            let left = entry.deadline.since(gateway.clock.now());
            while left < way.usual
                && let Some(faster) = rung.next()
            {
                way = faster;
            }
            if !self.is_to_be_sent(entry.place, tries.saturating_add(1)).await? {
                return None;
            }
            let started = gateway.clock.now();
            let present = backend.engine.as_ref().map(|engine| engine.presence.enter());
            let mut ended = send(gateway, backend, &way.call, self.record, &entry).await;
            ended.took.together =
                present.as_ref().map_or(1, |present| u32::try_from(present.together()).unwrap_or(u32::MAX));
            drop(present);
            if let Some(admission) = admission {
                // What it took is not read here: it counts as it was reckoned.
                let demand = admission.demand();
                drop(admission.settle(demand));
            }
            let now = gateway.clock.now();
            let attempts = entry.attempts.saturating_add(tries).saturating_add(ended.tries);
            let is_good = ended.ending.is_success();
            let meaning = if is_good {
                Meaning { class: Class::Permanent, not_before: None }
            } else {
                outcomes::meaning(gateway, &way.sale, Mode::Realtime, &ended, attempts, due, now)
            };
            let class = meaning.class;
            let is_refused = matches!(ended.ending, Ending::Answered { status: 429 | 503 | 529 });
            let is_refused = is_refused || class == Class::Exhausted;
            let rest =
                if class == Class::Exhausted { Some(gateway.retries.terms.cap) } else { ended.retry_after };
            if is_refused && class != Class::NoRoom {
                gateway.lanes.tell(Event::TooMany(backend.id.clone()));
            }
            // Want of room at one price is no reason to go slower at another.
            turn.done(is_refused && class != Class::NoRoom, rest);
            gateway.report(&backend.id, Mode::Realtime, report_of(&ended.ending));
            if is_good {
                gateway.lanes.tell(Event::Answered { way: way.way.clone(), took: now.since(started) });
            }
            if matches!(class, Class::NoRoom | Class::NotSold)
                && let Some(faster) = rung.next()
            {
                tracing::debug!(place = %entry.place, offer = %way.way.offer, ?class, "the next offer is bought");
                if class == Class::NoRoom {
                    gateway.metrics.stepped_up(backend.id.as_str(), way.way.offer.as_str());
                    gateway.lanes.tell(Event::NoRoom(way.way.clone()));
                }
                way = faster;
                self.note_failure(&entry, tries, &ended).await?;
                continue;
            }
            if class.is_attempt() {
                tries = tries.saturating_add(ended.tries);
            }
            let attempts = entry.attempts.saturating_add(tries);
            let judged = outcomes::judged(gateway, meaning, attempts, due);
            match outcomes::verdict(gateway, &backend.id, &ended, &judged, now) {
                Verdict::Deliver => return Some((Attempt { tries, ..ended }, way.sale.clone())),
                Verdict::Elsewhere(_) if self.has_next_backend(&entry, now) => {
                    return Some((Attempt { tries, ..ended }, way.sale.clone()));
                }
                // It is run in real time already.
                Verdict::Again(not_before) | Verdict::Elsewhere(not_before) | Verdict::Now(not_before) => {
                    let at = gateway.retries.terms.next_try(&judged, not_before, now);
                    tracing::debug!(place = %entry.place, ?at, "a rescued request failed, and is tried again");
                    let _waiting = gateway.next_tries.wait(entry.place, at);
                    self.note_failure(&entry, tries, &ended).await?;
                    pause(gateway, at.since(now).into()).await?;
                }
            }
        }
    }

    /// It counts against the backend's limits, and waits for them as long as its deadline lets it. None if the daemon stops
    /// before.
    async fn admitted(&self, entry: &Entry, way: &Rung, due: Timestamp) -> Option<Option<Admission>> {
        let (gateway, quota) = (self.gateway, &self.backend.quota);
        if quota.is_open() {
            return Some(None);
        }
        let demand = way.sale.learnt.demand(u64::from(entry.tokens), None);
        let patience = due.before(LAST_CHANCE).since(gateway.clock.now());
        tokio::select! {
            biased;
            () = gateway.stopping.cancelled() => None,
            admission = admit_late(quota, demand, gateway.tenants.started, patience) => Some(Some(admission)),
        }
    }

    fn has_next_backend(&self, entry: &Entry, now: Timestamp) -> bool {
        let key = self.gateway.store.lane_key(entry.place.lane);
        key.is_some_and(|key| outcomes::next_backend(self.gateway, &key, now).is_some())
    }

    /// Waits while the breaker is open and nobody else takes the request; not beyond the point where only trying is left, or
    /// the answer of its route.
    async fn wait_for_health(&self, entry: &Entry, due: Timestamp) -> Option<Gate> {
        let (gateway, backend) = (self.gateway, &self.backend.id);
        loop {
            let now = gateway.clock.now();
            let Err(until) = gateway.health.admit(backend, Mode::Realtime, now) else {
                return Some(Gate::Open);
            };
            let key = gateway.store.lane_key(entry.place.lane);
            let next = key.as_ref().and_then(|key| outcomes::next_backend(gateway, key, now));
            if next
                .is_some_and(|next| gateway.health.shut_until(&next.backend, Mode::Realtime, now).is_none())
            {
                return Some(Gate::Elsewhere);
            }
            let stand_in = key.and_then(|key| gateway.stand_in(&key, backend));
            let last = due.before(if stand_in.is_some() { LAST_MOMENT } else { LAST_CHANCE });
            if now >= last {
                return Some(stand_in.map_or(Gate::Open, Gate::Over));
            }
            let look = until.min(last).since(now).max(Millis(1)).min(LOOK_AGAIN);
            pause(gateway, look.into()).await?;
        }
    }

    /// When its caller wants its answer: what was hurried on the way has an earlier deadline of its own.
    async fn due(&self, entry: &Entry) -> Option<Timestamp> {
        if entry.origin == entry.place {
            return Some(entry.deadline);
        }
        loop {
            match self.gateway.store.entry(entry.origin).await {
                Ok(origin) => {
                    return Some(origin.map_or(entry.deadline, |origin| origin.deadline.max(entry.deadline)));
                }
                Err(error) => self.wait_for_the_store(error).await?,
            }
        }
    }

    /// Goes to another backend as it is.
    fn not_sent(&self, entry: &Entry, tries: u16) -> Attempt {
        let ending = Ending::Failed {
            ran: DidItRun::NotSent,
            code: OUT_OF_ORDER.into(),
            message: format!("the backend '{}' is out of order; another one takes it", self.backend.id),
        };
        let (place, took) = (entry.place, Took::NO_TIME);
        Attempt { place, ending, tries, retry_after: None, request_id: None, body: Bytes::new(), took }
    }

    /// Gives a request the answer of its route. None if the daemon stops before the store takes it.
    async fn answer_instead(&self, entry: &Entry, tries: u16, answer: StandIn) -> Option<()> {
        let (gateway, batch) = (self.gateway, self.record.id);
        tracing::warn!(
            place = %entry.place, %batch, backend = %self.backend.id,
            "the backend is out of order at a request's deadline, which gets the answer of its route"
        );
        let attempts = entry.attempts.saturating_add(tries);
        let mut outcome = outcomes::stood_in(entry.place, attempts, answer, gateway.clock.now());
        outcome.documents.push(sent::removal(batch, entry.place));
        loop {
            match outcomes::end_without_attempt(gateway, vec![outcome.clone()]).await {
                Ok(()) => return Some(()),
                Err(error) => self.wait_for_the_store(error).await?,
            }
        }
    }
}

/// What an ending says about the backend.
fn report_of(ending: &Ending) -> Report {
    match ending {
        // "Too many" is answered by pacing, not by resting.
        Ending::Answered { status: 408 | 500..=502 | 504..=528 | 530.. } => Report::Failed,
        Ending::Answered { .. } => Report::Fine,
        // It works, and does not know us.
        Ending::Failed { code, .. } if code == CREDENTIAL_REFUSED => Report::Fine,
        Ending::Failed { code, .. } if code.starts_with(offpeak_core::retry::PERMANENT) => Report::Fine,
        Ending::Failed { .. } => Report::Failed,
    }
}

/// Sends one request, and returns how that ended.
pub async fn send(
    gateway: &Gateway,
    backend: &Backend,
    call: &PreparedCall,
    record: &BatchRecord,
    entry: &Entry,
) -> Attempt {
    send_for(gateway, backend, call, record, entry, ANSWER_MAX).await
}

/// The same, for an answer of at most so many bytes.
pub async fn send_for(
    gateway: &Gateway,
    backend: &Backend,
    call: &PreparedCall,
    record: &BatchRecord,
    entry: &Entry,
    answer_max: usize,
) -> Attempt {
    let mut headers: HeaderMap = record
        .headers
        .iter()
        .filter_map(|(name, value)| {
            Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
        })
        .collect();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    let started = Instant::now();
    let ended = |ending, retry_after, request_id, body| Attempt {
        place: entry.place,
        ending,
        tries: 1,
        retry_after,
        request_id,
        body,
        took: Took::new(started.elapsed(), 1),
    };
    let failed = |ran, code: &str, message: String| {
        ended(Ending::Failed { ran, code: code.into(), message }, None, None, Bytes::new())
    };
    let now = gateway.clock.now();
    let Dressed { body, notes } = match call.dress(&mut headers, entry.body.clone(), now) {
        Ok(dressed) => dressed,
        Err(DressError::Refused(refusal)) => {
            return outcomes::refused(entry.place, entry.origin, record, &refusal);
        }
        Err(error @ DressError::Json(_)) => {
            return failed(DidItRun::NotSent, "permanent:invalid_json", error.to_string());
        }
        Err(error @ DressError::Plugin(_)) => {
            tracing::error!(place = %entry.place, %error, "a rescued request could not be sent");
            return failed(
                DidItRun::NotSent,
                "plugin_failed",
                "the backend's provider plugin failed".to_owned(),
            );
        }
    };
    let sent = backend.upstream.call(Method::POST, call.url.clone(), headers, body.into(), answer_max).await;
    match sent {
        // No request is to blame for that, and the provider's words show a part of the credential.
        Ok(response) if response.status() == StatusCode::UNAUTHORIZED => {
            let message = upstream::credential_refused(backend.id.as_str());
            failed(DidItRun::Refused, CREDENTIAL_REFUSED, message)
        }
        Ok(response) => {
            gateway.note_quota(backend, &record.model, response.headers());
            let retry_after = retry_after(&response);
            let request_id = header(&response, "x-request-id")
                .or_else(|| header(&response, "request-id"))
                .map(str::to_owned);
            match read(gateway, call, &notes, response) {
                // An answer that broke off unnoticed ran, and cannot be had again.
                Ok((200..=299, body)) if serde_json::from_slice::<IgnoredAny>(&body).is_err() => {
                    let message = "the provider ran the request, but its answer was broken: it is not JSON";
                    failed(DidItRun::Ran, "unreadable_answer", message.to_owned())
                }
                Ok((status, body)) => ended(Ending::Answered { status }, retry_after, request_id, body),
                Err(error) => {
                    tracing::error!(place = %entry.place, %error, "an answer was lost");
                    let message = "the request ran, but the backend's provider plugin failed on its answer";
                    failed(DidItRun::Ran, "plugin_failed", message.to_owned())
                }
            }
        }
        Err(SendError { ran, message, timed_out }) => {
            failed(ran, if timed_out { "backend_timeout" } else { "backend_unreachable" }, message)
        }
    }
}

/// The answer as the caller gets it.
fn read(
    gateway: &Gateway,
    call: &PreparedCall,
    notes: &[u8],
    response: Response<Bytes>,
) -> Result<(u16, Bytes), PluginError> {
    let status = response.status().as_u16();
    if !call.rewrites_answer {
        return Ok((status, response.into_body()));
    }
    let was = (status, response.headers(), &response.body()[..]);
    let answer = rewrite::answer(call, notes, was, gateway.clock)?;
    Ok((answer.status, answer.body.into()))
}

fn header<'a, B>(response: &'a Response<B>, name: &str) -> Option<&'a str> {
    response.headers().get(name)?.to_str().ok()
}

/// `Retry-After` in seconds; the form with a date is rare and left to the policy's own delay.
fn retry_after<B>(response: &Response<B>) -> Option<Millis> {
    let seconds = header(response, RETRY_AFTER.as_str())?.trim().parse().ok()?;
    Some(Millis::from_secs(seconds))
}
