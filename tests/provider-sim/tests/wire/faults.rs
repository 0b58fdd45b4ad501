//! Faults: what goes wrong on the wire, with batches and with their items, and what it costs.

use std::time::Duration;

use provider_sim::{
    BatchFault, BatchRule, Endpoint, Fault, Faults, HttpRule, ItemFault, ItemRule, Mode, Target, TargetGroup,
};
use serde_json::{Value, json};

use crate::messages::{MESSAGES, message};
use crate::rig::{CHAT, MODEL, Rig, chat, good, line, lines, refused, sim};

const DAY: Duration = Duration::from_hours(24);

#[tokio::test]
async fn errors_before_the_work_cost_nothing() {
    let rig = Rig::of(sim()).await;
    let faults = rig.provider.faults();
    faults.next(Endpoint::ChatCompletions, Fault::Status { status: 429, retry_after_ms: Some(1_500) });
    faults.next(Endpoint::ChatCompletions, Fault::Status { status: 503, retry_after_ms: None });
    faults.next(Endpoint::ChatCompletions, Fault::DropBeforeEffect);
    let response = rig.post(CHAT, &chat("x")).send().await.unwrap();
    assert_eq!(response.status(), 429);
    assert_eq!(
        (&response.headers()["retry-after"], &response.headers()["retry-after-ms"]),
        (&"2".parse().unwrap(), &"1500".parse().unwrap())
    );
    assert_eq!(refused(rig.post(CHAT, &chat("x")), 503).await["type"], "server_error");
    assert!(rig.post(CHAT, &chat("x")).send().await.is_err());
    assert_eq!(rig.provider.bill().lines, []);
    good(rig.post(CHAT, &chat("x")).send().await.unwrap()).await;
    assert_eq!(faults.injected(Endpoint::ChatCompletions), 3);
    assert_eq!(rig.provider.calls(Endpoint::ChatCompletions), 4);
}

#[tokio::test]
async fn work_whose_answer_is_lost_is_paid() {
    let rig = Rig::of(sim()).await;
    let faults = rig.provider.faults();
    for fault in [Fault::DropResponseAfterEffect, Fault::CutBody] {
        faults.next(Endpoint::ChatCompletions, fault);
        let sent = rig.post(CHAT, &chat("x")).send().await;
        assert!(match sent {
            Err(_) => true,
            Ok(response) => response.bytes().await.is_err(),
        });
    }
    faults.next(Endpoint::ChatCompletions, Fault::StatusAfterEffect { status: 500 });
    refused(rig.post(CHAT, &chat("x")), 500).await;
    for fault in [Fault::Garbage, Fault::TruncateBody] {
        faults.next(Endpoint::ChatCompletions, fault);
        let response = rig.post(CHAT, &chat("x")).send().await.unwrap();
        assert_eq!(response.status(), 200);
        assert!(serde_json::from_slice::<Value>(&response.bytes().await.unwrap()).is_err());
    }
    let bill = rig.provider.bill();
    assert_eq!(bill.requests(Mode::Realtime), 5);
    assert_eq!(bill.executions.repeated()[0].1, 5, "the bill shows that the same request ran five times");
}

#[tokio::test]
async fn streams_end_early() {
    let rig = Rig::of(sim()).await;
    let mut body = chat("x");
    body["stream"] = true.into();
    rig.provider.faults().next(Endpoint::ChatCompletions, Fault::TruncateBody);
    let text = rig.post(CHAT, &body).send().await.unwrap().text().await.unwrap();
    assert!(text.starts_with("data: {") && !text.contains("[DONE]"));
    rig.provider.faults().next(Endpoint::ChatCompletions, Fault::CutBody);
    let response = rig.post(CHAT, &body).send().await.unwrap();
    assert_eq!(response.status(), 200);
    assert!(response.bytes().await.is_err());
}

#[tokio::test]
async fn a_stream_may_end_with_an_error() {
    let rig = Rig::of(sim()).await;
    let faults = rig.provider.faults();
    let text = async |endpoint, request: reqwest::RequestBuilder| {
        faults.next(endpoint, Fault::ErrorInStream { status: 529 });
        let response = request.send().await.unwrap();
        assert_eq!(response.status(), 200, "the head was good");
        response.text().await.unwrap()
    };
    let last = |text: &str| -> (String, Value) {
        let event = text.trim_end().rsplit("\n\n").next().unwrap().to_owned();
        let (name, data) = event.rsplit_once("data: ").unwrap();
        (name.to_owned(), serde_json::from_str(data).unwrap())
    };
    let streamed = |mut body: Value| {
        body["stream"] = true.into();
        body
    };
    let chat = text(Endpoint::ChatCompletions, rig.post(CHAT, &streamed(chat("x")))).await;
    assert!(chat.starts_with("data: {") && !chat.contains("[DONE]"));
    assert_eq!(last(&chat).1["error"]["type"], "server_error");
    let claude = rig.ask(MESSAGES, &streamed(message("x")));
    let (name, error) = last(&text(Endpoint::Messages, claude).await);
    assert_eq!((name.as_str(), &error["error"]["type"]), ("event: error\n", &"overloaded_error".into()));
    let body = streamed(json!({"model": MODEL, "input": "x"}));
    let (name, error) = last(&text(Endpoint::Responses, rig.post("/v1/responses", &body)).await);
    assert_eq!((name.as_str(), &error["type"]), ("event: error\n", &"error".into()));
    assert!(error["sequence_number"].as_u64().unwrap() > 3);
    assert_eq!(rig.provider.bill().requests(Mode::Realtime), 3, "what was said is paid");
    faults.next(Endpoint::ChatCompletions, Fault::ErrorInStream { status: 500 });
    refused(rig.post(CHAT, &crate::rig::chat("x")), 500).await;
}

