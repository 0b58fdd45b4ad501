//! What the program does without what it needs: a disk with room, a folder that it may write to, file handles.

use std::time::{Duration, Instant};

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use provider_sim::{Mode, Provider, Server};
use rustix::process::Resource;
use serde_json::Value;
use tempfile::TempDir;
use tokio::net::TcpStream;

use crate::daemon::Daemon;
use crate::load::Api;
use crate::{KEY, LIMIT, simulator, until};

/// A client on one connection, which it makes once: one with a pool might open another at any time.
struct Client(SendRequest<Full<Bytes>>);

struct Answer {
    status: StatusCode,
    headers: HeaderMap,
    body: Value,
}

impl Client {
    async fn connect(port: u16) -> Self {
        let stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
        let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn send(&mut self, method: Method, path: &str, headers: &[(&str, &str)], body: String) -> Answer {
        let request = Request::builder().method(method).uri(path).header("host", "localhost");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let answered = async {
            self.0.ready().await.unwrap();
            let sent = self.0.send_request(request.body(Full::from(body)).unwrap());
            let (head, body) = sent.await.unwrap().into_parts();
            let body = body.collect().await.unwrap().to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or_default();
            Answer { status: head.status, headers: head.headers, body }
        };
        tokio::time::timeout(LIMIT, answered).await.unwrap()
    }

    async fn ask(&mut self, prompt: &str, headers: &[(&str, &str)]) -> Answer {
        let headers = [&[("content-type", "application/json")], headers].concat();
        self.send(Method::POST, Api::Chat.path(), &headers, Api::Chat.body(prompt).to_string()).await
    }

    async fn get(&mut self, path: &str) -> Answer {
        self.send(Method::GET, path, &[], String::new()).await
    }

    async fn is_answered_now(&mut self, prompt: &str) {
        let answer = self.ask(prompt, &[]).await;
        assert!(Api::Chat.is_answer_to(&answer.body, prompt), "{} {}", answer.status, answer.body);
    }

    async fn defer(&mut self, prompt: &str) -> Answer {
        self.ask(prompt, &[("x-offpeak-sla", "24h"), ("prefer", "respond-async")]).await
    }

    /// It is not taken in, and is told when to come again.
    async fn is_refused(&mut self, prompt: &str) {
        let Answer { status, headers, body } = self.defer(prompt).await;
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE, "{body}");
        assert!(headers.contains_key("retry-after"), "{headers:?}");
        assert_eq!(body["error"]["code"], "store_unavailable", "{body}");
    }
}

struct Scene {
    daemon: Daemon,
    provider: Provider,
    client: Client,
    /// What was taken in: what it asks, and where its answer will be.
    tickets: Vec<(String, String)>,
    _server: provider_sim::Handle,
    _folder: TempDir,
}

impl Scene {
    /// The program, started from a shell that does this first.
    async fn start(first: &str) -> Self {
        offpeak::upstream::install_crypto();
        let provider = simulator(13);
        let server = Server::on_free_port(provider.clone()).await.unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut daemon = Daemon::new(folder.path(), &server.url(), KEY, "");
        daemon.start_after(first).await;
        let client = Client::connect(daemon.port()).await;
        Self { daemon, provider, client, tickets: Vec::new(), _server: server, _folder: folder }
    }

    /// It is taken in.
    async fn keeps(&mut self, prompt: &str) {
        let Answer { status, headers, body } = self.client.defer(prompt).await;
        assert_eq!(status, StatusCode::ACCEPTED, "{body}");
        self.tickets.push((prompt.to_owned(), headers["location"].to_str().unwrap().to_owned()));
    }

