//! Batches, from creation to every way in which they can end.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use provider_sim::{BatchFault, Limits, Mode, execution_key, expected_answer};
use serde_json::{Value, json};

use crate::rig::{CHAT, MODEL, Rig, chat, good, line, lines, prompt, refused, sim};

const MINUTE: Duration = Duration::from_mins(1);
const DAY: Duration = Duration::from_hours(24);

fn counts(batch: &Value) -> [u64; 3] {
    ["total", "completed", "failed"].map(|name| batch["request_counts"][name].as_u64().unwrap())
}

/// Asserts that these output lines answer distinct requests, each its own.
fn assert_answers(lines: &[Value]) {
    let mut seen = HashSet::new();
    for line in lines {
        let id = line["custom_id"].as_str().unwrap();
        let n = id.strip_prefix("id-").unwrap().parse().unwrap();
        assert!(seen.insert(id.to_owned()), "{id} comes twice");
        assert_eq!(line["response"]["status_code"], 200);
        assert_eq!(line["error"], Value::Null);
        let content = &line["response"]["body"]["choices"][0]["message"]["content"];
        assert_eq!(*content, expected_answer(MODEL, &prompt(n)));
    }
}

#[tokio::test]
async fn a_batch_runs_through_all_its_states() {
    let rig = Rig::of(sim()).await;
    let id = rig.batch(&lines(200)).await;
    let batch = rig.retrieve(&id).await;
    assert_eq!((counts(&batch), &batch["metadata"]), ([0, 0, 0], &json!({"mark": "m-1"})));
    let created = batch["created_at"].as_u64().unwrap();
    assert_eq!(batch["expires_at"], created + 24 * 3600);
    let mut statuses = vec!["validating".to_owned()];
    let mut progress = Vec::new();
    for _ in 0..4_000 {
        rig.advance(Duration::from_secs(1));
        let batch = rig.retrieve(&id).await;
        let [total, completed, failed] = counts(&batch);
        let bill = rig.provider.bill();
        assert_eq!(bill.requests(Mode::Batch), completed, "what is done is billed, and nothing else");
        assert_eq!(failed, 0);
        let status = batch["status"].as_str().unwrap().to_owned();
        if status == "in_progress" {
            assert_eq!(total, 200);
            progress.push(completed);
        }
        if statuses.last() != Some(&status) {
            statuses.push(status.clone());
        }
        assert_eq!(batch["output_file_id"].is_null(), status != "completed");
        if status == "completed" {
            break;
        }
    }
    assert_eq!(statuses, ["validating", "in_progress", "finalizing", "completed"]);
    assert!(progress.is_sorted() && progress.iter().collect::<HashSet<_>>().len() > 20, "{progress:?}");

    let batch = rig.retrieve(&id).await;
    let stamps = ["created_at", "in_progress_at", "finalizing_at", "completed_at"];
    assert!(stamps.map(|name| batch[name].as_u64().unwrap()).is_sorted());
    let took = batch["completed_at"].as_u64().unwrap() - created;
    assert!((600..=2_400).contains(&took), "{took} s");
    assert_eq!(
        (&batch["error_file_id"], &batch["errors"], &batch["model"]),
        (&json!(null), &json!(null), &MODEL.into())
    );
    let output = rig.lines(&batch["output_file_id"]).await;
    assert_eq!(output.len(), 200);
    assert_answers(&output);
    let order: Vec<_> = output.iter().map(|line| line["custom_id"].as_str().unwrap().to_owned()).collect();
    assert_ne!(
        order,
        (0..200).map(|n| format!("id-{n}")).collect::<Vec<_>>(),
        "not in the order of the input"
    );
    let bill = rig.provider.bill();
    assert_eq!(bill.cost(Mode::Batch).0 * 2, bill.all_realtime().0);
    assert_eq!(batch["usage"]["input_tokens"], bill.lines[0].usage.input_tokens);
    assert_eq!(batch["usage"]["output_tokens"], bill.lines[0].usage.output_tokens);
    let file = rig.get(&format!("/v1/files/{}", batch["output_file_id"].as_str().unwrap())).await;
    assert_eq!((&file["purpose"], &file["created_at"]), (&"batch_output".into(), &batch["completed_at"]));
}

