//! Whole answers.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{
    super::answer::translate,
    generate::{any_json, message},
};

fn translated(message: &Value) -> Value {
    serde_json::from_slice(&translate(message.to_string().as_bytes(), 1_800_000_000).unwrap()).unwrap()
}

#[test]
fn a_whole_answer() {
    let message = json!({"id": "msg_1", "type": "message", "role": "assistant", "model": "claude",
        "content": [{"type": "thinking", "thinking": "hm", "signature": "s"}, {"type": "text", "text": "Let me "},
            {"type": "text", "text": "look."}, {"type": "tool_use", "id": "t", "name": "f", "input": {"x": 1}},
            {"type": "brand_new", "data": 1}],
        "stop_reason": "tool_use", "stop_sequence": null, "container": null,
        "usage": {"input_tokens": 10, "cache_read_input_tokens": 100, "cache_creation_input_tokens": 1000,
            "output_tokens": 7, "output_tokens_details": {"thinking_tokens": 3}, "service_tier": "standard"}});
    let expected = json!({"id": "msg_1", "object": "chat.completion", "created": 1_800_000_000, "model": "claude",
        "choices": [{"index": 0, "logprobs": null, "finish_reason": "tool_calls", "message": {
            "role": "assistant", "content": "Let me look.", "refusal": null, "annotations": [],
            "reasoning_content": "hm",
            "tool_calls": [{"id": "t", "type": "function",
                "function": {"name": "f", "arguments": "{\"x\":1}"}}]}}],
        "usage": {"prompt_tokens": 1110, "completion_tokens": 7, "total_tokens": 1117,
            "prompt_tokens_details": {"cached_tokens": 100, "cache_write_tokens": 1000},
            "completion_tokens_details": {"reasoning_tokens": 3}},
        "service_tier": "default"});
    assert_eq!(translated(&message), expected);
}

#[test]
fn the_end_is_told_in_other_words() {
    for (reason, expected) in [
        (json!("end_turn"), "stop"),
        (json!("stop_sequence"), "stop"),
        (json!("pause_turn"), "stop"),
        (json!("max_tokens"), "length"),
        (json!("model_context_window_exceeded"), "length"),
        (json!("tool_use"), "tool_calls"),
        (json!("refusal"), "content_filter"),
        (json!("brand_new"), "stop"),
        (Value::Null, "stop"),
    ] {
        let message = json!({"id": "m", "model": "c", "content": [], "stop_reason": reason, "usage": {}});
        let choice = translated(&message)["choices"][0].clone();
        assert_eq!(
            (choice["finish_reason"].as_str(), choice["message"]["content"].as_str()),
            (Some(expected), Some(""))
        );
        assert_eq!(choice["message"]["refusal"].is_string(), reason == "refusal");
    }
}

#[test]
fn what_is_no_message_is_an_error() {
    for body in ["", "[]", "{}", r#"{"id":"m","model":"c","content":"text","usage":{}}"#] {
        let error = translate(body.as_bytes(), 0).unwrap_err();
        assert!(error.to_string().contains("not a message"), "{error}");
    }
}

/// What a completion says, as the blocks of a message.
pub(super) fn said(completion: &Value) -> Value {
    let message = &completion["choices"][0]["message"];
    let calls: Vec<Value> = message["tool_calls"]
        .as_array()
        .into_iter()
        .flatten()
        .map(|call| {
            let input: Value = serde_json::from_str(call["function"]["arguments"].as_str().unwrap()).unwrap();
            json!({"id": call["id"], "name": call["function"]["name"], "input": input})
        })
        .collect();
    json!({"text": message["content"].as_str().unwrap_or_default(),
        "thought": message["reasoning_content"].as_str().unwrap_or_default(), "calls": calls})
}

/// What a message says, in the same form.
fn told(message: &Value) -> Value {
    let blocks = message["content"].as_array().unwrap();
    let join = |kind: &str| -> String { blocks.iter().filter_map(|block| block[kind].as_str()).collect() };
    let calls: Vec<Value> = blocks
        .iter()
        .filter(|block| block["type"] == "tool_use")
        .map(|block| json!({"id": block["id"], "name": block["name"], "input": block["input"]}))
        .collect();
    json!({"text": join("text"), "thought": join("thinking"), "calls": calls})
}

proptest! {
    #[test]
    fn what_both_sides_can_say_survives(message in message()) {
        let completion = translated(&message);
        prop_assert_eq!(said(&completion), told(&message));
        let (usage, counted) = (&completion["usage"], &message["usage"]);
        let count = |name: &str| counted[name].as_u64().unwrap_or(0);
        let cached = count("cache_read_input_tokens");
        let prompt = count("input_tokens") + cached + count("cache_creation_input_tokens");
        prop_assert_eq!(usage["prompt_tokens"].as_u64(), Some(prompt));
        prop_assert_eq!(usage["prompt_tokens_details"]["cached_tokens"].as_u64(), Some(cached));
        prop_assert_eq!(usage["completion_tokens"].as_u64(), Some(count("output_tokens")));
        prop_assert_eq!(usage["total_tokens"].as_u64(), Some(prompt + count("output_tokens")));
    }

    #[test]
    fn no_answer_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..100), content in any_json(), usage in any_json()) {
        drop(translate(&bytes, 0));
        let message = json!({"id": "m", "model": "c", "content": content, "usage": usage});
        drop(translate(message.to_string().as_bytes(), u64::MAX));
    }
}
