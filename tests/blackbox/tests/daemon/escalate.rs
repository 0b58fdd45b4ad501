//! A batch that threatens a deadline is stopped in time; what ran is kept, and the rest is run in real time.

use std::time::{Duration, Instant};

use offpeak::asking;
use provider_sim::{BatchFault, Mode};

use crate::rig::{BY_HAND, Rig, eventually, sim};

const COUNT: usize = 20;

/// A batch is bought for a few seconds, and given up a second and a half before its deadline.
const HASTY: &str = "[backends.simulated]\nconfig = { batch_usual = \"1s\", standard_usual = \"50ms\" }\n\
                     lanes = { linger = \"1h\", rescue = \"1s\", cancel = \"1s\" }";

async fn tickets(rig: &Rig, sla: &str) -> Vec<crate::rig::Ticket> {
    let mut tickets = Vec::new();
    for n in 0..COUNT {
        tickets.push(rig.daemon.ticket_of("search", &format!("question {n}"), sla).await);
    }
    rig.daemon.flush().await;
    tickets
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stalled_batch_is_salvaged_and_its_deadline_kept() {
    let rig = Rig::start(sim(), HASTY).await;
    rig.provider.faults().next_batch(vec![BatchFault::Stall]);
    let started = Instant::now();
    let tickets = tickets(&rig, "8s").await;
    eventually("the batch is made", async || (rig.batches() == 1).then_some(())).await;
    let why = rig.daemon.admin(&format!("/admin/v1/explain/{}", id(&tickets[0].location))).await;
    assert_eq!(why.body["state"], "in_batch", "{why:?}");
    assert_eq!(why.body["next"].as_array().map(Vec::len), Some(2), "{why:?}");
    rig.all_answered(&tickets).await;
    assert!(started.elapsed() < Duration::from_secs(8), "{:?}", started.elapsed());
    let (batch, realtime) = (rig.billed(Mode::Batch), rig.billed(Mode::Realtime));
    assert!(batch > 0 && realtime > 0, "{batch} in the batch, {realtime} in real time");
    assert_eq!((batch + realtime, rig.ran_twice()), (COUNT as u64, 0));
    assert_eq!(rig.daemon.metric("offpeak_escalated_requests_total", "cancel").await, COUNT as u64);
    let why = rig.daemon.admin(&format!("/admin/v1/explain/{}", id(&tickets[0].location))).await;
    assert_eq!(why.body["state"], "finished", "{why:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_is_told_what_becomes_of_a_batch_that_stands_still() {
    let rig = Rig::start(sim(), BY_HAND).await;
    rig.provider.faults().next_batch(vec![BatchFault::Stall]);
    let tickets = tickets(&rig, "24h").await;
    let (admin, request) = (rig.daemon.admin_url(""), id(&tickets[0].location));
    let told = eventually("half of it is done, and then nothing happens", async || {
        let told = asking::explain(&admin, request).await.unwrap();
        told.why
            .iter()
            .any(|why| why.contains("10 of them are done, which has not changed for"))
            .then_some(told)
    })
    .await;
    let text = told.text();
    assert!(text.starts_with(&format!("{request}: in batch\n  due in 23h 59m ")), "{text}");
    assert!(text.contains("with 20 request(s), as 'batch' of 'simulated'."), "{text}");
    // Ten minutes are a rescue's, and ten before that for the provider to give back what ran.
    let [cancel, hedge] = &told.next[..] else { panic!("{text}") };
    assert_eq!(
        (cancel.in_ms.map(minutes), hedge.in_ms.map(minutes)),
        (Some(23 * 60 + 39), Some(23 * 60 + 49))
    );
    assert!(cancel.what.contains("it is cancelled, and what did not run is run in real time"), "{text}");
    assert!(hedge.what.contains("run in real time, whatever comes of the batch"), "{text}");
    let error = asking::explain(&admin, "dfr-77-1").await.unwrap_err().to_string();
    assert!(error.contains("There is no such lane or request"), "{error}");
}

fn minutes(millis: u64) -> u64 {
    millis / 60_000
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_the_batch_still_answers_after_a_rescue_is_counted_and_dropped() {
    // There is no time to wait for what a cancelled batch gives back.
    let settings = HASTY.replace("cancel = \"1s\"", "cancel = \"0s\"");
    let rig = Rig::start(sim(), &settings).await;
    rig.provider.faults().next_batch(vec![BatchFault::Stall]);
    let tickets = tickets(&rig, "6s").await;
    rig.all_answered(&tickets).await;
    // Either of the two ways may have been first for a request, so both have to be over.
    eventually("nothing is under way", async || {
        let under_way = rig.daemon.admin("/admin/v1/batches").await.body;
        under_way["data"].as_array()?.is_empty().then_some(())
    })
    .await;
    eventually("that was by a cancellation", async || {
        (rig.daemon.metric("offpeak_batches_ended_total", "cancelled").await == 1).then_some(())
    })
    .await;
    let wasted = rig.daemon.metric("offpeak_wasted_requests_total", "").await;
    assert_eq!(wasted, rig.ran_twice() as u64, "the bill says the same");
    let paid = rig.billed(Mode::Batch) + rig.billed(Mode::Realtime);
    assert_eq!(paid, COUNT as u64 + wasted);
    assert_eq!(rig.daemon.metric("offpeak_deferred_finished_total", "").await, COUNT as u64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_crowd_does_not_keep_a_few_waiting() {
    let settings = format!("{BY_HAND}\nmax_running = 4\nmax_requests = 10");
    let rig = Rig::start(sim(), &settings).await;
    // Whatever leaves stays away for good.
    for _ in 0..8 {
        rig.provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 20 * 3_600_000 }]);
    }
    rig.daemon.tickets(100, |n| format!("crowd {n}")).await;
    rig.daemon.flush().await;
    eventually("the crowd has its places", async || (rig.batches() == 3).then_some(())).await;
    rig.daemon.ticket_of("mail", "few", "24h").await;
    rig.daemon.flush().await;
    eventually("there is one for the few", async || (rig.batches() == 4).then_some(())).await;
    let lanes = rig.daemon.lanes().await;
    let waiting = |tenant: &str| {
        let of_tenant = lanes.iter().filter(|lane| lane["tenant"] == tenant);
        of_tenant.map(|lane| lane["waiting_requests"].as_u64().unwrap()).sum::<u64>()
    };
    assert_eq!(waiting("mail"), 0, "{lanes:?}");
    assert!(waiting("search") >= 60, "{lanes:?}");
    let why = rig.daemon.admin("/admin/v1/explain/0").await;
    assert_eq!(why.body["state"], "waiting", "{why:?}");
    assert!(why.body["next"][0]["what"].as_str().unwrap().contains("when a batch is back"), "{why:?}");
}

fn id(location: &str) -> &str {
    location.rsplit('/').next().unwrap()
}
