//! `/v1/messages/batches`: creation, listing, cancelling, results.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use bytes::Bytes;
use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use crate::anthropic::Call;
use crate::anthropic::batch::{Entry, MessageBatch};
use crate::anthropic::error::{invalid, parse, required};
use crate::anthropic::messages::check_size;
use crate::clock::SimTime;
use crate::error::ApiError;
use crate::faults::BatchFault;
use crate::pagination::cursor_page;
use crate::provider::Inner;
use crate::reply::{SimBody, SimResponse};
use crate::wire::Text;

/// Keeps the draws of message batches apart from those of OpenAI's batches.
const NUMBERS_FROM: u64 = 1 << 40;
/// Characters of a `custom_id`.
const CUSTOM_ID_CHARS: usize = 64;

/// All message batches, in the order in which they were created.
#[derive(Debug, Default)]
pub(crate) struct MessageBatches {
    by_serial: BTreeMap<u64, MessageBatch>,
    serials: HashMap<String, u64>,
    /// Those that have not ended.
    active: BTreeSet<u64>,
    next: u64,
}

impl MessageBatches {
    /// Brings every batch up to date.
    pub(crate) fn settle_all(&mut self, inner: &Inner, now: SimTime) {
        let Self { by_serial, active, .. } = self;
        active.retain(|serial| {
            let Some(batch) = by_serial.get_mut(serial) else { return false };
            batch.settle(inner, now);
            !batch.is_ended()
        });
    }

    /// Moves what has not finished, as the stalls of the provider change. Everything must be settled.
    pub(crate) fn move_items(&mut self, to: impl Fn(SimTime) -> SimTime) {
        for serial in &self.active {
            if let Some(batch) = self.by_serial.get_mut(serial) {
                batch.move_items(&to);
            }
        }
    }

    /// Brings the batch `id` up to date and returns it.
    fn settled(&mut self, inner: &Inner, id: &str, now: SimTime) -> Result<&mut MessageBatch, ApiError> {
        let unknown = || ApiError::not_found(format!("No message batch found with ID: {id}"));
        let serial = self.serials.get(id).ok_or_else(unknown)?;
        let batch = self.by_serial.get_mut(serial).ok_or_else(unknown)?;
        batch.settle(inner, now);
        if batch.is_ended() {
            self.active.remove(serial);
        }
        Ok(batch)
    }

