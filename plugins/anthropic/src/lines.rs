//! The items of a batch as they are sent, and the lines of its results.
//!
//! There is no field in which a batch could carry offpeak's mark. So each of its items does: the mark is the beginning of
//! its `custom_id`, which comes back with the result.

use std::borrow::Cow;

use offpeak_plugin::{
    DidItRun,
    batch::ErrorBody,
    provider::{Decoded, Item, ItemFailure, ItemOutcome, ItemResponse, ItemResult},
};
use serde::Deserialize;
use serde_json::value::RawValue;

use crate::{chat::error::status_of, wire::ErrorObject};

/// The longest `custom_id`.
const ID_BYTES_MAX: usize = 64;

/// What stands around an item's id and body.
const ITEM: [&str; 3] = ["{\"custom_id\":\"", "\",\"params\":", "}"];

/// Bytes that one item takes beyond its body, the comma before it included.
pub(crate) fn overhead_bytes() -> u32 {
    let bytes = ITEM.iter().map(|part| part.len()).sum::<usize>() + ID_BYTES_MAX + 1;
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// Appends an item, after a comma if there is one before it. Its body is copied as it is.
pub(crate) fn push(items: &mut Vec<u8>, mark: &str, item: &Item) -> Result<(), String> {
    let length = mark.len() + 1 + item.id.len();
    let is_plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    if length > ID_BYTES_MAX || !mark.bytes().chain(item.id.bytes()).all(is_plain) {
        return Err(format!("the id {mark}-{} is not one that the provider takes", item.id));
    }
    if !items.is_empty() {
        items.push(b',');
    }
    for part in [ITEM[0], mark, "-", &item.id, ITEM[1]] {
        items.extend_from_slice(part.as_bytes());
    }
    items.extend_from_slice(&item.body);
    items.extend_from_slice(ITEM[2].as_bytes());
    Ok(())
}

/// A line of results.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    custom_id: Cow<'a, str>,
    #[serde(borrow)]
    result: LineResult<'a>,
}

#[derive(Deserialize)]
struct LineResult<'a> {
    #[serde(borrow, rename = "type")]
    kind: Cow<'a, str>,
    #[serde(borrow, default)]
    message: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error: Option<&'a RawValue>,
}

/// Understands one line. A line of another batch is garbage here.
pub(crate) fn decode(line: &[u8], mark: &str) -> Decoded {
    let line: Line<'_> = match serde_json::from_slice(line) {
        Ok(line) => line,
        Err(error) => return Decoded::Garbage(error.to_string()),
    };
    let Some(id) = own_id(&line.custom_id, mark) else {
        let id: String = line.custom_id.chars().take(ID_BYTES_MAX).collect();
        return Decoded::Garbage(format!("the result of another batch's item {id:?}"));
    };
    let outcome = match (&*line.result.kind, line.result.message, line.result.error) {
        ("succeeded", Some(message), _) => ItemOutcome::Response(ItemResponse {
            status: 200,
            body: message.get().as_bytes().to_vec(),
            request_id: None,
        }),
        ("errored", _, Some(error)) => ItemOutcome::Response(errored(error)),
        ("canceled", ..) => {
            never_ran("batch_cancelled", "The batch was canceled before this request was run.")
        }
        ("expired", ..) => {
            never_ran("batch_expired", "The batch's 24 hours passed before this request was run.")
        }
        (kind, ..) => {
            let kind: String = kind.chars().take(ID_BYTES_MAX).collect();
            return Decoded::Garbage(format!("a result of the type {kind:?} without what belongs to it"));
        }
    };
    Decoded::Result(ItemResult { id: id.to_owned(), outcome })
}

/// An error as the endpoint would have answered with it. Requests that end so are not paid for.
fn errored(error: &RawValue) -> ItemResponse {
    #[derive(Deserialize)]
    struct Name {
        #[serde(default)]
        request_id: Option<String>,
    }
    let body = error.get().as_bytes();
    let kind = ErrorObject::of_body(body).kind_or("api_error");
    let request_id = serde_json::from_slice::<Name>(body).ok().and_then(|name| name.request_id);
    ItemResponse { status: status_of(&kind), body: body.to_vec(), request_id }
}

fn never_ran(code: &str, message: &str) -> ItemOutcome {
    let (code, message) = (code.to_owned(), message.to_owned());
    ItemOutcome::Failed(ItemFailure { ran: DidItRun::Refused, code, message })
}

