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

fn streamed(prompt: &str) -> Value {
    let mut body = background(prompt);
    body["stream"] = json!(true);
    body
}

/// The data of the events in a text; lines that keep a connection alive are none.
fn events(text: &str) -> Vec<Value> {
    let events = text.split_terminator("\n\n").filter(|event| !event.starts_with(':'));
    let data = events.map(|event| event.split_once("\ndata: ").unwrap().1);
    data.map(|data| serde_json::from_str(data).unwrap()).collect()
}

/// Begins a stream, and reads what comes at once: the response is queued.
async fn begin(daemon: &Daemon, body: &Value) -> (reqwest::Response, String, String) {
    let mut response = daemon.post(PATH, body).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let mut text = String::new();
    while !(text.contains("response.queued") && text.ends_with("\n\n")) {
        text += std::str::from_utf8(&response.chunk().await.unwrap().expect("the stream goes on")).unwrap();
    }
    let id = events(&text)[1]["response"]["id"].as_str().unwrap().to_owned();
    (response, text, id)
}

/// Which events they are.
fn outline(events: &[Value]) -> Vec<(&Value, &Value)> {
    events.iter().map(|event| (&event["sequence_number"], &event["type"])).collect()
}

/// The events of a response for those who come later.
async fn told_again(daemon: &Daemon, id: &str, after: &str) -> Vec<Value> {
    let call = daemon.call("search", Method::GET, &format!("{PATH}/{id}?stream=true{after}"));
    let response = call.send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    events(&response.text().await.unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_streamed_and_the_stream_taken_up_again() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let (response, begun, id) = begin(&rig.daemon, &streamed("tell me")).await;
    assert_eq!(get(&rig.daemon, &id).await.body["status"], "queued");
    rig.daemon.flush().await;
    let told = events(&(begun + &response.text().await.unwrap()));
    for (number, event) in told.iter().enumerate() {
        assert_eq!(event["sequence_number"], number, "{event}");
    }
    let whole = get(&rig.daemon, &id).await.body;
    let last = told.last().unwrap();
    assert_eq!((&last["type"], &last["response"]), (&json!("response.completed"), &whole));
    let of = |kind: &str| told.iter().filter(|event| event["type"] == kind).collect::<Vec<_>>();
    assert_eq!(of("response.in_progress").len(), 1);
    let said: String =
        of("response.output_text.delta").iter().map(|event| event["delta"].as_str().unwrap()).collect();
    assert_eq!(said, whole["output"][0]["content"][0]["text"].as_str().unwrap());

    for known in [0, 1, 2, told.len() - 2, told.len() - 1] {
        let rest = told_again(&rig.daemon, &id, &format!("&starting_after={known}")).await;
        assert_eq!(outline(&rest), outline(&told[known + 1..]), "{known}");
        // What an event before that shows of the response is filled in by now.
        let first = known.max(2) + 1;
        assert_eq!(rest[first - known - 1..], told[first..], "{known}");
    }
    assert_eq!(outline(&told_again(&rig.daemon, &id, "").await), outline(&told));
    let path = format!("{PATH}/{id}?stream=true&starting_after=some");
    let refused = send(rig.daemon.call("search", Method::GET, &path)).await;
    assert_eq!(refused.error(), (400, "invalid_value"));
    assert_eq!(refused.body["error"]["param"], "starting_after");
    let other = send(rig.daemon.call("mail", Method::GET, &format!("{PATH}/{id}?stream=true"))).await;
    assert_eq!(other.error(), (404, "response_not_found"));
    assert_eq!((rig.batches(), rig.billed(Mode::Batch), rig.billed(Mode::Realtime)), (1, 1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_ends_with_its_response_and_breaks_off_with_the_daemon() {
    let rig = Rig::start(sim(), BY_HAND).await;
    for (method, path) in [(Method::POST, "/cancel"), (Method::DELETE, "")] {
        let (response, _, id) = begin(&rig.daemon, &streamed("never mind")).await;
        let ended = send(rig.daemon.call("search", method, &format!("{PATH}/{id}{path}"))).await;
        assert_eq!(ended.status, StatusCode::OK);
        let told = events(&response.text().await.unwrap());
        assert_eq!(told.last().unwrap()["type"], "response.cancelled");
    }

    let (response, _, id) = begin(&rig.daemon, &streamed("kept")).await;
    let daemon = rig.daemon.restart(&rig.upstream, "").await;
    response.text().await.expect_err("nobody takes it for whole");
    let told = told_again(&daemon, &id, "&starting_after=1").await;
    assert_eq!((&told[0]["type"], &told[0]["sequence_number"]), (&json!("response.in_progress"), &json!(2)));
    assert_eq!(told.last().unwrap()["type"], "response.completed");
    assert_eq!(rig.provider.bill().requests(Mode::Batch), 1);
}
