//! One batch: its plan, its progress, its results.

use bytes::Bytes;
use rand::SeedableRng;
use rand::rngs::StdRng;
use serde::Serialize;

use crate::batches::results::{damage, error_line, response_line, stray_line};
use crate::batches::state::{Fate, Status, Timeline};
use crate::batches::validate::{BatchError, Checked, Line, Span};
use crate::bill::Usage;
use crate::clock::{SimTime, millis};
use crate::error::ApiError;
use crate::faults::{BatchFault, ItemFault};
use crate::files::{Files, StoredFile, batch_file_expiry};
use crate::ids::scatter;
use crate::pace::{self, Item};
use crate::prices::Mode;
use crate::provider::Inner;
use crate::responses::ResponseUsage;
use crate::scenario::Conditions;
use crate::wire::Metadata;
use crate::work::{Api, Ran, Run, Work};

/// The window of a batch: 24 hours.
const WINDOW_MS: u64 = 24 * 3_600_000;

/// What the caller ordered.
pub(super) struct Order {
    pub(super) api: Api,
    pub(super) input_file_id: String,
    pub(super) input: Bytes,
    pub(super) metadata: Metadata,
    /// How long the result files stay, in seconds.
    pub(super) output_secs: Option<u64>,
    pub(super) created: SimTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
struct Counts {
    total: usize,
    completed: usize,
    failed: usize,
}

/// A batch.
#[derive(Debug)]
pub(super) struct Batch {
    pub(super) id: String,
    serial: u64,
    api: Api,
    pub(super) model: Option<usize>,
    pub(super) prompt_tokens: u64,
    /// When it begins to show in the listing.
    pub(super) listed_from: SimTime,
    input_file_id: String,
    input: Bytes,
    metadata: Metadata,
    output_secs: Option<u64>,
    errors: Vec<BatchError>,
    timeline: Timeline,
    faults: Vec<BatchFault>,
    /// Items that will run, by the time at which they finish; the first `done` have run.
    items: Vec<Item<Span>>,
    done: usize,
    /// Items that never run.
    lost: Vec<Span>,
    counts: Counts,
    usage: Usage,
    output: Vec<u8>,
    error_output: Vec<u8>,
    output_file_id: Option<String>,
    error_file_id: Option<String>,
    closed: bool,
}

#[derive(Serialize)]
struct ErrorList<'a> {
    object: &'static str,
    data: &'a [BatchError],
}

/// A batch as the API shows it.
#[derive(Serialize)]
pub(super) struct BatchView<'a> {
    id: &'a str,
    object: &'static str,
    endpoint: &'static str,
    model: Option<&'a str>,
    errors: Option<ErrorList<'a>>,
    input_file_id: &'a str,
    completion_window: &'static str,
    status: Status,
    output_file_id: Option<&'a str>,
    error_file_id: Option<&'a str>,
    created_at: u64,
    in_progress_at: Option<u64>,
    expires_at: u64,
    finalizing_at: Option<u64>,
    completed_at: Option<u64>,
    failed_at: Option<u64>,
    expired_at: Option<u64>,
    cancelling_at: Option<u64>,
    cancelled_at: Option<u64>,
    request_counts: Counts,
    usage: ResponseUsage,
    metadata: &'a Metadata,
}

/// What a batch says that fails by order.
const PLANNED: &str = "The batch was refused by the simulator's fault plan.";

