//! Drives one batch: the provider plugin's persisted coroutine.
//!
//! load -> plugin -> store state and effect -> act -> plugin -> ... Nothing is done at the provider that is not in the
//! store before, so that a crash at any point leaves a trace of what may have happened.

pub mod frame;
pub mod results;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use arc_swap::ArcSwap;
use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderValue};
use http::{Method, Response, StatusCode};
use offpeak_core::batch::{Finish, Journey, Progress, Resume, Step, Tally};
use offpeak_core::breaker::Report;
use offpeak_core::extent::Cargo;
use offpeak_core::outcome::{DidItRun, Ending};
use offpeak_core::scheduler::{Event as LaneEvent, Fate};
use offpeak_core::words::{BatchId, Millis, Place, Timestamp};
use offpeak_host::values::provider::{self, Effect, Event, HeaderRef};
use offpeak_host::{PluginError, ProviderPlugin};
use offpeak_store::{BatchRecord, StoreError};
use reqwest::{Body, Url};
use tokio_util::sync::CancellationToken;

use crate::backends::{Backend, PrepareError, headers};
use crate::blocking::blocking;
use crate::costs::Took;
use crate::gateway::Gateway;
use crate::journey;
use crate::outcomes::{self, Attempt, Source};
use crate::upstream::{self, BadPath, SendError};

/// As much of an answer to a small call as a plugin gets to see.
const ANSWER_MAX: usize = 1 << 20;

/// Pauses after a plugin's failure begin here and double.
const PLUGIN_PAUSE: Millis = Millis::from_secs(1);

/// And end here.
const PLUGIN_PAUSE_MAX: Millis = Millis::from_mins(5);

/// Outcomes that are recorded in one commit when a batch is settled.
const SETTLE_AT_ONCE: usize = 1000;

/// A batch under way.
struct Driver {
    gateway: Arc<Gateway>,
    backend: Arc<Backend>,
    /// The plugin that the batch began with; it goes on with another one where this one fails.
    plugin: ArcSwap<ProviderPlugin>,
    record: BatchRecord,
    cargo: Vec<Cargo>,
    mark: String,
    /// Its requests that had no outcome when they were last counted.
    waiting: AtomicU32,
    /// Somebody wants it stopped.
    stop: CancellationToken,
    /// And the plugin has been told so.
    told_to_stop: AtomicBool,
    /// The last call that was not for tidying up was refused for offpeak's credential.
    is_credential_refused: AtomicBool,
    /// Items that came back, and those that failed by the provider's fault.
    came_back: results::CameBack,
    /// What the last upload had on which line.
    written: Arc<frame::Written>,
}

/// Why a step could not be made.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Plugin(#[from] PluginError),
    #[error("the plugin asked for a call that cannot be made: {0}")]
    BadCall(String),
}

impl From<BadPath> for StepError {
    fn from(error: BadPath) -> Self {
        Self::BadCall(error.to_string())
    }
}

impl From<PrepareError> for StepError {
    fn from(error: PrepareError) -> Self {
        Self::BadCall(error.to_string())
    }
}

/// What a plugin is told next, owned.
enum Told {
    Start,
    Cancel,
    Answered(Response<Bytes>),
    NotSent(String),
    Interrupted,
    Waited,
    Read(results::Summary),
}

