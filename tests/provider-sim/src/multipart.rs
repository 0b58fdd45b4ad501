//! The form of a file upload, parts in any order.

use bytes::{Bytes, BytesMut};
use futures_util::{FutureExt, stream};
use multer::{Constraints, Multipart};

use crate::error::ApiError;

/// The parts that an upload may have.
#[derive(Debug, Default)]
pub(crate) struct Form {
    pub(crate) file: Option<(String, Bytes)>,
    pub(crate) purpose: Option<String>,
    pub(crate) expires_anchor: Option<String>,
    pub(crate) expires_seconds: Option<String>,
}

/// Reads a form that has arrived whole.
pub(crate) fn read(content_type: &str, body: Bytes) -> Result<Form, ApiError> {
    let boundary = multer::parse_boundary(content_type).map_err(|error| {
        ApiError::invalid(format!(
            "Could not parse multipart form: {error}. Send multipart/form-data with a boundary."
        ))
    })?;
    let whole = stream::once(std::future::ready(Ok::<_, std::convert::Infallible>(body)));
    let mut parts = Multipart::with_constraints(whole, boundary, Constraints::new());
    // Everything is there already, so the parser never waits; if it did, the form would be incomplete.
    let form = collect(&mut parts).now_or_never().unwrap_or(Err(multer::Error::IncompleteStream));
    form.map_err(|error| ApiError::invalid(format!("Could not parse multipart form: {error}.")))
}

async fn collect(parts: &mut Multipart<'_>) -> multer::Result<Form> {
    let mut form = Form::default();
    while let Some(mut part) = parts.next_field().await? {
        let name = part.name().unwrap_or_default().to_owned();
        if name == "file" {
            let filename = part.file_name().unwrap_or_default().to_owned();
            form.file = Some((filename, content(&mut part).await?));
            continue;
        }
        let text = part.text().await?;
        match name.as_str() {
            "purpose" => form.purpose = Some(text),
            "expires_after[anchor]" => form.expires_anchor = Some(text),
            "expires_after[seconds]" => form.expires_seconds = Some(text),
            _ => {}
        }
    }
    Ok(form)
}

/// The bytes of a part: without a copy when they come in one piece, as they do when the whole form has arrived.
async fn content(part: &mut multer::Field<'_>) -> multer::Result<Bytes> {
    let Some(first) = part.chunk().await? else { return Ok(Bytes::new()) };
    let Some(second) = part.chunk().await? else { return Ok(first) };
    let mut all = BytesMut::from(first);
    all.extend_from_slice(&second);
    while let Some(more) = part.chunk().await? {
        all.extend_from_slice(&more);
    }
    Ok(all.freeze())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_come_in_any_order() {
        let file = "--b\r\nContent-Disposition: form-data; name=\"file\"; filename=\"x.jsonl\"\r\n\
                    Content-Type: application/octet-stream\r\n\r\nline 1\r\nline 2\n\r\n";
        let rest = "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
                    --b\r\nContent-Disposition: form-data; name=\"expires_after[seconds]\"\r\n\r\n3600\r\n";
        for body in [format!("{file}{rest}--b--\r\n"), format!("{rest}{file}--b--\r\n")] {
            let form = read("multipart/form-data; boundary=b", body.into()).unwrap();
            assert_eq!(form.file.unwrap(), ("x.jsonl".to_owned(), Bytes::from("line 1\r\nline 2\n")));
            assert_eq!(form.purpose.as_deref(), Some("batch"));
            assert_eq!(form.expires_seconds.as_deref(), Some("3600"));
        }
        assert!(read("multipart/form-data; boundary=b", file.into()).is_err(), "cut off");
        assert!(read("application/json", "{}".into()).is_err());
    }
}
