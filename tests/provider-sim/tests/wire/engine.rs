//! Engine mode: vLLM's surface over a model of continuous batching, on virtual time.

use std::collections::BTreeSet;
use std::time::Duration;

use provider_sim::{EngineOptions, Mode, count_tokens, expected_answer, expected_embedding};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::rig::{CHAT, Rig, good, sim};

const MODEL: &str = "sim-7b";

async fn rig(change: impl FnOnce(&mut EngineOptions)) -> Rig {
    let mut options = EngineOptions::default();
    change(&mut options);
    Rig::of(sim().engine(options).models([MODEL])).await
}

/// A chat that generates exactly `tokens` tokens.
fn chat(prompt: &str, tokens: u64) -> Value {
    json!({"model": MODEL, "max_tokens": tokens, "ignore_eos": true, "messages": [{"role": "user", "content": prompt}]})
}

fn send(request: RequestBuilder) -> JoinHandle<reqwest::Result<Response>> {
    tokio::spawn(request.send())
}

impl Rig {
    /// Waits until so many calls are with the engine.
    async fn load(&self, calls: u64) {
        for _ in 0..2_000 {
            if self.get("/load").await["server_load"] == calls {
                return;
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        panic!("never {calls} calls: {}", self.get("/load").await);
    }

    async fn text(&self, path: &str) -> String {
        self.client.get(self.url(path)).send().await.unwrap().text().await.unwrap()
    }

    /// The value of a metric, by its name and a part of its labels.
    async fn metric(&self, name: &str, label: &str) -> f64 {
        let text = self.text("/metrics").await;
        let line = text.lines().find(|line| line.starts_with(&format!("{name}{{")) && line.contains(label));
        line.unwrap_or_else(|| panic!("no {name}")).rsplit_once(' ').unwrap().1.parse().unwrap()
    }
}

/// The error of a refused call, in vLLM's form.
async fn refused(request: RequestBuilder, status: u16) -> Value {
    let response = request.send().await.unwrap();
    assert_eq!(response.status(), status);
    let body: Value = response.json().await.unwrap();
    assert_eq!(body["error"]["code"], status, "{body}");
    body["error"].clone()
}

#[tokio::test]
async fn a_chat_is_answered_when_its_tokens_are_there() {
    let rig = rig(|_| {}).await;
    let call = send(rig.post(CHAT, &chat("hello", 100)));
    rig.load(1).await;
    assert!((rig.metric("vllm:num_requests_running", "").await - 0.0).abs() < 0.1, "time stands still");
    rig.advance(Duration::from_millis(100));
    assert!(rig.metric("vllm:num_requests_running", "").await > 0.9);
    assert!(!call.is_finished());
    rig.advance(Duration::from_millis(200));
    let reply = good(call.await.unwrap().unwrap()).await;
    assert_eq!(reply["usage"]["completion_tokens"], 100);
    let content = reply["choices"][0]["message"]["content"].as_str().unwrap();
    assert!(content.starts_with(&expected_answer(MODEL, "hello")));
    assert_eq!((count_tokens(content), &reply["choices"][0]["finish_reason"]), (100, &"length".into()));
    rig.load(0).await;
    let bill = rig.provider.bill();
    assert_eq!((bill.requests(Mode::Realtime), bill.total().0), (1, 0), "the price is the instance's");
}

#[tokio::test]
async fn many_at_once_are_faster_over_all_and_slower_each() {
    let rig = rig(|_| {}).await;
    let calls: Vec<_> = (0..32).map(|n| send(rig.post(CHAT, &chat(&format!("call {n}"), 100)))).collect();
    rig.load(32).await;
    // One alone takes about 0.26 s, 32 together 1.6 s.
    rig.advance(Duration::from_secs(1));
    assert!(rig.metric("vllm:num_requests_running", "").await > 31.9);
    assert!(calls.iter().all(|call| !call.is_finished()));
    rig.advance(Duration::from_millis(700));
    for call in calls {
        good(call.await.unwrap().unwrap()).await;
    }
    let status = rig.provider.engine().unwrap();
    assert_eq!((status.generated_tokens, status.running), (3_200, 0));
    assert!((1_500_000..1_700_000).contains(&status.busy_us), "{}", status.busy_us);
    assert!((rig.metric("vllm:generation_tokens_total", "").await - 3_200.0).abs() < 0.1);
    assert!((rig.metric("vllm:e2e_request_latency_seconds_count", "").await - 32.0).abs() < 0.1);
}

#[tokio::test]
async fn a_stream_comes_as_its_tokens_do() {
    let rig = rig(|_| {}).await;
    let mut body = chat("stream", 200);
    body["stream"] = true.into();
    body["stream_options"] = json!({"include_usage": true});
    let mut response = rig.post(CHAT, &body).send().await.unwrap();
    assert_eq!(response.headers()["content-type"], "text/event-stream; charset=utf-8");
    rig.advance(Duration::from_millis(250));
    let mut text = String::new();
    while text.matches("\n\n").count() < 10 {
        text += std::str::from_utf8(&response.chunk().await.unwrap().unwrap()).unwrap();
    }
    assert!(!text.contains("[DONE]"));
    rig.advance(Duration::from_millis(500));
    while let Some(chunk) = response.chunk().await.unwrap() {
        text += std::str::from_utf8(&chunk).unwrap();
    }
    assert!(text.ends_with("data: [DONE]\n\n") && text.contains(r#""completion_tokens":200"#));
    assert_eq!(rig.provider.bill().requests(Mode::Realtime), 1);
}

#[tokio::test]
async fn lists_are_answered_whole() {
    let rig = rig(|_| {}).await;
    let body = json!({"model": MODEL, "input": ["alpha", "beta", "gamma"], "dimensions": 8});
    let call = send(rig.post("/v1/embeddings", &body));
    rig.load(1).await;
    rig.advance(Duration::from_millis(20));
    let reply = good(call.await.unwrap().unwrap()).await;
    let got: Vec<f32> = serde_json::from_value(reply["data"][2]["embedding"].clone()).unwrap();
    assert_eq!(got, expected_embedding(MODEL, "gamma", 8));
    let body = json!({"model": MODEL, "prompt": ["one", "two"], "max_tokens": 20, "ignore_eos": true});
    let call = send(rig.post("/v1/completions", &body));
    rig.load(1).await;
    rig.advance(Duration::from_millis(200));
    let reply = good(call.await.unwrap().unwrap()).await;
    assert_eq!(
        (reply["choices"].as_array().unwrap().len(), &reply["usage"]["completion_tokens"]),
        (2, &40.into())
    );
}

#[tokio::test]
async fn a_poisoned_input_fails_its_whole_list() {
    let rig = rig(|options| options.poison = Some("boom".to_owned())).await;
    let embed = |inputs: Value| {
        rig.post("/v1/embeddings", &json!({"model": MODEL, "input": inputs, "dimensions": 8}))
    };
    let error = refused(embed(json!(["fine", "boom", "fine"])), 500).await;
    assert_eq!(error["type"], "InternalServerError");
    assert_eq!(rig.provider.bill().lines, []);
    let call = send(embed(json!(["fine", "fine"])));
    rig.load(1).await;
    rig.advance(Duration::from_millis(20));
    good(call.await.unwrap().unwrap()).await;
}

#[tokio::test]
async fn priority_is_an_error_unless_it_is_scheduled_by() {
    let prioritised = |priority: i64, prompt: &str| {
        let mut body = chat(prompt, 50);
        body["priority"] = priority.into();
        body
    };
    let plain = rig(|_| {}).await;
    let error = refused(plain.post(CHAT, &prioritised(1, "x")), 400).await;
    assert!(error["message"].as_str().unwrap().contains("--scheduling-policy priority"));

    let rig = rig(|options| {
        options.priority_scheduling = true;
        options.max_num_seqs = 1;
    })
    .await;
    let running = send(rig.post(CHAT, &prioritised(0, "first")));
    rig.load(1).await;
    rig.advance(Duration::from_millis(10));
    let low = send(rig.post(CHAT, &prioritised(9, "low")));
    rig.load(2).await;
    let urgent = send(rig.post(CHAT, &prioritised(-1, "urgent")));
    rig.load(3).await;
    rig.advance(Duration::from_millis(260));
    good(running.await.unwrap().unwrap()).await;
    good(urgent.await.unwrap().unwrap()).await;
    assert!(!low.is_finished());
    rig.advance(Duration::from_millis(200));
    good(low.await.unwrap().unwrap()).await;
}

#[tokio::test]
async fn a_full_queue_refuses_with_503() {
    let rig = rig(|options| {
        options.max_num_seqs = 1;
        options.max_num_queued_reqs = Some(1);
    })
    .await;
    let calls = [send(rig.post(CHAT, &chat("a", 10))), send(rig.post(CHAT, &chat("b", 10)))];
    rig.load(2).await;
    let error = refused(rig.post(CHAT, &chat("c", 10)), 503).await;
    assert_eq!(error["type"], "ServiceUnavailableError");
    let counted = rig.metric("vllm:admission_rejections_total", "max_num_queued_reqs").await;
    assert!((counted - 1.0).abs() < 0.1);
    rig.advance(Duration::from_millis(100));
    for call in calls {
        good(call.await.unwrap().unwrap()).await;
    }
}

#[tokio::test]
async fn a_stop_answers_with_what_is_there_and_a_crash_with_nothing() {
    let rig = rig(|_| {}).await;
    let whole = send(rig.post(CHAT, &chat("whole", 400)));
    rig.load(1).await;
    let mut body = chat("stream", 400);
    body["stream"] = true.into();
    let stream = rig.post(CHAT, &body).send().await.unwrap();
    rig.advance(Duration::from_millis(500));
    good(rig.post("/sim/engine", &json!({"do": "stop"})).send().await.unwrap()).await;
    let reply = good(whole.await.unwrap().unwrap()).await;
    assert_eq!(reply["choices"][0]["finish_reason"], "abort");
    let tokens = reply["usage"]["completion_tokens"].as_u64().unwrap();
    assert!((50..400).contains(&tokens), "{tokens}");
    let text = stream.text().await.unwrap();
    assert!(text.contains(r#""finish_reason":"abort""#) && text.ends_with("data: [DONE]\n\n"));
    assert!(!text.contains(r#""finish_reason":"length""#));
    assert!(rig.client.get(rig.url("/health")).send().await.is_err(), "nobody is there");
    assert_eq!(rig.provider.bill().lines, []);

    rig.provider.start_engine();
    assert_eq!(rig.client.get(rig.url("/health")).send().await.unwrap().status(), 200);
    let lost = send(rig.post(CHAT, &chat("lost", 400)));
    rig.load(1).await;
    let stream = rig.post(CHAT, &body).send().await.unwrap();
    rig.provider.crash_engine();
    assert!(lost.await.unwrap().is_err());
    assert!(stream.bytes().await.is_err());
}

#[tokio::test]
async fn a_caller_who_leaves_frees_the_engine() {
    let rig = rig(|_| {}).await;
    let gone = send(rig.post(CHAT, &chat("gone", 10_000)));
    rig.load(1).await;
    rig.advance(Duration::from_millis(100));
    gone.abort();
    rig.load(0).await;
    let status = rig.provider.engine().unwrap();
    assert_eq!((status.running, status.waiting), (0, 0));
    assert!(
        (rig.metric("vllm:request_success_total", "abort").await - 0.0).abs() < 0.1,
        "and nobody counts it"
    );
}

#[tokio::test]
async fn real_time_passes_by_itself() {
    let rig = Rig::of(sim().engine(EngineOptions::default()).models([MODEL]).speed(50)).await;
    let started = std::time::Instant::now();
    good(rig.post(CHAT, &chat("now", 1_000)).send().await.unwrap()).await;
    assert!(started.elapsed() >= Duration::from_millis(45), "2.5 s at fifty times the speed");
}

#[tokio::test]
async fn the_rest_of_the_surface() {
    let rig = rig(|options| options.max_model_len = 100).await;
    let models = rig.get("/v1/models").await;
    assert_eq!((&models["data"][0]["id"], &models["data"][0]["max_model_len"]), (&MODEL.into(), &100.into()));
    let body = json!({"model": MODEL, "prompt": "eight by", "return_token_strs": true});
    let tokens = good(rig.post("/tokenize", &body).send().await.unwrap()).await;
    assert_eq!((&tokens["count"], &tokens["token_strs"]), (&2.into(), &json!(["eigh", "t by"])));
    let body = json!({"model": MODEL, "messages": [{"role": "user", "content": "four"}]});
    assert_eq!(good(rig.post("/tokenize", &body).send().await.unwrap()).await["count"], 1);
    assert_eq!(rig.client.get(rig.url("/health")).send().await.unwrap().status(), 200);
    assert_eq!(refused(rig.post(CHAT, &chat("x", 101)), 400).await["type"], "BadRequestError");
    let mut unknown = chat("x", 10);
    unknown["model"] = "who".into();
    assert_eq!(refused(rig.post(CHAT, &unknown), 404).await["type"], "NotFoundError");
    let wide = json!({"model": MODEL, "input": "x", "dimensions": 5_000});
    refused(rig.post("/v1/embeddings", &wide), 400).await;
    refused(rig.client.get(rig.url("/v1/batches")), 404).await;
    refused(rig.client.get(rig.url("/nothing")), 404).await;
}

/// Families of vLLM 0.32 and their types, as its own `/metrics` names them.
const FAMILIES: &str = include_str!("vllm-families.txt");

#[tokio::test]
async fn the_metrics_have_vllm_s_names_types_and_labels() {
    let rig = rig(|_| {}).await;
    let call = send(rig.post(CHAT, &chat("hello", 20)));
    rig.load(1).await;
    rig.advance(Duration::from_secs(1));
    good(call.await.unwrap().unwrap()).await;
    let text = rig.text("/metrics").await;
    let got: BTreeSet<String> = families(&text);
    let want: BTreeSet<String> = FAMILIES.lines().map(str::to_owned).collect();
    let missing: Vec<_> = want.difference(&got).collect();
    let strange: Vec<_> = got.difference(&want).collect();
    assert_eq!((missing, strange), (Vec::new(), Vec::new()));
}

/// Types, and each sample's name with its labels (values of `le` and of those that name a kind included).
fn families(text: &str) -> BTreeSet<String> {
    text.lines()
        .filter_map(|line| match line.strip_prefix("# ") {
            Some(comment) => comment.strip_prefix("TYPE ").map(|rest| format!("TYPE {rest}")),
            None => line.rsplit_once(' ').map(|(sample, _)| sample.replace(MODEL, "MODEL")),
        })
        .filter(|line| !line.contains("cache_config_info{"))
        .collect()
}
