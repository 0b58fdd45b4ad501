//! One request in the background with a completion window: handed in, looked at until it is over, and read.
//!
//! A "batch" of this kind holds one request. The API has no way to look for a response by its metadata, so that a creation
//! whose fate is unknown cannot be found again: the batch ends, its request's fate is unknown, and the retry policy decides.

use std::borrow::Cow;

use offpeak_plugin::{
    DidItRun,
    batch::Hindrance,
    provider::{
        BatchLimits, Decoded, Effect, Event, Framing, Item, ItemFailure, ItemOutcome, ItemResponse,
        ItemResult, Reading, ReadingForm, Step, Upload,
    },
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json, value::RawValue};

use super::{Cancel, Context, End, How, Outcome, Ran, call, get, header};
use crate::{
    lines::{Members, json_text},
    wire::{ErrorObject, escape, lenient_error},
};

/// Where it is sold.
pub(crate) const ENDPOINT: &str = "/v1/responses";

/// A completion window.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    /// The offer's name.
    pub(crate) offer: &'static str,
    /// As the API writes it.
    pub(crate) text: &'static str,
    /// How long that is.
    pub(crate) ms: u64,
    /// What it costs, in thousandths of the list price.
    pub(crate) price_permille: u32,
}

/// Those that OpenAI has.
pub(crate) const WINDOWS: [Window; 2] = [
    Window { offer: "background-2h", text: "2h", ms: 7_200_000, price_permille: 700 },
    Window { offer: "background-8h", text: "8h", ms: 28_800_000, price_permille: 600 },
];

/// The window of an offer; none if it is another kind of offer.
pub(crate) fn window(offer: &str) -> Option<Window> {
    WINDOWS.into_iter().find(|window| window.offer == offer)
}

/// What one "batch" may hold: one request. The API names no other limits for them.
pub(crate) fn limits() -> BatchLimits {
    BatchLimits {
        max_requests: 1,
        max_bytes: 64 << 20,
        item_overhead_bytes: 256,
        max_batches_an_hour: 100_000,
    }
}

/// As much of an answer to a small call as the daemon shows; what is longer is cut off.
const SHOWN_BYTES: usize = 1 << 20;
/// Creations that may be put off in a row.
const ROUNDS_MAX: u32 = 8;
/// Refusals in a row to show the response, and what the refusal counts that says that there is none.
const REFUSALS_MAX: u32 = 100;
const NOT_FOUND_WEIGHT: u32 = 20;
/// Times that reading may be cut off in a row.
const READ_TRIES_MAX: u32 = 100;
/// Entries that `metadata` may have.
const METADATA_MAX: usize = 16;
/// The one that names the batch, for people who look at the provider's own pages.
const MARK_KEY: &str = "offpeak_batch";
const STATE_VERSION: u32 = 1;

/// What the daemon keeps between two steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct State {
    version: u32,
    phase: Phase,
    /// The phase's effect is not out yet; before it, a wait of so many milliseconds is.
    pause_ms: Option<u64>,
    /// Calls that came to nothing, in a row.
    tries: u32,
    polls: u32,
    gone: u32,
    cancel: Cancel,
    id: Option<String>,
}

/// What the outstanding effect belongs to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
enum Phase {
    /// Handing it in.
    Send,
    /// It was refused as it stands: the refusal is its outcome.
    Refused {
        status: u16,
        body: String,
    },
    Look,
    Cancel,
    Read,
    Over {
        end: End,
    },
}

/// A response, as far as it is looked at.
#[derive(Deserialize)]
struct Shown<'a> {
    #[serde(borrow, default)]
    id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    status: Cow<'a, str>,
    #[serde(default, deserialize_with = "lenient_error")]
    error: Option<ErrorObject>,
    #[serde(borrow, default)]
    usage: Option<&'a RawValue>,
}

