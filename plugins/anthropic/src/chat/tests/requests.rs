//! Requests: there and back, and nothing lost in silence.

use proptest::{prelude::*, sample::Index};
use serde_json::{Value, json};

use super::{
    super::request::{Ignorable, Options, Translated, translate},
    generate::{any_json, objects, request},
};

fn translated(chat: &Value) -> Value {
    let Translated { body, .. } = translate(chat.to_string().as_bytes(), &Options::default()).unwrap();
    serde_json::from_slice(&body).unwrap()
}

/// A request that can be translated, with further members.
fn with(members: &Value) -> Value {
    let mut chat = json!({"model": "m", "max_tokens": 7, "messages": [{"role": "user", "content": "hi"}]});
    for (name, value) in members.as_object().unwrap() {
        chat[name] = value.clone();
    }
    chat
}

fn saying(messages: &Value) -> Value {
    json!({"model": "m", "max_tokens": 7, "messages": messages})
}

#[test]
fn a_whole_request() {
    let chat = json!({
        "model": "claude", "max_completion_tokens": 100, "stop": "END", "temperature": 0.5, "user": "u1",
        "parallel_tool_calls": false, "tool_choice": "required", "reasoning_effort": "low", "stream": true,
        "stream_options": {"include_usage": true}, "service_tier": "default", "top_p": 0.9,
        "messages": [
            {"role": "developer", "content": "Be brief."},
            {"role": "system", "content": [{"type": "text", "text": "Be kind."}]},
            {"role": "user", "content": [{"type": "text", "text": "What is this?"},
                {"type": "image_url", "image_url": {"url": "data:image/PNG;base64,AAAA", "detail": "high"}},
                {"type": "image_url", "image_url": {"url": "https://x/y.jpg"}}]},
            {"role": "assistant", "content": null, "refusal": null, "annotations": [], "tool_calls": [
                {"id": "a", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1.50}"}},
                {"id": "b", "type": "function", "function": {"name": "g", "arguments": ""}}]},
            {"role": "tool", "tool_call_id": "a", "content": "one"},
            {"role": "tool", "tool_call_id": "b", "content": [{"type": "text", "text": "two"}]},
            {"role": "system", "content": "Now in French."},
            {"role": "user", "content": "Go on."}],
        "tools": [{"type": "function", "function": {"name": "f", "description": "d",
            "parameters": {"type": "object", "properties": {"x": {"type": "number"}}}, "strict": true}},
            {"type": "function", "function": {"name": "g", "parameters": {}}}],
    });
    let Translated { body, stream, include_usage } =
        translate(chat.to_string().as_bytes(), &Options::default()).unwrap();
    assert!(stream && include_usage);
    assert!(String::from_utf8_lossy(&body).contains(r#""input":{"x": 1.50}"#), "byte for byte");
    let expected = json!({
        "model": "claude", "max_tokens": 100, "stop_sequences": ["END"], "temperature": 0.5, "top_p": 0.9,
        "metadata": {"user_id": "u1"}, "output_config": {"effort": "low"}, "stream": true,
        "service_tier": "standard_only",
        "tool_choice": {"type": "any", "disable_parallel_tool_use": true},
        "system": [{"type": "text", "text": "Be brief."}, {"type": "text", "text": "Be kind."}],
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "What is this?"},
                {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": "AAAA"}},
                {"type": "image", "source": {"type": "url", "url": "https://x/y.jpg"}}]},
            {"role": "assistant", "content": [
                {"type": "tool_use", "id": "a", "name": "f", "input": {"x": 1.5}},
                {"type": "tool_use", "id": "b", "name": "g", "input": {}}]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "a", "content": "one"},
                {"type": "tool_result", "tool_use_id": "b", "content": [{"type": "text", "text": "two"}]}]},
            {"role": "system", "content": "Now in French."},
            {"role": "user", "content": "Go on."}],
        "tools": [{"name": "f", "description": "d", "strict": true,
            "input_schema": {"type": "object", "properties": {"x": {"type": "number"}}}},
            {"name": "g", "input_schema": {"type": "object", "properties": {}}}],
    });
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), expected);
}

