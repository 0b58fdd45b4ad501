//! Takes in a message batch: its requests come in the call itself, and go to the disk as they arrive.

use std::collections::HashSet;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::sync::Arc;

use futures_util::StreamExt;
use http::{HeaderMap, Request, StatusCode};
use offpeak_core::job::Life;
use offpeak_core::sla::Sla;
use offpeak_core::words::Millis;
use offpeak_store::Order;
use serde::Deserialize;
use sha2::{Digest, Sha256};

use super::split::{BadBody, Splitter};
use crate::body::RequestBody;
use crate::defer::{RETRIES_COME_WITHIN, given_key, idempotency_key, is_sdk_retry};
use crate::documents::file::{self, Check, File};
use crate::documents::job::{Api, Expansion, Job};
use crate::documents::{self};
use crate::envelope;
use crate::gateway::Gateway;
use crate::ingress::batches::page;
use crate::ingress::batches::submit::{LOOKED_THROUGH, check_room, key_reused};
use crate::ingress::files::{disk_failed, unreadable};
use crate::ingress::pieces::Pieces;
use crate::jobs;
use crate::jsonl::{Body, Text, remember};
use crate::reply::Refusal;
use crate::route;
use crate::spool::Draft;
use crate::tenant::{Account, Identified};

/// The largest call, and the most requests in it.
const CALL_MAX: u64 = 256 << 20;
const REQUESTS_MAX: u64 = 100_000;

/// As many different models are taken.
const MODELS_MAX: usize = 20;

/// How long a message batch may take if no tag says otherwise.
const WINDOW: Millis = Millis::from_hours(24);

/// A request of a batch, as far as it is looked at.
#[derive(Deserialize)]
struct Entry<'a> {
    #[serde(borrow)]
    custom_id: Text<'a>,
    #[serde(borrow)]
    params: Body<'a>,
}

/// Checks requests and collects them as lines.
struct Collector {
    hasher: RandomState,
    ids: HashSet<u64>,
    check: Check,
    digest: Sha256,
    lines: Vec<u8>,
}

impl From<BadBody> for Refusal {
    fn from(error: BadBody) -> Self {
        match error {
            BadBody::NotABatch(_) => Self::bad_request("invalid_json", sentence(&error)),
            BadBody::TooLong(_) => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", sentence(&error))
            }
        }
    }
}

/// An error's text as a sentence.
fn sentence(error: &dyn std::fmt::Display) -> String {
    let text = error.to_string();
    let mut letters = text.chars();
    letters
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(letters).chain(['.']).collect())
}

/// Takes a batch in. It is durable when this returns.
pub(super) async fn take(
    gateway: &Arc<Gateway>,
    caller: &Identified,
    request: Request<RequestBody>,
) -> Result<Arc<Job>, Refusal> {
    let account = caller.account();
    let (head, body) = request.into_parts();
    let window = window(&head.headers, account)?;
    let mut pieces = Pieces::new(body, CALL_MAX);
    let taken = take_requests(gateway, account, &mut pieces).await;
    let (input, digest) = match (taken, pieces.broken()) {
        (Ok(taken), _) => taken,
        (Err(_), Some(broken)) => return Err(broken.into()),
        (Err(refusal), None) => {
            pieces.drain().await;
            return Err(refusal);
        }
    };
    let idempotency = given_key(&head.headers).map(|key| idempotency_key(account, key));
    let job = job((gateway, caller), &input, window, told(&head.headers), idempotency, digest);
    let checked = check(gateway, caller, &input, &job, is_sdk_retry(&head.headers)).await;
    if !matches!(checked, Ok(None)) {
        gateway.spool.remove(input.number).await.map_err(|error| disk_failed(&error))?;
    }
    match checked? {
        None => begin(gateway, &input, job).await,
        Some(before) => {
            gateway.metrics.attached();
            Ok(Arc::new(before))
        }
    }
}

/// Whether a call's job may begin: not if it repeats a call, whose job this gives.
async fn check(
    gateway: &Arc<Gateway>,
    caller: &Identified,
    input: &File,
    job: &Job,
    is_retry: bool,
) -> Result<Option<Job>, Refusal> {
    let account = caller.account();
    if let Some(before) = before(gateway, account, job, is_retry).await? {
        return Ok(Some(before));
    }
    let models = input.check.models.iter().map(|model| model.name.as_str());
    route::check_job(gateway, caller, super::ENDPOINT, models)?;
    jobs::expand::check_models(gateway, account, job, &input.check).await?;
    check_room(gateway, account, job, input).await?;
    Ok(None)
}

