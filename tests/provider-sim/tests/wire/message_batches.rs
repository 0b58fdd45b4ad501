//! Message batches, from creation to every way in which they can end.

use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use provider_sim::{BatchFault, Endpoint, Fault, Faults, ItemFault, ItemRule, Limits, Mode, expected_answer};
use serde_json::{Value, json};

use crate::messages::{CLAUDE, VERSION, message, refused};
use crate::rig::{Rig, good, prompt, sim};

const BATCHES: &str = "/v1/messages/batches";
const DAY: Duration = Duration::from_hours(24);

fn entry(n: usize) -> Value {
    json!({"custom_id": format!("id-{n}"), "params": message(&prompt(n))})
}

fn requests(count: usize) -> Value {
    json!({"requests": (0..count).map(entry).collect::<Vec<_>>()})
}

fn counts(batch: &Value) -> BTreeMap<String, u64> {
    let counts: BTreeMap<String, u64> = serde_json::from_value(batch["request_counts"].clone()).unwrap();
    counts.into_iter().filter(|(_, count)| *count > 0).collect()
}

fn some(counts: &[(&str, u64)]) -> BTreeMap<String, u64> {
    counts.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect()
}

impl Rig {
    async fn start(&self, body: &Value) -> String {
        let batch = good(self.ask(BATCHES, body).send().await.unwrap()).await;
        assert_eq!(batch["processing_status"], "in_progress");
        batch["id"].as_str().unwrap().to_owned()
    }

    async fn batch_of(&self, id: &str) -> Value {
        self.look(&format!("{BATCHES}/{id}")).await
    }

    /// The results of an ended batch, those that are not JSON as null.
    async fn results(&self, id: &str) -> Vec<Value> {
        let url = self.batch_of(id).await["results_url"].as_str().unwrap().to_owned();
        let response = self.client.get(url).header(VERSION, "2026-10-21").send().await.unwrap();
        assert_eq!(response.headers()["content-type"], "application/x-jsonl");
        let text = response.text().await.unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap_or(Value::Null)).collect()
    }
}

fn of_type<'v>(results: &'v [Value], kind: &str) -> Vec<&'v Value> {
    results.iter().filter(|line| line["result"]["type"] == kind).collect()
}

#[tokio::test]
async fn a_batch_runs_to_its_end_and_counts_only_then() {
    let rig = Rig::of(sim()).await;
    let id = rig.start(&requests(100)).await;
    let mut running = 0;
    let batch = loop {
        rig.advance(Duration::from_mins(1));
        let batch = rig.batch_of(&id).await;
        if batch["processing_status"] == "ended" {
            break batch;
        }
        assert_eq!(counts(&batch), some(&[("processing", 100)]));
        assert_eq!((&batch["ended_at"], &batch["results_url"]), (&Value::Null, &Value::Null));
        running += 1;
        assert!(running < 60);
    };
    assert!(running > 5);
    assert_eq!(counts(&batch), some(&[("succeeded", 100)]));
    assert!(batch["ended_at"].as_str().unwrap() > batch["created_at"].as_str().unwrap());
    let results = rig.results(&id).await;
    assert_eq!(results.len(), 100);
    let mut seen = HashSet::new();
    for line in of_type(&results, "succeeded") {
        let custom_id = line["custom_id"].as_str().unwrap();
        let n = custom_id.strip_prefix("id-").unwrap().parse().unwrap();
        assert!(seen.insert(n));
        let message = &line["result"]["message"];
        assert_eq!(message["content"][0]["text"], expected_answer(CLAUDE, &prompt(n)));
        assert_eq!(message["usage"]["service_tier"], "batch");
    }
    assert_eq!(seen.len(), 100);
    let bill = rig.provider.bill();
    assert_eq!((bill.requests(Mode::Batch), bill.cost(Mode::Batch).0 * 2), (100, bill.all_realtime().0));
    assert_eq!(bill.executions.repeated(), []);
    rig.advance(DAY * 29);
    let old = rig.batch_of(&id).await;
    assert_eq!((&old["results_url"], old["archived_at"].is_string()), (&Value::Null, true));
}

#[tokio::test]
async fn parameters_are_checked_when_they_run() {
    let rig = Rig::of(sim()).await;
    let mut body = requests(6);
    let requests = body["requests"].as_array_mut().unwrap();
    requests[0]["params"]["stream"] = true.into();
    requests[1]["params"]["max_tokens"] = 0.into();
    requests[2]["params"]["model"] = "who".into();
    requests[3]["params"]["model"] = "claude-opus-5-5".into();
    requests[4]["params"] = json!({});
    let id = rig.start(&body).await;
    rig.advance(DAY);
    assert_eq!(counts(&rig.batch_of(&id).await), some(&[("errored", 4), ("succeeded", 2)]));
    let results = rig.results(&id).await;
    let errors: BTreeMap<_, _> = of_type(&results, "errored")
        .into_iter()
        .map(|line| {
            let error = &line["result"]["error"];
            assert_eq!(error["type"], "error");
            (line["custom_id"].as_str().unwrap(), error["error"]["type"].as_str().unwrap())
        })
        .collect();
    let invalid = "invalid_request_error";
    let want = [("id-0", invalid), ("id-1", invalid), ("id-2", "not_found_error"), ("id-4", invalid)];
    assert_eq!(errors, BTreeMap::from(want));
    assert_eq!(rig.provider.bill().requests(Mode::Batch), 2, "what erred is not billed");
}

