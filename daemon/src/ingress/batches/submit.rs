//! Takes in a job: what is wrong with the call is refused, what is wrong with its file fails the job.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use http::{Request, StatusCode};
use offpeak_core::job::{Life, Stage};
use offpeak_core::room::Load;
use offpeak_core::sla::parse_duration;
use offpeak_core::words::{Millis, ModelId, TenantId};
use offpeak_store::Order;
use serde::Deserialize;

use super::page;
use crate::body::RequestBody;
use crate::defer::{IDEMPOTENCY_KEY_REUSED, RETRIES_COME_WITHIN, given_key, idempotency_key, is_sdk_retry};
use crate::documents::file::{self, File};
use crate::documents::job::{Api, Expansion, Job};
use crate::documents::{self};
use crate::gateway::Gateway;
use crate::ingress::files::{input, unreadable};
use crate::ingress::read_body;
use crate::jobs;
use crate::reply::Refusal;
use crate::room::{Coming, ComingJob};
use crate::route;
use crate::tenant::{Account, Identified};

/// The largest call.
const CALL_MAX: usize = 1 << 20;

/// Jobs that are looked through for one that was submitted before.
pub const LOOKED_THROUGH: usize = 1000;

/// A call that submits a job.
#[derive(Deserialize)]
struct Call<'a> {
    #[serde(borrow)]
    input_file_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    endpoint: Option<Cow<'a, str>>,
    #[serde(borrow)]
    completion_window: Option<Cow<'a, str>>,
    metadata: Option<BTreeMap<String, String>>,
    output_expires_after: Option<ExpiresAfter>,
}

#[derive(Deserialize)]
struct ExpiresAfter {
    anchor: String,
    seconds: u64,
}

/// Takes a job in. It is durable when this returns.
pub(super) async fn take(
    gateway: &Arc<Gateway>,
    caller: &Identified,
    request: Request<RequestBody>,
) -> Result<Arc<Job>, Refusal> {
    let account = caller.account();
    let (head, body) = request.into_parts();
    let body = read_body(&head.headers, body, CALL_MAX, |_| Ok(())).await?;
    let call: Call<'_> = serde_json::from_slice(&body).map_err(|error| {
        let message = format!("The call cannot be read: {error}. It is a JSON object as the SDKs send it.");
        Refusal::bad_request("invalid_json", message)
    })?;
    let key = given_key(&head.headers).map(|key| idempotency_key(account, key));
    let (job, file) = job(gateway, caller, &call, key).await?;
    if let Some(same) = same(gateway, account, &job, is_sdk_retry(&head.headers)).await? {
        gateway.metrics.attached();
        return Ok(Arc::new(same));
    }
    check_room(gateway, account, &job, &file).await?;
    let models = file.check.models.iter().map(|model| model.name.as_str());
    route::check_job(gateway, caller, &job.endpoint, models)?;
    account.check_budget(gateway.clock.now())?;
    let open = jobs::begin(gateway, job).await.map_err(|error| unreadable(&error))?;
    Ok(open.stored())
}

async fn job(
    gateway: &Gateway,
    caller: &Identified,
    call: &Call<'_>,
    idempotency: Option<[u8; 16]>,
) -> Result<(Job, File), Refusal> {
    let account = caller.account();
    let input_id = call.input_file_id.as_deref().ok_or_else(|| missing("input_file_id"))?;
    let endpoint = call.endpoint.as_deref().ok_or_else(|| missing("endpoint"))?;
    let window_text = call.completion_window.as_deref().ok_or_else(|| missing("completion_window"))?;
    let window = window(window_text)?;
    check_endpoint(gateway, endpoint)?;
    let metadata = metadata(call.metadata.as_ref())?;
    let output_kept = call.output_expires_after.as_ref().map(output_kept).transpose()?;
    let file = match documents::number(file::PREFIX, input_id) {
        Some(number) => input(gateway, account, number).await?,
        None => None,
    };
    let file = file.ok_or_else(|| no_such_file(input_id))?;
    let now = gateway.clock.now();
    let model = match file.check.models.as_slice() {
        [only] => Some(only.name.clone()),
        _ => None,
    };
    let job = Job {
        number: gateway.numbers.next(now),
        tenant: account.id.clone(),
        api: Api::OpenAi,
        life: Life::begin(now, window),
        input: file.number,
        endpoint: endpoint.to_owned(),
        headers: Vec::new(),
        model,
        window: window_text.to_owned(),
        metadata,
        output_kept,
        total: file.check.lines,
        expansion: Expansion::default(),
        ranges: Vec::new(),
        problems: Vec::new(),
        sums: None,
        is_output_deleted: false,
        are_errors_deleted: false,
        idempotency,
        digest: [0; 16],
        api_key: caller.deferred_key(),
    };
    Ok((job, file))
}

