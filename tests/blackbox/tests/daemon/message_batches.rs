//! Message batches: jobs as Anthropic's API has them.

use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::rig::{Answer, BY_HAND, Daemon, Rig, send, sim};

const PATH: &str = "/v1/messages/batches";

fn request(id: &str, prompt: &str) -> Value {
    let messages = json!([{ "role": "user", "content": prompt }]);
    json!({ "custom_id": id, "params": { "model": "claude-haiku-5-5", "max_tokens": 100, "messages": messages } })
}

async fn create(daemon: &Daemon, requests: &[Value]) -> Answer {
    send(daemon.post(PATH, &json!({ "requests": requests }))).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_wrong_with_a_batch_is_said_at_once_and_nothing_is_left() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let refused = create(&rig.daemon, &[request("a", "x"), request("a", "y")]).await;
    assert_eq!(refused.status, StatusCode::BAD_REQUEST, "{refused:?}");
    let message = refused.body["error"]["message"].as_str().unwrap();
    assert!(message.starts_with("requests.1.custom_id:"), "{message}");
    assert_eq!(create(&rig.daemon, &[]).await.status, StatusCode::BAD_REQUEST);
    for body in ["", "[]", "{}", r#"{"requests": [{"custom_id": "a""#] {
        let call = rig.daemon.call("search", Method::POST, PATH).body(body);
        assert_eq!(send(call).await.status, StatusCode::BAD_REQUEST, "{body}");
    }
    // Nobody here sells messages.
    assert_eq!(create(&rig.daemon, &[request("a", "x")]).await.status, StatusCode::NOT_FOUND);
    assert_eq!(rig.daemon.files_on_disk(), 0);
    let list = rig.daemon.get(PATH).await.body;
    assert_eq!((&list["data"], &list["has_more"]), (&json!([]), &json!(false)));
    assert_eq!(rig.daemon.get(&format!("{PATH}/msgbatch_1")).await.status, StatusCode::NOT_FOUND);
}

/// A backend that speaks Anthropic's API, which the simulator does beside OpenAI's.
async fn rig() -> Rig {
    let settings = "[lanes]\nlinger = \"1h\"\n[backends.simulated]\nprovider = \"anthropic\"\n\
                    config = { poll_ms = 30, poll_max_ms = 60, retry_ms = 20, retry_max_ms = 500 }\n\
                    [plugins.providers.anthropic]\ntime_limit = \"5s\"";
    Rig::start(sim(), settings).await
}

