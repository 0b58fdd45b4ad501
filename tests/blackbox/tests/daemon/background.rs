//! Responses in the background with a completion window: what a batch would answer too late, below the list price.

use std::collections::BTreeSet;
use std::time::Duration;

use http::StatusCode;
use provider_sim::{Endpoint, Fault, Mode, NotSold, Scenario, Timing};
use serde_json::json;

use crate::rig::{Answer, Daemon, MODEL, Rig, eventually, send, sim};

const RESPONSES: &str = "/v1/responses";

/// Long enough to be under way through a restart.
const HOURS_7: Duration = Duration::from_hours(7);

/// A window is expected to be kept within seconds, a batch within a day.
const SETTINGS: &str = "[backends.simulated]\n\
                        config = { background = true, background_usual = \"1s\", batch_usual = \"24h\" }\n\
                        lanes = { rescue = \"1s\", cancel = \"1s\" }";

/// Hands one in that can wait for a while, and returns where its answer will be.
async fn hand_in(daemon: &Daemon, prompt: &str) -> String {
    let body = json!({ "model": MODEL, "input": prompt, "metadata": { "mine": "kept" } });
    let request =
        daemon.post(RESPONSES, &body).header("x-offpeak-sla", "1h").header("prefer", "respond-async");
    let answer = send(request).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    answer.header("location").to_owned()
}

async fn answered(daemon: &Daemon, location: &str) -> Answer {
    eventually(&format!("the answer at {location}"), async || {
        let answer = send(daemon.call("search", http::Method::GET, location)).await;
        (answer.status != StatusCode::ACCEPTED).then_some(answer)
    })
    .await
}

fn background(rig: &Rig) -> (u64, u64) {
    (rig.billed(Mode::Background2h), rig.billed(Mode::Background8h))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_is_handed_in_alone_and_fetched_as_if_it_had_been_asked_in_real_time() {
    let rig = Rig::start(sim(), SETTINGS).await;
    let mut places = Vec::new();
    for n in 0..8 {
        places.push(hand_in(&rig.daemon, &format!("question {n}")).await);
    }
    for place in &places {
        let answer = answered(&rig.daemon, place).await;
        assert_eq!(
            (answer.status, &answer.body["status"]),
            (StatusCode::OK, &json!("completed")),
            "{answer:?}"
        );
        assert_eq!(answer.body["metadata"], json!({ "mine": "kept" }), "offpeak's mark is taken out");
        assert_eq!(answer.body["background"], false);
        assert!(!answer.header("x-offpeak-cost-usd").is_empty(), "{answer:?}");
    }
    let (two_hours, eight_hours) = background(&rig);
    assert_eq!(two_hours + eight_hours, 8);
    assert_eq!((rig.billed(Mode::Realtime), rig.billed(Mode::Batch), rig.ran_twice()), (0, 0, 0));
    assert_eq!(rig.provider.calls(Endpoint::Responses), 8);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_under_way_when_the_daemon_stops_is_fetched_and_not_paid_twice() {
    let slow = HOURS_7..=HOURS_7;
    let timing = Timing { background_2h: slow.clone(), background_8h: slow, ..Timing::default() };
    let rig = Rig::start(sim().timing(timing), SETTINGS).await;
    let place = hand_in(&rig.daemon, "before the stop").await;
    eventually("it is handed in", async || {
        let batches = rig.daemon.admin("/admin/v1/batches").await.body;
        batches["data"][0]["provider_id"].as_str().map(str::to_owned)
    })
    .await;
    let why =
        rig.daemon.admin(&format!("/admin/v1/explain/{}", place.rsplit('/').next().unwrap())).await.body;
    assert_eq!(why["state"], "in_background", "{why}");
    let daemon = rig.daemon.restart(&rig.upstream, SETTINGS).await;
    rig.provider.clock().advance(HOURS_7);
    assert_eq!(answered(&daemon, &place).await.body["status"], "completed");
    let bill = rig.provider.bill();
    assert_eq!(bill.requests(Mode::Background2h) + bill.requests(Mode::Background8h), 1);
    assert_eq!(rig.provider.calls(Endpoint::Responses), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_window_that_the_model_does_not_have_is_lost_and_the_request_is_not() {
    let windows = BTreeSet::from([MODEL.to_owned()]);
    let not_sold = NotSold { background_windows: windows, ..NotSold::default() };
    let scenario = Scenario { not_sold, ..Scenario::default() };
    let settings = SETTINGS.replace("rescue = \"1s\"", "rescue = \"1s\", linger = \"50ms\"");
    let rig = Rig::start(sim().scenario(scenario), &settings).await;
    let place = hand_in(&rig.daemon, "which window").await;
    assert_eq!(answered(&rig.daemon, &place).await.body["status"], "completed");
    let lost = rig.daemon.admin("/admin/v1/offers").await.body;
    let lost: Vec<&str> =
        lost["data"].as_array().unwrap().iter().filter_map(|row| row["offer"].as_str()).collect();
    assert!(lost.iter().all(|offer| offer.starts_with("background-")) && !lost.is_empty(), "{lost:?}");
    assert_eq!((background(&rig), rig.billed(Mode::Realtime)), ((0, 0), 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_own_mistake_is_told_as_the_provider_told_it() {
    let rig = Rig::start(sim(), SETTINGS).await;
    let body = json!({ "model": MODEL, "input": "hi", "temperature": 9 });
    let request =
        rig.daemon.post(RESPONSES, &body).header("x-offpeak-sla", "1h").header("prefer", "respond-async");
    let place = send(request).await.header("location").to_owned();
    let answer = answered(&rig.daemon, &place).await;
    assert_eq!(
        (answer.status, &answer.body["error"]["param"]),
        (StatusCode::BAD_REQUEST, &json!("temperature"))
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_whose_fate_is_unknown_is_decided_by_the_retry_policy() {
    let rig = Rig::start(sim(), SETTINGS).await;
    rig.provider.faults().next(Endpoint::Responses, Fault::DropBeforeEffect);
    let place = hand_in(&rig.daemon, "once more").await;
    let answer = answered(&rig.daemon, &place).await;
    assert_eq!(answer.body["status"], "completed", "{answer:?}");
    assert_eq!(answer.header("x-offpeak-attempts"), "2", "the decision is on record");
    let why =
        rig.daemon.admin(&format!("/admin/v1/explain/{}", place.rsplit('/').next().unwrap())).await.body;
    assert!(why["why"][1].as_str().unwrap().contains("(background)"), "{why}");
}
