//! Puts a job's requests into lanes, chunk by chunk, with bounded memory.
//!
//! A request's idempotency key is its job and line, so that a chunk that a crash interrupted is put there again without
//! being put there twice.

use std::collections::HashMap;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use http::{HeaderMap, HeaderName, HeaderValue};
use offpeak_core::extent::Range;
use offpeak_core::job::Event;
use offpeak_core::sla::{Sla, Tag};
use offpeak_core::words::{LaneId, LaneKey, Millis, Place, Seq};
use offpeak_store::{Appended, Idempotency, NewRequest};
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::io::AsyncReadExt;

use super::{Driver, JobError};
use crate::defer::{Deferral, deferred_body};
use crate::documents::file::{Check, File, Problem};
use crate::documents::{self, Job};
use crate::envelope::{self, Envelope, SlaDefaults};
use crate::gateway::Gateway;
use crate::jsonl::Text;
use crate::label::{FOR_A_JOB, Label};
use crate::lane_book::LaneError;
use crate::reply::Refusal;
use crate::route;
use crate::tenant::Account;

/// What is in memory and appended at once: so many bytes, or so many requests.
const CHUNK_BYTES: usize = 4 << 20;
const CHUNK_REQUESTS: usize = 1000;

/// The members of a line that make a request of it.
#[derive(Deserialize)]
struct Item<'a> {
    #[serde(borrow)]
    custom_id: Text<'a>,
    #[serde(borrow, alias = "params")]
    body: &'a RawValue,
}

/// Finds lanes for requests: asks the router once for a model, unless it wants to see bodies.
struct Router<'a> {
    gateway: &'a Arc<Gateway>,
    /// Whose they are, and the key whose own limits they take.
    by: (&'a Arc<Account>, &'a Arc<str>),
    endpoint: &'a str,
    headers: HeaderMap,
    sees_bodies: bool,
    ways: HashMap<String, Deferral>,
}

impl Driver {
    pub(super) async fn expand(&mut self) -> Result<(), JobError> {
        let gateway = self.gateway.clone();
        let Some(account) = gateway.tenants.account(&self.job.tenant) else {
            let message = "The tenant is no longer configured.";
            return self.refuse(vec![Problem::of_file("tenant_gone", message)]).await;
        };
        let input: Option<File> = documents::get(&gateway.store, &self.job.tenant, self.job.input).await?;
        let Some(input) = input else {
            let message = "The input file was removed before the batch could read it.";
            return self.refuse(vec![Problem::of_file("input_file_gone", message)]).await;
        };
        let problems = problems(&input.check, &self.job.endpoint);
        if !problems.is_empty() {
            return self.refuse(problems).await;
        }
        let window = self.job.life.deadline.since(self.job.life.created_at);
        let (endpoint, headers) = (self.job.endpoint.clone(), self.job.headers.clone());
        let api_key = self.job.api_key.clone();
        let mut router = Router::new(&gateway, (&account, &api_key), &endpoint, &headers);
        if let Err((refusal, line)) = router.try_all(&input.check, window).await {
            return self.refuse(vec![problem(refusal, line)]).await;
        }
        match self.put_all(&input, &mut router, window).await {
            Ok(true) => {}
            Ok(false) => return self.note(Event::CancelAsked).await,
            Err(JobError::Refused(problem)) => return self.break_off(problem).await,
            Err(JobError::Disk(error)) if is_damaged(&error) => {
                let message = format!("The input file cannot be read any more: {error}.");
                return self.break_off(Problem::of_file("input_file_gone", message)).await;
            }
            Err(error) => return Err(error),
        }
        self.note(Event::Expanded).await?;
        self.drop_hidden_input().await
    }

    async fn refuse(&mut self, problems: Vec<Problem>) -> Result<(), JobError> {
        tracing::info!(job = %self.job.id(), problems = problems.len(), "a job's input cannot be run");
        self.job.problems = problems;
        self.note(Event::Refused).await
    }

    /// What stands in lanes already is cancelled; if nothing does, the job has failed.
    async fn break_off(&mut self, problem: Problem) -> Result<(), JobError> {
        tracing::warn!(job = %self.job.id(), problem = problem.message, "a job is broken off");
        self.job.problems = vec![problem];
        let event = if self.job.ranges.is_empty() { Event::Refused } else { Event::CancelAsked };
        self.note(event).await
    }

