//! Attempts that ended -> verdict -> one commit: a result for the caller, or another attempt.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use http::StatusCode;
use offpeak_core::extent::HURRIED;
use offpeak_core::money::Money;
use offpeak_core::outcome::{DidItRun, Ending};
use offpeak_core::retry::{self, Class, Judged};
use offpeak_core::scheduler::{Event, Settled};
use offpeak_core::tempo::Load;
use offpeak_core::turnaround::Way;
use offpeak_core::words::{BackendId, BatchId, LaneId, LaneKey, Millis, Mode, Place, TenantId, Timestamp};
use offpeak_host::values::provider::Refusal;
use offpeak_store::{
    BatchRecord, Kind, NewOutcome, Outcome, Recorded, Standing, Store, StoreError, Verdict, Waiting,
};

use crate::backends::{Offer, Seller};
use crate::blocking::blocking;
use crate::costs::ledger::{self, Of};
use crate::costs::usage::{self, Found};
use crate::costs::{Entry, Purpose, Sale, SharedSale, Taken, Took};
use crate::delivery::{request_id, spent};
use crate::fallback::{STAND_IN, StandIn};
use crate::gateway::Gateway;
use crate::history::{self, Note};
use crate::lane_book::LaneError;
use crate::reply::{self, Dialect, ErrorText};
use crate::retries::{Failed, Meaning};
use crate::sent;
use crate::telemetry::Line;

/// An attempt that ended, before it is judged.
#[derive(Clone)]
pub struct Attempt {
    /// Whose.
    pub place: Place,
    /// How.
    pub ending: Ending,
    /// How many attempts this was: 1, except where sending it again was decided on the way, or where the provider had no
    /// room for it.
    pub tries: u16,
    /// Not before so long, says the provider.
    pub retry_after: Option<Millis>,
    /// The provider's name for it.
    pub request_id: Option<String>,
    /// The answer.
    pub body: Bytes,
    /// The time that it took of an engine.
    pub took: Took,
}

/// Which batch the attempts belong to.
#[derive(Clone)]
pub struct Source {
    /// The batch.
    pub batch: BatchId,
    /// Its backend.
    pub backend: BackendId,
    /// How they were run: in a batch, or in real time because a batch would have been too late.
    pub mode: Mode,
    /// What was bought.
    pub sale: SharedSale,
}

impl Source {
    /// Attempts that a batch made.
    pub fn batch(gateway: &Gateway, record: &BatchRecord) -> Self {
        let sale = gateway.backends.sale(record, gateway.clock.now());
        // What was sold otherwise since, or is not sold any more, was a batch.
        let mode = if sale.mode == Mode::Background { Mode::Background } else { Mode::Batch };
        Self { batch: record.id, backend: record.backend.clone(), mode, sale }
    }

    const fn is_rescue(&self) -> bool {
        matches!(self.mode, Mode::Realtime)
    }
}

/// The outcome of a request that cannot be said at its provider: never sent, and answered as a bad request.
pub fn refused(place: Place, origin: Place, record: &BatchRecord, refusal: &Refusal) -> Attempt {
    let text = ErrorText {
        status: StatusCode::BAD_REQUEST.as_u16(),
        code: &refusal.code,
        message: &refusal.message,
        param: refusal.param.as_deref(),
        id: &request_id(origin),
    };
    Attempt {
        place,
        ending: Ending::Answered { status: text.status },
        tries: 0,
        retry_after: None,
        request_id: None,
        body: reply::error_body(Dialect::of(record.endpoint.as_str()), text).into(),
        took: Took::NO_TIME,
    }
}

