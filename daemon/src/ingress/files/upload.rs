//! Takes in an uploaded file: to the disk as it arrives, and checked on the way.

use std::sync::Arc;

use futures_util::StreamExt;
use http::Request;
use http::header::CONTENT_TYPE;
use multer::{Constraints, Field, Multipart, SizeLimit};
use offpeak_core::words::Millis;

use crate::body::RequestBody;
use crate::documents::file::{self, File};
use crate::documents::{self};
use crate::gateway::Gateway;
use crate::ingress::files::{disk_failed, unreadable};
use crate::ingress::pieces::Pieces;
use crate::jsonl::{Checker, Limits};
use crate::reply::Refusal;
use crate::spool::Draft;
use crate::tenant::Account;

/// The largest file.
pub const FILE_MAX: u64 = 512 << 20;

/// Requests of a job.
pub const LINES_MAX: u64 = 50_000;

/// A field other than the file.
const FIELD_MAX: u64 = 4 << 10;

/// Bytes of the form around the file.
const FORM_MAX: u64 = 64 << 10;

/// How long a client may want a file to be kept.
const KEPT_S: std::ops::RangeInclusive<u64> = 3600..=2_592_000;

/// The form of an upload, as far as it has arrived.
#[derive(Default)]
struct Form {
    purpose: Option<String>,
    anchor: Option<String>,
    seconds: Option<String>,
    /// The file, not yet for good: what breaks off or is refused leaves nothing behind.
    file: Option<(Draft, File)>,
}

/// Takes a file in. It is durable when this returns.
pub async fn take(
    gateway: &Arc<Gateway>,
    account: &Account,
    request: Request<RequestBody>,
) -> Result<File, Refusal> {
    let (head, body) = request.into_parts();
    let mut pieces = Pieces::new(body, FILE_MAX + FORM_MAX);
    let kind = head.headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok()).unwrap_or_default();
    let taken = match multer::parse_boundary(kind) {
        Ok(boundary) => take_form(gateway, account, &mut pieces, boundary).await,
        Err(_) => Err(not_a_form()),
    };
    match (taken, pieces.broken()) {
        (Ok(file), _) => Ok(file),
        (Err(_), Some(broken)) => Err(broken.into()),
        (Err(refusal), None) => {
            pieces.drain().await;
            Err(refusal)
        }
    }
}

async fn take_form(
    gateway: &Arc<Gateway>,
    account: &Account,
    pieces: &mut Pieces,
    boundary: String,
) -> Result<File, Refusal> {
    let sizes = SizeLimit::new().per_field(FIELD_MAX).for_field("file", FILE_MAX);
    let constraints = Constraints::new().size_limit(sizes);
    let mut form = Form::default();
    let mut parts = Multipart::with_constraints(pieces.by_ref(), boundary, constraints);
    while let Some(part) = parts.next_field().await.map_err(|error| broken_form(&error))? {
        match part.name() {
            Some("file") if form.file.is_some() => return Err(second_file()),
            Some("file") => form.file = Some(spool(gateway, account, part).await?),
            Some("purpose") => form.purpose = Some(text(part).await?),
            Some("expires_after[anchor]") => form.anchor = Some(text(part).await?),
            Some("expires_after[seconds]") => form.seconds = Some(text(part).await?),
            _ => skip(part).await?,
        }
    }
    let (draft, mut file) = form.file.take().ok_or_else(|| missing("file"))?;
    file.expires_at = file.created_at.after(form.check()?);
    draft.finish().await.map_err(|error| disk_failed(&error))?;
    documents::keep(&gateway.store, &file).await.map_err(|error| unreadable(&error))?;
    tracing::info!(
        file = %file.id(), tenant = %file.tenant, bytes = file.bytes, lines = file.check.lines,
        problems = file.check.problems.len(), "a file was uploaded"
    );
    Ok(file)
}

impl Form {
    /// Whether the other fields are as they must be; returns how long the file is kept.
    fn check(&self) -> Result<Millis, Refusal> {
        check_purpose(self.purpose.as_deref())?;
        kept_for(self.anchor.as_deref(), self.seconds.as_deref())
    }
}

/// offpeak keeps files for one purpose.
pub fn check_purpose(purpose: Option<&str>) -> Result<(), Refusal> {
    match purpose {
        Some("batch") => Ok(()),
        None => Err(missing("purpose")),
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            let message = format!(
                "offpeak keeps files for batches only: the purpose must be 'batch', not '{other}'. Send other files to the \
                 provider itself."
            );
            Err(Refusal::bad_request("invalid_purpose", message).param("purpose"))
        }
    }
}

