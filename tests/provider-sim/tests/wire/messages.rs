//! Anthropic's surface: messages, token counts and models.

use std::time::Duration;

use provider_sim::{Endpoint, Fault, Limits, Mode, count_tokens, expected_answer, price_of};
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::rig::{Rig, good, sim};

pub(crate) const CLAUDE: &str = "claude-haiku-5-5";
pub(crate) const MESSAGES: &str = "/v1/messages";
pub(crate) const VERSION: &str = "anthropic-version";

pub(crate) fn message(prompt: &str) -> Value {
    json!({"model": CLAUDE, "max_tokens": 1_000, "messages": [{"role": "user", "content": prompt}]})
}

/// Sends a request that must fail with `status`; returns type and message of the error.
pub(crate) async fn refused(request: RequestBuilder, status: u16) -> (String, String) {
    let response = request.send().await.unwrap();
    let got = response.status();
    let id = response.headers()["request-id"].to_str().unwrap().to_owned();
    let body: Value = response.json().await.unwrap();
    assert_eq!(got, status, "{body}");
    assert_eq!((&body["type"], &body["request_id"]), (&json!("error"), &id.into()));
    let text = |name: &str| body["error"][name].as_str().unwrap().to_owned();
    (text("type"), text("message"))
}

impl Rig {
    /// A POST of a caller who speaks Anthropic's newer version.
    pub(crate) fn ask(&self, path: &str, body: &Value) -> RequestBuilder {
        self.post(path, body).header(VERSION, "2026-10-21")
    }

    pub(crate) async fn look(&self, path: &str) -> Value {
        let request = self.client.get(self.url(path)).header(VERSION, "2026-10-21");
        good(request.send().await.unwrap()).await
    }
}

#[tokio::test]
async fn a_message_is_answered_and_billed() {
    let rig = Rig::of(sim()).await;
    let mut body = message("How are you today?");
    body["system"] = "Be kind.".into();
    let response = rig.ask(MESSAGES, &body).send().await.unwrap();
    assert!(response.headers()["request-id"].to_str().unwrap().starts_with("req_"));
    assert!(!response.headers().contains_key("openai-version"));
    let reply = good(response).await;
    let answer = expected_answer(CLAUDE, "How are you today?");
    assert_eq!((&reply["type"], &reply["role"]), (&"message".into(), &"assistant".into()));
    assert_eq!(reply["content"], json!([{"type": "text", "text": answer}]));
    assert_eq!((&reply["stop_reason"], &reply["stop_sequence"]), (&"end_turn".into(), &Value::Null));
    let output = count_tokens(&answer);
    let usage = &reply["usage"];
    assert_eq!((&usage["input_tokens"], &usage["output_tokens"]), (&7.into(), &output.into()));
    assert_eq!(usage["service_tier"], "standard");
    let bill = rig.provider.bill();
    assert_eq!((bill.requests(Mode::Realtime), bill.lines.len()), (1, 1));
    assert_eq!(bill.total().0, 7 * 100_000 + output * 500_000);
}

#[tokio::test]
async fn limits_and_stop_sequences_end_an_answer() {
    let rig = Rig::of(sim()).await;
    let mut body = message("one two three");
    body["max_tokens"] = 8.into();
    let cut = good(rig.ask(MESSAGES, &body).send().await.unwrap()).await;
    assert_eq!((&cut["stop_reason"], &cut["usage"]["output_tokens"]), (&"max_tokens".into(), &8.into()));
    body["max_tokens"] = 500.into();
    body["stop_sequences"] = json!(["never said", " three"]);
    let stopped = good(rig.ask(MESSAGES, &body).send().await.unwrap()).await;
    assert_eq!(
        (&stopped["stop_reason"], &stopped["stop_sequence"]),
        (&"stop_sequence".into(), &" three".into())
    );
    let text = stopped["content"][0]["text"].as_str().unwrap();
    assert!(text.ends_with(": one two"), "{text}");
}

