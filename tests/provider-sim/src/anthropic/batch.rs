//! One message batch: its plan, its progress, its results.

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;

use crate::anthropic::Version;
use crate::anthropic::error::{Body, error_of_status};
use crate::anthropic::messages::{find, message, say, usage_of};
use crate::anthropic::wire::{MessageWork, Use};
use crate::batches::{Fate, Status, Timeline, damage};
use crate::clock::{SimTime, millis, rfc3339};
use crate::error::ApiError;
use crate::faults::{BatchFault, ItemFault};
use crate::ids::scatter;
use crate::pace::{self, Item};
use crate::prices::Mode;
use crate::provider::Inner;
use crate::reply::append_json;

/// How long a batch may take: 24 hours.
const WINDOW_MS: u64 = 24 * 3_600_000;
/// How long results can be fetched, from creation: 29 days.
const RESULTS_MS: u64 = 29 * 24 * 3_600_000;

/// One request of a batch.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) custom_id: Box<str>,
    /// A slice of the body that created the batch.
    pub(super) params: Bytes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
struct Counts {
    processing: usize,
    succeeded: usize,
    errored: usize,
    canceled: usize,
    expired: usize,
}

/// What the results say about an entry.
enum Verdict<'a> {
    Succeeded(&'a [u8]),
    Errored(&'a ApiError),
    Canceled,
    Expired,
}

/// A message batch.
#[derive(Debug)]
pub(super) struct MessageBatch {
    pub(super) id: String,
    number: u64,
    version: Version,
    /// When it begins to show in the listing.
    pub(super) listed_from: SimTime,
    timeline: Timeline,
    faults: Vec<BatchFault>,
    /// Entries that will run, by the time at which they finish; the first `done` have run.
    items: Vec<Item<Entry>>,
    done: usize,
    /// Entries that never run.
    lost: Vec<Entry>,
    total: usize,
    counts: Counts,
    results: Vec<u8>,
    /// The results, once the batch has ended.
    finished: Option<Bytes>,
}

/// A batch as the API shows it.
#[derive(Serialize)]
pub(super) struct View<'a> {
    id: &'a str,
    r#type: &'static str,
    processing_status: &'static str,
    request_counts: Counts,
    created_at: String,
    expires_at: String,
    ended_at: Option<String>,
    cancel_initiated_at: Option<String>,
    archived_at: Option<String>,
    results_url: Option<String>,
}

impl MessageBatch {
    /// Decides, from the seed and the fault plan, how the batch will go. `number` is unlike that of any other batch.
    pub(super) fn plan(
        inner: &Inner,
        number: u64,
        version: Version,
        entries: Vec<Entry>,
        faults: Vec<BatchFault>,
        now: SimTime,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(scatter(inner.seed ^ scatter(number)));
        let total = entries.len();
        let plan = pace::plan(&mut rng, &inner.conditions(), &faults, now, 0, entries);
        Self {
            id: inner.ids.text("msgbatch_"),
            number,
            version,
            listed_from: now.plus_millis(inner.faults.listing_lag_ms()),
            timeline: Timeline {
                created: now,
                validated: now,
                expires: now.plus_millis(WINDOW_MS),
                fate: Fate::Runs { last_item: plan.last_item, finalizing_ms: 0 },
                cancel: None,
            },
            faults,
            items: plan.items,
            done: 0,
            lost: plan.lost,
            total,
            counts: Counts::default(),
            results: Vec::new(),
            finished: None,
        }
    }

    pub(super) fn is_ended(&self) -> bool {
        self.finished.is_some()
    }

    /// Entries that have not been worked off, as far as the API tells.
    pub(super) fn processing(&self) -> usize {
        if self.is_ended() { 0 } else { self.total }
    }

    /// Catches up with the clock: runs and charges what is due, in order and each once.
    pub(super) fn settle(&mut self, inner: &Inner, now: SimTime) {
        if self.is_ended() {
            return;
        }
        let until = now.min(self.timeline.runs_until());
        let mut items = std::mem::take(&mut self.items);
        while let Some(item) = items.get(self.done).filter(|item| item.finishes <= until) {
            self.run(inner, &item.what, item.finishes);
            self.done += 1;
        }
        if self.timeline.at(now).status.is_terminal() {
            let unrun = items.split_off(self.done.min(items.len())).into_iter().map(|item| item.what);
            self.end(inner, unrun);
        } else {
            self.items = items;
        }
    }

    fn run(&mut self, inner: &Inner, entry: &Entry, now: SimTime) {
        let params = std::str::from_utf8(&entry.params).unwrap_or_default();
        let fault = inner.faults.for_item([self.number, self.done as u64], &entry.custom_id, params);
        let refused = |status: u16| {
            let status =
                http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
            Err(error_of_status(status, None))
        };
        let answered = match fault {
            Some(ItemFault::NoResponse { code }) if code == "batch_expired" => {
                return self.note(inner, entry, &Verdict::Expired);
            }
            Some(ItemFault::NoResponse { .. }) => refused(500),
            Some(ItemFault::Status { status }) => refused(status),
            None => self.answer(inner, entry, now),
        };
        match answered {
            Ok(message) => self.note(inner, entry, &Verdict::Succeeded(&message)),
            Err(error) => self.note(inner, entry, &Verdict::Errored(&error)),
        }
    }