/// One step, with the state as it is stored.
pub(super) fn batch_step(stored: &[u8], event: Event, context: Context<'_>) -> Result<Step, String> {
    let state = read_state(stored)?;
    let next = step(state, event, context);
    let effect = match next.pause_ms {
        Some(ms) => Effect::Wait(ms),
        None => effect(&next, context)?,
    };
    Ok(Step {
        state: serde_json::to_vec(&next).map_err(|error| error.to_string())?,
        effect,
        provider_id: next.id.clone(),
        progress: None,
    })
}

fn read_state(bytes: &[u8]) -> Result<Option<State>, String> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let state: State = serde_json::from_slice(bytes)
        .map_err(|error| format!("the stored state cannot be read ({error}); was it another plugin's?"))?;
    match state.version {
        STATE_VERSION => Ok(Some(state)),
        version => Err(format!(
            "the stored state has version {version}, this plugin knows {STATE_VERSION}; use a newer one"
        )),
    }
}

fn step(state: Option<State>, event: Event, context: Context<'_>) -> State {
    let Some(mut state) = state else {
        return State {
            version: STATE_VERSION,
            phase: Phase::Send,
            pause_ms: None,
            tries: 0,
            polls: 0,
            gone: 0,
            cancel: Cancel::No,
            id: None,
        };
    };
    if matches!(event, Event::Cancel) && state.cancel == Cancel::No {
        state.cancel = Cancel::Wanted;
    }
    match (state.pause_ms.take(), event) {
        (Some(ms), Event::Cancel | Event::Interrupted) => state.pause_ms = Some(ms),
        (Some(_), _) => {}
        (None, event) => state.react(event, context),
    }
    state.heed_cancel();
    state
}

impl State {
    fn react(&mut self, event: Event, context: Context<'_>) {
        match &self.phase {
            Phase::Send => self.sent(event, context),
            Phase::Look => self.looked(Outcome::of(event), context),
            // Whatever the answer, a look tells what came of it.
            Phase::Cancel => {
                self.cancel = Cancel::Told;
                self.phase = Phase::Look;
            }
            Phase::Read => self.read(&event, context),
            // Otherwise it is told again: outcomes that were taken are not taken twice.
            Phase::Refused { .. } => {
                if matches!(event, Event::Read(_)) {
                    self.over(self.finished(Ran::Unknown));
                }
            }
            Phase::Over { .. } => {}
        }
    }

    /// Once it is to be stopped, nothing is handed in any more, and what runs is told.
    fn heed_cancel(&mut self) {
        if self.cancel != Cancel::Wanted {
            return;
        }
        match self.phase {
            Phase::Send => self.over(End::Finished { how: How::Cancelled, missing: Ran::NotSent }),
            Phase::Look => {
                self.phase = Phase::Cancel;
                self.pause_ms = None;
            }
            Phase::Refused { .. } | Phase::Cancel | Phase::Read | Phase::Over { .. } => {}
        }
    }

    fn over(&mut self, end: End) {
        self.pause_ms = None;
        self.phase = Phase::Over { end };
    }

    fn finished(&self, missing: Ran) -> End {
        let how = if self.cancel == Cancel::No { How::Completed } else { How::Cancelled };
        End::Finished { how, missing }
    }

    fn pause(&mut self, phase: Phase, hindrance: Option<&Hindrance>, context: Context<'_>) {
        self.tries = self.tries.saturating_add(1);
        let asked = hindrance.and_then(|hindrance| hindrance.retry_after_ms).unwrap_or(0);
        self.pause_ms = Some(context.pauses().after_failure(self.tries).max(asked));
        self.phase = phase;
    }

