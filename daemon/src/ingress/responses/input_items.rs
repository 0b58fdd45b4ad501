//! `/v1/responses/{id}/input_items`: what a background response was asked, item by item.

use offpeak_core::words::Place;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::ingress::query::Query;
use crate::reply::Refusal;

/// As many items are listed at once, and if the caller does not say.
const LIST_MAX: usize = 100;
const LIST_USUAL: usize = 20;

/// A page of items.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Page {
    object: &'static str,
    data: Vec<Map<String, Value>>,
    first_id: Option<String>,
    last_id: Option<String>,
    has_more: bool,
}

/// The part of a request's input that is asked for; the last item first, unless the caller wants it otherwise.
pub fn page(body: &[u8], place: Place, query: &Query) -> Result<Page, Refusal> {
    let limit = query.limit(LIST_USUAL, LIST_MAX)?;
    let mut items = items(body, place);
    match query.get("order") {
        None | Some("desc") => items.reverse(),
        Some("asc") => {}
        Some(_) => {
            return Err(
                Refusal::bad_request("invalid_value", "order must be 'asc' or 'desc'.").param("order")
            );
        }
    }
    let start = match query.get("after") {
        None => 0,
        Some(after) => {
            let found = items.iter().position(|item| id(item).as_deref() == Some(after));
            found.map(|at| at + 1).ok_or_else(|| {
                let message = "after must be the id of an item of this list.";
                Refusal::bad_request("invalid_value", message).param("after")
            })?
        }
    };
    let mut data: Vec<_> = items.drain(..).skip(start).collect();
    let has_more = data.len() > limit;
    data.truncate(limit);
    let (first_id, last_id) = (data.first().and_then(id), data.last().and_then(id));
    Ok(Page { object: "list", data, first_id, last_id, has_more })
}

fn id(item: &Map<String, Value>) -> Option<String> {
    item.get("id").and_then(Value::as_str).map(str::to_owned)
}

/// The input as items: a text is one message, and what callers may leave out is filled in. What is no item at all is for the
/// provider to refuse.
fn items(body: &[u8], place: Place) -> Vec<Map<String, Value>> {
    let mut body: Value = serde_json::from_slice(body).unwrap_or_default();
    let given = match body.get_mut("input").map(Value::take) {
        Some(Value::String(text)) => vec![json!({ "role": "user", "content": text })],
        Some(Value::Array(items)) => items,
        _ => Vec::new(),
    };
    let objects = given.into_iter().filter_map(|item| match item {
        Value::Object(item) => Some(item),
        _ => None,
    });
    objects.enumerate().map(|(at, item)| whole(item, at, place)).collect()
}

fn whole(mut item: Map<String, Value>, at: usize, place: Place) -> Map<String, Value> {
    if item.contains_key("role") {
        item.entry("type").or_insert_with(|| "message".into());
    }
    let is_message = item.get("type").is_some_and(|kind| kind == "message");
    if is_message && let Some(Value::String(text)) = item.get("content") {
        let is_answer = item.get("role").is_some_and(|role| role == "assistant");
        let kind = if is_answer { "output_text" } else { "input_text" };
        let content = json!([{ "type": kind, "text": text }]);
        item.insert("content".to_owned(), content);
    }
    if id(&item).is_none() {
        let prefix = if is_message { "msg" } else { "item" };
        let id = format!("{prefix}_{:08x}{:016x}{at:04x}", place.lane.0, place.seq.0);
        item.insert("id".to_owned(), id.into());
    }
    item
}

#[cfg(test)]
mod tests {
    use http::Request;
    use offpeak_core::words::{LaneId, Seq};

    use super::*;

    const PLACE: Place = Place { lane: LaneId(1), seq: Seq(2) };

    fn asked(body: &Value, query: &str) -> Result<Value, Refusal> {
        let request = Request::builder().uri(format!("/x?{query}")).body(()).unwrap();
        let page = page(body.to_string().as_bytes(), PLACE, &Query::of(&request))?;
        Ok(serde_json::to_value(page).unwrap())
    }

    #[test]
    fn a_text_is_one_message_of_the_user() {
        let id = "msg_0000000100000000000000020000";
        let item = json!({ "role": "user", "type": "message", "id": id,
                           "content": [{ "type": "input_text", "text": "no hurry" }] });
        let expected =
            json!({ "object": "list", "data": [item], "first_id": id, "last_id": id, "has_more": false });
        assert_eq!(asked(&json!({ "input": "no hurry" }), "").unwrap(), expected);
    }

    #[test]
    fn items_are_filled_in_and_otherwise_left_alone() {
        let call = json!({ "type": "function_call_output", "call_id": "c", "output": "4" });
        let known = json!({ "type": "reasoning", "id": "rs_1", "summary": [] });
        let input = json!({ "input": [{ "role": "assistant", "content": "so far" }, known, call, 7] });
        let page = asked(&input, "order=asc").unwrap();
        let data = page["data"].as_array().unwrap();
        assert_eq!(data.len(), 3);
        assert_eq!(data[0]["content"], json!([{ "type": "output_text", "text": "so far" }]));
        assert_eq!(data[1], known);
        assert_eq!((&data[2]["call_id"], &data[2]["output"]), (&json!("c"), &json!("4")));
        assert_eq!(data[2]["id"], "item_0000000100000000000000020002");
    }

    #[test]
    fn pages_follow_each_other_in_both_orders() {
        let input: Vec<Value> =
            (0..5).map(|n| json!({ "type": "message", "role": "user", "id": format!("m{n}") })).collect();
        let input = json!({ "input": input });
        let ids = |query: &str| {
            let page = asked(&input, query).unwrap();
            let ids: Vec<String> = page["data"]
                .as_array()
                .unwrap()
                .iter()
                .map(|item| item["id"].as_str().unwrap().to_owned())
                .collect();
            (ids.join(" "), page["has_more"].as_bool().unwrap())
        };
        assert_eq!(ids("limit=2"), ("m4 m3".to_owned(), true));
        assert_eq!(ids("limit=2&after=m3"), ("m2 m1".to_owned(), true));
        assert_eq!(ids("limit=2&after=m1"), ("m0".to_owned(), false));
        assert_eq!(ids("limit=2&order=asc&after=m2"), ("m3 m4".to_owned(), false));
        for (query, param) in [("order=up", "order"), ("after=m9", "after"), ("limit=0", "limit")] {
            assert_eq!(asked(&input, query).unwrap_err().param.as_deref(), Some(param), "{query}");
        }
    }
}
