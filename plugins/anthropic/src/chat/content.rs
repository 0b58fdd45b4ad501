//! What a message holds: texts, images, documents.

use std::borrow::Cow;

use serde_json::value::RawValue;

use super::json::{Object, Out, Place, Refusal, list, text};

/// Media types of images that Anthropic's API takes as base64.
const IMAGES: [&str; 4] = ["image/jpeg", "image/png", "image/gif", "image/webp"];
const PDF: &str = "application/pdf";

/// Which parts a message may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parts {
    /// Texts.
    Texts,
    /// Texts, images and files: what users say.
    User,
    /// Texts and refusals: what the model said.
    Assistant,
}

/// Writes content as it stands in a message: a text, or a list of blocks. Empty texts say nothing, and Anthropic's API
/// refuses them, so they are left out where anything else is said.
pub(super) fn write(json: &RawValue, place: &Place<'_>, parts: Parts, out: &mut Out) -> Result<(), Refusal> {
    if json.get().starts_with('"') {
        out.text(&text(json, place)?);
        return Ok(());
    }
    let begin = out.len();
    out.raw("[");
    let empty = out.len();
    write_blocks(json, place, parts, out)?;
    if out.len() == empty {
        out.truncate(begin);
        out.raw("\"\"");
    } else {
        out.raw("]");
    }
    Ok(())
}

/// Writes content as blocks into a list that has been begun.
pub(super) fn write_blocks(
    json: &RawValue,
    place: &Place<'_>,
    parts: Parts,
    out: &mut Out,
) -> Result<(), Refusal> {
    if json.get().starts_with('"') {
        write_text(&text(json, place)?, out);
        return Ok(());
    }
    if !json.get().starts_with('[') {
        return Err(Refusal::invalid(place, "a text or a list of parts"));
    }
    for (index, part) in list(json, place)?.into_iter().enumerate() {
        let place = place.entry(index);
        write_part(Object::of(part, place)?, parts, out)?;
    }
    Ok(())
}

/// A block of text, unless it is empty.
pub(super) fn write_text(text: &str, out: &mut Out) {
    if !text.is_empty() {
        out.separate();
        out.raw("{\"type\":\"text\",\"text\":");
        out.text(text);
        out.raw("}");
    }
}

/// The texts of content that has nothing else.
pub(super) fn texts<'a>(json: &'a RawValue, place: &Place<'_>) -> Result<Vec<Cow<'a, str>>, Refusal> {
    if json.get().starts_with('"') {
        return Ok(vec![text(json, place)?]);
    }
    let texts = list(json, place)?.into_iter().enumerate().map(|(index, part)| {
        let mut part = Object::of(part, place.entry(index))?;
        let kind = part.require_text("type")?;
        if kind != "text" {
            return Err(no_such_part(&part.place(), &kind, Parts::Texts));
        }
        let text = part.require_text("text")?;
        refuse_breakpoint(&mut part)?;
        part.finish()?;
        Ok(text)
    });
    texts.collect()
}

fn write_part(mut part: Object<'_, '_>, parts: Parts, out: &mut Out) -> Result<(), Refusal> {
    let kind = part.require_text("type")?;
    refuse_breakpoint(&mut part)?;
    match (&*kind, parts) {
        ("text", _) => write_text(&part.require_text("text")?, out),
        ("refusal", Parts::Assistant) => write_text(&part.require_text("refusal")?, out),
        ("image_url", Parts::User) => write_image(&mut part, out)?,
        ("file", Parts::User) => write_file(&mut part, out)?,
        _ => return Err(no_such_part(&part.place(), &kind, parts)),
    }
    part.finish()
}

fn no_such_part(place: &Place<'_>, kind: &str, parts: Parts) -> Refusal {
    let taken = match parts {
        Parts::Texts => "only texts can stand here.",
        Parts::User => "it takes texts, images and PDF files.",
        Parts::Assistant => "only texts and refusals can stand here.",
    };
    Refusal::unsupported_value(&place.member("type"), kind, taken)
}