/// Judges attempts, records them in one commit, and tells whoever waits.
pub async fn record(
    gateway: &Arc<Gateway>,
    source: &Source,
    attempts: Vec<Attempt>,
) -> Result<(), StoreError> {
    let now = gateway.clock.now();
    let mut outcomes = Vec::with_capacity(attempts.len());
    let mut are_good = Vec::with_capacity(attempts.len());
    let mut bills = Vec::with_capacity(attempts.len());
    let mut unknown = 0;
    for attempt in with_what_ran_beside(gateway, source.batch, attempts).await? {
        let (tries, took) = (attempt.tries, attempt.took);
        match judge(gateway, source, attempt, now).await? {
            Some(outcome) => {
                are_good.push(outcome.ending.is_success());
                let is_first = outcome.attempts <= tries;
                bills.push(taken(&gateway.store, source, &outcome, is_first, took));
                outcomes.push(outcome);
            }
            None => unknown += 1,
        }
    }
    learn(&gateway.store, source, &outcomes, &bills).await?;
    let lanes: Vec<LaneId> = outcomes.iter().map(|outcome| outcome.place.lane).collect();
    let entries = blocking(|| price(gateway, source, &mut outcomes, &bills, now));
    let recorded = gateway.store.record(outcomes).await?;
    let settled = settled(&lanes, &bills, &recorded);
    let (mut finished, mut retried, mut duplicates) = (Vec::new(), 0, 0);
    let mut paid_twice = 0;
    let mut spent = Vec::new();
    for ((one, is_good), entry) in recorded.into_iter().zip(are_good).zip(&entries) {
        match one {
            Recorded::New { origin, requeued: None } => {
                finished.push((origin, is_good));
                spent.push((origin, spent::of_entry(&entry.entry)));
            }
            Recorded::New { origin, requeued: Some(_) } => {
                retried += 1;
                spent.push((origin, spent::of_entry(&entry.entry)));
            }
            Recorded::Duplicate => {
                duplicates += 1;
                paid_twice += u64::from(is_good);
            }
            Recorded::Unknown => unknown += 1,
        }
        if matches!(one, Recorded::New { .. }) {
            entry.entry.count(&gateway.metrics);
            gateway.tenants.spent(&entry.entry.tenant, entry.entry.cost, now);
        }
    }
    for (lane, settled) in settled {
        gateway.lanes.tell(Event::Settled { batch: source.batch, lane, settled });
    }
    if duplicates > 0 {
        charge_late(gateway, source, &entries).await?;
    }
    let backend = source.backend.as_str();
    let done = finished.len() as u64;
    gateway.metrics.recorded(backend, done, retried);
    gateway.metrics.lines(backend, Line::Taken, done + retried);
    gateway.metrics.lines(backend, Line::Duplicate, duplicates);
    gateway.metrics.lines(backend, Line::Unknown, unknown);
    gateway.metrics.wasted(backend, source.mode, paid_twice);
    if paid_twice > 0 {
        tracing::info!(
            batch = %source.batch, backend, mode = source.mode.as_str(), requests = paid_twice,
            "answers came for requests that had theirs; they are paid for and dropped"
        );
    }
    gateway.jobs.spent(spent);
    gateway.jobs.finished(finished.iter().copied());
    gateway.held.tell(finished.into_iter().map(|(origin, _)| origin));
    Ok(())
}

/// What is run beside a batch gets its outcome from there, unless the batch is first with an answer; then the tries beside it
/// count with the batch's own, since they may have run.
async fn with_what_ran_beside(
    gateway: &Gateway,
    batch: BatchId,
    mut attempts: Vec<Attempt>,
) -> Result<Vec<Attempt>, StoreError> {
    let is_beside = |attempt: &Attempt| gateway.beside.covers(batch, attempt.place);
    attempts.retain(|attempt| attempt.ending.is_success() || !is_beside(attempt));
    let first: Vec<Place> = attempts.iter().filter(|one| is_beside(one)).map(|one| one.place).collect();
    if !first.is_empty() {
        let tried = sent::tries(&gateway.store, &first).await?;
        for attempt in &mut attempts {
            attempt.tries = attempt.tries.saturating_add(tried.get(&attempt.place).copied().unwrap_or(0));
        }
    }
    Ok(attempts)
}

