//! A backend that does not accept offpeak's credential: what can wait is not lost by that, and no caller sees a part of it.

use http::StatusCode;
use provider_sim::{Endpoint, Fault, Mode, Provider, Server, Sim};

use crate::rig::{BY_HAND, Daemon, Rig, eventually, sim};

/// A provider that knows another key alone.
fn stranger() -> Provider {
    Sim::builder().seed(7).speed(3600).keys(["sk-of-another"]).track_executions(true).build()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_can_wait_waits_until_it_is_mended() {
    let (wrong, right) = (stranger(), sim().build());
    let (there, here) = (
        Server::on_free_port(wrong.clone()).await.unwrap(),
        Server::on_free_port(right.clone()).await.unwrap(),
    );
    let daemon = Daemon::start(&there.url(), "").await;
    let tickets = daemon.tickets(3, |n| format!("question {n}")).await;
    eventually("it is tried and tried again", async || {
        (wrong.calls(Endpoint::UploadFile) >= 3).then_some(())
    })
    .await;
    for ticket in &tickets {
        let answer = daemon.look(ticket).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    }
    let daemon = daemon.restart(&here.url(), "").await;
    for ticket in &tickets {
        let answer = daemon.redeem(ticket).await;
        assert!(answer.is_to(ticket), "{answer:?}");
    }
    let bill = right.bill();
    assert_eq!((bill.requests(Mode::Batch), bill.executions.repeated().len()), (3, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_that_may_not_create_batches_is_no_requests_fault_though_it_may_delete_files() {
    let rig = Rig::start(sim(), BY_HAND).await;
    rig.provider.faults().next(Endpoint::CreateBatch, Fault::Status { status: 401, retry_after_ms: None });
    let tickets = rig.daemon.tickets(3, |n| format!("question {n}")).await;
    rig.daemon.flush().await;
    eventually("the batch is given up", async || {
        (rig.daemon.metric("offpeak_batches_ended_total", "backend_refused_credential").await == 1)
            .then_some(())
    })
    .await;
    assert_eq!(rig.provider.calls(Endpoint::DeleteFile), 1);
    rig.daemon.flush().await;
    let answers = rig.all_answered(&tickets).await;
    assert!(answers.iter().all(|answer| answer.header("x-offpeak-attempts") == "1"), "{answers:?}");
    assert_eq!((rig.billed(Mode::Batch), rig.ran_twice()), (3, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_the_deadline_the_caller_learns_whose_fault_it_is_and_no_more() {
    let wrong = stranger();
    let server = Server::on_free_port(wrong.clone()).await.unwrap();
    let settings = "[backends.simulated]\nconfig.batch_usual = \"1s\"";
    let daemon = Daemon::start(&server.url(), settings).await;
    let ticket = daemon.ticket_of("search", "urgent", "5s").await;
    let answer = daemon.redeem(&ticket).await;
    assert_eq!(answer.error(), (502, "backend_refused_credential"), "{answer:?}");
    assert!(!answer.body.to_string().contains("sk-"), "{answer:?}");
    let explained =
        daemon.admin(&format!("/admin/v1/explain/{}", ticket.location.rsplit('/').next().unwrap())).await;
    assert!(!explained.body.to_string().contains("sk-of"), "{explained:?}");
}
