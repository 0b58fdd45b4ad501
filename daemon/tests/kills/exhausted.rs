//! What the program does without what it needs: a disk with room, a folder that it may write to.

use std::time::Duration;

use provider_sim::{Mode, Provider, Server};
use reqwest::{Client, RequestBuilder, Response, StatusCode};
use rustix::process::Resource;
use serde_json::Value;
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::load::Api;
use crate::{KEY, LIMIT, simulator, until};

struct Scene {
    daemon: Daemon,
    provider: Provider,
    /// It keeps one connection open.
    http: Client,
    tickets: Vec<(String, String)>,
    _server: provider_sim::Handle,
    _folder: TempDir,
}

impl Scene {
    async fn start(first: &str) -> Self {
        offpeak::upstream::install_crypto();
        let provider = simulator(13);
        let server = Server::on_free_port(provider.clone()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::new(folder.path(), &server.url(), KEY, "");
        daemon.start_after(first).await;
        let http = client();
        Self { daemon, provider, http, tickets: Vec::new(), _server: server, _folder: folder }
    }

    fn call(&self, prompt: &str) -> RequestBuilder {
        self.http.post(format!("{}{}", self.daemon.url(), Api::Chat.path())).json(&Api::Chat.body(prompt))
    }

    async fn answers_now(&self, prompt: &str) {
        let answer = self.call(prompt).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let answer: Value = answer.json().await.unwrap();
        assert!(Api::Chat.is_answer_to(&answer, prompt), "{answer}");
    }

    async fn defer(&self, prompt: &str) -> Response {
        let call = self.call(prompt).header("x-offpeak-sla", "24h").header("prefer", "respond-async");
        call.send().await.unwrap()
    }

    /// It is taken in.
    async fn keeps(&mut self, prompt: &str) {
        let answer = self.defer(prompt).await;
        assert_eq!(answer.status(), StatusCode::ACCEPTED);
        let location = answer.headers()["location"].to_str().unwrap().to_owned();
        // Read to its end, so that its connection is used again.
        answer.bytes().await.unwrap();
        self.tickets.push((prompt.to_owned(), location));
    }

    /// It is not taken in, and is told when to come again.
    async fn refuses(&self, prompt: &str) {
        let answer = self.defer(prompt).await;
        assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert!(answer.headers().contains_key("retry-after"), "{answer:?}");
        let answer: Value = answer.json().await.unwrap();
        assert_eq!(answer["error"]["code"], "store_unavailable", "{answer}");
    }
}

fn client() -> Client {
    Client::builder().no_proxy().timeout(LIMIT).build().unwrap()
}

/// Files may not grow any more, as on a full disk, the log of the program itself included.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_on_the_disk_real_time_goes_on_and_the_rest_comes_back_by_itself() {
    let mut scene = Scene::start("trap '' XFSZ").await;
    for n in 0..10 {
        scene.keeps(&format!("before {n}")).await;
    }
    scene.daemon.limit(Resource::Fsize, Some(512));
    for n in 0..5 {
        scene.refuses(&format!("refused {n}")).await;
        scene.answers_now(&format!("now {n}")).await;
    }
    scene.daemon.limit(Resource::Fsize, None);
    let back = async || scene.defer("is it back?").await.status() == StatusCode::ACCEPTED;
    let began = std::time::Instant::now();
    while !back().await {
        assert!(began.elapsed() < LIMIT, "it does not come back");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    scene.keeps("after").await;
    let (daemon, provider) = (scene.daemon.url(), scene.provider.clone());
    until("that one too", || Api::Chat.runs(&provider, "is it back?") == 1).await;
    scene.answers_now("and now").await;
    for (prompt, location) in &scene.tickets {
        until_answered(&scene.http, &format!("{daemon}{location}"), prompt).await;
        assert_eq!(Api::Chat.runs(&provider, prompt), 1, "{prompt}");
    }
    assert_eq!(provider.bill().requests(Mode::Batch), scene.tickets.len() as u64 + 1);
}

async fn until_answered(http: &Client, url: &str, prompt: &str) {
    let began = std::time::Instant::now();
    loop {
        let answer = http.get(url).send().await.unwrap();
        if answer.status() == StatusCode::OK {
            let answer: Value = answer.json().await.unwrap();
            assert!(Api::Chat.is_answer_to(&answer, prompt), "{answer}");
            return;
        }
        assert!(began.elapsed() < LIMIT, "{prompt} gets no answer: {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A folder that nobody can write to, root included.
#[test]
fn a_folder_that_cannot_be_written_to_is_said_at_once() {
    offpeak::upstream::install_crypto();
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(folder.path(), "http://127.0.0.1:9", KEY, "");
    let data = format!("store.folder = \"{}/data\"", folder.path().display());
    daemon.reconfigure(|text| text.replace(&data, "store.folder = \"/proc/offpeak\""));
    assert_eq!(daemon.fails_to_start().code(), Some(64));
    assert_eq!(daemon.says("offpeak cannot start: the store could not be opened"), 1);
}
