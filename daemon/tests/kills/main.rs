//! The real program, killed with SIGKILL again and again while clients and a provider, a process of its own, are at work; told
//! to stop, and to read its configuration again; left without a folder that it can write to. Then the provider's bill and the
//! clients are counted.
//!
//! `cargo build -p provider-sim && OFFPEAK_KILLS=100 cargo test -p offpeak --test kills -- --nocapture` kills it a hundred
//! times. The moments come from a seed that it prints; what they hit depends on the machine as well.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod daemon;
mod exhausted;
mod jobs;
mod load;
mod provider;
mod rescue;
mod signals;

use std::time::{Duration, Instant};

use daemon::Daemon;
use load::{Clients, Company};
use offpeak_core::money::Money;
use provider::Simulator;
use provider_sim::{Provider, Sim};
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
    let provider = Simulator::start(seed);
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(folder.path(), &provider.url, KEY, "");
    daemon.start().await;
    let clients = Clients::begin(daemon.url(), seed, Company::All);
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
    let ended = clients.end().await;
    let bill = provider.bill(&load.http).await;
    ended.count(&bill);
    ended.are_all(&bill);
    // An outcome and its entry of the ledger are one commit, so no kill comes between them. A call in real time is written
    // down when it is over, and what is killed before that is not.
    let (later, now) = bill.costs();
    assert_eq!(
        charged(&daemon, &load, |mode| mode != "realtime").await,
        i128::from(later),
        "the ledger is the bill"
    );
    assert!(
        charged(&daemon, &load, |mode| mode == "realtime").await <= i128::from(now),
        "and never more than it"
    );
    let cut_off = load.cut_off.load(std::sync::atomic::Ordering::Relaxed);
    assert!(cut_off > 0, "the kills came while calls were under way");
    daemon.kill();
}

/// What the ledger charges in some modes, in pico-dollars.
async fn charged(daemon: &Daemon, load: &load::Load, is_meant: impl Fn(&str) -> bool) -> i128 {
    let costs = format!("{}/admin/v1/costs?by=mode", daemon.admin_url());
    let costs: Value = load.http.get(costs).send().await.unwrap().json().await.unwrap();
    let rows = costs["data"].as_array().unwrap().iter();
    let meant = rows.filter(|row| is_meant(row["mode"].as_str().unwrap()));
    meant.map(|row| row["cost_usd"].as_str().unwrap().parse::<Money>().unwrap().0).sum()
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
