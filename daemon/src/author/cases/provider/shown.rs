//! How a provider plugin's answers stand in cases.

use offpeak_host::values::provider::{self, Effect, ItemOutcome};
use serde_json::{Map, Value, json};

use super::super::words::{Pairs, shown, shown_headers, shown_mode, shown_ran};

/// Items stand in lines at most providers: each for itself then, and else all as they are.
pub(super) fn shown_lines(bytes: &[u8]) -> Value {
    let lines: Vec<_> = bytes.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).collect();
    lines.into_iter().map(shown).collect()
}

pub(super) fn shown_step(step: &provider::Step) -> Value {
    let mut told = Map::new();
    let (name, effect) = shown_effect(&step.effect);
    told.insert(name.to_owned(), effect);
    told.insert("provider_id".to_owned(), json!(step.provider_id));
    let progress = step.progress.as_ref();
    let progress = progress.map(|done| json!({ "completed": done.completed, "failed": done.failed }));
    told.insert("progress".to_owned(), json!(progress));
    Value::Object(told)
}

fn shown_effect(effect: &Effect) -> (&'static str, Value) {
    match effect {
        Effect::Call(request) => (
            "call",
            json!({
                "method": request.method,
                "path": request.path,
                "headers": shown_headers(&request.headers),
                "body": shown(&request.body),
            }),
        ),
        Effect::Upload(upload) => (
            "upload",
            json!({
                "method": upload.method,
                "path": upload.path,
                "headers": shown_headers(&upload.headers),
                "framing": shown_framing(&upload.framing),
            }),
        ),
        Effect::Wait(ms) => ("wait_ms", json!(ms)),
        Effect::Read(reading) => (
            "read",
            json!({
                "path": reading.path,
                "headers": shown_headers(&reading.headers),
                "source": reading.source,
                "form": match reading.form {
                    provider::ReadingForm::Lines => "lines",
                    provider::ReadingForm::One => "one",
                },
            }),
        ),
        Effect::Results(results) => ("results", results.iter().map(shown_result).collect()),
        Effect::Finished(finish) => (
            "finished",
            json!({
                "ending": match finish.ending {
                    provider::Ending::Completed => "completed",
                    provider::Ending::Expired => "expired",
                    provider::Ending::Cancelled => "cancelled",
                },
                "missing": shown_ran(finish.missing),
            }),
        ),
        Effect::Failed(failure) => (
            "failed",
            json!({
                "ran": shown_ran(failure.ran),
                "temporary": failure.temporary,
                "retry_after_s": failure.retry_after_s,
                "code": failure.code,
                "message": failure.message,
            }),
        ),
    }
}

fn shown_framing(framing: &provider::Framing) -> Value {
    match framing {
        provider::Framing::Lines => json!("lines"),
        provider::Framing::Multipart(form) => json!({ "multipart": {
            "fields": form.fields.iter().cloned().collect::<Pairs>(),
            "file_field": form.file_field,
            "file_name": form.file_name,
            "content_type": form.content_type,
        } }),
        provider::Framing::JsonArray(surround) => {
            json!({ "json_array": { "before": surround.before, "after": surround.after } })
        }
    }
}

fn shown_result(result: &provider::ItemResult) -> Value {
    match &result.outcome {
        ItemOutcome::Response(response) => json!({
            "id": result.id,
            "status": response.status,
            "body": shown(&response.body),
            "request_id": response.request_id,
        }),
        ItemOutcome::Failed(failure) => json!({
            "id": result.id,
            "ran": shown_ran(failure.ran),
            "code": failure.code,
            "message": failure.message,
        }),
    }
}

pub(super) fn shown_decoded(decoded: &provider::Decoded) -> Value {
    match decoded {
        provider::Decoded::Result(result) => shown_result(result),
        provider::Decoded::Garbage(why) => json!({ "garbage": why }),
    }
}

pub(super) fn shown_offer(offer: &provider::Offer) -> Value {
    json!({
        "name": offer.name,
        "mode": shown_mode(offer.mode),
        "price_permille": offer.price_permille,
        "window_ms": offer.window_ms,
        "usual_ms": offer.usual_ms,
    })
}

pub(super) fn shown_limits(limits: &provider::BatchLimits) -> Value {
    json!({
        "max_requests": limits.max_requests,
        "max_bytes": limits.max_bytes,
        "item_overhead_bytes": limits.item_overhead_bytes,
        "max_batches_an_hour": limits.max_batches_an_hour,
    })
}

pub(super) fn shown_prepared(prepared: &provider::Prepared) -> Value {
    json!({
        "path": prepared.path,
        "set_headers": shown_headers(&prepared.set_headers),
        "default_headers": shown_headers(&prepared.default_headers),
        "remove_headers": prepared.remove_headers,
        "body": match &prepared.body {
            provider::BodyPlan::Unchanged => json!("unchanged"),
            provider::BodyPlan::SetMembers(members) => json!({
                "set": members.iter().map(shown_member).collect::<Map<_, _>>(),
            }),
            provider::BodyPlan::Rewrite => json!("rewrite"),
        },
        "answer": match prepared.answer {
            provider::AnswerPlan::Unchanged => "unchanged",
            provider::AnswerPlan::Rewrite => "rewrite",
        },
    })
}

/// A member's JSON as what it says; as text, if it says nothing.
fn shown_member(member: &provider::Member) -> (String, Value) {
    let value = serde_json::from_str(&member.json).unwrap_or_else(|_| json!(member.json));
    (member.name.clone(), value)
}

/// The events of a stream, each by its data; what is no event of a stream is shown as it is.
pub(super) fn shown_events(stream: &[u8]) -> Value {
    let Ok(text) = std::str::from_utf8(stream) else { return shown(stream) };
    let blocks = text.split("\n\n").map(str::trim).filter(|block| !block.is_empty());
    let data = blocks.map(|block| {
        let lines = block.lines().filter_map(|line| line.strip_prefix("data:"));
        let data = lines.map(str::trim_start).collect::<Vec<_>>().join("\n");
        shown(if data.is_empty() { block.as_bytes() } else { data.as_bytes() })
    });
    data.collect()
}
