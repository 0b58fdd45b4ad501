//! The admin plane: what an operator sees, and the one thing that can be done there.

use http::StatusCode;
use provider_sim::{BatchFault, Mode};
use serde_json::Value;

use crate::rig::{BY_HAND, CHAT, MODEL, Rig, eventually, send, sim};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn health() {
    let rig = Rig::start(sim(), "").await;
    assert_eq!(rig.daemon.admin("/healthz").await.status, StatusCode::OK);
    assert_eq!(rig.daemon.admin("/readyz").await.status, StatusCode::OK);
    assert_eq!(rig.daemon.admin("/nothing").await.error(), (404, "unknown_endpoint"));
    assert_eq!(rig.daemon.admin_post("/healthz").await.error(), (405, "method_not_allowed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn web_pages_get_nothing() {
    let rig = Rig::start(sim(), "").await;
    let get =
        || reqwest::Client::builder().no_proxy().build().unwrap().get(rig.daemon.admin_url("/admin/v1/keys"));
    assert_eq!(send(get().header("host", "localhost:8401")).await.status, StatusCode::OK);
    // A page says so, or has had a name of its own given to this address.
    for (name, value) in [("origin", "http://127.0.0.1"), ("host", "page.example:8401")] {
        assert_eq!(send(get().header(name, value)).await.error(), (403, "from_a_web_page"), "{name}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lanes_and_batches_are_shown_and_a_flush_lets_a_lane_leave() {
    let rig = Rig::start(sim(), BY_HAND).await;
    rig.provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 2 * 3_600_000 }]);
    let tickets = rig.daemon.tickets(3, |n| format!("question {n}")).await;
    rig.daemon.ticket_of("mail", "elsewhere", "24h").await;
    rig.daemon.wait_for_waiting(4).await;

    let lanes = rig.daemon.lanes().await;
    let lane = lanes.iter().find(|lane| lane["tenant"] == "search").unwrap();
    for (name, value) in [
        ("backend", Value::from("simulated")),
        ("endpoint", CHAT.into()),
        ("model", MODEL.into()),
        ("offer", "batch".into()),
        ("waiting_requests", 3.into()),
    ] {
        assert_eq!(lane[name], value, "{name}");
    }
    assert!(lane["waiting_bytes"].as_u64().unwrap() > 100);
    let hours = lane["earliest_deadline_in_ms"].as_u64().unwrap() / 3_600_000;
    assert_eq!(hours, 23, "of 24 a little is gone");

    let flushed = rig.daemon.admin_post(&format!("/admin/v1/lanes/{}/flush", lane["id"])).await;
    assert_eq!(flushed.body["flushed_requests"], 3);
    let batch = eventually("the batch is shown with its name at the provider", async || {
        let batches = rig.daemon.admin("/admin/v1/batches").await.body;
        let batch = batches["data"].get(0)?.clone();
        batch["provider_id"].as_str()?;
        Some(batch)
    })
    .await;
    assert_eq!((&batch["backend"], &batch["offer"]), (&"simulated".into(), &"batch".into()));
    rig.all_answered(&tickets).await;
    eventually("it is no longer under way", async || {
        let batches = rig.daemon.admin("/admin/v1/batches").await.body;
        batches["data"].as_array()?.is_empty().then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_lanes_that_may_travel_together_leave_by_a_flush() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let mine = rig.daemon.ticket("mine").await;
    let other = rig.daemon.defer("search", "gpt-5-mini", "another model", "24h").await;
    assert_eq!(other.status, StatusCode::ACCEPTED);
    rig.daemon.wait_for_waiting(2).await;
    let lanes = rig.daemon.lanes().await;
    let lane = lanes.iter().find(|lane| lane["model"] == MODEL).unwrap();
    rig.daemon.admin_post(&format!("/admin/v1/lanes/{}/flush", lane["id"])).await;
    rig.all_answered(&[mine]).await;
    assert_eq!((rig.daemon.waiting().await, rig.billed(Mode::Batch)), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn wrong_flushes_are_refused() {
    let rig = Rig::start(sim(), "").await;
    for lane in ["0", "4711", "x", ""] {
        let answer = rig.daemon.admin_post(&format!("/admin/v1/lanes/{lane}/flush")).await;
        assert_eq!(answer.status, StatusCode::NOT_FOUND, "{lane}");
    }
    assert_eq!(rig.daemon.admin("/admin/v1/lanes/1/flush").await.error(), (405, "method_not_allowed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_count_what_happened() {
    let rig = Rig::start(sim(), "").await;
    rig.daemon.ask(MODEL, "now").await;
    rig.daemon.ask("gpt-of-nobody", "now").await;
    rig.daemon.hold("later").await;
    let text = rig.daemon.metrics().await;
    assert!(text.ends_with("# EOF\n"), "OpenMetrics");
    let requests = "offpeak_requests_total";
    for (name, label, count) in [
        (requests, "mode=\"realtime\",status=\"2xx\"", 1),
        (requests, "mode=\"realtime\",status=\"4xx\"", 1),
        (requests, "mode=\"deferred\",status=\"2xx\"", 1),
        ("offpeak_deferred_accepted_total", "", 1),
        ("offpeak_batches_sealed_total", "reason=\"linger\"", 1),
        ("offpeak_result_lines_total", "kind=\"taken\"", 1),
        ("offpeak_decision_duration_seconds_count", "", 2),
    ] {
        assert_eq!(rig.daemon.metric(name, label).await, count, "{name} {label}\n{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plugins_are_shown() {
    let rig = Rig::start(sim(), "").await;
    rig.daemon.ask(MODEL, "now").await;
    let plugins = rig.daemon.admin("/admin/v1/plugins").await.body;
    let router = plugins["data"].as_array().unwrap().iter().find(|row| row["role"] == "router").unwrap();
    assert_eq!((&router["name"], &router["out_of_use"]), (&"sla-router".into(), &false.into()));
    assert!(router["calls"].as_u64().unwrap() >= 1);
    assert_eq!(router["sha256"].as_str().unwrap().len(), 64);
    assert_eq!(router["source"], "bundled");
    assert!(router["call_us"]["p50"].as_f64().unwrap() > 0.0, "{router}");
    assert!(router["instance_memory_bytes"].as_u64().unwrap() > 0, "{router}");
    assert!(plugins["data"].as_array().unwrap().iter().any(|row| row["used_by"] == "simulated"));
}
