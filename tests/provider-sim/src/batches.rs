//! `/v1/batches`: creation, listing, cancelling.
//!
//! A batch is planned when it is created: each item gets the time at which it finishes. [`Shelf::settle_all`] and
//! [`Batch::settle`] then catch up with the clock: they run and charge the items whose time has come, in that order and
//! each once, and write the result files when the batch has ended. Nobody waits for anything.

mod batch;
mod results;
mod state;
mod validate;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;
use http::StatusCode;
use serde::Deserialize;

use crate::batches::batch::{Batch, Order};
use crate::batches::validate::{BatchError, Checked, check};
use crate::clock::SimTime;
use crate::error::ApiError;
use crate::files::{Files, check_expiry};
use crate::pagination::{limit, page, query};
use crate::provider::Inner;
use crate::reply::SimResponse;
use crate::wire::{Metadata, check_metadata, parse};
use crate::work::Api;

pub(crate) use crate::batches::results::damage;
pub(crate) use crate::batches::state::{Cancel, Fate, Status, Timeline};

const HOUR_MS: u64 = 3_600_000;

/// What outlives a call: files and batches. Together, because a batch that ends writes files.
#[derive(Debug, Default)]
pub(crate) struct Shelf {
    pub(crate) files: Files,
    batches: Batches,
}

/// All batches, in the order in which they were created.
#[derive(Debug, Default)]
struct Batches {
    by_serial: BTreeMap<u64, Batch>,
    serials: HashMap<String, u64>,
    /// Those whose result files are not written yet.
    active: BTreeSet<u64>,
    /// When the batches of the last hour were created.
    recent: VecDeque<SimTime>,
    next: u64,
}

impl Shelf {
    /// Brings every batch up to date.
    pub(crate) fn settle_all(&mut self, inner: &Inner, now: SimTime) {
        let Self { files, batches: Batches { by_serial, active, .. } } = self;
        active.retain(|serial| {
            let Some(batch) = by_serial.get_mut(serial) else { return false };
            batch.settle(inner, files, now);
            !batch.is_closed()
        });
    }

    /// Moves what has not finished, as the stalls of the provider change. Everything must be settled.
    pub(crate) fn move_items(&mut self, to: impl Fn(SimTime) -> SimTime) {
        for serial in &self.batches.active {
            if let Some(batch) = self.batches.by_serial.get_mut(serial) {
                batch.move_items(&to);
            }
        }
    }

    /// Brings the batch `id` up to date and returns it.
    fn settled(&mut self, inner: &Inner, id: &str, now: SimTime) -> Result<&mut Batch, ApiError> {
        let unknown = || ApiError::not_found(format!("No batch found with id '{id}'.")).param("id");
        let serial = self.batches.serials.get(id).copied().ok_or_else(unknown)?;
        let batch = self.batches.by_serial.get_mut(&serial).ok_or_else(unknown)?;
        batch.settle(inner, &mut self.files, now);
        if batch.is_closed() {
            self.batches.active.remove(&serial);
        }
        Ok(batch)
    }

    /// Prompt tokens of `model` in batches that have not ended.
    fn enqueued_tokens(&self, model: usize) -> u64 {
        let active = self.batches.active.iter().filter_map(|serial| self.batches.by_serial.get(serial));
        active.filter(|batch| batch.model == Some(model)).map(|batch| batch.prompt_tokens).sum()
    }

