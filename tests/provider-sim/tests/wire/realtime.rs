//! Calls that run a model at once, and background responses.

use std::time::Duration;

use base64::Engine;
use provider_sim::{Mode, count_tokens, expected_answer, expected_embedding, price_of};
use serde_json::{Value, json};

use crate::rig::{CHAT, MODEL, Rig, chat, good, refused, sim};

/// The data of all events of a stream, in order.
fn events(text: &str) -> Vec<Value> {
    let data = text.split("\n\n").flat_map(str::lines).filter_map(|line| line.strip_prefix("data: "));
    data.filter(|data| *data != "[DONE]").map(|data| serde_json::from_str(data).unwrap()).collect()
}

#[tokio::test]
async fn a_chat_completion_is_answered_and_billed() {
    let rig = Rig::of(sim()).await;
    let response = rig.post(CHAT, &chat("How are you today?")).send().await.unwrap();
    assert!(response.headers()["x-request-id"].to_str().unwrap().starts_with("req_"));
    let reply = good(response).await;
    assert_eq!(reply["object"], "chat.completion");
    assert_eq!(reply["choices"][0]["message"]["content"], expected_answer(MODEL, "How are you today?"));
    assert_eq!(reply["choices"][0]["finish_reason"], "stop");
    assert_eq!(reply["service_tier"], "default");
    let output = count_tokens(&expected_answer(MODEL, "How are you today?"));
    assert_eq!(reply["usage"]["prompt_tokens"], 5);
    assert_eq!(reply["usage"]["completion_tokens"], output);
    assert_eq!(reply["usage"]["total_tokens"], 5 + output);
    let bill = rig.provider.bill();
    assert_eq!((bill.requests(Mode::Realtime), bill.lines.len()), (1, 1));
    assert_eq!(bill.total(), price_of(MODEL).cost(Mode::Realtime, bill.lines[0].usage));
    assert_eq!(bill.total().0, 5 * 150_000 + output * 600_000);
}

#[tokio::test]
async fn tiers_have_their_prices_and_echo() {
    let rig = Rig::of(sim()).await;
    for (asked, echoed) in
        [("flex", "flex"), ("fast", "priority"), ("priority", "priority"), ("auto", "default")]
    {
        let mut body = chat("hi");
        body["service_tier"] = asked.into();
        assert_eq!(good(rig.post(CHAT, &body).send().await.unwrap()).await["service_tier"], echoed);
    }
    let bill = rig.provider.bill();
    let one = bill.cost(Mode::Realtime).0;
    assert_eq!(bill.cost(Mode::Flex).0 * 2, one);
    assert_eq!(bill.cost(Mode::Priority).0 * 3, one * 2 * 5, "two of them at 5/3");
    assert_eq!(bill.all_realtime().0, 4 * one);
    assert_eq!(bill.executions.repeated().len(), 1, "the tier does not make it another request");
}

#[tokio::test]
async fn a_limit_on_tokens_cuts_the_answer() {
    let rig = Rig::of(sim()).await;
    let mut body = chat("long story");
    body["max_completion_tokens"] = 8.into();
    body["n"] = 2.into();
    let reply = good(rig.post(CHAT, &body).send().await.unwrap()).await;
    let content = reply["choices"][1]["message"]["content"].as_str().unwrap();
    assert!(expected_answer(MODEL, "long story").starts_with(content) && content.len() == 32);
    assert_eq!(reply["choices"][1]["finish_reason"], "length");
    assert_eq!(reply["usage"]["completion_tokens"], 16);
}

#[tokio::test]
async fn a_chat_stream_has_the_answer_and_its_usage() {
    let rig = Rig::of(sim()).await;
    let mut body = chat("stream it");
    body["stream"] = true.into();
    let plain = rig.post(CHAT, &body).send().await.unwrap().text().await.unwrap();
    assert!(events(&plain).iter().all(|chunk| chunk.get("usage").is_none()));
    body["stream_options"] = json!({"include_usage": true});
    let response = rig.post(CHAT, &body).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    let text = response.text().await.unwrap();
    assert!(text.ends_with("data: [DONE]\n\n"));
    let chunks = events(&text);
    let words = chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str());
    assert_eq!(words.collect::<String>(), expected_answer(MODEL, "stream it"));
    let (last, others) = chunks.split_last().unwrap();
    assert_eq!(last["choices"], json!([]));
    assert!(others.iter().all(|chunk| chunk.get("usage") == Some(&Value::Null)));
    assert_eq!(others.last().unwrap()["choices"][0]["finish_reason"], "stop");
    assert_eq!(last["usage"]["total_tokens"], 3 + count_tokens(&expected_answer(MODEL, "stream it")));
}

