//! Deferred embeddings: many in one call to the engine, each with its own answer.

use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::join_all;
use http::{HeaderMap, Method, Request, Response, StatusCode};
use offpeak_guests::night;
use parking_lot::Mutex;
use provider_sim::Endpoint::Embeddings;
use provider_sim::{EngineOptions, Fault};
use reqwest::Client;
use serde_json::{Value, json};

use super::Workshop;
use crate::rig::{Answer, Daemon, MODEL, PROVIDER_KEY, eventually, send};
use crate::upstream::{Upstream, full};

const EMBEDDINGS: &str = "/v1/embeddings";

/// A step is long, so that what comes meanwhile goes together.
const SLOW: [(u32, u64); 2] = [(1, 10_000), (256, 60_000)];

fn text(n: usize) -> String {
    format!("text {n}{}", " and so on".repeat(n % 5))
}

fn body(input: &Value) -> Value {
    json!({ "model": MODEL, "input": input, "dimensions": 8 })
}

impl Workshop {
    /// Defers one request for each body at once, and waits for all answers.
    async fn embedded(&self, bodies: &[Value]) -> Vec<Answer> {
        let asked =
            bodies.iter().map(|body| send(self.daemon.post(EMBEDDINGS, body).header("x-offpeak-sla", "24h")));
        join_all(asked).await
    }

    /// What the engine itself says to these texts.
    async fn truth(&self, texts: &[String]) -> Value {
        let client = Client::builder().no_proxy().build().unwrap();
        let call = client.post(format!("{}{EMBEDDINGS}", self.server.url()));
        let answer = send(call.bearer_auth(PROVIDER_KEY).json(&body(&json!(texts)))).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        answer.body
    }

    async fn merged(&self) -> (u64, u64) {
        let count = self.daemon.metric("offpeak_engine_merged_requests_count", "gpu").await;
        let text = self.daemon.metrics().await;
        let sum = text.lines().find(|line| line.starts_with("offpeak_engine_merged_requests_sum"));
        let sum = sum.map_or("0", |line| line.rsplit(' ').next().unwrap().trim_end_matches(".0"));
        (count, sum.parse().unwrap())
    }
}

/// Keeps everything until it is told to go, and sorts it by length.
const BY_LENGTH: &str = "lanes.linger = \"1h\"\nengine.length_buckets = [20]\nengine.merge = 8";

impl Workshop {
    /// Defers one request for each text, lets them leave at once, and waits for their own answers.
    async fn embedded_at_once(&self, texts: &[String]) {
        let bodies: Vec<Value> = texts.iter().map(|text| body(&json!(text))).collect();
        let leaving = async {
            self.daemon.wait_for_waiting(texts.len() as u64).await;
            self.daemon.flush().await;
        };
        let (answers, ()) = tokio::join!(self.embedded(&bodies), leaving);
        assert_own(self, texts, &answers.iter().collect::<Vec<_>>()).await;
    }

    /// How many inputs a length bucket had, their tokens, and these when padded.
    async fn bucket(&self, up_to: &str) -> (u64, u64, u64) {
        let label = format!("up_to=\"{up_to}\"");
        let count = async |name: &str| {
            self.daemon.metric(&format!("offpeak_engine_bucket_{name}_total"), &label).await
        };
        (count("inputs").await, count("tokens").await, count("padded_tokens").await)
    }
}

fn short_and_long(count: usize, is_long: impl Fn(usize) -> bool) -> Vec<String> {
    (0..count).map(|n| format!("text {n}{}", " and so on".repeat(if is_long(n) { 40 } else { 0 }))).collect()
}