    /// The creation's outcome.
    fn sent(&mut self, event: Event, context: Context<'_>) {
        let answer = match &event {
            Event::Answered(response) => Some((response.status, response.body.clone())),
            _ => None,
        };
        match Outcome::of(event) {
            Outcome::Done(body) => match serde_json::from_slice::<Shown<'_>>(&body) {
                Ok(Shown { id: Some(id), status, .. }) => {
                    self.id = Some(id.into_owned());
                    self.seen(&status, context);
                }
                _ => self.over(unknown("unreadable_answer", "the answer to the creation cannot be read")),
            },
            Outcome::Later(hindrance) if self.tries < ROUNDS_MAX => {
                self.pause(Phase::Send, Some(&hindrance), context);
            }
            Outcome::Later(hindrance) => {
                self.over(End::failed(Ran::NotSent, true, &hindrance.code, &hindrance.message));
            }
            Outcome::Doubtful(hindrance) => self.over(unknown(&hindrance.code, &hindrance.message)),
            Outcome::Refused { status, error } => {
                let (_, body) = answer.unwrap_or_default();
                self.refused(status, &error, &body);
            }
        }
    }

    fn refused(&mut self, status: u16, error: &ErrorObject, body: &[u8]) {
        let message = error.message.as_deref().unwrap_or("The provider gave no reason.");
        let is_about_the_window = about(body).is_some_and(|param| param.starts_with("background"));
        let code = if is_about_the_window { "offer_not_sold".to_owned() } else { error.code_or("") };
        if is_about_the_window || status == 429 {
            self.over(End::failed(Ran::Refused, false, &code, message));
        } else {
            // What is kept has a bound; error bodies do not come near it.
            let body = String::from_utf8_lossy(body.get(..16 << 10).unwrap_or(body)).into_owned();
            self.phase = Phase::Refused { status, body };
        }
    }

    /// A look's outcome. It exists and will be paid for, so outages are waited out.
    fn looked(&mut self, outcome: Outcome, context: Context<'_>) {
        match outcome {
            Outcome::Done(body) => match serde_json::from_slice::<Shown<'_>>(&body) {
                Ok(shown) => self.seen(&shown.status, context),
                // Only an answer makes one so long.
                Err(_) if body.len() >= SHOWN_BYTES => self.phase = Phase::Read,
                Err(_) => self.pause(Phase::Look, None, context),
            },
            Outcome::Later(hindrance) | Outcome::Doubtful(hindrance) => {
                self.gone = 0;
                self.pause(Phase::Look, Some(&hindrance), context);
            }
            Outcome::Refused { status, error } => {
                self.gone += if status == 404 { NOT_FOUND_WEIGHT } else { 1 };
                if self.gone >= REFUSALS_MAX {
                    let message =
                        error.message.as_deref().unwrap_or("The provider does not show it any more.");
                    self.over(unknown(&error.code_or("response_not_found"), message));
                } else {
                    self.pause(Phase::Look, None, context);
                }
            }
        }
    }

    fn seen(&mut self, status: &str, context: Context<'_>) {
        self.tries = 0;
        self.gone = 0;
        if matches!(status, "queued" | "in_progress") {
            self.polls = self.polls.saturating_add(1);
            self.phase = Phase::Look;
            self.pause_ms = Some(context.pauses().before_poll(self.polls));
        } else {
            self.phase = Phase::Read;
        }
    }

    fn read(&mut self, event: &Event, context: Context<'_>) {
        match event {
            // Where nothing in it is a result, another look will not find one either.
            Event::Read(summary) if summary.whole && (summary.results > 0 || summary.lines > 0) => {
                self.over(self.finished(Ran::Unknown));
            }
            _ if self.tries >= READ_TRIES_MAX => {
                self.over(unknown("result_unreadable", "the result could not be read"));
            }
            _ => self.pause(Phase::Read, None, context),
        }
    }
}

/// The request may have run, and its answer cannot be had. Others of its kind need not wait for long.
fn unknown(code: &str, message: &str) -> End {
    End::failed(Ran::Unknown, true, code, message).after_ms(Some(1000))
}

/// What of the request an error is about.
fn about(body: &[u8]) -> Option<String> {
    let body: Value = serde_json::from_slice(body).ok()?;
    body.get("error")?.get("param")?.as_str().map(str::to_owned)
}