    /// Answers one entry and charges for it. This is where its parameters are checked, as the real API does it.
    fn answer(&self, inner: &Inner, entry: &Entry, now: SimTime) -> Result<Vec<u8>, ApiError> {
        let work = MessageWork::parse(&entry.params, self.version, Use::BatchEntry)?;
        let model = find(inner, &work.model)?;
        let said = say(&work);
        let usage = usage_of(inner, model, &work, &said, now);
        let body = message(&inner.ids.text("msg_"), &work, &said, usage, "batch");
        inner.ledger.charge(model, Mode::Batch, usage, inner.ledger.key("/v1/messages", &entry.params));
        Ok(body)
    }

    /// Counts an entry and writes its line.
    fn note(&mut self, inner: &Inner, entry: &Entry, verdict: &Verdict<'_>) {
        let count = match verdict {
            Verdict::Succeeded(_) => &mut self.counts.succeeded,
            Verdict::Errored(_) => &mut self.counts.errored,
            Verdict::Canceled => &mut self.counts.canceled,
            Verdict::Expired => &mut self.counts.expired,
        };
        *count += 1;
        result_line(&mut self.results, &entry.custom_id, verdict, &inner.ids.text("req_"));
    }

    /// Writes the lines of what never ran, and lets go of everything but the results.
    fn end(&mut self, inner: &Inner, unrun: impl Iterator<Item = Entry>) {
        let lost = std::mem::take(&mut self.lost);
        let verdict = match self.timeline.at(self.timeline.end()).status {
            Status::Cancelled => Verdict::Canceled,
            _ => Verdict::Expired,
        };
        for entry in unrun.chain(lost) {
            self.note(inner, &entry, &verdict);
        }
        damage(&mut self.results, &self.faults, || {
            let mut line = Vec::new();
            let id = inner.ids.text("nobody-sent-this-");
            result_line(&mut line, &id, &Verdict::Expired, "");
            line
        });
        self.finished = Some(Bytes::from(std::mem::take(&mut self.results)));
    }

    /// Moves what has not finished, as the stalls of the provider change.
    pub(super) fn move_items(&mut self, to: impl Fn(SimTime) -> SimTime) {
        self.timeline.move_items(self.items.iter_mut().skip(self.done), to);
    }

    /// Stops what has not started; nothing changes when that was asked for before. It must be settled and not ended.
    pub(super) fn cancel(&mut self, inner: &Inner, now: SimTime) {
        if self.timeline.cancel.is_none() {
            let upcoming = self.items.iter().skip(self.done).map(|item| item.finishes);
            let cancel = pace::cancellation(now, millis(inner.conditions().timing.in_flight), upcoming);
            self.timeline.cancel = Some(cancel);
        }
    }

    fn is_archived(&self, now: SimTime) -> bool {
        now >= self.archived_at()
    }

    fn archived_at(&self) -> SimTime {
        self.timeline.created.plus_millis(RESULTS_MS)
    }

    /// The results, when the batch has ended and they are still kept.
    pub(super) fn results(&self, now: SimTime) -> Option<&Bytes> {
        self.finished.as_ref().filter(|_| !self.is_archived(now))
    }

    /// The batch as the API shows it. It must be settled to the same `now`.
    pub(super) fn view(&self, base_url: &str, now: SimTime) -> View<'_> {
        let moment = self.timeline.at(now);
        let ended = self.is_ended();
        let counts = Counts { processing: self.total, ..Counts::default() };
        let url = || format!("{base_url}/v1/messages/batches/{}/results", self.id);
        let archived = ended && self.is_archived(now);
        View {
            id: &self.id,
            r#type: "message_batch",
            processing_status: match moment.status {
                _ if ended => "ended",
                Status::Cancelling => "canceling",
                _ => "in_progress",
            },
            request_counts: if ended { self.counts } else { counts },
            created_at: rfc3339(self.timeline.created),
            expires_at: rfc3339(self.timeline.expires),
            ended_at: ended.then(|| rfc3339(self.timeline.end())),
            cancel_initiated_at: moment.cancelling.map(rfc3339),
            archived_at: archived.then(|| rfc3339(self.archived_at())),
            results_url: (ended && !archived).then(url),
        }
    }
}

/// Appends the line of one entry.
fn result_line(to: &mut Vec<u8>, custom_id: &str, verdict: &Verdict<'_>, request_id: &str) {
    to.extend_from_slice(b"{\"custom_id\":");
    append_json(to, &custom_id);
    to.extend_from_slice(b",\"result\":{\"type\":\"");
    match verdict {
        Verdict::Succeeded(message) => {
            to.extend_from_slice(b"succeeded\",\"message\":");
            to.extend_from_slice(message);
        }
        Verdict::Errored(error) => {
            to.extend_from_slice(b"errored\",\"error\":");
            append_json(to, &Body::of(error, request_id));
        }
        Verdict::Canceled => to.extend_from_slice(b"canceled\""),
        Verdict::Expired => to.extend_from_slice(b"expired\""),
    }
    to.extend_from_slice(b"}}\n");
}