#[tokio::test]
async fn a_jump_in_time_is_all_it_takes() {
    let rig = Rig::of(sim()).await;
    let id = rig.batch(&lines(50)).await;
    rig.advance(DAY);
    let batch = rig.retrieve(&id).await;
    assert_eq!((&batch["status"], counts(&batch)), (&"completed".into(), [50, 50, 0]));
    assert_eq!(rig.provider.bill().executions.repeated(), []);
    for n in 0..50 {
        let key = execution_key(CHAT, chat(&prompt(n)).to_string().as_bytes()).unwrap();
        assert_eq!(rig.provider.bill().executions.of(key), 1);
    }
}

#[tokio::test]
async fn items_that_the_model_refuses_go_to_the_error_file_unbilled() {
    let rig = Rig::of(sim()).await;
    let mut input = lines(3);
    input[1] = input[1].replace("\"role\":\"user\"", "\"role\":\"robot\"");
    let id = rig.batch(&input).await;
    rig.advance(DAY);
    let batch = rig.retrieve(&id).await;
    assert_eq!((&batch["status"], counts(&batch)), (&"completed".into(), [3, 2, 1]));
    let errors = rig.lines(&batch["error_file_id"]).await;
    assert_eq!(errors.len(), 1);
    assert_eq!((&errors[0]["custom_id"], &errors[0]["error"]), (&"id-1".into(), &Value::Null));
    assert_eq!(errors[0]["response"]["status_code"], 400);
    assert_eq!(errors[0]["response"]["body"]["error"]["param"], "messages[0].role");
    assert_eq!(rig.provider.bill().requests(Mode::Batch), 2);
}

#[tokio::test]
async fn cancelling_keeps_what_is_done() {
    for writes_lines in [true, false] {
        let rig = Rig::of(sim().lines_for_cancelled(writes_lines)).await;
        let id = rig.batch(&lines(100)).await;
        rig.advance(5 * MINUTE);
        let cancel = || rig.client.post(rig.url(&format!("/v1/batches/{id}/cancel")));
        let batch = good(cancel().send().await.unwrap()).await;
        assert_eq!((&batch["status"], &batch["output_file_id"]), (&"cancelling".into(), &Value::Null));
        assert_eq!(good(cancel().send().await.unwrap()).await["cancelling_at"], batch["cancelling_at"]);
        let [_, at_cancel, _] = counts(&batch);
        rig.advance(10 * MINUTE);
        let batch = rig.retrieve(&id).await;
        let [total, completed, failed] = counts(&batch);
        assert_eq!((&batch["status"], total), (&"cancelled".into(), 100));
        assert!(completed >= at_cancel && (1..100).contains(&completed), "{completed}");
        let output = rig.lines(&batch["output_file_id"]).await;
        assert_eq!(output.len() as u64, completed);
        assert_answers(&output);
        let errors = rig.lines(&batch["error_file_id"]).await;
        let expected = if writes_lines { 100 - completed } else { 0 };
        assert_eq!((errors.len() as u64, failed), (expected, expected));
        assert!(
            errors
                .iter()
                .all(|line| line["error"]["code"] == "batch_cancelled" && line["response"].is_null())
        );
        rig.advance(DAY);
        assert_eq!(rig.provider.bill().requests(Mode::Batch), completed, "nothing runs after a cancel");
        refused(cancel(), 409).await;
    }
}

#[tokio::test]
async fn a_batch_cancelled_while_validating_does_nothing() {
    let rig = Rig::of(sim()).await;
    let id = rig.batch(&lines(3)).await;
    good(rig.client.post(rig.url(&format!("/v1/batches/{id}/cancel"))).send().await.unwrap()).await;
    rig.advance(DAY);
    let batch = rig.retrieve(&id).await;
    assert_eq!((&batch["status"], &batch["output_file_id"]), (&"cancelled".into(), &Value::Null));
    assert_eq!(rig.provider.bill().lines, []);
}