/// Each is the answer to its own text, and what they took adds up to what the engine counts.
async fn assert_own(shop: &Workshop, texts: &[String], answers: &[&Answer]) {
    let truth = shop.truth(texts).await;
    let mut tokens = 0;
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let data = answer.body["data"].as_array().unwrap();
        assert_eq!((data.len(), &data[0]["index"]), (1, &json!(0)));
        assert_eq!(data[0]["embedding"], truth["data"][n]["embedding"], "{}", texts[n]);
        tokens += answer.body["usage"]["prompt_tokens"].as_u64().unwrap();
    }
    assert_eq!(tokens, truth["usage"]["prompt_tokens"].as_u64().unwrap());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_travel_in_one_call_and_each_gets_its_own() {
    let shop = Workshop::open(SLOW.to_vec()).await;
    let texts: Vec<String> = (0..60).map(text).collect();
    let bodies: Vec<Value> = texts.iter().map(|text| body(&json!(text))).collect();
    let answers = shop.embedded(&bodies).await;
    let calls = shop.provider.calls(Embeddings);
    assert!(calls < 40, "{calls} calls for 60 requests");
    assert_own(&shop, &texts, &answers.iter().collect::<Vec<_>>()).await;
    let (merged_calls, merged) = shop.merged().await;
    assert!(merged_calls > 0 && merged >= 2 * merged_calls && merged <= 60, "{merged} in {merged_calls}");
    let finished = shop.daemon.metric("offpeak_deferred_finished_total", "gpu").await;
    assert_eq!(finished, 60);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_jobs_requests_travel_together_too() {
    let shop = Workshop::open(SLOW.to_vec()).await;
    let texts: Vec<String> = (0..60).map(text).collect();
    let line = |(n, text): (usize, &String)| {
        let body = body(&json!(text));
        json!({ "custom_id": n.to_string(), "method": "POST", "url": EMBEDDINGS, "body": body }).to_string()
            + "\n"
    };
    let file = shop.daemon.upload(texts.iter().enumerate().map(line).collect::<String>()).await;
    let call = json!({ "input_file_id": file, "endpoint": EMBEDDINGS, "completion_window": "24h" });
    let made = send(shop.daemon.call("search", Method::POST, "/v1/batches").json(&call)).await;
    let job = shop.daemon.job_is(made.body["id"].as_str().unwrap(), "completed").await;
    let calls = shop.provider.calls(Embeddings);
    assert!(calls < 40, "{calls} calls for 60 requests");
    let answers = shop.daemon.content(&job["output_file_id"]).await;
    assert_eq!(answers.len(), 60);
    let truth = shop.truth(&texts).await;
    for answer in answers {
        let n: usize = answer["custom_id"].as_str().unwrap().parse().unwrap();
        let own = &answer["response"]["body"]["data"][0]["embedding"];
        assert_eq!(*own, truth["data"][n]["embedding"], "{}", texts[n]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refused_call_is_halved_until_only_the_bad_one_fails() {
    let shop = Workshop::open(SLOW.to_vec()).await;
    let texts: Vec<String> = (0..40).map(text).collect();
    let mut bodies: Vec<Value> = texts.iter().map(|text| body(&json!(text))).collect();
    bodies[13] = body(&json!(""));
    let answers = shop.embedded(&bodies).await;
    assert_eq!(answers[13].status, StatusCode::BAD_REQUEST, "{:?}", answers[13]);
    let good = |n: &usize| *n != 13;
    let texts: Vec<String> = (0..40).filter(good).map(text).collect();
    let answers: Vec<&Answer> = (0..40).filter(good).map(|n| &answers[n]).collect();
    assert!(
        answers.iter().all(|answer| answer.header("x-offpeak-attempts") == "1"),
        "what was halved did not run"
    );
    assert_own(&shop, &texts, &answers).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_breaks_the_engine_is_sent_alone_and_harms_nobody() {
    let options = EngineOptions { poison: Some("poison".into()), ..EngineOptions::default() };
    let shop = Workshop::open_as(options, "").await;
    let texts: Vec<String> = (0..30).map(text).collect();
    let mut bodies: Vec<Value> = texts.iter().map(|text| body(&json!(text))).collect();
    bodies.push(body(&json!("this is poison")));
    let mut answers = shop.embedded(&bodies).await;
    let bad = answers.pop().unwrap();
    assert_eq!(bad.status, StatusCode::INTERNAL_SERVER_ERROR, "{bad:?}");
    assert_own(&shop, &texts, &answers.iter().collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_are_lost_or_strange_are_asked_for_again() {
    let shop = Workshop::open(SLOW.to_vec()).await;
    for fault in [
        Fault::DropBeforeEffect,
        Fault::DropResponseAfterEffect,
        Fault::Garbage,
        Fault::TruncateBody,
        Fault::CutBody,
        Fault::Status { status: 503, retry_after_ms: None },
    ] {
        shop.provider.faults().next(Embeddings, fault);
    }
    let texts: Vec<String> = (0..50).map(text).collect();
    let bodies: Vec<Value> = texts.iter().map(|text| body(&json!(text))).collect();
    let answers = shop.embedded(&bodies).await;
    assert_own(&shop, &texts, &answers.iter().collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_engine_that_dies_with_a_merged_call_answers_it_later() {
    let shop = Workshop::open(SLOW.to_vec()).await;
    let texts: Vec<String> = (0..80).map(text).collect();
    let bodies: Vec<Value> = texts.iter().map(|text| body(&json!(text))).collect();
    let dying = async {
        eventually("some run", async || (shop.running() >= 2).then_some(())).await;
        shop.provider.crash_engine();
        shop.gauge("offpeak_engine_ready", "gpu", |ready| ready == 0).await;
        shop.provider.start_engine();
    };
    let (answers, ()) = tokio::join!(shop.embedded(&bodies), dying);
    assert_own(&shop, &texts, &answers.iter().collect::<Vec<_>>()).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_real_time_wait_for_each_other_where_they_may() {
    let shop =
        Workshop::open_with(SLOW.to_vec(), "engine.merge_realtime = \"300ms\"\nengine.merge = 8").await;
    let texts: Vec<String> = (0..20).map(text).collect();
    let mut bodies: Vec<Value> = texts.iter().map(|text| body(&json!(text))).collect();
    // Of another kind, with an answer of another length; and one that is refused.
    bodies.push(json!({ "model": MODEL, "input": "another", "dimensions": 4 }));
    bodies.push(body(&json!("")));
    // It hangs up soon, and harms nobody.
    let hangs_up =
        shop.daemon.post(EMBEDDINGS, &body(&json!("gone"))).timeout(std::time::Duration::from_millis(50));
    let asked = join_all(bodies.iter().map(|body| send(shop.daemon.post(EMBEDDINGS, body))));
    let (mut answers, _) = tokio::join!(asked, hangs_up.send());
    let calls = shop.provider.calls(Embeddings);
    assert!(calls < 18, "{calls} calls for 22 requests");
    let refused = answers.pop().unwrap();
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");
    let other = answers.pop().unwrap();
    assert_eq!(other.body["data"][0]["embedding"].as_array().map(Vec::len), Some(4), "{other:?}");
    assert!(answers.iter().all(|answer| answer.header("x-offpeak-mode") == "realtime"));
    assert_own(&shop, &texts, &answers.iter().collect::<Vec<_>>()).await;
    assert!(shop.merged().await.0 > 0);
    // Each is in the ledger, the refused one too.
    eventually("all are in the ledger", async || {
        let total = shop.daemon.admin("/admin/v1/costs?by=tenant").await.body["total"].clone();
        (total["outcomes"].as_u64()? >= 22).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_up_while_a_merged_call_runs_has_used_its_share() {
    let shop = Workshop::open_with(
        vec![(1, 500_000), (256, 500_000)],
        "engine.merge_realtime = \"10s\"\nengine.merge = 2",
    )
    .await;
    let texts = [text(0)];
    let stays = send(shop.daemon.post(EMBEDDINGS, &body(&json!(texts[0]))));
    let goes = async {
        let asking = tokio::spawn(shop.daemon.post(EMBEDDINGS, &body(&json!("gone"))).send());
        eventually("it runs", async || (shop.running() >= 1).then_some(())).await;
        asking.abort();
    };
    let (answer, ()) = tokio::join!(stays, goes);
    assert_own(&shop, &texts, &[&answer]).await;
    eventually("both are in the ledger", async || {
        let total = shop.daemon.admin("/admin/v1/costs?by=tenant").await.body["total"].clone();
        (total["outcomes"] == 2 && total["unknown"] == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_of_merged_calls_add_up_to_the_engines_time() {
    // Steps are long, so that what calls take beside them hardly counts. A dollar a second.
    let settings = "engine.merge = 8\n[plugins.cost_policy.config]\nusd_per_hour = { gpu = 3600.0 }";
    let shop = Workshop::open_with(vec![(1, 300_000), (256, 300_000)], settings).await;
    let bodies: Vec<Value> = (0..32).map(|n| body(&json!(text(n)))).collect();
    let answers = shop.embedded(&bodies).await;
    let (calls, merged) = shop.merged().await;
    assert!(calls > 0 && merged >= 2 * calls, "{merged} in {calls}");
    let cost = |answer: &Answer| answer.header("x-offpeak-cost-usd").parse::<f64>().unwrap();
    let sum: f64 = answers.iter().map(cost).sum();
    let busy_us = shop.provider.engine().unwrap().busy_us;
    let busy = std::time::Duration::from_micros(busy_us).as_secs_f64();
    assert!(busy >= 0.3 && sum >= busy * 0.8 && sum <= busy * 1.6, "{sum} dollars for {busy} s");
    let ledger = eventually("all are in the ledger", async || {
        let total = shop.daemon.admin("/admin/v1/costs?by=tenant").await.body["total"].clone();
        (total["outcomes"].as_u64()? == 32).then_some(total)
    })
    .await;
    let charged = ledger["cost_usd"].as_str().and_then(|cost| cost.parse::<f64>().ok());
    let charged = charged.or_else(|| ledger["cost_usd"].as_f64());
    assert!(charged.is_some_and(|charged| (charged - sum).abs() < 1e-6 * 32.0), "{ledger} is not {sum}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_padded_travels_with_what_is_as_long() {
    let options = EngineOptions { pads: true, ..EngineOptions::default() };
    let shop = Workshop::open_as(options, BY_LENGTH).await;
    shop.embedded_at_once(&short_and_long(48, |n| n % 3 == 0)).await;
    let (short, long) = (shop.bucket("20").await, shop.bucket("+Inf").await);
    assert_eq!((short.0, long.0), (32, 16));
    for (_, tokens, padded) in [short, long] {
        assert!(padded * 10 <= tokens * 15, "{padded} instead of {tokens}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_length_of_which_there_are_few_travels_with_the_next() {
    let shop = Workshop::open_with(SLOW.to_vec(), BY_LENGTH).await;
    shop.embedded_at_once(&short_and_long(32, |n| n > 2)).await;
    assert_eq!((shop.bucket("20").await.0, shop.bucket("+Inf").await.0), (0, 32));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_real_time_wait_for_what_is_as_long() {
    let settings = "engine.merge_realtime = \"300ms\"\nengine.merge = 8\nengine.length_buckets = [20]";
    let shop = Workshop::open_with(SLOW.to_vec(), settings).await;
    let texts = short_and_long(16, |n| n % 2 == 0);
    let asked = texts.iter().map(|text| send(shop.daemon.post(EMBEDDINGS, &body(&json!(text)))));
    let answers = join_all(asked).await;
    assert_own(&shop, &texts, &answers.iter().collect::<Vec<_>>()).await;
    let (short, long) = (shop.bucket("20").await, shop.bucket("+Inf").await);
    assert_eq!((short.0, long.0), (8, 8));
    assert!(short.2 < long.1 / 2, "{short:?} {long:?}");
}

/// A call's headers and its inputs.
type SeenCall = (HeaderMap, Vec<String>);

/// What an engine was sent, call by call.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<SeenCall>>>);

impl Seen {
    fn calls(&self) -> Vec<SeenCall> {
        self.0.lock().clone()
    }

    /// What a header of each call said, with its inputs.
    fn by(&self, name: &str) -> Vec<(String, Vec<String>)> {
        let said = |head: &HeaderMap| head.get(name).map_or("", |value| value.to_str().unwrap()).to_owned();
        self.calls().into_iter().map(|(head, inputs)| (said(&head), inputs)).collect()
    }

    /// A daemon before an engine that notes what it is sent, and refuses the first call that is bought as flex.
    async fn open(&self, engine: &str, plugin: &str) -> (Daemon, Upstream) {
        let seen = self.clone();
        let upstream = Upstream::start(move |request: Request<Bytes>| {
            let seen = seen.clone();
            async move {
                let (head, body) = request.into_parts();
                if head.uri.path() != EMBEDDINGS {
                    return Response::new(full(""));
                }
                let body: Value = serde_json::from_slice(&body).unwrap();
                let inputs = match &body["input"] {
                    Value::Array(inputs) => inputs.clone(),
                    one => vec![one.clone()],
                };
                let vectors = (0..inputs.len()).map(|index| json!({ "index": index, "embedding": [0.5] }));
                let answer = json!({ "data": vectors.collect::<Vec<_>>(), "usage": { "prompt_tokens": 1 } });
                let is_flex = |head: &HeaderMap| head.get("x-offer").is_some_and(|offer| offer == "flex");
                let inputs = inputs.iter().map(|input| input.as_str().unwrap().to_owned()).collect();
                let mut seen = seen.0.lock();
                let has_room = !is_flex(&head.headers) || seen.iter().any(|(head, _)| is_flex(head));
                seen.push((head.headers, inputs));
                let status = if has_room { StatusCode::OK } else { StatusCode::TOO_MANY_REQUESTS };
                Response::builder().status(status).body(full(answer.to_string())).unwrap()
            }
        })
        .await;
        let settings = format!(
            "backends.simulated.models = [\"none\"]\n[plugins.providers.vllm]\ntime_limit = \"5s\"\n{plugin}\n\
             [backends.gpu]\nprovider = \"vllm\"\nbase_url = \"{}\"\nmodels = [\"*\"]\nengine.look_every = \"50ms\"\n{engine}",
            upstream.url
        );
        (Daemon::start(&upstream.url, &settings).await, upstream)
    }
}

fn sorted(mut calls: Vec<(String, Vec<String>)>) -> Vec<(String, Vec<String>)> {
    for (_, inputs) in &mut calls {
        inputs.sort();
    }
    calls.sort();
    calls
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_caller_says_in_headers_is_said_of_nobody_else() {
    let seen = Seen::default();
    // Two are full, however slowly they come.
    let settings = "engine.merge_realtime = \"2s\"\nengine.merge = 2";
    let (daemon, _upstream) = seen.open(settings, "").await;
    let ask = |text: &str| send(daemon.post(EMBEDDINGS, &body(&json!(text))).header("x-request-id", text));
    let (one, other) = tokio::join!(ask("one"), ask("other"));
    assert_eq!((one.status, other.status), (StatusCode::OK, StatusCode::OK));
    assert_eq!(ask("alone").await.status, StatusCode::OK);
    let calls = sorted(seen.by("x-request-id"));
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    assert_eq!(calls, [(String::new(), texts(&["one", "other"])), ("alone".to_owned(), texts(&["alone"]))]);
    assert!(seen.calls().iter().all(|(head, _)| head["content-type"] == "application/json"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_are_bought_otherwise_are_not_sent_together() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("night.wasm");
    std::fs::write(&file, night::COMPONENT).unwrap();
    let seen = Seen::default();
    let path = toml::Value::from(file.to_str().unwrap());
    let plugin = format!("file = {path}");
    let (daemon, _upstream) = seen.open("engine.merge_realtime = \"300ms\"", &plugin).await;
    // With so much time it is bought as flex.
    let ask = |text: &str| send(daemon.post(EMBEDDINGS, &body(&json!(text))).header("x-offpeak-sla", "40s"));
    let second = async {
        // The first one found no room, and waits as standard for others.
        eventually("the first was refused", async || (seen.calls().len() == 1).then_some(())).await;
        ask("second").await
    };
    let (first, second) = tokio::join!(ask("first"), second);
    assert_eq!((first.status, second.status), (StatusCode::OK, StatusCode::OK), "{first:?} {second:?}");
    let calls = sorted(seen.by("x-offer"));
    let call = |offer: &str, text: &str| (offer.to_owned(), vec![text.to_owned()]);
    assert_eq!(calls, [call("flex", "first"), call("flex", "second"), call("standard", "first")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_are_not_heaped_up_in_one_call() {
    let seen = Seen::default();
    let (daemon, _upstream) = seen.open("", "").await;
    let large = |n: usize| format!("{n} {}", "x".repeat(600 << 10));
    let asked = (0..12).map(|n| {
        let body = body(&json!(large(n)));
        send(daemon.post(EMBEDDINGS, &body).header("x-offpeak-sla", "24h"))
    });
    assert!(join_all(asked).await.iter().all(|answer| answer.status == StatusCode::OK));
    let calls = seen.calls();
    assert!(calls.iter().all(|(_, inputs)| inputs.len() == 1), "{:?}", calls.len());
    assert_eq!(calls.len(), 12);
}