#[tokio::test]
async fn completions_answer_each_prompt() {
    let rig = Rig::of(sim()).await;
    let mut body = json!({"model": "gpt-3.5-turbo-instruct", "prompt": ["one", "two"], "max_tokens": 100});
    let reply = good(rig.post("/v1/completions", &body).send().await.unwrap()).await;
    assert_eq!(reply["object"], "text_completion");
    assert_eq!(reply["choices"][1]["index"], 1);
    assert_eq!(reply["choices"][1]["text"], expected_answer("gpt-3.5-turbo-instruct", "two"));
    body["stream"] = true.into();
    let text = rig.post("/v1/completions", &body).send().await.unwrap().text().await.unwrap();
    let second = events(&text).into_iter().filter(|chunk| chunk["choices"][0]["index"] == 1);
    let words = second.filter_map(|chunk| chunk["choices"][0]["text"].as_str().map(str::to_owned));
    assert_eq!(words.collect::<String>(), expected_answer("gpt-3.5-turbo-instruct", "two"));
}

#[tokio::test]
async fn embeddings_come_as_floats_and_as_base64() {
    let rig = Rig::of(sim()).await;
    let model = "text-embedding-3-small";
    let body = json!({"model": model, "input": ["alpha", "beta"], "dimensions": 8});
    let floats = good(rig.post("/v1/embeddings", &body).send().await.unwrap()).await;
    let got: Vec<f32> = serde_json::from_value(floats["data"][1]["embedding"].clone()).unwrap();
    assert_eq!(got, expected_embedding(model, "beta", 8));
    assert_eq!(floats["usage"], json!({"prompt_tokens": 3, "total_tokens": 3}));
    let body = json!({"model": model, "input": [[1, 2, 3]], "encoding_format": "base64"});
    let packed = good(rig.post("/v1/embeddings", &body).send().await.unwrap()).await;
    let text = packed["data"][0]["embedding"].as_str().unwrap();
    let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap();
    let got: Vec<f32> = bytes.chunks_exact(4).map(|c| f32::from_le_bytes(c.try_into().unwrap())).collect();
    assert_eq!(got, expected_embedding(model, "tokens:1,2,3", 1536));
    assert_eq!(packed["usage"]["prompt_tokens"], 3);
}

#[tokio::test]
async fn embeddings_are_strict() {
    let rig = Rig::of(sim()).await;
    let model = "text-embedding-3-small";
    for body in [
        json!({"model": model, "input": ""}),
        json!({"model": model, "input": []}),
        json!({"model": model, "input": vec!["x"; 2049]}),
        json!({"model": model, "input": "x".repeat(8192 * 4 + 1)}),
        json!({"model": model, "input": "x", "encoding_format": "int8"}),
        json!({"model": model, "input": "x", "dimensions": 1537}),
    ] {
        refused(rig.post("/v1/embeddings", &body), 400).await;
    }
    assert_eq!(rig.provider.bill().lines, []);
}

#[tokio::test]
async fn bad_calls_are_refused_in_the_api_s_words() {
    let rig = Rig::of(sim()).await;
    let code = async |body: Value, status| refused(rig.post(CHAT, &body), status).await;
    assert_eq!(code(json!({"model": MODEL}), 400).await["param"], "messages");
    assert_eq!(code(json!({"messages": [{"role": "user", "content": "x"}]}), 400).await["param"], "model");
    assert_eq!(code(json!({"model": MODEL, "messages": []}), 400).await["code"], "empty_array");
    assert_eq!(code(json!({"model": MODEL, "messages": "x"}), 400).await["code"], "invalid_type");
    let with = |field: &str, value: Value| {
        let mut body = chat("x");
        body[field] = value;
        body
    };
    assert_eq!(code(with("model", "who".into()), 404).await["code"], "model_not_found");
    assert_eq!(code(with("colour", 1.into()), 400).await["code"], "unknown_parameter");
    assert_eq!(code(with("temperature", 3.into()), 400).await["param"], "temperature");
    assert_eq!(code(with("max_tokens", 0.into()), 400).await["code"], "integer_below_min_value");
    assert_eq!(code(with("service_tier", "turbo".into()), 400).await["param"], "service_tier");
    assert_eq!(code(with("stream_options", json!({})), 400).await["param"], "stream_options");
    let many: Value = (0..17).map(|n| (n.to_string(), "v".into())).collect::<serde_json::Map<_, _>>().into();
    assert_eq!(code(with("metadata", many), 400).await["param"], "metadata");
    let raw = |body: &'static str, content_type: &'static str| {
        rig.client.post(rig.url(CHAT)).header("content-type", content_type).body(body)
    };
    assert!(refused(raw("{", "application/json"), 400).await["message"].as_str().unwrap().contains("parse"));
    assert_eq!(refused(raw("{}", "text/plain"), 400).await["code"], "unsupported_content_type");
    refused(rig.client.get(rig.url(CHAT)), 405).await;
    refused(rig.client.get(rig.url("/v1/nothing")), 404).await;
    assert_eq!(rig.provider.bill().lines, []);
}

