//! /v1/uploads: a file that comes in parts, which SDKs use for large ones. The parts are put together, and checked, when
//! the upload is completed.

use std::sync::Arc;

use futures_util::StreamExt;
use http::header::CONTENT_TYPE;
use http::{Method, Request, Response, StatusCode};
use multer::Multipart;
use offpeak_core::words::{Millis, TenantId, Timestamp};
use serde::{Deserialize, Serialize};
use tokio::io::AsyncReadExt;

use crate::body::{ReplyBody, RequestBody};
use crate::defer::store_failed;
use crate::documents::file::File;
use crate::documents::upload::{Part, Status, Upload};
use crate::documents::{self};
use crate::gateway::Gateway;
use crate::ingress::files::upload::{self as whole, FILE_MAX, LINES_MAX};
use crate::ingress::files::{FileObject, disk_failed, no_such_call, seconds, unreadable};
use crate::ingress::pieces::Pieces;
use crate::ingress::read_body;
use crate::jsonl::{Checker, Limits};
use crate::reply::{self, Dialect, Refusal};
use crate::tenant::{Account, Identified};

/// Where uploads are.
pub const PATH: &str = "/v1/uploads";

/// The largest part, as OpenAI has it, and the bytes of the form around it.
const PART_MAX: u64 = 64 << 20;
const FORM_MAX: u64 = 64 << 10;

/// An upload that is not completed by then is dropped, with its parts.
const OPEN_FOR: Millis = Millis::from_hours(1);

/// The largest call that is not a part.
const CALL_MAX: usize = 1 << 20;

/// Bytes that are read and checked at once when parts are put together.
const AT_ONCE: usize = 256 << 10;

/// Answers a call about uploads.
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
            create(gateway, caller.account(), request).await
        }
        (&Method::POST, [id, "parts"]) => add_part(gateway, caller.account(), id, request).await,
        (&Method::POST, [id, "complete"]) => complete(gateway, caller.account(), id, request).await,
        (&Method::POST, [id, "cancel"]) => cancel(gateway, caller.account(), id).await,
        (_, names) => {
            let allow = match names {
                [] | [_, "parts" | "complete" | "cancel"] => "POST",
                _ => "",
            };
            let paths = "POST /v1/uploads and POST /v1/uploads/{id}/parts, /complete and /cancel";
            Err(no_such_call(&method, paths, allow))
        }
    }
}

#[derive(Serialize)]
struct UploadObject {
    id: String,
    object: &'static str,
    bytes: u64,
    created_at: u64,
    expires_at: u64,
    filename: String,
    purpose: &'static str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    file: Option<FileObject>,
}

fn shown(upload: &Upload, now: Timestamp, file: Option<&File>) -> Response<ReplyBody> {
    let object = UploadObject {
        id: upload.id(),
        object: "upload",
        bytes: upload.bytes,
        created_at: seconds(upload.created_at),
        expires_at: seconds(upload.expires_at),
        filename: upload.name.clone(),
        purpose: "batch",
        status: upload.status_at(now),
        file: file.map(File::object),
    };
    reply::json_of(StatusCode::OK, &object)
}

#[derive(Deserialize)]
struct Create {
    bytes: u64,
    filename: String,
    purpose: String,
    expires_after: Option<ExpiresAfter>,
}

#[derive(Deserialize)]
struct ExpiresAfter {
    anchor: String,
    seconds: u64,
}

async fn create(
    gateway: &Arc<Gateway>,
    account: &Account,
    request: Request<RequestBody>,
) -> Result<Response<ReplyBody>, Refusal> {
    let (head, body) = request.into_parts();
    let body = read_body(&head.headers, body, CALL_MAX, |_| Ok(())).await?;
    let call: Create = serde_json::from_slice(&body).map_err(|error| unreadable_call(&error))?;
    whole::check_purpose(Some(&call.purpose))?;
    whole::check_name(&call.filename)?;
    if !(1..=FILE_MAX).contains(&call.bytes) {
        let message = format!("bytes must be from 1 to {FILE_MAX}. Split the file into several.");
        return Err(Refusal::bad_request("invalid_value", message).param("bytes"));
    }
    let after = call.expires_after.as_ref();
    let seconds = after.map(|after| after.seconds.to_string());
    let kept = whole::kept_for(after.map(|after| after.anchor.as_str()), seconds.as_deref())?;
    let now = gateway.clock.now();
    let upload = Upload {
        number: gateway.numbers.next(now),
        tenant: account.id.clone(),
        name: call.filename,
        bytes: call.bytes,
        kept,
        created_at: now,
        expires_at: now.after(OPEN_FOR),
        status: Status::Pending,
    };
    documents::keep(&gateway.store, &upload).await.map_err(|error| unreadable(&error))?;
    Ok(shown(&upload, now, None))
}

