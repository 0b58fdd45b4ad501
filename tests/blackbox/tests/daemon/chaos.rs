//! Everything goes wrong now and then, as a seed decides: all are answered, and nobody pays twice.

use provider_sim::{
    BatchFault, BatchRule, Endpoint, Fault, Faults, HttpRule, ItemFault, ItemRule, Mode, Target, TargetGroup,
};

use crate::rig::{Rig, sim};

const COUNT: usize = 200;

fn plan() -> Faults {
    let rule = |on, fault, probability| HttpRule { on, fault, probability, from_ms: None, until_ms: None };
    let files = Target::Group(TargetGroup::Files);
    let batches = Target::Group(TargetGroup::Batches);
    let results = Target::Endpoint(Endpoint::FileContent);
    // Told apart by their bodies, so that none fails more often than there are rules.
    let item = |fault| {
        let body = Some("question".to_owned());
        ItemRule { fault, probability: 0.05, custom_id: None, body, times: Some(1) }
    };
    let batch = |fault| BatchRule { fault, probability: 0.2 };
    Faults {
        http: vec![
            rule(results, Fault::CutBody, 0.2),
            rule(files, Fault::StatusAfterEffect { status: 503 }, 0.1),
            rule(batches, Fault::DropResponseAfterEffect, 0.15),
            rule(batches, Fault::Status { status: 429, retry_after_ms: Some(20) }, 0.1),
            rule(Target::Group(TargetGroup::Any), Fault::DropBeforeEffect, 0.1),
        ],
        batches: vec![
            batch(BatchFault::OutputGarbageLine),
            batch(BatchFault::OutputUnknownId),
            batch(BatchFault::OutputDuplicateId),
            batch(BatchFault::FailValidation { code: "token_limit_exceeded".to_owned() }),
        ],
        items: vec![
            item(ItemFault::Status { status: 500 }),
            item(ItemFault::Status { status: 429 }),
            item(ItemFault::NoResponse { code: "request_timeout".to_owned() }),
        ],
        listing_lag_ms: 300_000,
        ..Faults::default()
    }
}

async fn survives(seed: u64) {
    let settings = "[lanes]\nlinger = \"50ms\"\nmax_requests = 30";
    let rig = Rig::start(sim().seed(seed).faults(plan()), settings).await;
    let tickets = rig.daemon.tickets(COUNT, |n| format!("question {n} of {seed}")).await;
    rig.all_answered(&tickets).await;
    assert_eq!((rig.billed(Mode::Batch), rig.ran_twice()), (COUNT as u64, 0), "seed {seed}");
    let injected: u64 =
        Endpoint::ALL.into_iter().map(|endpoint| rig.provider.faults().injected(endpoint)).sum();
    assert!(injected > 5, "seed {seed}: {injected} faults");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_one_seed() {
    survives(1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_another() {
    survives(20).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_a_third() {
    survives(300).await;
}
