//! /v1/responses with `background: true`: a deferred request that is fetched by OpenAI's own means. Its id is its place,
//! so that nothing is kept of it beyond the request; only that one was deleted is noted.

pub mod events;
pub mod input_items;
mod stream;

use std::borrow::Cow;
use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use offpeak_core::outcome::Ending;
use offpeak_core::retry::{CANCELLED_BY_CALLER, PERMANENT};
use offpeak_core::sla::{Sla, Tag, parse_duration};
use offpeak_core::words::{LaneId, Millis, Place, Seq, Timestamp};
use offpeak_store::{Document, Entry, Kind, Outcome, Recorded, Standing};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::body::{ReplyBody, RequestBody};
use crate::defer::{self, store_failed};
use crate::documents;
use crate::envelope::Envelope;
use crate::gateway::Gateway;
use crate::ingress::files::{no_such_call, seconds};
use crate::ingress::query::Query;
use crate::label::FOR_A_RESPONSE;
use crate::members::{self, Edit};
use crate::reply::{self, Refusal};
use crate::route;
use crate::sent;
use crate::tenant::{Account, Identified};

/// Where responses are.
pub const PATH: &str = "/v1/responses";

/// What the id of a background response begins with.
const PREFIX: &str = "resp_";

/// What OpenAI's word `soonest` stands for: too short for any batch, so that it is run at once.
const SOONEST: Millis = Millis::from_mins(1);

/// Keeps a background response and answers with it, queued.
pub async fn create(
    gateway: &Arc<Gateway>,
    caller: &Identified,
    headers: &HeaderMap,
    envelope: Envelope,
    arrived: Timestamp,
) -> Result<Response<ReplyBody>, Refusal> {
    let account = caller.account();
    route::check_job(gateway, caller, PATH, std::iter::once(envelope.model.as_str()))?;
    let window = window(&envelope, account)?;
    let is_streamed = envelope.stream;
    if is_streamed && !gateway.held.has_room() {
        return Err(defer::too_many_held());
    }
    // How it is delivered is no matter of the router's.
    let envelope = Envelope { sla: Sla::Within(window), stream: false, ..envelope };
    let deferral =
        route::route_later(gateway, (account, &caller.deferred_key()), PATH, headers, &envelope, arrived)
            .await?;
    let kept = defer::keep(gateway, account, deferral, headers, envelope, arrived, FOR_A_RESPONSE).await?;
    let origin = kept.origin();
    if is_streamed {
        return stream::answer(gateway, origin, None);
    }
    let response = shown(gateway, origin).await?.ok_or_else(|| not_found(&id(origin)))?;
    gateway.metrics.answered("deferred", response.status().as_u16());
    Ok(response)
}

/// A tag says it, or the call's own window, or the tenant's default.
fn window(envelope: &Envelope, account: &Account) -> Result<Millis, Refusal> {
    #[derive(Deserialize)]
    struct Peek<'a> {
        #[serde(borrow)]
        background_options: Option<Options<'a>>,
    }
    #[derive(Deserialize)]
    struct Options<'a> {
        #[serde(borrow)]
        completion_window: Option<Cow<'a, str>>,
    }
    match (envelope.tag, envelope.sla) {
        (Tag::Header | Tag::Metadata, Sla::Within(window)) => return Ok(window),
        (Tag::Header | Tag::Metadata, Sla::Realtime) => return Ok(SOONEST),
        (Tag::Api | Tag::Default, _) => {}
    }
    let refuse = |message: String| {
        Refusal::bad_request("invalid_completion_window", message)
            .param("background_options.completion_window")
    };
    let peek: Peek<'_> = serde_json::from_slice(&envelope.body)
        .map_err(|error| refuse(format!("background_options cannot be read: {error}.")))?;
    match peek.background_options.and_then(|options| options.completion_window).as_deref() {
        None => Ok(account.sla.deferrable),
        Some("soonest") => Ok(SOONEST),
        Some(text) => parse_duration(text).map_err(|error| refuse(format!("{error}."))),
    }
}

