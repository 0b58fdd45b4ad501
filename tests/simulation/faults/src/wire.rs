//! The way between the daemon and the provider, and all that goes wrong on it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use offpeak::upstream::{Answering, InProcess, SendError};
use offpeak_core::outcome::DidItRun;
use provider_sim::SimResponse;
use reqwest::Body;

use crate::api::Api;
use crate::plan::{End, SETTLE_MS};
use crate::world::Life;

/// The daemon's `answer_timeout`.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Answered,
    Refused,
    LostBefore,
    LostAfter,
    TimeoutBefore,
    TimeoutAfter,
    /// Done so many milliseconds after the caller has given up.
    Late(u64),
    Stale,
}

impl Fate {
    const fn name(self) -> &'static str {
        match self {
            Self::Answered => "(calls that went through)",
            Self::Refused => "network: connection refused",
            Self::LostBefore => "network: lost before its effect",
            Self::LostAfter => "network: lost after its effect",
            Self::TimeoutBefore => "network: timeout before its effect",
            Self::TimeoutAfter => "network: timeout after its effect",
            Self::Late(_) => "network: effect after the caller gave up",
            Self::Stale => "network: an older answer once more",
        }
    }
}

/// A network for one life.
pub(crate) fn network(life: &Arc<Life>) -> InProcess {
    let life = life.clone();
    InProcess::new(move |request| -> Answering { Box::pin(answer(life.clone(), request)) })
}

async fn answer(life: Arc<Life>, request: Request<Body>) -> Result<Response<Body>, SendError> {
    let (head, body) = request.into_parts();
    let Ok(body) = body.collect().await else {
        life.alive().await;
        life.note(&|| format!("call {} {}: its body broke off", head.method, head.uri.path()));
        return Err(lost("the request's body broke off"));
    };
    let request = Request::from_parts(head, body.to_bytes());
    life.alive().await;
    let number = life.count_call();
    let api = Api::at(request.uri().path());
    if let Some(api) = api {
        life.world.sent_now(api, request.body());
    }
    let sent_ms = life.now_ms();
    let (mut fate, latency) = draw(&life, &request);
    tokio::time::sleep(latency).await;
    life.alive().await;
    if life.plan.end != End::Calm && life.world.plan.wire.crashed_between(sent_ms, life.now_ms()) {
        // The provider's process died with the call in its hands.
        fate = if life.world.dice.lock().hits(500) { Fate::LostBefore } else { Fate::LostAfter };
        life.world.count("provider: dies during a call");
    }
    life.world.count(fate.name());
    if life.plan.end == End::BeforeCall(number) {
        life.note(&|| format!("killed before {} {}", request.method(), request.uri().path()));
        life.world.count(life.plan.end.name());
        life.end();
        life.alive().await;
    }
    let name = format!("{} {}", request.method(), request.uri());
    let answered = carry(&life, fate, request).await;
    life.note(&|| match &answered {
        Ok(response) => format!("call {name}: {fate:?} {}", response.status()),
        Err(error) => format!("call {name}: {fate:?} {error}"),
    });
    if api.is_some() && !matches!(&answered, Ok(response) if response.status().is_success()) {
        life.world.count("(real-time calls without a good answer)");
    }
    if life.plan.end == End::AfterCall(number) {
        life.note(&|| "killed after it".to_owned());
        life.world.count(life.plan.end.name());
        life.end();
    }
    life.alive().await;
    answered
}

fn draw(life: &Life, request: &Request<Bytes>) -> (Fate, Duration) {
    let mut dice = life.world.dice.lock();
    let latency = Duration::from_millis(dice.magnitude(5..=4000));
    if life.plan.end == End::Calm {
        return (Fate::Answered, latency);
    }
    let wire = &life.world.plan.wire;
    let now = life.now_ms();
    let is_during = |(from, to): &(u64, u64)| *from <= now && now < *to;
    if wire.outage.iter().chain(&wire.crashes).any(is_during) {
        life.world.count("provider: is down");
        return (Fate::Refused, latency);
    }
    let late = Fate::Late(dice.number(0..=SETTLE_MS));
    let fates = [
        (wire.refused, Fate::Refused),
        (wire.lost_before, Fate::LostBefore),
        (wire.lost_after, Fate::LostAfter),
        (wire.timeout_before, Fate::TimeoutBefore),
        (wire.timeout_after, Fate::TimeoutAfter),
        (wire.late_effect, late),
        (if shows_one_batch(request) { wire.stale } else { 0 }, Fate::Stale),
    ];
    let drawn = fates.into_iter().find(|(permille, _)| dice.hits(*permille));
    (drawn.map_or(Fate::Answered, |(_, fate)| fate), latency)
}

fn shows_one_batch(request: &Request<Bytes>) -> bool {
    let path = request.uri().path();
    let id = path.strip_prefix("/v1/batches/").or_else(|| path.strip_prefix("/v1/messages/batches/"));
    request.method() == Method::GET && id.is_some_and(|id| !id.contains('/'))
}

async fn carry(life: &Life, fate: Fate, request: Request<Bytes>) -> Result<Response<Body>, SendError> {
    let path = request.uri().path().to_owned();
    let is_batch = shows_one_batch(&request);
    let ask = |request| life.world.ask(life.now_ms(), request);
    match fate {
        Fate::Refused => Err(SendError {
            ran: DidItRun::NotSent,
            timed_out: false,
            message: "connection refused".to_owned(),
        }),
        Fate::LostBefore => Err(lost("connection reset")),
        Fate::LostAfter => {
            ask(request);
            Err(lost("connection reset"))
        }
        Fate::TimeoutBefore => {
            tokio::time::sleep(ANSWER_TIMEOUT).await;
            Err(timed_out())
        }
        Fate::TimeoutAfter => {
            ask(request);
            tokio::time::sleep(ANSWER_TIMEOUT).await;
            Err(timed_out())
        }
        Fate::Late(after_ms) => {
            life.world.ask_late(life.now_ms() + after_ms, request);
            Err(lost("connection reset"))
        }
        Fate::Stale => match life.world.before.lock().get(&path) {
            Some(before) => Ok(before.clone().map(Body::from)),
            None => Err(lost("connection reset")),
        },
        Fate::Answered => {
            let answer = ask(request);
            if is_batch && answer.delivery.cut.is_none() {
                let mut shown = Response::new(answer.body.bytes().clone());
                *shown.status_mut() = answer.status;
                life.world.before.lock().insert(path, shown);
            }
            deliver(answer).await
        }
    }
}

async fn deliver(answer: SimResponse) -> Result<Response<Body>, SendError> {
    tokio::time::sleep(answer.delivery.after).await;
    let bytes = answer.body.bytes().clone();
    let body = match answer.delivery.cut {
        None => Body::from(bytes),
        Some(0) => return Err(lost("connection closed before message completed")),
        Some(cut) => {
            let kept = bytes.slice(..cut.min(bytes.len()));
            let broken = std::io::Error::from(std::io::ErrorKind::ConnectionReset);
            Body::wrap_stream(stream::iter([Ok(kept), Err(broken)]))
        }
    };
    let mut response = Response::new(body);
    *response.status_mut() = answer.status;
    *response.headers_mut() = answer.headers;
    Ok(response)
}

fn lost(message: &str) -> SendError {
    SendError { ran: DidItRun::Unknown, timed_out: false, message: message.to_owned() }
}

fn timed_out() -> SendError {
    SendError { ran: DidItRun::Unknown, timed_out: true, message: "operation timed out".to_owned() }
}