impl Batch {
    /// Decides, from the seed and the fault plan, how the batch will go.
    pub(super) fn plan(
        inner: &Inner,
        serial: u64,
        order: Order,
        checked: Result<Checked, Vec<BatchError>>,
    ) -> Self {
        let mut rng = StdRng::seed_from_u64(scatter(inner.seed ^ scatter(serial)));
        let faults = inner.faults.for_batch(serial);
        let refused = faults.iter().find_map(|fault| match fault {
            BatchFault::FailValidation { code } => Some(vec![BatchError::of_file(code, PLANNED)]),
            BatchFault::RefuseLines { lines } => {
                let of_line = |line: &usize| BatchError {
                    line: Some(*line),
                    ..BatchError::of_file("invalid_json_line", PLANNED)
                };
                Some(lines.iter().map(of_line).collect())
            }
            _ => None,
        });
        let checked = refused.map_or(checked, Err);
        let created = order.created;
        let conditions = inner.conditions();
        let validated = created.plus(conditions.timing.validation);
        let mut batch = Self {
            id: inner.ids.text("batch_"),
            serial,
            api: order.api,
            model: None,
            prompt_tokens: 0,
            listed_from: created.plus_millis(inner.faults.listing_lag_ms()),
            input_file_id: order.input_file_id,
            input: order.input,
            metadata: order.metadata,
            output_secs: order.output_secs,
            errors: Vec::new(),
            timeline: Timeline {
                created,
                validated,
                expires: created.plus_millis(WINDOW_MS),
                fate: Fate::Fails,
                cancel: None,
            },
            faults,
            items: Vec::new(),
            done: 0,
            lost: Vec::new(),
            counts: Counts::default(),
            usage: Usage::default(),
            output: Vec::new(),
            error_output: Vec::new(),
            output_file_id: None,
            error_file_id: None,
            closed: false,
        };
        match checked {
            Ok(checked) => batch.plan_items(&conditions, checked, &mut rng),
            Err(errors) => batch.errors = errors,
        }
        batch
    }

    fn plan_items(&mut self, conditions: &Conditions, checked: Checked, rng: &mut StdRng) {
        let Checked { model, prompt_tokens, lines } = checked;
        (self.model, self.prompt_tokens, self.counts.total) = (Some(model), prompt_tokens, lines.len());
        let finalizing_ms = millis(conditions.timing.finalizing);
        let overhead_ms = millis(conditions.timing.validation) + finalizing_ms;
        let start = self.timeline.validated;
        let plan = pace::plan(rng, conditions, &self.faults, start, overhead_ms, lines);
        (self.items, self.lost) = (plan.items, plan.lost);
        self.timeline.fate = Fate::Runs { last_item: plan.last_item, finalizing_ms };
    }

    pub(super) fn status(&self, now: SimTime) -> Status {
        self.timeline.at(now).status
    }

    /// Whether the batch has ended and its result files are written.
    pub(super) fn is_closed(&self) -> bool {
        self.closed
    }

    /// Catches up with the clock.
    pub(super) fn settle(&mut self, inner: &Inner, files: &mut Files, now: SimTime) {
        let until = now.min(self.timeline.runs_until());
        while let Some(item) = self.items.get(self.done).copied().filter(|item| item.finishes <= until) {
            self.run(inner, item);
            self.done += 1;
        }
        if !self.closed && self.status(now).is_terminal() {
            self.close(inner, files);
        }
    }

    /// Moves what has not finished, as the stalls of the provider change.
    pub(super) fn move_items(&mut self, to: impl Fn(SimTime) -> SimTime) {
        self.timeline.move_items(self.items.iter_mut().skip(self.done), to);
    }

    /// Stops what has not started.
    pub(super) fn cancel(&mut self, inner: &Inner, now: SimTime) {
        let validating = now < self.timeline.validated;
        let in_flight_ms = if validating { 0 } else { millis(inner.conditions().timing.in_flight) };
        let upcoming = self.items.iter().skip(self.done).map(|item| item.finishes);
        self.timeline.cancel = Some(pace::cancellation(now, in_flight_ms, upcoming));
    }

    /// Runs one item: answers it, writes its line, charges for it if it was answered.
    fn run(&mut self, inner: &Inner, item: Item<Span>) {
        let input = self.input.clone();
        let Some((custom_id, body)) = read(&input, item.what) else { return };
        let number = [self.serial, self.done as u64];
        let fault = inner.faults.for_item(number, &custom_id, body);
        let answered = match fault {
            Some(ItemFault::NoResponse { code }) => {
                error_line(&mut self.error_output, &inner.ids, &custom_id, &code);
                self.counts.failed += 1;
                return;
            }
            Some(ItemFault::Status { status }) => {
                let status =
                    http::StatusCode::from_u16(status).unwrap_or(http::StatusCode::INTERNAL_SERVER_ERROR);
                Err(ApiError::of_status(status, None))
            }
            None => self.answer(inner, body, item.finishes),
        };
        match answered {
            Ok(ran) => {
                response_line(&mut self.output, &inner.ids, &custom_id, 200, &ran.body);
                self.usage.add(ran.usage);
                self.counts.completed += 1;
            }
            Err(error) => {
                let status = error.status.as_u16();
                response_line(&mut self.error_output, &inner.ids, &custom_id, status, &error.body());
                self.counts.failed += 1;
            }
        }
    }

