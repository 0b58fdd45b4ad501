//! Requests and messages as clients and models make them.

use proptest::{
    collection::vec,
    option,
    prelude::*,
    sample::{Index, select},
};
use serde_json::{Map, Value, json};

/// Words that are not empty: with quotes, escapes, line breaks and more than one alphabet.
pub(super) fn words() -> impl Strategy<Value = String> {
    prop_oneof!["[ -~]{1,12}", "[\\PC\n\t\"\\\\]{1,8}", Just("data: x\n\nevent: y".to_owned())]
}

pub(super) fn name() -> impl Strategy<Value = String> {
    "[a-zA-Z0-9_-]{1,10}"
}

pub(super) fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        words().prop_map(Value::from)
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((name(), inner), 0..4).prop_map(|members| Value::Object(members.into_iter().collect()))
        ]
    })
}

/// The input of a tool.
pub(super) fn any_object() -> impl Strategy<Value = Value> {
    vec((name(), any_json()), 0..3).prop_map(|members| Value::Object(members.into_iter().collect()))
}

fn text_part() -> impl Strategy<Value = Value> {
    words().prop_map(|text| json!({"type": "text", "text": text}))
}

fn user_part() -> impl Strategy<Value = Value> {
    let url =
        select(&["https://example.com/a.png", "http://x/y?z=1", "data:image/png;base64,iVBORw0KGgo="][..]);
    prop_oneof![
        text_part(),
        url.prop_map(|url| json!({"type": "image_url", "image_url": {"url": url}})),
        name().prop_map(|name| json!({"type": "file",
            "file": {"file_data": "data:application/pdf;base64,JVBERi0=", "filename": name}})),
    ]
}

fn call() -> impl Strategy<Value = Value> {
    (name(), name(), any_object()).prop_map(|(id, name, input)| {
        json!({"id": id, "type": "function", "function": {"name": name, "arguments": input.to_string()}})
    })
}

/// One part would come back as a text.
fn content(part: impl Strategy<Value = Value> + Clone + 'static) -> impl Strategy<Value = Value> {
    prop_oneof![words().prop_map(Value::from), vec(part, 2..4).prop_map(Value::from)]
}

/// Turns of a conversation; results of tools come after calls of them.
fn turn() -> impl Strategy<Value = Vec<Value>> {
    let user = prop_oneof![content(text_part().boxed()), vec(user_part(), 1..4).prop_map(Value::from)];
    let user = user.prop_map(|content| vec![json!({"role": "user", "content": content})]);
    let assistant =
        (option::of(content(text_part().boxed())), vec(call(), 0..3), content(text_part().boxed()));
    let assistant = assistant.prop_map(|(content, calls, result)| {
        let mut turns = vec![json!({"role": "assistant", "content": content})];
        if calls.is_empty() {
            turns[0]["content"] = content.unwrap_or_else(|| json!("."));
        } else {
            let result =
                |call: &Value| json!({"role": "tool", "tool_call_id": call["id"], "content": result});
            let results: Vec<Value> = calls.iter().map(result).collect();
            turns[0]["tool_calls"] = Value::from(calls);
            turns.extend(results);
        }
        turns
    });
    let system = content(text_part().boxed());
    let system = system.prop_map(|content| vec![json!({"role": "system", "content": content})]);
    prop_oneof![4 => user, 4 => assistant, 1 => system]
}

fn tool() -> impl Strategy<Value = Value> {
    let schema = any_object().prop_map(|object| json!({"type": "object", "properties": object}));
    (name(), option::of(words()), schema, option::of(any::<bool>())).prop_map(
        |(name, description, parameters, strict)| {
            let mut function = json!({"name": name, "parameters": parameters});
            set(&mut function, "description", description);
            set(&mut function, "strict", strict);
            json!({"type": "function", "function": function})
        },
    )
}

/// Sets what there is.
fn set(object: &mut Value, name: &str, value: Option<impl Into<Value>>) {
    if let Some(value) = value {
        object[name] = value.into();
    }
}

