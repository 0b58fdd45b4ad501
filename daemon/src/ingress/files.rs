//! /v1/files: the input files of jobs, and their output files as if they were files.

pub mod upload;

use std::io;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::stream::{self, Stream};
use http::header::{CONTENT_DISPOSITION, CONTENT_TYPE, HeaderValue};
use http::{Method, Request, Response, StatusCode};
use offpeak_core::job::Stage;
use offpeak_core::words::Timestamp;
use offpeak_store::Order;
use serde::Serialize;
use tokio::io::AsyncReadExt;

use crate::body::{ReplyBody, RequestBody};
use crate::defer::store_failed;
use crate::delivery::output_file::{self, Part};
use crate::documents::file::{self, File};
use crate::documents::job::{Api, Job, Sums};
use crate::documents::{self, DocumentError};
use crate::gateway::Gateway;
use crate::ingress::query::Query;
use crate::reply::{self, Dialect, Refusal};
use crate::tenant::{Account, Identified};

/// Where files are.
pub const PATH: &str = "/v1/files";

/// What the id of a job's output file begins with.
pub const OUTPUT: &str = "file-out-";

/// What the id of a job's error file begins with.
pub const ERRORS: &str = "file-err-";

/// As many files are listed at once.
const LIST_MAX: usize = 10_000;

/// What is read from the disk at once, in bytes.
const READ_AT_ONCE: usize = 256 << 10;

/// A file as OpenAI's API has it.
#[derive(Serialize)]
pub struct FileObject {
    /// Its name.
    pub id: String,
    object: &'static str,
    bytes: u64,
    created_at: u64,
    expires_at: Option<u64>,
    filename: String,
    purpose: &'static str,
    status: &'static str,
    status_details: Option<&'static str>,
}

/// Something that is called a file.
enum Found {
    Input(Box<File>),
    Output(Box<Job>, Part),
}

/// Answers a call about files.
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
            let file = upload::take(gateway, caller.account(), request).await?;
            Ok(reply::json_of(StatusCode::OK, &file.object()))
        }
        (&Method::GET, []) => list(gateway, caller.account(), &Query::of(&request)).await,
        (&Method::GET, [id]) => {
            let found = find(gateway, caller.account(), id).await?;
            Ok(reply::json_of(StatusCode::OK, &found.object(gateway)))
        }
        (&Method::DELETE, [id]) => delete(gateway, caller.account(), id).await,
        (&Method::GET, [id, "content"]) => content(gateway, caller.account(), id).await,
        (_, names) => {
            let allow = match names {
                [] => "GET, POST",
                [_] => "GET, DELETE",
                [_, "content"] => "GET",
                _ => "",
            };
            Err(no_such_call(&method, "/v1/files, /v1/files/{id} and /v1/files/{id}/content", allow))
        }
    }
}

/// There is no such call. The path takes the methods that are allowed; if there are none, it is no path at all.
pub fn no_such_call(method: &Method, paths: &str, allow: &'static str) -> Refusal {
    let message = format!("There is no {method} of this path; there are {paths}.");
    if allow.is_empty() {
        return Refusal::not_found("unknown_endpoint", message);
    }
    Refusal::method_not_allowed(message, allow)
}

async fn find(gateway: &Gateway, account: &Account, id: &str) -> Result<Found, Refusal> {
    let outputs = [(OUTPUT, Part::Answers), (ERRORS, Part::Errors)];
    let output = outputs.iter().find_map(|(prefix, part)| Some((documents::number(prefix, id)?, *part)));
    if let Some((number, part)) = output {
        let job = job_of(gateway, account, number).await?;
        return job
            .filter(|job| has(gateway, job, part))
            .map(|job| Found::Output(Box::new(job), part))
            .ok_or_else(|| not_found(id));
    }
    let number = documents::number(file::PREFIX, id).ok_or_else(|| not_found(id))?;
    input(gateway, account, number)
        .await?
        .map(|file| Found::Input(Box::new(file)))
        .ok_or_else(|| not_found(id))
}

/// The tenant's uploaded file of this number, if its time is not over.
pub async fn input(gateway: &Gateway, account: &Account, number: u64) -> Result<Option<File>, Refusal> {
    let found: Option<File> =
        documents::get(&gateway.store, &account.id, number).await.map_err(|error| unreadable(&error))?;
    Ok(found.filter(|file| !file.is_hidden && gateway.clock.now() < file.expires_at))
}

/// The tenant's job of this number, as it is now.
pub async fn job_of(gateway: &Gateway, account: &Account, number: u64) -> Result<Option<Job>, Refusal> {
    if let Some(open) = gateway.jobs.get(number) {
        let job = open.stored();
        return Ok((job.tenant == account.id).then(|| (*job).clone()));
    }
    documents::get(&gateway.store, &account.id, number).await.map_err(|error| unreadable(&error))
}