#[test]
fn what_only_one_side_says_is_said_in_other_words() {
    let schema = json!({"type": "object"});
    for (members, expected) in [
        (json!({"max_tokens": null}), json!({"max_tokens": 4096})),
        (json!({"max_completion_tokens": 7}), json!({})),
        (json!({"stop": ["a", "b"]}), json!({"stop_sequences": ["a", "b"]})),
        (json!({"reasoning_effort": "none"}), json!({"thinking": {"type": "disabled"}})),
        (json!({"response_format": {"type": "text"}}), json!({})),
        (
            json!({"response_format": {"type": "json_schema",
                "json_schema": {"name": "n", "strict": true, "schema": schema, "description": "why"}}}),
            json!({"output_config": {"format": {"type": "json_schema",
                "schema": {"description": "why", "type": "object"}}}}),
        ),
        (
            json!({"response_format": {"type": "json_schema",
                "json_schema": {"name": "n", "schema": {}, "description": "why"}}}),
            json!({"output_config": {"format": {"type": "json_schema", "schema": {"description": "why"}}}}),
        ),
        (json!({"parallel_tool_calls": false}), json!({})),
        (json!({"safety_identifier": "a", "user": "a"}), json!({"metadata": {"user_id": "a"}})),
        (json!({"stream": false}), json!({"stream": false})),
    ] {
        let mut whole =
            json!({"model": "m", "max_tokens": 7, "messages": [{"role": "user", "content": "hi"}]});
        for (name, value) in expected.as_object().unwrap() {
            whole[name] = value.clone();
        }
        assert_eq!(translated(&with(&members)), whole, "{members}");
    }
}

/// These say what holds anyway, or concern only OpenAI's own records. The README has the same list.
fn left_out() -> Vec<Value> {
    vec![
        json!({"n": 1}),
        json!({"logprobs": false}),
        json!({"top_logprobs": 0}),
        json!({"logit_bias": {}}),
        json!({"frequency_penalty": 0}),
        json!({"frequency_penalty": 0.0}),
        json!({"presence_penalty": 0}),
        json!({"presence_penalty": 0.0}),
        json!({"modalities": ["text"]}),
        json!({"store": false}),
        json!({"verbosity": "medium"}),
        json!({"functions": []}),
        json!({"function_call": "none"}),
        json!({"prompt_cache_key": "k"}),
        json!({"metadata": {"team": "search"}}),
        json!({"service_tier": "flex"}),
        json!({"response_format": {"type": "text"}}),
        json!({"parallel_tool_calls": true}),
        json!({"parallel_tool_calls": false}),
        json!({"seed": null}),
    ]
}

#[test]
fn what_holds_anyway_is_left_out() {
    for members in left_out() {
        assert_eq!(translated(&with(&members)), translated(&with(&json!({}))), "{members}");
    }
}