#[tokio::test]
async fn what_does_not_finish_in_a_day_expires() {
    let rig = Rig::of(sim()).await;
    rig.provider.faults().next_batch(vec![BatchFault::Stall]);
    rig.provider.faults().next_batch(vec![BatchFault::LoseItems { permille: 200 }]);
    rig.provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 48 * 3_600_000 }]);
    let stalled = rig.batch(&lines(100)).await;
    let lossy = rig.batch(&lines(100)).await;
    let slow = rig.batch(&lines(100)).await;
    rig.advance(23 * Duration::from_hours(1) + 59 * MINUTE);
    let before = rig.retrieve(&stalled).await;
    assert_eq!((&before["status"], counts(&before)), (&"in_progress".into(), [100, 50, 0]));
    rig.advance(MINUTE);
    let mut ran = 0;
    for id in [stalled, lossy, slow] {
        let batch = rig.retrieve(&id).await;
        assert_eq!((&batch["status"], &batch["expired_at"]), (&"expired".into(), &batch["expires_at"]));
        let [total, completed, failed] = counts(&batch);
        assert!(completed > 10 && completed < 100 && completed + failed == total, "{batch}");
        let output = rig.lines(&batch["output_file_id"]).await;
        assert_answers(&output);
        let errors = rig.lines(&batch["error_file_id"]).await;
        assert!(errors.iter().all(|line| line["error"]["code"] == "batch_expired"));
        let ids = output.iter().chain(&errors).map(|line| line["custom_id"].as_str().unwrap());
        assert_eq!(ids.collect::<HashSet<_>>().len(), 100, "every item is in one of the files");
        ran += completed;
    }
    assert_eq!(rig.provider.bill().requests(Mode::Batch), ran);
}

#[tokio::test]
async fn validation_fails_with_codes_and_lines() {
    let rig = Rig::of(sim()).await;
    let mut input = lines(4);
    input[1] = "nonsense".to_owned();
    input[3] = line(0);
    let id = rig.batch(&input).await;
    assert_eq!(rig.retrieve(&id).await["errors"], Value::Null, "not known yet");
    rig.advance(MINUTE);
    let batch = rig.retrieve(&id).await;
    assert_eq!((&batch["status"], counts(&batch)), (&"failed".into(), [0, 0, 0]));
    let errors = batch["errors"]["data"].as_array().unwrap();
    let found: Vec<_> =
        errors.iter().map(|e| (e["code"].as_str().unwrap(), e["line"].as_u64().unwrap())).collect();
    assert_eq!(found, [("invalid_json_line", 2), ("duplicate_custom_id", 4)]);
    assert_eq!(errors[0]["message"], "This line is not parseable as valid JSON.");
    let missing = good(rig.create_request("file-none").send().await.unwrap()).await;
    rig.advance(MINUTE);
    let batch = rig.retrieve(missing["id"].as_str().unwrap()).await;
    assert_eq!(
        (&batch["status"], &batch["errors"]["data"][0]["code"]),
        (&"failed".into(), &"file_not_found".into())
    );
    rig.advance(DAY);
    assert_eq!(rig.provider.bill().lines, []);
}

#[tokio::test]
async fn bad_parameters_are_refused_at_once() {
    let rig = Rig::of(sim()).await;
    let file = rig.upload(&lines(1)).await;
    let fields = json!({"input_file_id": file, "endpoint": CHAT, "completion_window": "24h"});
    for (name, value, code) in [
        ("completion_window", json!("2h"), "invalid_value"),
        ("endpoint", json!("/v1/nothing"), "invalid_value"),
        ("endpoint", json!(null), "missing_required_parameter"),
        ("input_file_id", json!(null), "missing_required_parameter"),
        ("output_expires_after", json!({"anchor": "created_at", "seconds": 1}), "invalid_value"),
        ("colour", json!(1), "unknown_parameter"),
    ] {
        let mut body = fields.clone();
        body[name] = value;
        let error = refused(rig.post("/v1/batches", &body), 400).await;
        assert_eq!((&error["code"], &error["param"]), (&code.into(), &name.into()));
    }
    let mut body = fields;
    body["metadata"] = json!({"k": "v".repeat(513)});
    refused(rig.post("/v1/batches", &body), 400).await;
    refused(rig.client.get(rig.url("/v1/batches/batch_none")), 404).await;
    assert_eq!(rig.get("/v1/batches").await["data"], json!([]));
}

#[tokio::test]
async fn the_listing_is_newest_first_with_cursors() {
    let rig = Rig::of(sim()).await;
    let mut ids = Vec::new();
    for _ in 0..25 {
        ids.push(rig.batch(&lines(1)).await);
    }
    ids.reverse();
    let of = |page: &Value| -> Vec<String> {
        page["data"].as_array().unwrap().iter().map(|b| b["id"].as_str().unwrap().to_owned()).collect()
    };
    let first = rig.get("/v1/batches").await;
    assert_eq!((of(&first), &first["has_more"]), (ids[..20].to_vec(), &true.into()));
    assert_eq!((&first["first_id"], &first["last_id"]), (&ids[0].as_str().into(), &ids[19].as_str().into()));
    assert_eq!(first["data"][0]["metadata"]["mark"], "m-1");
    let second = rig.get(&format!("/v1/batches?after={}&limit=5", ids[19])).await;
    assert_eq!((of(&second), &second["has_more"]), (ids[20..].to_vec(), &false.into()));
    refused(rig.client.get(rig.url("/v1/batches?limit=101")), 400).await;
}