/// The part of the job's answers can be read. Before the job has ended, as far as they are there.
fn has(gateway: &Gateway, job: &Job, part: Part) -> bool {
    let is_kept = job.output_until(gateway.keep_results).is_none_or(|until| gateway.clock.now() < until);
    let is_begun = !job.has_failed() && job.life.stage != Stage::Validating;
    job.api == Api::OpenAi && is_kept && is_begun && has_lines(job, part)
}

fn has_lines(job: &Job, part: Part) -> bool {
    let is_there = |lines: fn(&Sums) -> u64| job.sums.as_ref().is_none_or(|sums| lines(sums) > 0);
    match part {
        Part::Answers => !job.is_output_deleted && is_there(|sums| sums.succeeded),
        Part::Errors => !job.are_errors_deleted && is_there(Sums::failed),
        Part::All => true,
    }
}

/// The id of a part of an ended job's answers, if it has any.
pub fn output_id(gateway: &Gateway, job: &Job, part: Part) -> Option<String> {
    let prefix = if part == Part::Answers { OUTPUT } else { ERRORS };
    has(gateway, job, part).then(|| documents::id(prefix, job.number))
}

async fn delete(gateway: &Gateway, account: &Account, id: &str) -> Result<Response<ReplyBody>, Refusal> {
    #[derive(Serialize)]
    struct Farewell<'a> {
        id: &'a str,
        object: &'static str,
        deleted: bool,
    }
    match find(gateway, account, id).await? {
        Found::Input(file) => remove(gateway, &file).await?,
        Found::Output(job, _) if !job.life.has_ended() => {
            let message =
                "The batch has not ended; its output file is still growing. Cancel the batch first.";
            return Err(Refusal::new(StatusCode::CONFLICT, "file_in_use", message));
        }
        Found::Output(mut job, part) => {
            match part {
                Part::Answers => job.is_output_deleted = true,
                Part::Errors | Part::All => job.are_errors_deleted = true,
            }
            documents::keep(&gateway.store, &*job).await.map_err(|error| unreadable(&error))?;
        }
    }
    Ok(reply::json_of(StatusCode::OK, &Farewell { id, object: "file", deleted: true }))
}

/// Removes a file: its document first, so that what a crash leaves is found by nobody and tidied at the next start.
pub async fn remove(gateway: &Gateway, file: &File) -> Result<(), Refusal> {
    let reads = |job: &Job| job.input == file.number && job.life.stage == Stage::Validating;
    if let Some(open) = gateway.jobs.all().iter().map(|open| open.stored()).find(|job| reads(job)) {
        let message = format!(
            "The batch {} is still reading this file. Delete it when the batch is in progress.",
            open.id()
        );
        return Err(Refusal::new(StatusCode::CONFLICT, "file_in_use", message));
    }
    gateway.store.keep(vec![documents::removal(file)]).await.map_err(|error| store_failed(&error))?;
    gateway.spool.remove(file.number).await.map_err(|error| disk_failed(&error))
}

async fn content(gateway: &Gateway, account: &Account, id: &str) -> Result<Response<ReplyBody>, Refusal> {
    let (name, body) = match find(gateway, account, id).await? {
        Found::Input(file) => {
            let opened = gateway.spool.read(file.number, 0).await.map_err(|error| disk_failed(&error))?;
            (file.name.clone(), reqwest::Body::wrap_stream(pieces(opened)))
        }
        Found::Output(job, part) => {
            let name = output_name(&job, part);
            let lines = output_file::lines(gateway.store.clone(), job.api, part, job.ranges);
            (name, reqwest::Body::wrap_stream(lines))
        }
    };
    let mut response = Response::new(ReplyBody::Passed(body));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/octet-stream"));
    let plain: String = name.chars().filter(|c| c.is_ascii_graphic() && !matches!(c, '"' | '\\')).collect();
    if let Ok(value) = HeaderValue::try_from(format!("attachment; filename=\"{plain}\"")) {
        headers.insert(CONTENT_DISPOSITION, value);
    }
    Ok(response)
}

fn pieces(file: tokio::fs::File) -> impl Stream<Item = io::Result<Bytes>> + Send {
    stream::try_unfold(file, |mut file| async move {
        let mut buffer = BytesMut::with_capacity(READ_AT_ONCE);
        let read = file.read_buf(&mut buffer).await?;
        Ok((read > 0).then(|| (buffer.freeze(), file)))
    })
}

#[derive(Serialize)]
struct FileList {
    object: &'static str,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
    data: Vec<FileObject>,
}

