//! /v1/batches: jobs as OpenAI's API has them.

pub mod submit;

use std::sync::Arc;

use http::{Method, Request, Response, StatusCode};
use offpeak_core::job::{Close, End, Stage};
use offpeak_store::Order;
use serde::Serialize;
use serde::ser::{SerializeMap, Serializer};

use crate::body::{ReplyBody, RequestBody};
use crate::delivery::output_file::Part;
use crate::documents::file::Problem;
use crate::documents::job::{Api, Job, Usage};
use crate::documents::{self, JobCost};
use crate::gateway::Gateway;
use crate::ingress::files::{self, job_of, no_such_call, seconds, unreadable};
use crate::ingress::query::Query;
use crate::job_book::Progress;
use crate::jobs;
use crate::reply::{self, Dialect, Refusal};
use crate::tenant::{Account, Identified};

/// Where jobs are.
pub const PATH: &str = "/v1/batches";

/// As many jobs are listed at once, and if the caller does not say.
const LIST_MAX: usize = 100;
const LIST_USUAL: usize = 20;

/// Answers a call about jobs.
pub async fn answer(
    gateway: &Arc<Gateway>,
    caller: Identified,
    request: Request<RequestBody>,
    names: &[String],
) -> Result<Response<ReplyBody>, Refusal> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let method = request.method().clone();
    match (&method, names.as_slice()) {
        (&Method::POST, []) => {
            caller.admit_plain(gateway.tenants.asked(gateway.clock.now(), Dialect::OpenAi))?;
            let job = submit::take(gateway, &caller, request).await?;
            shown(gateway, &job).await
        }
        (&Method::GET, []) => list(gateway, caller.account(), &Query::of(&request)).await,
        (&Method::GET, [id]) => shown(gateway, &find(gateway, caller.account(), id).await?).await,
        (&Method::POST, [id, "cancel"]) => cancel(gateway, caller.account(), id).await,
        (_, names) => {
            let allow = match names {
                [] => "GET, POST",
                [_] => "GET",
                [_, "cancel"] => "POST",
                _ => "",
            };
            let paths = "/v1/batches, /v1/batches/{id} and POST /v1/batches/{id}/cancel";
            Err(no_such_call(&method, paths, allow))
        }
    }
}

async fn find(gateway: &Gateway, account: &Account, id: &str) -> Result<Job, Refusal> {
    let number = documents::number(Api::OpenAi.prefix(), id).ok_or_else(|| not_found(id))?;
    let job = job_of(gateway, account, number).await?;
    job.filter(|job| job.api == Api::OpenAi).ok_or_else(|| not_found(id))
}

fn not_found(id: &str) -> Refusal {
    let id: String = id.chars().take(60).collect();
    Refusal::not_found("batch_not_found", format!("No batch found with id '{id}'.")).param("id")
}

async fn cancel(gateway: &Arc<Gateway>, account: &Account, id: &str) -> Result<Response<ReplyBody>, Refusal> {
    let job = find(gateway, account, id).await?;
    match job.life.stage {
        Stage::Validating | Stage::InProgress => {}
        Stage::Finalizing(Close::Cancelled) | Stage::Ended(End::Cancelled) => {
            return shown(gateway, &job).await;
        }
        Stage::Finalizing(_) | Stage::Ended(_) => {
            let message = format!("Cannot cancel a batch with status '{}'.", job.status());
            return Err(Refusal::new(StatusCode::CONFLICT, "batch_not_cancellable", message));
        }
    }
    let job = match gateway.jobs.get(job.number) {
        Some(open) => jobs::cancel(gateway, &open).await.ok_or_else(stopping)?,
        // It has ended since it was looked up.
        None => Arc::new(find(gateway, account, id).await?),
    };
    shown(gateway, &job).await
}

/// The daemon stops, and what was asked is not noted.
pub fn stopping() -> Refusal {
    Refusal::unavailable("restarting", "offpeak is restarting. Send the call again.", 1)
}