/// Drives a batch to its end, or until the daemon stops. `stop` has the provider asked to stop it.
pub async fn drive(
    gateway: Arc<Gateway>,
    backend: Arc<Backend>,
    record: BatchRecord,
    cargo: Vec<Cargo>,
    progress: Option<Progress>,
    stop: CancellationToken,
) {
    let mark = mark(gateway.store.install_id(), record.id);
    let came_back = results::CameBack::default();
    let (told_to_stop, is_credential_refused) = (AtomicBool::new(false), AtomicBool::new(false));
    let waiting = AtomicU32::new(0);
    let plugin = ArcSwap::from(backend.provider());
    let driver = Driver {
        gateway,
        backend,
        plugin,
        record,
        cargo,
        mark,
        waiting,
        stop,
        told_to_stop,
        is_credential_refused,
        came_back,
        written: Arc::default(),
    };
    let stopping = driver.gateway.stopping.clone();
    let finish = tokio::select! {
        biased;
        // At every await the store knows what is being done, so that stopping here is no worse than a crash.
        () = stopping.cancelled() => return,
        finish = driver.run(progress) => finish,
    };
    tracing::info!(
        batch = %driver.record.id, backend = %driver.record.backend, ending = finish.code, "a batch has ended"
    );
    driver.gateway.metrics.ended(driver.record.backend.as_str(), &finish.code);
    let (batch, hold_until, fate) = (driver.record.id, finish.hold_until, finish.fate());
    let now = driver.gateway.clock.now();
    let report = match fate {
        // Who finds fault with what it got, and asks for no rest, is well.
        Fate::Refused if finish.permanent || hold_until.is_some_and(|until| until <= now) => Report::Fine,
        Fate::Refused => Report::Failed,
        Fate::Completed | Fate::GivenUp | Fate::NoRoom => driver.came_back.report(),
    };
    let mode = driver.gateway.backends.sale(&driver.record, now).mode;
    // What it says about the backend is known before its place is free.
    driver.gateway.report(&driver.record.backend, mode, report);
    driver.gateway.lanes.tell(LaneEvent::Ended { batch, hold_until, fate });
}

/// offpeak's name for a batch at the provider: unique over all installations.
pub fn mark(install: u64, batch: BatchId) -> String {
    format!("{install:016x}-{batch}")
}

impl Driver {
    /// Until the batch is settled, through whatever fails on the way.
    async fn run(&self, mut progress: Option<Progress>) -> Finish {
        let mut pause = PLUGIN_PAUSE;
        let mut resume = Progress::resume(progress.as_ref());
        let began = self.plugin.load_full();
        loop {
            match self.run_from(&mut progress, resume).await {
                Ok(finish) => return finish,
                Err(error) => {
                    match &error {
                        StepError::Store(_) => {}
                        StepError::Plugin(PluginError { plugin, .. }) => {
                            self.gateway.metrics.plugin_failed(plugin);
                            self.try_another(&began);
                        }
                        StepError::BadCall(_) => self.try_another(&began),
                    }
                    tracing::error!(
                        batch = %self.record.id, plugin = self.plugin.load().name(), %error, pause_s = pause.0 / 1000,
                        "a batch's step failed; its requests are kept and it is tried again"
                    );
                }
            }
            tokio::time::sleep(pause.into()).await;
            pause = Millis(pause.0 * 2).min(PLUGIN_PAUSE_MAX);
            resume = Progress::resume(progress.as_ref());
        }
    }

    /// After a plugin's failure: the one at work may be one that can, as after a restart, and if not, the one that the batch
    /// began with may have failed in passing.
    fn try_another(&self, began: &Arc<ProviderPlugin>) {
        let at_work = self.backend.provider();
        let is_at_work = Arc::ptr_eq(&self.plugin.load(), &at_work);
        self.plugin.store(if is_at_work { began.clone() } else { at_work });
    }

    async fn run_from(&self, progress: &mut Option<Progress>, resume: Resume) -> Result<Finish, StepError> {
        self.count().await?;
        let mut told = match resume {
            // All its requests were cancelled before it left: there is nothing to send.
            Resume::Start if self.gateway.store.missing(self.record.id).await?.is_empty() => {
                return self.settle(nothing_left()).await;
            }
            Resume::Start => Told::Start,
            Resume::Interrupted => Told::Interrupted,
            Resume::Wait(until) => self.wait(until).await,
            Resume::Settle(finish) => return self.settle(finish).await,
        };
        loop {
            let step = self.ask(progress.as_ref(), &told)?;
            let next = self.stored(progress.as_ref(), &step);
            let journey = Journey::Batch { cargo: self.cargo.clone(), progress: Some(next.clone()) };
            self.gateway.store.advance(self.record.id, journey::encode(&journey)).await?;
            if let Some(tally) = next.tally {
                self.gateway.lanes.tell(LaneEvent::Progressed { batch: self.record.id, tally });
            }
            let now_at = next.step.clone();
            *progress = Some(next);
            told = match (step.effect, now_at) {
                (_, Step::Finished(finish)) => return self.settle(finish).await,
                (_, Step::Waiting(until)) => self.wait(until).await,
                // What is tidied up with, afterwards, says nothing of what was refused before.
                (Effect::Call(request), _) if request.method == Method::DELETE.as_str() => {
                    self.call(request).await?
                }
                (Effect::Call(request), _) => self.noted(self.call(request).await?),
                (Effect::Upload(upload), _) => self.noted(self.upload(upload).await?),
                (Effect::Read(reading), _) => self.noted(self.read(reading).await?),
                (Effect::Results(results), _) => self.take(results).await?,
                // These have the steps above.
                (Effect::Wait(_) | Effect::Finished(_) | Effect::Failed(_), _) => Told::Waited,
            };
        }
    }