/// Gives requests an outcome that is no attempt's: nobody is charged. Those that have one already keep it.
pub async fn end_without_attempt(gateway: &Gateway, ended: Vec<NewOutcome>) -> Result<(), StoreError> {
    let stood_in = |outcome: &NewOutcome| match &outcome.ending {
        Ending::Answered { status } if outcome.meta == STAND_IN => Some(*status),
        _ => None,
    };
    let told: Vec<_> = ended.iter().map(|one| (one.ending.is_success(), stood_in(one))).collect();
    let mut finished = Vec::with_capacity(told.len());
    for (one, (is_good, stood_in)) in gateway.store.record(ended).await?.into_iter().zip(told) {
        // One that went back into a lane meanwhile is met again there.
        if let Recorded::New { origin, .. } = one {
            finished.push((origin, is_good));
            if let Some(status) = stood_in {
                gateway.metrics.answered("fallback", status);
            }
        }
    }
    gateway.jobs.finished(finished.iter().copied());
    gateway.held.tell(finished.into_iter().map(|(origin, _)| origin));
    Ok(())
}

/// The outcome of a request that offpeak itself ends with an error, in its caller's dialect: a status, a code and what to do.
pub fn given_up(
    gateway: &Gateway,
    waiting: &Waiting,
    (status, code, message): (StatusCode, &str, &str),
    now: Timestamp,
) -> NewOutcome {
    let id = request_id(waiting.origin);
    let text = ErrorText { status: status.as_u16(), code, message, param: None, id: &id };
    let key = gateway.store.lane_key(waiting.extent.lane);
    let dialect = key.map_or(Dialect::OpenAi, |key| Dialect::of(key.endpoint.as_str()));
    NewOutcome {
        place: waiting.place(),
        attempts: waiting.attempts,
        batch: None,
        finished_at: now,
        ending: Ending::Answered { status: text.status },
        verdict: Verdict::Final,
        meta: Bytes::new(),
        body: reply::error_body(dialect, text).into(),
        documents: Vec::new(),
    }
}

/// The outcome of a request that gets the answer of its route.
pub fn stood_in(place: Place, attempts: u16, answer: StandIn, now: Timestamp) -> NewOutcome {
    let StandIn { status, body } = answer;
    NewOutcome {
        place,
        attempts,
        batch: None,
        finished_at: now,
        ending: Ending::Answered { status: status.as_u16() },
        verdict: Verdict::Final,
        meta: Bytes::from_static(STAND_IN),
        body,
        documents: Vec::new(),
    }
}

/// What becomes of one attempt. None if the store knows no such request.
async fn judge(
    gateway: &Gateway,
    source: &Source,
    attempt: Attempt,
    now: Timestamp,
) -> Result<Option<NewOutcome>, StoreError> {
    let store = &gateway.store;
    let Some(made_before) = attempts_before(store, attempt.place).await? else { return Ok(None) };
    let mut attempts = made_before.saturating_add(attempt.tries);
    let mut documents = Vec::new();
    if source.is_rescue() {
        documents.push(sent::removal(source.batch, attempt.place));
    }
    let mut verdict = Verdict::Final;
    if !attempt.ending.is_success()
        && let Some(entry) = store.about(attempt.place).await?
    {
        // What was hurried on the way is due when its caller said.
        let due = entry.due;
        let meaning = meaning(gateway, &source.sale, source.mode, &attempt, attempts, due, now);
        if !meaning.class.is_attempt() {
            attempts = made_before;
        }
        let note = Note {
            at: now,
            attempts,
            batch: source.batch,
            backend: source.backend.clone(),
            mode: source.mode,
            what: history::in_words(&attempt.ending),
        };
        documents.extend(history::with(store, entry.origin, note).await?);
        let judged = judged(gateway, meaning, attempts, due);
        let follows = self::verdict(gateway, &source.backend, &attempt, &judged, now);
        verdict = requeued(gateway, attempt.place.lane, follows, due, now).await?;
    }
    Ok(Some(NewOutcome {
        place: attempt.place,
        attempts,
        batch: Some(source.batch),
        finished_at: now,
        ending: attempt.ending,
        verdict,
        meta: attempt.request_id.map(Bytes::from).unwrap_or_default(),
        body: attempt.body,
        documents,
    }))
}

