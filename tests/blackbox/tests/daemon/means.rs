//! What tenants have to spend on what can wait: so much a minute, and so much money. What is beyond that waits, and nothing
//! is lost.

use std::time::{Duration, Instant};

use http::Method;
use offpeak_core::words::Timestamp;
use offpeak_store::{Options, Store};
use provider_sim::{Mode, Server, answer};
use serde_json::{Value, json};

use crate::jobs::lines;
use crate::rig::{BY_HAND, Daemon, MODEL, Rig, eventually, send, sim};
use crate::tenants::{admin, ask_with, create, hand_in};

/// What is said of a lane: why, and what comes next.
async fn explained(daemon: &Daemon, lane: &Value) -> String {
    daemon.admin(&format!("/admin/v1/explain/{}", lane["id"])).await.body["next"].to_string()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_beyond_the_rate_is_queued_and_paced() {
    let settings = "[tenants.search.deferred]\nrequests_per_minute = 600\nburst = \"1s\"";
    let rig = Rig::start(sim(), settings).await;
    let started = Instant::now();
    let tickets = rig.daemon.tickets(15, |n| format!("paced {n}")).await;
    let job = rig.daemon.submit(lines(10, "of a job"), "24h").await;
    let told = eventually("somebody is told that it is paced", async || {
        for lane in rig.daemon.lanes().await {
            let told = explained(&rig.daemon, &lane).await;
            if told.contains("in a minute") {
                return Some(told);
            }
        }
        None
    })
    .await;
    assert!(told.contains("next portion"), "{told}");
    let other = rig.daemon.ticket_of("mail", "not paced", "24h").await;
    assert!(rig.daemon.ask(MODEL, "nor is real time").await.status.is_success());
    rig.all_answered(&[other]).await;
    rig.all_answered(&tickets).await;
    rig.daemon.job_is(&job, "completed").await;
    // 25 requests: 10 at once, and 10 a second.
    let took = started.elapsed();
    assert!(took >= Duration::from_millis(1500), "{took:?}");
    assert_eq!((rig.billed(Mode::Batch), rig.ran_twice()), (26, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_keys_own_rate_holds_for_all_that_it_hands_in_and_for_nobody_else() {
    let rig = Rig::start(sim(), "").await;
    let slow = json!({ "tenant": "search", "deferred": { "requests_per_minute": 1 } });
    let (id, key) = create(&rig.daemon, slow).await;
    for _ in 0..3 {
        assert_eq!(ask_with(&rig.daemon, &key, MODEL, Some("24h")).await.0, 202);
    }
    // A job of two and a background response.
    assert!(hand_in(&rig.daemon, &key).await.iter().all(|(status, _)| *status == 200));
    let other = rig.daemon.ticket_of("search", "with another key", "24h").await;
    rig.all_answered(&[other]).await;
    eventually("one has left", async || (rig.daemon.waiting().await == 5).then_some(())).await;

    let path = format!("/admin/v1/keys/{id}/rotate");
    let (_, made) = admin(&rig.daemon, Method::POST, &path, &json!({})).await;
    let next = made["key"].as_str().unwrap();
    assert_eq!(ask_with(&rig.daemon, next, MODEL, Some("24h")).await.0, 202);
    eventually("it waits behind the others", async || (rig.daemon.waiting().await == 6).then_some(())).await;
    let lanes = rig.daemon.lanes().await;
    let waiting = lanes.iter().filter(|lane| lane["waiting_requests"] != 0);
    assert!(
        waiting.clone().count() > 0 && waiting.clone().all(|lane| lane["api_key"] == id.as_str()),
        "{lanes:?}"
    );
    let wrong = json!({ "tenant": "search", "deferred": { "requests": 1 } });
    assert_eq!(admin(&rig.daemon, Method::POST, "/admin/v1/keys", &wrong).await.0, 400);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rate_is_changed_without_a_restart() {
    let slow = "[tenants.search.deferred]\nrequests_per_minute = 1\nburst = \"1m\"";
    let rig = Rig::start(sim(), slow).await;
    let tickets = rig.daemon.tickets(5, |n| format!("slow {n}")).await;
    eventually("one has left", async || (rig.daemon.waiting().await == 4).then_some(())).await;
    rig.daemon.reload(&rig.upstream, "").await;
    rig.all_answered(&tickets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deferred_work_spends_no_more_than_a_hard_budget_and_the_rest_waits() {
    let provider = sim().build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    // By the longest answers that are expected at first, 13 requests.
    let settings = "[tenants.search.budget]\nday_usd = \"0.002\"\n[lanes]\nlinger = \"50ms\"";
    let daemon = Daemon::start(&server.url(), settings).await;
    // Estimates are moving averages of what answers took, which lie beside what the next ones take by as much as answers
    // differ. These are all of one length, so that the budget shows and not their spread.
    let prompt = |n: usize| format!("the budget is small {n:05}");
    let length = |prompt: &String| answer(MODEL, prompt, None).tokens;
    let usual = length(&prompt(0));
    let prompts: Vec<String> = (0..).map(prompt).filter(|prompt| length(prompt) == usual).take(400).collect();
    let tickets = daemon.tickets(400, |n| prompts[n].clone()).await;
    let is_waiting = async |daemon: &Daemon| {
        let lanes = daemon.lanes().await;
        let waits = lanes.iter().find(|lane| lane["waiting_requests"] != json!(0))?.clone();
        explained(daemon, &waits).await.contains("budget").then_some(())
    };
    eventually("the rest waits for money", async || is_waiting(&daemon).await).await;
    let daemon = daemon.restart(&server.url(), settings).await;
    let (mut before, mut looks) = (0, 0);
    eventually("nothing more leaves", async || {
        is_waiting(&daemon).await?;
        let under_way = daemon.admin("/admin/v1/batches").await.body["data"].as_array()?.len();
        let answered = provider.bill().requests(Mode::Batch);
        let is_still = under_way == 0 && answered == before && answered > 20;
        before = answered;
        looks = if is_still { looks + 1 } else { 0 };
        (looks > 10).then_some(())
    })
    .await;
    let billed = provider.bill().total().0;
    assert!((1_000_000_000..=2_000_000_000).contains(&billed), "{billed} of 2,000,000,000");
    assert!(daemon.waiting().await > 100);
    daemon
        .reload(&server.url(), "[tenants.search.budget]\nday_usd = \"10\"\n[lanes]\nlinger = \"50ms\"")
        .await;
    for ticket in &tickets {
        assert!(daemon.redeem(ticket).await.is_to(ticket));
    }
    assert_eq!(provider.bill().executions.repeated().len(), 0);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_budget_does_not_pay_for_in_time_gets_an_error_that_says_so() {
    let rig = Rig::start(sim(), &format!("{BY_HAND}\n[tenants.search.budget]\nday_usd = \"0.00001\"")).await;
    let ask = async |window: &str, input: &str| {
        let options = json!({ "completion_window": window });
        let body =
            json!({ "model": MODEL, "input": input, "background": true, "background_options": options });
        let made = send(rig.daemon.post("/v1/responses", &body)).await;
        assert_eq!(made.status.as_u16(), 200, "{made:?}");
        made.body["id"].as_str().unwrap().to_owned()
    };
    let (due, patient) = (ask("2s", "due soon").await, ask("24h", "there is time").await);
    let look =
        async |id: &str| send(rig.daemon.call("search", Method::GET, &format!("/v1/responses/{id}"))).await;
    let ended = eventually("it is given up", async || {
        let answer = look(&due).await;
        (answer.body["status"] != "queued" && answer.body["status"] != "in_progress").then_some(answer)
    })
    .await;
    assert_eq!(ended.body["status"], "failed", "{ended:?}");
    assert!(ended.body["error"]["message"].as_str().unwrap().contains("budget"), "{ended:?}");
    assert_eq!(look(&patient).await.body["status"], "queued");
    assert_eq!(rig.provider.bill().total().0, 0);
    // And for good: a start finds only the one that has time.
    let folder = rig.daemon.stop().await;
    let (_, found) = Store::open(Options::new(folder.path().join("data")), Timestamp(0)).unwrap();
    let waiting: u32 = found.lanes.iter().flat_map(|lane| &lane.extents).map(|extent| extent.count).sum();
    assert_eq!((waiting, found.open_batches.len()), (1, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_models_have_a_rate_of_their_own() {
    let slow =
        "[tenants.search.model_limits.mini]\nmodels = [\"*-mini\"]\ndeferred = { requests_per_minute = 1 }";
    let rig = Rig::start(sim(), slow).await;
    let tickets = rig.daemon.tickets(3, |n| format!("of a slow model {n}")).await;
    let other = rig.daemon.defer("search", "gpt-4o", "of another", "24h").await;
    let location = other.header("location").to_owned();
    eventually("the other model's is answered", async || {
        let answer = send(rig.daemon.call("search", Method::GET, &location)).await;
        answer.answers("gpt-4o", "of another").then_some(())
    })
    .await;
    eventually("one has left", async || (rig.daemon.waiting().await == 2).then_some(())).await;
    rig.daemon.reload(&rig.upstream, "").await;
    rig.all_answered(&tickets).await;
}