fn unreadable_call(error: &serde_json::Error) -> Refusal {
    Refusal::bad_request(
        "invalid_json",
        format!("The call cannot be read: {error}. It is a JSON object as the SDKs send it."),
    )
}

async fn find(gateway: &Gateway, account: &Account, id: &str) -> Result<Upload, Refusal> {
    let not_found = || {
        let id: String = id.chars().take(60).collect();
        Refusal::not_found("upload_not_found", format!("No such upload: '{id}'.")).param("id")
    };
    let number = documents::number(documents::upload::PREFIX, id).ok_or_else(not_found)?;
    let found =
        documents::get(&gateway.store, &account.id, number).await.map_err(|error| unreadable(&error))?;
    found.ok_or_else(not_found)
}

/// The upload, if parts can still be added to it.
async fn pending(gateway: &Gateway, account: &Account, id: &str) -> Result<Upload, Refusal> {
    let upload = find(gateway, account, id).await?;
    match upload.status_at(gateway.clock.now()) {
        "pending" => Ok(upload),
        status => {
            let message = format!("The upload is {status}. Begin a new one.");
            Err(Refusal::bad_request("upload_not_pending", message).param("id"))
        }
    }
}

async fn add_part(
    gateway: &Arc<Gateway>,
    account: &Account,
    id: &str,
    request: Request<RequestBody>,
) -> Result<Response<ReplyBody>, Refusal> {
    #[derive(Serialize)]
    struct PartObject<'a> {
        id: String,
        object: &'static str,
        created_at: u64,
        upload_id: &'a str,
    }
    let (head, body) = request.into_parts();
    let mut pieces = Pieces::new(body, PART_MAX + FORM_MAX);
    let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let taken = match (pending(gateway, account, id).await, multer::parse_boundary(kind)) {
        (Err(refusal), _) => Err(refusal),
        (Ok(_), Err(_)) => Err(whole::not_a_form()),
        (Ok(upload), Ok(boundary)) => take_part(gateway, &upload, &mut pieces, boundary).await,
    };
    let part = match (taken, pieces.broken()) {
        (Ok(part), _) => part,
        (Err(_), Some(broken)) => return Err(broken.into()),
        (Err(refusal), None) => {
            pieces.drain().await;
            return Err(refusal);
        }
    };
    documents::keep(&gateway.store, &part).await.map_err(|error| unreadable(&error))?;
    let created_at = seconds(gateway.clock.now());
    Ok(reply::json_of(
        StatusCode::OK,
        &PartObject { id: part.id(), object: "upload.part", created_at, upload_id: id },
    ))
}

async fn take_part(
    gateway: &Gateway,
    upload: &Upload,
    pieces: &mut Pieces,
    boundary: String,
) -> Result<Part, Refusal> {
    let mut form = Multipart::new(pieces.by_ref(), boundary);
    while let Some(mut field) = form.next_field().await.map_err(|error| whole::broken_form(&error))? {
        if field.name() != Some("data") {
            continue;
        }
        let number = gateway.numbers.next(gateway.clock.now());
        let mut draft = gateway.spool.begin(number).await.map_err(|error| disk_failed(&error))?;
        let mut bytes = 0;
        while let Some(piece) = field.chunk().await.map_err(|error| whole::broken_form(&error))? {
            draft.write(&piece).await.map_err(|error| disk_failed(&error))?;
            bytes += piece.len() as u64;
        }
        draft.finish().await.map_err(|error| disk_failed(&error))?;
        let tenant: TenantId = upload.tenant.clone();
        return Ok(Part { number, tenant, upload: upload.number, bytes, expires_at: upload.expires_at });
    }
    Err(whole::missing("data"))
}

#[derive(Deserialize)]
struct Complete {
    part_ids: Vec<String>,
    md5: Option<String>,
}

