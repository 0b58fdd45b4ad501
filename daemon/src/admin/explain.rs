//! Why a request, or a lane, is where it is; what happens to it next, and when.

use humantime::format_duration;
use offpeak_core::batch::Journey;
use offpeak_core::extent::Range;
use offpeak_core::scheduler::{LaneView, Next, Plan, VoyageView};
use offpeak_core::words::{LaneId, Millis, Mode, Place, Timestamp};
use offpeak_store::{BatchRecord, Entry, Standing};
use serde::{Deserialize, Serialize};

use crate::defer::store_failed;
use crate::fallback::STAND_IN;
use crate::gateway::Gateway;
use crate::history;
use crate::journey;
use crate::label::router_of;
use crate::lane_book::View;
use crate::orphaned;
use crate::reply::Refusal;

/// What has not changed for so long is said to stand.
const STANDS: Millis = Millis::from_secs(1);

/// What is known, in words.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Explanation {
    /// What was asked about.
    pub about: String,
    /// `waiting`, `in_batch`, `in_background`, `in_engine`, `in_realtime`, `finished`, or `empty`.
    pub state: String,
    /// Milliseconds until the earliest deadline; none if nothing is due.
    pub deadline_in_ms: Option<u64>,
    /// How it came to be there.
    pub why: Vec<String>,
    /// What will happen, in the order of time.
    pub next: Vec<Coming>,
}

/// Something that will happen.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Coming {
    /// Milliseconds until then; none if it waits for something else than time.
    pub in_ms: Option<u64>,
    /// What.
    pub what: String,
}

impl Explanation {
    /// For people.
    pub fn text(&self) -> String {
        let mut lines = vec![format!("{}: {}", self.about, self.state.replace('_', " "))];
        lines.extend(self.deadline_in_ms.map(|left| match left {
            0 => "  due now: its deadline has passed".to_owned(),
            left => format!("  due in {}", shown(Millis(left))),
        }));
        lines.extend(self.why.iter().map(|why| format!("  - {why}")));
        lines.extend(self.next.iter().map(|Coming { in_ms, what }| match in_ms {
            Some(left) => format!("  in {}: {what}", shown(Millis(*left))),
            None => format!("  then: {what}"),
        }));
        lines.join("\n") + "\n"
    }
}

/// Explains a lane (its number) or a request (its id).
pub async fn explain(gateway: &Gateway, about: &str) -> Result<Explanation, Refusal> {
    let view = gateway.lanes.whole_view().await;
    if let Ok(number) = about.parse() {
        let lane = view.lanes.iter().find(|lane| lane.lane == LaneId(number)).ok_or_else(nothing)?;
        return Ok(of_lane(gateway, lane));
    }
    if about.starts_with("rt-") {
        let message = "Nothing is kept of a request in real time but what it cost: `offpeak costs` has that, and the log what failed.";
        return Err(Refusal::not_found("nothing_to_explain", message));
    }
    let place: Place = about.strip_prefix("dfr-").unwrap_or(about).parse().map_err(|_| nothing())?;
    of_request(gateway, &view, place).await
}

fn nothing() -> Refusal {
    let message = "There is no such lane or request. A lane is named by its number, as /admin/v1/lanes lists it, a request \
                   that was deferred by the id of its ticket or its x-offpeak-request-id, such as dfr-0-1f.";
    Refusal::not_found("nothing_to_explain", message)
}

async fn of_request(gateway: &Gateway, view: &View, place: Place) -> Result<Explanation, Refusal> {
    let standing = gateway.store.outcome(place).await.map_err(|error| store_failed(&error))?;
    let about = format!("dfr-{place}");
    let (current, attempts) = match standing.ok_or_else(nothing)? {
        Standing::Waiting { current, attempts } => (current, attempts),
        Standing::Final(outcome) => {
            let how = if outcome.meta == STAND_IN {
                "the backend was out of order at its deadline, and it got the answer of its route".to_owned()
            } else {
                history::in_words(&outcome.ending)
            };
            let ago = shown(gateway.clock.now().since(outcome.finished_at));
            let attempts = outcome.attempts;
            let mut why = history_of(gateway, place).await?;
            let whence = outcome.batch.map_or_else(String::new, |batch| format!(", by batch {batch}"));
            why.push(format!("It was finished {ago} ago{whence}, after {attempts} attempt(s): {how}."));
            let state = "finished".to_owned();
            return Ok(Explanation { about, state, deadline_in_ms: None, why, next: Vec::new() });
        }
    };
    // Read first: what happens meanwhile is then missing in what was, and not in what comes.
    let mut why = history_of(gateway, place).await?;
    let records = gateway.store.open_batches().await.map_err(|error| store_failed(&error))?;
    let mut told = if let Some(record) = records.iter().rev().find(|record| carries(record, current)) {
        of_batch(gateway, view, record, current)
    } else {
        let lane = view.lanes.iter().find(|lane| lane.lane == current.lane).ok_or_else(nothing)?;
        of_lane(gateway, lane)
    };
    if let Some(entry) = gateway.store.about(current).await.map_err(|error| store_failed(&error))? {
        let in_ms = Some(entry.extent.earliest_deadline.since(gateway.clock.now()).0);
        told.deadline_in_ms = in_ms;
        let key = gateway.store.lane_key(current.lane);
        if key.is_some_and(|key| gateway.stand_in(&key, &key.backend).is_some()) {
            let what = "if its backend takes no calls until then, it gets the answer of its route".to_owned();
            told.next.push(Coming { in_ms, what });
        }
    }
    if attempts > 0 {
        why.push(format!("{attempts} attempt(s) have failed so far; it is tried again."));
    }
    why.append(&mut told.why);
    told.why = why;
    Ok(Explanation { about, ..told })
}

