//! A background response as events, for those who stream it. Its answer is there in one piece, so the text of each part
//! comes in one piece too. Which events there are follows from the response alone: whoever lost the stream asks again from
//! the last number that arrived, at any time. Only the response that the first events show is filled in by then.

use bytes::Bytes;
use serde::Serialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

/// The events of one response, numbered.
#[derive(Debug, Default)]
pub struct Events {
    /// The number of the next one.
    next: u64,
    /// The caller has these: all up to a number.
    known: Option<u64>,
    /// What is to be sent.
    text: Vec<u8>,
}

/// An event as it is sent.
#[derive(Serialize)]
struct Event<'a, T> {
    r#type: &'a str,
    sequence_number: u64,
    #[serde(flatten)]
    fields: T,
}

/// The member of those events that hold the response itself.
#[derive(Serialize)]
struct Of<T> {
    response: T,
}

/// How a member of an item that is a list of parts is told.
struct List {
    name: &'static str,
    index: &'static str,
    part: &'static str,
}

/// The lists whose parts are told one by one.
const LISTS: [List; 2] = [
    List { name: "content", index: "content_index", part: "response.content_part" },
    List { name: "summary", index: "summary_index", part: "response.reasoning_summary_part" },
];

/// By a part's type, its text and the events that bring it.
const PARTS: [(&str, &str, &str); 4] = [
    ("output_text", "text", "response.output_text"),
    ("refusal", "refusal", "response.refusal"),
    ("reasoning_text", "text", "response.reasoning_text"),
    ("summary_text", "text", "response.reasoning_summary_text"),
];

/// By an item's type, its text and the events that bring it.
const ITEMS: [(&str, &str, &str); 3] = [
    ("function_call", "arguments", "response.function_call_arguments"),
    ("mcp_call", "arguments", "response.mcp_call_arguments"),
    ("custom_tool_call", "input", "response.custom_tool_call_input"),
];

impl Events {
    /// From the beginning, or from the event after one that the caller has.
    pub fn after(known: Option<u64>) -> Self {
        Self { known, ..Self::default() }
    }

    /// Takes what is to be sent by now; it may be nothing.
    pub fn take(&mut self) -> Bytes {
        std::mem::take(&mut self.text).into()
    }

    /// It was taken in.
    pub fn queued(&mut self, response: &RawValue) -> Result<(), serde_json::Error> {
        let response = Of { response: before(response, "queued")? };
        self.send("response.created", &response)?;
        self.send("response.queued", &response)
    }

    /// It has left, or is run.
    pub fn begun(&mut self, response: &RawValue) -> Result<(), serde_json::Error> {
        self.send("response.in_progress", &Of { response: before(response, "in_progress")? })
    }

    /// It has ended, and this is what came of it.
    pub fn ended(&mut self, response: &RawValue) -> Result<(), serde_json::Error> {
        let whole: Map<String, Value> = serde_json::from_str(response.get())?;
        for (index, item) in whole.get("output").and_then(Value::as_array).into_iter().flatten().enumerate() {
            self.item(index, item)?;
        }
        let status = whole.get("status").and_then(Value::as_str).unwrap_or("completed");
        self.send(&format!("response.{status}"), &Of { response })
    }

    fn item(&mut self, output_index: usize, item: &Value) -> Result<(), serde_json::Error> {
        let empty = opened(item);
        self.send("response.output_item.added", &json!({ "output_index": output_index, "item": empty }))?;
        let place = json!({ "item_id": item.get("id"), "output_index": output_index });
        for list in &LISTS {
            for (index, part) in parts(item, list.name).iter().enumerate() {
                let mut place = place.clone();
                place[list.index] = index.into();
                self.part(&place, list.part, part)?;
            }
        }
        if let Some((text, events)) = kind(&ITEMS, item) {
            self.piece(&place, item, text, events, item.get("name"))?;
        }
        self.send("response.output_item.done", &json!({ "output_index": output_index, "item": item }))
    }