    /// Notes whether the provider knows our credential.
    fn noted(&self, told: Told) -> Told {
        let is_refused =
            matches!(&told, Told::Answered(response) if response.status() == StatusCode::UNAUTHORIZED);
        self.is_credential_refused.store(is_refused, Ordering::Relaxed);
        told
    }

    fn ask(&self, progress: Option<&Progress>, told: &Told) -> Result<provider::Step, PluginError> {
        let state = progress.map(|progress| progress.plugin_state.as_slice()).unwrap_or_default();
        let now = self.gateway.clock.now().0;
        let kept = kept_headers(&self.record);
        let only = only(&self.record);
        let batch = self.view(&kept, only.as_deref());
        let plugin = self.plugin.load_full();
        let step = |event: &Event<'_>| blocking(|| plugin.batch_step(&batch, state, event, now));
        match told {
            Told::Start => step(&Event::Start),
            Told::Interrupted => step(&Event::Interrupted),
            Told::Waited => step(&Event::Waited),
            Told::Cancel => step(&Event::Cancel),
            Told::NotSent(why) => step(&Event::NotSent(why)),
            Told::Read(summary) => step(&Event::Read(summary.as_event())),
            Told::Answered(response) => {
                let headers: Vec<HeaderRef<'_>> = response
                    .headers()
                    .iter()
                    .filter_map(|(name, value)| {
                        Some(HeaderRef { name: name.as_str(), value: value.to_str().ok()? })
                    })
                    .collect();
                let status = response.status().as_u16();
                step(&Event::Answered(provider::Response {
                    status,
                    headers: &headers,
                    body: response.body(),
                }))
            }
        }
    }

    /// Counts what has no outcome yet: an upload can be told by the number of its items.
    async fn count(&self) -> Result<(), StoreError> {
        let counts = self.gateway.store.counts(self.record.id).await?;
        let waiting = counts.total.saturating_sub(counts.finished);
        self.waiting.store(u32::try_from(waiting).unwrap_or(u32::MAX), Ordering::Relaxed);
        Ok(())
    }

    /// The plugin's answer as it is stored.
    fn stored(&self, before: Option<&Progress>, step: &provider::Step) -> Progress {
        let now = self.gateway.clock.now();
        let provider_id =
            step.provider_id.clone().or_else(|| before.and_then(|before| before.provider_id.clone()));
        let tally = step.progress.as_ref().map(|p| Tally { completed: p.completed, failed: p.failed });
        Progress {
            plugin_state: step.state.clone(),
            step: match &step.effect {
                Effect::Call(_) => Step::Calling,
                Effect::Upload(_) => Step::Uploading,
                Effect::Read(_) | Effect::Results(_) => Step::Reading,
                Effect::Wait(millis) => Step::Waiting(now.after(Millis(*millis))),
                Effect::Finished(finish) => Step::Finished(finished(*finish)),
                Effect::Failed(failure) => Step::Finished(self.failed(failure, now)),
            },
            provider_id,
            tally: tally.or_else(|| before.and_then(|before| before.tally)),
            steps: before.map_or(1, |before| before.steps.saturating_add(1)),
        }
    }

    fn failed(&self, failure: &provider::Failure, now: Timestamp) -> Finish {
        let pause = self.gateway.retries.terms.cap;
        let finish = failed(failure, now, pause);
        if !self.is_credential_refused.load(Ordering::Relaxed) {
            return finish;
        }
        // No request is to blame: what surely did not run waits until the operator has mended it, or goes elsewhere.
        let may_have_run = matches!(finish.missing, DidItRun::Unknown | DidItRun::Ran);
        Finish {
            code: upstream::CREDENTIAL_REFUSED.into(),
            message: upstream::credential_refused(self.backend.id.as_str()),
            permanent: finish.permanent && may_have_run,
            hold_until: Some(now.after(pause)),
            ..finish
        }
    }