/// A request in which everything can be said on both sides, in the form in which it comes back.
pub(super) fn request() -> impl Strategy<Value = Value> {
    let messages = (vec(words(), 0..3), words(), vec(turn(), 0..4)).prop_map(|(system, first, turns)| {
        let system = system.into_iter().map(|text| json!({"role": "system", "content": text}));
        let first = json!({"role": "user", "content": first});
        system.chain([first]).chain(turns.into_iter().flatten()).collect::<Value>()
    });
    let choice = prop_oneof![
        select(&["auto", "none", "required"][..]).prop_map(Value::from),
        name().prop_map(|name| json!({"type": "function", "function": {"name": name}}))
    ];
    let tools = option::of((vec(tool(), 1..3), option::of((choice, option::of(any::<bool>())))));
    let format = any_object().prop_map(
        |schema| json!({"type": "json_schema", "json_schema": {"name": "answer", "schema": schema}}),
    );
    let effort = select(&["none", "low", "medium", "high", "xhigh", "max"][..]);
    let stream = prop_oneof![Just(None), Just(Some(None)), any::<bool>().prop_map(|usage| Some(Some(usage)))];
    let rest = (
        option::of(vec(words(), 1..4)),
        option::of(0_u32..=100),
        option::of(effort),
        option::of(format),
        option::of(name()),
        option::of(select(&["auto", "default"][..])),
        stream,
    );
    (name(), messages, 1_u32..100_000, tools, rest).prop_map(|(model, messages, max_tokens, tools, rest)| {
        let (stop, temperature, effort, format, user, tier, stream) = rest;
        let mut request = json!({"model": model, "messages": messages, "max_completion_tokens": max_tokens});
        if let Some((tools, choice)) = tools {
            request["tools"] = Value::from(tools);
            if let Some((choice, parallel)) = choice {
                let parallel = parallel.filter(|_| choice != "none");
                request["tool_choice"] = choice;
                set(&mut request, "parallel_tool_calls", parallel);
            }
        }
        set(&mut request, "stop", stop);
        set(&mut request, "temperature", temperature.map(|percent| f64::from(percent) / 100.0));
        set(&mut request, "reasoning_effort", effort);
        set(&mut request, "response_format", format);
        set(&mut request, "safety_identifier", user);
        set(&mut request, "service_tier", tier);
        if let Some(usage) = stream {
            request["stream"] = json!(true);
            set(&mut request, "stream_options", usage.map(|usage| json!({"include_usage": usage})));
        }
        request
    })
}

/// A message of the model's.
pub(super) fn message() -> impl Strategy<Value = Value> {
    let block = prop_oneof![
        3 => words().prop_map(|text| json!({"type": "text", "text": text})),
        1 => words().prop_map(|text| json!({"type": "thinking", "thinking": text, "signature": "c2ln"})),
        2 => (name(), name(), any_object())
            .prop_map(|(id, name, input)| json!({"type": "tool_use", "id": id, "name": name, "input": input})),
    ];
    let stop = select(
        &[
            "end_turn",
            "max_tokens",
            "stop_sequence",
            "tool_use",
            "pause_turn",
            "refusal",
            "model_context_window_exceeded",
        ][..],
    );
    let count = || option::of(0_u64..1_000_000);
    let tier = option::of(select(&["standard", "priority", "batch"][..]));
    let usage = (0_u64..1_000_000, 0_u64..100_000, count(), count(), count(), tier);
    (vec(block, 0..5), stop, option::of(words()), name(), name(), usage).prop_map(
        |(content, stop, explanation, id, model, (input, output, created, read, thought, tier))| {
            let mut usage = json!({"input_tokens": input, "output_tokens": output,
                "cache_creation_input_tokens": created, "cache_read_input_tokens": read});
            set(
                &mut usage,
                "output_tokens_details",
                thought.map(|tokens| json!({"thinking_tokens": tokens})),
            );
            set(&mut usage, "service_tier", tier);
            let details = (stop == "refusal").then(|| json!({"type": "refusal", "explanation": explanation}));
            json!({"id": id, "type": "message", "role": "assistant", "model": model, "content": content,
                "stop_reason": stop, "stop_sequence": null, "stop_details": details, "usage": usage})
        },
    )
}

/// The places of all objects in a value, as JSON pointers.
pub(super) fn objects(value: &Value) -> Vec<String> {
    fn walk(value: &Value, pointer: &str, found: &mut Vec<String>) {
        match value {
            Value::Object(members) => {
                found.push(pointer.to_owned());
                for (name, member) in members {
                    walk(member, &format!("{pointer}/{}", name.replace('~', "~0").replace('/', "~1")), found);
                }
            }
            Value::Array(entries) => {
                for (index, entry) in entries.iter().enumerate() {
                    walk(entry, &format!("{pointer}/{index}"), found);
                }
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    walk(value, "", &mut found);
    found
}

/// Where bytes are cut, and what comes of it.
pub(super) fn cut<'b>(bytes: &'b [u8], cuts: &[Index]) -> Vec<&'b [u8]> {
    let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
    cuts.sort_unstable();
    cuts.push(bytes.len());
    let mut begin = 0;
    let piece = |end| {
        let piece = &bytes[begin..end];
        begin = end;
        piece
    };
    cuts.into_iter().map(piece).collect()
}

/// An object's member, or null.
pub(super) fn member(members: &Map<String, Value>, name: &str) -> Value {
    members.get(name).cloned().unwrap_or(Value::Null)
}