    fn part(&mut self, place: &Value, events: &str, part: &Value) -> Result<(), serde_json::Error> {
        self.send(&format!("{events}.added"), &with(place, "part", opened(part)))?;
        if let Some((text, pieces)) = kind(&PARTS, part) {
            self.piece(place, part, text, pieces, None)?;
        }
        for (index, annotation) in parts(part, "annotations").iter().enumerate() {
            let fields = with(place, "annotation", annotation.clone());
            let fields = with(&fields, "annotation_index", index.into());
            self.send("response.output_text.annotation.added", &fields)?;
        }
        self.send(&format!("{events}.done"), &with(place, "part", part.clone()))
    }

    /// A text, and that this was all of it.
    fn piece(
        &mut self,
        place: &Value,
        of: &Value,
        member: &str,
        events: &str,
        name: Option<&Value>,
    ) -> Result<(), serde_json::Error> {
        let text = of.get(member).cloned().unwrap_or_else(|| "".into());
        let mut place = place.clone();
        if events == "response.output_text" {
            place["logprobs"] = of.get("logprobs").cloned().unwrap_or_else(|| json!([]));
        }
        self.send(&format!("{events}.delta"), &with(&place, "delta", text.clone()))?;
        if let Some(name) = name {
            place["name"] = name.clone();
        }
        self.send(&format!("{events}.done"), &with(&place, member, text))
    }

    fn send(&mut self, name: &str, fields: &impl Serialize) -> Result<(), serde_json::Error> {
        let number = self.next;
        self.next += 1;
        if self.known.is_some_and(|known| number <= known) {
            return Ok(());
        }
        self.text.extend_from_slice(b"event: ");
        self.text.extend_from_slice(name.as_bytes());
        self.text.extend_from_slice(b"\ndata: ");
        let event = Event { r#type: name, sequence_number: number, fields };
        serde_json::to_writer(&mut self.text, &event)?;
        self.text.extend_from_slice(b"\n\n");
        Ok(())
    }
}

/// The response as it was before it ended.
fn before(response: &RawValue, status: &'static str) -> Result<Map<String, Value>, serde_json::Error> {
    let mut response: Map<String, Value> = serde_json::from_str(response.get())?;
    response.insert("status".to_owned(), status.into());
    response.insert("output".to_owned(), json!([]));
    for later in ["usage", "error", "incomplete_details", "completed_at"] {
        if let Some(value) = response.get_mut(later) {
            *value = Value::Null;
        }
    }
    Ok(response)
}

/// An item or part as it is before its pieces come.
fn opened(value: &Value) -> Value {
    let Some(members) = value.as_object() else { return value.clone() };
    let text = kind(&ITEMS, value).or_else(|| kind(&PARTS, value)).map(|(text, _)| text);
    let opened = members.iter().map(|(name, value)| {
        let value = match name.as_str() {
            "status" => "in_progress".into(),
            "annotations" | "logprobs" if value.is_array() => json!([]),
            list if LISTS.iter().any(|known| known.name == list) && value.is_array() => json!([]),
            member if Some(member) == text => "".into(),
            _ => value.clone(),
        };
        (name.clone(), value)
    });
    Value::Object(opened.collect())
}

fn kind(table: &[(&str, &'static str, &'static str)], value: &Value) -> Option<(&'static str, &'static str)> {
    let name = value.get("type")?.as_str()?;
    table.iter().find(|(known, ..)| *known == name).map(|(_, text, events)| (*text, *events))
}

fn parts<'a>(of: &'a Value, name: &str) -> &'a [Value] {
    of.get(name).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