/// Who chose its way, and the attempts that failed.
async fn history_of(gateway: &Gateway, origin: Place) -> Result<Vec<String>, Refusal> {
    let now = gateway.clock.now();
    // A damaged record tells nothing of its router, and all else is known all the same.
    let entry = gateway.store.entry(origin).await.unwrap_or_default();
    let chosen = entry.and_then(|entry| chosen(gateway, &entry));
    let notes = history::read(&gateway.store, origin).await.map_err(|error| store_failed(&error))?;
    let told = |note: history::Note| {
        let (ago, mode) = (shown(now.since(note.at)), note.mode.as_str());
        format!("{ago} ago, in {} at '{}' ({mode}): {}.", note.batch, note.backend, note.what)
    };
    Ok(chosen.into_iter().chain(notes.into_iter().map(told)).collect())
}

/// What a request's router chose for it.
fn chosen(gateway: &Gateway, entry: &Entry) -> Option<String> {
    let router = router_of(entry)?;
    let key = gateway.store.lane_key(entry.origin.lane)?;
    Some(format!("The router '{router}' chose the offer '{}' of '{}' for it.", key.offer, key.backend))
}

/// Whether a request is in a batch, or run beside one under this record.
fn carries(record: &BatchRecord, place: Place) -> bool {
    match journey::decode(&record.progress) {
        Ok(Journey::Beside { cargo, .. }) => cargo.iter().any(|part| part.range.contains(place)),
        Ok(Journey::Batch { .. } | Journey::Realtime) | Err(_) => {
            record.ranges.iter().any(|range| range.contains(place))
        }
    }
}

fn of_batch(gateway: &Gateway, view: &View, record: &BatchRecord, place: Place) -> Explanation {
    let now = gateway.clock.now();
    let ago = shown(now.since(record.created_at));
    let (offer, backend) = (&record.offer, &record.backend);
    match journey::decode(&record.progress) {
        Ok(Journey::Realtime) => in_realtime(
            gateway,
            record,
            place,
            format!(
                "{ago} ago a batch was the worse buy for its deadline, so it is run in real time as '{offer}'."
            ),
        ),
        Ok(Journey::Beside { batch, .. }) => in_realtime(
            gateway,
            record,
            place,
            format!(
                "Batch {batch} was not back in time; {ago} ago it was decided to run this in real time beside it, as \
                 '{offer}'."
            ),
        ),
        Ok(Journey::Batch { .. }) | Err(_) => {
            let requests: u64 = record.ranges.iter().map(Range::len).sum();
            let (state, what) = match gateway.backends.sale(record, now).mode {
                Mode::Background => ("in_background", "was handed in"),
                Mode::Engine => return in_engine(gateway, record, requests),
                Mode::Batch | Mode::Realtime => ("in_batch", "left"),
            };
            let why = vec![format!(
                "It {what} {ago} ago in batch {} with {requests} request(s), as '{offer}' of '{backend}'.",
                record.id
            )];
            let about = format!("batch {}", record.id);
            let state = state.to_owned();
            let mut told = Explanation { about, state, deadline_in_ms: None, why, next: Vec::new() };
            told.why.extend(shut(gateway, backend.as_str()));
            let voyage = view.voyages.iter().find(|voyage| voyage.batch == record.id);
            match (voyage, orphaned::trouble(gateway, record)) {
                (Some(voyage), None) => with_voyage(told, voyage, now),
                (None, None) => told,
                (voyage, Some(trouble)) => {
                    told.why.push(trouble);
                    let hedge_at = voyage.and_then(|voyage| voyage.hedge_at);
                    let what = "what has no answer then is run in real time at another backend".to_owned();
                    told.next.extend(hedge_at.map(|at| Coming { in_ms: Some(at.since(now).0), what }));
                    told
                }
            }
        }
    }
}