#[tokio::test]
async fn slow_answers_are_slow() {
    let rig = Rig::of(sim().latency(Duration::from_millis(5))).await;
    rig.provider.faults().next(Endpoint::ChatCompletions, Fault::Slow { ms: 40 });
    let started = std::time::Instant::now();
    good(rig.post(CHAT, &chat("x")).send().await.unwrap()).await;
    assert!(started.elapsed() >= Duration::from_millis(45));
}

#[tokio::test]
async fn lost_answers_leave_files_and_batches_behind() {
    let rig = Rig::of(sim()).await;
    rig.provider.faults().next(Endpoint::UploadFile, Fault::DropResponseAfterEffect);
    assert!(rig.upload_request("in.jsonl", &lines(1)).send().await.is_err());
    let files = rig.get("/v1/files").await;
    let file = files["data"][0]["id"].as_str().unwrap();
    rig.provider.faults().next(Endpoint::CreateBatch, Fault::DropResponseAfterEffect);
    assert!(rig.create_request(file).send().await.is_err());
    let batches = rig.get("/v1/batches").await;
    assert_eq!(batches["data"][0]["metadata"]["mark"], "m-1", "found by its mark");
    rig.provider.faults().next(Endpoint::CreateBatch, Fault::DropBeforeEffect);
    assert!(rig.create_request(file).send().await.is_err());
    assert_eq!(rig.get("/v1/batches").await["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn a_new_batch_may_be_missing_from_the_listing() {
    let rig = Rig::of(sim().faults(Faults { listing_lag_ms: 5_000, ..Faults::default() })).await;
    let id = rig.batch(&lines(1)).await;
    assert_eq!(rig.get("/v1/batches").await["data"], json!([]));
    assert_eq!(rig.retrieve(&id).await["id"], id);
    rig.advance(Duration::from_secs(5));
    assert_eq!(rig.get("/v1/batches").await["data"][0]["id"], id);
}

#[tokio::test]
async fn a_storm_on_polling_passes() {
    let on = Target::Endpoint(Endpoint::GetBatch);
    let fault = Fault::Status { status: 502, retry_after_ms: None };
    let storm = HttpRule { on, fault, probability: 1.0, from_ms: Some(60_000), until_ms: Some(120_000) };
    let rig = Rig::of(sim().faults(Faults { http: vec![storm], ..Faults::default() })).await;
    let id = rig.batch(&lines(1)).await;
    rig.retrieve(&id).await;
    rig.advance(Duration::from_mins(1));
    refused(rig.client.get(rig.url(&format!("/v1/batches/{id}"))), 502).await;
    rig.advance(Duration::from_mins(1));
    rig.retrieve(&id).await;
}

#[tokio::test]
async fn items_fail_at_a_rate_and_are_not_billed() {
    let rule = |fault, probability| ItemRule { fault, probability, custom_id: None, body: None, times: None };
    let items = vec![
        rule(ItemFault::Status { status: 500 }, 0.2),
        rule(ItemFault::NoResponse { code: "request_timeout".to_owned() }, 0.1),
    ];
    let rig = Rig::of(sim().faults(Faults { items, ..Faults::default() })).await;
    let id = rig.batch(&lines(1_000)).await;
    rig.advance(DAY);
    let batch = rig.retrieve(&id).await;
    let failed = batch["request_counts"]["failed"].as_u64().unwrap();
    assert!((200..360).contains(&failed), "{failed}");
    let errors = rig.lines(&batch["error_file_id"]).await;
    let answered = errors.iter().filter(|line| line["response"]["status_code"] == 500).count();
    let timed_out = errors.iter().filter(|line| line["error"]["code"] == "request_timeout").count();
    assert_eq!((answered + timed_out) as u64, failed);
    assert!(answered > 100 && timed_out > 30);
    assert_eq!(rig.provider.bill().requests(Mode::Batch), 1_000 - failed);
}

#[tokio::test]
async fn an_item_fails_twice_and_then_succeeds() {
    let rig = Rig::of(sim()).await;
    rig.provider.faults().update(|faults| {
        faults.items.push(ItemRule {
            fault: ItemFault::Status { status: 429 },
            probability: 1.0,
            custom_id: Some("id-1".to_owned()),
            body: None,
            times: Some(2),
        });
    });
    let mut completed = Vec::new();
    for _ in 0..3 {
        let id = rig.batch(&lines(2)).await;
        rig.advance(DAY);
        completed.push(rig.retrieve(&id).await["request_counts"]["completed"].as_u64().unwrap());
    }
    assert_eq!(completed, [1, 1, 2]);
}

#[tokio::test]
async fn when_every_item_fails_the_batch_completes_without_output() {
    let fault = ItemFault::Status { status: 500 };
    let items = vec![ItemRule { fault, probability: 1.0, custom_id: None, body: None, times: None }];
    let rig = Rig::of(sim().faults(Faults { items, ..Faults::default() })).await;
    let id = rig.batch(&lines(2)).await;
    rig.advance(DAY);
    let batch = rig.retrieve(&id).await;
    assert_eq!((&batch["status"], &batch["output_file_id"]), (&"completed".into(), &Value::Null));
    assert_eq!(rig.lines(&batch["error_file_id"]).await.len(), 2);
}

#[tokio::test]
async fn batches_fail_validation_by_plan() {
    let fault = BatchFault::FailValidation { code: "billing_hard_limit_reached".to_owned() };
    let batches = vec![BatchRule { fault, probability: 1.0 }];
    let rig = Rig::of(sim().faults(Faults { batches, ..Faults::default() })).await;
    let id = rig.batch(&lines(1)).await;
    rig.advance(DAY);
    let batch = rig.retrieve(&id).await;
    assert_eq!(batch["errors"]["data"][0]["code"], "billing_hard_limit_reached");
}

#[tokio::test]
async fn result_files_are_damaged_by_plan() {
    let rig = Rig::of(sim()).await;
    let lines_after = async |fault: BatchFault| {
        rig.provider.faults().next_batch(vec![fault]);
        let id = rig.batch(&(0..10).map(line).collect::<Vec<_>>()).await;
        rig.advance(DAY);
        rig.lines(&rig.retrieve(&id).await["output_file_id"]).await
    };
    let truncated = lines_after(BatchFault::OutputTruncated).await;
    assert!(truncated.len() < 10 && truncated.last().unwrap().is_null());
    let garbage = lines_after(BatchFault::OutputGarbageLine).await;
    assert_eq!((garbage.len(), garbage.iter().filter(|line| line.is_null()).count()), (11, 1));
    let unknown = lines_after(BatchFault::OutputUnknownId).await;
    let strange = unknown.iter().filter(|line| !line["custom_id"].as_str().unwrap().starts_with("id-"));
    assert_eq!((unknown.len(), strange.count()), (11, 1));
    let twice = lines_after(BatchFault::OutputDuplicateId).await;
    assert_eq!((twice.len(), &twice[0]["custom_id"]), (11, &twice[10]["custom_id"]));
    assert_eq!(rig.provider.bill().requests(Mode::Batch), 40, "damage to files changes no bill");
}

#[tokio::test]
async fn a_download_breaks_half_way_and_works_the_next_time() {
    let rig = Rig::of(sim()).await;
    let id = rig.batch(&lines(50)).await;
    rig.advance(DAY);
    let file = rig.retrieve(&id).await["output_file_id"].clone();
    rig.provider.faults().next(Endpoint::FileContent, Fault::CutBody);
    let path = format!("/v1/files/{}/content", file.as_str().unwrap());
    let response = rig.client.get(rig.url(&path)).send().await.unwrap();
    assert!(response.bytes().await.is_err());
    assert_eq!(rig.lines(&file).await.len(), 50);
}

#[tokio::test]
async fn flex_may_have_no_room() {
    let rig = Rig::of(sim().faults(Faults { flex_unavailable: 1.0, ..Faults::default() })).await;
    let mut body = chat("x");
    body["service_tier"] = "flex".into();
    let error = refused(rig.post(CHAT, &body), 429).await;
    assert!(error["message"].as_str().unwrap().starts_with("Resource Unavailable"));
    good(rig.post(CHAT, &chat("x")).send().await.unwrap()).await;
    assert_eq!(rig.provider.bill().requests(Mode::Flex), 0);
}

#[tokio::test]
async fn the_same_seed_gives_the_same_faults() {
    let fault = Fault::Status { status: 500, retry_after_ms: None };
    let rule = HttpRule {
        on: Target::Group(TargetGroup::Realtime),
        fault,
        probability: 0.3,
        from_ms: None,
        until_ms: None,
    };
    let mut runs = Vec::new();
    for seed in [1, 1, 2] {
        let rig =
            Rig::of(sim().seed(seed).faults(Faults { http: vec![rule.clone()], ..Faults::default() })).await;
        let mut statuses = Vec::new();
        for _ in 0..40 {
            statuses.push(rig.post(CHAT, &chat("x")).send().await.unwrap().status().as_u16());
        }
        runs.push(statuses);
    }
    assert_eq!(runs[0], runs[1]);
    assert_ne!(runs[0], runs[2]);
    assert!(runs[0].contains(&200) && runs[0].contains(&500));
}
