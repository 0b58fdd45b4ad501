//! The lines of a batch's files: items in, results out.

use std::borrow::Cow;

use offpeak_plugin::{
    DidItRun,
    provider::{Decoded, Item, ItemFailure, ItemOutcome, ItemResponse, ItemResult},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{dialect::Dialect, wire::ErrorObject};

/// The longest id of an item.
const ID_BYTES_MAX: usize = 64;

/// What stands around an item's id, endpoint and body.
const LINE: [&str; 4] = ["{\"custom_id\":", ",\"method\":\"POST\",\"url\":", ",\"body\":", "}\n"];

/// Bytes that one item takes beyond its body.
pub(crate) fn overhead_bytes(endpoint: &str) -> u32 {
    let quotes = 4;
    let bytes = LINE.iter().map(|part| part.len()).sum::<usize>() + quotes + ID_BYTES_MAX + endpoint.len();
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// One line an item. Bodies are copied as they are, but for line breaks.
pub(crate) fn encode(endpoint: &str, items: &[Item]) -> Result<Vec<u8>, String> {
    let endpoint = json_text(endpoint)?;
    let bodies: usize = items.iter().map(|item| item.body.len()).sum();
    let mut lines = Vec::with_capacity(bodies + items.len() * (overhead_bytes(&endpoint) as usize));
    for item in items {
        lines.extend_from_slice(LINE[0].as_bytes());
        lines.extend_from_slice(json_text(&item.id)?.as_bytes());
        lines.extend_from_slice(LINE[1].as_bytes());
        lines.extend_from_slice(endpoint.as_bytes());
        lines.extend_from_slice(LINE[2].as_bytes());
        let body = lines.len();
        lines.extend_from_slice(&item.body);
        for byte in &mut lines[body..] {
            // In JSON a line break can only stand between tokens, where a space means the same.
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        lines.extend_from_slice(LINE[3].as_bytes());
    }
    Ok(lines)
}

fn json_text(text: &str) -> Result<String, String> {
    serde_json::to_string(text).map_err(|error| error.to_string())
}

/// A line of an output file or an error file.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    custom_id: Cow<'a, str>,
    #[serde(borrow)]
    response: Option<LineResponse<'a>>,
    error: Option<ErrorObject>,
}

#[derive(Deserialize)]
struct LineResponse<'a> {
    status_code: u16,
    request_id: Option<String>,
    #[serde(borrow)]
    body: &'a RawValue,
}

/// Understands one line.
pub(crate) fn decode(line: &[u8], dialect: &Dialect) -> Decoded {
    match serde_json::from_slice::<Line>(line) {
        Err(error) => Decoded::Garbage(error.to_string()),
        Ok(Line { response: Some(response), .. }) if !(100..=599).contains(&response.status_code) => {
            Decoded::Garbage(format!("{} is not an HTTP status", response.status_code))
        }
        Ok(Line { custom_id, response: Some(response), .. }) => result(
            custom_id,
            ItemOutcome::Response(ItemResponse {
                status: response.status_code,
                body: response.body.get().as_bytes().to_vec(),
                request_id: response.request_id,
            }),
        ),
        Ok(Line { custom_id, response: None, error: Some(error) }) => {
            let code = error.code_or("batch_item_failed");
            let never_ran = dialect.never_ran_codes.contains(&code.as_str());
            let ran = if never_ran { DidItRun::Refused } else { DidItRun::Unknown };
            let message = error.message.unwrap_or_else(|| "The provider gave no reason.".to_owned());
            result(custom_id, ItemOutcome::Failed(ItemFailure { ran, code, message }))
        }
        Ok(Line { response: None, error: None, .. }) => {
            Decoded::Garbage("neither a response nor an error".to_owned())
        }
    }
}

fn result(id: Cow<'_, str>, outcome: ItemOutcome) -> Decoded {
    Decoded::Result(ItemResult { id: id.into_owned(), outcome })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::dialect::OPENAI;

    const CHAT: &str = "/v1/chat/completions";

    fn item(id: &str, body: &str) -> Item {
        Item { id: id.into(), body: body.as_bytes().to_vec() }
    }

    fn decode_text(line: &str) -> Decoded {
        decode(line.as_bytes(), &OPENAI)
    }

    #[test]
    fn items_become_lines_with_the_bodies_as_they_were() {
        let lines =
            encode(CHAT, &[item("a", r#"{"model" : "m","x":1.0}"#), item("b-2", "{\r\n\"y\":\n\"\\n\"}")])
                .unwrap();
        assert_eq!(
            String::from_utf8(lines).unwrap(),
            "{\"custom_id\":\"a\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\
             \"body\":{\"model\" : \"m\",\"x\":1.0}}\n\
             {\"custom_id\":\"b-2\",\"method\":\"POST\",\"url\":\"/v1/chat/completions\",\"body\":{  \"y\": \"\\n\"}}\n"
        );
    }

    #[test]
    fn the_overhead_is_what_the_longest_id_takes() {
        let id = "x".repeat(ID_BYTES_MAX);
        let line = encode(CHAT, &[item(&id, "{}")]).unwrap();
        assert_eq!(line.len() - 2, overhead_bytes(CHAT) as usize);
    }

    #[test]
    fn a_response_keeps_the_providers_own_bytes() {
        let line = r#"{"id":"batch_req_1","custom_id":"a","response":{"status_code":200,"request_id":"r1",
            "body":{"z": 1.50, "a":"\u00e9"}},"error":null}"#;
        let Decoded::Result(ItemResult { id, outcome: ItemOutcome::Response(response) }) = decode_text(line)
        else {
            panic!("no response")
        };
        assert_eq!((id.as_str(), response.status, response.request_id.as_deref()), ("a", 200, Some("r1")));
        assert_eq!(response.body, br#"{"z": 1.50, "a":"\u00e9"}"#);
    }

    #[test]
    fn a_refused_request_is_a_response_too() {
        let line =
            r#"{"custom_id":"a","response":{"status_code":400,"body":{"error":{"code":"x"}}},"error":null}"#;
        let Decoded::Result(ItemResult { outcome: ItemOutcome::Response(response), .. }) = decode_text(line)
        else {
            panic!("no response")
        };
        assert_eq!(
            (response.status, response.body.as_slice()),
            (400, br#"{"error":{"code":"x"}}"#.as_slice())
        );
    }

    #[test]
    fn what_never_ran_is_told_from_what_may_have() {
        for (code, expected) in [
            (r#""batch_expired""#, DidItRun::Refused),
            (r#""batch_cancelled""#, DidItRun::Refused),
            (r#""request_timeout""#, DidItRun::Unknown),
            ("null", DidItRun::Unknown),
            ("17", DidItRun::Unknown),
        ] {
            let line =
                format!(r#"{{"custom_id":"a","response":null,"error":{{"code":{code},"message":"m"}}}}"#);
            let Decoded::Result(ItemResult { outcome: ItemOutcome::Failed(failure), .. }) =
                decode_text(&line)
            else {
                panic!("no failure for {code}")
            };
            assert_eq!((failure.ran, failure.message.as_str()), (expected, "m"), "{code}");
        }
    }

    #[test]
    fn all_else_is_garbage() {
        for line in [
            "",
            "half a li",
            "[]",
            r#"{"custom_id":"a"}"#,
            r#"{"custom_id":"a","response":null,"error":null}"#,
            r#"{"custom_id":7,"response":{"status_code":200,"body":{}}}"#,
            r#"{"response":{"status_code":200,"body":{}}}"#,
            r#"{"custom_id":"a","response":{"status_code":200}}"#,
            r#"{"custom_id":"a","response":{"status_code":0,"body":{}}}"#,
            r#"{"custom_id":"a","response":{"status_code":99999,"body":{}}}"#,
            r#"{"custom_id":"a","response":{"status_code":200,"body":{}}} {"custom_id":"b"}"#,
        ] {
            assert!(matches!(decode_text(line), Decoded::Garbage(_)), "{line}");
        }
        assert!(matches!(decode(b"\xff\xfe", &OPENAI), Decoded::Garbage(_)));
    }

    fn any_json() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            any::<String>().prop_map(Value::from)
        ];
        leaf.prop_recursive(3, 16, 4, |inner| {
            prop_oneof![
                proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                proptest::collection::hash_map(any::<String>(), inner, 0..4)
                    .prop_map(|members| Value::Object(members.into_iter().collect()))
            ]
        })
    }

    proptest! {
        #[test]
        fn every_item_is_one_line_of_json(bodies in proptest::collection::vec(any_json(), 0..5)) {
            let items: Vec<Item> = bodies
                .iter()
                .enumerate()
                .map(|(index, body)| item(&index.to_string(), &serde_json::to_string_pretty(body).unwrap()))
                .collect();
            let text = String::from_utf8(encode(CHAT, &items).unwrap()).unwrap();
            prop_assert_eq!(text.lines().count(), bodies.len());
            prop_assert!(!text.contains('\r'));
            for (index, (line, body)) in text.lines().zip(&bodies).enumerate() {
                let line: Value = serde_json::from_str(line).unwrap();
                let expected =
                    json!({"custom_id": index.to_string(), "method": "POST", "url": CHAT, "body": body});
                prop_assert_eq!(line, expected);
            }
        }

        #[test]
        fn no_line_is_too_strange(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _: Decoded = decode(&line, &OPENAI);
        }

        #[test]
        fn bodies_come_back_byte_for_byte(body in any_json(), status in 100_u16..600) {
            let body = serde_json::to_string(&body).unwrap();
            let line = format!(r#"{{"custom_id":"a","response":{{"status_code":{status},"body":{body}}}}}"#);
            let Decoded::Result(ItemResult { outcome: ItemOutcome::Response(response), .. }) = decode_text(&line) else {
                panic!("no response")
            };
            prop_assert_eq!(response.status, status);
            prop_assert_eq!(response.body, body.into_bytes());
        }
    }
}