#[tokio::test]
async fn keys_are_asked_for() {
    let rig = Rig::of(sim().keys(["sk-sim"])).await;
    assert_eq!(refused(rig.post(CHAT, &chat("x")), 401).await["code"], Value::Null);
    assert_eq!(
        refused(rig.post(CHAT, &chat("x")).bearer_auth("sk-no"), 401).await["code"],
        "invalid_api_key"
    );
    good(rig.post(CHAT, &chat("x")).bearer_auth("sk-sim").send().await.unwrap()).await;
    good(rig.client.get(rig.url("/sim/bill")).send().await.unwrap()).await;
}

#[tokio::test]
async fn calls_in_a_minute_are_limited() {
    let limits = provider_sim::Limits { requests_per_minute: Some(2), ..Default::default() };
    let rig = Rig::of(sim().limits(limits)).await;
    let call = async || rig.post(CHAT, &chat("x")).send().await.unwrap();
    let headers = call().await.headers().clone();
    assert_eq!(headers["x-ratelimit-limit-requests"], "2");
    assert_eq!(headers["x-ratelimit-remaining-requests"], "1");
    call().await;
    let response = call().await;
    assert_eq!(response.status(), 429);
    assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u32>().unwrap() <= 60);
    assert_eq!(response.headers()["x-ratelimit-remaining-requests"], "0");
    rig.advance(Duration::from_mins(1));
    assert_eq!(call().await.status(), 200);
    assert_eq!(rig.provider.bill().requests(Mode::Realtime), 3);
}

#[tokio::test]
async fn a_response_comes_whole_or_as_events() {
    let rig = Rig::of(sim()).await;
    let mut body = json!({"model": MODEL, "instructions": "be nice", "input": [
        {"role": "user", "content": [{"type": "input_text", "text": "tell me"}]}]});
    let whole = good(rig.post("/v1/responses", &body).send().await.unwrap()).await;
    assert_eq!((&whole["object"], &whole["status"]), (&"response".into(), &"completed".into()));
    assert_eq!(whole["output"][0]["content"][0]["text"], expected_answer(MODEL, "tell me"));
    assert_eq!(whole["usage"]["input_tokens"], 4);
    assert_eq!(rig.get(&format!("/v1/responses/{}", whole["id"].as_str().unwrap())).await, whole);

    body["stream"] = true.into();
    let text = rig.post("/v1/responses", &body).send().await.unwrap().text().await.unwrap();
    let events = events(&text);
    let numbers: Vec<_> = events.iter().map(|event| event["sequence_number"].as_u64().unwrap()).collect();
    assert_eq!(numbers, (0..events.len() as u64).collect::<Vec<_>>());
    let mut kinds: Vec<_> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    kinds.dedup();
    let order = "response.created response.in_progress response.output_item.added response.content_part.added \
                 response.output_text.delta response.output_text.done response.content_part.done \
                 response.output_item.done response.completed";
    assert_eq!(kinds.join(" "), order);
    assert!(text.starts_with("event: response.created\ndata: {"));
    let deltas = events.iter().filter_map(|event| event["delta"].as_str());
    assert_eq!(deltas.collect::<String>(), expected_answer(MODEL, "tell me"));
    assert_eq!(rig.provider.bill().requests(Mode::Realtime), 2);
}