#[test]
fn what_cannot_be_said_is_refused_by_its_name() {
    let user = |part: Value| saying(&json!([{"role": "user", "content": [part]}]));
    let assistant = |member: &str, value: Value| saying(&json!([{"role": "assistant", member: value}]));
    for (chat, code, param) in [
        (with(&json!({"n": 2})), "unsupported_parameter", "n"),
        (with(&json!({"logprobs": true})), "unsupported_parameter", "logprobs"),
        (with(&json!({"seed": 7})), "unsupported_parameter", "seed"),
        (with(&json!({"store": true})), "unsupported_parameter", "store"),
        (with(&json!({"audio": {"voice": "x"}})), "unsupported_parameter", "audio"),
        (with(&json!({"modalities": ["text", "audio"]})), "unsupported_parameter", "modalities"),
        (with(&json!({"functions": [{"name": "f"}]})), "unsupported_parameter", "functions"),
        (with(&json!({"temperature": 1.5})), "unsupported_value", "temperature"),
        (with(&json!({"temperature": "hot"})), "invalid_value", "temperature"),
        (with(&json!({"max_completion_tokens": 8})), "invalid_value", "max_completion_tokens"),
        (with(&json!({"max_tokens": 0})), "invalid_value", "max_tokens"),
        (with(&json!({"max_tokens": 1.5})), "invalid_value", "max_tokens"),
        (with(&json!({"stop": [1]})), "invalid_value", "stop[0]"),
        (with(&json!({"reasoning_effort": "minimal"})), "unsupported_value", "reasoning_effort"),
        (with(&json!({"service_tier": "priority"})), "unsupported_value", "service_tier"),
        (with(&json!({"user": "a", "safety_identifier": "b"})), "invalid_value", "user"),
        (
            with(&json!({"response_format": {"type": "json_object"}})),
            "unsupported_value",
            "response_format.type",
        ),
        (with(&json!({"stream_options": {}})), "invalid_value", "stream_options"),
        (with(&json!({"tool_choice": {"type": "allowed_tools"}})), "unsupported_value", "tool_choice.type"),
        (with(&json!({"tools": [{"type": "custom"}]})), "unsupported_value", "tools[0].type"),
        (with(&json!({"brand_new": 1})), "unknown_parameter", "brand_new"),
        (with(&json!({"model": null})), "missing_required_parameter", "model"),
        (saying(&json!({})), "invalid_value", "messages"),
        (saying(&json!([{"content": "x"}])), "missing_required_parameter", "messages[0].role"),
        (saying(&json!([{"role": "function"}])), "unsupported_value", "messages[0].role"),
        (saying(&json!([{"role": "user"}])), "missing_required_parameter", "messages[0].content"),
        (
            saying(&json!([{"role": "user", "content": "x", "name": "ann"}])),
            "unsupported_parameter",
            "messages[0].name",
        ),
        (user(json!({"type": "input_audio"})), "unsupported_value", "messages[0].content[0].type"),
        (
            user(json!({"type": "image_url", "image_url": {"url": "ftp://x"}})),
            "invalid_value",
            "messages[0].content[0].image_url.url",
        ),
        (
            user(json!({"type": "image_url", "image_url": {"url": "https://x", "detail": "low"}})),
            "unsupported_value",
            "messages[0].content[0].image_url.detail",
        ),
        (
            user(json!({"type": "image_url", "image_url": {"url": "data:image/svg+xml;base64,AA"}})),
            "unsupported_value",
            "messages[0].content[0].image_url.url",
        ),
        (
            user(json!({"type": "file", "file": {"file_id": "f"}})),
            "unsupported_parameter",
            "messages[0].content[0].file.file_id",
        ),
        (assistant("audio", json!({"id": "a"})), "unsupported_parameter", "messages[0].audio"),
        (assistant("annotations", json!([1])), "unsupported_parameter", "messages[0].annotations"),
        (
            assistant("tool_calls", json!([{"id": "a", "function": {"name": "f", "arguments": "[1]"}}])),
            "invalid_value",
            "messages[0].tool_calls[0].function.arguments",
        ),
        (
            assistant("tool_calls", json!([{"id": "a", "type": "custom"}])),
            "unsupported_value",
            "messages[0].tool_calls[0].type",
        ),
    ] {
        let refusal = translate(chat.to_string().as_bytes(), &Options::default()).unwrap_err();
        assert_eq!((refusal.code, refusal.param.as_deref()), (code, Some(param)), "{}", refusal.message);
        assert!(refusal.message.contains(param), "{}", refusal.message);
    }
}

#[test]
fn the_operator_may_let_things_be_ignored() {
    let chat = with(&json!({"seed": 7, "temperature": 1.9})).to_string();
    let ignored = vec![Ignorable::Seed, Ignorable::Temperature];
    let lenient = Options { ignored, ..Options::default() };
    let Translated { body, .. } = translate(chat.as_bytes(), &lenient).unwrap();
    assert_eq!(serde_json::from_slice::<Value>(&body).unwrap(), translated(&with(&json!({}))));
}

#[test]
fn where_sampling_is_an_error_only_its_default_is_taken() {
    let options = Options { sampling: false, ..Options::default() };
    let result = |members| translate(with(&members).to_string().as_bytes(), &options);
    let plain = translated(&with(&json!({})));
    for members in [json!({"temperature": 1}), json!({"top_p": 1.0})] {
        assert_eq!(serde_json::from_slice::<Value>(&result(members).unwrap().body).unwrap(), plain);
    }
    assert_eq!(result(json!({"temperature": 0})).unwrap_err().code, "unsupported_parameter");
}

#[test]
fn empty_texts_are_no_blocks() {
    let chat = saying(&json!([
        {"role": "system", "content": ""},
        {"role": "user", "content": [{"type": "text", "text": ""}, {"type": "text", "text": "x"}]},
        {"role": "assistant", "content": "", "tool_calls": [
            {"id": "a", "function": {"name": "f", "arguments": "{}"}}]},
        {"role": "tool", "tool_call_id": "a", "content": []}]));
    let expected = json!({"model": "m", "max_tokens": 7, "messages": [
        {"role": "user", "content": [{"type": "text", "text": "x"}]},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "a", "name": "f", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "a", "content": ""}]}]});
    assert_eq!(translated(&chat), expected);
}

