//! Calls to an engine's array endpoints in real time, where its configuration lets them wait for each other: those that are
//! alike in all but their inputs are sent as one. Who hangs up meanwhile harms nobody.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::Bytes;
use http::header::{CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response};
use offpeak_core::buckets::Size;
use offpeak_core::merge::{Blame, Hunt, Next, blame};
use offpeak_core::outcome::DidItRun;
use tokio::sync::oneshot;

use super::NowCall;
use crate::backends::{Backend, DressError, Dressed, PreparedCall, with_time_for};
use crate::clock::Clock;
use crate::costs::meter::UnderWay;
use crate::gateway::Gateway;
use crate::gather::{Caller, Kind};
use crate::merge::{self, Arrays, Part};
use crate::telemetry::Metrics;
use crate::upstream::SendError;

/// The largest answer to all of them.
const ANSWER_MAX: usize = 256 << 20;

/// A call with a larger body travels alone: it would gain little, and the others would wait for its bytes.
const BODY_MAX: usize = 64 << 10;

/// SDKs count their own retries in this header.
const RETRY_COUNT: &str = "x-stainless-retry-count";

/// What sends a call of many.
struct Sender {
    backend: Arc<Backend>,
    call: Arc<PreparedCall>,
    arrays: Arrays,
    bucket: usize,
    /// Headers that change what a call means; all of them have the same.
    kept: Vec<(String, HeaderValue)>,
    clock: Clock,
    metrics: Arc<Metrics>,
}

/// The answer to a call that was sent with others, and whether it is this one that tells of it: what is one answer of the
/// engine counts once for its health. None if the call has to be sent by itself.
pub(super) async fn send(
    gateway: &Gateway,
    to: &NowCall,
    call: &Arc<PreparedCall>,
    headers: &HeaderMap,
    body: &Bytes,
    under_way: &mut UnderWay,
) -> Option<(Result<Response<reqwest::Body>, SendError>, bool)> {
    let engine = to.backend.engine.as_ref()?;
    let wait = engine.merge_realtime?;
    let arrays = engine.arrays(to.sale.endpoint.as_str())?;
    // What failed together is not sent together again: one of them may be why.
    let is_again = headers.get(RETRY_COUNT).is_some_and(|count| count != "0");
    let is_large = body.len() > BODY_MAX;
    if is_again || is_large || to.is_stream || call.rewrites_body() || call.rewrites_answer {
        return None;
    }
    let part = Part::read(arrays, body).filter(|part| part.count() < engine.merge)?;
    let kind = Kind {
        backend: to.backend.id.clone(),
        endpoint: to.sale.endpoint.clone(),
        call: Arc::as_ptr(call).addr(),
        tenant: to.tenant.clone(),
        headers: kept(&to.backend, headers),
        body: part.kind.clone(),
        bucket: engine.bucket_of(part.size()),
    };
    let bucket = kind.bucket;
    let sender = || {
        let (backend, call, kept) = (to.backend.clone(), call.clone(), kind.headers.clone());
        Sender { backend, call, arrays, bucket, kept, clock: gateway.clock, metrics: gateway.metrics.clone() }
    };
    let (tell, answer) = oneshot::channel();
    let left = under_way.leaves_when_told();
    let caller = Caller { part, body: body.clone(), headers: headers.clone(), left, answer: tell };
    let (leave, begun) = gateway.gather.join(&kind, caller, engine.merge);
    for callers in leave {
        gateway.spawn(sender().run(callers));
    }
    if let Some(number) = begun {
        let (gather, sender) = (gateway.gather.clone(), sender());
        gateway.spawn(async move {
            tokio::time::sleep(wait).await;
            sender.run(gather.over(&kind, number)).await;
        });
    }
    let stopping = || (Err(no_answer(DidItRun::Unknown, "offpeak is stopping")), false);
    let (answer, speaks) = answer.await.unwrap_or_else(|_| stopping());
    Some((answer.map(|answer| answer.map(reqwest::Body::from)), speaks))
}

fn sizes(callers: &[Option<Caller>]) -> impl Iterator<Item = Size> {
    callers.iter().flatten().map(|caller| caller.part.size())
}

/// Headers that change what a call means, by the plugin's word.
fn kept(backend: &Backend, headers: &HeaderMap) -> Vec<(String, HeaderValue)> {
    let provider = backend.provider();
    let names = &provider.description().kept_headers;
    let all =
        names.iter().flat_map(|name| headers.get_all(name).iter().map(|value| (name.clone(), value.clone())));
    all.collect()
}