/// Answers a call about a response.
pub async fn answer(
    gateway: &Arc<Gateway>,
    caller: Identified,
    request: Request<RequestBody>,
    names: &[String],
) -> Result<Response<ReplyBody>, Refusal> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let method = request.method().clone();
    match (&method, names.as_slice()) {
        (&Method::GET, [id]) => {
            let place = find(gateway, caller.account(), id).await?;
            let query = Query::of(&request);
            if query.get("stream") == Some("true") {
                return stream::answer(gateway, place, stream::starting_after(&query)?);
            }
            shown(gateway, place).await?.ok_or_else(|| not_found(id))
        }
        (&Method::GET, [id, "input_items"]) => {
            let place = find(gateway, caller.account(), id).await?;
            let entry = gateway.store.entry(place).await.map_err(|error| store_failed(&error))?;
            let entry = entry.ok_or_else(|| not_found(id))?;
            let page = input_items::page(&entry.body, place, &Query::of(&request))?;
            Ok(reply::json_of(StatusCode::OK, &page))
        }
        (&Method::POST, [id, "cancel"]) => cancel(gateway, caller.account(), id).await,
        (&Method::DELETE, [id]) => delete(gateway, caller.account(), id).await,
        (_, names) => {
            let allow = match names {
                [_] => "GET, DELETE",
                [_, "input_items"] => "GET",
                [_, "cancel"] => "POST",
                _ => "",
            };
            let paths = "POST /v1/responses, GET and DELETE /v1/responses/{id}, GET /v1/responses/{id}/input_items, and POST \
                         /v1/responses/{id}/cancel";
            Err(no_such_call(&method, paths, allow))
        }
    }
}

fn id(place: Place) -> String {
    format!("{PREFIX}{:08x}{:016x}", place.lane.0, place.seq.0)
}

fn place(id: &str) -> Option<Place> {
    let digits = id.strip_prefix(PREFIX).filter(|digits| digits.len() == 24)?;
    let (lane, seq) = digits.split_at_checked(8)?;
    let place = Place {
        lane: LaneId(u32::from_str_radix(lane, 16).ok()?),
        seq: Seq(u64::from_str_radix(seq, 16).ok()?),
    };
    (self::id(place) == id).then_some(place)
}

fn not_found(id: &str) -> Refusal {
    let id: String = id.chars().take(60).collect();
    let message = format!(
        "Response with id '{id}' not found. offpeak keeps background responses that were created here, until their \
         retention is over."
    );
    Refusal::not_found("response_not_found", message).param("id")
}

/// The place of the tenant's response of this name.
async fn find(gateway: &Gateway, account: &Account, id: &str) -> Result<Place, Refusal> {
    let place = place(id).ok_or_else(|| not_found(id))?;
    let key = gateway.store.lane_key(place.lane).ok_or_else(|| not_found(id))?;
    if key.tenant != account.id || key.endpoint.as_str() != PATH || is_deleted(gateway, place).await? {
        return Err(not_found(id));
    }
    Ok(place)
}

async fn is_deleted(gateway: &Gateway, place: Place) -> Result<bool, Refusal> {
    let noted = gateway.store.document(Kind::Response, documents::key_of(place)).await;
    Ok(noted.map_err(|error| store_failed(&error))?.is_some())
}

async fn cancel(gateway: &Gateway, account: &Account, id: &str) -> Result<Response<ReplyBody>, Refusal> {
    let place = find(gateway, account, id).await?;
    let now = gateway.clock.now();
    let recorded = sent::cancel(&gateway.store, place, now).await.map_err(|error| store_failed(&error))?;
    if let Recorded::New { origin, .. } = recorded {
        gateway.jobs.finished([(origin, false)]);
        gateway.held.tell([origin]);
    }
    let standing = gateway.store.outcome(place).await.map_err(|error| store_failed(&error))?;
    match standing {
        Some(Standing::Final(outcome)) if !is_cancelled(&outcome) => {
            let message = "The response has ended already and cannot be cancelled. GET it.";
            Err(Refusal::bad_request("response_ended", message).param("id"))
        }
        _ => shown(gateway, place).await?.ok_or_else(|| not_found(id)),
    }
}