/// What a failed attempt means. An offer that the provider does not sell is off the ladder after this; if it is the last one,
/// the caller gets the refusal.
pub fn meaning(
    gateway: &Gateway,
    sale: &Sale,
    mode: Mode,
    attempt: &Attempt,
    attempts: u16,
    deadline: Timestamp,
    now: Timestamp,
) -> Meaning {
    let (ending, body, retry_after) = (&attempt.ending, &attempt.body[..], attempt.retry_after);
    let failed = Failed { sale, mode, ending, body, attempts, retry_after, deadline };
    let meaning = gateway.retries.meaning(&failed, now);
    if meaning.class != Class::NotSold {
        return meaning;
    }
    let (backend, offer, model) = (sale.backend.clone(), sale.offer.clone(), sale.model.clone());
    let why = history::why(ending, body);
    let is_lost = gateway.lose(&Way { backend, offer, model }, sale.endpoint.as_str(), &why);
    let class = if is_lost { Class::NotSold } else { Class::Permanent };
    Meaning { class, ..meaning }
}

/// Where a request goes next. No pause lasts beyond the last chance to keep its deadline.
async fn requeued(
    gateway: &Gateway,
    lane: LaneId,
    verdict: retry::Verdict,
    due: Timestamp,
    now: Timestamp,
) -> Result<Verdict, StoreError> {
    Ok(match verdict {
        retry::Verdict::Deliver => Verdict::Final,
        // Back into its lane, with the deadline it has.
        retry::Verdict::Again(not_before) => {
            Verdict::Requeue { lane, deadline: due, not_before: retry::bounded(not_before, due, now) }
        }
        retry::Verdict::Elsewhere(not_before) => match elsewhere(gateway, lane, now).await? {
            Some(lane) => Verdict::Requeue { lane, deadline: due, not_before: now },
            None => {
                Verdict::Requeue { lane, deadline: due, not_before: retry::bounded(not_before, due, now) }
            }
        },
        // No batch keeps a deadline that is as near as that.
        retry::Verdict::Now(not_before) => {
            let not_before = retry::bounded(not_before, due, now);
            let deadline = due.min(not_before.after(HURRIED));
            Verdict::Requeue { lane, deadline, not_before }
        }
    })
}

/// The lane at the next backend where what stands in this one may go.
async fn elsewhere(gateway: &Gateway, lane: LaneId, now: Timestamp) -> Result<Option<LaneId>, StoreError> {
    let Some(next) = gateway.store.lane_key(lane).and_then(|key| next_backend(gateway, &key, now)) else {
        return Ok(None);
    };
    match gateway.lanes.lane(&gateway.store, &gateway.backends, next, now).await {
        Ok(lane) => Ok(Some(lane)),
        Err(LaneError::Store(error)) => Err(error),
        Err(error) => {
            tracing::error!(lane = lane.0, %error, "a request could not go to another backend");
            Ok(None)
        }
    }
}

/// The same lane at the next backend in the order of the configuration that sells the model as something that can wait. Later
/// ones only: so a request that nobody takes does not go round in circles. A backend that is configured no more comes before all
/// others.
pub fn next_backend(gateway: &Gateway, key: &LaneKey, now: Timestamp) -> Option<LaneKey> {
    let own = gateway.backends.get(&key.backend).map(|own| &**own);
    if !gateway.backends.may_go_elsewhere(own, key) {
        return None;
    }
    let menu = gateway.backends.menu(key.endpoint.as_str(), key.model.as_str(), now).ok()?;
    let is_own = |seller: &Seller| seller.backend.id == key.backend;
    let later = match own {
        Some(_) => menu.sellers.iter().position(is_own)? + 1,
        None => 0,
    };
    menu.sellers.iter().skip(later).find_map(|seller| {
        let understands = gateway.backends.understands(&seller.backend, key);
        let deferred = seller.offers.iter().filter(|offer| offer.mode() != Mode::Realtime);
        let takes_work =
            |offer: &&Offer| gateway.health.shut_until(&seller.backend.id, offer.mode(), now).is_none();
        let offer = deferred.filter(takes_work).min_by_key(|offer| offer.terms.price_permille)?;
        let (backend, offer) = (seller.backend.id.clone(), offer.name.clone());
        understands.then(|| LaneKey { backend, offer, ..key.clone() })
    })
}

