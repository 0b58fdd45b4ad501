//! The core without sockets: whatever happens in whatever order, the counts and the bill agree.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::HashMap;
use std::time::Duration;

use bytes::Bytes;
use http::Request;
use proptest::prelude::*;
use provider_sim::{
    BatchFault, BatchRule, Faults, ItemFault, ItemRule, Mode, PicoDollars, Provider, Scenario, Sim, SimBody,
    price_of,
};
use serde_json::{Value, json};

const CHAT: &str = "/v1/chat/completions";

fn call(
    provider: &Provider,
    method: &str,
    path: &str,
    content_type: &str,
    body: impl Into<Bytes>,
) -> (u16, Bytes) {
    let request = Request::builder().method(method).uri(path).header("content-type", content_type);
    let response = provider.handle(request.body(body.into()).unwrap());
    let SimBody::Full(bytes) = response.body else { panic!("no streams here") };
    (response.status.as_u16(), bytes)
}

fn json_call(provider: &Provider, method: &str, path: &str, body: &Value) -> (u16, Value) {
    let (status, bytes) = call(provider, method, path, "application/json", body.to_string());
    (status, serde_json::from_slice(&bytes).unwrap())
}

fn create(provider: &Provider, first: usize, count: usize) -> String {
    let line = |n: usize| {
        let body =
            json!({"model": "gpt-5-mini", "messages": [{"role": "user", "content": format!("item {n}")}]});
        json!({"custom_id": n.to_string(), "method": "POST", "url": CHAT, "body": body}).to_string()
    };
    let lines: Vec<_> = (first..first + count).map(line).collect();
    let form = format!(
        "--b\r\nContent-Disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--b\r\nContent-Disposition: \
         form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\r\n{}\n\r\n--b--\r\n",
        lines.join("\n")
    );
    let (status, bytes) = call(provider, "POST", "/v1/files", "multipart/form-data; boundary=b", form);
    assert_eq!(status, 200);
    let file: Value = serde_json::from_slice(&bytes).unwrap();
    let order = json!({"input_file_id": file["id"], "endpoint": CHAT, "completion_window": "24h"});
    let (status, batch) = json_call(provider, "POST", "/v1/batches", &order);
    assert_eq!(status, 200);
    batch["id"].as_str().unwrap().to_owned()
}

#[derive(Debug, Clone)]
enum Step {
    Create(usize),
    Advance(u64),
    Cancel(usize),
    Poll(usize),
    Realtime,
    Scenario(&'static str),
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        (1_usize..30).prop_map(Step::Create),
        prop_oneof![0_u64..120, 0_u64..3_000, 0_u64..90_000].prop_map(Step::Advance),
        (0_usize..5).prop_map(Step::Cancel),
        (0_usize..5).prop_map(Step::Poll),
        Just(Step::Realtime),
        prop::sample::select(&["healthy", "slow_tail", "stall", "expiring"][..]).prop_map(Step::Scenario),
    ];
    prop::collection::vec(step, 1..40)
}

fn faults() -> Faults {
    let item = |fault, probability| ItemRule { fault, probability, custom_id: None, body: None, times: None };
    Faults {
        items: vec![item(ItemFault::Status { status: 500 }, 0.1)],
        batches: vec![
            BatchRule { fault: BatchFault::Stall, probability: 0.2 },
            BatchRule { fault: BatchFault::LoseItems { permille: 100 }, probability: 0.2 },
        ],
        ..Faults::default()
    }
}

/// Exchanges the scenario, with times of day that count from now on and the same faults as before.
fn change(provider: &Provider, name: &str) {
    let passed = provider.clock().now().millis_since(provider.clock().epoch());
    let scenario = Scenario::named(name).unwrap().later(Duration::from_millis(passed));
    provider.set_scenario(Scenario { faults: faults(), ..scenario });
}

/// Progress of the batches so far, by id: completed, failed, ended.
type Progress = HashMap<String, (u64, u64, bool)>;