fn effect(state: &State, context: Context<'_>) -> Result<Effect, String> {
    let path = |rest: &str| {
        let id = escape(state.id.as_deref().unwrap_or_default());
        format!("{}/{id}{rest}", context.config.path(ENDPOINT))
    };
    Ok(match &state.phase {
        Phase::Send => Effect::Upload(Upload {
            method: "POST".to_owned(),
            path: context.config.path(ENDPOINT),
            headers: vec![header("accept", "application/json"), header("content-type", "application/json")],
            framing: Framing::Lines,
        }),
        Phase::Refused { status, body } => Effect::Results(vec![ItemResult {
            id: only(context)?.to_owned(),
            outcome: ItemOutcome::Response(ItemResponse {
                status: *status,
                body: body.clone().into_bytes(),
                request_id: None,
            }),
        }]),
        Phase::Look => get(path("")),
        Phase::Cancel => call("POST", path("/cancel")),
        Phase::Read => Effect::Read(Reading {
            path: path(""),
            headers: vec![header("accept", "application/json")],
            source: "response".to_owned(),
            form: ReadingForm::One,
        }),
        Phase::Over { end } => end.effect(),
    })
}

/// The id of the one request.
fn only(context: Context<'_>) -> Result<&str, String> {
    context.batch.only.as_deref().ok_or_else(|| "the batch holds more than one request".to_owned())
}

// === Bodies ===

/// The request as it is handed in.
pub(crate) fn encode(window: Window, items: &[Item], context: Context<'_>) -> Result<Vec<u8>, String> {
    let [item] = items else { return Err(format!("{} requests in one piece", items.len())) };
    let options = json!({ "completion_window": window.text }).to_string();
    let Ok(Members(members)) = serde_json::from_slice::<Members<'_>>(&item.body) else {
        return Ok(item.body.clone()); // the provider says so
    };
    let mut set: Vec<(&str, String)> =
        vec![("background", "true".to_owned()), ("background_options", options)];
    if let Some(model) = context.config.model_name(&context.batch.model) {
        set.push(("model", json_text(model)?));
    }
    let metadata = members.iter().find(|(name, _)| name == "metadata").map(|(_, value)| value.get());
    set.extend(with_mark(metadata, &context.batch.mark)?.map(|metadata| ("metadata", metadata)));
    // The window is sold for the usual tier, and for answers in one piece.
    let dropped = ["service_tier", "stream", "stream_options"];
    let is_kept = |name: &str| !dropped.contains(&name) && set.iter().all(|(known, _)| *known != name);
    let kept = members.iter().filter(|(name, _)| is_kept(name));
    let kept = kept.map(|(name, value)| (&**name, value.get()));
    object(kept.chain(set.iter().map(|(name, value)| (*name, value.as_str()))))
}

/// The metadata with the batch's mark; none where there is no room, or no such thing.
fn with_mark(metadata: Option<&str>, mark: &str) -> Result<Option<String>, String> {
    let mark = json_text(mark)?;
    let members = match metadata.map(str::trim) {
        None | Some("null") => Members(Vec::new()),
        Some(text) => match serde_json::from_str::<Members<'_>>(text) {
            Ok(members) if members.0.len() < METADATA_MAX => members,
            _ => return Ok(None),
        },
    };
    let kept = members.0.iter().map(|(name, value)| (&**name, value.get()));
    let whole = object(kept.chain([(MARK_KEY, mark.as_str())]))?;
    String::from_utf8(whole).map(Some).map_err(|error| error.to_string())
}

fn object<'a>(members: impl Iterator<Item = (&'a str, &'a str)>) -> Result<Vec<u8>, String> {
    let mut out = b"{".to_vec();
    for (name, value) in members {
        if out.len() > 1 {
            out.push(b',');
        }
        out.extend_from_slice(json_text(name)?.as_bytes());
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
    }
    out.push(b'}');
    Ok(out)
}