async fn list(gateway: &Gateway, account: &Account, query: &Query) -> Result<Response<ReplyBody>, Refusal> {
    let limit = query.limit(LIST_MAX, LIST_MAX)?;
    let is_ascending = match query.get("order") {
        None | Some("desc") => false,
        Some("asc") => true,
        Some(_) => return Err(Refusal::bad_request("invalid_value", "order is asc or desc.").param("order")),
    };
    let mut all = all(gateway, account).await?;
    all.retain(|file| query.get("purpose").is_none_or(|purpose| purpose == file.purpose));
    all.sort_by(|a, b| (a.created_at, &a.id).cmp(&(b.created_at, &b.id)));
    if !is_ascending {
        all.reverse();
    }
    if let Some(after) = query.get("after") {
        let at = all.iter().position(|file| file.id == after).ok_or_else(|| not_found(after))?;
        all.drain(..=at);
    }
    let has_more = all.len() > limit;
    all.truncate(limit);
    let (first_id, last_id) = (all.first().map(|f| f.id.clone()), all.last().map(|f| f.id.clone()));
    Ok(reply::json_of(StatusCode::OK, &FileList { object: "list", first_id, last_id, has_more, data: all }))
}

/// All files of a tenant, those included that its ended jobs made.
async fn all(gateway: &Gateway, account: &Account) -> Result<Vec<FileObject>, Refusal> {
    let now = gateway.clock.now();
    let (store, tenant) = (&gateway.store, &account.id);
    let files: Vec<File> = documents::list(store, tenant, None, Order::Descending, LIST_MAX)
        .await
        .map_err(|error| unreadable(&error))?;
    let jobs: Vec<Job> = documents::list(store, tenant, None, Order::Descending, LIST_MAX)
        .await
        .map_err(|error| unreadable(&error))?;
    let mut objects: Vec<FileObject> =
        files.iter().filter(|file| !file.is_hidden && now < file.expires_at).map(File::object).collect();
    for job in jobs.iter().filter(|job| job.life.has_ended()) {
        let parts = [Part::Answers, Part::Errors].into_iter().filter(|part| has(gateway, job, *part));
        objects.extend(parts.map(|part| output_object(gateway, job, part)));
    }
    Ok(objects)
}

impl Found {
    fn object(&self, gateway: &Gateway) -> FileObject {
        match self {
            Self::Input(file) => file.object(),
            Self::Output(job, part) => output_object(gateway, job, *part),
        }
    }
}

impl File {
    /// As OpenAI's API has it.
    pub fn object(&self) -> FileObject {
        FileObject {
            id: self.id(),
            object: "file",
            bytes: self.bytes,
            created_at: seconds(self.created_at),
            expires_at: Some(seconds(self.expires_at)),
            filename: self.name.clone(),
            purpose: "batch",
            status: "processed",
            status_details: None,
        }
    }
}

fn output_object(gateway: &Gateway, job: &Job, part: Part) -> FileObject {
    let sums = job.sums.unwrap_or_default();
    let (prefix, bytes) = match part {
        Part::Answers => (OUTPUT, sums.output_bytes),
        Part::Errors | Part::All => (ERRORS, sums.error_bytes),
    };
    let until = job.output_until(gateway.keep_results);
    FileObject {
        id: documents::id(prefix, job.number),
        object: "file",
        bytes,
        created_at: seconds(job.life.ended_at.unwrap_or(job.life.created_at)),
        expires_at: until.map(seconds),
        filename: output_name(job, part),
        purpose: "batch_output",
        status: "processed",
        status_details: None,
    }
}

fn output_name(job: &Job, part: Part) -> String {
    let kind = if part == Part::Answers { "output" } else { "error" };
    format!("{}_{kind}.jsonl", job.id())
}

/// Seconds, as OpenAI's API tells the time.
pub const fn seconds(at: Timestamp) -> u64 {
    at.0 / 1000
}

fn not_found(id: &str) -> Refusal {
    let id: String = id.chars().take(60).collect();
    let message =
        format!("No such File object: {id}. Files go when their time is over or when they are deleted.");
    Refusal::not_found("file_not_found", message).param("id")
}

/// What a document that cannot be had means for the caller.
pub fn unreadable(error: &DocumentError) -> Refusal {
    match error {
        DocumentError::Store(error) => store_failed(error),
        DocumentError::Unreadable(_) => {
            tracing::error!(%error, "a document failed");
            let message = "offpeak cannot read what it stored about this. Its log line says why.";
            Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "document_unreadable", message)
        }
    }
}

/// What a failing disk means for the caller.
pub fn disk_failed(error: &io::Error) -> Refusal {
    tracing::error!(%error, "the folder of files failed");
    let message = "offpeak cannot use its disk at the moment. Try again.";
    Refusal::unavailable("store_unavailable", message, 5)
}
