//! The lines of a batch's files: items in, results out.

use std::borrow::Cow;

use offpeak_plugin::{
    DidItRun,
    provider::{Decoded, Item, ItemFailure, ItemOutcome, ItemResponse, ItemResult},
};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::value::RawValue;

use crate::{
    dialect::{BatchApi, Line as LineKind},
    protocol::Context,
    wire::{ErrorObject, lenient_error},
};

/// The longest id of an item.
const ID_BYTES_MAX: usize = 64;

/// What stands around an item's id, endpoint and body.
const WHOLE: [&str; 4] = ["{\"custom_id\":", ",\"method\":\"POST\",\"url\":", ",\"body\":", "}\n"];

/// How lines are written.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Style<'a> {
    /// Method and URL, where they are told.
    url: Option<&'a str>,
    model: Model<'a>,
}

/// What becomes of the model's name in a body.
#[derive(Debug, Clone, Copy)]
enum Model<'a> {
    Keep,
    Set(&'a str),
    Remove,
}

impl<'a> Style<'a> {
    /// As this provider wants them.
    pub(crate) fn of(context: &Context<'a>) -> Self {
        let line = context.api.line;
        let model = match context.config.batch_model_name(&context.batch.model) {
            _ if line == LineKind::BareWithoutModel => Model::Remove,
            Some(name) => Model::Set(name),
            None => Model::Keep,
        };
        Self { url: (line == LineKind::Whole).then_some(context.batch.endpoint.as_str()), model }
    }
}

/// The most bytes that one item takes beyond its body.
pub(crate) fn overhead_bytes(endpoint: &str, model_name: Option<&str>) -> u32 {
    let quotes = 4;
    let name = model_name.map_or(0, |name| "\"model\":,".len() + name.len() * 6 + 2);
    let line = WHOLE.iter().map(|part| part.len()).sum::<usize>() + quotes + ID_BYTES_MAX + endpoint.len();
    u32::try_from(line + name).unwrap_or(u32::MAX)
}

/// One line an item. Bodies are copied as they are, but for line breaks and the model's name.
pub(crate) fn encode(style: &Style<'_>, items: &[Item]) -> Result<Vec<u8>, String> {
    let url = style.url.map(json_text).transpose()?;
    let bodies: usize = items.iter().map(|item| item.body.len()).sum();
    let around = overhead_bytes(style.url.unwrap_or_default(), None) as usize;
    let mut lines = Vec::with_capacity(bodies + items.len() * around);
    for item in items {
        lines.extend_from_slice(WHOLE[0].as_bytes());
        lines.extend_from_slice(json_text(&item.id)?.as_bytes());
        if let Some(url) = &url {
            lines.extend_from_slice(WHOLE[1].as_bytes());
            lines.extend_from_slice(url.as_bytes());
        }
        lines.extend_from_slice(WHOLE[2].as_bytes());
        let body = lines.len();
        push_body(&item.body, style.model, &mut lines)?;
        for byte in &mut lines[body..] {
            // In JSON a line break can only stand between tokens, where a space means the same.
            if matches!(byte, b'\n' | b'\r') {
                *byte = b' ';
            }
        }
        lines.extend_from_slice(WHOLE[3].as_bytes());
    }
    Ok(lines)
}

/// The body with another name of the model, or none. What is not an object goes as it is: the provider says so.
fn push_body(body: &[u8], model: Model<'_>, out: &mut Vec<u8>) -> Result<(), String> {
    let name = match model {
        Model::Keep => {
            out.extend_from_slice(body);
            return Ok(());
        }
        Model::Set(name) => Some(json_text(name)?),
        Model::Remove => None,
    };
    let Ok(Members(members)) = serde_json::from_slice::<Members<'_>>(body) else {
        out.extend_from_slice(body);
        return Ok(());
    };
    let mut begin = b'{';
    let mut push = |name: &str, value: &str| -> Result<(), String> {
        out.push(std::mem::replace(&mut begin, b','));
        out.extend_from_slice(json_text(name)?.as_bytes());
        out.push(b':');
        out.extend_from_slice(value.as_bytes());
        Ok(())
    };
    if let Some(name) = name {
        push("model", &name)?;
    }
    for (name, value) in members.iter().filter(|(name, _)| name != "model") {
        push(name, value.get())?;
    }
    if begin == b'{' {
        out.push(b'{');
    }
    out.push(b'}');
    Ok(())
}