/// Understands the response as a whole.
pub(crate) fn decode(body: &[u8], context: Context<'_>) -> Result<Decoded, String> {
    let shown: Shown<'_> = match serde_json::from_slice(body) {
        Ok(shown) => shown,
        Err(error) => return Ok(Decoded::Garbage(error.to_string())),
    };
    let outcome = match &*shown.status {
        "completed" | "incomplete" => {
            ItemOutcome::Response(ItemResponse { status: 200, body: without_marks(body)?, request_id: None })
        }
        "failed" => failed(shown.error.unwrap_or_default()),
        "cancelled" => ItemOutcome::Failed(ItemFailure {
            // What was counted was worked on.
            ran: match shown.usage.map(RawValue::get) {
                None | Some("null") => DidItRun::Refused,
                Some(_) => DidItRun::Unknown,
            },
            code: "batch_cancelled".to_owned(),
            message: "the response was cancelled before it was done".to_owned(),
        }),
        other => return Ok(Decoded::Garbage(format!("a response with the status {other:?}"))),
    };
    Ok(Decoded::Result(ItemResult { id: only(context)?.to_owned(), outcome }))
}

/// A response that failed, as the endpoint would have said it in real time.
fn failed(error: ErrorObject) -> ItemOutcome {
    let code = error.code_or("server_error");
    let (status, kind) = match code.as_str() {
        "rate_limit_exceeded" => (429, "requests"),
        "server_error" | "vector_store_timeout" => (500, "server_error"),
        _ => (400, "invalid_request_error"),
    };
    let message = error.message.unwrap_or_else(|| "The provider gave no reason.".to_owned());
    let body = json!({ "error": { "message": message, "type": kind, "param": null, "code": code } });
    ItemOutcome::Response(ItemResponse { status, body: body.to_string().into_bytes(), request_id: None })
}

/// The response as it would have come in real time.
fn without_marks(body: &[u8]) -> Result<Vec<u8>, String> {
    let Members(members) = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let mut own = Vec::new();
    for (name, value) in &members {
        let value = match (&**name, serde_json::from_str::<Members<'_>>(value.get())) {
            ("background", _) => Cow::Borrowed("false"),
            ("background_options", _) => continue,
            ("metadata", Ok(Members(entries))) => {
                let kept = entries.iter().filter(|(name, _)| name != MARK_KEY);
                let kept = object(kept.map(|(name, value)| (&**name, value.get())))?;
                Cow::Owned(String::from_utf8(kept).map_err(|error| error.to_string())?)
            }
            _ => Cow::Borrowed(value.get()),
        };
        own.push((&**name, value));
    }
    object(own.iter().map(|(name, value)| (*name, &**value)))
}

#[cfg(test)]
mod tests {
    use offpeak_plugin::provider::{Batch, ReadSummary, Response};

    use super::*;
    use crate::config::Config;

    fn batch() -> Batch {
        Batch {
            mark: "mark-1".into(),
            endpoint: ENDPOINT.into(),
            model: "m".into(),
            offer: "background-2h".into(),
            items: 1,
            waiting: 1,
            only: Some("0-7".into()),
            headers: vec![],
            created_at_ms: 0,
        }
    }

    /// Steps from event to event, and says what is asked for in between.
    fn run(events: Vec<Event>) -> Vec<String> {
        let (batch, config) = (batch(), Config::default());
        let context = Context::new(&batch, &config).unwrap();
        let mut state = Vec::new();
        let mut said = Vec::new();
        for event in events {
            let mut step = batch_step(&state, event, context).unwrap();
            while let Effect::Wait(_) = step.effect {
                said.push("wait".to_owned());
                step = batch_step(&step.state, Event::Waited, context).unwrap();
            }
            said.push(match &step.effect {
                Effect::Upload(upload) => format!("{} {} {:?}", upload.method, upload.path, upload.framing),
                Effect::Call(request) => format!("{} {}", request.method, request.path),
                Effect::Read(reading) => format!("read {} {:?}", reading.path, reading.form),
                Effect::Results(results) => format!("{} result(s)", results.len()),
                Effect::Finished(finish) => format!("{:?} {:?}", finish.ending, finish.missing),
                Effect::Failed(failure) => {
                    format!("failed {} {:?} temporary={}", failure.code, failure.ran, failure.temporary)
                }
                Effect::Wait(_) => unreachable!(),
            });
            state = step.state;
        }
        said
    }

