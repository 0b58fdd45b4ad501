//! What clients send on a bad day: the corpus in `corpus/`, as it is and bent in every way. Each is answered, by a result or
//! by an error that is the client's; what was refused leaves nothing behind; and the daemon goes on.

use http::Method;
use reqwest::{RequestBuilder, StatusCode};
use serde_json::Value;

use crate::anthropic::settings;
use crate::rig::{CHAT, Daemon, MODEL, Rig, sim};

/// How often each file is bent; `OFFPEAK_BENDS` says otherwise.
const BENDS: u64 = 40;

/// Pieces that readers of forms have stumbled over.
const PIECES: [&[u8]; 3] = [b"--a-boundary-of-the-tests", b"\r\n\r\n", b"--"];

/// Sends each file of a corpus, and what it is bent to; none is answered by a failure of the daemon's, and errors have the
/// form that `is_error` knows. Returns how many were taken.
async fn send_all(
    folder: &str,
    make: impl Fn(Vec<u8>) -> RequestBuilder,
    is_error: impl Fn(&Value) -> bool,
) -> usize {
    let bends: u64 = std::env::var("OFFPEAK_BENDS").ok().map_or(BENDS, |text| text.parse().unwrap());
    let mut taken = 0;
    for (name, whole) in bending::corpus(env!("CARGO_MANIFEST_DIR"), folder) {
        for seed in 0..=bends {
            let bytes = match seed {
                0 => whole.clone(),
                seed => bending::bent_by(seed, whole.clone(), &PIECES),
            };
            let what = || format!("{folder}/{name}, bent by {seed}: {:?}", String::from_utf8_lossy(&bytes));
            let answer = make(bytes.clone()).send().await;
            let answer = answer.unwrap_or_else(|error| panic!("{}: {error}", what()));
            let status = answer.status();
            let text = answer.text().await.unwrap();
            assert!(status.is_success() || status.is_client_error(), "{}: {status} {text}", what());
            taken += usize::from(status.is_success());
            if !status.is_success() {
                let error = serde_json::from_str(&text).unwrap_or(Value::Null);
                assert!(is_error(&error), "{}: {status} {text}", what());
            }
        }
    }
    taken
}

fn is_openai_error(error: &Value) -> bool {
    error["error"]["message"].as_str().is_some_and(|message| message.len() > 10)
}

fn is_anthropic_error(error: &Value) -> bool {
    error["type"] == "error" && is_openai_error(error)
}

async fn is_well(daemon: &Daemon) {
    assert!(daemon.ask(MODEL, "still there?").await.answers(MODEL, "still there?"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bent_requests() {
    let rig = Rig::start(sim(), "[lanes]\nlinger = \"1h\"").await;
    let post = |body: Vec<u8>, sla: Option<&str>| {
        let call = rig.daemon.call("search", Method::POST, CHAT).header("content-type", "application/json");
        let call = call.header("prefer", "respond-async").body(body);
        match sla {
            Some(sla) => call.header("x-offpeak-sla", sla),
            None => call,
        }
    };
    assert!(send_all("requests", |body| post(body, Some("24h")), is_openai_error).await > 5);
    assert!(send_all("requests", |body| post(body, None), is_openai_error).await > 5);
    is_well(&rig.daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bent_forms() {
    let rig = Rig::start(sim(), "").await;
    let kind = "multipart/form-data; boundary=a-boundary-of-the-tests";
    let post =
        |body| rig.daemon.call("search", Method::POST, "/v1/files").header("content-type", kind).body(body);
    let taken = send_all("forms", post, is_openai_error).await;
    assert!(taken > 3);
    let files = rig.daemon.files_on_disk();
    assert_eq!(files, taken, "what was refused or broke off leaves nothing");
    is_well(&rig.daemon).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bent_message_batches() {
    let rig = Rig::start(sim(), &settings("[lanes]\nlinger = \"1h\"", "")).await;
    let post = |body| rig.daemon.call("search", Method::POST, "/v1/messages/batches").body(body);
    assert!(send_all("message-batches", post, is_anthropic_error).await > 3);
    let listed = rig.daemon.get("/v1/messages/batches?limit=1000").await;
    assert_eq!(listed.status, StatusCode::OK);
}