fn with(fields: &Value, name: &str, value: Value) -> Value {
    let mut fields = fields.clone();
    fields[name] = value;
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESPONSE: &str = r#"{"id": "resp_1", "status": "completed", "usage": {"total_tokens": 3},
        "temperature": 1.0, "output": [
        {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": "hm"}]},
        {"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [
            {"type": "output_text", "text": "so be it", "annotations": [{"type": "url_citation"}], "logprobs": [{"token": "so"}]},
            {"type": "refusal", "refusal": "not that"}]},
        {"type": "function_call", "id": "fc_1", "status": "completed", "call_id": "c", "name": "f", "arguments": "{\"a\":1}"},
        {"type": "image_generation_call", "id": "ig_1", "status": "completed", "result": "aGk="}]}"#;

    /// All events of a text, with their data.
    fn read(text: &[u8]) -> Vec<Value> {
        let text = std::str::from_utf8(text).unwrap();
        let events = text.split_terminator("\n\n").map(|event| {
            let (name, data) = event.split_once("\ndata: ").unwrap();
            let data: Value = serde_json::from_str(data).unwrap();
            assert_eq!(name.strip_prefix("event: "), data["type"].as_str());
            data
        });
        events.collect()
    }

    fn all(response: &str, known: Option<u64>) -> Vec<u8> {
        let response: &RawValue = serde_json::from_str(response).unwrap();
        let mut events = Events::after(known);
        events.queued(response).unwrap();
        events.begun(response).unwrap();
        events.ended(response).unwrap();
        events.take().to_vec()
    }

    #[test]
    fn a_response_is_told_piece_by_piece() {
        let events = read(&all(RESPONSE, None));
        let names: Vec<&str> = events
            .iter()
            .map(|event| event["type"].as_str().unwrap().trim_start_matches("response."))
            .collect();
        let expected = "created queued in_progress \
            output_item.added reasoning_summary_part.added reasoning_summary_text.delta reasoning_summary_text.done \
            reasoning_summary_part.done output_item.done \
            output_item.added content_part.added output_text.delta output_text.done output_text.annotation.added \
            content_part.done content_part.added refusal.delta refusal.done content_part.done output_item.done \
            output_item.added function_call_arguments.delta function_call_arguments.done output_item.done \
            output_item.added output_item.done completed";
        assert_eq!(names, expected.split_whitespace().collect::<Vec<_>>());
        for (number, event) in events.iter().enumerate() {
            assert_eq!(event["sequence_number"], number);
        }
        let whole: Value = serde_json::from_str(RESPONSE).unwrap();
        assert_eq!(events.last().unwrap()["response"], whole);
        let first = &events[0]["response"];
        assert_eq!(
            (&first["status"], &first["output"], &first["usage"]),
            (&json!("queued"), &json!([]), &Value::Null)
        );
        assert_eq!(events[9]["item"]["content"], json!([]), "what comes piece by piece is not there before");
        assert_eq!(events[9]["item"]["status"], "in_progress");
        assert_eq!(
            events[10]["part"],
            json!({ "type": "output_text", "text": "", "annotations": [], "logprobs": [] })
        );
        let expected = json!({ "type": "response.output_text.delta", "sequence_number": 11, "item_id": "msg_1",
            "output_index": 1, "content_index": 0, "delta": "so be it", "logprobs": [{ "token": "so" }] });
        assert_eq!(events[11], expected);
        assert_eq!(events[20]["item"]["arguments"], "");
        assert_eq!((&events[22]["name"], &events[22]["arguments"]), (&json!("f"), &json!("{\"a\":1}")));
    }

    #[test]
    fn whoever_lost_the_stream_gets_exactly_the_rest() {
        let events = read(&all(RESPONSE, None));
        for known in 0..events.len() {
            assert_eq!(read(&all(RESPONSE, Some(known as u64))), events[known + 1..]);
        }
        assert!(all(RESPONSE, Some(u64::MAX)).is_empty());
    }

    #[test]
    fn the_last_event_says_how_it_ended() {
        for status in ["failed", "incomplete", "cancelled"] {
            let response = format!(
                r#"{{"id": "resp_1", "status": "{status}", "error": {{"code": "x"}}, "output": []}}"#
            );
            let events = read(&all(&response, None));
            assert_eq!(events.len(), 4);
            assert_eq!(events[0]["response"]["error"], Value::Null);
            assert_eq!(events[3]["type"], format!("response.{status}"));
            assert_eq!(events[3]["response"]["error"]["code"], "x");
        }
    }
}
