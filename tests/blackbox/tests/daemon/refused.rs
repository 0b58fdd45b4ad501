//! Batches that the provider does not take: for good, or for now.

use provider_sim::{BatchFault, Endpoint, Fault, Limits, Mode};

use crate::rig::{BY_HAND, CHAT, Rig, chat, eventually, send, sim};

fn failing(code: &str) -> Vec<BatchFault> {
    vec![BatchFault::FailValidation { code: code.to_owned() }]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn for_good_everybody_is_told_why_and_nothing_is_tried_again() {
    let rig = Rig::start(sim(), BY_HAND).await;
    rig.provider.faults().next_batch(failing("model_not_found"));
    let tickets = rig.daemon.tickets(10, |n| format!("question {n}")).await;
    rig.daemon.flush().await;
    for ticket in &tickets {
        let answer = rig.daemon.redeem(ticket).await;
        assert_eq!(answer.error(), (404, "model_not_found"));
        assert_eq!((answer.header("x-offpeak-attempts"), answer.header("x-should-retry")), ("1", "false"));
    }
    assert_eq!((rig.batches(), rig.provider.bill().lines.len()), (1, 0));
    assert_eq!(rig.daemon.metric("offpeak_requests_retried_total", "").await, 0);
    // The lane is not closed for that.
    let next = rig.daemon.ticket("the next one").await;
    rig.daemon.flush().await;
    rig.all_answered(&[next]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_the_provider_finds_fault_with_takes_nobody_with_it() {
    let rig = Rig::start(sim(), BY_HAND).await;
    rig.provider.faults().next_batch(vec![BatchFault::RefuseLines { lines: vec![3] }]);
    let tickets = rig.daemon.tickets(10, |n| format!("question {n}")).await;
    rig.daemon.flush().await;
    eventually("the batch is refused", async || {
        (rig.daemon.metric("offpeak_batches_ended_total", "invalid_json_line").await == 1).then_some(())
    })
    .await;
    rig.daemon.wait_for_waiting(9).await;
    rig.daemon.flush().await;
    let answers = rig.all_answered(&tickets).await;
    assert!(answers.iter().all(|answer| answer.header("x-offpeak-attempts") == "1"), "{answers:?}");
    assert_eq!((rig.batches(), rig.billed(Mode::Batch), rig.billed(Mode::Realtime)), (2, 9, 1));
    let told = rig.daemon.admin("/admin/v1/explain/dfr-0-2").await.body.to_string();
    assert!(told.contains("line_refused"), "the third line is the one: {told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_without_batches_is_bought_otherwise() {
    let rig = Rig::start(sim(), BY_HAND).await;
    rig.provider.faults().next_batch(failing("model_not_supported"));
    let tickets = rig.daemon.tickets(4, |n| format!("question {n}")).await;
    rig.daemon.flush().await;
    rig.all_answered(&tickets).await;
    assert_eq!((rig.batches(), rig.billed(Mode::Batch)), (1, 0));
    assert_eq!((rig.provider.bill().executions.distinct(), rig.ran_twice()), (4, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_that_nobody_has_is_told_later_as_it_is_told_now() {
    let rig = Rig::start(sim(), "").await;
    let now = rig.daemon.ask("no-such-model", "now").await;
    let request = rig.daemon.post(CHAT, &chat("no-such-model", "later")).header("x-offpeak-sla", "24h");
    let later = send(request).await;
    for answer in [&now, &later] {
        assert_eq!(answer.error(), (404, "model_not_found"), "{answer:?}");
        assert_eq!(answer.body["error"]["type"], "invalid_request_error");
    }
    assert_eq!(
        (later.body["error"]["param"].as_str(), later.header("x-should-retry")),
        (Some("model"), "false")
    );
    assert_eq!(rig.provider.bill().lines.len(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_is_refused_for_good() {
    let rig = Rig::start(sim(), "").await;
    rig.provider.faults().next(Endpoint::CreateBatch, Fault::Status { status: 400, retry_after_ms: None });
    let answer = rig.daemon.hold("refused").await;
    assert_eq!(answer.status.as_u16(), 502);
    assert_eq!((rig.batches(), rig.billed(Mode::Batch)), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_queue_of_tokens_is_no_failure_however_often_it_is_met() {
    let rig = Rig::start(sim(), "").await;
    for _ in 0..8 {
        rig.provider.faults().next_batch(failing("token_limit_exceeded"));
    }
    let tickets = rig.daemon.tickets(5, |n| format!("question {n}")).await;
    rig.all_answered(&tickets).await;
    assert_eq!((rig.batches(), rig.billed(Mode::Batch), rig.ran_twice()), (9, 5, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn more_work_than_the_provider_queues_at_once_is_sent_piece_by_piece() {
    // Each request has some 3 tokens; a batch of 20 some 60, of which one and a half fit.
    let limits = Limits { enqueued_tokens: Some(100), ..Limits::default() };
    let rig = Rig::start(sim().limits(limits), "[lanes]\nlinger = \"50ms\"\nmax_requests = 20").await;
    let tickets = rig.daemon.tickets(100, |n| format!("ask {n:06}")).await;
    rig.all_answered(&tickets).await;
    assert_eq!((rig.billed(Mode::Batch), rig.ran_twice()), (100, 0));
    assert!(rig.daemon.metric("offpeak_batches_ended_total", "token_limit_exceeded").await > 0);
}
