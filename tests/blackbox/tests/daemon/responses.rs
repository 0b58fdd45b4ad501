//! Background responses: deferred requests that are fetched by OpenAI's own means.

use http::{Method, StatusCode};
use provider_sim::{Faults, ItemFault, ItemRule, Mode, Server};
use serde_json::{Value, json};

use crate::rig::{Answer, BY_HAND, Daemon, MODEL, Rig, eventually, send, sim};

const PATH: &str = "/v1/responses";

fn background(prompt: &str) -> Value {
    json!({ "model": MODEL, "input": prompt, "background": true, "metadata": { "mine": "1" } })
}

async fn create(daemon: &Daemon, body: &Value) -> String {
    let answer = send(daemon.post(PATH, body)).await;
    assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
    // What is wanted at once may have left already.
    assert!(["queued", "in_progress"].contains(&answer.body["status"].as_str().unwrap()), "{answer:?}");
    answer.body["id"].as_str().unwrap().to_owned()
}

async fn get(daemon: &Daemon, id: &str) -> Answer {
    send(daemon.call("search", Method::GET, &format!("{PATH}/{id}"))).await
}

async fn ended(daemon: &Daemon, id: &str) -> Value {
    eventually(&format!("{id} has ended"), async || {
        let answer = get(daemon, id).await;
        assert_eq!(answer.status, StatusCode::OK, "{answer:?}");
        let is_open = ["queued", "in_progress"].contains(&answer.body["status"].as_str()?);
        (!is_open).then_some(answer.body)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_response_is_queued_run_in_a_batch_and_fetched_under_its_id() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let created = send(rig.daemon.post(PATH, &background("what of it"))).await.body;
    let expected = [
        ("object", json!("response")),
        ("status", json!("queued")),
        ("background", json!(true)),
        ("model", json!(MODEL)),
        ("output", json!([])),
        ("tools", json!([])),
        ("tool_choice", json!("auto")),
        ("parallel_tool_calls", json!(true)),
        ("metadata", json!({ "mine": "1" })),
        ("error", Value::Null),
    ];
    for (member, value) in expected {
        assert_eq!(created[member], value, "{member}: {created}");
    }
    let id = created["id"].as_str().unwrap();
    assert_eq!(get(&rig.daemon, id).await.body, created);
    rig.daemon.flush().await;
    eventually("it is under way", async || {
        let status = get(&rig.daemon, id).await.body["status"].clone();
        (status == "in_progress" || status == "completed").then_some(())
    })
    .await;
    let done = ended(&rig.daemon, id).await;
    assert_eq!(
        (&done["status"], &done["id"], &done["background"]),
        (&json!("completed"), &json!(id), &json!(true))
    );
    assert!(done["output"][0]["content"][0]["text"].as_str().is_some_and(|text| !text.is_empty()), "{done}");
    assert!(done["usage"]["total_tokens"].as_u64() > Some(0), "{done}");
    assert_eq!((rig.batches(), rig.billed(Mode::Batch), rig.ran_twice()), (1, 1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn its_window_is_an_sla() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let mut soon = background("soon");
    soon["background_options"] = json!({ "completion_window": "soonest" });
    let id = create(&rig.daemon, &soon).await;
    assert_eq!(ended(&rig.daemon, &id).await["status"], "completed");
    assert_eq!((rig.batches(), rig.billed(Mode::Realtime)), (0, 1), "it did not wait for others");

    let mut later = background("later");
    later["background_options"] = json!({ "completion_window": "8h" });
    create(&rig.daemon, &later).await;
    let lanes = rig.daemon.lanes().await;
    let deadlines: Vec<&Value> = lanes.iter().map(|lane| &lane["waiting_requests"]).collect();
    assert!(deadlines.contains(&&json!(1)), "{lanes:?}");

    later["background_options"]["completion_window"] = json!("whenever");
    let refused = send(rig.daemon.post(PATH, &later)).await;
    assert_eq!(refused.error(), (400, "invalid_completion_window"));
    later["background_options"] = json!({ "completion_window": "8h" });
    later["stream"] = json!(true);
    assert_eq!(send(rig.daemon.post(PATH, &later)).await.error(), (400, "stream_not_supported"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_cancelled_and_deleted() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let id = create(&rig.daemon, &background("never mind")).await;
    let cancel = format!("{PATH}/{id}/cancel");
    for _ in 0..2 {
        let cancelled = send(rig.daemon.call("search", Method::POST, &cancel)).await;
        assert_eq!((cancelled.status, &cancelled.body["status"]), (StatusCode::OK, &json!("cancelled")));
    }
    assert_eq!(get(&rig.daemon, &id).await.body["status"], "cancelled");

    let other = create(&rig.daemon, &background("gone")).await;
    let deleted = send(rig.daemon.call("search", Method::DELETE, &format!("{PATH}/{other}"))).await;
    assert_eq!(deleted.body, json!({ "id": other, "object": "response", "deleted": true }));
    assert_eq!(get(&rig.daemon, &other).await.error(), (404, "response_not_found"));

    rig.daemon.flush().await;
    eventually("nothing waits", async || (rig.daemon.waiting().await == 0).then_some(())).await;
    let done = create(&rig.daemon, &background("done")).await;
    rig.daemon.flush().await;
    assert_eq!(ended(&rig.daemon, &done).await["status"], "completed");
    let late = send(rig.daemon.call("search", Method::POST, &format!("{PATH}/{done}/cancel"))).await;
    assert_eq!(late.error(), (400, "response_ended"));
    assert_eq!(rig.billed(Mode::Batch), 1, "what was cancelled or deleted before it left never ran");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_refusal_of_the_provider_makes_it_failed() {
    let fault = ItemRule {
        fault: ItemFault::Status { status: 400 },
        probability: 1.0,
        custom_id: None,
        body: Some("flawed".to_owned()),
        times: None,
    };
    let faults = Faults { items: vec![fault], ..Faults::default() };
    let rig = Rig::start(sim().faults(faults), "").await;
    let id = create(&rig.daemon, &background("a flawed question")).await;
    let failed = ended(&rig.daemon, &id).await;
    assert_eq!((&failed["status"], &failed["output"]), (&json!("failed"), &json!([])));
    assert!(failed["error"]["code"].is_string() && failed["error"]["message"].is_string(), "{failed}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_survives_a_restart_and_an_sdks_retry_and_is_its_tenants_alone() {
    let provider = sim().build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let daemon = Daemon::start(&server.url(), BY_HAND).await;
    let id = create(&daemon, &background("kept")).await;
    let retry = daemon.post(PATH, &background("kept")).header("x-stainless-retry-count", "1");
    assert_eq!(send(retry).await.body["id"], id.as_str());
    for (method, path) in [
        (Method::GET, format!("{PATH}/{id}")),
        (Method::DELETE, format!("{PATH}/{id}")),
        (Method::POST, format!("{PATH}/{id}/cancel")),
    ] {
        let other = send(daemon.call("mail", method, &path)).await;
        assert_eq!(other.error(), (404, "response_not_found"));
    }
    let daemon = daemon.restart(&server.url(), "").await;
    assert_eq!(ended(&daemon, &id).await["status"], "completed");
    assert_eq!(provider.bill().requests(Mode::Batch), 1);
}