fn is_cancelled(outcome: &Outcome) -> bool {
    matches!(&outcome.ending, Ending::Failed { code, .. } if code == CANCELLED_BY_CALLER)
}

/// A response that has not ended is cancelled first: nobody could fetch it any more.
async fn delete(gateway: &Gateway, account: &Account, id: &str) -> Result<Response<ReplyBody>, Refusal> {
    #[derive(Serialize)]
    struct Farewell<'a> {
        id: &'a str,
        object: &'static str,
        deleted: bool,
    }
    let place = find(gateway, account, id).await?;
    let now = gateway.clock.now();
    let recorded = sent::cancel(&gateway.store, place, now).await.map_err(|error| store_failed(&error))?;
    if let Recorded::New { origin, .. } = recorded {
        gateway.held.tell([origin]);
    }
    let value = Some(Bytes::from_static(&[1]));
    let mark = Document { kind: Kind::Response, key: documents::key_of(place), value };
    gateway.store.keep(vec![mark]).await.map_err(|error| store_failed(&error))?;
    Ok(reply::json_of(StatusCode::OK, &Farewell { id, object: "response", deleted: true }))
}

/// A response as it is now.
struct Shown {
    body: Bytes,
    has_ended: bool,
}

/// The answer to who asks for a response; none if it is not there any more.
async fn shown(gateway: &Gateway, place: Place) -> Result<Option<Response<ReplyBody>>, Refusal> {
    let shown = object(gateway, place).await?;
    Ok(shown.map(|shown| stamped(reply::json(StatusCode::OK, shown.body), place)))
}

/// The response as it is now; none if it is not there any more.
async fn object(gateway: &Gateway, place: Place) -> Result<Option<Shown>, Refusal> {
    let failed = |error| store_failed(&error);
    let Some(standing) = gateway.store.outcome(place).await.map_err(failed)? else { return Ok(None) };
    if let Standing::Final(outcome) = &standing
        && outcome.ending.is_success()
    {
        let body = gateway.store.read_body(outcome.body).await.map_err(failed)?;
        if let Ok(body) = theirs(&body, place) {
            return Ok(Some(Shown { body: body.into(), has_ended: true }));
        }
    }
    let Some(entry) = gateway.store.entry(place).await.map_err(failed)? else { return Ok(None) };
    let (status, error) = match &standing {
        Standing::Waiting { current, .. } => {
            let is_sealed = gateway.store.is_sealed(*current).await.map_err(failed)?;
            (if is_sealed { "in_progress" } else { "queued" }, None)
        }
        Standing::Final(outcome) if is_cancelled(outcome) => ("cancelled", None),
        Standing::Final(outcome) => {
            let body = gateway.store.read_body(outcome.body).await.map_err(failed)?;
            ("failed", Some(Failure::of(&outcome.ending, &body)))
        }
    };
    let body = serde_json::to_vec(&ours(&entry, status, error)).unwrap_or_default();
    Ok(Some(Shown { body: body.into(), has_ended: matches!(standing, Standing::Final(_)) }))
}

fn stamped(mut response: Response<ReplyBody>, place: Place) -> Response<ReplyBody> {
    reply::stamp(&mut response, &crate::delivery::request_id(place), "deferred");
    response
}

/// The provider's own object, under the id that the caller knows.
fn theirs(body: &[u8], place: Place) -> Result<Vec<u8>, serde_json::Error> {
    let edits = [Edit::set("id", format!("\"{}\"", id(place))), Edit::set("background", "true")];
    members::edit(body, &edits)
}

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Failure {
    code: String,
    message: String,
}

