//! What follows from a failed attempt: as the retry policy says, within what the configuration allows.

use http::StatusCode;
use offpeak_guests::retry;
use provider_sim::{Endpoint, Fault, Faults, ItemFault, ItemRule, Mode, Provider, Server};
use tempfile::TempDir;

use crate::rig::{BY_HAND, Daemon, Rig, Ticket, eventually, sim};

/// Items with this word in them fail so often in batches.
fn failing(word: &str, status: u16, times: u32) -> Faults {
    let fault = ItemFault::Status { status };
    let body = Some(word.to_owned());
    let rule = ItemRule { fault, probability: 1.0, custom_id: None, body, times: Some(times) };
    Faults { items: vec![rule], ..Faults::default() }
}

/// The retry policy of the guests, and whatever else is set.
fn with_policy(more: &str) -> (TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("retry.wasm");
    std::fs::write(&path, retry::COMPONENT).unwrap();
    let file = toml::Value::from(path.to_str().unwrap());
    (folder, format!("{BY_HAND}\n[plugins.retry_policy]\nfile = {file}\ntime_limit = \"300ms\"\n{more}"))
}

async fn ticket(daemon: &Daemon, model: &str, prompt: &str) -> Ticket {
    let answer = daemon.defer("search", model, prompt, "24h").await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
    let location = answer.header("location").to_owned();
    Ticket { prompt: prompt.to_owned(), tenant: "search", location }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_given_up_is_given_up_and_a_policy_that_fails_is_stood_in_for() {
    let (_folder, settings) = with_policy("");
    let models = [retry::PERMANENT, retry::PANIC, retry::LOOP];
    let rig = Rig::start(sim().models(models).faults(failing("fragile", 500, 1)), &settings).await;
    let mut tickets = Vec::new();
    for model in models {
        tickets.push((model, ticket(&rig.daemon, model, &format!("fragile {model}")).await));
    }
    rig.daemon.flush().await;
    let (_, given_up) = &tickets[0];
    assert_eq!(rig.daemon.redeem(given_up).await.status, StatusCode::INTERNAL_SERVER_ERROR);
    // The bundled policy finds that a 500 passes.
    rig.daemon.wait_for_waiting(2).await;
    rig.daemon.flush().await;
    for (model, ticket) in &tickets[1..] {
        let answer = rig.daemon.redeem(ticket).await;
        assert!(answer.answers(model, &ticket.prompt), "{model}: {answer:?}");
        assert_eq!(answer.header("x-offpeak-attempts"), "2");
    }
    assert_eq!(rig.daemon.metric("offpeak_plugin_errors_total", "plugin=\"retry-policy\"").await, 2);
    let plugins = rig.daemon.admin("/admin/v1/plugins").await.body;
    let roles = plugins["data"].as_array().unwrap().iter();
    assert_eq!(roles.filter(|row| row["role"] == "retry-policy").count(), 2, "{plugins}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_may_have_the_next_attempt_made_in_real_time() {
    let (_folder, settings) = with_policy("");
    let sim = sim().models([retry::RUN_NOW]).faults(failing("fragile", 500, 1));
    let rig = Rig::start(sim, &settings).await;
    let ticket = ticket(&rig.daemon, retry::RUN_NOW, "fragile").await;
    rig.daemon.flush().await;
    let answer = rig.daemon.redeem(&ticket).await;
    assert!(answer.answers(retry::RUN_NOW, "fragile"), "{answer:?}");
    assert_eq!((rig.billed(Mode::Realtime), rig.billed(Mode::Batch), rig.batches()), (1, 0, 1));
}

/// A second provider, and the settings that make it the next backend.
async fn second(provider: Provider) -> (provider_sim::Handle, String) {
    let server = Server::on_free_port(provider).await.unwrap();
    let settings = format!(
        "[backends.zweite]\nprovider = \"openai\"\nbase_url = \"{}\"\napi_key = {{ env = \"PROVIDER_KEY\" }}\n\
         models = [\"*\"]\nconfig = {{ poll_ms = 30, poll_max_ms = 60 }}\n",
        server.url()
    );
    (server, settings)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_policy_may_send_it_to_the_next_backend() {
    let models = [retry::ELSEWHERE];
    let other = sim().models(models).build();
    let (_server, more) = second(other.clone()).await;
    let (_folder, settings) = with_policy(&more);
    let rig = Rig::start(sim().models(models).faults(failing("fragile", 500, 9)), &settings).await;
    let ticket = ticket(&rig.daemon, retry::ELSEWHERE, "fragile").await;
    rig.daemon.flush().await;
    eventually("it waits for the other backend", async || {
        rig.daemon
            .lanes()
            .await
            .iter()
            .any(|lane| lane["backend"] == "zweite" && lane["waiting_requests"] == 1)
            .then_some(())
    })
    .await;
    rig.daemon.flush().await;
    assert!(rig.daemon.redeem(&ticket).await.answers(retry::ELSEWHERE, "fragile"));
    assert_eq!((rig.billed(Mode::Batch), other.bill().requests(Mode::Batch)), (0, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_without_means_is_not_hammered_and_the_next_backend_is_asked() {
    let other = sim().build();
    let (_server, more) = second(other.clone()).await;
    let rig = Rig::start(sim(), &format!("{BY_HAND}\n{more}")).await;
    let code = "insufficient_quota".to_owned();
    rig.provider.faults().next_batch(vec![provider_sim::BatchFault::FailValidation { code }]);
    let tickets = rig.daemon.tickets(5, |n| format!("question {n}")).await;
    rig.daemon.flush().await;
    eventually("they wait for the other backend", async || {
        rig.daemon
            .lanes()
            .await
            .iter()
            .any(|lane| lane["backend"] == "zweite" && lane["waiting_requests"] == 5)
            .then_some(())
    })
    .await;
    rig.daemon.flush().await;
    let answers = rig.all_answered(&tickets).await;
    assert!(answers.iter().all(|answer| answer.header("x-offpeak-attempts") == "1"), "{answers:?}");
    assert_eq!((rig.batches(), other.bill().requests(Mode::Batch)), (1, 5));
}

/// The only place for a batch is taken, so that what is urgent is rescued.
async fn rescues_only(settings: &str) -> Rig {
    let lanes = "[backends.simulated]\nconfig.batch_usual = \"2s\"\nlanes.max_running = 1";
    let rig = Rig::start(sim(), &format!("{lanes}\n{settings}")).await;
    rig.provider.faults().next_batch(vec![provider_sim::BatchFault::Turnaround { ms: 20 * 3_600_000 }]);
    rig.daemon.ticket("can wait").await;
    eventually("the first batch is made", async || (rig.batches() == 1).then_some(())).await;
    rig
}

async fn explained(rig: &Rig, ticket: &Ticket) -> serde_json::Value {
    let id = ticket.location.rsplit('/').next().unwrap();
    rig.daemon.admin(&format!("/admin/v1/explain/{id}")).await.body
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pause_of_an_hour_makes_nobody_late() {
    let rig = rescues_only("").await;
    let fault = Fault::Status { status: 429, retry_after_ms: Some(3_600_000) };
    rig.provider.faults().next(Endpoint::ChatCompletions, fault);
    let tickets = [
        rig.daemon.ticket_of("search", "told to wait", "20s").await,
        rig.daemon.ticket_of("mail", "waits with it", "20s").await,
    ];
    let told = eventually("the operator hears of the failure", async || {
        let told = [explained(&rig, &tickets[0]).await, explained(&rig, &tickets[1]).await];
        told.into_iter().find(|told| told.to_string().contains("answered with 429"))
    })
    .await;
    assert_eq!(told["state"], "in_realtime", "{told}");
    let next = told["next"][0]["in_ms"].as_u64().unwrap();
    assert!(next <= 5_000, "it is tried again before its deadline: {told}");
    rig.all_answered(&tickets).await;
    assert_eq!((rig.billed(Mode::Realtime), rig.ran_twice()), (2, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn some_bad_seconds_do_not_use_up_what_a_rescue_has() {
    let rig = rescues_only("[retry]\nmax_attempts = 3\nbase = \"10ms\"\ncap = \"1h\"").await;
    for _ in 0..2 {
        rig.provider
            .faults()
            .next(Endpoint::ChatCompletions, Fault::Status { status: 503, retry_after_ms: None });
    }
    let ticket = rig.daemon.ticket_of("search", "urgent", "18s").await;
    let waits = eventually("its last attempt waits", async || {
        let told = explained(&rig, &ticket).await;
        (told["why"].as_array()?.iter().filter(|why| why.to_string().contains("503")).count() == 2)
            .then_some(told)
    })
    .await;
    assert_eq!(waits["state"], "in_realtime", "{waits}");
    assert!(waits["next"][0]["in_ms"].as_u64().unwrap() > 1_000, "{waits}");
    let answers = rig.all_answered(&[ticket]).await;
    assert_eq!(answers[0].header("x-offpeak-attempts"), "3");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_cancelled_between_two_tries_has_them_on_record() {
    let rig = rescues_only("[retry]\nmax_attempts = 3\nbase = \"10ms\"\ncap = \"1h\"").await;
    for _ in 0..2 {
        rig.provider
            .faults()
            .next(Endpoint::ChatCompletions, Fault::Status { status: 503, retry_after_ms: None });
    }
    let ticket = rig.daemon.ticket_of("search", "urgent", "18s").await;
    eventually("its last attempt waits", async || {
        let told = explained(&rig, &ticket).await;
        (told["why"].as_array()?.iter().filter(|why| why.to_string().contains("503")).count() == 2)
            .then_some(())
    })
    .await;
    rig.daemon.delete(&ticket.location).await;
    let cancelled = rig.daemon.get(&ticket.location).await;
    assert_eq!(cancelled.status, http::StatusCode::CONFLICT, "{cancelled:?}");
    assert_eq!(cancelled.header("x-offpeak-attempts"), "2", "{cancelled:?}");
    assert_eq!(rig.billed(Mode::Realtime), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rescues_go_through_a_storm_of_429_and_5xx() {
    let settings = "[backends.simulated]\nconfig.batch_usual = \"2s\"\nlanes.max_running = 1\nlanes.rescue_concurrency = 4\n\
                    [retry]\nmax_attempts = 9\n[breaker]\nfailures = 4\nrest = \"100ms\"";
    let rig = Rig::start(sim(), settings).await;
    rig.provider.faults().next_batch(vec![provider_sim::BatchFault::Turnaround { ms: 20 * 3_600_000 }]);
    rig.daemon.ticket("can wait").await;
    eventually("the first batch is made", async || (rig.batches() == 1).then_some(())).await;
    for n in 0..40 {
        let status = [429, 503, 500, 529, 502][n % 5];
        let fault = Fault::Status { status, retry_after_ms: None };
        rig.provider.faults().next(Endpoint::ChatCompletions, fault);
    }
    let mut tickets = Vec::new();
    for n in 0..20 {
        tickets.push(rig.daemon.ticket_of("search", &format!("urgent {n}"), "6s").await);
    }
    rig.all_answered(&tickets).await;
    assert_eq!((rig.billed(Mode::Realtime), rig.ran_twice()), (20, 0));
    let why = rig
        .daemon
        .admin(&format!("/admin/v1/explain/{}", tickets[0].location.rsplit('/').next().unwrap()))
        .await;
    assert_eq!(why.body["state"], "finished", "{why:?}");
}
