//! Cases of providers: a transcript. Each step says what happened, such as what the provider answered, and what the plugin must
//! want next. The plugin's state goes from step to step, as the daemon keeps it.

mod shown;

use offpeak_host::values::provider::{self, Event, HeaderRef};
use offpeak_host::{PluginError, ProviderPlugin};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::file::Case;
use super::words::{Body, ENDPOINT, MODEL, Mode, Moment, Pairs, shown};
use super::{CaseProblem, Given, failure, outcome};
use shown::{
    shown_decoded, shown_events, shown_limits, shown_lines, shown_offer, shown_prepared, shown_step,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Transcript {
    #[serde(default)]
    batch: Batch,
    steps: Vec<Map<String, Value>>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Batch {
    mark: String,
    endpoint: String,
    model: String,
    offer: String,
    items: u32,
    /// As many as there are items, if it is not said.
    waiting: Option<u32>,
    only: Option<String>,
    headers: Pairs,
    created_at: Moment,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            mark: "0000000000000001-1".into(),
            endpoint: ENDPOINT.into(),
            model: MODEL.into(),
            offer: Mode::Batch.as_offer().into(),
            items: 1,
            waiting: None,
            only: None,
            headers: Pairs::new(),
            created_at: Moment::default(),
        }
    }
}

impl Mode {
    /// What most providers call it.
    const fn as_offer(self) -> &'static str {
        match self {
            Self::Realtime => "standard",
            Self::Background => "background",
            Self::Batch => "batch",
            Self::Engine => "engine",
        }
    }
}