#[tokio::test]
async fn a_stream_has_named_events_and_a_ping() {
    let rig = Rig::of(sim()).await;
    let mut body = message("stream it");
    body["stream"] = true.into();
    let response = rig.ask(MESSAGES, &body).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let text = response.text().await.unwrap();
    let mut names = Vec::new();
    let mut data = Vec::new();
    for event in text.trim_end().split("\n\n") {
        let (name, json) = event.split_once('\n').unwrap();
        let json: Value = serde_json::from_str(json.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: ").unwrap(), json["type"]);
        names.push(json["type"].as_str().unwrap().to_owned());
        data.push(json);
    }
    names.dedup();
    let order = "message_start content_block_start ping content_block_delta content_block_stop message_delta \
                 message_stop";
    assert_eq!(names.join(" "), order);
    assert_eq!(data[0]["message"]["content"], json!([]));
    assert_eq!(data[0]["message"]["usage"]["input_tokens"], 3);
    let words = data.iter().filter_map(|event| event["delta"]["text"].as_str());
    let answer = expected_answer(CLAUDE, "stream it");
    assert_eq!(words.collect::<String>(), answer);
    let last = &data[data.len() - 2];
    assert_eq!(last["delta"]["stop_reason"], "end_turn");
    assert_eq!(last["usage"]["output_tokens"], count_tokens(&answer));
    assert_eq!(rig.provider.bill().requests(Mode::Realtime), 1);
}

#[tokio::test]
async fn keys_come_in_both_headers_and_versions_must_be_named() {
    let rig = Rig::of(sim().keys(["sk-ant"])).await;
    let call = || rig.post(MESSAGES, &message("x"));
    let authentication = |text: &str| ("authentication_error".to_owned(), text.to_owned());
    assert_eq!(refused(call(), 401).await, authentication("x-api-key header is required"));
    assert_eq!(refused(call().bearer_auth("sk-no"), 401).await, authentication("invalid x-api-key"));
    let known = || call().header("x-api-key", "sk-ant");
    assert_eq!(refused(known(), 400).await.1, "anthropic-version: header is required");
    assert!(refused(known().header(VERSION, "2020-01-01"), 400).await.1.contains("not a valid version"));
    for version in ["2023-06-01", "2026-10-21"] {
        good(known().header(VERSION, version).send().await.unwrap()).await;
        good(call().bearer_auth("sk-ant").header(VERSION, version).send().await.unwrap()).await;
    }
    assert_eq!(rig.provider.bill().requests(Mode::Realtime), 4);
}

#[tokio::test]
async fn bad_calls_are_refused_in_the_api_s_words() {
    let rig = Rig::of(sim().limits(Limits { message_bytes: 2_000, ..Limits::default() })).await;
    let with = |field: &str, value: Value| {
        let mut body = message("x");
        body[field] = value;
        rig.ask(MESSAGES, &body)
    };
    let invalid = |text: &str| ("invalid_request_error".to_owned(), text.to_owned());
    assert_eq!(refused(with("max_tokens", Value::Null), 400).await, invalid("max_tokens: Field required"));
    assert_eq!(
        refused(with("colour", 1.into()), 400).await,
        invalid("colour: Extra inputs are not permitted")
    );
    assert_eq!(
        refused(with("temperature", 1.into()), 400).await,
        invalid("temperature: Extra inputs are not permitted")
    );
    let unknown = ("not_found_error".to_owned(), "model: who".to_owned());
    assert_eq!(refused(with("model", "who".into()), 404).await, unknown);
    assert_eq!(refused(with("system", "x".repeat(2_000).into()), 413).await.0, "request_too_large");
    let get = rig.client.get(rig.url(MESSAGES)).header(VERSION, "2026-10-21");
    assert_eq!(refused(get, 405).await.0, "invalid_request_error");
    assert_eq!(rig.provider.bill().lines, []);
    let mut warm = message("x");
    warm["temperature"] = 1.into();
    good(rig.post(MESSAGES, &warm).header(VERSION, "2023-06-01").send().await.unwrap()).await;
}

#[tokio::test]
async fn counting_is_free_and_takes_no_limit() {
    let rig = Rig::of(sim()).await;
    let mut body = message("How are you today?");
    let path = "/v1/messages/count_tokens";
    assert_eq!(refused(rig.ask(path, &body), 400).await.1, "max_tokens: Extra inputs are not permitted");
    body.as_object_mut().unwrap().remove("max_tokens");
    let counted = good(rig.ask(path, &body).send().await.unwrap()).await;
    assert_eq!(counted, json!({"input_tokens": 5}));
    assert_eq!(rig.provider.bill().lines, []);
    assert_eq!(rig.provider.calls(Endpoint::CountTokens), 2);
}

#[tokio::test]
async fn each_api_lists_its_own_models() {
    let rig = Rig::of(sim()).await;
    let ids = |list: &Value| -> Vec<String> {
        let data = list["data"].as_array().unwrap();
        data.iter().map(|model| model["id"].as_str().unwrap().to_owned()).collect()
    };
    let theirs = rig.look("/v1/models?limit=3").await;
    assert_eq!((theirs["data"].as_array().unwrap().len(), &theirs["has_more"]), (3, &true.into()));
    assert!(ids(&theirs).iter().all(|id| id.starts_with("claude")));
    let rest = rig.look(&format!("/v1/models?after_id={}", theirs["last_id"].as_str().unwrap())).await;
    assert_eq!((ids(&rest).len(), &rest["has_more"]), (2, &false.into()));
    let one = rig.look(&format!("/v1/models/{CLAUDE}")).await;
    assert_eq!((&one["type"], &one["lifecycle"]), (&"model".into(), &"active".into()));
    let none = rig.client.get(rig.url("/v1/models/who")).header(VERSION, "2026-10-21");
    assert_eq!(refused(none, 404).await.0, "not_found_error");
    let ours = rig.get("/v1/models").await;
    assert_eq!(ours["object"], "list");
    assert!(ids(&ours).iter().all(|id| !id.starts_with("claude")));
}

#[tokio::test]
async fn marked_prompts_are_cached_at_their_price() {
    let rig = Rig::of(sim().prompt_cache(true)).await;
    let mut body = message("short");
    body["system"] = json!([{"type": "text", "text": "context ".repeat(1_000)}]);
    let ask = async |body: &Value| {
        let usage = good(rig.ask(MESSAGES, body).send().await.unwrap()).await["usage"].clone();
        ["input_tokens", "cache_creation_input_tokens", "cache_read_input_tokens"]
            .map(|name| usage[name].as_u64().unwrap())
    };
    assert_eq!(ask(&body).await, [2_002, 0, 0], "nobody asked for caching");
    body["system"][0]["cache_control"] = json!({"type": "ephemeral"});
    assert_eq!(ask(&body).await, [82, 1_920, 0]);
    assert_eq!(ask(&body).await, [82, 0, 1_920]);
    rig.advance(Duration::from_mins(6));
    assert_eq!(ask(&body).await, [82, 1_920, 0], "forgotten after five minutes");
    let bill = rig.provider.bill();
    let usage = bill.lines[0].usage;
    assert_eq!((usage.cached_tokens, usage.cache_written_tokens), (1_920, 3_840));
    let prices = price_of(CLAUDE);
    let fresh = 2_002 + 3 * 82;
    let input = fresh * prices.input + 1_920 * prices.cached + 3_840 * prices.cache_write;
    assert_eq!(bill.total().0, input + usage.output_tokens * prices.output);
}

#[tokio::test]
async fn faults_and_limits_speak_the_dialect() {
    let limits = Limits { requests_per_minute: Some(3), ..Limits::default() };
    let rig = Rig::of(sim().limits(limits)).await;
    let faults = rig.provider.faults();
    faults.next(Endpoint::Messages, Fault::Status { status: 529, retry_after_ms: None });
    let overloaded = ("overloaded_error".to_owned(), "Overloaded".to_owned());
    assert_eq!(refused(rig.ask(MESSAGES, &message("x")), 529).await, overloaded);
    faults.next(Endpoint::Messages, Fault::StatusAfterEffect { status: 500 });
    assert_eq!(refused(rig.ask(MESSAGES, &message("x")), 500).await.0, "api_error");
    assert_eq!(rig.provider.bill().requests(Mode::Realtime), 1, "that one was done all the same");
    let headers = rig.ask(MESSAGES, &message("x")).send().await.unwrap().headers().clone();
    assert_eq!(headers["anthropic-ratelimit-requests-limit"], "3");
    assert_eq!(headers["anthropic-ratelimit-requests-remaining"], "0");
    assert!(headers["anthropic-ratelimit-requests-reset"].to_str().unwrap().ends_with('Z'));
    let response = rig.ask(MESSAGES, &message("x")).send().await.unwrap();
    assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() <= 60);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"]["type"], "rate_limit_error");
}