/// An attempt as it is judged.
pub fn judged(gateway: &Gateway, meaning: Meaning, attempts: u16, deadline: Timestamp) -> Judged {
    let Meaning { class, not_before } = meaning;
    Judged { class, attempts, not_before, jitter_permille: gateway.chance.permille(), deadline }
}

/// What follows from it: an answer for the caller, or another attempt as far as the backend's budget for retries goes.
pub fn verdict(
    gateway: &Gateway,
    backend: &BackendId,
    attempt: &Attempt,
    judged: &Judged,
    now: Timestamp,
) -> retry::Verdict {
    let terms = &gateway.retries.terms;
    let verdict = terms.judge(judged, now);
    // What the provider did not run multiplies nothing.
    if attempt.tries == 0 || !judged.class.is_attempt() || verdict == retry::Verdict::Deliver {
        return verdict;
    }
    let has_credit = gateway.backends.get(backend).is_none_or(|backend| backend.retries.lock().spend());
    let late = |at: Timestamp| if has_credit { at } else { at.max(now.after(terms.cap)) };
    match verdict {
        retry::Verdict::Deliver => verdict,
        retry::Verdict::Again(at) => retry::Verdict::Again(late(at)),
        retry::Verdict::Elsewhere(at) => retry::Verdict::Elsewhere(late(at)),
        retry::Verdict::Now(at) => retry::Verdict::Now(late(at)),
    }
}

async fn attempts_before(store: &Store, place: Place) -> Result<Option<u16>, StoreError> {
    Ok(match store.outcome(place).await? {
        Some(Standing::Waiting { attempts, .. }) => Some(attempts),
        // It has its outcome; the store will say that this one is a duplicate.
        Some(Standing::Final(outcome)) => Some(outcome.attempts),
        None => None,
    })
}

/// What is known of an attempt that was judged, for its price.
fn taken(store: &Store, source: &Source, outcome: &NewOutcome, is_first: bool, took: Took) -> Taken {
    let (ran, status) = match &outcome.ending {
        Ending::Answered { status } => (DidItRun::Ran, Some(*status)),
        Ending::Failed { ran, .. } => (*ran, None),
    };
    let found = if outcome.ending.is_success() { usage::of_answer(&outcome.body) } else { Found::default() };
    let tenant = store.lane_key(outcome.place.lane).map(|key| key.tenant);
    Taken {
        tenant: tenant.unwrap_or_else(|| TenantId::from("unknown")),
        purpose: match (source.is_rescue(), is_first) {
            (true, _) => Purpose::Rescue,
            (false, true) => Purpose::First,
            (false, false) => Purpose::Retry,
        },
        ran,
        status,
        tier: found.tier,
        usage: found.usage,
        estimated: false,
        wasted: !matches!(outcome.verdict, Verdict::Final),
        took,
    }
}

/// What attempts took, by lane: what was reckoned of them is corrected by it.
fn settled(lanes: &[LaneId], taken: &[Taken], recorded: &[Recorded]) -> BTreeMap<LaneId, Settled> {
    let mut settled: BTreeMap<LaneId, Settled> = BTreeMap::new();
    for ((lane, taken), one) in lanes.iter().zip(taken).zip(recorded) {
        // What is read again was settled before.
        if !matches!(one, Recorded::New { .. }) {
            continue;
        }
        let of_lane = settled.entry(*lane).or_default();
        of_lane.requests += 1;
        if matches!(taken.ran, DidItRun::Ran | DidItRun::Unknown) {
            let usage = taken.usage.unwrap_or_default();
            of_lane.ran = of_lane.ran.plus(Load { requests: 1, input: usage.input, output: usage.output });
        }
    }
    settled
}

