//! Streams: the same as whole answers, whatever the cuts.

use proptest::{collection::vec, prelude::*, sample::Index};
use serde_json::{Value, json};

use super::{
    super::{answer, stream::Stream},
    answers::said,
    generate::{any_json, cut, member, message},
};

const CREATED_S: u64 = 1_800_000_000;

fn event(data: &Value) -> String {
    format!("event: {}\ndata: {data}\n\n", data["type"].as_str().unwrap_or("?"))
}

/// A message as Anthropic's API streams it, its texts cut at `cuts`.
fn events(message: &Value, cuts: &[Index]) -> String {
    let mut start = message.clone();
    start["content"] = json!([]);
    start["stop_reason"] = Value::Null;
    start["stop_details"] = Value::Null;
    start["usage"]["output_tokens"] = json!(1);
    let mut stream = event(&json!({"type": "message_start", "message": start}));
    stream.push_str(&event(&json!({"type": "ping"})));
    for (index, block) in message["content"].as_array().unwrap().iter().enumerate() {
        let (mut begun, text, kind, name) = match block["type"].as_str().unwrap() {
            "text" => (block.clone(), block["text"].as_str().unwrap().to_owned(), "text_delta", "text"),
            "thinking" => {
                (block.clone(), block["thinking"].as_str().unwrap().to_owned(), "thinking_delta", "thinking")
            }
            _ => (block.clone(), block["input"].to_string(), "input_json_delta", "partial_json"),
        };
        for (name, empty) in [("text", json!("")), ("thinking", json!("")), ("input", json!({}))] {
            if begun.get(name).is_some() {
                begun[name] = empty;
            }
        }
        stream.push_str(&event(
            &json!({"type": "content_block_start", "index": index, "content_block": begun}),
        ));
        let pieces = if text == "{}" { vec![""] } else { cut_text(&text, cuts) };
        for piece in pieces {
            let delta = json!({"type": kind, name: piece});
            stream.push_str(&event(&json!({"type": "content_block_delta", "index": index, "delta": delta})));
        }
        stream.push_str(&event(&json!({"type": "content_block_stop", "index": index})));
    }
    let delta = json!({"stop_reason": message["stop_reason"], "stop_sequence": null,
        "stop_details": message["stop_details"]});
    let usage = json!({"output_tokens": message["usage"]["output_tokens"]});
    stream.push_str(&event(&json!({"type": "message_delta", "delta": delta, "usage": usage})));
    stream.push_str(&event(&json!({"type": "message_stop"})));
    stream
}

fn cut_text<'t>(text: &'t str, cuts: &[Index]) -> Vec<&'t str> {
    let mut ends: Vec<usize> =
        cuts.iter().map(|cut| cut.index(text.len() + 1)).filter(|end| text.is_char_boundary(*end)).collect();
    ends.sort_unstable();
    ends.push(text.len());
    let mut begin = 0;
    let piece = |end| {
        let piece = text.get(begin..end).unwrap();
        begin = end;
        piece
    };
    ends.into_iter().map(piece).collect()
}

/// Translates pieces; the state is stored and read back between them.
fn translated(pieces: &[&[u8]], include_usage: bool) -> String {
    let mut stream = Stream::new(CREATED_S, include_usage);
    let mut out = Vec::new();
    for piece in pieces {
        out.extend(stream.push(piece));
        stream = serde_json::from_slice(&serde_json::to_vec(&stream).unwrap()).unwrap();
    }
    out.extend(stream.finish());
    String::from_utf8(out).unwrap()
}

fn chunks(stream: &str) -> Vec<Value> {
    let data = stream.split("\n\n").filter_map(|event| event.strip_prefix("data: "));
    data.map(|data| serde_json::from_str(data).unwrap_or_else(|_| json!(data))).collect()
}

/// Puts the chunks together as clients do.
fn assembled(chunks: &[Value]) -> Value {
    let mut message = json!({});
    let mut completion = json!({"choices": [{"index": 0, "logprobs": null}]});
    for chunk in chunks.iter().filter(|chunk| chunk.is_object()) {
        for name in ["id", "created", "model", "service_tier", "usage"] {
            if let Some(value) = chunk.get(name).filter(|value| !value.is_null()) {
                completion[name] = value.clone();
            }
        }
        let choice = &chunk["choices"][0];
        if !choice["finish_reason"].is_null() {
            completion["choices"][0]["finish_reason"] = choice["finish_reason"].clone();
        }
        for (name, value) in choice["delta"].as_object().into_iter().flatten() {
            match (value, name.as_str()) {
                (Value::String(text), "content" | "reasoning_content" | "refusal") => {
                    let old = message[name].as_str().unwrap_or_default();
                    message[name] = json!(format!("{old}{text}"));
                }
                (Value::Array(calls), "tool_calls") => {
                    for call in calls {
                        add_call(&mut message, call);
                    }
                }
                _ => message[name] = value.clone(),
            }
        }
    }
    completion["choices"][0]["message"] = message;
    completion
}