/// Begins a job. Where the store fails, what it was told may be found after a restart all the same: so the file stays, and
/// the next start removes it if nothing knows it.
async fn begin(gateway: &Arc<Gateway>, input: &File, job: Job) -> Result<Arc<Job>, Refusal> {
    documents::keep(&gateway.store, input).await.map_err(|error| unreadable(&error))?;
    let open = jobs::begin(gateway, job).await.map_err(|error| unreadable(&error))?;
    Ok(open.stored())
}

/// A job that this one repeats: by its key, or because an SDK tries again what it did not hear of.
async fn before(
    gateway: &Gateway,
    account: &Account,
    job: &Job,
    is_retry: bool,
) -> Result<Option<Job>, Refusal> {
    if job.idempotency.is_none() && !is_retry {
        return Ok(None);
    }
    let since = job.life.created_at.before(RETRIES_COME_WITHIN);
    let others = page(gateway, account, Api::Anthropic, None, Order::Descending, LOOKED_THROUGH).await?;
    let is_equal = |other: &Job| (other.digest, &other.headers) == (job.digest, &job.headers);
    let is_same = |other: &Job| match job.idempotency {
        Some(_) => other.idempotency == job.idempotency,
        None => other.life.created_at >= since && is_equal(other),
    };
    match others.into_iter().find(is_same) {
        Some(other) if !is_equal(&other) => Err(key_reused()),
        found => Ok(found),
    }
}

fn job(
    (gateway, caller): (&Gateway, &Identified),
    input: &File,
    window: Millis,
    headers: Vec<(String, String)>,
    idempotency: Option<[u8; 16]>,
    digest: [u8; 16],
) -> Job {
    let now = gateway.clock.now();
    Job {
        number: gateway.numbers.next(now),
        tenant: input.tenant.clone(),
        api: Api::Anthropic,
        life: Life::begin(now, window),
        input: input.number,
        endpoint: super::ENDPOINT.to_owned(),
        headers,
        model: None,
        window: format!("{}s", window.0 / 1000),
        metadata: Vec::new(),
        output_kept: None,
        total: input.check.lines,
        expansion: Expansion::default(),
        ranges: Vec::new(),
        problems: Vec::new(),
        sums: None,
        is_output_deleted: false,
        are_errors_deleted: false,
        idempotency,
        digest,
        api_key: caller.deferred_key(),
    }
}

/// What the call says to Anthropic and not about the caller, such as the API's version.
fn told(headers: &HeaderMap) -> Vec<(String, String)> {
    let told = headers.iter().filter(|(name, _)| name.as_str().starts_with("anthropic-"));
    told.filter_map(|(name, value)| Some((name.to_string(), value.to_str().ok()?.to_owned()))).collect()
}

/// A day, as Anthropic has it, unless the call is tagged.
fn window(headers: &HeaderMap, account: &Account) -> Result<Millis, Refusal> {
    let Some(tag) = headers.get(envelope::SLA) else { return Ok(WINDOW) };
    let refuse = |message: String| Refusal::bad_request("invalid_sla", message).param(envelope::SLA);
    match Sla::parse(tag.to_str().unwrap_or_default(), account.sla.deferrable) {
        Ok(Sla::Within(window)) => Ok(window),
        Ok(Sla::Realtime) => {
            let message =
                "A batch cannot be answered in real time: give x-offpeak-sla a duration such as 2h.";
            Err(refuse(message.to_owned()))
        }
        Err(error) => Err(refuse(format!("{error} (in {}).", envelope::SLA))),
    }
}

async fn take_requests(
    gateway: &Gateway,
    account: &Account,
    pieces: &mut Pieces,
) -> Result<(File, [u8; 16]), Refusal> {
    let now = gateway.clock.now();
    let number = gateway.numbers.next(now);
    let mut draft = gateway.spool.begin(number).await.map_err(|error| disk_failed(&error))?;
    let mut splitter = Splitter::new(gateway.max_body);
    let mut collector = Collector::new();
    let mut bytes = 0;
    while let Some(piece) = pieces.next().await {
        let piece = piece.map_err(Refusal::from)?;
        splitter.push(&piece, &mut |element| collector.take(element))?;
        bytes += collector.write(&mut draft).await.map_err(|error| disk_failed(&error))?;
    }
    splitter.finish()?;
    let (check, digest) = collector.finish();
    if check.lines == 0 {
        let message = "requests: at least one request is needed.";
        return Err(Refusal::bad_request("empty_batch", message).param("requests"));
    }
    draft.finish().await.map_err(|error| disk_failed(&error))?;
    let input = File {
        number,
        tenant: account.id.clone(),
        name: String::new(),
        bytes,
        created_at: now,
        expires_at: now.after(file::KEPT),
        is_hidden: true,
        check,
    };
    Ok((input, digest))
}