#[tokio::test]
async fn enqueued_tokens_are_limited_until_batches_end() {
    let of_mini = HashMap::from([(MODEL.to_owned(), 30)]);
    let limits = Limits { enqueued_tokens_of: of_mini, ..Limits::default() };
    let rig = Rig::of(sim().limits(limits)).await;
    let first = rig.batch(&lines(2)).await; // 9 tokens each
    let second = rig.batch(&lines(2)).await;
    rig.advance(MINUTE);
    let batch = rig.retrieve(&second).await;
    assert_eq!(batch["status"], "failed");
    assert_eq!(batch["errors"]["data"][0]["code"], "token_limit_exceeded");
    assert!(batch["errors"]["data"][0]["message"].as_str().unwrap().contains("Limit: 30 enqueued tokens"));
    rig.advance(DAY);
    assert_eq!(rig.retrieve(&first).await["status"], "completed");
    let third = rig.batch(&lines(2)).await;
    rig.advance(DAY);
    assert_eq!(rig.retrieve(&third).await["status"], "completed");
}

#[tokio::test]
async fn creations_in_an_hour_are_limited() {
    let rig = Rig::of(sim().limits(Limits { batches_per_hour: 2, ..Limits::default() })).await;
    let file = rig.upload(&lines(1)).await;
    let create = || rig.create_request(&file);
    good(create().send().await.unwrap()).await;
    rig.advance(30 * MINUTE);
    good(create().send().await.unwrap()).await;
    let response = create().send().await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["retry-after"]),
        (429, &"1800".parse().unwrap())
    );
    rig.advance(30 * MINUTE);
    good(create().send().await.unwrap()).await;
}

#[tokio::test]
async fn other_endpoints_run_in_batches_too() {
    let rig = Rig::of(sim()).await;
    let run = async |endpoint: &str, body: Value| {
        let line = json!({"custom_id": "x", "method": "POST", "url": endpoint, "body": body}).to_string();
        let file = rig.upload(&[line]).await;
        let create = json!({"input_file_id": file, "endpoint": endpoint, "completion_window": "24h"});
        let batch = good(rig.post("/v1/batches", &create).send().await.unwrap()).await;
        rig.advance(DAY);
        let batch = rig.retrieve(batch["id"].as_str().unwrap()).await;
        assert_eq!(batch["status"], "completed", "{batch}");
        rig.lines(&batch["output_file_id"]).await[0]["response"]["body"].clone()
    };
    let small = "text-embedding-3-small";
    let reply =
        run("/v1/embeddings", json!({"model": small, "input": "x", "encoding_format": "base64"})).await;
    assert!(reply["data"][0]["embedding"].is_string());
    let reply = run("/v1/responses", json!({"model": MODEL, "input": "hello"})).await;
    assert_eq!(reply["output"][0]["content"][0]["text"], expected_answer(MODEL, "hello"));
    let reply = run("/v1/completions", json!({"model": MODEL, "prompt": "hello", "max_tokens": 999})).await;
    assert_eq!(reply["choices"][0]["text"], expected_answer(MODEL, "hello"));
    let reply = run("/v1/moderations", json!({"model": "omni-moderation-latest", "input": "x"})).await;
    assert_eq!(reply["results"][0]["flagged"], false);
    assert_eq!(rig.provider.bill().requests(Mode::Batch), 4);
}

#[tokio::test]
async fn result_files_expire_when_they_are_told_to() {
    let rig = Rig::of(sim()).await;
    let file = rig.upload(&lines(1)).await;
    let body = json!({"input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
        "output_expires_after": {"anchor": "created_at", "seconds": 3600}});
    let batch = good(rig.post("/v1/batches", &body).send().await.unwrap()).await;
    rig.advance(60 * MINUTE);
    let batch = rig.retrieve(batch["id"].as_str().unwrap()).await;
    let path = format!("/v1/files/{}", batch["output_file_id"].as_str().unwrap());
    rig.get(&path).await;
    rig.advance(60 * MINUTE);
    refused(rig.client.get(rig.url(&path)), 404).await;
}