    /// Puts what is left of the input into lanes; false if the client cancelled meanwhile.
    async fn put_all(
        &mut self,
        input: &File,
        router: &mut Router<'_>,
        window: Millis,
    ) -> Result<bool, JobError> {
        let from = self.job.expansion.bytes;
        let mut lines = Lines::new(self.gateway.spool.read(input.number, from).await?);
        while self.job.expansion.lines < input.check.lines {
            if self.open.is_cancel_asked() && !self.is_recovered {
                return Ok(false);
            }
            let chunk = lines.next().await?;
            if chunk.is_empty() {
                let message = "the file is shorter than it was when it was uploaded";
                return Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, message).into());
            }
            self.put(chunk, router, window).await?;
            self.is_recovered = false;
        }
        Ok(true)
    }

    /// Appends a chunk and notes how far the job is.
    async fn put(
        &mut self,
        chunk: Vec<Bytes>,
        router: &mut Router<'_>,
        window: Millis,
    ) -> Result<(), JobError> {
        let mut requests = Vec::with_capacity(chunk.len());
        let mut done = self.job.expansion;
        for line in chunk {
            done.lines += 1;
            done.bytes += line.len() as u64;
            requests.push(self.request(&line, done.lines, router, window).await?);
        }
        let store = &self.gateway.store;
        let appended = join_all(requests.into_iter().map(|request| store.append(request))).await;
        let mut job = self.job.clone();
        for appended in appended {
            match appended? {
                Appended::New(place) | Appended::Same(place) => add(&mut job.ranges, place),
                Appended::Conflict => {
                    let message = "A line of the batch was there before as another request.";
                    return Err(JobError::Refused(Problem::of_file("conflict", message)));
                }
            }
            self.gateway.metrics.accepted();
        }
        job.expansion = done;
        documents::keep(&self.gateway.store, &job).await?;
        self.publish(job);
        Ok(())
    }

    async fn request(
        &self,
        line: &Bytes,
        number: u64,
        router: &mut Router<'_>,
        window: Millis,
    ) -> Result<NewRequest, JobError> {
        let job = &self.job;
        let refused = |refusal| JobError::Refused(problem(refusal, Some(number)));
        let unreadable = |error| std::io::Error::new(std::io::ErrorKind::InvalidData, error);
        let item: Item<'_> = serde_json::from_slice(line).map_err(unreadable)?;
        let body = line.slice_ref(item.body.get().as_bytes());
        let envelope = envelope_of(body, window).map_err(refused)?;
        let (lane, router) = router.lane(&envelope, number).await?;
        let label = Label {
            line: number,
            custom_id: item.custom_id.0.into_owned(),
            router: router.as_ref().to_owned(),
        };
        let body = deferred_body(&envelope).map_err(refused)?;
        Ok(NewRequest {
            lane,
            arrived: job.life.created_at,
            deadline: job.life.deadline,
            tokens: u32::try_from(envelope.input_tokens).unwrap_or(u32::MAX),
            // The file does not change, so job and line stand for the body.
            body_hash: job.number.rotate_left(32) ^ number,
            idempotency: Some(Idempotency {
                key: key(job, number),
                expires: job.life.deadline.after(self.gateway.keep_results),
            }),
            flags: FOR_A_JOB,
            meta: label.encode(),
            body,
        })
    }
}

/// What offpeak needs to know of a request. Its window is the job's, whatever tag it carries.
fn envelope_of(body: Bytes, window: Millis) -> Result<Envelope, Refusal> {
    let defaults = SlaDefaults { default: Sla::Within(window), deferrable: window };
    // The strongest tag, so that nobody looks at others.
    let mut headers = HeaderMap::new();
    headers.insert(envelope::SLA, HeaderValue::from_static("deferrable"));
    let envelope = envelope::read(&headers, body, defaults)?;
    Ok(Envelope { sla: Sla::Within(window), tag: Tag::Api, stream: false, background: false, ..envelope })
}

/// What a refusal says of a line.
fn problem(refusal: Refusal, line: Option<u64>) -> Problem {
    Problem {
        code: refusal.code.to_string(),
        line,
        message: refusal.message,
        param: Some("body.model".to_owned()),
    }
}

/// The file is not what was uploaded.
fn is_damaged(error: &std::io::Error) -> bool {
    use std::io::ErrorKind;
    matches!(error.kind(), ErrorKind::NotFound | ErrorKind::UnexpectedEof | ErrorKind::InvalidData)
}

