//! Answers of the provider that are lost: what they stood for is found, and not made a second time.

use std::time::Duration;

use provider_sim::{Endpoint, Fault, Faults, Mode};

use crate::rig::{BY_HAND, Rig, eventually, sim};

/// The work is done, and the daemon cannot know it.
const AFTER_EFFECT: [Fault; 5] = [
    Fault::DropResponseAfterEffect,
    Fault::StatusAfterEffect { status: 500 },
    Fault::Garbage,
    Fault::TruncateBody,
    Fault::CutBody,
];

/// What is made at the provider, seen from outside.
async fn all_once(rig: &Rig, faulty: Endpoint) {
    for (round, fault) in AFTER_EFFECT.into_iter().enumerate() {
        rig.provider.faults().next(faulty, fault);
        let tickets = rig.daemon.tickets(5, |n| format!("{fault:?} {n}")).await;
        rig.daemon.flush().await;
        rig.all_answered(&tickets).await;
        let rounds = round as u64 + 1;
        assert_eq!(rig.provider.faults().injected(faulty), rounds, "{fault:?}");
        assert_eq!((rig.provider.calls(Endpoint::UploadFile), rig.batches()), (rounds, rounds), "{fault:?}");
        assert_eq!((rig.billed(Mode::Batch), rig.ran_twice()), (5 * rounds, 0), "{fault:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_a_creation() {
    let rig = Rig::start(sim(), BY_HAND).await;
    all_once(&rig, Endpoint::CreateBatch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_a_creation_that_the_listing_does_not_show_at_once() {
    // 600 s of the provider's time are 0.17 s here: longer than one pause of the plugin, shorter than two.
    let faults = Faults { listing_lag_ms: 600_000, ..Faults::default() };
    let rig = Rig::start(sim().faults(faults), BY_HAND).await;
    all_once(&rig, Endpoint::CreateBatch).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_answer_to_an_upload() {
    let rig = Rig::start(sim(), BY_HAND).await;
    all_once(&rig, Endpoint::UploadFile).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_never_arrived_is_made_again_after_a_search() {
    let rig = Rig::start(sim(), "").await;
    rig.provider.faults().next(Endpoint::CreateBatch, Fault::DropBeforeEffect);
    rig.provider.faults().next(Endpoint::UploadFile, Fault::DropBeforeEffect);
    let tickets = rig.daemon.tickets(5, |n| format!("again {n}")).await;
    rig.all_answered(&tickets).await;
    assert!(rig.provider.calls(Endpoint::ListBatches) >= 2, "the listing is searched before another is made");
    assert_eq!((rig.billed(Mode::Batch), rig.ran_twice()), (5, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_errors_on_every_look_is_waited_out() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let tickets = rig.daemon.tickets(5, |n| format!("storm {n}")).await;
    let storm = [
        Fault::Status { status: 502, retry_after_ms: None },
        Fault::Status { status: 429, retry_after_ms: Some(30) },
        Fault::DropBeforeEffect,
        Fault::Garbage,
        Fault::Status { status: 404, retry_after_ms: None },
    ];
    for fault in storm.iter().cycle().take(15) {
        rig.provider.faults().next(Endpoint::GetBatch, *fault);
    }
    rig.daemon.flush().await;
    rig.all_answered(&tickets).await;
    assert_eq!(rig.provider.faults().injected(Endpoint::GetBatch), 15);
    assert_eq!((rig.batches(), rig.billed(Mode::Batch), rig.ran_twice()), (1, 5, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn results_that_break_off_are_read_again_and_delivered_once() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let tickets = rig.daemon.tickets(40, |n| format!("half {n}")).await;
    for fault in
        [Fault::CutBody, Fault::DropBeforeEffect, Fault::Status { status: 500, retry_after_ms: None }]
    {
        rig.provider.faults().next(Endpoint::FileContent, fault);
    }
    rig.daemon.flush().await;
    let answers = rig.all_answered(&tickets).await;
    assert!(answers.iter().all(|answer| answer.header("x-offpeak-attempts") == "1"));
    eventually("the batch ends", async || {
        (rig.daemon.metric("offpeak_batches_ended_total", "completed").await == 1).then_some(())
    })
    .await;
    assert_eq!(rig.daemon.lines("taken").await, 40);
    assert!(rig.daemon.lines("duplicate").await > 0, "what was read before the break comes again");
    assert_eq!((rig.billed(Mode::Batch), rig.ran_twice()), (40, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_in_a_hurry_to_refuse_is_left_alone_as_long_as_it_asks() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let tickets = rig.daemon.tickets(3, |n| format!("patience {n}")).await;
    let wait = Duration::from_millis(700);
    let retry_after_ms = u64::try_from(wait.as_millis()).ok();
    rig.provider.faults().next(Endpoint::CreateBatch, Fault::Status { status: 429, retry_after_ms });
    rig.daemon.flush().await;
    eventually("the refusal", async || (rig.batches() == 1).then_some(())).await;
    let refused = std::time::Instant::now();
    eventually("the next try", async || (rig.batches() == 2).then_some(())).await;
    // The refusal was noticed some milliseconds after it was given.
    assert!(refused.elapsed() > wait.mul_f32(0.9), "{:?}", refused.elapsed());
    rig.all_answered(&tickets).await;
    assert_eq!((rig.billed(Mode::Batch), rig.ran_twice()), (3, 0));
}