impl Collector {
    fn new() -> Self {
        Self {
            hasher: RandomState::new(),
            ids: HashSet::new(),
            check: Check::default(),
            digest: Sha256::new(),
            lines: Vec::new(),
        }
    }

    fn take(&mut self, element: &[u8]) -> Result<(), Refusal> {
        let at = self.check.lines;
        let wrong = |what: &str| {
            Refusal::bad_request("invalid_request", format!("requests.{at}.{what}")).param("requests")
        };
        if at >= REQUESTS_MAX {
            let message = format!("requests: {REQUESTS_MAX} are the most. Split them into several batches.");
            return Err(Refusal::new(StatusCode::PAYLOAD_TOO_LARGE, "too_many_requests_in_batch", message));
        }
        let text = std::str::from_utf8(element).map_err(|_| wrong("params: not UTF-8"))?;
        let entry: Entry<'_> = serde_json::from_str(text)
            .map_err(|error| wrong(&format!("params: a request has a custom_id and params ({error})")))?;
        if !is_id(&entry.custom_id.0) {
            return Err(wrong("custom_id: must match ^[a-zA-Z0-9_-]{1,64}$"));
        }
        if !self.ids.insert(self.hasher.hash_one(&*entry.custom_id.0)) {
            return Err(wrong(&format!("custom_id: '{}' is used more than once", entry.custom_id.0)));
        }
        if entry.params.stream {
            return Err(wrong("params.stream: a batch's answers cannot be streamed"));
        }
        let model = entry.params.model.filter(|model| !model.0.is_empty());
        let model = model.ok_or_else(|| wrong("params.model: is missing"))?;
        self.check.lines += 1;
        remember(&mut self.check.models, &model.0, self.check.lines);
        if !self.check.models.iter().any(|known| known.name == model.0) {
            return Err(wrong(&format!(
                "params.model: a batch may name {MODELS_MAX} different models at most"
            )));
        }
        // Between the members of an element line ends are only layout; within a text they are escaped.
        self.lines
            .extend(element.iter().map(|byte| if matches!(byte, b'\n' | b'\r') { b' ' } else { *byte }));
        self.lines.push(b'\n');
        Ok(())
    }

    /// What was found, and what tells these requests from others.
    fn finish(self) -> (Check, [u8; 16]) {
        let mut digest = [0; 16];
        for (to, from) in digest.iter_mut().zip(self.digest.finalize()) {
            *to = from;
        }
        (self.check, digest)
    }

    /// Writes the lines that are complete; returns their bytes.
    async fn write(&mut self, draft: &mut Draft) -> io::Result<u64> {
        draft.write(&self.lines).await?;
        self.digest.update(&self.lines);
        let bytes = self.lines.len() as u64;
        self.lines.clear();
        Ok(bytes)
    }
}

fn is_id(id: &str) -> bool {
    (1..=64).contains(&id.len())
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(elements: &[&str]) -> Result<String, String> {
        let mut collector = Collector::new();
        for element in elements {
            collector.take(element.as_bytes()).map_err(|refusal| refusal.message)?;
        }
        Ok(String::from_utf8(collector.lines).unwrap())
    }

    #[test]
    fn requests_become_lines() {
        let lines = take(&["{\n\"custom_id\":\"a\",\r\n\"params\":{\"model\":\"m\"}}"]).unwrap();
        assert_eq!(lines, "{ \"custom_id\":\"a\",  \"params\":{\"model\":\"m\"}}\n");
    }

    #[test]
    fn what_is_wrong_is_named_with_its_place() {
        let good = r#"{"custom_id":"a","params":{"model":"m"}}"#;
        let cases = [
            (good, "requests.1.custom_id: 'a' is used more than once"),
            (r#"{"custom_id":"a b","params":{"model":"m"}}"#, "requests.1.custom_id: must match"),
            (r#"{"custom_id":"b","params":{}}"#, "requests.1.params.model: is missing"),
            (r#"{"custom_id":"b","params":{"model":"m","stream":true}}"#, "requests.1.params.stream"),
            (r#"{"params":{"model":"m"}}"#, "requests.1.params: a request has"),
            (r#"{"custom_id":"b","params":[]}"#, "requests.1.params: a request has"),
        ];
        for (bad, expected) in cases {
            let message = take(&[good, bad]).unwrap_err();
            assert!(message.starts_with(expected), "{bad}: {message}");
        }
    }
}