/// What `expires_after` says.
pub fn kept_for(anchor: Option<&str>, seconds: Option<&str>) -> Result<Millis, Refusal> {
    let bad = || {
        let message = format!(
            "expires_after must be {{\"anchor\": \"created_at\", \"seconds\": {} to {}}}.",
            KEPT_S.start(),
            KEPT_S.end()
        );
        Refusal::bad_request("invalid_value", message).param("expires_after")
    };
    match (anchor, seconds) {
        (None, None) => Ok(file::KEPT),
        (Some("created_at"), Some(seconds)) => {
            let seconds = seconds.parse().ok().filter(|seconds| KEPT_S.contains(seconds));
            seconds.map(Millis::from_secs).ok_or_else(bad)
        }
        _ => Err(bad()),
    }
}

/// Writes the file's part to the disk and checks it.
async fn spool(
    gateway: &Arc<Gateway>,
    account: &Account,
    mut part: Field<'_>,
) -> Result<(Draft, File), Refusal> {
    let name = part.file_name().unwrap_or_default().to_owned();
    check_name(&name)?;
    let now = gateway.clock.now();
    let number = gateway.numbers.next(now);
    let mut draft = gateway.spool.begin(number).await.map_err(|error| disk_failed(&error))?;
    let mut checker = Checker::new(Limits { lines: LINES_MAX, line_bytes: gateway.max_body });
    let mut bytes = 0;
    while let Some(piece) = part.chunk().await.map_err(|error| broken_form(&error))? {
        checker.push(&piece);
        draft.write(&piece).await.map_err(|error| disk_failed(&error))?;
        bytes += piece.len() as u64;
    }
    let file = File {
        number,
        tenant: account.id.clone(),
        name,
        bytes,
        created_at: now,
        expires_at: now.after(file::KEPT),
        is_hidden: false,
        check: checker.finish(),
    };
    Ok((draft, file))
}

/// OpenAI's own condition, in its own words.
pub fn check_name(name: &str) -> Result<(), Refusal> {
    let ending = name.rsplit('.').next().filter(|_| name.contains('.')).unwrap_or_default();
    if ending.eq_ignore_ascii_case("jsonl") {
        return Ok(());
    }
    let message = "Invalid file format for Batch API. Must be .jsonl";
    Err(Refusal::bad_request("invalid_file_format", message).param("file"))
}

async fn text(part: Field<'_>) -> Result<String, Refusal> {
    part.text().await.map_err(|error| broken_form(&error))
}

async fn skip(mut part: Field<'_>) -> Result<(), Refusal> {
    while part.chunk().await.map_err(|error| broken_form(&error))?.is_some() {}
    Ok(())
}

fn second_file() -> Refusal {
    let message = "The form has two parts named 'file'. Upload one file at a time.";
    Refusal::bad_request("duplicate_parameter", message).param("file")
}

/// A field is not there.
pub fn missing(field: &'static str) -> Refusal {
    let message =
        format!("Missing required parameter: '{field}'. Upload a file as a form with 'file' and 'purpose'.");
    Refusal::bad_request("missing_required_parameter", message).param(field)
}

/// It is no form.
pub fn not_a_form() -> Refusal {
    let message = "A file is uploaded as multipart/form-data with the parts 'file' and 'purpose'.";
    Refusal::bad_request("invalid_content_type", message)
}

/// It is a form, but no whole or proper one.
pub fn broken_form(error: &multer::Error) -> Refusal {
    let message = match error {
        multer::Error::FieldSizeExceeded { limit, field_name } => {
            let name = field_name.as_deref().unwrap_or("a part");
            format!("'{name}' is larger than {limit} bytes. Split the file into several.")
        }
        other => format!("The form cannot be read: {other}."),
    };
    Refusal::bad_request("invalid_form", message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_end_as_open_ai_wants() {
        assert!(check_name("a.jsonl").is_ok() && check_name("A.B.JSONL").is_ok());
        for name in ["", "jsonl", "a.json", "a.jsonl.gz", "a"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }

    #[test]
    fn a_file_is_kept_as_asked() {
        assert_eq!(kept_for(None, None), Ok(file::KEPT));
        assert_eq!(kept_for(Some("created_at"), Some("3600")), Ok(Millis::from_hours(1)));
        for (anchor, seconds) in [
            (Some("created_at"), None),
            (None, Some("3600")),
            (Some("x"), Some("3600")),
            (Some("created_at"), Some("60")),
        ] {
            assert!(kept_for(anchor, seconds).is_err());
        }
    }
}