    /// Takes one of the hour's creations, or says when there will be one.
    fn take_creation(&mut self, inner: &Inner, now: SimTime) -> Result<(), ApiError> {
        let recent = &mut self.batches.recent;
        while recent.front().is_some_and(|at| now.millis_since(*at) >= HOUR_MS) {
            recent.pop_front();
        }
        if recent.len() >= inner.conditions().limits.batches_per_hour {
            let free = recent.front().map_or(now, |first| first.plus_millis(HOUR_MS));
            let message = format!("Rate limit reached: {} batches created in an hour.", recent.len());
            let wait = inner.clock.real_millis(free.millis_since(now));
            return Err(ApiError::rate_limited(message, Some(wait)));
        }
        recent.push_back(now);
        Ok(())
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateRequest {
    input_file_id: Option<String>,
    endpoint: Option<String>,
    completion_window: Option<String>,
    metadata: Option<Metadata>,
    output_expires_after: Option<Expiry>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Expiry {
    anchor: Option<String>,
    seconds: Option<u64>,
}

/// `POST /v1/batches`
pub(crate) fn create(inner: &Inner, body: &Bytes, now: SimTime) -> Result<SimResponse, ApiError> {
    let request: CreateRequest = parse(body)?;
    let input_file_id = request.input_file_id.ok_or_else(|| ApiError::missing("input_file_id"))?;
    let endpoint = request.endpoint.ok_or_else(|| ApiError::missing("endpoint"))?;
    let supported =
        "'/v1/chat/completions', '/v1/completions', '/v1/embeddings', '/v1/moderations' and '/v1/responses'";
    let api =
        Api::of_path(&endpoint).ok_or_else(|| ApiError::invalid_value("endpoint", &endpoint, supported))?;
    match request.completion_window.as_deref() {
        None => return Err(ApiError::missing("completion_window")),
        Some("24h") => {}
        Some(other) => return Err(ApiError::invalid_value("completion_window", other, "'24h'")),
    }
    check_metadata(request.metadata.as_ref())?;
    let output_secs = match request.output_expires_after {
        None => None,
        Some(Expiry { anchor, seconds }) => {
            Some(check_expiry("output_expires_after", anchor.as_deref(), seconds)?)
        }
    };
    // The file is checked without the lock: that may take a while.
    let input = inner
        .shelf
        .lock()
        .files
        .find(&input_file_id, now)
        .map(|file| (file.bytes.clone(), file.purpose == "batch"));
    let checked = check_input(inner, input.as_ref(), api);

    let mut shelf = inner.shelf.lock();
    shelf.take_creation(inner, now)?;
    shelf.settle_all(inner, now);
    let serial = shelf.batches.next;
    shelf.batches.next += 1;
    let checked = checked.and_then(|checked| within_quota(inner, &shelf, checked));
    let input = input.map(|(bytes, _)| bytes).unwrap_or_default();
    let metadata = request.metadata.unwrap_or_default();
    let order = Order { api, input_file_id, input, metadata, output_secs, created: now };
    let batch = Batch::plan(inner, serial, order, checked);
    let reply = SimResponse::of(&batch.view(inner, now));
    shelf.batches.serials.insert(batch.id.clone(), serial);
    shelf.batches.active.insert(serial);
    shelf.batches.by_serial.insert(serial, batch);
    Ok(reply)
}

/// Problems with the file do not refuse the call: the batch is created and fails.
fn check_input(inner: &Inner, input: Option<&(Bytes, bool)>, api: Api) -> Result<Checked, Vec<BatchError>> {
    let of_file = |code, message: &str| {
        let mut error = BatchError::of_file(code, message);
        error.param = Some("input_file_id");
        vec![error]
    };
    match input {
        None => Err(of_file("file_not_found", "The input file does not exist or has expired.")),
        Some((_, false)) => Err(of_file("invalid_file_purpose", "The input file's purpose is not 'batch'.")),
        Some((bytes, true)) => check(bytes, api, &inner.catalog, &inner.conditions().limits),
    }
}

/// Holds the limit on enqueued tokens.
fn within_quota(inner: &Inner, shelf: &Shelf, checked: Checked) -> Result<Checked, Vec<BatchError>> {
    let model = inner.catalog.name(checked.model);
    let limits = &inner.conditions().limits;
    let limit = limits.enqueued_tokens_of.get(model).copied().or(limits.enqueued_tokens);
    let after = shelf.enqueued_tokens(checked.model) + checked.prompt_tokens;
    match limit {
        Some(limit) if after > limit => Err(vec![BatchError::of_file(
            "token_limit_exceeded",
            format!(
                "Enqueued token limit reached for {model} in organization org-sim. Limit: {limit} enqueued tokens. \
                 Please try again once some in_progress batches have been completed."
            ),
        )]),
        _ => Ok(checked),
    }
}

/// `GET /v1/batches/{id}`
pub(crate) fn get(inner: &Inner, id: &str, now: SimTime) -> Result<SimResponse, ApiError> {
    let mut shelf = inner.shelf.lock();
    let batch = shelf.settled(inner, id, now)?;
    Ok(SimResponse::of(&batch.view(inner, now)))
}

/// `GET /v1/batches`: newest first.
pub(crate) fn list(inner: &Inner, text: Option<&str>, now: SimTime) -> Result<SimResponse, ApiError> {
    let limit = limit(text, 20, 100)?;
    let mut shelf = inner.shelf.lock();
    shelf.settle_all(inner, now);
    let listed = shelf.batches.by_serial.values().rev().filter(|batch| now >= batch.listed_from);
    let rows = listed.map(|batch| (batch.id.as_str(), batch));
    let page = page(rows, query(text, "after"), limit)?;
    Ok(SimResponse::of(&page.map(|batch| batch.view(inner, now))))
}

/// `POST /v1/batches/{id}/cancel`
pub(crate) fn cancel(inner: &Inner, id: &str, now: SimTime) -> Result<SimResponse, ApiError> {
    let mut shelf = inner.shelf.lock();
    let batch = shelf.settled(inner, id, now)?;
    match batch.status(now) {
        Status::Cancelling => {}
        Status::Validating | Status::InProgress | Status::Finalizing => batch.cancel(inner, now),
        ended => {
            let name = serde_json::to_string(&ended).unwrap_or_default();
            let message = format!("Cannot cancel a batch with status '{}'.", name.trim_matches('"'));
            return Err(ApiError::invalid(message).status(StatusCode::CONFLICT));
        }
    }
    Ok(SimResponse::of(&batch.view(inner, now)))
}