fn check_batch(provider: &Provider, id: &str, progress: &mut Progress) {
    let (_, batch) = json_call(provider, "GET", &format!("/v1/batches/{id}"), &Value::Null);
    let count = |name: &str| batch["request_counts"][name].as_u64().unwrap();
    let (total, completed, failed) = (count("total"), count("completed"), count("failed"));
    let status = batch["status"].as_str().unwrap();
    let ended = ["completed", "expired", "cancelled", "failed"].contains(&status);
    assert!(completed + failed <= total, "{batch}");
    if ["completed", "expired"].contains(&status) {
        assert_eq!(completed + failed, total);
    }
    let file_lines = |name: &str| match batch[name].as_str() {
        None => 0,
        Some(file) => {
            let path = format!("/v1/files/{file}/content");
            call(provider, "GET", &path, "", "").1.split_inclusive(|byte| *byte == b'\n').count() as u64
        }
    };
    if ended {
        assert_eq!(
            (file_lines("output_file_id"), file_lines("error_file_id")),
            (completed, failed),
            "{batch}"
        );
    }
    let before = progress.insert(id.to_owned(), (completed, failed, ended)).unwrap_or_default();
    assert!(completed >= before.0 && failed >= before.1);
    assert!(!before.2 || before == (completed, failed, ended), "ended, and changed after that");
}

/// Every charge is for a batch item that counts as completed or for a real-time answer, and each is charged once.
fn check_bill(provider: &Provider, progress: &Progress, realtime: u64) {
    let bill = provider.bill();
    assert_eq!(bill.requests(Mode::Realtime), realtime);
    assert_eq!(bill.requests(Mode::Batch), progress.values().map(|p| p.0).sum::<u64>());
    let sum: PicoDollars =
        bill.lines.iter().map(|line| price_of(&line.model).cost(line.mode, line.usage)).sum();
    assert_eq!(sum, bill.total());
    let batch = bill.lines.iter().filter(|line| line.mode == Mode::Batch);
    assert_eq!(bill.cost(Mode::Batch).0 * 2, batch.map(|line| line.realtime_cost.0).sum::<u64>());
    assert_eq!(bill.executions.repeated(), []);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn counts_and_bill_agree_at_every_instant(seed in 0_u64..1_000, steps in steps()) {
        let provider = Sim::builder().seed(seed).faults(faults()).track_executions(true).build();
        let mut progress = Progress::new();
        let mut ids: Vec<String> = Vec::new();
        let mut items = 0;
        let mut realtime = 0;
        for step in steps {
            match step {
                Step::Create(count) => {
                    ids.push(create(&provider, items, count));
                    items += count;
                }
                Step::Advance(secs) => provider.clock().advance(Duration::from_secs(secs)),
                Step::Cancel(n) => {
                    if let Some(id) = ids.get(n) {
                        let (status, _) = json_call(&provider, "POST", &format!("/v1/batches/{id}/cancel"), &Value::Null);
                        prop_assert!(status == 200 || status == 409);
                    }
                }
                Step::Poll(n) => {
                    if let Some(id) = ids.get(n) {
                        check_batch(&provider, id, &mut progress);
                    }
                }
                Step::Scenario(name) => change(&provider, name),
                Step::Realtime => {
                    realtime += 1;
                    let body = json!({"model": "gpt-5-mini", "messages": [{"role": "user", "content": format!("now {realtime}")}]});
                    prop_assert_eq!(json_call(&provider, "POST", CHAT, &body).0, 200);
                }
            }
            for id in &ids {
                check_batch(&provider, id, &mut progress);
            }
            check_bill(&provider, &progress, realtime);
        }
    }

    #[test]
    fn the_same_seed_gives_the_same_run(seed in 0_u64..1_000, secs in 0_u64..90_000) {
        let run = || {
            let provider = Sim::builder().seed(seed).faults(faults()).build();
            let ids = [create(&provider, 0, 20), create(&provider, 20, 20)];
            provider.clock().advance(Duration::from_secs(secs));
            let batches = ids.map(|id| json_call(&provider, "GET", &format!("/v1/batches/{id}"), &Value::Null));
            (batches, provider.bill())
        };
        prop_assert_eq!(run(), run());
    }
}

const BATCHES: &str = "/v1/messages/batches";

fn anthropic(provider: &Provider, method: &str, path: &str, body: &Value) -> (u16, Bytes) {
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let request = request.header("anthropic-version", "2026-10-21").body(Bytes::from(body.to_string()));
    let response = provider.handle(request.unwrap());
    (response.status.as_u16(), response.body.bytes().clone())
}