/// The item's own id, if it is one of the batch with this mark.
fn own_id<'a>(custom_id: &'a str, mark: &str) -> Option<&'a str> {
    custom_id.strip_prefix(mark)?.strip_prefix('-')
}

/// Whose results these are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Whose {
    /// They have the mark.
    Ours,
    /// They have others, and nowhere ours.
    Foreign,
    /// No line has a name.
    Unclear,
}

/// Looks at the beginning of a batch's results, which may be cut off anywhere. All items of a batch were sent in one
/// call, so that one line of ours tells that all are. One of another does not tell that none is: providers have put strays
/// into files.
pub(crate) fn whose(beginning: &[u8], mark: &str) -> Whose {
    let mut whose = Whose::Unclear;
    for name in beginning.split(|byte| *byte == b'\n').filter_map(name) {
        if own_id(&name, mark).is_some() {
            return Whose::Ours;
        }
        whose = Whose::Foreign;
    }
    whose
}

/// The name of the item that a line is about; also of a line that is cut off or torn, if its beginning has it.
fn name(line: &[u8]) -> Option<Cow<'_, str>> {
    #[derive(Deserialize)]
    struct Name<'a> {
        #[serde(borrow)]
        custom_id: Cow<'a, str>,
    }
    if let Ok(line) = serde_json::from_slice::<Name<'_>>(line) {
        return Some(line.custom_id);
    }
    let mut rest = line.trim_ascii_start();
    for part in ["{", "\"custom_id\"", ":", "\""] {
        rest = rest.strip_prefix(part.as_bytes())?.trim_ascii_start();
    }
    let end = rest.iter().position(|byte| *byte == b'"')?;
    std::str::from_utf8(rest.get(..end)?).ok().map(Cow::Borrowed)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const MARK: &str = "0123456789abcdef-1f";

    fn item(id: &str, body: &str) -> Item {
        Item { id: id.into(), body: body.as_bytes().to_vec() }
    }

    fn response(line: &str) -> ItemResponse {
        match decode(line.as_bytes(), MARK) {
            Decoded::Result(ItemResult { id, outcome: ItemOutcome::Response(response) }) => {
                assert_eq!(id, "1f-2a");
                response
            }
            other => panic!("no response: {other:?}"),
        }
    }

    #[test]
    fn items_carry_the_mark_and_their_bodies_as_they_were() {
        let mut items = Vec::new();
        push(&mut items, MARK, &item("0-0", "{\"a\" :\n1.0}")).unwrap();
        push(&mut items, MARK, &item("0-1", "{}")).unwrap();
        assert_eq!(
            String::from_utf8(items).unwrap(),
            "{\"custom_id\":\"0123456789abcdef-1f-0-0\",\"params\":{\"a\" :\n1.0}},\
             {\"custom_id\":\"0123456789abcdef-1f-0-1\",\"params\":{}}"
        );
    }

    #[test]
    fn the_longest_names_fit_and_the_overhead_is_theirs() {
        let mark = format!("{:016x}-{:x}", u64::MAX, u64::from(u32::MAX));
        let id = format!("{:x}-{:x}", u32::MAX, u64::MAX);
        let mut items = vec![b'x'];
        push(&mut items, &mark, &item(&id, "")).unwrap();
        assert!(items.len() - 1 <= overhead_bytes() as usize);
        assert!(push(&mut items, &mark, &item(&"x".repeat(50), "")).is_err());
        assert!(push(&mut items, "m", &item("a b", "")).is_err());
    }

    #[test]
    fn a_message_keeps_the_providers_own_bytes() {
        let line = r#"{"custom_id":"0123456789abcdef-1f-1f-2a","result":{"type":"succeeded",
            "message":{"z": 1.50, "a":"\u00e9"}}}"#;
        let response = response(line);
        assert_eq!(
            (response.status, response.body.as_slice()),
            (200, br#"{"z": 1.50, "a":"\u00e9"}"#.as_slice())
        );
    }

    #[test]
    fn an_error_comes_as_it_would_have_in_real_time() {
        for (kind, status) in [("invalid_request_error", 400), ("overloaded_error", 529), ("unheard_of", 500)]
        {
            let error =
                json!({"type": "error", "error": {"type": kind, "message": "m"}, "request_id": "req_1"});
            let line =
                json!({"custom_id": format!("{MARK}-1f-2a"), "result": {"type": "errored", "error": error}});
            let response = response(&line.to_string());
            assert_eq!((response.status, response.request_id.as_deref()), (status, Some("req_1")), "{kind}");
            assert_eq!(serde_json::from_slice::<Value>(&response.body).unwrap(), error);
        }
    }

    #[test]
    fn what_never_ran_says_so() {
        for (kind, code) in [("canceled", "batch_cancelled"), ("expired", "batch_expired")] {
            let line = json!({"custom_id": format!("{MARK}-1f-2a"), "result": {"type": kind}}).to_string();
            let Decoded::Result(ItemResult { outcome: ItemOutcome::Failed(failure), .. }) =
                decode(line.as_bytes(), MARK)
            else {
                panic!("no failure for {kind}")
            };
            assert_eq!((failure.ran, failure.code.as_str()), (DidItRun::Refused, code));
        }
    }

    #[test]
    fn all_else_is_garbage_and_most_of_all_what_is_another_batchs() {
        let message = r#""result":{"type":"succeeded","message":{}}"#;
        for line in [
            String::new(),
            "half a li".to_owned(),
            format!(r#"{{"custom_id":"0123456789abcdef-1e-1f-2a",{message}}}"#),
            format!(r#"{{"custom_id":"0123456789abcdef-1f1-1f-2a",{message}}}"#),
            format!(r#"{{"custom_id":"{MARK}",{message}}}"#),
            format!(r#"{{"custom_id":7,{message}}}"#),
            format!("{{{message}}}"),
            format!(r#"{{"custom_id":"{MARK}-1","result":{{"type":"succeeded"}}}}"#),
            format!(r#"{{"custom_id":"{MARK}-1","result":{{"type":"odd","message":{{}}}}}}"#),
        ] {
            assert!(matches!(decode(line.as_bytes(), MARK), Decoded::Garbage(_)), "{line}");
        }
        assert!(matches!(decode(b"\xff\xfe", MARK), Decoded::Garbage(_)));
    }

    #[test]
    fn one_line_of_ours_tells_whose_results_they_are() {
        let ours = format!("{{\"custom_id\":\"{MARK}-1-1\",\"result\":{{}}}}");
        let foreign = "{\"custom_id\":\"other-1-1\",\"result\":{}}";
        for (beginning, whose_they_are) in [
            (format!("{ours}\n{{\"cust"), Whose::Ours),
            (ours.clone(), Whose::Ours),
            (format!("\n{foreign}\n{ours}"), Whose::Ours),
            (format!("<html>\n{foreign}\n{foreign}"), Whose::Foreign),
            (ours.get(..ours.len() - 1).unwrap().to_owned(), Whose::Ours),
            (foreign.get(..foreign.len() - 1).unwrap().to_owned(), Whose::Foreign),
            (format!("{}\n", ours.get(..20).unwrap()), Whose::Unclear),
            ("<html>502 Bad Gateway</html>\n".to_owned(), Whose::Unclear),
            (String::new(), Whose::Unclear),
        ] {
            assert_eq!(whose(beginning.as_bytes(), MARK), whose_they_are, "{beginning}");
        }
    }

    proptest! {
        #[test]
        fn no_line_is_too_strange(line in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _: Decoded = decode(&line, MARK);
            let _: Whose = whose(&line, MARK);
        }

        #[test]
        fn items_in_an_array_are_json(bodies in proptest::collection::vec("[a-z\"\\\\\n]{0,20}", 0..5)) {
            let bodies: Vec<Value> = bodies.iter().map(|text| json!({ "text": text })).collect();
            let mut items = Vec::new();
            for (index, body) in bodies.iter().enumerate() {
                let body = serde_json::to_string_pretty(body).unwrap();
                push(&mut items, MARK, &item(&index.to_string(), &body)).unwrap();
            }
            let array: Vec<Value> = serde_json::from_slice(&[b"[", &items[..], b"]"].concat()).unwrap();
            prop_assert_eq!(array.len(), bodies.len());
            for (index, (item, body)) in array.iter().zip(&bodies).enumerate() {
                prop_assert_eq!(item, &json!({"custom_id": format!("{MARK}-{index}"), "params": body}));
            }
        }
    }
}