// === There and back ===

fn back(messages: &Value) -> Value {
    let mut chat = json!({"model": messages["model"], "max_completion_tokens": messages["max_tokens"]});
    let system = messages["system"].as_array().into_iter().flatten();
    let mut all: Vec<Value> =
        system.map(|block| json!({"role": "system", "content": block["text"]})).collect();
    for message in messages["messages"].as_array().unwrap() {
        back_message(message, &mut all);
    }
    chat["messages"] = Value::from(all);
    let mut set = |name: &str, value: Value| {
        if !value.is_null() {
            chat[name] = value;
        }
    };
    if let Some(tools) = messages["tools"].as_array() {
        set("tools", tools.iter().map(back_tool).collect());
    }
    set(
        "tool_choice",
        match messages["tool_choice"]["type"].as_str() {
            Some("any") => json!("required"),
            Some("tool") => {
                json!({"type": "function", "function": {"name": messages["tool_choice"]["name"]}})
            }
            _ => messages["tool_choice"]["type"].clone(),
        },
    );
    if let Some(disabled) = messages["tool_choice"]["disable_parallel_tool_use"].as_bool() {
        set("parallel_tool_calls", json!(!disabled));
    }
    set("stop", messages["stop_sequences"].clone());
    set("temperature", messages["temperature"].clone());
    set("reasoning_effort", messages["output_config"]["effort"].clone());
    if messages["thinking"]["type"] == "disabled" {
        set("reasoning_effort", json!("none"));
    }
    if let Some(schema) = messages["output_config"]["format"].get("schema") {
        set(
            "response_format",
            json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}),
        );
    }
    set("safety_identifier", messages["metadata"]["user_id"].clone());
    set(
        "service_tier",
        match messages["service_tier"].as_str() {
            Some("standard_only") => json!("default"),
            _ => messages["service_tier"].clone(),
        },
    );
    set("stream", messages["stream"].clone());
    chat
}

fn back_message(message: &Value, all: &mut Vec<Value>) {
    let Some(blocks) = message["content"].as_array() else { return all.push(message.clone()) };
    let of = |kind: &str| blocks.iter().filter(|block| block["type"] == kind).cloned().collect::<Vec<_>>();
    let results = of("tool_result");
    if !results.is_empty() {
        let back = |block: &Value| json!({"role": "tool", "tool_call_id": block["tool_use_id"], "content": block["content"]});
        return all.extend(results.iter().map(back));
    }
    if message["role"] == "assistant" {
        let texts = of("text");
        let content = match &texts[..] {
            [] => Value::Null,
            [one] => one["text"].clone(),
            _ => Value::from(texts),
        };
        let mut assistant = json!({"role": "assistant", "content": content});
        let calls: Vec<Value> = of("tool_use")
            .iter()
            .map(|block| {
                json!({"id": block["id"], "type": "function",
                "function": {"name": block["name"], "arguments": block["input"].to_string()}})
            })
            .collect();
        if !calls.is_empty() {
            assistant["tool_calls"] = Value::from(calls);
        }
        return all.push(assistant);
    }
    let parts: Vec<Value> = blocks.iter().map(back_part).collect();
    all.push(json!({"role": message["role"], "content": parts}));
}

fn back_part(block: &Value) -> Value {
    let source = &block["source"];
    let uri = || {
        format!("data:{};base64,{}", source["media_type"].as_str().unwrap(), source["data"].as_str().unwrap())
    };
    match (block["type"].as_str().unwrap(), source["type"].as_str()) {
        ("image", Some("url")) => json!({"type": "image_url", "image_url": {"url": source["url"]}}),
        ("image", _) => json!({"type": "image_url", "image_url": {"url": uri()}}),
        ("document", _) => json!({"type": "file", "file": {"file_data": uri(), "filename": block["title"]}}),
        _ => block.clone(),
    }
}

fn back_tool(tool: &Value) -> Value {
    let mut function = json!({"name": tool["name"], "parameters": tool["input_schema"]});
    for name in ["description", "strict"] {
        if let Some(value) = tool.get(name) {
            function[name] = value.clone();
        }
    }
    json!({"type": "function", "function": function})
}