/// What a step asks the plugin.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Asked {
    Event(Happened),
    Encode(Vec<Item>),
    Decode(Lines),
    Offers(Sold),
    Limits(Sold),
    Prepare(Sold),
    RewriteRequest(Rewritten),
    RewriteAnswer(Rewritten),
    RewriteStream(Streamed),
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Happened {
    Start,
    Answered(Answer),
    NotSent(String),
    Interrupted,
    Waited,
    Read(ReadSummary),
    Cancel,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Answer {
    status: u16,
    #[serde(default)]
    headers: Pairs,
    #[serde(default)]
    body: Body,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ReadSummary {
    source: String,
    #[serde(default = "ok")]
    status: u16,
    lines: u32,
    results: u32,
    #[serde(default = "yes")]
    whole: bool,
}

const fn ok() -> u16 {
    200
}

const fn yes() -> bool {
    true
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Item {
    id: String,
    body: Body,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Lines {
    source: String,
    lines: Vec<Body>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Sold {
    endpoint: String,
    model: String,
    offer: String,
}

impl Default for Sold {
    fn default() -> Self {
        Self { endpoint: ENDPOINT.into(), model: MODEL.into(), offer: "standard".into() }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Rewritten {
    #[serde(default)]
    call: Sold,
    /// What `rewrite_request` noted; if it is not said, in the last such step of this case.
    notes: Option<Body>,
    #[serde(default = "ok")]
    status: u16,
    content_type: Option<String>,
    body: Body,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Streamed {
    #[serde(default)]
    call: Sold,
    notes: Option<Body>,
    /// What the provider sends, in the pieces in which it arrives.
    chunks: Vec<Body>,
}

/// Plays a transcript, up to the first step that does not give what it must: what follows would mean nothing.
pub(super) fn run(plugin: &ProviderPlugin, case: &Case) -> Result<Vec<Given>, CaseProblem> {
    let Transcript { batch, steps } = case.input()?;
    if case.gives.is_some() {
        return Err("a case of a provider has its `gives` within its steps".to_owned());
    }
    let headers = header_refs(&batch.headers);
    let mut play = Play {
        plugin,
        batch: batch.view(&headers),
        state: Vec::new(),
        notes: Vec::new(),
        now_ms: case.now_ms,
    };
    let mut given = Vec::new();
    for (number, mut step) in steps.into_iter().enumerate() {
        let number = number + 1;
        let problem = |problem: String| format!("step {number}: {problem}");
        if let Some(now) = step.remove("now") {
            play.now_ms = Moment::deserialize(now).map_err(|error| problem(error.to_string()))?.0;
        }
        let expected =
            step.remove("gives").ok_or_else(|| problem("add `gives`, what must come out".to_owned()))?;
        let asked: Asked =
            serde_json::from_value(Value::Object(step)).map_err(|error| problem(error.to_string()))?;
        let gave = play.ask(asked);
        let is_right = super::compare::differences(&expected, &gave).is_empty();
        given.push(Given { step: Some(number), expected, gave });
        if !is_right {
            break;
        }
    }
    Ok(given)
}

fn header_refs(pairs: &Pairs) -> Vec<HeaderRef<'_>> {
    pairs.iter().map(|(name, value)| HeaderRef { name, value }).collect()
}

impl Batch {
    fn view<'a>(&'a self, headers: &'a [HeaderRef<'a>]) -> provider::Batch<'a> {
        provider::Batch {
            mark: &self.mark,
            endpoint: &self.endpoint,
            model: &self.model,
            offer: &self.offer,
            items: self.items,
            waiting: self.waiting.unwrap_or(self.items),
            only: self.only.as_deref(),
            headers,
            created_at_ms: self.created_at.0,
        }
    }
}

impl Sold {
    fn call(&self) -> provider::Call<'_> {
        provider::Call { endpoint: &self.endpoint, model: &self.model, offer: &self.offer }
    }
}

struct Play<'a> {
    plugin: &'a ProviderPlugin,
    batch: provider::Batch<'a>,
    state: Vec<u8>,
    notes: Vec<u8>,
    now_ms: u64,
}

impl Play<'_> {
    fn ask(&mut self, asked: Asked) -> Value {
        let (plugin, now) = (self.plugin, self.now_ms);
        match asked {
            Asked::Event(happened) => self.step(&happened),
            Asked::Encode(items) => {
                let items: Vec<_> =
                    items.iter().map(|item| provider::Item { id: &item.id, body: &item.body.0 }).collect();
                outcome(plugin.encode_items(&self.batch, &items, now), |encoded| {
                    let refused = encoded.refused.iter();
                    json!({
                        "items": shown_lines(&encoded.bytes),
                        "refused": refused
                            .map(|item| json!({ "id": item.id, "code": item.refusal.code }))
                            .collect::<Value>(),
                    })
                })
            }
            Asked::Decode(Lines { source, lines }) => {
                let lines: Vec<_> = lines.iter().map(|line| line.0.as_slice()).collect();
                outcome(plugin.decode_results(&self.batch, &source, &lines, now), |decoded| {
                    decoded.iter().map(shown_decoded).collect()
                })
            }
            Asked::Offers(sold) => outcome(plugin.offers(&sold.endpoint, &sold.model, now), |offers| {
                offers.iter().map(shown_offer).collect()
            }),
            Asked::Limits(sold) => {
                outcome(plugin.limits(&sold.endpoint, &sold.model, &sold.offer, now), |limits| {
                    limits.map_or(Value::Null, |limits| shown_limits(&limits))
                })
            }
            Asked::Prepare(sold) => {
                refusable(plugin.prepare(&sold.call(), now), |prepared| shown_prepared(&prepared))
            }
            Asked::RewriteRequest(Rewritten { call, body, .. }) => {
                let answer = plugin.rewrite_request(&call.call(), &body.0, now);
                if let Ok(Ok(rewritten)) = &answer {
                    self.notes.clone_from(&rewritten.notes);
                }
                refusable(
                    answer,
                    |rewritten| json!({ "body": shown(&rewritten.body), "notes": shown(&rewritten.notes) }),
                )
            }
            Asked::RewriteAnswer(Rewritten { call, notes, status, content_type, body }) => {
                let notes = notes.as_ref().map_or(&self.notes, |notes| &notes.0);
                let answer =
                    provider::AnswerRef { status, content_type: content_type.as_deref(), body: &body.0 };
                outcome(plugin.rewrite_answer(&call.call(), notes, answer, now), |answer| {
                    json!({
                        "status": answer.status,
                        "content_type": answer.content_type,
                        "body": shown(&answer.body),
                    })
                })
            }
            Asked::RewriteStream(Streamed { call, notes, chunks }) => {
                let notes = notes.as_ref().map_or(&self.notes, |notes| &notes.0);
                let parts: Vec<_> = chunks.iter().map(|chunk| chunk.0.as_slice()).collect();
                let whole = parts.concat();
                let bytes: Vec<_> = whole.chunks(1).collect();
                let [as_told, in_bytes] = [parts, bytes].map(|parts| self.stream(&call, notes, &parts));
                match (as_told, in_bytes) {
                    // Parts are cut anywhere: nothing may depend on where.
                    (Ok(as_told), Ok(in_bytes)) if as_told != in_bytes => json!({
                        "error": "the same stream, cut into single bytes, is written otherwise",
                        "events": shown_events(&as_told),
                        "events_of_single_bytes": shown_events(&in_bytes),
                    }),
                    (Ok(stream), Ok(_)) => json!({ "events": shown_events(&stream) }),
                    (Err(error), _) | (_, Err(error)) => failure(&error),
                }
            }
        }
    }

    /// What the client gets of a stream that arrives in these parts.
    fn stream(&self, call: &Sold, notes: &[u8], parts: &[&[u8]]) -> Result<Vec<u8>, PluginError> {
        let (mut state, mut stream) = (notes.to_vec(), Vec::new());
        let ends = std::iter::repeat_n(false, parts.len()).chain([true]);
        for (part, last) in parts.iter().copied().chain([&[][..]]).zip(ends) {
            let written = self.plugin.rewrite_chunk(&call.call(), &state, part, last, self.now_ms)?;
            state = written.state;
            stream.extend(written.output);
        }
        Ok(stream)
    }

    fn step(&mut self, happened: &Happened) -> Value {
        let headers = match happened {
            Happened::Answered(answer) => header_refs(&answer.headers),
            _ => Vec::new(),
        };
        let event = match happened {
            Happened::Start => Event::Start,
            Happened::Answered(Answer { status, body, .. }) => {
                Event::Answered(provider::Response { status: *status, headers: &headers, body: &body.0 })
            }
            Happened::NotSent(why) => Event::NotSent(why),
            Happened::Interrupted => Event::Interrupted,
            Happened::Waited => Event::Waited,
            Happened::Read(ReadSummary { source, status, lines, results, whole }) => {
                Event::Read(provider::ReadSummary {
                    source,
                    status: *status,
                    lines: *lines,
                    results: *results,
                    whole: *whole,
                })
            }
            Happened::Cancel => Event::Cancel,
        };
        match self.plugin.batch_step(&self.batch, &self.state, &event, self.now_ms) {
            Ok(step) => {
                let shown = shown_step(&step);
                self.state = step.state;
                shown
            }
            Err(error) => failure(&error),
        }
    }
}

/// An answer that may be a refusal, which is `{ refused = { code = "…" } }`.
fn refusable<T>(
    answer: Result<Result<T, provider::Refusal>, PluginError>,
    show: impl FnOnce(T) -> Value,
) -> Value {
    outcome(answer, |answer| match answer {
        Ok(value) => show(value),
        Err(refusal) => json!({ "refused": {
            "code": refusal.code,
            "message": refusal.message,
            "param": refusal.param,
        } }),
    })
}
