//! Batches that the provider does not finish in time: what ran is kept, the rest goes again.

use std::time::Duration;

use provider_sim::{BatchFault, Mode};

use crate::rig::{BY_HAND, Rig, Ticket, eventually, sim};

const COUNT: usize = 40;

/// A batch of requests, when it has expired.
async fn expired(faults: Vec<BatchFault>) -> (Rig, Vec<Ticket>) {
    let rig = Rig::start(sim(), BY_HAND).await;
    rig.provider.faults().next_batch(faults);
    let tickets = rig.daemon.tickets(COUNT, |n| format!("question {n}")).await;
    rig.daemon.flush().await;
    eventually("the batch is made", async || (rig.batches() == 1).then_some(())).await;
    rig.provider.clock().advance(Duration::from_hours(24));
    eventually("the batch expires", async || {
        (rig.daemon.metric("offpeak_batches_ended_total", "expired").await == 1).then_some(())
    })
    .await;
    (rig, tickets)
}

async fn expires(fault: BatchFault) {
    let (rig, tickets) = expired(vec![fault]).await;
    let expired = rig.daemon.metric("offpeak_requests_retried_total", "").await;
    assert!((1..COUNT as u64).contains(&expired), "{expired}");
    assert_eq!(rig.billed(Mode::Batch), COUNT as u64 - expired, "what expired did not run");
    rig.daemon.wait_for_waiting(expired).await;
    rig.daemon.flush().await;
    rig.all_answered(&tickets).await;
    assert_eq!((rig.batches(), rig.billed(Mode::Batch), rig.ran_twice()), (2, COUNT as u64, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_stalls() {
    expires(BatchFault::Stall).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_that_loses_some() {
    expires(BatchFault::LoseItems { permille: 200 }).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_that_comes_twice_does_not_stand_for_one_that_is_missing() {
    let damage = vec![BatchFault::Stall, BatchFault::OutputDuplicateId, BatchFault::OutputLostLine];
    let (rig, tickets) = expired(damage).await;
    let open = rig.daemon.metric("offpeak_requests_retried_total", "").await;
    rig.daemon.wait_for_waiting(open).await;
    rig.daemon.flush().await;
    let answers = rig.all_answered(&tickets).await;
    assert_eq!(rig.ran_twice(), 1, "its answer is lost");
    let mut attempts: Vec<&str> = answers.iter().map(|answer| answer.header("x-offpeak-attempts")).collect();
    attempts.sort_unstable();
    let (last, others) = attempts.split_last().unwrap();
    assert_eq!(*last, "2", "the decision is on record");
    assert!(others.iter().all(|attempts| *attempts == "1"), "{others:?}");
}