/// Learns from answers what further ones will take: of each its output, and of one its input, because what was reckoned of
/// that lies in the log.
async fn learn(
    store: &Store,
    source: &Source,
    outcomes: &[NewOutcome],
    taken: &[Taken],
) -> Result<(), StoreError> {
    let mut reckoned = None;
    for (outcome, usage) in outcomes.iter().zip(taken).filter_map(|(o, taken)| Some((o, taken.usage?))) {
        if reckoned.is_none() {
            let entry = store.about(outcome.place).await?;
            reckoned = Some(entry.map_or(0, |entry| entry.extent.tokens));
            source.sale.learnt.learn(reckoned.unwrap_or(0), usage);
        } else {
            source.sale.learnt.learn(0, usage);
        }
    }
    Ok(())
}

/// An entry of the ledger, and the place that it is about.
struct Priced {
    place: Place,
    entry: Entry,
}

/// Prices attempts and puts each one's entry of the ledger into its outcome, so that both are written or none.
fn price(
    gateway: &Gateway,
    source: &Source,
    outcomes: &mut [NewOutcome],
    taken: &[Taken],
    now: Timestamp,
) -> Vec<Priced> {
    let charges = gateway.costs.charge(&source.sale, taken.iter(), now);
    let mut entries = Vec::with_capacity(outcomes.len());
    for ((outcome, taken), charge) in outcomes.iter_mut().zip(taken).zip(charges) {
        let request = request_id(outcome.place);
        let entry = Entry::new(&source.sale, taken, charge, now, &request, Some(source.batch));
        outcome.documents.push(entry.document(ledger::key(now, Of::Attempt(outcome.place))));
        entries.push(Priced { place: outcome.place, entry });
    }
    entries
}

/// An answer that comes when its request has an outcome from elsewhere was paid for all the same: the request was cancelled
/// or given up, or it was run beside its batch and the other way was first. The entry has a key that follows from the
/// request alone, so that reading the results again writes the same entry.
async fn charge_late(gateway: &Gateway, source: &Source, entries: &[Priced]) -> Result<(), StoreError> {
    let mut documents = Vec::new();
    let mut spent = Vec::new();
    for priced in entries.iter().filter(|priced| priced.entry.ran == DidItRun::Ran) {
        let Some(Standing::Final(outcome)) = gateway.store.outcome(priced.place).await? else { continue };
        let at = outcome.finished_at;
        if outcome.place == priced.place && is_from_elsewhere(gateway, source, &outcome).await? {
            let entry = Entry { at, wasted: true, realtime: Money::ZERO, ..priced.entry.clone() };
            let key = ledger::key(at, Of::Late(priced.place));
            // What was read and charged before is spent already.
            if gateway.store.document(Kind::Ledger, key.clone()).await?.is_none() {
                documents.push(entry.document(key));
                spent.push(entry);
            }
        }
    }
    if !documents.is_empty() {
        gateway.store.keep(documents).await?;
    }
    for entry in spent {
        entry.count(&gateway.metrics);
        gateway.tenants.spent(&entry.tenant, entry.cost, gateway.clock.now());
    }
    Ok(())
}

/// Whether an outcome did not come of this source: of no batch at all, or of the batch where this is the rescue beside it,
/// or the other way round.
async fn is_from_elsewhere(
    gateway: &Gateway,
    source: &Source,
    outcome: &Outcome,
) -> Result<bool, StoreError> {
    if outcome.batch.is_none() {
        return Ok(true);
    }
    let key = ledger::key(outcome.finished_at, Of::Attempt(outcome.place));
    let entry = gateway.store.document(Kind::Ledger, key).await?.and_then(|value| Entry::read(&value));
    Ok(entry.is_some_and(|entry| (entry.purpose == Purpose::Rescue) != source.is_rescue()))
}