async fn ended(daemon: &Daemon, id: &str) -> Value {
    crate::rig::eventually(&format!("{id} has ended"), async || {
        let batch = daemon.get(&format!("{PATH}/{id}")).await.body;
        (batch["processing_status"] == "ended").then_some(batch)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn create_poll_results_delete() {
    let rig = rig().await;
    let requests: Vec<Value> =
        (0..20).map(|n| request(&format!("id-{n}"), &format!("message {n}"))).collect();
    let created = create(&rig.daemon, &requests).await;
    assert_eq!(created.status, StatusCode::OK, "{created:?}");
    let batch = created.body;
    assert_eq!(
        (&batch["type"], &batch["processing_status"]),
        (&json!("message_batch"), &json!("in_progress"))
    );
    assert_eq!(batch["request_counts"]["processing"], 20);
    assert_eq!(batch["results_url"], Value::Null);
    let id = batch["id"].as_str().unwrap();
    let early = rig.daemon.delete(&format!("{PATH}/{id}")).await;
    assert_eq!(early.status, StatusCode::BAD_REQUEST, "{early:?}");
    rig.daemon.wait_for_waiting(20).await;
    rig.daemon.flush().await;
    let batch = ended(&rig.daemon, id).await;
    let counts = json!({ "processing": 0, "succeeded": 20, "errored": 0, "canceled": 0, "expired": 0 });
    assert_eq!(batch["request_counts"], counts, "{batch}");
    let amount = |name: &str| batch["offpeak_cost"][name].as_str().unwrap().parse::<f64>().unwrap();
    let (cost, realtime) = (amount("cost_usd"), amount("realtime_cost_usd"));
    assert!(cost > 0.0 && (realtime / cost - 2.0).abs() < 1e-9, "{batch}");
    let url = batch["results_url"].as_str().unwrap();
    assert_eq!(url, rig.daemon.url(&format!("{PATH}/{id}/results")));
    let results =
        rig.daemon.call("search", Method::GET, &format!("{PATH}/{id}/results")).send().await.unwrap();
    let text = results.text().await.unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 20);
    for line in &lines {
        let number = line["custom_id"].as_str().unwrap().strip_prefix("id-").unwrap();
        let expected = provider_sim::answer("claude-haiku-5-5", &format!("message {number}"), Some(100)).text;
        assert_eq!(line["result"]["type"], "succeeded", "{line}");
        assert_eq!(line["result"]["message"]["content"][0]["text"], expected);
    }
    assert_eq!(rig.daemon.files_on_disk(), 0, "its input is not kept");
    let list = rig.daemon.get(PATH).await.body;
    assert_eq!((&list["first_id"], &list["last_id"]), (&json!(id), &json!(id)));
    let other = send(rig.daemon.call("mail", Method::GET, &format!("{PATH}/{id}/results"))).await;
    assert_eq!(other.status, StatusCode::NOT_FOUND);
    let deleted = rig.daemon.delete(&format!("{PATH}/{id}")).await;
    assert_eq!(deleted.body, json!({ "id": id, "type": "message_batch_deleted" }));
    assert_eq!(rig.daemon.get(&format!("{PATH}/{id}")).await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cancelled_batch_ends_with_canceled_requests() {
    let rig = rig().await;
    let requests: Vec<Value> = (0..5).map(|n| request(&format!("id-{n}"), "never")).collect();
    let id = create(&rig.daemon, &requests).await.body["id"].as_str().unwrap().to_owned();
    rig.daemon.wait_for_waiting(5).await;
    let cancelling = send(rig.daemon.call("search", Method::POST, &format!("{PATH}/{id}/cancel"))).await;
    assert!(cancelling.body["cancel_initiated_at"].is_string(), "{cancelling:?}");
    let batch = ended(&rig.daemon, &id).await;
    assert_eq!(batch["request_counts"]["canceled"], 5);
    let results =
        rig.daemon.call("search", Method::GET, &format!("{PATH}/{id}/results")).send().await.unwrap();
    let text = results.text().await.unwrap();
    assert_eq!(text.lines().count(), 5);
    assert!(text.lines().all(|line| line.contains(r#""result":{"type":"canceled"}"#)), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pages_go_both_ways() {
    let rig = rig().await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.push(create(&rig.daemon, &[request("a", "page")]).await.body["id"].as_str().unwrap().to_owned());
    }
    ids.reverse();
    let page = async |query: &str| {
        let list = rig.daemon.get(&format!("{PATH}?limit=2{query}")).await.body;
        let found: Vec<String> = list["data"]
            .as_array()
            .unwrap()
            .iter()
            .map(|batch| batch["id"].as_str().unwrap().to_owned())
            .collect();
        (found, list["has_more"].as_bool().unwrap())
    };
    assert_eq!(page("").await, (ids[..2].to_vec(), true));
    assert_eq!(page(&format!("&after_id={}", ids[1])).await, (ids[2..4].to_vec(), true));
    assert_eq!(page(&format!("&after_id={}", ids[3])).await, (ids[4..].to_vec(), false));
    assert_eq!(page(&format!("&before_id={}", ids[4])).await, (ids[2..4].to_vec(), true));
    assert_eq!(page(&format!("&before_id={}", ids[2])).await, (ids[..2].to_vec(), false));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_is_sent_again_makes_one_batch() {
    let rig = rig().await;
    let call = json!({ "requests": [request("a", "once")] });
    let id = |answer: Answer| answer.body["id"].as_str().unwrap().to_owned();
    let first = id(send(rig.daemon.post(PATH, &call)).await);
    let retry = rig.daemon.post(PATH, &call).header("x-stainless-retry-count", "1");
    assert_eq!(id(send(retry).await), first);
    assert_ne!(id(send(rig.daemon.post(PATH, &call)).await), first, "two calls are two batches");
    let other = json!({ "requests": [request("a", "another")] });
    let keyed = |call: &Value| rig.daemon.post(PATH, call).header("idempotency-key", "mine");
    let job = id(send(keyed(&call)).await);
    assert_eq!(id(send(keyed(&call)).await), job);
    assert_eq!(send(keyed(&other)).await.status, StatusCode::CONFLICT);
    let meant_otherwise = keyed(&call).header("anthropic-beta", "output-300k-2026-03-24");
    assert_eq!(send(meant_otherwise).await.status, StatusCode::CONFLICT, "the header changes what it means");
}
