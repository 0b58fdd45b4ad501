//! /v1/messages/batches: jobs as Anthropic's API has them.

pub mod split;
pub mod submit;

use std::sync::Arc;

use http::header::{CONTENT_TYPE, HOST, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use offpeak_core::job::{Close, Stage};
use offpeak_store::Order;
use serde::Serialize;

use crate::body::{ReplyBody, RequestBody};
use crate::defer::store_failed;
use crate::delivery::output_file::{self, Part};
use crate::documents::job::{Api, Job};
use crate::documents::job_cost::Spent;
use crate::documents::{self, JobCost};
use crate::gateway::Gateway;
use crate::ingress::batches::{CostObject, page, stopping};
use crate::ingress::files::{job_of, no_such_call};
use crate::ingress::query::Query;
use crate::jobs;
use crate::reply::{self, Dialect, Refusal};
use crate::route;
use crate::tenant::{Account, Identified};

/// Where message batches are.
pub const PATH: &str = "/v1/messages/batches";

/// What their requests call.
const ENDPOINT: &str = "/v1/messages";

/// As many batches are listed at once, and if the caller does not say.
const LIST_MAX: usize = 1000;
const LIST_USUAL: usize = 20;

/// Answers a call about message batches.
pub async fn answer(
    gateway: &Arc<Gateway>,
    caller: Identified,
    request: Request<RequestBody>,
    names: &[String],
) -> Result<Response<ReplyBody>, Refusal> {
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let method = request.method().clone();
    let base = base(gateway, &request);
    match (&method, names.as_slice()) {
        (&Method::POST, []) => {
            caller.admit_plain(gateway.tenants.asked(gateway.clock.now(), Dialect::Anthropic))?;
            // Which models it names is known when it has come.
            route::check_job(gateway, &caller, ENDPOINT, std::iter::empty())?;
            caller.account().check_budget(gateway.clock.now())?;
            let job = submit::take(gateway, &caller, request).await?;
            shown(gateway, &job, &base).await
        }
        (&Method::GET, []) => list(gateway, caller.account(), &Query::of(&request), &base).await,
        (&Method::GET, [id]) => shown(gateway, &find(gateway, caller.account(), id).await?, &base).await,
        (&Method::GET, [id, "results"]) => results(gateway, caller.account(), id).await,
        (&Method::POST, [id, "cancel"]) => {
            let job = cancel(gateway, caller.account(), id).await?;
            shown(gateway, &job, &base).await
        }
        (&Method::DELETE, [id]) => delete(gateway, caller.account(), id).await,
        (_, names) => {
            let allow = match names {
                [] => "GET, POST",
                [_] => "GET, DELETE",
                [_, "results"] => "GET",
                [_, "cancel"] => "POST",
                _ => "",
            };
            let paths = "/v1/messages/batches, /v1/messages/batches/{id}, /v1/messages/batches/{id}/results and POST \
                         /v1/messages/batches/{id}/cancel";
            Err(no_such_call(&method, paths, allow))
        }
    }
}

/// How the client reaches this server: as configured, or as it called it.
fn base(gateway: &Gateway, request: &Request<RequestBody>) -> String {
    if let Some(url) = &gateway.public_url {
        return url.clone();
    }
    let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
    let host = host.or_else(|| request.uri().authority().map(http::uri::Authority::as_str));
    // Without a host the link is relative, which SDKs take too.
    host.map_or_else(String::new, |host| format!("http://{host}"))
}

async fn find(gateway: &Gateway, account: &Account, id: &str) -> Result<Job, Refusal> {
    let number = documents::number(Api::Anthropic.prefix(), id).ok_or_else(|| not_found(id))?;
    let job = job_of(gateway, account, number).await?;
    job.filter(|job| job.api == Api::Anthropic).ok_or_else(|| not_found(id))
}

fn not_found(id: &str) -> Refusal {
    let id: String = id.chars().take(60).collect();
    Refusal::not_found("message_batch_not_found", format!("There is no message batch '{id}'.")).param("id")
}

async fn cancel(gateway: &Arc<Gateway>, account: &Account, id: &str) -> Result<Arc<Job>, Refusal> {
    let job = find(gateway, account, id).await?;
    match (job.life.stage, gateway.jobs.get(job.number)) {
        (Stage::Validating | Stage::InProgress, Some(open)) => {
            jobs::cancel(gateway, &open).await.ok_or_else(stopping)
        }
        // It has ended, or is about to: that is what was asked.
        _ => Ok(Arc::new(find(gateway, account, id).await?)),
    }
}

async fn delete(gateway: &Gateway, account: &Account, id: &str) -> Result<Response<ReplyBody>, Refusal> {
    #[derive(Serialize)]
    struct Deleted<'a> {
        id: &'a str,
        r#type: &'static str,
    }
    let job = find(gateway, account, id).await?;
    if !job.life.has_ended() {
        let message = "The batch is still being processed. Cancel it, and delete it when it has ended.";
        return Err(Refusal::bad_request("batch_not_ended", message).param("id"));
    }
    let cost = JobCost::of(&job, Spent::default());
    let removals = vec![documents::removal(&cost), documents::removal(&job)];
    gateway.store.keep(removals).await.map_err(|error| store_failed(&error))?;
    Ok(reply::json_of(StatusCode::OK, &Deleted { id, r#type: "message_batch_deleted" }))
}

async fn results(gateway: &Gateway, account: &Account, id: &str) -> Result<Response<ReplyBody>, Refusal> {
    let job = find(gateway, account, id).await?;
    let until = job.output_until(gateway.keep_results);
    if until.is_some_and(|until| until <= gateway.clock.now()) {
        let message =
            format!("The results of the batch '{}' were kept as long as configured and are gone.", job.id());
        return Err(Refusal::not_found("results_gone", message));
    }
    let lines = output_file::lines(gateway.store.clone(), job.api, Part::All, job.ranges);
    let mut response = Response::new(ReplyBody::Passed(reqwest::Body::wrap_stream(lines)));
    response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/x-jsonl"));
    Ok(response)
}

async fn list(
    gateway: &Gateway,
    account: &Account,
    query: &Query,
    base: &str,
) -> Result<Response<ReplyBody>, Refusal> {
    #[derive(Serialize)]
    struct List {
        data: Vec<MessageBatch>,
        has_more: bool,
        first_id: Option<String>,
        last_id: Option<String>,
    }
    let limit = query.limit(LIST_USUAL, LIST_MAX)?;
    let (cursor, order) = match (query.get("after_id"), query.get("before_id")) {
        (Some(after), _) => (Some(after), Order::Descending),
        (None, Some(before)) => (Some(before), Order::Ascending),
        (None, None) => (None, Order::Descending),
    };
    let beyond = match cursor {
        Some(id) => Some(find(gateway, account, id).await?.number),
        None => None,
    };
    let mut jobs = page(gateway, account, Api::Anthropic, beyond, order, limit + 1).await?;
    let has_more = jobs.len() > limit;
    jobs.truncate(limit);
    if order == Order::Ascending {
        jobs.reverse();
    }
    let (first_id, last_id) = (jobs.first().map(Job::id), jobs.last().map(Job::id));
    let mut data = Vec::with_capacity(jobs.len());
    for job in &jobs {
        data.push(MessageBatch::of(gateway, job, base, CostObject::of(gateway, job).await?));
    }
    Ok(reply::json_of(StatusCode::OK, &List { data, has_more, first_id, last_id }))
}

async fn shown(gateway: &Gateway, job: &Job, base: &str) -> Result<Response<ReplyBody>, Refusal> {
    let cost = CostObject::of(gateway, job).await?;
    Ok(reply::json_of(StatusCode::OK, &MessageBatch::of(gateway, job, base, cost)))
}

/// A job as Anthropic's API has it.
#[derive(Serialize)]
struct MessageBatch {
    id: String,
    r#type: &'static str,
    processing_status: &'static str,
    request_counts: Counts,
    created_at: String,
    expires_at: String,
    ended_at: Option<String>,
    cancel_initiated_at: Option<String>,
    archived_at: Option<String>,
    results_url: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    offpeak_cost: Option<CostObject>,
}

/// All requests are processing until the batch has ended.
#[derive(Serialize, Default)]
struct Counts {
    processing: u64,
    succeeded: u64,
    errored: u64,
    canceled: u64,
    expired: u64,
}

impl MessageBatch {
    fn of(gateway: &Gateway, job: &Job, base: &str, offpeak_cost: Option<CostObject>) -> Self {
        let life = &job.life;
        let is_readable = |until| gateway.clock.now() < until;
        let until = job.output_until(gateway.keep_results);
        let id = job.id();
        Self {
            r#type: "message_batch",
            processing_status: match life.stage {
                Stage::Validating
                | Stage::InProgress
                | Stage::Finalizing(Close::Finished | Close::WindowOver) => "in_progress",
                Stage::Finalizing(Close::Cancelled) => "canceling",
                Stage::Ended(_) => "ended",
            },
            request_counts: match &job.sums {
                None if job.has_failed() => Counts { errored: job.total, ..Counts::default() },
                None => Counts { processing: job.total, ..Counts::default() },
                Some(sums) => Counts {
                    processing: 0,
                    succeeded: sums.succeeded,
                    errored: sums.errored,
                    canceled: sums.cancelled,
                    expired: sums.expired,
                },
            },
            created_at: reply::rfc3339(life.created_at),
            expires_at: reply::rfc3339(life.deadline),
            ended_at: life.ended_at.map(reply::rfc3339),
            cancel_initiated_at: life.cancelling_at.map(reply::rfc3339),
            archived_at: until.filter(|until| !is_readable(*until)).map(reply::rfc3339),
            results_url: until
                .filter(|until| is_readable(*until))
                .map(|_| format!("{base}{PATH}/{id}/results")),
            offpeak_cost,
            id,
        }
    }
}
