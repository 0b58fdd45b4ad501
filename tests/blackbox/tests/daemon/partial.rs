//! Of a batch in which some requests fail, only those go again.

use provider_sim::{Faults, ItemFault, ItemRule, Mode};

use crate::rig::{BY_HAND, Rig, eventually, sim};

/// Requests with this word in them fail so often.
fn failing(word: &str, fault: ItemFault, times: Option<u32>) -> Faults {
    let rule = ItemRule { fault, probability: 1.0, custom_id: None, body: Some(word.to_owned()), times };
    Faults { items: vec![rule], ..Faults::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_1024_only_the_32_that_failed_go_again() {
    let faults = failing("fragile", ItemFault::Status { status: 500 }, Some(2));
    let rig = Rig::start(sim().faults(faults), BY_HAND).await;
    let is_fragile = |n: usize| n % 32 == 7;
    let prompt = |n| format!("{} {n}", if is_fragile(n) { "fragile" } else { "sturdy" });
    let tickets = rig.daemon.tickets(1024, prompt).await;
    for (batch, size) in [(1, 1024), (2, 32), (3, 32)] {
        rig.daemon.wait_for_waiting(size).await;
        rig.daemon.flush().await;
        eventually("the batch is made", async || (rig.batches() == batch).then_some(())).await;
    }
    let answers = rig.all_answered(&tickets).await;
    for (n, answer) in answers.iter().enumerate() {
        assert_eq!(answer.header("x-offpeak-attempts"), if is_fragile(n) { "3" } else { "1" }, "{n}");
    }
    assert_eq!((rig.batches(), rig.billed(Mode::Batch), rig.ran_twice()), (3, 1024, 0));
    assert_eq!(rig.daemon.metric("offpeak_requests_retried_total", "").await, 64);
    assert_eq!(rig.daemon.metric("offpeak_deferred_finished_total", "").await, 1024);
    assert_eq!(rig.daemon.metric("offpeak_batch_requests_sealed_total", "flush").await, 1024 + 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_never_became_a_response_goes_again() {
    let fault = ItemFault::NoResponse { code: "request_timeout".to_owned() };
    let rig = Rig::start(sim().faults(failing("fragile", fault, Some(1))), "").await;
    let tickets = rig.daemon.tickets(10, |n| format!("fragile {n}")).await;
    for answer in rig.all_answered(&tickets).await {
        assert_eq!(answer.header("x-offpeak-attempts"), "2");
    }
    assert_eq!((rig.billed(Mode::Batch), rig.ran_twice()), (10, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_fails_for_ever_is_given_back_with_the_providers_own_error() {
    let faults = failing("hopeless", ItemFault::Status { status: 503 }, None);
    let rig = Rig::start(sim().faults(faults), "[retry]\nmax_attempts = 3").await;
    let hopeless = rig.daemon.ticket("hopeless").await;
    let fine = rig.daemon.ticket("fine").await;
    rig.all_answered(&[fine]).await;
    let answer = rig.daemon.redeem(&hopeless).await;
    assert_eq!((answer.status.as_u16(), answer.header("x-offpeak-attempts")), (503, "3"));
    assert_eq!(answer.body["error"]["type"], "server_error");
    let id = hopeless.location.rsplit('/').next().unwrap();
    let told = rig.daemon.admin(&format!("/admin/v1/explain/{id}")).await;
    let why: Vec<&str> =
        told.body["why"].as_array().unwrap().iter().filter_map(serde_json::Value::as_str).collect();
    assert_eq!(why.len(), 5, "who chose its way, three attempts, and how it ended: {why:?}");
    assert!(why.iter().skip(1).all(|why| why.contains("503")), "{why:?}");
    assert_eq!(
        answer.header("x-should-retry"),
        "false",
        "offpeak has tried; an SDK's retry would begin anew"
    );
    assert_eq!(rig.billed(Mode::Batch), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_is_wrong_is_not_tried_again() {
    let faults = failing("wrong", ItemFault::Status { status: 400 }, None);
    let rig = Rig::start(sim().faults(faults), "").await;
    let answer = rig.daemon.hold("wrong").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-offpeak-attempts")), (400, "1"));
    assert_eq!(answer.body["error"]["type"], "invalid_request_error");
    assert_eq!((rig.batches(), rig.daemon.metric("offpeak_requests_retried_total", "").await), (1, 0));
}