fn add_call(message: &mut Value, call: &Value) {
    let index = usize::try_from(call["index"].as_u64().unwrap()).unwrap();
    if !message["tool_calls"].is_array() {
        message["tool_calls"] = json!([]);
    }
    let calls = message["tool_calls"].as_array_mut().unwrap();
    if index == calls.len() {
        calls.push(json!({"id": call["id"], "type": call["type"],
            "function": {"name": call["function"]["name"], "arguments": ""}}));
    }
    let old = calls[index]["function"]["arguments"].as_str().unwrap();
    calls[index]["function"]["arguments"] =
        json!(format!("{old}{}", call["function"]["arguments"].as_str().unwrap()));
}

#[test]
fn a_whole_stream() {
    let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "claude", "content": [
            {"type": "text", "text": "Hi"}, {"type": "tool_use", "id": "t", "name": "f", "input": {}}],
        "stop_reason": "tool_use", "stop_details": null, "usage": {"input_tokens": 3, "output_tokens": 5}});
    let stream = translated(&[events(&message, &[]).as_bytes()], true);
    let chunk = |choices: &str, usage: &str| {
        format!(
            "data: {{\"id\":\"msg_1\",\"object\":\"chat.completion.chunk\",\"created\":1800000000,\
             \"model\":\"claude\",\"choices\":{choices},\"usage\":{usage}}}\n\n"
        )
    };
    let delta = |delta: &str, finish: &str| {
        chunk(
            &format!("[{{\"index\":0,\"delta\":{delta},\"logprobs\":null,\"finish_reason\":{finish}}}]"),
            "null",
        )
    };
    let expected = [
        delta(r#"{"role":"assistant","content":"","refusal":null}"#, "null"),
        ": ping\n\n".to_owned(),
        delta(r#"{"content":"Hi"}"#, "null"),
        delta(
            r#"{"tool_calls":[{"index":0,"id":"t","type":"function","function":{"name":"f","arguments":""}}]}"#,
            "null",
        ),
        delta(r#"{"tool_calls":[{"index":0,"function":{"arguments":"{}"}}]}"#, "null"),
        delta("{}", r#""tool_calls""#),
        chunk(
            "[]",
            r#"{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8,"prompt_tokens_details":{"cached_tokens":0,"cache_write_tokens":0}}"#,
        ),
        "data: [DONE]\n\n".to_owned(),
    ];
    assert_eq!(stream, expected.concat());
}

#[test]
fn an_error_on_the_way_is_told() {
    let message = json!({"id": "m", "model": "c", "content": [], "usage": {}});
    let start = event(&json!({"type": "message_start", "message": message}));
    let overloaded =
        event(&json!({"type": "error", "error": {"type": "overloaded_error", "message": "busy"}}));
    let stream = chunks(&translated(&[format!("{start}{overloaded}{start}").as_bytes()], false));
    assert_eq!(stream.len(), 2, "{stream:?}");
    let expected = json!({"message": "busy", "type": "server_error", "param": null, "code": "overloaded"});
    assert_eq!(stream[1]["error"], expected);
}

#[test]
fn half_an_answer_is_not_taken_for_a_whole_one() {
    let message = json!({"id": "m", "model": "c", "usage": {}, "stop_reason": "end_turn", "stop_details": null,
        "content": [{"type": "text", "text": "all is"}]});
    let whole = events(&message, &[]);
    let end = whole.find("event: message_stop").unwrap();
    for stream in [
        "",
        "data: nonsense\n\n",
        "event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n",
        whole.split_at(end).0,
    ] {
        let stream = translated(&[stream.as_bytes()], true);
        let last = chunks(&stream).pop().unwrap();
        assert_eq!(last["error"]["code"], "stream_interrupted", "{stream}");
        assert!(!stream.contains("[DONE]"));
    }
    let mut stream = Stream::new(CREATED_S, false);
    stream.push(whole.as_bytes());
    assert!(stream.is_over() && stream.finish().is_empty());
}

#[test]
fn a_refusal_is_told_with_its_reason() {
    let message = json!({"id": "m", "model": "c", "usage": {}, "content": [], "stop_reason": "refusal",
        "stop_details": {"type": "refusal", "explanation": "not that"}});
    let completion = assembled(&chunks(&translated(&[events(&message, &[]).as_bytes()], false)));
    let choice = &completion["choices"][0];
    assert_eq!(
        (choice["finish_reason"].as_str(), choice["message"]["refusal"].as_str()),
        (Some("content_filter"), Some("not that"))
    );
}

#[test]
fn an_event_without_an_end_ends_the_stream_and_not_the_memory() {
    let mut stream = Stream::new(CREATED_S, false);
    let mut out = Vec::new();
    for _ in 0..64 {
        out.extend(stream.push(&vec![b'"'; 64 * 1024]));
        assert!(serde_json::to_vec(&stream).unwrap().len() < 1024 * 1024);
    }
    assert!(stream.is_over());
    assert!(String::from_utf8(out).unwrap().contains("too large"));
}

proptest! {
    /// A stream says what the whole answer says, and cuts between its bytes change nothing.
    #[test]
    fn a_stream_says_what_the_answer_says(
        message in message(),
        texts in vec(any::<Index>(), 0..4),
        cuts in vec(any::<Index>(), 0..8),
        include_usage in any::<bool>(),
    ) {
        let events = events(&message, &texts);
        let whole = translated(&[events.as_bytes()], include_usage);
        prop_assert_eq!(&translated(&cut(events.as_bytes(), &cuts), include_usage), &whole);

        let answer = answer::translate(message.to_string().as_bytes(), CREATED_S).unwrap();
        let answer: Value = serde_json::from_slice(&answer).unwrap();
        let chunks = chunks(&whole);
        prop_assert_eq!(chunks.last(), Some(&json!("[DONE]")));
        let streamed = assembled(&chunks);
        prop_assert_eq!(said(&streamed), said(&answer));
        for name in ["id", "created", "model", "service_tier"] {
            prop_assert_eq!(streamed.get(name), answer.get(name), "{}", name);
        }
        prop_assert_eq!(&streamed["choices"][0]["finish_reason"], &answer["choices"][0]["finish_reason"]);
        prop_assert_eq!(&streamed["choices"][0]["message"]["refusal"], &answer["choices"][0]["message"]["refusal"]);
        let usage = member(streamed.as_object().unwrap(), "usage");
        prop_assert_eq!(usage, if include_usage { answer["usage"].clone() } else { Value::Null });
    }

    #[test]
    fn each_byte_alone_gives_the_same(message in message()) {
        let events = events(&message, &[]);
        let mut stream = Stream::new(CREATED_S, true);
        let mut out = Vec::new();
        for byte in events.as_bytes() {
            out.extend(stream.push(&[*byte]));
        }
        prop_assert_eq!(String::from_utf8(out).unwrap(), translated(&[events.as_bytes()], true));
    }

    /// Whatever comes: no panic, chunks that can be read, one end.
    #[test]
    fn no_stream_is_too_strange(
        data in vec((proptest::sample::select(&["message_start", "content_block_start", "content_block_delta",
            "content_block_stop", "message_delta", "message_stop", "error", "ping", "odd"][..]), any_json(), any_json()), 0..12),
        noise in vec(any::<u8>(), 0..50),
    ) {
        let start = json!({"type": "message_start", "message": {"id": "m", "model": "c", "usage": {}}});
        let mut bytes = event(&start).into_bytes();
        for (kind, value, more) in &data {
            let data = json!({"type": kind, "message": value, "content_block": more, "delta": value, "usage": more,
                "error": value});
            bytes.extend(event(&data).into_bytes());
            let block = json!({"type": kind, "content_block": {"type": "tool_use", "id": "a", "name": "b", "input": value},
                "delta": {"type": "input_json_delta", "partial_json": more.to_string()}});
            bytes.extend(event(&block).into_bytes());
        }
        bytes.extend(&noise);
        let stream = translated(&[&bytes], true);
        let ends = chunks(&stream).iter().filter(|chunk| **chunk == json!("[DONE]") || chunk.get("error").is_some()).count();
        prop_assert_eq!(ends, 1, "{}", stream);
    }
}