fn no_answer(ran: DidItRun, message: &str) -> SendError {
    SendError { ran, timed_out: false, message: message.to_owned() }
}

impl Sender {
    /// Sends them as one, and as halves where that is refused, until each has its answer.
    async fn run(self, callers: Vec<Caller>) {
        // Who has hung up before it left is not sent.
        let mut callers: Vec<Option<Caller>> =
            callers.into_iter().filter(|caller| !caller.answer.is_closed()).map(Some).collect();
        if let Some(engine) = &self.backend.engine {
            engine.left_together(self.bucket, sizes(&callers));
        }
        let mut hunt = Hunt::new(callers.len());
        while let Some(part) = hunt.part() {
            let Some(some) = callers.get_mut(part) else { return };
            for caller in some.iter().flatten() {
                caller.left.store(true, Ordering::Release);
            }
            let answer = self.call(some).await;
            let found = answer.as_ref().map_or(Blame::Shared, |answer| blame(answer.status().as_u16()));
            if let Next::Settled(_) = hunt.ended(found) {
                let some = some.iter_mut().filter_map(Option::take).collect();
                self.tell(some, answer);
            }
        }
    }

    async fn call(&self, callers: &[Option<Caller>]) -> Result<Response<Bytes>, SendError> {
        if let Some(engine) = &self.backend.engine {
            self.metrics.filled(self.backend.id.as_str(), &engine.fill(self.bucket, sizes(callers)));
        }
        let callers: Vec<&Caller> = callers.iter().flatten().collect();
        let (mut headers, body) = if let [one] = callers[..] {
            (one.headers.clone(), one.body.clone())
        } else {
            let parts: Vec<&Part> = callers.iter().map(|caller| &caller.part).collect();
            self.metrics.merged(self.backend.id.as_str(), parts.len());
            let body = merge::body(self.arrays, &parts)
                .map_err(|error| no_answer(DidItRun::NotSent, &error.to_string()))?;
            (self.of_many(), body)
        };
        let Dressed { body, .. } = self
            .call
            .dress(&mut headers, body, self.clock.now())
            .map_err(|error| no_answer(DidItRun::NotSent, not_dressed(&error)))?;
        self.backend
            .upstream
            .call(Method::POST, self.call.url.clone(), headers, body.into(), ANSWER_MAX)
            .await
    }

    /// What is said of a call that is several callers': nothing that one of them alone has said.
    fn of_many(&self) -> HeaderMap {
        let names = self.kept.iter().filter_map(|(name, value)| {
            // A plugin has named it, and a request had it.
            Some((HeaderName::try_from(name.as_str()).ok()?, value.clone()))
        });
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        names.for_each(|(name, value)| {
            headers.append(name, value);
        });
        headers
    }

    fn tell(&self, callers: Vec<Caller>, answer: Result<Response<Bytes>, SendError>) {
        let each: Vec<Result<Response<Bytes>, SendError>> = match answer {
            Ok(answer) if callers.len() > 1 && answer.status().is_success() => {
                let parts: Vec<&Part> = callers.iter().map(|caller| &caller.part).collect();
                let split = || merge::split(self.arrays, &parts, answer.body());
                if let Some(bodies) = with_time_for(answer.body().len(), split) {
                    bodies.into_iter().map(|body| Ok(with_body(&answer, body))).collect()
                } else {
                    let message = "the engine answered a call with many inputs, but not each of them";
                    callers.iter().map(|_| Err(no_answer(DidItRun::Ran, message))).collect()
                }
            }
            Ok(answer) => callers.iter().map(|_| Ok(with_body(&answer, answer.body().clone()))).collect(),
            Err(error) => callers.iter().map(|_| Err(error.clone())).collect(),
        };
        let mut speaks = true;
        for (caller, answer) in callers.into_iter().zip(each) {
            // Who has hung up does not hear it, and tells nobody.
            if caller.answer.send((answer, speaks)).is_ok() {
                speaks = false;
            }
        }
    }
}

/// The same head with another body.
fn with_body(answer: &Response<Bytes>, body: Bytes) -> Response<Bytes> {
    let mut own = Response::new(body);
    *own.status_mut() = answer.status();
    *own.headers_mut() = answer.headers().clone();
    own.headers_mut().remove(CONTENT_LENGTH);
    own
}

/// Bodies that could be merged are JSON, and a plugin that writes them anew has none of them here.
const fn not_dressed(error: &DressError) -> &'static str {
    match error {
        DressError::Json(_) => "its body could not be edited",
        DressError::Refused(_) | DressError::Plugin(_) => "its body could not be written anew",
    }
}
