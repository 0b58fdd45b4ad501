//! `/v1/files`.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use serde_json::json;

use crate::clock::SimTime;
use crate::error::ApiError;
use crate::multipart;
use crate::pagination::{limit, page, query};
use crate::provider::Inner;
use crate::reply::{SimBody, SimResponse};

/// Seconds that a file for or of a batch stays when nobody says otherwise: 30 days.
const BATCH_FILE_SECS: u64 = 30 * 24 * 3600;

/// A stored file.
#[derive(Debug, Clone)]
pub(crate) struct StoredFile {
    pub(crate) id: String,
    pub(crate) bytes: Bytes,
    pub(crate) created: SimTime,
    pub(crate) expires: Option<SimTime>,
    pub(crate) filename: String,
    pub(crate) purpose: String,
}

#[derive(Serialize)]
struct FileView<'a> {
    id: &'a str,
    object: &'static str,
    bytes: usize,
    created_at: u64,
    expires_at: Option<u64>,
    filename: &'a str,
    purpose: &'a str,
    status: &'static str,
    status_details: Option<()>,
}

impl StoredFile {
    fn view(&self) -> FileView<'_> {
        FileView {
            id: &self.id,
            object: "file",
            bytes: self.bytes.len(),
            created_at: self.created.secs(),
            expires_at: self.expires.map(SimTime::secs),
            filename: &self.filename,
            purpose: &self.purpose,
            status: "processed",
            status_details: None,
        }
    }
}

/// All files, in the order in which they were stored.
#[derive(Debug, Default)]
pub(crate) struct Files {
    by_serial: BTreeMap<u64, StoredFile>,
    serials: HashMap<String, u64>,
    next: u64,
}

impl Files {
    pub(crate) fn store(&mut self, file: StoredFile) {
        self.serials.insert(file.id.clone(), self.next);
        self.by_serial.insert(self.next, file);
        self.next += 1;
    }

    /// The file `id`, if there is one and it has not expired.
    pub(crate) fn find(&self, id: &str, now: SimTime) -> Option<&StoredFile> {
        let file = self.by_serial.get(self.serials.get(id)?)?;
        file.expires.is_none_or(|at| now < at).then_some(file)
    }

    fn remove(&mut self, id: &str) {
        if let Some(serial) = self.serials.remove(id) {
            self.by_serial.remove(&serial);
        }
    }

    fn forget_expired(&mut self, now: SimTime) {
        self.by_serial.retain(|_, file| file.expires.is_none_or(|at| now < at));
        let kept = &self.by_serial;
        self.serials.retain(|_, serial| kept.contains_key(serial));
    }
}

/// When a file for or of a batch expires that was created at `created`.
pub(crate) fn batch_file_expiry(created: SimTime, secs: Option<u64>) -> SimTime {
    created.plus_millis(secs.unwrap_or(BATCH_FILE_SECS).saturating_mul(1000))
}

/// Checks `expires_after`, wherever it stands: anchor `created_at`, 1 hour to 30 days.
pub(crate) fn check_expiry(
    param: &'static str,
    anchor: Option<&str>,
    secs: Option<u64>,
) -> Result<u64, ApiError> {
    if anchor != Some("created_at") {
        let message = format!("Invalid '{param}.anchor': the only supported value is 'created_at'.");
        return Err(ApiError::invalid(message).param(param).code("invalid_value"));
    }
    secs.filter(|secs| (3_600..=2_592_000).contains(secs)).ok_or_else(|| {
        let message = format!("Invalid '{param}.seconds': expected an integer from 3600 to 2592000.");
        ApiError::invalid(message).param(param).code("invalid_value")
    })
}