/// An object's members in their order, each as it stands.
pub(crate) struct Members<'a>(pub(crate) Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Collect;

        impl<'de> Visitor<'de> for Collect {
            type Value = Members<'de>;

            fn expecting(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                formatter.write_str("an object")
            }

            fn visit_map<M: MapAccess<'de>>(self, mut map: M) -> Result<Self::Value, M::Error> {
                let mut members = Vec::new();
                while let Some(member) = map.next_entry()? {
                    members.push(member);
                }
                Ok(Members(members))
            }
        }

        deserializer.deserialize_map(Collect)
    }
}

pub(crate) fn json_text(text: &str) -> Result<String, String> {
    serde_json::to_string(text).map_err(|error| error.to_string())
}

/// A line of an output file or an error file.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    custom_id: Cow<'a, str>,
    #[serde(borrow)]
    response: Option<LineResponse<'a>>,
    /// Most give an object; some give a text.
    #[serde(default, deserialize_with = "lenient_error")]
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
pub(crate) fn decode(line: &[u8], api: &BatchApi) -> Decoded {
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
            let never_ran = api.never_ran_codes.contains(&code.as_str());
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
    use offpeak_plugin::provider::Batch;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;
    use crate::dialect::{DialectName, OPENAI};

    const CHAT: &str = "/v1/chat/completions";

    fn item(id: &str, body: &str) -> Item {
        Item { id: id.into(), body: body.as_bytes().to_vec() }
    }

    fn api() -> BatchApi {
        OPENAI.batch_api.unwrap()
    }

    fn decode_text(line: &str) -> Decoded {
        decode(line.as_bytes(), &api())
    }

    fn style() -> Style<'static> {
        Style { url: Some(CHAT), model: Model::Keep }
    }

    /// One item, as a dialect writes it for a model that has the name `n` there.
    fn encoded_by(dialect: DialectName, body: &str) -> String {
        let model_names = [("m".to_owned(), "n".to_owned())].into();
        let config = crate::config::Config { dialect, model_names, ..Default::default() };
        let batch = Batch {
            mark: String::new(),
            endpoint: CHAT.into(),
            model: "m".into(),
            offer: "batch".into(),
            items: 1,
            waiting: 1,
            only: None,
            headers: vec![],
            created_at_ms: 0,
        };
        let context = Context::new(&batch, &config).unwrap();
        String::from_utf8(encode(&Style::of(&context), &[item("a", body)]).unwrap()).unwrap()
    }

    #[test]
    fn each_dialect_has_its_lines() {
        let body = r#"{"x" : 1.0,"model":"m","model":"m"}"#;
        let bare = |body: &str| format!("{{\"custom_id\":\"a\",\"body\":{body}}}\n");
        let renamed = r#"{"model":"n","x":1.0}"#;
        assert_eq!(encoded_by(DialectName::Together, body), bare(renamed));
        assert_eq!(encoded_by(DialectName::Mistral, body), bare(r#"{"x":1.0}"#));
        assert_eq!(encoded_by(DialectName::Mistral, r#"{"model":"m"}"#), bare("{}"));
        assert!(
            encoded_by(DialectName::Azure, body)
                .ends_with(&format!("\"url\":\"{CHAT}\",\"body\":{renamed}}}\n"))
        );
        assert_eq!(encoded_by(DialectName::Together, "[1]"), bare("[1]"));
    }

    #[test]
    fn a_failure_may_be_told_as_a_text() {
        let line = r#"{"custom_id":"a","error":"no such model"}"#;
        let Decoded::Result(ItemResult { outcome: ItemOutcome::Failed(failure), .. }) = decode_text(line)
        else {
            panic!("no failure")
        };
        assert_eq!((failure.ran, failure.message.as_str()), (DidItRun::Unknown, "no such model"));
    }

    #[test]
    fn items_become_lines_with_the_bodies_as_they_were() {
        let lines = encode(
            &style(),
            &[item("a", r#"{"model" : "m","x":1.0}"#), item("b-2", "{\r\n\"y\":\n\"\\n\"}")],
        )
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
        let line = encode(&style(), &[item(&id, "{}")]).unwrap();
        assert_eq!(line.len() - 2, overhead_bytes(CHAT, None) as usize);
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
        assert!(matches!(decode(b"\xff\xfe", &api()), Decoded::Garbage(_)));
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
            let text = String::from_utf8(encode(&style(), &items).unwrap()).unwrap();
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
            let _: Decoded = decode(&line, &api());
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
