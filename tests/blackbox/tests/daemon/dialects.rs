//! Providers that speak the API in other words: the settings of a backend reach the wire.

use std::sync::{Arc, Mutex};

use http::{Response, StatusCode};
use provider_sim::Mode;
use serde_json::Value;

use crate::rig::{Daemon, MODEL, PROVIDER_KEY, Rig, sim};
use crate::upstream::{Upstream, full};

const DEPLOYMENT: &str = "gpt-4o-mini-globalbatch";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_call_goes_to_the_dialects_path_with_its_header_and_name() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let note = seen.clone();
    let upstream = Upstream::start(move |request| {
        note.lock().unwrap().push(request);
        async { Response::new(full("{}")) }
    })
    .await;
    let settings = format!(
        "[backends.simulated.config]\ndialect = \"azure\"\nmodel_names = {{ {MODEL} = \"my-deployment\" }}"
    );
    let daemon = Daemon::start(&upstream.url, &settings).await;
    assert_eq!(daemon.ask(MODEL, "hello").await.status, StatusCode::OK);

    let request = seen.lock().unwrap().pop().unwrap();
    assert_eq!(request.uri().path(), "/openai/v1/chat/completions");
    assert_eq!(request.headers()["api-key"], PROVIDER_KEY);
    assert!(!request.headers().contains_key("authorization"), "{:?}", request.headers());
    let body: Value = serde_json::from_slice(request.body()).unwrap();
    assert_eq!((&body["model"], &body["messages"][0]["content"]), (&"my-deployment".into(), &"hello".into()));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_batch_runs_under_the_models_name_for_batches() {
    // Azure's words, but for the path and the header, at which the simulator answers.
    let settings = format!(
        "[backends.simulated.config]\ndialect = \"azure\"\nroot = \"/v1\"\ncredential_header = \"authorization\"\n\
         batch_model_names = {{ {MODEL} = \"{DEPLOYMENT}\" }}"
    );
    let rig = Rig::start(sim().models([MODEL, DEPLOYMENT]), &settings).await;
    let tickets = rig.daemon.tickets(3, |n| format!("question {n}")).await;
    for ticket in &tickets {
        let answer = rig.daemon.redeem(ticket).await;
        assert!(answer.answers(DEPLOYMENT, &ticket.prompt), "{answer:?}");
    }
    assert!(rig.daemon.ask(MODEL, "now").await.answers(MODEL, "now"), "in real time it keeps its name");
    assert_eq!((rig.billed(Mode::Batch), rig.billed(Mode::Realtime)), (3, 1));
}
