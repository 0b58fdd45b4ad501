//! What the program does when it is told something: to stop, to stop at once, to read its configuration again.

use std::fs::File;
use std::io::Read;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use provider_sim::{Endpoint, Fault, Mode, Provider, Server};
use reqwest::{Client, RequestBuilder, StatusCode};
use rustix::process::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::load::{Api, Clients, Company};
use crate::{KEY, LIMIT, simulator, until};

/// It ends at once: a fraction of the time that it is given to drain.
const AT_ONCE: Duration = Duration::from_secs(10);

const READ_AGAIN: &str = "the configuration was read again";
const REFUSED: &str = "the configuration is wrong and was not taken in";

struct Scene {
    daemon: Daemon,
    provider: Provider,
    http: Client,
    _server: provider_sim::Handle,
    _folder: TempDir,
}

async fn scene(settings: &str) -> Scene {
    offpeak::upstream::install_crypto();
    let provider = simulator(11);
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(folder.path(), &server.url(), KEY, settings);
    daemon.start().await;
    let http = Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    Scene { daemon, provider, http, _server: server, _folder: folder }
}

impl Scene {
    fn call(&self, prompt: &str) -> RequestBuilder {
        self.http.post(format!("{}{}", self.daemon.url(), Api::Chat.path())).json(&Api::Chat.body(prompt))
    }

    /// A call in real time that the provider has, and answers only after so long.
    async fn slow(
        &self,
        prompt: &str,
        takes: Duration,
    ) -> tokio::task::JoinHandle<reqwest::Result<StatusCode>> {
        let ms = u64::try_from(takes.as_millis()).unwrap();
        self.provider.faults().next(Endpoint::ChatCompletions, Fault::Slow { ms });
        let call = self.call(prompt);
        let calling = tokio::spawn(async move {
            let answer = call.send().await?;
            let status = answer.status();
            answer.bytes().await.map(|_| status)
        });
        until("the provider has the call", || Api::Chat.runs(&self.provider, prompt) == 1).await;
        calling
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn told_to_stop_it_lets_calls_end_and_tells_held_ones_to_come_again() {
    let mut scene = scene("server.drain = \"60s\"\nlanes.linger = \"1h\"").await;
    let slow = scene.slow("now", Duration::from_secs(1)).await;
    let held = |scene: &Scene| {
        scene.call("later").header("x-offpeak-sla", "24h").header("idempotency-key", "the-one").send()
    };
    let waiting = tokio::spawn(held(&scene));
    let data = scene.daemon.folder.join("data");
    until("it is kept", || has_in_log(&data, b"later")).await;
    scene.daemon.signal(Signal::TERM);
    let told = waiting.await.unwrap().unwrap();
    assert_eq!(told.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(told.headers().contains_key("retry-after"));
    let told: Value = told.json().await.unwrap();
    assert_eq!(told["error"]["code"], "restarting");
    assert_eq!(slow.await.unwrap().unwrap(), StatusCode::OK);
    assert_eq!(scene.daemon.ends_within(LIMIT).await.code(), Some(0));

    scene.daemon.reconfigure(|text| text.replace("lanes.linger = \"1h\"", "lanes.linger = \"1ms\""));
    scene.daemon.start().await;
    let answer: Value = held(&scene).await.unwrap().json().await.unwrap();
    assert!(Api::Chat.is_answer_to(&answer, "later"), "{answer}");
    assert_eq!(scene.provider.bill().requests(Mode::Batch), 1);
}

/// The log has this text in its first pages.
fn has_in_log(data: &std::path::Path, text: &[u8]) -> bool {
    let Ok(segments) = std::fs::read_dir(data.join("log")) else { return false };
    let files = segments.filter_map(Result::ok).filter_map(|entry| File::open(entry.path()).ok());
    files.into_iter().any(|file| {
        let mut bytes = Vec::new();
        file.take(64 << 10).read_to_end(&mut bytes).unwrap();
        bytes.windows(text.len()).any(|part| part == text)
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_that_take_longer_than_the_drain_are_closed_and_it_ends_well() {
    let mut scene = scene("server.drain = \"300ms\"").await;
    let slow = scene.slow("too slow", Duration::from_mins(2)).await;
    scene.daemon.signal(Signal::INT);
    assert_eq!(scene.daemon.ends_within(AT_ONCE).await.code(), Some(0));
    assert!(slow.await.unwrap().is_err(), "the connection was closed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_it_at_once_and_loses_nothing() {
    let mut scene = scene("server.drain = \"10m\"").await;
    let clients = Clients::begin(scene.daemon.url(), 5, Company::None);
    for (round, second) in [Signal::TERM, Signal::INT, Signal::TERM].into_iter().enumerate() {
        clients.get(20).await;
        // For its sake the first signal alone would take ten minutes.
        let slow = scene.slow(&format!("slow {round}"), Duration::from_mins(20)).await;
        scene.daemon.signal(Signal::TERM);
        scene.daemon.said("stopping; deferred work is safe on disk", round + 1).await;
        scene.daemon.signal(second);
        let began = Instant::now();
        let code = scene.daemon.ends_within(AT_ONCE).await.code();
        assert_eq!(code, Some(128 + second.as_raw()), "after {:?}", began.elapsed());
        assert!(slow.await.unwrap().is_err());
        scene.daemon.start().await;
    }
    clients.count(&scene.provider).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn read_again_under_load_a_configuration_drops_nothing_and_a_wrong_one_is_refused() {
    let mut scene = scene("access.requests_per_minute = 1000000").await;
    let clients = Clients::begin(scene.daemon.url(), 6, Company::None);
    // For calls in real time, of which the clients make none.
    let (good, narrow) = ("access.requests_per_minute = 1000000\n", "access.requests_per_minute = 1\n");
    let asked = AtomicU64::new(0);
    let ask = async |scene: &Scene| {
        let prompt = format!("hello {}", asked.fetch_add(1, Ordering::Relaxed));
        scene.call(&prompt).send().await.unwrap().status()
    };
    for round in 1..=3 {
        clients.get(10).await;
        // Wrong in one place: nothing of it is taken in.
        scene.daemon.reconfigure(|text| text.replace(good, narrow) + "retry.bse = \"1s\"\n");
        scene.daemon.signal(Signal::HUP);
        scene.daemon.said(REFUSED, round).await;
        for _ in 0..3 {
            assert_eq!(ask(&scene).await, StatusCode::OK, "the old one stays");
        }
        scene.daemon.reconfigure(|text| text.replace("retry.bse = \"1s\"\n", ""));
        scene.daemon.signal(Signal::HUP);
        scene.daemon.said(READ_AGAIN, 2 * round - 1).await;
        let mut told = Vec::new();
        for _ in 0..3 {
            told.push(ask(&scene).await);
        }
        assert!(told.contains(&StatusCode::TOO_MANY_REQUESTS), "the new one holds: {told:?}");
        scene.daemon.reconfigure(|text| text.replace(narrow, good));
        scene.daemon.signal(Signal::HUP);
        scene.daemon.said(READ_AGAIN, 2 * round).await;
        assert_eq!(ask(&scene).await, StatusCode::OK);
        assert_eq!(ask(&scene).await, StatusCode::OK);
    }
    clients.count(&scene.provider).await;
    scene.daemon.kill();
}