async fn complete(
    gateway: &Arc<Gateway>,
    account: &Account,
    id: &str,
    request: Request<RequestBody>,
) -> Result<Response<ReplyBody>, Refusal> {
    let (head, body) = request.into_parts();
    let body = read_body(&head.headers, body, CALL_MAX, |_| Ok(())).await?;
    let call: Complete = serde_json::from_slice(&body).map_err(|error| unreadable_call(&error))?;
    let mut upload = find(gateway, account, id).await?;
    if let Status::Completed(number) = upload.status {
        // An SDK that did not hear of it asks again.
        let file =
            documents::get(&gateway.store, &account.id, number).await.map_err(|error| unreadable(&error))?;
        return Ok(shown(&upload, gateway.clock.now(), file.as_ref()));
    }
    pending(gateway, account, id).await?;
    let parts = parts(gateway, account, &upload, &call.part_ids).await?;
    let file = join(gateway, &upload, &parts, call.md5.as_deref()).await?;
    upload.status = Status::Completed(file.number);
    let mut changes = vec![
        documents::document(&file).map_err(|error| unreadable(&error))?,
        documents::document(&upload).map_err(|error| unreadable(&error))?,
    ];
    changes.extend(parts.iter().map(documents::removal));
    gateway.store.keep(changes).await.map_err(|error| store_failed(&error))?;
    for part in &parts {
        gateway.spool.remove(part.number).await.map_err(|error| disk_failed(&error))?;
    }
    Ok(shown(&upload, gateway.clock.now(), Some(&file)))
}

/// The parts of these names, which must be the upload's and together as long as it said.
async fn parts(
    gateway: &Gateway,
    account: &Account,
    upload: &Upload,
    ids: &[String],
) -> Result<Vec<Part>, Refusal> {
    let mut parts = Vec::with_capacity(ids.len());
    for id in ids {
        let unknown = || {
            let id: String = id.chars().take(60).collect();
            Refusal::bad_request("part_not_found", format!("The upload has no part '{id}'."))
                .param("part_ids")
        };
        let number = documents::number(documents::upload::PART_PREFIX, id).ok_or_else(unknown)?;
        let part: Option<Part> =
            documents::get(&gateway.store, &account.id, number).await.map_err(|error| unreadable(&error))?;
        parts.push(part.filter(|part| part.upload == upload.number).ok_or_else(unknown)?);
    }
    let bytes: u64 = parts.iter().map(|part| part.bytes).sum();
    if bytes != upload.bytes {
        let message =
            format!("The parts have {bytes} bytes together; the upload was begun for {}.", upload.bytes);
        return Err(Refusal::bad_request("wrong_size", message).param("part_ids"));
    }
    Ok(parts)
}

/// Puts the parts together and checks them on the way.
async fn join(
    gateway: &Gateway,
    upload: &Upload,
    parts: &[Part],
    md5: Option<&str>,
) -> Result<File, Refusal> {
    use md5::{Digest, Md5};

    let now = gateway.clock.now();
    let number = gateway.numbers.next(now);
    let mut draft = gateway.spool.begin(number).await.map_err(|error| disk_failed(&error))?;
    let mut checker = Checker::new(Limits { lines: LINES_MAX, line_bytes: gateway.max_body });
    let mut hash = Md5::new();
    let mut buffer = vec![0; AT_ONCE];
    for part in parts {
        let mut piece = gateway.spool.read(part.number, 0).await.map_err(|error| disk_failed(&error))?;
        loop {
            let read = piece.read(&mut buffer).await.map_err(|error| disk_failed(&error))?;
            let data = buffer.get(..read).filter(|data| !data.is_empty());
            let Some(data) = data else { break };
            checker.push(data);
            if md5.is_some() {
                hash.update(data);
            }
            draft.write(data).await.map_err(|error| disk_failed(&error))?;
        }
    }
    let found = format!("{:x}", hash.finalize());
    if md5.is_some_and(|given| !given.eq_ignore_ascii_case(&found)) {
        let message = format!("The parts' MD5 is {found}, not what was given. Upload the file again.");
        return Err(Refusal::bad_request("checksum_mismatch", message).param("md5"));
    }
    draft.finish().await.map_err(|error| disk_failed(&error))?;
    Ok(File {
        number,
        tenant: upload.tenant.clone(),
        name: upload.name.clone(),
        bytes: upload.bytes,
        created_at: now,
        expires_at: now.after(upload.kept),
        is_hidden: false,
        check: checker.finish(),
    })
}

async fn cancel(gateway: &Gateway, account: &Account, id: &str) -> Result<Response<ReplyBody>, Refusal> {
    let mut upload = pending(gateway, account, id).await?;
    upload.status = Status::Cancelled;
    documents::keep(&gateway.store, &upload).await.map_err(|error| unreadable(&error))?;
    // Its parts go when their time is over.
    Ok(shown(&upload, gateway.clock.now(), None))
}