/// Whether each model that a job names can be had as something that waits.
pub async fn check_models(
    gateway: &Arc<Gateway>,
    account: &Arc<Account>,
    job: &Job,
    check: &Check,
) -> Result<(), Refusal> {
    let window = job.life.deadline.since(job.life.created_at);
    let tried = Router::new(gateway, (account, &job.api_key), &job.endpoint, &job.headers)
        .try_all(check, window)
        .await;
    tried.map_err(|(refusal, _)| refusal)
}

/// The lanes that a job's requests would be put into; none where the router does not say.
pub async fn lanes_of(
    gateway: &Arc<Gateway>,
    account: &Arc<Account>,
    job: &Job,
    check: &Check,
) -> Vec<LaneKey> {
    let window = job.life.deadline.since(job.life.created_at);
    let mut router = Router::new(gateway, (account, &job.api_key), &job.endpoint, &job.headers);
    // What the router refuses fails the job when it is expanded, with all its problems.
    match router.try_all(check, window).await {
        Ok(()) => router.ways.into_values().map(|way| way.key).collect(),
        Err(_) => Vec::new(),
    }
}

/// Job and line in the order in which they grow: such keys are cheap to store.
fn key(job: &Job, line: u64) -> [u8; 16] {
    let mut key = [0; 16];
    let bytes = job.number.to_be_bytes().into_iter().chain(line.to_be_bytes());
    for (to, from) in key.iter_mut().zip(bytes) {
        *to = from;
    }
    key
}

/// Adds a place to ranges; one that they have is not added again.
fn add(ranges: &mut Vec<Range>, place: Place) {
    let next = Seq(place.seq.0 + 1);
    let mut of_lane = ranges.iter_mut().rev().filter(|range| range.lane == place.lane);
    match of_lane.next() {
        Some(last) if last.to == place.seq => last.to = next,
        Some(last) if last.contains(place) => {}
        _ if of_lane.any(|range| range.contains(place)) => {}
        _ => ranges.push(Range { lane: place.lane, from: place.seq, to: next }),
    }
}

/// Why a job of this endpoint cannot be made of a file. Nothing, if it can.
pub fn problems(check: &Check, endpoint: &str) -> Vec<Problem> {
    let mut problems = check.problems.clone();
    let mut others = |code: &str, param: &str, lines: &[u64], message: String| {
        problems.extend(lines.iter().map(|line| Problem {
            code: code.to_owned(),
            line: Some(*line),
            message: message.clone(),
            param: Some(param.to_owned()),
        }));
    };
    for url in check.urls.iter().filter(|url| url.name != endpoint) {
        let message = format!("The URL '{}' does not match the batch's endpoint '{endpoint}'.", url.name);
        others("url_mismatch", "url", &url.lines, message);
    }
    if endpoint != ANTHROPIC {
        for model in check.models.iter().skip(1) {
            let message = "All requests of a batch must name the same model.".to_owned();
            others("model_mismatch", "body.model", &model.lines, message);
        }
    }
    problems.sort_by_key(|problem| problem.line);
    problems.truncate(PROBLEMS_MAX);
    problems
}

/// The endpoint whose jobs may mix models.
pub const ANTHROPIC: &str = "/v1/messages";

/// As many problems are shown.
const PROBLEMS_MAX: usize = 100;

impl<'a> Router<'a> {
    fn new(
        gateway: &'a Arc<Gateway>,
        by: (&'a Arc<Account>, &'a Arc<str>),
        endpoint: &'a str,
        headers: &[(String, String)],
    ) -> Self {
        let sees_bodies = gateway.router.load().sees_bodies();
        let headers = headers.iter().filter_map(|(name, value)| {
            Some((HeaderName::try_from(name).ok()?, HeaderValue::try_from(value).ok()?))
        });
        Self { gateway, by, endpoint, headers: headers.collect(), sees_bodies, ways: HashMap::new() }
    }

    /// Whether each model can be had. Nothing is appended before that is known.
    async fn try_all(&mut self, check: &Check, window: Millis) -> Result<(), (Refusal, Option<u64>)> {
        for model in &check.models {
            let name = serde_json::Value::from(model.name.as_str());
            let body = Bytes::from(format!("{{\"model\":{name}}}"));
            let refused = |refusal| (refusal, model.lines.first().copied());
            let envelope = envelope_of(body, window).map_err(refused)?;
            let way = self.ask(&envelope).await.map_err(refused)?;
            self.ways.insert(model.name.clone(), way);
        }
        Ok(())
    }