/// `POST /v1/files`
pub(crate) fn upload(
    inner: &Inner,
    headers: &HeaderMap,
    body: Bytes,
    now: SimTime,
) -> Result<SimResponse, ApiError> {
    let content_type =
        headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let form = multipart::read(content_type, body)?;
    let (filename, bytes) = form.file.ok_or_else(|| ApiError::missing("file"))?;
    let purpose = form.purpose.ok_or_else(|| ApiError::missing("purpose"))?;
    if !["assistants", "batch", "fine-tune", "vision", "user_data", "evals"].contains(&purpose.as_str()) {
        let supported = "'assistants', 'batch', 'fine-tune', 'vision', 'user_data' and 'evals'";
        return Err(ApiError::invalid_value("purpose", &purpose, supported));
    }
    let is_batch = purpose == "batch";
    if is_batch && Path::new(&filename).extension().is_none_or(|extension| extension != "jsonl") {
        return Err(ApiError::invalid("Invalid file format for Batch API. Must be .jsonl"));
    }
    let limits = &inner.conditions().limits;
    let most = if is_batch { limits.batch_file_bytes } else { limits.file_bytes };
    if bytes.len() as u64 > most {
        let message =
            format!("File is too large: {} bytes. The limit for '{purpose}' is {most} bytes.", bytes.len());
        return Err(ApiError::invalid(message).status(StatusCode::PAYLOAD_TOO_LARGE).param("file"));
    }
    let expires = match (form.expires_anchor, form.expires_seconds) {
        (None, None) if is_batch => Some(batch_file_expiry(now, None)),
        (None, None) => None,
        (anchor, secs) => {
            let secs = secs.and_then(|secs| secs.parse().ok());
            Some(batch_file_expiry(now, Some(check_expiry("expires_after", anchor.as_deref(), secs)?)))
        }
    };
    let file = StoredFile { id: inner.ids.text("file-"), bytes, created: now, expires, filename, purpose };
    let reply = SimResponse::of(&file.view());
    inner.shelf.lock().files.store(file);
    Ok(reply)
}

/// `GET /v1/files`
pub(crate) fn list(inner: &Inner, text: Option<&str>, now: SimTime) -> Result<SimResponse, ApiError> {
    let limit = limit(text, 10_000, 10_000)?;
    let (after, purpose) = (query(text, "after"), query(text, "purpose"));
    let mut shelf = inner.shelf.lock();
    shelf.settle_all(inner, now);
    shelf.files.forget_expired(now);
    let wanted = |file: &&StoredFile| purpose.is_none_or(|purpose| file.purpose == purpose);
    let rows = shelf.files.by_serial.values().filter(wanted).map(|file| (file.id.as_str(), file.view()));
    match query(text, "order") {
        None | Some("desc") => Ok(SimResponse::of(&page(rows.rev(), after, limit)?)),
        Some("asc") => Ok(SimResponse::of(&page(rows, after, limit)?)),
        Some(other) => Err(ApiError::invalid_value("order", other, "'asc' and 'desc'")),
    }
}

/// Runs `look` on the file `id`.
fn with_file<T>(
    inner: &Inner,
    id: &str,
    now: SimTime,
    look: impl FnOnce(&StoredFile) -> T,
) -> Result<T, ApiError> {
    let shelf = inner.shelf.lock();
    let unknown = || ApiError::not_found(format!("No such File object: {id}")).param("id");
    shelf.files.find(id, now).map(look).ok_or_else(unknown)
}

/// `GET /v1/files/{id}`
pub(crate) fn get(inner: &Inner, id: &str, now: SimTime) -> Result<SimResponse, ApiError> {
    with_file(inner, id, now, |file| SimResponse::of(&file.view()))
}

/// `GET /v1/files/{id}/content`
pub(crate) fn content(inner: &Inner, id: &str, now: SimTime) -> Result<SimResponse, ApiError> {
    with_file(inner, id, now, |file| {
        SimResponse::new("application/octet-stream", SimBody::Full(file.bytes.clone()))
    })
}

/// `DELETE /v1/files/{id}`
pub(crate) fn delete(inner: &Inner, id: &str, now: SimTime) -> Result<SimResponse, ApiError> {
    with_file(inner, id, now, |_| ())?;
    inner.shelf.lock().files.remove(id);
    Ok(SimResponse::of(&json!({ "id": id, "object": "file", "deleted": true })))
}