impl Failure {
    fn of(ending: &Ending, body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Body {
            error: Inner,
        }
        #[derive(Deserialize)]
        struct Inner {
            code: Option<String>,
            message: Option<String>,
        }
        match ending {
            Ending::Failed { code, message, .. } => Self {
                code: code.strip_prefix(PERMANENT).unwrap_or(code).to_owned(),
                message: message.clone(),
            },
            Ending::Answered { status } => {
                let inner = serde_json::from_slice(body).ok().map(|body: Body| body.error);
                let (code, message) = inner.map_or((None, None), |inner| (inner.code, inner.message));
                Self {
                    code: code.unwrap_or_else(|| "server_error".to_owned()),
                    message: message
                        .unwrap_or_else(|| format!("The provider answered with the status {status}.")),
                }
            }
        }
    }
}

/// A response without the provider's object: what the caller sent, and how it stands.
#[derive(Serialize)]
struct ResponseObject<'a> {
    id: String,
    object: &'static str,
    created_at: u64,
    status: &'static str,
    background: bool,
    error: Option<Failure>,
    incomplete_details: Option<()>,
    output: [(); 0],
    usage: Option<()>,
    #[serde(flatten)]
    echo: Echo<'a>,
}

/// The members of the request that an answer repeats.
#[derive(Serialize, Deserialize, Default)]
struct Echo<'a> {
    #[serde(borrow, default)]
    model: Option<&'a RawValue>,
    #[serde(borrow, default)]
    instructions: Option<&'a RawValue>,
    #[serde(borrow, default)]
    max_output_tokens: Option<&'a RawValue>,
    #[serde(borrow, default)]
    metadata: Option<&'a RawValue>,
    #[serde(borrow, default)]
    parallel_tool_calls: Option<&'a RawValue>,
    #[serde(borrow, default)]
    previous_response_id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    reasoning: Option<&'a RawValue>,
    #[serde(borrow, default)]
    temperature: Option<&'a RawValue>,
    #[serde(borrow, default)]
    text: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tool_choice: Option<&'a RawValue>,
    #[serde(borrow, default)]
    tools: Option<&'a RawValue>,
    #[serde(borrow, default)]
    top_p: Option<&'a RawValue>,
    #[serde(borrow, default)]
    truncation: Option<&'a RawValue>,
}

fn ours<'a>(entry: &'a Entry, status: &'static str, error: Option<Failure>) -> ResponseObject<'a> {
    let mut echo: Echo<'a> = serde_json::from_slice(&entry.body).unwrap_or_default();
    // These three are never null.
    echo.parallel_tool_calls = echo.parallel_tool_calls.or(Some(RawValue::TRUE));
    echo.tool_choice = echo.tool_choice.or_else(|| serde_json::from_str("\"auto\"").ok());
    echo.tools = echo.tools.or_else(|| serde_json::from_str("[]").ok());
    ResponseObject {
        id: id(entry.origin),
        object: "response",
        created_at: seconds(entry.arrived),
        status,
        background: true,
        error,
        incomplete_details: None,
        output: [],
        usage: None,
        echo,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_a_place_and_only_one() {
        let there = Place { lane: LaneId(31), seq: Seq(42) };
        assert_eq!(id(there), "resp_0000001f000000000000002a");
        assert_eq!(place(&id(there)), Some(there));
        for other in
            ["resp_1f", "0000001f000000000000002a", "resp_0000001F000000000000002a", "resp_abc123", "resp_"]
        {
            assert_eq!(place(other), None, "{other}");
        }
    }

    #[test]
    fn a_failure_says_what_the_provider_said() {
        let answered = Ending::Answered { status: 400 };
        let said = Failure::of(&answered, br#"{"error":{"code":"invalid_prompt","message":"no"}}"#);
        assert_eq!((said.code.as_str(), said.message.as_str()), ("invalid_prompt", "no"));
        assert_eq!(Failure::of(&answered, b"<html>").code, "server_error");
    }

    #[test]
    fn the_providers_object_keeps_everything_but_its_id() {
        let place = Place { lane: LaneId(0), seq: Seq(1) };
        let body = theirs(br#"{"id":"resp_x","object":"response","output":[1, 2]}"#, place).unwrap();
        let expected =
            format!(r#"{{"id":"{}","object":"response","output":[1, 2],"background":true}}"#, id(place));
        assert_eq!(String::from_utf8(body).unwrap(), expected);
    }
}
