//! What is done while a backend is out of order, by route.

use offpeak_core::words::Millis;
use serde_json::value::RawValue;

use super::amounts::Least;
use super::field::Field;
use super::patterns::ModelPatterns;
use super::section::Section;
use super::tree::{Route, RouteAnswer};

/// As a stream of events begins.
const EVENTS: [&str; 2] = ["data:", "event:"];

pub(super) fn routes(section: &Section<'_>) -> Vec<Route> {
    let read = |(name, section): (&str, Section<'_>)| {
        let patterns = |key| {
            let texts = section.get(key).and_then(|field| field.texts());
            texts.map_or_else(ModelPatterns::any, ModelPatterns::new)
        };
        let route = Route {
            name: name.to_owned(),
            tenants: patterns("tenants"),
            endpoints: patterns("endpoints"),
            models: patterns("models"),
            elsewhere: section.get("elsewhere").and_then(|f| f.flag()).unwrap_or(true),
            wait: section.get("wait").and_then(|f| f.millis(Least::Zero)).unwrap_or(Millis(0)),
            answer: answer(section.section("answer")),
        };
        section.finish();
        route
    };
    section.named().into_iter().map(read).collect()
}

fn answer(section: Section<'_>) -> Option<RouteAnswer> {
    let status = section.get("status").and_then(|field| field.number(200..=599)).unwrap_or(200);
    let example = "'{ \"choices\": [] }'";
    let body = section.required("body", example).and_then(|field| json_text(&field));
    let stream = section.get("stream").map(|field| event_text(&field));
    section.finish();
    // What is wrong about the stream is written down.
    Some(RouteAnswer { status, body: body?, stream: stream.flatten() })
}

fn json_text(field: &Field<'_>) -> Option<String> {
    let text = field.text()?;
    match serde_json::from_str::<&RawValue>(text) {
        Ok(_) => Some(text.to_owned()),
        Err(error) => field.refuse(format!("must be JSON, as the API answers: {error}")),
    }
}

fn event_text(field: &Field<'_>) -> Option<String> {
    let text = field.text()?.trim();
    if !EVENTS.iter().any(|begin| text.starts_with(begin)) {
        return field.refuse("must be a stream of events, such as \"data: {..}\\n\\ndata: [DONE]\"");
    }
    // An event ends with an empty line.
    Some(format!("{text}\n\n"))
}