    fn answered(status: u16, body: &str) -> Event {
        Event::Answered(Response { status, headers: vec![], body: body.as_bytes().to_vec() })
    }

    fn response(status: &str) -> Event {
        answered(200, &json!({ "id": "resp_1", "status": status }).to_string())
    }

    fn read(results: u32) -> Event {
        Event::Read(ReadSummary { source: "response".into(), status: 200, lines: 1, results, whole: true })
    }

    const POST: &str = "POST /v1/responses Framing::Lines";
    const LOOK: &str = "GET /v1/responses/resp_1";
    const READ: &str = "read /v1/responses/resp_1 ReadingForm::One";

    #[test]
    fn it_is_handed_in_looked_at_and_read() {
        let said = run(vec![
            Event::Start,
            response("queued"),
            response("in_progress"),
            response("completed"),
            read(1),
        ]);
        assert_eq!(said, [POST, "wait", LOOK, "wait", LOOK, READ, "Ending::Completed DidItRun::Unknown"]);
    }

    #[test]
    fn what_cannot_be_found_again_is_not_sent_again_here() {
        for event in [Event::Interrupted, answered(500, ""), answered(504, "<html>"), answered(200, "?")] {
            let said = run(vec![Event::Start, event]);
            assert!(said[1].contains("DidItRun::Unknown temporary=true"), "{said:?}");
        }
        // A look may be repeated as often as is needed.
        let said = run(vec![
            Event::Start,
            response("queued"),
            Event::Interrupted,
            response("completed"),
            Event::Interrupted,
            read(1),
        ]);
        assert_eq!(said[5..], [READ, "wait", READ, "Ending::Completed DidItRun::Unknown"]);
    }

    #[test]
    fn refusals_are_told_apart() {
        let window = r#"{"error":{"message":"no","type":"invalid_request_error","param":"background_options.completion_window","code":"invalid_value"}}"#;
        let quota = r#"{"error":{"message":"pay","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#;
        let caller =
            r#"{"error":{"message":"no","type":"invalid_request_error","param":"temperature","code":null}}"#;
        assert_eq!(
            run(vec![Event::Start, answered(400, window)])[1],
            "failed offer_not_sold DidItRun::Refused temporary=false"
        );
        assert_eq!(
            run(vec![Event::Start, answered(429, quota)])[1],
            "failed insufficient_quota DidItRun::Refused temporary=false"
        );
        let said = run(vec![Event::Start, answered(400, caller), read(1)]);
        assert_eq!(said[1..], ["1 result(s)", "Ending::Completed DidItRun::Unknown"]);
        let busy = r#"{"error":{"message":"slow down","type":"requests","param":null,"code":"rate_limit_exceeded"}}"#;
        assert_eq!(run(vec![Event::Start, answered(429, busy)])[1..], ["wait", POST]);
    }

