//! Results that are not what they should be: detected, counted, and never somebody else's answer.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use provider_sim::{BatchFault, Endpoint, Fault, Mode, Server};
use serde_json::Value;

use crate::rig::{BY_HAND, Daemon, Rig, eventually, sim};
use crate::upstream::Between;

const COUNT: usize = 30;

/// Sends requests in one batch whose output is damaged; everybody gets the right answer all the same.
async fn with_damage(fault: BatchFault) -> Rig {
    let rig = Rig::start(sim(), BY_HAND).await;
    rig.provider.faults().next_batch(vec![fault]);
    let tickets = rig.daemon.tickets(COUNT, |n| format!("question {n}")).await;
    rig.daemon.flush().await;
    eventually("the batch ends", async || {
        (rig.daemon.metric("offpeak_batches_ended_total", "").await == 1).then_some(())
    })
    .await;
    // What has no answer yet waits for another batch.
    rig.daemon.flush().await;
    rig.all_answered(&tickets).await;
    rig
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_is_not_json() {
    let rig = with_damage(BatchFault::OutputGarbageLine).await;
    assert_eq!((rig.daemon.lines("garbage").await, rig.daemon.lines("taken").await), (1, COUNT as u64));
    assert_eq!((rig.batches(), rig.billed(Mode::Batch), rig.ran_twice()), (1, COUNT as u64, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_for_an_id_that_nobody_sent() {
    let rig = with_damage(BatchFault::OutputUnknownId).await;
    assert_eq!((rig.daemon.lines("unknown").await, rig.daemon.lines("taken").await), (1, COUNT as u64));
    assert_eq!((rig.batches(), rig.billed(Mode::Batch), rig.ran_twice()), (1, COUNT as u64, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_comes_twice() {
    let rig = with_damage(BatchFault::OutputDuplicateId).await;
    assert_eq!((rig.daemon.lines("duplicate").await, rig.daemon.lines("taken").await), (1, COUNT as u64));
    assert_eq!((rig.batches(), rig.billed(Mode::Batch), rig.ran_twice()), (1, COUNT as u64, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_is_not_the_file_is_asked_for_again_and_nothing_is_bought_again() {
    let rig = Rig::start(sim(), BY_HAND).await;
    for fault in [Fault::Garbage, Fault::TruncateBody] {
        rig.provider.faults().next(Endpoint::FileContent, fault);
    }
    let tickets = rig.daemon.tickets(COUNT, |n| format!("question {n}")).await;
    rig.daemon.flush().await;
    rig.all_answered(&tickets).await;
    assert_eq!((rig.batches(), rig.billed(Mode::Batch), rig.ran_twice()), (1, COUNT as u64, 0));
    assert_eq!(rig.provider.calls(Endpoint::FileContent), 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_file_that_stops_half_way() {
    let rig = with_damage(BatchFault::OutputTruncated).await;
    assert_eq!(rig.daemon.lines("garbage").await, 5, "the line that is cut, and it is read four times again");
    let missing = rig.daemon.metric("offpeak_requests_retried_total", "").await;
    assert!((1..COUNT as u64).contains(&missing), "{missing}");
    assert_eq!(rig.batches(), 2, "those that have no answer go again, and nobody else");
    assert_eq!(rig.billed(Mode::Batch), COUNT as u64 + missing);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_result_for_another_tenants_request_is_not_delivered_to_it() {
    let provider = sim().build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    // In the file that holds this answer, one line claims to be for another batch's request.
    let victim: Arc<Mutex<Option<String>>> = Arc::default();
    let swap = victim.clone();
    let between = Between::start(server.url(), move |path, body| {
        let victim = swap.lock().unwrap();
        match (&*victim, path.ends_with("/content") && contains(&body, "of the mail")) {
            (Some(victim), true) => claim(&body, victim),
            _ => body,
        }
    })
    .await;
    let daemon = Daemon::start(&between.upstream.url, BY_HAND).await;

    // Lanes of two endpoints never share a batch; the first waits while the second comes back.
    let mine = daemon.ticket_of("search", "of the search", "24h").await;
    *victim.lock().unwrap() = mine.location.rsplit_once("dfr-").map(|(_, place)| place.to_owned());
    let theirs = daemon.defer("mail", "gpt-5-mini", "of the mail", "24h").await;
    let theirs_at = theirs.header("location").to_owned();
    let lane = daemon.lanes().await.into_iter().find(|lane| lane["tenant"] == "mail").unwrap();
    let flush = format!("/admin/v1/lanes/{}/flush", lane["id"]);
    daemon.admin_post(&flush).await;
    eventually("the line is found out", async || (daemon.lines("unknown").await == 1).then_some(())).await;
    assert_eq!(daemon.look(&mine).await.status.as_u16(), 202, "it still waits");

    victim.lock().unwrap().take();
    daemon.flush().await;
    let answer = daemon.redeem(&mine).await;
    assert!(answer.answers(crate::rig::MODEL, "of the search"), "{answer:?}");
    // The results are fewer than the batch says, and are read again: now they are whole.
    let ticket = crate::rig::Ticket { prompt: String::new(), tenant: "mail", location: theirs_at };
    let answer = daemon.redeem(&ticket).await;
    assert!(answer.answers("gpt-5-mini", "of the mail"), "{answer:?}");
    assert_eq!(provider.calls(Endpoint::CreateBatch), 2);
}

fn contains(body: &[u8], text: &str) -> bool {
    body.windows(text.len()).any(|window| window == text.as_bytes())
}

/// Puts this id in the place of the first line's own.
fn claim(output: &[u8], id: &str) -> Bytes {
    let text = std::str::from_utf8(output).unwrap();
    let lines = text.lines().enumerate().map(|(n, line)| {
        let mut line: Value = serde_json::from_str(line).unwrap();
        if n == 0 {
            line["custom_id"] = id.into();
        }
        format!("{line}\n")
    });
    lines.collect::<String>().into()
}