    /// Requests in batches that have not ended.
    fn queued(&self) -> usize {
        let active = self.active.iter().filter_map(|serial| self.by_serial.get(serial));
        active.map(MessageBatch::processing).sum()
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateRequest<'a> {
    #[serde(borrow)]
    requests: Option<Vec<Item<'a>>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item<'a> {
    #[serde(borrow)]
    custom_id: Option<Text<'a>>,
    #[serde(borrow)]
    params: Option<&'a RawValue>,
}

/// `POST /v1/messages/batches`: only the frame is checked now, the parameters when the requests run.
pub(super) fn create(inner: &Inner, call: &Call<'_>, body: &Bytes) -> Result<SimResponse, ApiError> {
    let limits = &inner.conditions().limits;
    check_size(body, limits.message_batch_bytes)?;
    let entries = read(body, limits.message_batch_requests)?;
    let mut batches = inner.message_batches.lock();
    batches.settle_all(inner, call.now);
    if let Some(most) = limits.message_batch_queue
        && batches.queued() + entries.len() > most
    {
        let message = format!("This request would exceed the limit of {most} requests waiting in batches.");
        return Err(ApiError::rate_limited(message, None));
    }
    let serial = batches.next;
    batches.next += 1;
    let number = NUMBERS_FROM + serial;
    let faults = inner.faults.for_batch(number);
    if let Some(BatchFault::FailValidation { code }) =
        faults.iter().find(|fault| matches!(fault, BatchFault::FailValidation { .. }))
    {
        let message = format!("The batch was refused by the simulator's fault plan: {code}");
        return Err(ApiError::invalid(message));
    }
    let batch = MessageBatch::plan(inner, number, call.version, entries, faults, call.now);
    let reply = SimResponse::of(&batch.view(&call.base_url, call.now));
    batches.serials.insert(batch.id.clone(), serial);
    batches.active.insert(serial);
    batches.by_serial.insert(serial, batch);
    Ok(reply)
}

/// The entries of a creating body.
fn read(body: &Bytes, most: usize) -> Result<Vec<Entry>, ApiError> {
    let request: CreateRequest<'_> = parse(body)?;
    let items = request.requests.ok_or_else(|| required("requests"))?;
    if items.is_empty() {
        return Err(invalid("requests", "List should have at least 1 item after validation, not 0"));
    }
    if items.len() > most {
        let problem = format!("List should have at most {most} items after validation, not {}", items.len());
        return Err(invalid("requests", &problem));
    }
    let mut ids = HashSet::with_capacity(items.len());
    let mut entries = Vec::with_capacity(items.len());
    for (n, item) in items.iter().enumerate() {
        let missing = |field: &str| required(format_args!("requests.{n}.{field}"));
        let custom_id = item.custom_id.as_ref().ok_or_else(|| missing("custom_id"))?;
        if !is_custom_id(custom_id) {
            let problem = "String should match pattern '^[a-zA-Z0-9_-]{1,64}$'";
            return Err(invalid(format_args!("requests.{n}.custom_id"), problem));
        }
        let params = item.params.ok_or_else(|| missing("params"))?.get();
        if !params.starts_with('{') {
            return Err(invalid(format_args!("requests.{n}.params"), "Input should be an object"));
        }
        if !ids.insert(&**custom_id) {
            let problem = format!("custom_id must be unique, '{}' is used more than once", &**custom_id);
            return Err(invalid("requests", &problem));
        }
        entries.push(Entry { custom_id: (**custom_id).into(), params: body.slice_ref(params.as_bytes()) });
    }
    Ok(entries)
}

fn is_custom_id(text: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-';
    (1..=CUSTOM_ID_CHARS).contains(&text.len()) && text.bytes().all(is_allowed)
}

/// `GET /v1/messages/batches`: newest first.
pub(super) fn list(inner: &Inner, call: &Call<'_>) -> Result<SimResponse, ApiError> {
    let mut batches = inner.message_batches.lock();
    batches.settle_all(inner, call.now);
    let listed = batches.by_serial.values().rev().filter(|batch| call.now >= batch.listed_from);
    let rows: Vec<_> = listed.map(|batch| (batch.id.as_str(), batch)).collect();
    let page = cursor_page(&rows, call.query)?;
    Ok(SimResponse::of(&page.map(|batch| batch.view(&call.base_url, call.now))))
}

/// `GET /v1/messages/batches/{id}`
pub(super) fn get(inner: &Inner, call: &Call<'_>, id: &str) -> Result<SimResponse, ApiError> {
    let mut batches = inner.message_batches.lock();
    let batch = batches.settled(inner, id, call.now)?;
    Ok(SimResponse::of(&batch.view(&call.base_url, call.now)))
}

/// `POST /v1/messages/batches/{id}/cancel`
pub(super) fn cancel(inner: &Inner, call: &Call<'_>, id: &str) -> Result<SimResponse, ApiError> {
    let mut batches = inner.message_batches.lock();
    let batch = batches.settled(inner, id, call.now)?;
    if batch.is_ended() {
        return Err(ApiError::invalid(format!("Message batch {id} has ended and cannot be canceled.")));
    }
    batch.cancel(inner, call.now);
    Ok(SimResponse::of(&batch.view(&call.base_url, call.now)))
}

/// `DELETE /v1/messages/batches/{id}`
pub(super) fn delete(inner: &Inner, call: &Call<'_>, id: &str) -> Result<SimResponse, ApiError> {
    let mut batches = inner.message_batches.lock();
    if !batches.settled(inner, id, call.now)?.is_ended() {
        let message = format!("Message batch {id} is still in progress. Cancel it before deleting it.");
        return Err(ApiError::invalid(message));
    }
    if let Some(serial) = batches.serials.remove(id) {
        batches.by_serial.remove(&serial);
    }
    Ok(SimResponse::of(&json!({ "id": id, "type": "message_batch_deleted" })))
}

/// `GET /v1/messages/batches/{id}/results`
pub(super) fn results(inner: &Inner, call: &Call<'_>, id: &str) -> Result<SimResponse, ApiError> {
    let mut batches = inner.message_batches.lock();
    let batch = batches.settled(inner, id, call.now)?;
    let results = batch.results(call.now).ok_or_else(|| {
        let message = "has no available results: it must have ended, and results are kept for 29 days.";
        ApiError::not_found(format!("Message batch {id} {message}"))
    })?;
    Ok(SimResponse::new("application/x-jsonl", SimBody::Full(results.clone())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_follow_the_pattern() {
        assert!(is_custom_id("a-B_9") && is_custom_id(&"x".repeat(64)));
        assert!(!is_custom_id("") && !is_custom_id(&"x".repeat(65)));
        assert!(!is_custom_id("a.b") && !is_custom_id("ä"));
    }

    #[test]
    fn the_frame_is_checked_at_once() {
        let problem = |body: &'static str| {
            read(&Bytes::from_static(body.as_bytes()), 2)
                .err()
                .map_or_else(String::new, |error| error.message)
        };
        assert_eq!(problem(r#"{"requests":[{"custom_id":"a","params":{"any":"thing"}}]}"#), "");
        assert_eq!(problem("{}"), "requests: Field required");
        assert!(problem(r#"{"requests":[]}"#).starts_with("requests: List should have at least 1"));
        assert_eq!(problem(r#"{"requests":[{"params":{}}]}"#), "requests.0.custom_id: Field required");
        assert_eq!(problem(r#"{"requests":[{"custom_id":"a"}]}"#), "requests.0.params: Field required");
        assert!(problem(r#"{"requests":[{"custom_id":"a b","params":{}}]}"#).contains("pattern"));
        assert!(problem(r#"{"requests":[{"custom_id":"a","params":[]}]}"#).contains("an object"));
        let twice = r#"{"requests":[{"custom_id":"a","params":{}},{"custom_id":"a","params":{}}]}"#;
        assert!(problem(twice).contains("'a' is used more than once"));
        let many = r#"{"requests":[{"custom_id":"a","params":{}},{"custom_id":"b","params":{}},{"custom_id":"c","params":{}}]}"#;
        assert!(problem(many).contains("at most 2"));
        assert!(problem("{").contains("not valid JSON"));
        assert_eq!(problem(r#"{"requests":[],"x":1}"#), "x: Extra inputs are not permitted");
    }
}
