//! A backend that is taken out of the configuration while something waits for it, or is under way there.

use std::time::{Duration, Instant};

use http::StatusCode;
use provider_sim::{BatchFault, Endpoint, Mode, Provider, Server};
use serde_json::Value;

use crate::rig::{Daemon, MODEL, Ticket, eventually, sim};

/// A batch of the simulator that is not back while a test lasts.
const NEVER: u64 = 2000 * 3_600_000;

/// So long before its deadline what a batch has not answered is run in real time.
const RESCUE: Duration = Duration::from_secs(5);

/// With a backend `going` that alone sells the model, or without it; `others` are the models of the one that stays.
fn settings(provider: &str, has_going: bool, others: &str) -> String {
    let going = format!(
        "[backends.going]\nprovider = \"openai\"\napi_key = {{ env = \"PROVIDER_KEY\" }}\nbase_url = \"{provider}\"\n\
         models = [\"{MODEL}\"]\nconfig = {{ poll_ms = 30, batch_usual = \"100ms\" }}\n"
    );
    format!(
        "[lanes]\nlinger = \"1h\"\nrescue = \"{}s\"\n{}[backends.simulated]\nmodels = [\"{others}\"]\n\
         config.batch_usual = \"100ms\"\n",
        RESCUE.as_secs(),
        if has_going { going.as_str() } else { "" }
    )
}

/// A batch that does not come back, with this request.
async fn in_a_batch(daemon: &Daemon, provider: &Provider, prompt: &str, sla: &str) -> Ticket {
    provider.faults().next_batch(vec![BatchFault::Turnaround { ms: NEVER }]);
    let ticket = daemon.ticket_of("search", prompt, sla).await;
    daemon.wait_for_waiting(1).await;
    daemon.flush().await;
    eventually("the batch is made", async || (provider.calls(Endpoint::CreateBatch) == 1).then_some(()))
        .await;
    ticket
}

async fn batches(daemon: &Daemon) -> Vec<Value> {
    daemon.admin("/admin/v1/batches").await.body["data"].as_array().unwrap().clone()
}

async fn explained(daemon: &Daemon, ticket: &Ticket) -> String {
    let id = ticket.location.rsplit('/').next().unwrap();
    let told = daemon.admin(&format!("/admin/v1/explain/{id}")).await;
    assert_eq!(told.status, StatusCode::OK, "{told:?}");
    told.body.to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_waits_for_it_goes_to_another_backend() {
    let provider = sim().build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let url = server.url();
    let daemon = Daemon::start(&url, &settings(&url, true, "other")).await;
    let tickets = daemon.tickets(3, |n| format!("waiting {n}")).await;
    let daemon = daemon.restart(&url, &settings(&url, false, "*")).await;
    daemon.wait_for_waiting(3).await;
    daemon.flush().await;
    for ticket in &tickets {
        assert!(daemon.redeem(ticket).await.is_to(ticket));
    }
    let bill = provider.bill();
    assert_eq!((bill.requests(Mode::Batch), bill.executions.repeated().len()), (3, 0));
    let (going, stays) = ("backend=\"going\"", "backend=\"simulated\"");
    assert_eq!(daemon.metric("offpeak_batches_sealed_total", stays).await, 1);
    assert_eq!(daemon.metric("offpeak_batches_sealed_total", going).await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_in_a_batch_there_is_rescued_before_its_deadline() {
    let provider = sim().build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let url = server.url();
    let daemon = Daemon::start(&url, &settings(&url, true, "other")).await;
    let began = Instant::now();
    let ticket = in_a_batch(&daemon, &provider, "in a batch", "20s").await;
    let daemon = daemon.restart(&url, &settings(&url, false, "*")).await;
    let open = batches(&daemon).await;
    let trouble = open[0]["trouble"].as_str().unwrap();
    assert!(trouble.contains("put 'going' back"), "{trouble}");
    let told = explained(&daemon, &ticket).await;
    assert!(told.contains("put 'going' back") && told.contains("in real time at another backend"), "{told}");
    assert!(daemon.redeem(&ticket).await.is_to(&ticket));
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert_eq!(provider.bill().requests(Mode::Realtime), 1);
    assert_eq!(provider.calls(Endpoint::CreateBatch), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_it_comes_back_its_batch_goes_on() {
    let provider = sim().build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let url = server.url();
    let daemon = Daemon::start(&url, &settings(&url, true, "other")).await;
    provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 2 * 3_600_000 }]);
    let ticket = daemon.ticket("in a batch").await;
    daemon.wait_for_waiting(1).await;
    daemon.flush().await;
    eventually("the batch is made", async || (provider.calls(Endpoint::CreateBatch) == 1).then_some(()))
        .await;
    let daemon = daemon.restart(&url, &settings(&url, false, "*")).await;
    assert_eq!(batches(&daemon).await.len(), 1, "it is kept");
    let daemon = daemon.restart(&url, &settings(&url, true, "other")).await;
    assert!(daemon.redeem(&ticket).await.is_to(&ticket));
    let bill = provider.bill();
    assert_eq!((bill.requests(Mode::Batch), bill.requests(Mode::Realtime)), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_nobody_else_sells_it_each_request_gets_an_error_when_it_is_due() {
    let provider = sim().build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let url = server.url();
    let daemon = Daemon::start(&url, &settings(&url, true, "other")).await;
    let sailing = in_a_batch(&daemon, &provider, "in a batch", "20s").await;
    let waiting = daemon.ticket_of("search", "waiting", "20s").await;
    let daemon = daemon.restart(&url, &settings(&url, false, "other")).await;
    daemon.wait_for_waiting(1).await;
    let told = explained(&daemon, &waiting).await;
    assert!(told.contains("nobody sells it"), "{told}");
    for ticket in [&waiting, &sailing] {
        assert_eq!(daemon.look(ticket).await.status, StatusCode::ACCEPTED, "it waits until it is due");
    }
    for ticket in [&waiting, &sailing] {
        let answer = daemon.redeem(ticket).await;
        assert_eq!(answer.error(), (503, "not_sold"), "{answer:?}");
        let said = answer.body["error"]["message"].as_str().unwrap();
        assert!(said.contains("can put the backend back"), "{said}");
    }
    eventually("nothing is left of the batch", async || batches(&daemon).await.is_empty().then_some(()))
        .await;
    assert_eq!(provider.bill().requests(Mode::Realtime), 0);
}
