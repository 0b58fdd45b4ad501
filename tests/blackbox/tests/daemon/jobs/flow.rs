//! A job from its upload to its answers.

use http::{Method, StatusCode};
use provider_sim::{BatchFault, Faults, ItemFault, ItemRule, Mode, Server, answer};
use serde_json::{Value, json};

use super::{by_id, line, lines};
use crate::rig::{BY_HAND, CHAT, Daemon, MODEL, Rig, chat, eventually, send, sim};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn upload_create_poll_download() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let file = rig.daemon.upload(lines(40, "flow")).await;
    let call = json!({ "input_file_id": file, "endpoint": CHAT, "completion_window": "24h",
                       "metadata": { "for": "tests" } });
    let job = send(rig.daemon.post("/v1/batches", &call)).await.body;
    assert_eq!((&job["status"], &job["metadata"]), (&json!("validating"), &json!({ "for": "tests" })));
    assert_eq!(job["request_counts"], json!({ "total": 0, "completed": 0, "failed": 0 }));
    assert_eq!(job["expires_at"].as_u64().unwrap() - job["created_at"].as_u64().unwrap(), 86_400);
    let id = job["id"].as_str().unwrap();
    let running = rig.daemon.job_is(id, "in_progress").await;
    assert_eq!(running["request_counts"], json!({ "total": 40, "completed": 0, "failed": 0 }));
    assert_eq!((&running["model"], &running["output_file_id"]), (&json!(MODEL), &Value::Null));
    rig.daemon.flush().await;

    let done = rig.daemon.job_is(id, "completed").await;
    assert_eq!(done["request_counts"], json!({ "total": 40, "completed": 40, "failed": 0 }));
    assert_eq!((&done["error_file_id"], &done["errors"]), (&Value::Null, &Value::Null));
    for time in ["in_progress_at", "finalizing_at", "completed_at"] {
        assert!(done[time].as_u64() >= job["created_at"].as_u64(), "{time}: {done}");
    }
    let answers = by_id(rig.daemon.content(&done["output_file_id"]).await);
    assert_eq!(answers.len(), 40);
    let mut tokens = (0, 0);
    for (id, line) in &answers {
        let prompt = format!("flow {}", id.strip_prefix("id-").unwrap());
        let response = &line["response"];
        assert_eq!((&response["status_code"], &line["error"]), (&json!(200), &Value::Null), "{line}");
        assert_eq!(response["body"]["choices"][0]["message"]["content"], answer(MODEL, &prompt, None).text);
        tokens.0 += response["body"]["usage"]["prompt_tokens"].as_u64().unwrap();
        tokens.1 += response["body"]["usage"]["completion_tokens"].as_u64().unwrap();
    }
    assert_eq!(
        (done["usage"]["input_tokens"].as_u64(), done["usage"]["output_tokens"].as_u64()),
        (Some(tokens.0), Some(tokens.1))
    );
    let output =
        rig.daemon.get(&format!("/v1/files/{}", done["output_file_id"].as_str().unwrap())).await.body;
    assert_eq!(output["purpose"], "batch_output");
    assert!(output["bytes"].as_u64() > Some(1000), "{output}");
    assert_eq!((rig.batches(), rig.billed(Mode::Batch), rig.ran_twice()), (1, 40, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_failed_stands_in_the_error_file_and_is_submitted_again() {
    let fault = ItemRule {
        fault: ItemFault::Status { status: 400 },
        probability: 1.0,
        custom_id: None,
        body: Some("flawed".to_owned()),
        times: None,
    };
    let faults = Faults { items: vec![fault], ..Faults::default() };
    let rig = Rig::start(sim().faults(faults), "").await;
    let text = [line("good", "a question"), line("bad", "a flawed question")].join("\n");
    let id = rig.daemon.submit(text, "24h").await;
    let done = rig.daemon.job_is(&id, "completed").await;
    assert_eq!(done["request_counts"], json!({ "total": 2, "completed": 1, "failed": 1 }));
    let errors = by_id(rig.daemon.content(&done["error_file_id"]).await);
    assert_eq!(errors.keys().collect::<Vec<_>>(), ["bad"]);
    assert_eq!(errors["bad"]["response"]["status_code"], 400);
    assert!(errors["bad"]["response"]["body"]["error"]["message"].is_string(), "{errors:?}");
    assert_eq!(by_id(rig.daemon.content(&done["output_file_id"]).await).len(), 1);

    let again = rig.daemon.submit(line("bad", "a better question"), "24h").await;
    let done = rig.daemon.job_is(&again, "completed").await;
    assert_eq!((&done["request_counts"]["completed"], &done["error_file_id"]), (&json!(1), &Value::Null));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_finished_can_be_read_while_the_job_runs() {
    let rig = Rig::start(sim(), BY_HAND).await;
    rig.provider.faults().next_batch(vec![BatchFault::LoseItems { permille: 500 }]);
    let id = rig.daemon.submit(lines(40, "partial"), "48h").await;
    let running = rig.daemon.job_is(&id, "in_progress").await;
    let partial = running["partial_output_file_id"].clone();
    assert_eq!(rig.daemon.content(&partial).await, [Value::Null; 0]);
    rig.daemon.flush().await;
    eventually("the batch is made", async || (rig.batches() == 1).then_some(())).await;
    rig.provider.clock().advance(std::time::Duration::from_hours(24));
    let counts = eventually("some are finished", async || {
        let job = rig.daemon.job(&id).await;
        let waiting = rig.daemon.waiting().await;
        let completed = job["request_counts"]["completed"].as_u64()?;
        (completed > 0 && completed + waiting == 40).then_some(completed)
    })
    .await;
    assert!(counts < 40);
    let read = by_id(rig.daemon.content(&partial).await);
    assert_eq!(read.len() as u64, counts);
    rig.daemon.flush().await;
    let done = rig.daemon.job_is(&id, "completed").await;
    assert_eq!(done["partial_output_file_id"], Value::Null);
    assert_eq!(by_id(rig.daemon.content(&done["output_file_id"]).await).len(), 40);
    assert_eq!((rig.billed(Mode::Batch), rig.ran_twice()), (40, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_jobs_share_a_provider_batch() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let file = rig.daemon.upload(lines(100, "shared")).await;
    let mut jobs = Vec::new();
    for _ in 0..500 {
        let job = rig.daemon.create(&file, "24h").await;
        jobs.push(job.body["id"].as_str().unwrap().to_owned());
    }
    // Nobody flushes the lane: it holds as much as the provider takes in one batch, and leaves.
    for id in &jobs {
        let done = rig.daemon.job_is(id, "completed").await;
        assert_eq!(done["request_counts"], json!({ "total": 100, "completed": 100, "failed": 0 }));
    }
    assert_eq!(rig.daemon.metric("offpeak_jobs_ended_total", "completed").await, 500);
    assert_eq!(rig.daemon.metric("offpeak_open_jobs", "").await, 0);
    assert_eq!((rig.batches(), rig.billed(Mode::Batch)), (1, 50_000));
    let last = rig.daemon.job(&jobs[499]).await;
    assert_eq!(by_id(rig.daemon.content(&last["output_file_id"]).await).len(), 100);

    let page = rig.daemon.get("/v1/batches?limit=100").await.body;
    let ids = |page: &Value| {
        let data = page["data"].as_array().unwrap();
        data.iter().map(|job| job["id"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let mut listed = ids(&page);
    assert_eq!((listed.len(), &page["has_more"]), (100, &json!(true)));
    while listed.len() < 500 {
        let after = &listed[listed.len() - 1];
        let page = rig.daemon.get(&format!("/v1/batches?limit=100&after={after}")).await.body;
        assert_eq!(page["has_more"], listed.len() < 400);
        listed.extend(ids(&page));
    }
    listed.reverse();
    assert_eq!(listed, jobs);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stop_while_requests_are_put_into_lanes_doubles_and_loses_none() {
    let provider = sim().build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let mut daemon = Daemon::start(&server.url(), BY_HAND).await;
    let id = daemon.submit(lines(6000, "crash"), "24h").await;
    // The input is put into lanes in chunks of a thousand. Each life does a few, or none.
    for _ in 0..3 {
        daemon = daemon.restart(&server.url(), BY_HAND).await;
        let job = daemon.job(&id).await;
        assert!(["validating", "in_progress"].contains(&job["status"].as_str().unwrap()), "{job}");
    }
    daemon.job_is(&id, "in_progress").await;
    daemon.wait_for_waiting(6000).await;
    daemon.flush().await;
    eventually("it is under way", async || (provider.bill().requests(Mode::Batch) > 0).then_some(())).await;
    let daemon = daemon.restart(&server.url(), BY_HAND).await;
    let done = daemon.job_is(&id, "completed").await;
    assert_eq!(done["request_counts"], json!({ "total": 6000, "completed": 6000, "failed": 0 }));
    assert_eq!(by_id(daemon.content(&done["output_file_id"]).await).len(), 6000);
    let bill = provider.bill();
    assert_eq!((bill.requests(Mode::Batch), bill.executions.repeated().len()), (6000, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_is_its_tenants_alone() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let file = rig.daemon.upload(lines(2, "mine")).await;
    let id = rig.daemon.create(&file, "24h").await.body["id"].as_str().unwrap().to_owned();
    let running = rig.daemon.job_is(&id, "in_progress").await;
    let output = running["partial_output_file_id"].as_str().unwrap();
    let calls = [
        (Method::GET, format!("/v1/batches/{id}")),
        (Method::POST, format!("/v1/batches/{id}/cancel")),
        (Method::GET, format!("/v1/files/{file}")),
        (Method::GET, format!("/v1/files/{file}/content")),
        (Method::DELETE, format!("/v1/files/{file}")),
        (Method::GET, format!("/v1/files/{output}/content")),
        (Method::GET, format!("/v1/batches?after={id}")),
    ];
    for (method, path) in calls {
        let answer = send(rig.daemon.call("mail", method.clone(), &path)).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{method} {path}: {answer:?}");
    }
    let create = json!({ "input_file_id": file, "endpoint": CHAT, "completion_window": "24h" });
    let stolen = send(rig.daemon.post_as("mail", "/v1/batches", &create)).await;
    assert_eq!(stolen.error(), (400, "invalid_input_file"));
    for path in ["/v1/batches", "/v1/files"] {
        let list = send(rig.daemon.call("mail", Method::GET, path)).await;
        assert_eq!((&list.body["data"], &list.body["has_more"]), (&json!([]), &json!(false)));
    }
    assert_eq!(rig.daemon.job(&id).await["status"], "in_progress");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_is_sent_again_makes_one_job() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let file = rig.daemon.upload(lines(2, "again")).await;
    let call = json!({ "input_file_id": file, "endpoint": CHAT, "completion_window": "24h" });
    let id = |answer: crate::rig::Answer| answer.body["id"].as_str().unwrap().to_owned();
    let first = id(send(rig.daemon.post("/v1/batches", &call)).await);
    let retry = rig.daemon.post("/v1/batches", &call).header("x-stainless-retry-count", "1");
    assert_eq!(id(send(retry).await), first);
    assert_ne!(id(send(rig.daemon.post("/v1/batches", &call)).await), first, "two calls are two jobs");

    let keyed = |call: &Value| rig.daemon.post("/v1/batches", call).header("idempotency-key", "mine");
    let job = id(send(keyed(&call)).await);
    assert_eq!(id(send(keyed(&call)).await), job);
    let other = json!({ "input_file_id": file, "endpoint": CHAT, "completion_window": "12h" });
    assert_eq!(send(keyed(&other)).await.error(), (409, "idempotency_key_reused"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_no_batch_keeps_is_kept_by_real_time() {
    let rig = Rig::start(sim(), "").await;
    let id = rig.daemon.submit(lines(5, "soon"), "1m").await;
    let done = rig.daemon.job_is(&id, "completed").await;
    assert_eq!(done["completion_window"], "1m");
    assert_eq!((rig.batches(), rig.billed(Mode::Realtime), rig.ran_twice()), (0, 5, 0));
    let answers = by_id(rig.daemon.content(&done["output_file_id"]).await);
    assert_eq!(answers["id-3"]["response"]["status_code"], 200);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_of_a_jobs_request_is_counted_when_it_is_cancelled() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let id = rig.daemon.submit(lines(2, "one of them"), "24h").await;
    rig.daemon.job_is(&id, "in_progress").await;
    // Its id is the position in the first lane.
    let cancelled = rig.daemon.delete("/v1/deferred/dfr-0-1").await;
    assert_eq!(cancelled.status, StatusCode::OK, "{cancelled:?}");
    rig.daemon.flush().await;
    let done = rig.daemon.job_is(&id, "completed").await;
    assert_eq!(done["request_counts"], json!({ "total": 2, "completed": 1, "failed": 1 }));
    let error = &rig.daemon.content(&done["error_file_id"]).await[0];
    assert_eq!((&error["custom_id"], &error["error"]["code"]), (&json!("id-1"), &json!("cancelled")));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_a_batch_item_must_not_have_are_left_out() {
    let rig = Rig::start(sim(), "").await;
    let mut body = chat(MODEL, "tagged");
    body["service_tier"] = json!("flex");
    body["metadata"] = json!({ "offpeak_sla": "realtime" });
    let item = json!({ "custom_id": "a", "method": "POST", "url": CHAT, "body": body });
    let id = rig.daemon.submit(item.to_string(), "24h").await;
    let done = rig.daemon.job_is(&id, "completed").await;
    assert_eq!((&done["request_counts"]["completed"], rig.billed(Mode::Batch)), (&json!(1), 1));
}