/// Requests of an engine's idle time: sent one by one as it has room, so that many of them may not have left yet.
fn in_engine(gateway: &Gateway, record: &BatchRecord, requests: u64) -> Explanation {
    let ago = shown(gateway.clock.now().since(record.created_at));
    let backend = &record.backend;
    let mut why = vec![format!(
        "It is one of {requests} request(s) that {ago} ago were given to the idle time of '{backend}', as '{}'.",
        record.offer
    )];
    let engine = gateway.backends.get(backend).and_then(|backend| backend.engine.as_ref());
    why.extend(engine.map(|engine| {
        let (under_way, at_once) = (engine.turns.under_way(), engine.turns.at_once());
        match at_once {
            0 => format!(
                "The engine gets none at the moment; {under_way} deferred request(s) are under way there."
            ),
            _ => format!("It gets up to {at_once} deferred request(s) at once; {under_way} are under way."),
        }
    }));
    why.extend(shut(gateway, backend.as_str()));
    let what = "it is answered after it has had its turn; if its deadline comes near, it is run in real time"
        .to_owned();
    let about = format!("batch {}", record.id);
    let next = vec![Coming { in_ms: None, what }];
    Explanation { about, state: "in_engine".to_owned(), deadline_in_ms: None, why, next }
}

fn in_realtime(gateway: &Gateway, record: &BatchRecord, place: Place, why: String) -> Explanation {
    let mut why = vec![why];
    if let Some(backend) = gateway.backends.get(&record.backend) {
        why.push(format!(
            "Up to {} of such requests are under way at '{}' at a time, earliest deadlines first, tenants in turn.",
            backend.turns.at_once(),
            record.backend
        ));
    }
    why.extend(shut(gateway, record.backend.as_str()));
    let now = gateway.clock.now();
    let next_try = gateway.next_tries.of(place);
    let shut_until = gateway.health.shut_until(&record.backend, Mode::Realtime, now);
    let (at, what) = match (next_try, shut_until) {
        (Some(at), _) => (Some(at), "it is tried again, if its backend has a turn for it"),
        (None, Some(at)) => {
            (Some(at), "its backend is tried again; if another one takes it before, it goes there")
        }
        (None, None) => (None, "it is answered as soon as it has its turn"),
    };
    let in_ms = at.map(|at| at.since(now).0);
    let about = format!("rescue {}", record.id);
    let next = vec![Coming { in_ms, what: what.to_owned() }];
    Explanation { about, state: "in_realtime".to_owned(), deadline_in_ms: None, why, next }
}

fn with_voyage(mut told: Explanation, voyage: &VoyageView, now: Timestamp) -> Explanation {
    let stands = match (voyage.moved_at, voyage.ends_at) {
        (Some(moved_at), None) if now.since(moved_at) >= STANDS => {
            format!(", which has not changed for {}", shown(now.since(moved_at)))
        }
        _ => String::new(),
    };
    told.why.push(match voyage.done {
        0 => format!("The provider has not said that any of them is done{stands}."),
        done => format!("The provider says that {done} of them are done{stands}."),
    });
    let (half, nearly_all) = voyage.usually;
    told.why.push(format!(
        "By what was seen of such batches, half of them are back after {} and nearly all after {}.",
        shown(half.since(voyage.since)),
        shown(nearly_all.since(voyage.since))
    ));
    if voyage.is_cancelled {
        told.why.push("It threatened its deadline, so the provider was asked to stop it.".to_owned());
        let what = "the provider gives back what ran; the rest is run in real time".to_owned();
        told.next.push(Coming { in_ms: None, what });
    }
    if !voyage.is_cancelled && voyage.cancel_at.is_none() && voyage.hedge_at.is_some() {
        let why = "It is not cancelled for what is urgent in it: to send the rest again would cost more than is paid twice.";
        told.why.push(why.to_owned());
    }
    let at = |at: Timestamp, what: &str| Coming { in_ms: Some(at.since(now).0), what: what.to_owned() };
    let what = "it is over, if it goes on as it did";
    told.next.extend(voyage.ends_at.map(|time| at(time, what)));
    let what = "unless it is about to end, it is cancelled, and what did not run is run in real time";
    told.next.extend(voyage.cancel_at.map(|time| at(time, what)));
    let what = "what has no answer then is run in real time, whatever comes of the batch";
    told.next.extend(voyage.hedge_at.map(|time| at(time, what)));
    told.next.sort_by_key(|coming| coming.in_ms);
    told.deadline_in_ms = voyage.deadline.map(|deadline| deadline.since(now).0);
    told
}