/// A job that this one repeats: by its key, or because an SDK tries again what it did not hear of.
async fn same(
    gateway: &Gateway,
    account: &Account,
    job: &Job,
    is_retry: bool,
) -> Result<Option<Job>, Refusal> {
    if job.idempotency.is_none() && !is_retry {
        return Ok(None);
    }
    let since = job.life.created_at.before(RETRIES_COME_WITHIN);
    let is_equal = |other: &Job| {
        (other.input, &other.endpoint, &other.window, &other.metadata, other.output_kept)
            == (job.input, &job.endpoint, &job.window, &job.metadata, job.output_kept)
    };
    let others = page(gateway, account, Api::OpenAi, None, Order::Descending, LOOKED_THROUGH).await?;
    match job.idempotency {
        Some(_) => match others.into_iter().find(|other| other.idempotency == job.idempotency) {
            Some(other) if is_equal(&other) => Ok(Some(other)),
            Some(_) => Err(key_reused()),
            None => Ok(None),
        },
        None => Ok(others.into_iter().find(|other| other.life.created_at >= since && is_equal(other))),
    }
}

/// Another batch came under the same key.
pub fn key_reused() -> Refusal {
    let message = "This Idempotency-Key was used with another batch. Use a new key for a new batch.";
    Refusal::new(StatusCode::CONFLICT, IDEMPOTENCY_KEY_REUSED, message)
}

/// The window as the SLA that it is.
fn window(text: &str) -> Result<Millis, Refusal> {
    parse_duration(text).map_err(|error| {
        let message = format!("{error} (in completion_window). Any duration is taken, not only 24h.");
        Refusal::bad_request("invalid_completion_window", message).param("completion_window")
    })
}

fn check_endpoint(gateway: &Gateway, endpoint: &str) -> Result<(), Refusal> {
    if gateway.backends.knows(endpoint) {
        return Ok(());
    }
    let endpoint: String = endpoint.chars().take(100).collect();
    let message =
        format!("No backend answers the endpoint '{endpoint}'. Use one such as /v1/chat/completions.");
    Err(Refusal::bad_request("invalid_endpoint", message).param("endpoint"))
}

/// OpenAI's bounds: 16 pairs, names of 64 and values of 512 characters.
fn metadata(given: Option<&BTreeMap<String, String>>) -> Result<Vec<(String, String)>, Refusal> {
    let Some(given) = given else { return Ok(Vec::new()) };
    let fits = |(name, value): (&String, &String)| name.chars().count() <= 64 && value.chars().count() <= 512;
    if given.len() > 16 || !given.iter().all(fits) {
        let message =
            "metadata may have 16 pairs, with names of at most 64 and values of at most 512 characters.";
        return Err(Refusal::bad_request("invalid_metadata", message).param("metadata"));
    }
    Ok(given.iter().map(|(name, value)| (name.clone(), value.clone())).collect())
}

fn output_kept(asked: &ExpiresAfter) -> Result<Millis, Refusal> {
    if asked.anchor == "created_at" && (3600..=2_592_000).contains(&asked.seconds) {
        return Ok(Millis::from_secs(asked.seconds));
    }
    let message = "output_expires_after must be {\"anchor\": \"created_at\", \"seconds\": 3600 to 2592000}.";
    Err(Refusal::bad_request("invalid_value", message).param("output_expires_after"))
}

/// There is room for all of its requests.
pub async fn check_room(
    gateway: &Arc<Gateway>,
    account: &Arc<Account>,
    job: &Job,
    file: &File,
) -> Result<(), Refusal> {
    // A lane must have room for all of them where models are mixed: how many are whose is known when they are put there.
    let keys = jobs::expand::lanes_of(gateway, account, job, &file.check).await;
    let load = Load { requests: file.check.lines, bytes: file.bytes };
    let coming = coming(gateway, &account.id);
    let check = |key| gateway.room.check(gateway.books(), account, key, load, &coming);
    check(None)?;
    keys.iter().try_for_each(|key| check(Some(key)))
}

/// What earlier jobs have not put into lanes yet.
fn coming(gateway: &Gateway, tenant: &TenantId) -> Coming {
    let mut coming = Coming::default();
    for job in gateway.jobs.all() {
        let job = job.stored();
        if job.life.stage == Stage::Validating {
            let rest = job.total.saturating_sub(job.expansion.lines);
            coming.all = coming.all.saturating_add(rest);
            if job.tenant == *tenant {
                let (api_key, model) = (job.api_key.clone(), job.model.as_deref().map(ModelId::from));
                coming.jobs.push(ComingJob { requests: rest, api_key, model });
            }
        }
    }
    coming
}

fn missing(param: &'static str) -> Refusal {
    let message = format!("Missing required parameter: '{param}'.");
    Refusal::bad_request("missing_required_parameter", message).param(param)
}

fn no_such_file(id: &str) -> Refusal {
    let id: String = id.chars().take(60).collect();
    let message = format!("There is no uploaded file '{id}'. Upload it with purpose 'batch' first.");
    Refusal::bad_request("invalid_input_file", message).param("input_file_id")
}