    async fn wait(&self, until: Timestamp) -> Told {
        let pause = until.since(self.gateway.clock.now()).into();
        if self.was_told_to_stop() {
            tokio::time::sleep(pause).await;
            return Told::Waited;
        }
        tokio::select! {
            () = self.stop.cancelled() => {
                self.told_to_stop.store(true, Ordering::Relaxed);
                Told::Cancel
            }
            () = tokio::time::sleep(pause) => Told::Waited,
        }
    }

    fn was_told_to_stop(&self) -> bool {
        self.told_to_stop.load(Ordering::Relaxed)
    }

    async fn call(&self, request: provider::Request) -> Result<Told, StepError> {
        let (method, url, headers) = self.head(&request.method, &request.path, &request.headers)?;
        Ok(self.send(method, url, headers, request.body.into()).await)
    }

    async fn upload(&self, upload: provider::Upload) -> Result<Told, StepError> {
        let (method, url, mut headers) = self.head(&upload.method, &upload.path, &upload.headers)?;
        let wrapping = frame::Wrapping::new(&upload.framing, self.gateway.chance.wide());
        if let Some(kind) = wrapping.content_type().and_then(|kind| HeaderValue::try_from(kind).ok()) {
            headers.insert(CONTENT_TYPE, kind);
        }
        let items = frame::Items {
            gateway: self.gateway.clone(),
            plugin: self.plugin.load_full(),
            mark: self.mark.clone(),
            record: self.record.clone(),
            waiting: self.waiting.load(Ordering::Relaxed),
            written: self.written.clone(),
        };
        self.written.clear();
        let told = self.send(method, url, headers, Body::wrap_stream(frame::stream(items, wrapping))).await;
        self.count().await?;
        Ok(told)
    }

    async fn read(&self, reading: provider::Reading) -> Result<Told, StepError> {
        let (method, url, headers) = self.head("GET", &reading.path, &reading.headers)?;
        match self.backend.upstream.send(method, url, headers, Body::default()).await {
            Ok(response) => {
                let kept = kept_headers(&self.record);
                let only = only(&self.record);
                let batch = self.view(&kept, only.as_deref());
                let reader = self.reader(&batch, &reading.source);
                Ok(Told::Read(reader.read(response, reading.form).await?))
            }
            Err(error) => Ok(self.not_answered(error)),
        }
    }

    /// Takes in results that an answer to a small call held.
    async fn take(&self, results: Vec<provider::ItemResult>) -> Result<Told, StepError> {
        let kept = kept_headers(&self.record);
        let only = only(&self.record);
        let batch = self.view(&kept, only.as_deref());
        Ok(Told::Read(self.reader(&batch, "").accept(results).await?))
    }

    fn reader<'a>(&'a self, batch: &'a provider::Batch<'a>, source: &'a str) -> results::Reader<'a> {
        results::Reader {
            gateway: &self.gateway,
            plugin: self.plugin.load_full(),
            batch,
            record: &self.record,
            source,
            came_back: &self.came_back,
            written: &self.written,
        }
    }