fn of_lane(gateway: &Gateway, lane: &LaneView) -> Explanation {
    let now = gateway.clock.now();
    let key = &lane.key;
    let mut why = vec![format!(
        "{} request(s) wait in lane {} of '{}' for '{}' at {}.",
        lane.sums.count, lane.lane.0, key.tenant, key.model, key.endpoint
    )];
    why.extend(ladder(&lane.plans));
    why.extend(shut(gateway, key.backend.as_str()));
    why.extend(lost(gateway, key.model.as_str()));
    let mut next = vec![coming(lane.next, now)];
    if let Some(deadline) = lane.earliest_deadline {
        let buys = lane.plans.iter().skip(1).map(|plan| format!("bought as '{}'", plan.offer));
        let buys = buys.chain(std::iter::once("run in real time".to_owned()));
        next.extend(lane.plans.iter().zip(buys).map(|(plan, buy)| {
            let in_ms = Some(deadline.before(plan.needs).since(now).0);
            Coming { in_ms, what: format!("what still waits with this deadline is {buy}") }
        }));
    }
    let is_empty = lane.next == Next::Empty;
    if is_empty {
        next.clear();
    }
    Explanation {
        about: format!("lane {}", lane.lane.0),
        state: if is_empty { "empty" } else { "waiting" }.to_owned(),
        deadline_in_ms: lane.earliest_deadline.map(|deadline| deadline.since(now).0),
        why,
        next,
    }
}

/// How a lane is bought, the cheapest way first.
fn ladder(plans: &[Plan]) -> Option<String> {
    let steps = plans.iter().map(|plan| {
        let (needs, percent) = (shown(plan.needs), plan.price_permille / 10);
        format!(
            "with at least {needs} to its deadline as '{}' of '{}' at {percent}%",
            plan.offer, plan.backend
        )
    });
    let steps: Vec<String> = steps.collect();
    let all = steps.join(", ");
    (!steps.is_empty())
        .then(|| format!("A request is bought {all} of the list price; with less time, in real time."))
}

fn coming(next: Next, now: Timestamp) -> Coming {
    let (at, what) = match next {
        Next::Empty => (None, "nothing waits"),
        Next::Lingers(at) => (Some(at), "it leaves; until then others may join it"),
        Next::Held(at) => {
            (Some(at), "it leaves; until then the provider takes no more batches, or asked to be left alone")
        }
        Next::ForAPlace => (None, "it leaves when a batch is back: as many are under way as may be"),
        Next::ForTokens => {
            (None, "it leaves when a batch is back: as many tokens are enqueued as the provider takes")
        }
        Next::Shut(at) => (Some(at), "the backend is tried again; it was out of order"),
        Next::Tried => {
            (None, "it leaves if another batch that tries the backend comes back well; it was out of order")
        }
        Next::TooLarge => {
            (None, "its first request fits into no batch; it is run in real time when that is due")
        }
        Next::Paced(at) => (
            Some(at),
            "the next portion leaves; until then its tenant has used what it may use in a minute (deferred)",
        ),
        Next::ForMoney(at) => (
            Some(at),
            "its tenant's budget begins anew; until then it leaves as money is there, or fails when it is due",
        ),
        Next::Paused(at) => {
            (Some(at), "it may leave; it goes again after a failure, and was told not to before then")
        }
        Next::NotSold => (
            None,
            "nobody sells it, so that it gets an error when it is due; was its backend, or its offers, taken away?",
        ),
    };
    Coming { in_ms: at.map(|at| at.since(now).0), what: what.to_owned() }
}

/// What is out of order about a backend.
fn shut(gateway: &Gateway, backend: &str) -> Vec<String> {
    let now = gateway.clock.now();
    let open = gateway.health.open(now).into_iter().filter(|((id, _), _)| id.as_str() == backend);
    open.map(|((_, mode), until)| {
        let what = match mode {
            Mode::Batch => "batches",
            Mode::Background => "requests in the background",
            Mode::Realtime | Mode::Engine => "real-time calls",
        };
        format!(
            "The backend '{backend}' is out of order for {what}; it is tried again in {}.",
            shown(until.since(now))
        )
    })
    .collect()
}

/// What providers refused to sell of a model.
fn lost(gateway: &Gateway, model: &str) -> Vec<String> {
    let now = gateway.clock.now();
    let lost = gateway.backends.lost.all().into_iter().filter(|(way, _)| way.model.as_str() == model);
    lost.map(|(way, loss)| {
        format!(
            "'{}' refused to sell '{}' for this model {} ago ({}); it is tried again in {}, or when it is restored: POST \
             /admin/v1/offers/restore.",
            way.backend,
            way.offer,
            shown(now.since(loss.at)),
            loss.why,
            shown(loss.until.since(now))
        )
    })
    .collect()
}

/// In whole seconds, which is as exact as anybody wants it.
fn shown(time: Millis) -> String {
    let time = if time.0 < 1000 { time } else { Millis(time.0 / 1000 * 1000) };
    format_duration(time.into()).to_string()
}