fn with_tools(prompt: &str, choice: &Value) -> Value {
    let mut body = message(prompt);
    let schema = json!({"type": "object", "properties": {"said": {"type": "string"}}});
    body["tools"] =
        json!([{"name": "look", "input_schema": schema}, {"name": "ask", "input_schema": schema}]);
    body["tool_choice"] = choice.clone();
    body
}

#[tokio::test]
async fn a_tool_that_has_to_be_called_is_called_with_the_answer() {
    let rig = Rig::of(sim()).await;
    let said = expected_answer(CLAUDE, "closer, please");
    for (choice, name) in [(json!({"type": "any"}), "look"), (json!({"type": "tool", "name": "ask"}), "ask")]
    {
        let body = with_tools("closer, please", &choice);
        let reply = good(rig.ask(MESSAGES, &body).send().await.unwrap()).await;
        assert_eq!(reply["stop_reason"], "tool_use");
        let id = &reply["content"][0]["id"];
        assert!(id.as_str().unwrap().starts_with("toolu_"), "{reply}");
        let block = json!([{"type": "tool_use", "id": id, "name": name, "input": {"said": said}}]);
        assert_eq!(reply["content"], block);
    }
    let free = good(
        rig.ask(MESSAGES, &with_tools("closer, please", &json!({"type": "auto"}))).send().await.unwrap(),
    );
    assert_eq!(free.await["content"], json!([{"type": "text", "text": said}]));

    let mut body = with_tools("closer, please", &json!({"type": "any"}));
    body["stream"] = true.into();
    let text = rig.ask(MESSAGES, &body).send().await.unwrap().text().await.unwrap();
    let events =
        text.lines().filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok());
    let pieces: Vec<String> =
        events.filter_map(|event| event["delta"]["partial_json"].as_str().map(str::to_owned)).collect();
    assert!(pieces.len() > 2, "{text}");
    assert_eq!(serde_json::from_str::<Value>(&pieces.concat()).unwrap(), json!({ "said": said }));
}