async fn list(gateway: &Gateway, account: &Account, query: &Query) -> Result<Response<ReplyBody>, Refusal> {
    #[derive(Serialize)]
    struct List {
        object: &'static str,
        first_id: Option<String>,
        last_id: Option<String>,
        has_more: bool,
        data: Vec<BatchObject>,
    }
    let limit = query.limit(LIST_USUAL, LIST_MAX)?;
    let after = match query.get("after") {
        Some(after) => Some(find(gateway, account, after).await?.number),
        None => None,
    };
    let mut jobs = page(gateway, account, Api::OpenAi, after, Order::Descending, limit + 1).await?;
    let has_more = jobs.len() > limit;
    jobs.truncate(limit);
    let (first_id, last_id) = (jobs.first().map(Job::id), jobs.last().map(Job::id));
    let mut data = Vec::with_capacity(jobs.len());
    for job in &jobs {
        data.push(BatchObject::of(gateway, job, CostObject::of(gateway, job).await?));
    }
    Ok(reply::json_of(StatusCode::OK, &List { object: "list", first_id, last_id, has_more, data }))
}

/// At most so many of the tenant's jobs of an API, as they are now, beyond one of them.
pub async fn page(
    gateway: &Gateway,
    account: &Account,
    api: Api,
    mut beyond: Option<u64>,
    order: Order,
    most: usize,
) -> Result<Vec<Job>, Refusal> {
    let mut found = Vec::new();
    loop {
        let jobs: Vec<Job> = documents::list(&gateway.store, &account.id, beyond, order, most)
            .await
            .map_err(|error| unreadable(&error))?;
        let is_last = jobs.len() < most;
        beyond = jobs.last().map(|job| job.number);
        for job in jobs.into_iter().filter(|job| job.api == api) {
            match gateway.jobs.get(job.number) {
                Some(open) => found.push((*open.stored()).clone()),
                None => found.push(job),
            }
        }
        if is_last || found.len() >= most {
            found.truncate(most);
            return Ok(found);
        }
    }
}

async fn shown(gateway: &Gateway, job: &Job) -> Result<Response<ReplyBody>, Refusal> {
    let cost = CostObject::of(gateway, job).await?;
    Ok(reply::json_of(StatusCode::OK, &BatchObject::of(gateway, job, cost)))
}

/// How far a job is: exactly when it has ended, as of now before.
pub fn progress(gateway: &Gateway, job: &Job) -> Progress {
    match (&job.sums, gateway.jobs.get(job.number)) {
        (Some(sums), _) => Progress { succeeded: sums.succeeded, failed: sums.failed() },
        (None, Some(open)) => open.progress(),
        (None, None) => Progress::default(),
    }
}

/// A job as OpenAI's API has it, and a little more.
#[derive(Serialize)]
struct BatchObject {
    id: String,
    object: &'static str,
    endpoint: String,
    model: Option<String>,
    errors: Option<Errors>,
    input_file_id: String,
    completion_window: String,
    status: &'static str,
    output_file_id: Option<String>,
    error_file_id: Option<String>,
    created_at: u64,
    in_progress_at: Option<u64>,
    expires_at: u64,
    finalizing_at: Option<u64>,
    completed_at: Option<u64>,
    failed_at: Option<u64>,
    expired_at: Option<u64>,
    cancelling_at: Option<u64>,
    cancelled_at: Option<u64>,
    request_counts: Counts,
    usage: Option<UsageObject>,
    metadata: Option<Metadata>,
    /// What is finished by now can be read as these files while the job runs. OpenAI's own members stay empty until it
    /// has ended, since scripts take them for the end.
    #[serde(skip_serializing_if = "Option::is_none")]
    partial_output_file_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    partial_error_file_id: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offpeak_cost: Option<CostObject>,
}

/// What a job has cost so far: exactly when it has ended, as of now before. Amounts are decimal numbers as texts, so that no
/// reader rounds them.
#[derive(Serialize)]
pub struct CostObject {
    cost_usd: String,
    realtime_cost_usd: String,
    unpriced: u64,
}

