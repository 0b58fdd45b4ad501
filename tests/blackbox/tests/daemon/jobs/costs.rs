//! What a job has cost: while it runs, when it has ended, and after a restart.

use std::time::Duration;

use offpeak_core::money::Money;
use provider_sim::{BatchFault, Endpoint, EngineOptions, Fault, Mode, Server};
use serde_json::{Value, json};

use super::lines;
use crate::rig::{BY_HAND, Daemon, MODEL, Rig, eventually, sim};

/// What a job's object says: cost, and what it would have been in real time.
fn cost(job: &Value) -> (Money, Money) {
    let amount = |name: &str| job["offpeak_cost"][name].as_str().unwrap().parse().unwrap();
    assert_eq!(job["offpeak_cost"]["unpriced"], 0, "{job}");
    (amount("cost_usd"), amount("realtime_cost_usd"))
}

/// What the ledger says of all that ran.
async fn ledger(daemon: &Daemon) -> (Money, Money) {
    let total = daemon.admin("/admin/v1/costs").await.body["total"].clone();
    let amount = |name: &str| total[name].as_str().unwrap().parse().unwrap();
    (amount("cost_usd"), amount("realtime_cost_usd"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_says_what_it_has_cost_so_far_and_in_the_end() {
    let rig = Rig::start(sim(), BY_HAND).await;
    rig.provider.faults().next_batch(vec![BatchFault::LoseItems { permille: 500 }]);
    let id = rig.daemon.submit(lines(40, "paid"), "48h").await;
    let running = rig.daemon.job_is(&id, "in_progress").await;
    assert_eq!(cost(&running), (Money::ZERO, Money::ZERO));
    rig.daemon.flush().await;
    eventually("the batch is made", async || (rig.batches() == 1).then_some(())).await;
    rig.provider.clock().advance(Duration::from_hours(24));
    let half = eventually("some are finished", async || {
        let job = rig.daemon.job(&id).await;
        let completed = job["request_counts"]["completed"].as_u64()?;
        (completed > 0 && completed + rig.daemon.waiting().await == 40).then(|| cost(&job))
    })
    .await;
    assert_eq!(half, ledger(&rig.daemon).await);
    assert!(half.0 > Money::ZERO && half.1 == half.0 + half.0, "a batch costs half: {half:?}");

    // What is known of a job that runs is made anew from the ledger.
    let daemon = rig.daemon.restart(&rig.upstream, BY_HAND).await;
    eventually("it is summed again", async || (cost(&daemon.job(&id).await) == half).then_some(())).await;
    eventually("the rest waits", async || (daemon.waiting().await > 0).then_some(())).await;
    daemon.flush().await;
    let done = cost(&daemon.job_is(&id, "completed").await);
    assert!(done.0 > half.0 && done.1 == done.0 + done.0, "{done:?}");
    assert_eq!(done, ledger(&daemon).await);
    let listed = daemon.get("/v1/batches").await.body;
    assert_eq!(cost(&listed["data"][0]), done);
    let daemon = daemon.restart(&rig.upstream, BY_HAND).await;
    assert_eq!(cost(&daemon.job(&id).await), done);
    assert_eq!(rig.provider.bill().requests(Mode::Batch), 40);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_pays_for_its_failed_attempts_too() {
    // An engine whose hours cost money: a call that it fails has taken its time as well.
    let engine = sim().speed(1).models([MODEL]).engine(EngineOptions::default()).build();
    let server = Server::on_free_port(engine.clone()).await.unwrap();
    let settings = format!(
        "backends.simulated.models = [\"none\"]\nplugins.providers.vllm.time_limit = \"5s\"\n\
         [plugins.cost_policy.config]\nusd_per_hour = {{ gpu = 3600.0 }}\n\
         [backends.gpu]\nprovider = \"vllm\"\nbase_url = \"{}\"\nmodels = [\"*\"]\napi_key = {{ env = \"PROVIDER_KEY\" }}\n\
         engine.look_every = \"50ms\"\n",
        server.url()
    );
    let daemon = Daemon::start(&server.url(), &settings).await;
    for _ in 0..4 {
        engine.faults().next(Endpoint::ChatCompletions, Fault::Status { status: 500, retry_after_ms: None });
    }
    let id = daemon.submit(lines(6, "on an engine"), "24h").await;
    let done = daemon.job_is(&id, "completed").await;
    assert_eq!(daemon.metric("offpeak_requests_retried_total", "").await, 4);
    let (paid, real_time) = cost(&done);
    assert_eq!((paid, real_time), ledger(&daemon).await);
    assert!(real_time < paid, "a failed attempt would not have been bought in real time: {real_time} {paid}");
    let daemon = daemon.restart(&server.url(), &settings).await;
    assert_eq!(cost(&daemon.job(&id).await), (paid, real_time));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_are_charged_apart_and_failed_ones_nothing() {
    let provider = sim().build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let daemon = Daemon::start(&server.url(), BY_HAND).await;
    let (one, two) =
        (daemon.submit(lines(3, "one"), "24h").await, daemon.submit(lines(9, "two"), "24h").await);
    let broken =
        daemon.create(&daemon.upload("{").await, "24h").await.body["id"].as_str().unwrap().to_owned();
    daemon.wait_for_waiting(12).await;
    daemon.ticket("not a job's").await;
    daemon.flush().await;
    let costs =
        (cost(&daemon.job_is(&one, "completed").await).0, cost(&daemon.job_is(&two, "completed").await).0);
    assert!(costs.1 > costs.0 && costs.0 > Money::ZERO, "{costs:?}");
    eventually("the ticket's answer costs too", async || {
        (ledger(&daemon).await.0 > costs.0 + costs.1).then_some(())
    })
    .await;
    let failed = daemon.job_is(&broken, "failed").await;
    assert_eq!(failed.get("offpeak_cost"), None::<&Value>, "{failed}");
    assert_eq!(failed["request_counts"], json!({ "total": 0, "completed": 0, "failed": 0 }));
}