#[tokio::test]
async fn images_and_the_results_of_tools_are_looked_at_closely() {
    let rig = Rig::of(sim()).await;
    let turns = |messages: Value| {
        let mut body = with_tools("", &json!({"type": "auto"}));
        body["messages"] = messages;
        body
    };
    let image = |source: Value| json!([{"role": "user", "content": [{"type": "image", "source": source}]}]);
    let call = json!({"type": "tool_use", "id": "t1", "name": "look", "input": {"said": "x"}});
    let result =
        json!({"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "a cat"}]});
    let talk = |call: &Value, result: &Value| {
        json!([{"role": "user", "content": "look"}, {"role": "assistant", "content": [call]},
            {"role": "user", "content": [result]}])
    };
    let good_image = image(json!({"type": "base64", "media_type": "image/png", "data": "iVBORw0KGgo="}));
    for messages in [good_image, image(json!({"type": "url", "url": "https://x/y.png"}))] {
        good(rig.ask(MESSAGES, &turns(messages)).send().await.unwrap()).await;
    }
    let reply = good(rig.ask(MESSAGES, &turns(talk(&call, &result))).send().await.unwrap()).await;
    assert_eq!(reply["content"][0]["text"], expected_answer(CLAUDE, "a cat"), "it answers to the result");

    let other = json!({"type": "tool_result", "tool_use_id": "t2", "content": "a cat"});
    for (messages, why) in [
        (image(json!({"type": "base64", "media_type": "image/svg+xml", "data": "AA"})), "media_type"),
        (image(json!({"type": "base64", "media_type": "image/png"})), "image cannot be empty"),
        (image(json!({"type": "url", "url": "ftp://x"})), "Only HTTPS"),
        (json!([{"role": "user", "content": [{"type": "image"}]}]), "image.source: Field required"),
        (talk(&call, &other), "without `tool_result` blocks immediately after: t1"),
        (json!([{"role": "user", "content": [result]}]), "unexpected `tool_use_id`"),
        (talk(&call, &json!({"type": "text", "text": "no"})), "without `tool_result` blocks"),
        (
            talk(&json!({"type": "tool_use", "name": "look", "input": {}}), &result),
            "tool_use.id: Field required",
        ),
        (talk(&result, &result), "not permitted in assistant messages"),
    ] {
        let (kind, message) = refused(rig.ask(MESSAGES, &turns(messages)), 400).await;
        assert!(kind == "invalid_request_error" && message.contains(why), "{why}: {message}");
    }
    for (name, choice, why) in [
        ("tools", json!([{"name": "x"}]), "tools.0.input_schema: Field required"),
        ("tools", json!([{"input_schema": {}}]), "tools.0.name: Field required"),
        ("tools", json!([{"name": "x", "input_schema": {"type": "string"}}]), "should be 'object'"),
        ("tool_choice", json!({"type": "tool", "name": "unheard-of"}), "not found in provided tools"),
        ("tool_choice", json!({"type": "sometimes"}), "should be 'auto'"),
    ] {
        let mut body = with_tools("x", &json!({"type": "auto"}));
        body[name] = choice;
        let (_, message) = refused(rig.ask(MESSAGES, &body), 400).await;
        assert!(message.contains(why), "{why}: {message}");
    }
}
