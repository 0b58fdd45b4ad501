//! The answer back to whoever waits, from the store.

pub mod output_file;
pub mod spent;

use bytes::Bytes;
use http::header::{HeaderValue, LOCATION, RETRY_AFTER};
use http::{Response, StatusCode};
use offpeak_core::outcome::{DidItRun, Ending};
use offpeak_core::retry::{CANCELLED_BY_CALLER, PERMANENT};
use offpeak_core::words::{Place, Timestamp};
use offpeak_store::{Kind, Outcome, Store, StoreError};
use serde::Serialize;

use crate::body::ReplyBody;
use crate::costs::Entry;
use crate::costs::ledger::{self, Of};
use crate::fallback::STAND_IN;
use crate::reply::stamp;
use crate::reply::{self, ATTEMPTS, COST, Dialect, ErrorText, MODEL_NOT_FOUND, REALTIME_COST};

/// Where tickets are.
pub const PATH: &str = "/v1/deferred/";

/// What the id of a deferred request begins with.
pub const ID_PREFIX: &str = "dfr-";

/// The name under which clients know a deferred request.
pub fn request_id(origin: Place) -> String {
    format!("{ID_PREFIX}{origin}")
}

/// The answer that the provider gave, or the error that stands in its place.
pub async fn final_answer(
    store: &Store,
    origin: Place,
    outcome: &Outcome,
) -> Result<Response<ReplyBody>, StoreError> {
    let dialect =
        store.lane_key(origin.lane).map_or(Dialect::OpenAi, |key| Dialect::of(key.endpoint.as_str()));
    let id = request_id(origin);
    let mut response = match &outcome.ending {
        Ending::Answered { status } => {
            let body = store.read_body(outcome.body).await?;
            reply::json(StatusCode::from_u16(*status).unwrap_or(StatusCode::BAD_GATEWAY), body)
        }
        Ending::Failed { code, message, .. } => failed(dialect, &id, code, message),
    };
    if !response.status().is_success() {
        // The answer is final: offpeak has tried as often as it may, and an SDK's own retry would begin anew.
        response.headers_mut().insert("x-should-retry", HeaderValue::from_static("false"));
    }
    let is_stand_in = outcome.meta == STAND_IN;
    stamp(&mut response, &id, if is_stand_in { "fallback" } else { "deferred" });
    response.headers_mut().insert(ATTEMPTS, HeaderValue::from(outcome.attempts));
    if let Some(entry) = charged(store, outcome).await? {
        let headers = response.headers_mut();
        for (name, amount) in [(COST, entry.cost), (REALTIME_COST, entry.realtime)] {
            if let Ok(amount) = HeaderValue::try_from(amount.to_decimal()) {
                headers.insert(name, amount);
            }
        }
    }
    if let Ok(id) = HeaderValue::from_maybe_shared(outcome.meta.clone())
        && !id.is_empty()
        && !is_stand_in
    {
        response.headers_mut().insert(dialect.request_id(), id);
    }
    Ok(response)
}

/// What the last attempt cost, if the provider ran it and its price is known.
async fn charged(store: &Store, outcome: &Outcome) -> Result<Option<Entry>, StoreError> {
    let key = ledger::key(outcome.finished_at, Of::Attempt(outcome.place));
    let entry = store.document(Kind::Ledger, key).await?.and_then(|value| Entry::read(&value));
    Ok(entry.filter(|entry| entry.priced && entry.ran == DidItRun::Ran))
}

fn failed(dialect: Dialect, id: &str, code: &str, message: &str) -> Response<ReplyBody> {
    let code = code.strip_prefix(PERMANENT).unwrap_or(code);
    let status = status_of(code);
    let param = (code == MODEL_NOT_FOUND).then_some("model");
    let text = ErrorText { status: status.as_u16(), code, message, param, id };
    reply::json(status, Bytes::from(reply::error_body(dialect, text)))
}

/// The status that goes with the code of a request that got no answer. A batch has no statuses: one that its provider does not
/// take because of the model says what a call in real time would have been told with a 404.
pub fn status_of(code: &str) -> StatusCode {
    match code {
        CANCELLED_BY_CALLER => StatusCode::CONFLICT,
        MODEL_NOT_FOUND => StatusCode::NOT_FOUND,
        _ => StatusCode::BAD_GATEWAY,
    }
}

#[derive(Serialize)]
struct Ticket<'a> {
    id: &'a str,
    object: &'static str,
    status: &'static str,
    attempts: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    deadline_at: Option<u64>,
    url: &'a str,
}

/// How soon a client may look again, in seconds.
const LOOK_AGAIN_S: u16 = 30;

/// What a ticket says of its request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TicketStanding {
    /// Attempts made.
    pub attempts: u16,
    /// When its answer is due.
    pub deadline: Option<Timestamp>,
    /// Its outcome is there, and can be fetched.
    pub is_done: bool,
}

/// A ticket for deferred work.
pub fn ticket(origin: Place, standing: TicketStanding, public_url: Option<&str>) -> Response<ReplyBody> {
    let TicketStanding { attempts, deadline, is_done } = standing;
    let id = request_id(origin);
    let url = format!("{}{}{id}", public_url.unwrap_or_default(), PATH);
    let ticket = Ticket {
        id: &id,
        object: "deferred",
        status: if is_done { "finished" } else { "in_progress" },
        attempts,
        deadline_at: deadline.map(|deadline| deadline.0 / 1000),
        url: &url,
    };
    let mut response = reply::json_of(StatusCode::ACCEPTED, &ticket);
    stamp(&mut response, &id, "deferred");
    let headers = response.headers_mut();
    if let Ok(url) = HeaderValue::try_from(&url) {
        headers.insert(LOCATION, url);
    }
    if !is_done {
        headers.insert(RETRY_AFTER, HeaderValue::from(LOOK_AGAIN_S));
    }
    response
}