#[tokio::test]
async fn the_frame_is_checked_at_once() {
    let limits = Limits {
        message_batch_requests: 3,
        message_batch_bytes: 2_000,
        message_batch_queue: Some(3),
        ..Limits::default()
    };
    let rig = Rig::of(sim().limits(limits)).await;
    let create = async |body: Value, status| refused(rig.ask(BATCHES, &body), status).await;
    assert!(create(json!({"requests": []}), 400).await.1.contains("at least 1 item"));
    let spoilt = |id: &str| json!({"requests": [{"custom_id": id, "params": message("x")}]});
    assert!(create(spoilt("a b"), 400).await.1.contains("pattern"));
    assert!(create(spoilt(&"x".repeat(65)), 400).await.1.contains("pattern"));
    assert!(create(json!({"requests": [entry(1), entry(1)]}), 400).await.1.contains("unique"));
    assert!(create(requests(4), 400).await.1.contains("at most 3"));
    let large = json!({"requests": [{"custom_id": "a", "params": message(&"x".repeat(2_000))}]});
    assert_eq!(create(large, 413).await.0, "request_too_large");
    let plain = rig.post(BATCHES, &requests(1));
    assert_eq!(refused(plain, 400).await.1, "anthropic-version: header is required");
    rig.start(&requests(2)).await;
    assert_eq!(create(requests(2), 429).await.0, "rate_limit_error");
    rig.advance(DAY);
    rig.start(&requests(2)).await;
}

#[tokio::test]
async fn a_canceled_batch_keeps_what_was_in_flight() {
    let rig = Rig::of(sim()).await;
    let id = rig.start(&requests(200)).await;
    rig.advance(Duration::from_mins(5));
    let cancel = async || {
        let path = format!("{BATCHES}/{id}/cancel");
        rig.client.post(rig.url(&path)).header(VERSION, "2026-10-21")
    };
    let batch = good(cancel().await.send().await.unwrap()).await;
    assert_eq!(batch["processing_status"], "canceling");
    assert_eq!(counts(&batch), some(&[("processing", 200)]));
    assert_eq!(good(cancel().await.send().await.unwrap()).await, batch, "asking twice changes nothing");
    let delete = || {
        let request = rig.client.delete(rig.url(&format!("{BATCHES}/{id}")));
        request.header(VERSION, "2026-10-21")
    };
    refused(delete(), 400).await;
    rig.advance(Duration::from_mins(1));
    let batch = rig.batch_of(&id).await;
    assert_eq!(batch["processing_status"], "ended");
    let counts = counts(&batch);
    assert!(counts["succeeded"] > 0 && counts["canceled"] > 0, "{counts:?}");
    assert_eq!(counts["succeeded"] + counts["canceled"], 200);
    let results = rig.results(&id).await;
    assert_eq!(of_type(&results, "canceled").len() as u64, counts["canceled"]);
    assert_eq!(rig.provider.bill().requests(Mode::Batch), counts["succeeded"]);
    refused(cancel().await, 400).await;
    let gone = good(delete().send().await.unwrap()).await;
    assert_eq!(gone, json!({"id": id, "type": "message_batch_deleted"}));
    refused(delete(), 404).await;
}

#[tokio::test]
async fn what_is_not_done_in_a_day_expires() {
    let rig = Rig::of(sim()).await;
    rig.provider.faults().next_batch(vec![BatchFault::Stall]);
    let id = rig.start(&requests(10)).await;
    rig.advance(Duration::from_secs(24 * 3600 - 1));
    assert_eq!(rig.batch_of(&id).await["processing_status"], "in_progress");
    let early = rig.client.get(rig.url(&format!("{BATCHES}/{id}/results"))).header(VERSION, "2026-10-21");
    assert_eq!(refused(early, 404).await.0, "not_found_error");
    rig.advance(Duration::from_secs(1));
    let batch = rig.batch_of(&id).await;
    assert_eq!(
        (counts(&batch), &batch["ended_at"]),
        (some(&[("expired", 5), ("succeeded", 5)]), &batch["expires_at"])
    );
    assert_eq!(of_type(&rig.results(&id).await, "expired").len(), 5);
    assert_eq!(rig.provider.bill().requests(Mode::Batch), 5);
}

