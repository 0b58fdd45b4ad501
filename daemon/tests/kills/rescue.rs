//! A call that is run by itself, in real time, when the program is killed: nobody can ask the provider whether it ran.

use std::time::{Duration, Instant};

use provider_sim::{BatchFault, Endpoint, Fault, Provider, Server};
use reqwest::{Client, Response, StatusCode};
use serde_json::Value;

use crate::daemon::Daemon;
use crate::load::Api;
use crate::{KEY, LIMIT, simulator, until};

const PROMPT: &str = "cannot wait";

/// One batch at a time: who comes second waits, and is run by itself when time gets short.
const NARROW: &str = "lanes.max_running = 1\nbackends.simulated.config.batch_usual = \"2s\"";

/// Runs `PROMPT` by itself and kills the program while the provider has it; then waits for what its caller gets.
async fn interrupted(settings: &str) -> (Response, Provider) {
    offpeak::upstream::install_crypto();
    let provider = simulator(7);
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let folder = tempfile::tempdir().unwrap();
    let mut daemon = Daemon::new(folder.path(), &server.url(), KEY, &format!("{NARROW}\n{settings}"));
    daemon.start().await;
    let http = Client::builder().no_proxy().timeout(LIMIT).build().unwrap();
    let hand_in = |prompt: &str, sla: &str| {
        let call = http.post(format!("{}{}", daemon.url(), Api::Chat.path())).header("x-offpeak-sla", sla);
        call.header("prefer", "respond-async").json(&Api::Chat.body(prompt))
    };
    provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 20 * 3_600_000 }]);
    let first = hand_in("takes the only place", "24h").send().await.unwrap();
    assert_eq!(first.status(), StatusCode::ACCEPTED);
    until("the first has left", || provider.calls(Endpoint::CreateBatch) == 1).await;
    provider.faults().next(Endpoint::ChatCompletions, Fault::Slow { ms: 60_000 });
    let urgent = hand_in(PROMPT, "5s").send().await.unwrap();
    assert_eq!(urgent.status(), StatusCode::ACCEPTED);
    let ticket = urgent.headers()["location"].to_str().unwrap().to_owned();
    until("the provider has run it", || Api::Chat.runs(&provider, PROMPT) == 1).await;
    daemon.kill();

    daemon.start().await;
    let began = Instant::now();
    loop {
        let answer = http.get(format!("{}{ticket}", daemon.url())).send().await.unwrap();
        if answer.status() != StatusCode::ACCEPTED {
            return (answer, provider);
        }
        assert!(began.elapsed() < LIMIT, "it gets no answer");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_rescue_is_run_again_by_a_decision_that_is_on_record() {
    let (answer, provider) = interrupted("").await;
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(answer.headers()["x-offpeak-attempts"], "2", "the one that was interrupted counts");
    let answer: Value = answer.json().await.unwrap();
    assert!(Api::Chat.is_answer_to(&answer, PROMPT), "{answer}");
    assert_eq!(Api::Chat.runs(&provider, PROMPT), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_would_rather_have_an_error_than_pay_twice_gets_one() {
    let (answer, provider) = interrupted("plugins.retry_policy.config.permanent = [\"interrupted\"]").await;
    assert_eq!((answer.status(), Api::Chat.runs(&provider, PROMPT)), (StatusCode::BAD_GATEWAY, 1));
    let answer: Value = answer.json().await.unwrap();
    assert_eq!(answer["error"]["code"], "interrupted");
}