    fn answer(&self, inner: &Inner, body: &str, now: SimTime) -> Result<Ran, ApiError> {
        let work = Work::parse(self.api, body.as_bytes())?;
        let model = inner.catalog.find(&work.model).ok_or_else(|| ApiError::model_not_found(&work.model))?;
        let cached_tokens = inner.cached_tokens(model, &work, now);
        let ran = work.run(&Run { ids: &inner.ids, now, cached_tokens })?;
        let key = inner.ledger.key(self.api.path(), body.as_bytes());
        inner.ledger.charge(model, Mode::Batch, ran.usage, key);
        Ok(ran)
    }

    /// Writes the result files of a batch that has ended, and lets go of everything else.
    fn close(&mut self, inner: &Inner, files: &mut Files) {
        self.closed = true;
        let end = self.timeline.end();
        let unrun = self.items.split_off(self.done.min(self.items.len()));
        let unrun = unrun.into_iter().map(|item| item.what).chain(std::mem::take(&mut self.lost));
        let last = self.timeline.at(end);
        let code = match last.status {
            Status::Expired => Some("batch_expired"),
            // A batch cancelled while it is validated has counted no items yet.
            Status::Cancelled if inner.lines_for_cancelled && last.in_progress.is_some() => {
                Some("batch_cancelled")
            }
            _ => None,
        };
        if let Some(code) = code {
            for line in unrun {
                if let Some((custom_id, _)) = read(&self.input, line) {
                    error_line(&mut self.error_output, &inner.ids, &custom_id, code);
                    self.counts.failed += 1;
                }
            }
        }
        // Where nothing ran there is no file to damage.
        if !self.output.is_empty() {
            damage(&mut self.output, &self.faults, || stray_line(&inner.ids));
        }
        let id = &self.id;
        let mut store = |kind: &str, bytes: &mut Vec<u8>| {
            if bytes.is_empty() {
                return None;
            }
            let file = StoredFile {
                id: inner.ids.text("file-"),
                bytes: Bytes::from(std::mem::take(bytes)),
                created: end,
                expires: Some(batch_file_expiry(end, self.output_secs)),
                filename: format!("{id}_{kind}.jsonl"),
                purpose: "batch_output".to_owned(),
            };
            let id = file.id.clone();
            files.store(file);
            Some(id)
        };
        self.output_file_id = store("output", &mut self.output);
        self.error_file_id = store("error", &mut self.error_output);
        self.input = Bytes::new();
        self.items = Vec::new();
        self.done = 0;
    }

    /// The batch as the API shows it. It must be settled to the same `now`.
    pub(super) fn view<'a>(&'a self, inner: &'a Inner, now: SimTime) -> BatchView<'a> {
        let moment = self.timeline.at(now);
        let secs = |at: Option<SimTime>| at.map(SimTime::secs);
        let failed = moment.failed.is_some();
        let validating = moment.in_progress.is_none();
        BatchView {
            id: &self.id,
            object: "batch",
            endpoint: self.api.path(),
            model: self.model.map(|model| inner.catalog.name(model)),
            errors: failed.then_some(ErrorList { object: "list", data: &self.errors }),
            input_file_id: &self.input_file_id,
            completion_window: "24h",
            status: moment.status,
            output_file_id: self.output_file_id.as_deref(),
            error_file_id: self.error_file_id.as_deref(),
            created_at: self.timeline.created.secs(),
            in_progress_at: secs(moment.in_progress),
            expires_at: self.timeline.expires.secs(),
            finalizing_at: secs(moment.finalizing),
            completed_at: secs(moment.completed),
            failed_at: secs(moment.failed),
            expired_at: secs(moment.expired),
            cancelling_at: secs(moment.cancelling),
            cancelled_at: secs(moment.cancelled),
            request_counts: if validating { Counts::default() } else { self.counts },
            usage: self.usage.into(),
            metadata: &self.metadata,
        }
    }
}

/// The `custom_id` and body of a line that passed validation.
fn read(input: &Bytes, line: Span) -> Option<(String, &str)> {
    let parsed: Line<'_> = serde_json::from_slice(input.get(line.start..line.end)?).ok()?;
    Some((parsed.custom_id?.0.into_owned(), parsed.body?.get()))
}