    async fn ask(&self, envelope: &Envelope) -> Result<Deferral, Refusal> {
        let now = self.gateway.clock.now();
        route::route_later(self.gateway, self.by, self.endpoint, &self.headers, envelope, now).await
    }

    /// The lane that a request is put into, and the router that chose it.
    async fn lane(&self, envelope: &Envelope, line: u64) -> Result<(LaneId, Arc<str>), JobError> {
        let refused = |refusal| JobError::Refused(problem(refusal, Some(line)));
        let Deferral { key, router, .. } = match self.ways.get(&envelope.model) {
            Some(way) if !self.sees_bodies => way.clone(),
            _ => self.ask(envelope).await.map_err(refused)?,
        };
        let (gateway, now) = (self.gateway, self.gateway.clock.now());
        let lane = gateway.lanes.lane(&gateway.store, &gateway.backends, key, now).await;
        let lane = lane.map_err(|error| match error {
            LaneError::Store(error) => JobError::Store(error),
            other => JobError::Refused(Problem::of_file("offer_not_deferrable", other.to_string())),
        })?;
        Ok((lane, router))
    }
}

/// Reads whole lines, some at once.
struct Lines {
    file: tokio::fs::File,
    buffer: BytesMut,
    is_at_end: bool,
}

impl Lines {
    fn new(file: tokio::fs::File) -> Self {
        Self { file, buffer: BytesMut::new(), is_at_end: false }
    }

    /// The next lines with their ends; none at the end of the file.
    async fn next(&mut self) -> std::io::Result<Vec<Bytes>> {
        let mut lines = Vec::new();
        let mut bytes = 0;
        let mut searched = 0;
        while lines.len() < CHUNK_REQUESTS && bytes < CHUNK_BYTES {
            let unseen = self.buffer.get(searched..).unwrap_or_default();
            match memchr::memchr(b'\n', unseen) {
                Some(end) => {
                    let line = self.buffer.split_to(searched + end + 1).freeze();
                    searched = 0;
                    bytes += line.len();
                    lines.push(line);
                }
                None if self.is_at_end => {
                    if !self.buffer.is_empty() {
                        lines.push(self.buffer.split().freeze());
                    }
                    break;
                }
                None => {
                    searched = self.buffer.len();
                    self.buffer.reserve(256 << 10);
                    self.is_at_end = self.file.read_buf(&mut self.buffer).await? == 0;
                }
            }
        }
        Ok(lines)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::file::Named;

    fn named(name: &str, lines: &[u64]) -> Named {
        Named { name: name.to_owned(), lines: lines.to_vec() }
    }

    #[test]
    fn lines_that_do_not_fit_the_job_are_named_in_order() {
        let check = Check {
            lines: 4,
            models: vec![named("m", &[1, 3]), named("n", &[2, 4])],
            urls: vec![named("/v1/x", &[1, 2, 4]), named("/v1/y", &[3])],
            problems: Vec::new(),
        };
        let found = problems(&check, "/v1/x");
        let found: Vec<(u64, &str)> =
            found.iter().map(|problem| (problem.line.unwrap(), problem.code.as_str())).collect();
        assert_eq!(found, [(2, "model_mismatch"), (3, "url_mismatch"), (4, "model_mismatch")]);
        let mixed = Check { urls: vec![named(ANTHROPIC, &[1, 2, 3, 4])], ..check };
        assert_eq!(problems(&mixed, ANTHROPIC), []);
    }

    #[test]
    fn places_become_few_ranges() {
        let mut ranges = Vec::new();
        for (lane, seq) in [(0, 5), (1, 0), (0, 6), (1, 1), (0, 6), (0, 9), (0, 5)] {
            add(&mut ranges, Place { lane: LaneId(lane), seq: Seq(seq) });
        }
        let ranges: Vec<(u32, u64, u64)> =
            ranges.iter().map(|range| (range.lane.0, range.from.0, range.to.0)).collect();
        assert_eq!(ranges, [(0, 5, 7), (1, 0, 2), (0, 9, 10)]);
    }

    #[tokio::test]
    async fn all_lines_are_read_and_their_bytes_add_up() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("f");
        let long = "x".repeat(600 << 10);
        let text = format!("a\n\n{long}\r\nb\nlast");
        std::fs::write(&path, &text).unwrap();
        let mut lines = Lines::new(tokio::fs::File::open(&path).await.unwrap());
        let read = lines.next().await.unwrap();
        assert_eq!(read.concat(), text.as_bytes());
        assert_eq!(read.len(), 5);
        assert!(lines.next().await.unwrap().is_empty());
    }
}
