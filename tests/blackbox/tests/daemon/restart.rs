//! Stopping and starting again on the same folder: what was acknowledged goes on where it was.

use provider_sim::{BatchFault, Endpoint, Mode, Server};

use crate::rig::{BY_HAND, Daemon, eventually, sim};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_running_and_finished_work_survives() {
    let provider = sim().build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let daemon = Daemon::start(&server.url(), BY_HAND).await;
    let made = |count| {
        let provider = provider.clone();
        async move {
            eventually("the batch is made", async || {
                (provider.calls(Endpoint::CreateBatch) == count).then_some(())
            })
            .await;
        }
    };

    let finished = daemon.ticket("finished").await;
    daemon.flush().await;
    assert!(daemon.redeem(&finished).await.is_to(&finished));

    provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 4 * 3_600_000 }]);
    let running = daemon.ticket("running").await;
    daemon.flush().await;
    made(2).await;
    let waiting = daemon.tickets(7, |n| format!("waiting {n}")).await;
    let cancelled = daemon.ticket("cancelled").await;
    assert_eq!(daemon.cancel(&cancelled).await.status.as_u16(), 200);

    let daemon = daemon.restart(&server.url(), BY_HAND).await;
    assert!(daemon.redeem(&finished).await.is_to(&finished), "finished before");
    assert_eq!(daemon.redeem(&cancelled).await.error(), (409, "cancelled"));
    assert_eq!(daemon.admin("/admin/v1/batches").await.body["data"].as_array().unwrap().len(), 1);
    assert!(daemon.redeem(&running).await.is_to(&running), "the batch goes on");
    assert_eq!(provider.calls(Endpoint::CreateBatch), 2);
    daemon.flush().await;
    for ticket in &waiting {
        assert!(daemon.redeem(ticket).await.is_to(ticket));
    }
    let bill = provider.bill();
    assert_eq!(
        (bill.requests(Mode::Batch), bill.executions.repeated().len()),
        (9, 0),
        "the cancelled one never ran"
    );
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_held_call_is_told_to_come_back_and_finds_its_work() {
    let provider = sim().build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let daemon = Daemon::start(&server.url(), BY_HAND).await;
    let url = server.url();
    let call = |daemon: &Daemon| {
        let request = daemon.post(crate::rig::CHAT, &crate::rig::chat(crate::rig::MODEL, "held"));
        request.header("x-offpeak-sla", "24h").header("idempotency-key", "k")
    };
    let held = tokio::spawn(crate::rig::send(call(&daemon)));
    daemon.wait_for_waiting(1).await;
    eventually("it is held", async || (daemon.metric("offpeak_held_calls", "").await == 1).then_some(()))
        .await;
    daemon.begin_to_stop();
    let told = held.await.unwrap();
    assert_eq!(told.error(), (503, "restarting"));
    assert_eq!(told.header("retry-after"), "1");

    let daemon = daemon.restart(&url, "").await;
    let answer = crate::rig::send(call(&daemon)).await;
    assert!(answer.answers(crate::rig::MODEL, "held"), "{answer:?}");
    assert_eq!(provider.bill().requests(Mode::Batch), 1);
}

/// What is said of how a waiting request is bought, and with how much time.
async fn ladder(daemon: &Daemon) -> String {
    let told = daemon.admin("/admin/v1/explain/0").await.body;
    let why = told["why"].as_array().unwrap().iter().filter_map(|why| why.as_str());
    why.into_iter().find(|why| why.starts_with("A request is bought")).unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_learnt_of_turnarounds_survives() {
    let provider = sim().build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let settings = format!("{BY_HAND}\n[backends.simulated]\nconfig.batch_usual = \"100ms\"");
    let daemon = Daemon::start(&server.url(), &settings).await;
    // They take two seconds, which is two hours at the provider.
    let slow = || vec![BatchFault::Turnaround { ms: 2 * 3_600_000 }];
    let mut tickets = Vec::new();
    let mut at_first = String::new();
    for n in 0..3 {
        provider.faults().next_batch(slow());
        tickets.push(daemon.ticket(&format!("slow {n}")).await);
        daemon.wait_for_waiting(1).await;
        at_first = ladder(&daemon).await;
        daemon.flush().await;
    }
    for ticket in &tickets {
        assert!(daemon.redeem(ticket).await.is_to(ticket));
    }
    eventually("all are over", async || {
        (daemon.metric("offpeak_batches_ended_total", "completed").await == 3).then_some(())
    })
    .await;
    daemon.ticket("waits").await;
    daemon.wait_for_waiting(1).await;
    let learnt = ladder(&daemon).await;
    assert_ne!(learnt, at_first, "less had been said");
    let daemon = daemon.restart(&server.url(), &settings).await;
    daemon.wait_for_waiting(1).await;
    assert_eq!(ladder(&daemon).await, learnt);
}

/// Changes a byte of this text in the one file of the folder that has it.
fn damage(folder: &std::path::Path, text: &str) {
    let mut changed = 0;
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
                continue;
            }
            let mut bytes = std::fs::read(&path).unwrap();
            if let Some(at) = bytes.windows(text.len()).position(|part| part == text.as_bytes()) {
                bytes[at] ^= 1;
                std::fs::write(&path, bytes).unwrap();
                changed += 1;
            }
        }
    }
    assert_eq!(changed, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_damaged_request_gets_an_error_and_those_beside_it_leave() {
    let provider = sim().build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let daemon = Daemon::start(&server.url(), BY_HAND).await;
    let before = daemon.ticket("stands before it").await;
    let hit = daemon.ticket("the disk loses a bit of this").await;
    let after = daemon.ticket("stands after it").await;
    let folder = daemon.stop().await;
    damage(folder.path(), "the disk loses a bit of this");
    let daemon = Daemon::start_in(folder, &server.url(), BY_HAND).await;
    daemon.wait_for_waiting(3).await;
    daemon.flush().await;
    let lost = daemon.redeem(&hit).await;
    assert_eq!(lost.error(), (500, "request_damaged"));
    let said = lost.body["error"]["message"].as_str().unwrap();
    assert!(said.contains("Hand it in again") && said.contains("backup"), "{said}");
    assert!(daemon.redeem(&before).await.is_to(&before));
    assert!(daemon.redeem(&after).await.is_to(&after));
    assert_eq!(provider.bill().requests(Mode::Batch), 2);
}