fn create_messages(provider: &Provider, first: usize, count: usize) -> String {
    let entry = |n: usize| {
        let params = json!({"model": "claude-haiku-5-5", "max_tokens": 50,
            "messages": [{"role": "user", "content": format!("item {n}")}]});
        json!({"custom_id": n.to_string(), "params": params})
    };
    let requests: Vec<_> = (first..first + count).map(entry).collect();
    let (status, body) = anthropic(provider, "POST", BATCHES, &json!({"requests": requests}));
    assert_eq!(status, 200);
    serde_json::from_slice::<Value>(&body).unwrap()["id"].as_str().unwrap().to_owned()
}

/// Checks one message batch: while it runs it tells nothing, then all adds up. Returns what succeeded, once it ended.
fn check_messages(provider: &Provider, id: &str, total: u64) -> Option<u64> {
    let (_, body) = anthropic(provider, "GET", &format!("{BATCHES}/{id}"), &Value::Null);
    let batch: Value = serde_json::from_slice(&body).unwrap();
    let counts: HashMap<String, u64> = serde_json::from_value(batch["request_counts"].clone()).unwrap();
    assert_eq!(counts.values().sum::<u64>(), total);
    if batch["processing_status"] != "ended" {
        assert_eq!((counts["processing"], &batch["results_url"]), (total, &Value::Null));
        return None;
    }
    let (_, results) = anthropic(provider, "GET", &format!("{BATCHES}/{id}/results"), &Value::Null);
    let mut shown: HashMap<String, u64> = HashMap::new();
    for line in results.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
        let line: Value = serde_json::from_slice(line).unwrap();
        *shown.entry(line["result"]["type"].as_str().unwrap().to_owned()).or_default() += 1;
    }
    let counted: HashMap<_, _> = counts.clone().into_iter().filter(|(_, count)| *count > 0).collect();
    assert_eq!(shown, counted);
    Some(counts["succeeded"])
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, ..ProptestConfig::default() })]

    #[test]
    fn message_batches_tell_nothing_until_all_adds_up(seed in 0_u64..1_000, steps in steps()) {
        let provider = Sim::builder().seed(seed).faults(faults()).track_executions(true).build();
        let mut batches: Vec<(String, u64)> = Vec::new();
        let mut items = 0;
        for step in steps {
            match step {
                Step::Create(count) => {
                    batches.push((create_messages(&provider, items, count), count as u64));
                    items += count;
                }
                Step::Advance(secs) => provider.clock().advance(Duration::from_secs(secs)),
                Step::Cancel(n) => {
                    if let Some((id, _)) = batches.get(n) {
                        let (status, _) = anthropic(&provider, "POST", &format!("{BATCHES}/{id}/cancel"), &Value::Null);
                        prop_assert!(status == 200 || status == 400);
                    }
                }
                Step::Scenario(name) => change(&provider, name),
                Step::Poll(_) | Step::Realtime => {}
            }
            let succeeded: u64 = batches.iter().filter_map(|(id, total)| check_messages(&provider, id, *total)).sum();
            prop_assert!(provider.bill().requests(Mode::Batch) >= succeeded);
        }
        provider.clock().advance(Duration::from_hours(25));
        let ended: Vec<_> = batches.iter().map(|(id, total)| check_messages(&provider, id, *total)).collect();
        prop_assert!(ended.iter().all(Option::is_some));
        let bill = provider.bill();
        prop_assert_eq!(bill.requests(Mode::Batch), ended.into_iter().flatten().sum::<u64>());
        prop_assert_eq!(bill.executions.repeated(), []);
    }
}

#[test]
fn a_full_batch_of_fifty_thousand_runs_and_one_more_line_is_too_many() {
    let provider = Sim::builder().build();
    let full = create(&provider, 0, 50_000);
    let over = create(&provider, 0, 50_001);
    provider.clock().advance(Duration::from_hours(1));
    let (_, batch) = json_call(&provider, "GET", &format!("/v1/batches/{full}"), &Value::Null);
    assert_eq!(
        (&batch["status"], &batch["request_counts"]["completed"]),
        (&"completed".into(), &50_000.into())
    );
    let (_, batch) = json_call(&provider, "GET", &format!("/v1/batches/{over}"), &Value::Null);
    assert_eq!(batch["errors"]["data"][0]["code"], "too_many_tasks");
    assert_eq!(provider.bill().requests(Mode::Batch), 50_000);
}