#[tokio::test]
async fn background_responses_take_their_time_and_price() {
    let rig = Rig::of(sim()).await;
    let body = |window: &str| {
        json!({"model": MODEL, "input": "later", "background": true,
            "background_options": {"completion_window": window}})
    };
    let create = async |window: &str| {
        let response = good(rig.post("/v1/responses", &body(window)).send().await.unwrap()).await;
        assert_eq!((&response["status"], &response["output"]), (&"queued".into(), &json!([])));
        format!("/v1/responses/{}", response["id"].as_str().unwrap())
    };
    let (soonest, two, eight, dropped) =
        (create("soonest").await, create("2h").await, create("8h").await, create("8h").await);
    assert_eq!(rig.provider.bill().lines, [], "nothing ran yet");
    rig.advance(Duration::from_mins(1));
    assert_eq!(rig.get(&soonest).await["status"], "completed");
    let cancel = rig.client.post(rig.url(&format!("{dropped}/cancel")));
    assert_eq!(good(cancel.send().await.unwrap()).await["status"], "cancelled");
    rig.advance(Duration::from_hours(8));
    for path in [&two, &eight] {
        let response = rig.get(path).await;
        assert_eq!(response["output"][0]["content"][0]["text"], expected_answer(MODEL, "later"));
    }
    assert_eq!(rig.get(&dropped).await["status"], "cancelled");
    let bill = rig.provider.bill();
    let one = bill.cost(Mode::Realtime).0;
    assert_eq!(
        (bill.cost(Mode::Background2h).0, bill.cost(Mode::Background8h).0),
        (one * 7 / 10, one * 6 / 10)
    );
    let late = rig.client.post(rig.url(&format!("{two}/cancel")));
    assert_eq!(good(late.send().await.unwrap()).await["status"], "completed", "too late to cancel");
    good(rig.client.delete(rig.url(&two)).send().await.unwrap()).await;
    refused(rig.client.get(rig.url(&two)), 404).await;
    assert_eq!(rig.provider.bill(), bill, "looking costs nothing");
}

#[tokio::test]
async fn windows_need_background_and_standard_tier() {
    let rig = Rig::of(sim()).await;
    let body = |more: Value| {
        let mut body = json!({"model": MODEL, "input": "x", "background": true,
            "background_options": {"completion_window": "2h"}});
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    for wrong in [
        json!({"background": false}),
        json!({"service_tier": "flex"}),
        json!({"stream": true}),
        json!({"background_options": {"completion_window": "4h"}}),
    ] {
        let error = refused(rig.post("/v1/responses", &body(wrong)), 400).await;
        assert_eq!(error["param"], "background_options.completion_window");
    }
    let plain =
        good(rig.post("/v1/responses", &json!({"model": MODEL, "input": "x"})).send().await.unwrap()).await;
    let path = format!("/v1/responses/{}/cancel", plain["id"].as_str().unwrap());
    refused(rig.client.post(rig.url(&path)), 400).await;
}

#[tokio::test]
async fn models_and_moderations() {
    let rig = Rig::of(sim().models(["m-1", "omni-moderation-latest"])).await;
    let models = rig.get("/v1/models").await;
    assert_eq!(models["data"][0]["id"], "m-1");
    assert_eq!(rig.get("/v1/models/m-1").await["object"], "model");
    assert_eq!(refused(rig.client.get(rig.url("/v1/models/m-2")), 404).await["code"], "model_not_found");
    let body = json!({"input": ["peace", "violence"]});
    let verdicts = good(rig.post("/v1/moderations", &body).send().await.unwrap()).await;
    assert_eq!(
        (&verdicts["results"][0]["flagged"], &verdicts["results"][1]["flagged"]),
        (&false.into(), &true.into())
    );
    assert_eq!(verdicts["results"][0]["categories"].as_object().unwrap().len(), 13);
}

#[tokio::test]
async fn prompts_with_a_common_prefix_are_cached() {
    let rig = Rig::of(sim().prompt_cache(true)).await;
    let long = "context ".repeat(1_000);
    let ask = async |n: usize| {
        let reply = good(rig.post(CHAT, &chat(&format!("{long} {n}"))).send().await.unwrap()).await;
        reply["usage"]["prompt_tokens_details"]["cached_tokens"].as_u64().unwrap()
    };
    assert_eq!((ask(1).await, ask(2).await), (0, 1_920));
    assert_eq!(rig.provider.bill().lines[0].usage.cached_tokens, 1_920);
}

#[tokio::test]
async fn http2_works_too() {
    let rig = Rig::of(sim()).await;
    let client = reqwest::Client::builder().no_proxy().http2_prior_knowledge().build().unwrap();
    let response = client.post(rig.url(CHAT)).json(&chat("two")).send().await.unwrap();
    assert_eq!(response.version(), reqwest::Version::HTTP_2);
    assert_eq!(good(response).await["choices"][0]["message"]["content"], expected_answer(MODEL, "two"));
}