    fn view<'a>(&'a self, kept: &'a [HeaderRef<'a>], only: Option<&'a str>) -> provider::Batch<'a> {
        view(&self.record, &self.mark, self.waiting.load(Ordering::Relaxed), only, kept)
    }

    fn head(
        &self,
        method: &str,
        path: &str,
        set: &[provider::Header],
    ) -> Result<(Method, Url, HeaderMap), StepError> {
        let method =
            Method::try_from(method).map_err(|_| StepError::BadCall(format!("the method {method:?}")))?;
        Ok((method, self.backend.upstream.url(path)?, headers(set)?.into_iter().collect()))
    }

    async fn send(&self, method: Method, url: Url, headers: HeaderMap, body: Body) -> Told {
        match self.backend.upstream.call(method, url, headers, body, ANSWER_MAX).await {
            Ok(response) => Told::Answered(response),
            Err(error) => self.not_answered(error),
        }
    }

    fn not_answered(&self, error: SendError) -> Told {
        let (batch, backend) = (self.record.id, &self.backend.id);
        match error.ran {
            DidItRun::NotSent | DidItRun::Refused => {
                tracing::warn!(%batch, %backend, %error, "a call of a batch could not be made; it is tried again");
                Told::NotSent(error.message)
            }
            DidItRun::Unknown | DidItRun::Ran => {
                tracing::warn!(%batch, %backend, %error, "a call of a batch got no answer; its outcome is unknown");
                Told::Interrupted
            }
        }
    }

    /// Records an outcome for each request that has none, and ends the batch.
    async fn settle(&self, finish: Finish) -> Result<Finish, StepError> {
        let source = Source::batch(&self.gateway, &self.record);
        let mut missing = self.gateway.store.missing(self.record.id).await?;
        // Those that are run beside it get their outcome from there.
        missing.retain(|place| !self.gateway.beside.covers(self.record.id, *place));
        let code = finish.item_code();
        for places in missing.chunks(SETTLE_AT_ONCE) {
            let attempts = places.iter().map(|place| Attempt {
                place: *place,
                ending: Ending::Failed {
                    ran: finish.missing,
                    code: code.clone(),
                    message: finish.message.clone(),
                },
                tries: finish.attempts(),
                retry_after: None,
                request_id: None,
                body: Bytes::new(),
                took: Took::NO_TIME,
            });
            outcomes::record(&self.gateway, &source, attempts.collect()).await?;
        }
        self.gateway.store.end(self.record.id, self.gateway.clock.now(), &finish.code).await?;
        Ok(finish)
    }
}

/// A batch as its plugin knows it.
fn view<'a>(
    record: &'a BatchRecord,
    mark: &'a str,
    waiting: u32,
    only: Option<&'a str>,
    headers: &'a [HeaderRef<'a>],
) -> provider::Batch<'a> {
    let items: u64 = record.ranges.iter().map(offpeak_core::extent::Range::len).sum();
    provider::Batch {
        mark,
        endpoint: record.endpoint.as_str(),
        model: record.model.as_str(),
        offer: record.offer.as_str(),
        items: u32::try_from(items).unwrap_or(u32::MAX),
        waiting,
        only,
        headers,
        created_at_ms: record.created_at.0,
    }
}

/// The id of a batch's request, if it has no more than one.
fn only(record: &BatchRecord) -> Option<String> {
    let [range] = &record.ranges[..] else { return None };
    (range.len() == 1).then(|| Place { lane: range.lane, seq: range.from }.to_string())
}

fn nothing_left() -> Finish {
    Finish {
        code: "cancelled".into(),
        message: "all requests of the batch were cancelled before it left".into(),
        missing: DidItRun::NotSent,
        permanent: false,
        hold_until: None,
    }
}

fn kept_headers(record: &BatchRecord) -> Vec<HeaderRef<'_>> {
    record.headers.iter().map(|(name, value)| HeaderRef { name, value }).collect()
}

const fn did_it_run(ran: provider::DidItRun) -> DidItRun {
    match ran {
        provider::DidItRun::NotSent => DidItRun::NotSent,
        provider::DidItRun::Refused => DidItRun::Refused,
        provider::DidItRun::Unknown => DidItRun::Unknown,
        provider::DidItRun::Ran => DidItRun::Ran,
    }
}

fn finished(finish: provider::Finish) -> Finish {
    let (code, message) = match finish.ending {
        provider::Ending::Completed => {
            ("completed", "the provider finished the batch without a result for this request")
        }
        provider::Ending::Expired => {
            ("expired", "the provider's window for the batch passed before this request was run")
        }
        provider::Ending::Cancelled => ("cancelled", "the batch was cancelled before this request was run"),
    };
    Finish {
        code: code.into(),
        message: message.into(),
        missing: did_it_run(finish.missing),
        permanent: false,
        hold_until: None,
    }
}

/// A backend that takes no batches for now is left alone for as long as it asks, or for `pause`: each try costs it, and
/// us, an upload of all items.
fn failed(failure: &provider::Failure, now: Timestamp, pause: Millis) -> Finish {
    let pause = failure.retry_after_s.map_or(pause, |seconds| Millis::from_secs(seconds.into()));
    Finish {
        code: failure.code.clone(),
        message: failure.message.clone(),
        missing: did_it_run(failure.ran),
        permanent: !failure.temporary,
        hold_until: failure.temporary.then(|| now.after(pause)),
    }
}