#[tokio::test]
async fn the_listing_is_newest_first_and_may_lag() {
    let rig = Rig::of(sim()).await;
    let mut ids = Vec::new();
    for _ in 0..5 {
        ids.insert(0, rig.start(&requests(1)).await);
    }
    let list = async |query: String| {
        let page = rig.look(&format!("{BATCHES}{query}")).await;
        let data = page["data"].as_array().unwrap();
        let got: Vec<_> = data.iter().map(|batch| batch["id"].as_str().unwrap().to_owned()).collect();
        assert_eq!(
            (page["first_id"].as_str(), page["last_id"].as_str()),
            (got.first().map(String::as_str), got.last().map(String::as_str))
        );
        (got, page["has_more"].as_bool().unwrap())
    };
    assert_eq!(list(String::new()).await, (ids.clone(), false));
    assert_eq!(list("?limit=2".into()).await, (ids[..2].to_vec(), true));
    assert_eq!(list(format!("?limit=2&after_id={}", ids[1])).await, (ids[2..4].to_vec(), true));
    assert_eq!(list(format!("?limit=2&before_id={}", ids[4])).await, (ids[2..4].to_vec(), true));
    assert_eq!(list(format!("?before_id={}", ids[2])).await, (ids[..2].to_vec(), false));
    rig.provider.faults().set(Faults { listing_lag_ms: 5_000, ..Faults::default() });
    rig.provider.faults().next(Endpoint::CreateMessageBatch, Fault::DropResponseAfterEffect);
    assert!(rig.ask(BATCHES, &requests(1)).send().await.is_err());
    assert_eq!(list(String::new()).await.0, ids, "it exists, but does not show yet");
    rig.advance(Duration::from_secs(5));
    assert_eq!(list(String::new()).await.0.len(), 6);
}

#[tokio::test]
async fn results_are_damaged_by_plan_and_the_bill_is_not() {
    let rig = Rig::of(sim()).await;
    let after = async |fault: BatchFault| {
        rig.provider.faults().next_batch(vec![fault]);
        let id = rig.start(&requests(10)).await;
        rig.advance(DAY);
        let shown = counts(&rig.batch_of(&id).await);
        assert_eq!(shown, some(&[("succeeded", 10)]));
        rig.results(&id).await
    };
    assert!(after(BatchFault::OutputTruncated).await.last().unwrap().is_null());
    let garbage = after(BatchFault::OutputGarbageLine).await;
    assert_eq!((garbage.len(), garbage.iter().filter(|line| line.is_null()).count()), (11, 1));
    assert_eq!(after(BatchFault::OutputUnknownId).await.len(), 11);
    assert_eq!(after(BatchFault::OutputLostLine).await.len(), 9);
    let twice = after(BatchFault::OutputDuplicateId).await;
    assert_eq!((twice.len(), &twice[0]["custom_id"]), (11, &twice[10]["custom_id"]));
    assert_eq!(rig.provider.bill().requests(Mode::Batch), 50);
    rig.provider.faults().next_batch(vec![BatchFault::FailValidation { code: "no".into() }]);
    assert!(refused(rig.ask(BATCHES, &requests(1)), 400).await.1.ends_with(": no"));

    let id = rig.start(&requests(50)).await;
    rig.advance(DAY);
    rig.provider.faults().next(Endpoint::MessageBatchResults, Fault::CutBody);
    let path = format!("{BATCHES}/{id}/results");
    let response = rig.client.get(rig.url(&path)).header(VERSION, "2026-10-21").send().await.unwrap();
    assert!(response.bytes().await.is_err(), "the stream breaks half-way");
    assert_eq!(rig.results(&id).await.len(), 50);
}

#[tokio::test]
async fn entries_fail_by_plan() {
    let rule = |fault, custom_id: &str| ItemRule {
        fault,
        probability: 1.0,
        custom_id: Some(custom_id.to_owned()),
        body: None,
        times: Some(1),
    };
    let items = vec![
        rule(ItemFault::Status { status: 529 }, "id-1"),
        rule(ItemFault::NoResponse { code: "batch_expired".to_owned() }, "id-2"),
        rule(ItemFault::NoResponse { code: "request_timeout".to_owned() }, "id-3"),
    ];
    let rig = Rig::of(sim().faults(Faults { items, ..Faults::default() })).await;
    let id = rig.start(&requests(5)).await;
    rig.advance(DAY);
    let shown = counts(&rig.batch_of(&id).await);
    assert_eq!(shown, some(&[("errored", 2), ("expired", 1), ("succeeded", 2)]));
    let results = rig.results(&id).await;
    let kinds: Vec<_> = of_type(&results, "errored")
        .into_iter()
        .map(|line| line["result"]["error"]["error"]["type"].as_str().unwrap())
        .collect();
    assert!(kinds.contains(&"overloaded_error") && kinds.contains(&"api_error"), "{kinds:?}");
    assert_eq!(rig.provider.bill().requests(Mode::Batch), 2);
}
