//! Cases of routers: a request in, a decision out.

use offpeak_host::RouterPlugin;
use offpeak_host::values::router::{self, BodyNeed, Candidate, Decision, Envelope, Header, Offer};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _};
use serde_json::{Value, json};

use super::file::Case;
use super::words::{Body, DAY_MS, ENDPOINT, HOUR_MS, MODEL, Mode, Pairs, Span};
use super::{CaseProblem, Given, outcome};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Input {
    #[serde(default)]
    request: Request,
    #[serde(default = "usual_candidates")]
    candidates: Vec<Seller>,
}

#[derive(Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Request {
    tenant: String,
    endpoint: String,
    model: String,
    sla: Sla,
    tag: Tag,
    stream: bool,
    body: Body,
    input_tokens: u64,
    max_output_tokens: Option<u64>,
    headers: Pairs,
}

impl Default for Request {
    fn default() -> Self {
        Self {
            tenant: "acme".into(),
            endpoint: ENDPOINT.into(),
            model: MODEL.into(),
            sla: Sla::Within(DAY_MS),
            tag: Tag::Header,
            stream: false,
            body: Body(
                br#"{"model":"gpt-4o-mini","messages":[{"role":"user","content":"no hurry"}]}"#.to_vec(),
            ),
            input_tokens: 20,
            max_output_tokens: None,
            headers: Pairs::new(),
        }
    }
}

enum Sla {
    Realtime,
    Within(u64),
}

impl<'de> Deserialize<'de> for Sla {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        if value == "realtime" {
            return Ok(Self::Realtime);
        }
        let span = Span::deserialize(value);
        span.map(|span| Self::Within(span.0))
            .map_err(|_| D::Error::custom("an sla is \"realtime\" or a duration"))
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Tag {
    Header,
    Metadata,
    Api,
    Default,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Seller {
    backend: String,
    #[serde(default = "yes")]
    healthy: bool,
    #[serde(default = "usual_offers")]
    offers: Vec<Sold>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sold {
    name: String,
    mode: Mode,
    price_permille: u32,
    #[serde(default = "at_once")]
    window: Span,
    #[serde(default = "at_once")]
    usual: Span,
}

const fn yes() -> bool {
    true
}

const fn at_once() -> Span {
    Span(0)
}

fn usual_offers() -> Vec<Sold> {
    let offer = |name: &str, mode, price_permille, window, usual| Sold {
        name: name.to_owned(),
        mode,
        price_permille,
        window: Span(window),
        usual: Span(usual),
    };
    vec![
        offer("standard", Mode::Realtime, 1000, 0, 0),
        offer("flex", Mode::Realtime, 600, 0, 60_000),
        offer("batch", Mode::Batch, 500, DAY_MS, HOUR_MS),
    ]
}

fn usual_candidates() -> Vec<Seller> {
    vec![Seller { backend: "openai".into(), healthy: true, offers: usual_offers() }]
}

/// Asks the router once.
pub(super) fn run(plugin: &RouterPlugin, case: &Case) -> Result<Vec<Given>, CaseProblem> {
    let Input { request, candidates } = case.input()?;
    let expected = case.gives()?;
    let headers: Vec<_> = plugin
        .description()
        .headers
        .iter()
        .filter_map(|name| Some(Header { name, value: request.headers.get(name)? }))
        .collect();
    let body = request.body.0.as_slice();
    let envelope = Envelope {
        tenant: &request.tenant,
        endpoint: &request.endpoint,
        model: &request.model,
        sla: match request.sla {
            Sla::Realtime => router::Sla::Realtime,
            Sla::Within(ms) => router::Sla::Within(ms),
        },
        tag: match request.tag {
            Tag::Header => router::Tag::Header,
            Tag::Metadata => router::Tag::Metadata,
            Tag::Api => router::Tag::Api,
            Tag::Default => router::Tag::Default,
        },
        stream: request.stream,
        body_bytes: body.len() as u64,
        input_tokens: request.input_tokens,
        max_output_tokens: request.max_output_tokens,
        headers: &headers,
        body: match plugin.description().body {
            BodyNeed::None => None,
            BodyNeed::Prefix(bytes) => Some(body.get(..bytes as usize).unwrap_or(body)),
            BodyNeed::Whole => Some(body),
        },
    };
    let offers: Vec<Vec<_>> =
        candidates.iter().map(|seller| seller.offers.iter().map(Sold::view).collect()).collect();
    let candidates: Vec<_> = candidates
        .iter()
        .zip(&offers)
        .map(|(seller, offers)| Candidate { backend: &seller.backend, healthy: seller.healthy, offers })
        .collect();
    let gave = outcome(plugin.route(&envelope, &candidates, case.now_ms), |decision| shown(&decision));
    Ok(vec![Given { step: None, expected, gave }])
}

impl Sold {
    fn view(&self) -> Offer<'_> {
        Offer {
            name: &self.name,
            mode: self.mode.into(),
            price_permille: self.price_permille,
            window_ms: self.window.0,
            usual_ms: self.usual.0,
        }
    }
}

fn shown(decision: &Decision) -> Value {
    match decision {
        Decision::Choose(choice) => json!({ "choose": {
            "backend": choice.backend,
            "offer": choice.offer,
            "within_ms": choice.within_ms,
            "lane": choice.lane,
        } }),
        Decision::Reject(rejection) => json!({ "reject": {
            "status": rejection.status,
            "code": rejection.code,
            "message": rejection.message,
            "retry_after_s": rejection.retry_after_s,
        } }),
        Decision::Pass => json!("pass"),
    }
}