impl CostObject {
    /// Of a job; none if that was not written down.
    pub async fn of(gateway: &Gateway, job: &Job) -> Result<Option<Self>, Refusal> {
        let open = gateway.jobs.get(job.number).filter(|_| !job.life.has_ended());
        let spent = if let Some(open) = open {
            Some(open.spent())
        } else {
            let kept = documents::get(&gateway.store, &job.tenant, job.number).await;
            kept.map_err(|error| unreadable(&error))?.map(|kept: JobCost| kept.spent)
        };
        Ok(spent.map(|spent| Self {
            cost_usd: spent.cost.to_decimal(),
            realtime_cost_usd: spent.realtime.to_decimal(),
            unpriced: spent.unpriced,
        }))
    }
}

#[derive(Serialize)]
struct Errors {
    object: &'static str,
    data: Vec<Problem>,
}

#[derive(Serialize)]
struct Counts {
    total: u64,
    completed: u64,
    failed: u64,
}

#[derive(Serialize)]
struct UsageObject {
    input_tokens: u64,
    input_tokens_details: InputDetails,
    output_tokens: u64,
    output_tokens_details: OutputDetails,
    total_tokens: u64,
}

#[derive(Serialize)]
struct InputDetails {
    cached_tokens: u64,
}

#[derive(Serialize)]
struct OutputDetails {
    reasoning_tokens: u64,
}

impl From<Usage> for UsageObject {
    fn from(usage: Usage) -> Self {
        Self {
            input_tokens: usage.input,
            input_tokens_details: InputDetails { cached_tokens: usage.cached },
            output_tokens: usage.output,
            output_tokens_details: OutputDetails { reasoning_tokens: usage.reasoning },
            total_tokens: usage.input + usage.output,
        }
    }
}

struct Metadata(Vec<(String, String)>);

impl Serialize for Metadata {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(Some(self.0.len()))?;
        for (name, value) in &self.0 {
            map.serialize_entry(name, value)?;
        }
        map.end()
    }
}

impl BatchObject {
    fn of(gateway: &Gateway, job: &Job, offpeak_cost: Option<CostObject>) -> Self {
        let life = &job.life;
        let ended_as =
            |end: End| (life.stage == Stage::Ended(end)).then_some(life.ended_at).flatten().map(seconds);
        let file = |part, wanted| files::output_id(gateway, job, part).filter(|_| wanted == life.has_ended());
        let is_validating = life.stage == Stage::Validating || job.has_failed();
        let progress = progress(gateway, job);
        Self {
            id: job.id(),
            object: "batch",
            endpoint: job.endpoint.clone(),
            model: job.model.clone(),
            errors: (!job.problems.is_empty()).then(|| Errors { object: "list", data: job.problems.clone() }),
            input_file_id: documents::id(documents::file::PREFIX, job.input),
            completion_window: job.window.clone(),
            status: job.status(),
            output_file_id: file(Part::Answers, true),
            error_file_id: file(Part::Errors, true),
            created_at: seconds(life.created_at),
            in_progress_at: life.in_progress_at.map(seconds),
            expires_at: seconds(life.deadline),
            finalizing_at: life.finalizing_at.map(seconds),
            completed_at: ended_as(End::Completed),
            failed_at: ended_as(End::Failed),
            expired_at: ended_as(End::Expired),
            cancelling_at: life.cancelling_at.map(seconds),
            cancelled_at: ended_as(End::Cancelled),
            request_counts: Counts {
                total: if is_validating { 0 } else { job.total },
                completed: progress.succeeded,
                failed: progress.failed,
            },
            usage: job.sums.as_ref().map(|sums| sums.usage.into()),
            metadata: (!job.metadata.is_empty()).then(|| Metadata(job.metadata.clone())),
            partial_output_file_id: file(Part::Answers, false),
            partial_error_file_id: file(Part::Errors, false),
            offpeak_cost,
        }
    }
}