    #[test]
    fn a_cancelled_one_is_told_and_read() {
        let (batch, config) = (batch(), Config::default());
        let context = Context::new(&batch, &config).unwrap();
        let begun = batch_step(&[], Event::Start, context).unwrap();
        let waiting = batch_step(&begun.state, response("queued"), context).unwrap();
        assert!(matches!(waiting.effect, Effect::Wait(_)));
        assert_eq!(waiting.provider_id.as_deref(), Some("resp_1"));
        let told = batch_step(&waiting.state, Event::Cancel, context).unwrap();
        assert!(matches!(&told.effect, Effect::Call(call) if call.path == "/v1/responses/resp_1/cancel"));
        let looks = batch_step(&told.state, response("cancelled"), context).unwrap();
        assert!(matches!(&looks.effect, Effect::Call(call) if call.method == "GET"));
        let reads = batch_step(&looks.state, response("cancelled"), context).unwrap();
        let over = batch_step(&reads.state, read(1), context).unwrap();
        assert!(
            matches!(over.effect, Effect::Finished(finish) if finish.ending == offpeak_plugin::provider::Ending::Cancelled)
        );
    }

    fn text(body: &[u8]) -> Value {
        serde_json::from_slice(body).unwrap()
    }

    #[test]
    fn a_request_is_marked_and_its_answer_is_as_in_real_time() {
        let (batch, config) = (batch(), Config::default());
        let context = Context::new(&batch, &config).unwrap();
        let body = br#"{"model":"m","input":"hi","service_tier":"flex","metadata":{"a":"b"}}"#;
        let item = Item { id: "0-7".into(), body: body.to_vec() };
        let sent = text(&encode(WINDOWS[0], &[item], context).unwrap());
        let expected = json!({ "model": "m", "input": "hi", "background": true,
            "background_options": { "completion_window": "2h" }, "metadata": { "a": "b", "offpeak_batch": "mark-1" } });
        assert_eq!(sent, expected);
        let answer = json!({ "id": "resp_1", "status": "completed", "background": true, "output": [1],
            "metadata": { "a": "b", "offpeak_batch": "mark-1" }, "usage": { "input_tokens": 1 } });
        let Decoded::Result(result) = decode(answer.to_string().as_bytes(), context).unwrap() else {
            panic!()
        };
        let ItemOutcome::Response(response) = result.outcome else { panic!() };
        assert_eq!(result.id, "0-7");
        let expected = json!({ "id": "resp_1", "status": "completed", "background": false, "output": [1],
            "metadata": { "a": "b" }, "usage": { "input_tokens": 1 } });
        assert_eq!(text(&response.body), expected);
    }

    #[test]
    fn full_metadata_is_left_alone() {
        let full: serde_json::Map<String, Value> = (0..16).map(|n| (format!("k{n}"), json!("v"))).collect();
        assert_eq!(with_mark(Some(&Value::Object(full).to_string()), "m").unwrap(), None);
        assert_eq!(with_mark(Some("null"), "m").unwrap().unwrap(), r#"{"offpeak_batch":"m"}"#);
    }

    #[test]
    fn failures_are_what_real_time_would_have_said() {
        let (batch, config) = (batch(), Config::default());
        let context = Context::new(&batch, &config).unwrap();
        for (code, status) in [("rate_limit_exceeded", 429), ("server_error", 500), ("invalid_prompt", 400)] {
            let body =
                json!({ "id": "resp_1", "status": "failed", "error": { "code": code, "message": "no" } });
            let Decoded::Result(result) = decode(body.to_string().as_bytes(), context).unwrap() else {
                panic!()
            };
            let ItemOutcome::Response(response) = result.outcome else { panic!() };
            assert_eq!(
                (response.status, text(&response.body)["error"]["code"].as_str()),
                (status, Some(code))
            );
        }
        for (usage, ran) in
            [(json!(null), DidItRun::Refused), (json!({ "output_tokens": 3 }), DidItRun::Unknown)]
        {
            let body = json!({ "id": "resp_1", "status": "cancelled", "usage": usage });
            let Decoded::Result(result) = decode(body.to_string().as_bytes(), context).unwrap() else {
                panic!()
            };
            assert!(matches!(result.outcome, ItemOutcome::Failed(failure) if failure.ran == ran));
        }
        assert!(matches!(decode(b"<html>", context).unwrap(), Decoded::Garbage(_)));
    }
}