    /// It is taken in, now or in a while.
    async fn comes_to_keep(&mut self, prompt: &str) {
        let began = Instant::now();
        loop {
            let Answer { status, headers, .. } = self.client.defer(prompt).await;
            if status == StatusCode::ACCEPTED {
                self.tickets.push((prompt.to_owned(), headers["location"].to_str().unwrap().to_owned()));
                return;
            }
            assert!(began.elapsed() < LIMIT, "it does not come back: {status}");
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    /// All that was taken in is answered, was run once, and nothing else was.
    async fn all_is_answered(mut self) {
        for (prompt, location) in &self.tickets {
            let began = Instant::now();
            loop {
                let answer = self.client.get(location).await;
                if answer.status == StatusCode::OK {
                    assert!(Api::Chat.is_answer_to(&answer.body, prompt), "{}", answer.body);
                    break;
                }
                assert!(began.elapsed() < LIMIT, "{prompt} gets no answer: {}", answer.body);
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            assert_eq!(Api::Chat.runs(&self.provider, prompt), 1, "{prompt}");
        }
        assert_eq!(self.provider.bill().requests(Mode::Batch), self.tickets.len() as u64);
    }
}

/// Files may not grow any more, as on a full disk; the program's own log is one of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_room_on_the_disk_real_time_goes_on_and_the_rest_comes_back_by_itself() {
    let mut scene = Scene::start("trap '' XFSZ").await;
    for n in 0..10 {
        scene.keeps(&format!("before {n}")).await;
    }
    scene.daemon.limit(Resource::Fsize, Some(512));
    for n in 0..5 {
        scene.client.is_refused(&format!("refused {n}")).await;
        scene.client.is_answered_now(&format!("now {n}")).await;
    }
    scene.daemon.limit(Resource::Fsize, None);
    scene.comes_to_keep("after").await;
    scene.client.is_answered_now("and now").await;
    scene.all_is_answered().await;
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

/// Two programs on one folder would both send what stands in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_that_another_one_uses_is_refused_and_the_other_one_goes_on() {
    let mut scene = Scene::start("").await;
    scene.keeps("before").await;
    let elsewhere = tempfile::tempdir().unwrap();
    let second = Daemon::new(elsewhere.path(), "http://127.0.0.1:9", KEY, "");
    let own = format!("store.folder = \"{}/data\"", elsewhere.path().display());
    let taken = format!("store.folder = \"{}/data\"", scene.daemon.folder.display());
    second.reconfigure(|text| text.replace(&own, &taken));
    for _ in 0..2 {
        assert_eq!(second.fails_to_start().code(), Some(64));
    }
    assert_eq!(second.says("another process uses the data folder"), 2);
    scene.keeps("after").await;
    scene.all_is_answered().await;
}

/// More connections than there are file handles: those over the limit wait, and all others go on.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_few_file_handles_connections_wait_and_nobody_else_notices() {
    let mut scene = Scene::start("ulimit -n 180").await;
    let warned = scene.daemon.says("server.max_connections is 20000, and the limit of open files is too low");
    assert_eq!(warned, 1);
    scene.client.is_answered_now("the first").await;
    // Fewer than a listener's backlog holds: beyond that they would wait for each other to be made.
    let mut idle = Vec::new();
    for _ in 0..100 {
        idle.push(TcpStream::connect(("127.0.0.1", scene.daemon.port())).await.unwrap());
    }
    for n in 0..5 {
        scene.client.is_answered_now(&format!("now {n}")).await;
        scene.keeps(&format!("later {n}")).await;
    }
    assert_eq!(scene.daemon.says("a connection could not be accepted"), 0, "nothing runs out");
    let mut waiting = Client::connect(scene.daemon.port()).await;
    let waiting = tokio::spawn(async move { waiting.get("/v1/models").await.status });
    drop(idle);
    assert_eq!(waiting.await.unwrap(), StatusCode::OK);
    scene.all_is_answered().await;
}

/// No file handle at all can be had, as where the whole system has run out of them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_any_file_handle_what_is_connected_goes_on_and_the_rest_comes_back_by_itself() {
    let mut scene = Scene::start("").await;
    scene.client.is_answered_now("the first").await;
    scene.keeps("before").await;
    let (provider, runs) = (scene.provider.clone(), |provider: &Provider| Api::Chat.runs(provider, "before"));
    until("that was run", || runs(&provider) == 1).await;
    scene.daemon.limit(Resource::Nofile, Some(3));
    let mut other = Client::connect(scene.daemon.port()).await;
    let other = tokio::spawn(async move { other.get("/v1/models").await.status });
    scene.daemon.said("a connection could not be accepted", 1).await;
    // Its connections to the provider are there already, and so are the files of the store.
    for n in 0..5 {
        scene.client.is_answered_now(&format!("now {n}")).await;
        scene.keeps(&format!("later {n}")).await;
    }
    scene.daemon.limit(Resource::Nofile, None);
    assert_eq!(other.await.unwrap(), StatusCode::OK);
    scene.all_is_answered().await;
}
