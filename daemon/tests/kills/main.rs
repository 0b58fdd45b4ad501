//! The real program, killed with SIGKILL again and again while clients and a provider are at work; told to stop, and to read
//! its configuration again; left without a folder that it can write to. Then the provider's bill and the
//! clients are counted.
//!
//! `OFFPEAK_KILLS=100 cargo test -p offpeak --test kills -- --nocapture` kills it a hundred times. The moments come from a
//! seed that it prints; what they hit depends on the machine as well.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod daemon;
mod exhausted;
mod jobs;
mod load;
mod rescue;
mod signals;

use std::time::{Duration, Instant};

use daemon::Daemon;
use load::Clients;
use offpeak_core::money::Money;
use provider_sim::{Provider, Server, Sim};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde_json::Value;

/// How often it is killed where nobody says otherwise.
const KILLS: u64 = 15;
/// No request may take longer once nobody kills the daemon any more.
const LIMIT: Duration = Duration::from_mins(2);

const KEY: &str = "sk-of-the-provider";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn killed_at_any_moment_it_loses_nothing_and_pays_nothing_twice() {
    let kills: u64 = std::env::var("OFFPEAK_KILLS").ok().map_or(KILLS, |text| text.parse().unwrap());
    let seed =
        std::env::var("OFFPEAK_KILLS_SEED").ok().map_or_else(rand::random, |text| text.parse().unwrap());
    println!(
        "{kills} kills; the same again: OFFPEAK_KILLS={kills} OFFPEAK_KILLS_SEED={seed} cargo test -p offpeak --test kills"
    );
    offpeak::upstream::install_crypto();
    let provider = simulator(seed);
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(folder.path(), &server.url(), KEY, "");
    daemon.start().await;
    let clients = Clients::begin(daemon.url(), seed);
    let load = clients.load.clone();

    let mut dice = StdRng::seed_from_u64(seed);
    for _ in 0..kills {
        // From its very first moments on, and well into its work.
        let longest_ms = 1 << dice.random_range(4..=10);
        let life = Duration::from_millis(dice.random_range(0..=longest_ms));
        tokio::time::sleep(life).await;
        daemon.kill();
        daemon.start().await;
    }
    clients.count(&provider).await;
    // An outcome and its entry of the ledger are one commit, so no kill comes between them.
    let costs = format!("{}/admin/v1/costs", daemon.admin_url());
    let costs: Value = load.http.get(costs).send().await.unwrap().json().await.unwrap();
    let charged: Money = costs["total"]["cost_usd"].as_str().unwrap().parse().unwrap();
    assert_eq!(charged.0, i128::from(provider.bill().total().0), "the ledger is the bill: {costs}");
    let cut_off = load.cut_off.load(std::sync::atomic::Ordering::Relaxed);
    assert!(cut_off > 0, "the kills came while calls were under way");
    daemon.kill();
}

/// A provider in which an hour takes a second.
fn simulator(seed: u64) -> Provider {
    Sim::builder().seed(seed).speed(3600).keys([KEY]).track_executions(true).build()
}

async fn until(what: &str, is_so: impl Fn() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < LIMIT, "not within {LIMIT:?}: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