/// Every member that OpenAI's API knows at the top of a request.
const MEMBERS: [&str; 37] = [
    "audio",
    "frequency_penalty",
    "function_call",
    "functions",
    "logit_bias",
    "logprobs",
    "max_completion_tokens",
    "max_tokens",
    "metadata",
    "modalities",
    "moderation",
    "n",
    "parallel_tool_calls",
    "prediction",
    "presence_penalty",
    "prompt_cache_key",
    "prompt_cache_options",
    "prompt_cache_retention",
    "reasoning_effort",
    "response_format",
    "safety_identifier",
    "seed",
    "service_tier",
    "stop",
    "store",
    "stream",
    "stream_options",
    "temperature",
    "tool_choice",
    "tools",
    "top_logprobs",
    "top_p",
    "user",
    "verbosity",
    "web_search_options",
    "model",
    "messages",
];

/// What members usually hold, and anything else.
fn any_value() -> impl Strategy<Value = Value> {
    let words =
        ["auto", "default", "flex", "none", "low", "medium", "high", "required", "json_object", "m", "hi"];
    prop_oneof![
        any::<bool>().prop_map(Value::from),
        (0_u32..3).prop_map(Value::from),
        (0_u32..=20).prop_map(|tenths| json!(f64::from(tenths) / 10.0)),
        proptest::sample::select(words.to_vec()).prop_map(Value::from),
        proptest::sample::select(words.to_vec()).prop_map(|kind| json!({"type": kind})),
        Just(json!({})),
        Just(json!([])),
        Just(json!(["text"])),
        any_json(),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, ..ProptestConfig::default() })]

    #[test]
    fn what_both_sides_can_say_survives(chat in request()) {
        let result = translate(chat.to_string().as_bytes(), &Options::default()).unwrap();
        let mut back = back(&serde_json::from_slice(&result.body).unwrap());
        prop_assert_eq!(result.stream, chat["stream"] == true);
        if let Some(options) = chat.get("stream_options") {
            prop_assert_eq!(options["include_usage"] == true, result.include_usage);
            back["stream_options"] = options.clone();
        }
        prop_assert_eq!(back, chat);
    }

    /// A member that nobody knows, anywhere, is refused, or it stands in the result: in a schema.
    #[test]
    fn nothing_unknown_is_dropped(mut chat in request(), place in any::<Index>()) {
        let places = objects(&chat);
        let place = &places[place.index(places.len())];
        chat.pointer_mut(place).unwrap()["zz_new"] = json!("zz-value");
        match translate(chat.to_string().as_bytes(), &Options::default()) {
            Err(refusal) => {
                prop_assert_eq!(refusal.code, "unknown_parameter");
                prop_assert!(refusal.param.unwrap().ends_with("zz_new"));
            }
            Ok(result) => prop_assert!(String::from_utf8(result.body).unwrap().contains("zz-value"), "{}", place),
        }
    }

    /// A known member with any value is refused, changes the result, or is in the list of what is left out.
    #[test]
    fn nothing_known_is_dropped(name in proptest::sample::select(&MEMBERS[..]), value in any_value()) {
        let listed = left_out().iter().any(|members| members.get(name) == Some(&value));
        let is_label = name == "prompt_cache_key" || name == "metadata";
        let is_nothing = (name == "stream" && value == false) || (name == "tools" && value == json!([]));
        prop_assume!(!value.is_null() && !listed && !is_label && !is_nothing);
        let chat = with(&json!({name: value.clone()}));
        let same = with(&json!({}));
        if let Ok(result) = translate(chat.to_string().as_bytes(), &Options::default()) {
            let result: Value = serde_json::from_slice(&result.body).unwrap();
            prop_assert!(result != translated(&same) || chat == same, "{} = {}", name, value);
        }
    }

    #[test]
    fn no_request_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..100), value in any_json()) {
        drop(translate(&bytes, &Options::default()));
        for member in ["messages", "tools", "tool_choice", "stop", "response_format", "stream_options"] {
            let chat = with(&json!({member: value.clone(), "stream": true}));
            if let Ok(result) = translate(chat.to_string().as_bytes(), &Options::default()) {
                prop_assert!(serde_json::from_slice::<Value>(&result.body).is_ok());
            }
        }
    }
}