fn refuse_breakpoint(part: &mut Object<'_, '_>) -> Result<(), Refusal> {
    const NAME: &str = "prompt_cache_breakpoint";
    match part.take(NAME) {
        None => Ok(()),
        Some(_) => Err(Refusal::unsupported(
            &part.place().member(NAME),
            "its lifetimes are others; leave it out, or call /v1/messages with `cache_control`.",
        )),
    }
}

fn write_image(part: &mut Object<'_, '_>, out: &mut Out) -> Result<(), Refusal> {
    let part_place = part.place();
    let mut image = Object::of(part.require("image_url")?, part_place.member("image_url"))?;
    let url = image.require_text("url")?;
    let place = image.place();
    match image.text("detail")?.as_deref() {
        // Every image is looked at as closely as its size allows.
        None | Some("auto" | "high") => {}
        Some(detail) => {
            let why = "images are always looked at closely; leave it out.";
            return Err(Refusal::unsupported_value(&place.member("detail"), detail, why));
        }
    }
    let place = place.member("url");
    out.separate();
    out.raw("{\"type\":\"image\",\"source\":");
    if has_prefix(&url, "data:") {
        let (media_type, data) = data_uri(&url, &place)?;
        if !IMAGES.contains(&&*media_type) {
            let why = "images are taken as JPEG, PNG, GIF or WebP.";
            return Err(Refusal::unsupported_value(&place, &media_type, why));
        }
        write_base64(&media_type, data, out);
    } else if has_prefix(&url, "https://") || has_prefix(&url, "http://") {
        out.raw("{\"type\":\"url\",\"url\":");
        out.text(&url);
        out.raw("}");
    } else {
        return Err(Refusal::invalid(&place, "an http(s) URL or a data URI with base64"));
    }
    out.raw("}");
    image.finish()
}

fn write_file(part: &mut Object<'_, '_>, out: &mut Out) -> Result<(), Refusal> {
    let part_place = part.place();
    let mut file = Object::of(part.require("file")?, part_place.member("file"))?;
    let place = file.place();
    if file.take("file_id").is_some() {
        let why = "the file is not there; send it as `file_data`.";
        return Err(Refusal::unsupported(&place.member("file_id"), why));
    }
    let uri = file.require_text("file_data")?;
    let place = place.member("file_data");
    let (media_type, data) = data_uri(&uri, &place)?;
    if media_type != PDF {
        return Err(Refusal::unsupported_value(&place, &media_type, "files are taken as PDF."));
    }
    out.separate();
    out.raw("{\"type\":\"document\",\"source\":");
    write_base64(&media_type, data, out);
    if let Some(name) = file.text("filename")? {
        out.member("title");
        out.text(&name);
    }
    out.raw("}");
    file.finish()
}

fn write_base64(media_type: &str, data: &str, out: &mut Out) {
    out.raw("{\"type\":\"base64\",\"media_type\":");
    out.text(media_type);
    out.raw(",\"data\":");
    out.text(data);
    out.raw("}");
}

/// Media type, in lower case, and base64 of a data URI.
fn data_uri<'u>(uri: &'u str, place: &Place<'_>) -> Result<(String, &'u str), Refusal> {
    uri.split_once(',')
        .and_then(|(head, data)| {
            let (scheme, kind) = head.split_at_checked("data:".len())?;
            let (media_type, encoding) = kind.rsplit_once(';')?;
            let is_base64 = scheme.eq_ignore_ascii_case("data:") && encoding.eq_ignore_ascii_case("base64");
            is_base64.then(|| (media_type.to_ascii_lowercase(), data))
        })
        .ok_or_else(|| Refusal::invalid(place, "a data URI with base64, such as data:image/png;base64,…"))
}

fn has_prefix(text: &str, prefix: &str) -> bool {
    text.get(..prefix.len()).is_some_and(|start| start.eq_ignore_ascii_case(prefix))
}
