//! A backend that fails again and again is left alone, tried now and then, and used again when it is well.

use std::time::{Duration, Instant};

use http::StatusCode;
use provider_sim::{
    BatchFault, Endpoint, Fault, Faults, HttpRule, ItemFault, ItemRule, Mode, Server, Target, TargetGroup,
};
use serde_json::json;

use crate::jobs::{by_id, lines};
use crate::rig::{CHAT, Daemon, MODEL, Rig, Ticket, chat, eventually, send, sim};

const OTHER_MODEL: &str = "gpt-5-mini";

/// Every real-time call is answered with this status.
fn answering(status: u16) -> Faults {
    refusing(Fault::Status { status, retry_after_ms: None })
}

fn refusing(fault: Fault) -> Faults {
    let rule = HttpRule {
        on: Target::Group(TargetGroup::Realtime),
        fault,
        probability: 1.0,
        from_ms: None,
        until_ms: None,
    };
    Faults { http: vec![rule], ..Faults::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_rests_also_over_a_restart_and_is_tried_again() {
    let settings = "[breaker]\nfailures = 3\nrest = \"10s\"";
    let provider = sim().faults(answering(500)).build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let daemon = Daemon::start(&server.url(), settings).await;
    for n in 0..3 {
        assert_eq!(
            daemon.ask(MODEL, &format!("question {n}")).await.status,
            StatusCode::INTERNAL_SERVER_ERROR
        );
    }
    let refused = daemon.ask(MODEL, "one more").await;
    assert_eq!(refused.error(), (503, "backend_out_of_order"));
    assert!(!refused.header("retry-after").is_empty());
    assert_eq!(provider.calls(Endpoint::ChatCompletions), 3, "nothing was sent");
    assert_eq!(daemon.metric("offpeak_breaker_open", "realtime").await, 1);
    let daemon = daemon.restart(&server.url(), settings).await;
    assert_eq!(daemon.ask(MODEL, "after a restart").await.error(), (503, "backend_out_of_order"));
    provider.faults().set(Faults::default());
    eventually("it is used again", async || {
        (daemon.ask(MODEL, "well again").await.status == StatusCode::OK).then_some(())
    })
    .await;
    assert_eq!(daemon.metric("offpeak_breaker_open", "realtime").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_callers_own_errors_are_no_failures_of_the_backend() {
    let rig = Rig::start(sim().faults(answering(400)), "[breaker]\nfailures = 2").await;
    for n in 0..5 {
        assert_eq!(rig.daemon.ask(MODEL, &format!("question {n}")).await.status, StatusCode::BAD_REQUEST);
    }
    assert_eq!(rig.provider.calls(Endpoint::ChatCompletions), 5);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_without_room_is_followed_by_the_next_offer() {
    let faults = Faults { flex_unavailable: 1.0, ..Faults::default() };
    let settings = "[backends.simulated]\nconfig.flex = true";
    let rig = Rig::start(sim().faults(faults), settings).await;
    let answer = rig.daemon.defer("search", MODEL, "in ten minutes", "10m").await;
    assert!(answer.answers(MODEL, "in ten minutes"), "{answer:?}");
    assert_eq!((rig.provider.calls(Endpoint::ChatCompletions), rig.billed(Mode::Realtime)), (2, 1));
    assert_eq!(rig.daemon.metric("offpeak_offer_without_room_total", "").await, 1);
    rig.provider.faults().set(Faults::default());
    let answer = rig.daemon.defer("search", MODEL, "with room", "10m").await;
    assert!(answer.answers(MODEL, "with room"), "{answer:?}");
    assert_eq!((rig.billed(Mode::Flex), rig.billed(Mode::Realtime)), (1, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn batches_rest_too_and_one_at_a_time_tries_whether_the_backend_is_well() {
    let settings =
        "[lanes]\nlinger = \"50ms\"\n[breaker]\nfailures = 2\nrest = \"1s\"\n[retry]\nmax_attempts = 50";
    let fault = ItemFault::Status { status: 500 };
    let rule =
        ItemRule { fault, probability: 1.0, custom_id: None, body: Some("fragile".to_owned()), times: None };
    let rig = Rig::start(sim().faults(Faults { items: vec![rule], ..Faults::default() }), settings).await;
    let provider = rig.provider.clone();
    let batches = || provider.calls(Endpoint::CreateBatch);
    let mut tickets = vec![rig.daemon.ticket("fragile").await];
    eventually("the breaker opens", async || {
        (rig.daemon.metric("offpeak_breaker_open", "mode=\"batch\"").await == 1).then_some(())
    })
    .await;
    assert_eq!(batches(), 2);
    // A restart changes nothing about that, nor does work of other kinds, of which each would be a batch of its own.
    let daemon = rig.daemon.restart(&rig.upstream, settings).await;
    assert_eq!(daemon.metric("offpeak_breaker_open", "mode=\"batch\"").await, 1);
    for model in [OTHER_MODEL, "gpt-4o"] {
        let answer = daemon.defer("search", model, "fragile", "24h").await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        let location = answer.header("location").to_owned();
        tickets.push(Ticket { prompt: "fragile".to_owned(), tenant: "search", location });
    }
    eventually("one tries it", async || (batches() >= 3).then_some(())).await;
    let tried = Instant::now();
    assert_eq!(batches(), 3, "and no more than one");
    eventually("another one tries it", async || (batches() >= 4).then_some(())).await;
    assert!(
        tried.elapsed() > Duration::from_millis(700),
        "that failed, so it rests longer: {:?}",
        tried.elapsed()
    );
    provider.faults().set(Faults::default());
    for ticket in &tickets {
        assert_eq!(daemon.redeem(ticket).await.status, StatusCode::OK);
    }
    assert_eq!(daemon.metric("offpeak_breaker_open", "").await, 0);
    assert_eq!((provider.bill().requests(Mode::Batch), provider.bill().executions.repeated().len()), (3, 0));
}

/// While every real-time call is refused, many urgent requests make few calls; after that, each is answered and paid once.
/// `calls` says how many there may be after so many milliseconds.
async fn storm(fault: Fault, calls: impl Fn(u64) -> u64) {
    const URGENT: u64 = 40;
    let settings = "[backends.simulated]\nlanes = { max_running = 1, rescue_concurrency = 4 }\n\
                    config.batch_usual = \"2s\"\n\
                    [breaker]\nfailures = 4\nrest = \"500ms\"\nrest_max = \"500ms\"\n[retry]\nmax_attempts = 50";
    let rig = Rig::start(sim(), settings).await;
    rig.provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 20 * 3_600_000 }]);
    rig.daemon.ticket("takes the only place").await;
    eventually("the first batch is made", async || (rig.batches() == 1).then_some(())).await;
    rig.provider.faults().set(refusing(fault));
    let started = Instant::now();
    let mut tickets = Vec::new();
    for n in 0..URGENT {
        tickets.push(rig.daemon.ticket_of("search", &format!("urgent {n}"), "5m").await);
    }
    let made = || rig.provider.calls(Endpoint::ChatCompletions);
    eventually("it has been tried now and then", async || (made() >= 12).then_some(())).await;
    let (made, elapsed) = (made(), u64::try_from(started.elapsed().as_millis()).unwrap());
    assert!(made <= calls(elapsed), "{made} calls after {elapsed} ms");
    rig.provider.faults().set(Faults::default());
    rig.all_answered(&tickets).await;
    assert_eq!((rig.billed(Mode::Realtime), rig.ran_twice()), (URGENT, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_5xx_is_not_multiplied() {
    // Until it opens, and those that were under way then; one a rest after that.
    storm(Fault::Status { status: 502, retry_after_ms: None }, |elapsed| 4 + 4 + elapsed / 500 + 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_storm_of_429_is_not_multiplied() {
    // As many as may be under way at once; after that, nobody calls before the provider wants to be called again.
    storm(Fault::Status { status: 429, retry_after_ms: Some(1000) }, |elapsed| 4 + 4 * (elapsed / 1000))
        .await;
}

const ROUTES: &str = "[breaker]\nfailures = 2\nrest = \"1h\"\nrest_max = \"1h\"\n\
                      [routes.minis]\nmodels = [\"*-mini\"]\n[routes.minis.answer]\nstatus = 203\n\
                      body = '{ \"choices\": [] }'\nstream = \"data: [DONE]\"\n";

/// A model that the route does not name.
const PLAIN: &str = "gpt-4o";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_it_rests_calls_get_the_answer_of_their_route() {
    let rig = Rig::start(sim().faults(answering(500)), ROUTES).await;
    for _ in 0..2 {
        let answer = rig.daemon.ask(MODEL, "it fails").await;
        assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "what failed is told as it was");
    }
    let answer = rig.daemon.ask(MODEL, "and is left alone").await;
    assert_eq!((answer.status.as_u16(), &answer.body), (203, &json!({ "choices": [] })));
    assert_eq!(answer.header("x-offpeak-mode"), "fallback");
    assert!(!answer.header("x-offpeak-request-id").is_empty());
    let mut body = chat(MODEL, "in pieces");
    body["stream"] = true.into();
    let streamed = rig.daemon.post(CHAT, &body).send().await.unwrap();
    assert_eq!(streamed.headers()["content-type"], "text/event-stream");
    assert_eq!(streamed.text().await.unwrap(), "data: [DONE]\n\n");
    assert_eq!(rig.daemon.ask(PLAIN, "of no route").await.error(), (503, "backend_out_of_order"));
    assert_eq!(rig.provider.calls(Endpoint::ChatCompletions), 2);
    assert_eq!(rig.daemon.metric("offpeak_requests_total", "mode=\"fallback\"").await, 2);
    // What can wait waits, and batches are in order.
    let ticket = rig.daemon.ticket("later").await;
    rig.all_answered(&[ticket]).await;
}

/// The only place for batches is taken, so that what is due soon is run in real time.
async fn without_a_place(faults: Faults, settings: &str) -> Rig {
    let settings =
        format!("{settings}\n[backends.simulated]\nconfig.batch_usual = \"2s\"\nlanes.max_running = 1\n");
    let rig = Rig::start(sim(), &settings).await;
    rig.provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 20 * 3_600_000 }]);
    rig.daemon.defer("mail", PLAIN, "takes the only place", "24h").await;
    eventually("the first batch is made", async || (rig.batches() == 1).then_some(())).await;
    rig.provider.faults().set(faults);
    rig
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deferred_work_gets_the_answer_of_its_route_at_its_deadline_and_not_before() {
    let rig = without_a_place(answering(500), ROUTES).await;
    for _ in 0..2 {
        rig.daemon.ask(MODEL, "it fails").await;
    }
    let begun = Instant::now();
    let job = rig.daemon.submit(lines(5, "of a job"), "8s").await;
    let ticket = rig.daemon.ticket_of("search", "of its own", "8s").await;
    let ours = json!({ "choices": [] });
    let answer = rig.daemon.redeem(&ticket).await;
    let after = begun.elapsed();
    assert_eq!((answer.status.as_u16(), &answer.body), (203, &ours));
    assert_eq!((answer.header("x-offpeak-mode"), answer.header("x-offpeak-attempts")), ("fallback", "0"));
    assert!(after > Duration::from_secs(6) && after < Duration::from_secs(9), "{after:?}");
    let done = rig.daemon.job_is(&job, "completed").await;
    let answers = by_id(rig.daemon.content(&done["output_file_id"]).await);
    assert_eq!(answers.len(), 5);
    assert!(answers.values().all(|line| line["response"]["status_code"] == 203), "{answers:?}");
    assert!(answers.values().all(|line| line["response"]["body"] == ours), "{answers:?}");
    assert_eq!(done["offpeak_cost"]["cost_usd"], "0", "{done}");
    assert_eq!(rig.provider.calls(Endpoint::ChatCompletions), 2, "nothing was sent");
    assert_eq!(rig.daemon.metric("offpeak_requests_total", "mode=\"fallback\"").await, 6);
    let id = ticket.location.rsplit('/').next().unwrap();
    let told = rig.daemon.admin(&format!("/admin/v1/explain/{id}")).await.body.to_string();
    assert!(told.contains("got the answer of its route"), "{told}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_long_pause_before_the_next_attempt_does_not_make_that_answer_late() {
    let settings =
        format!("{}\n[retry]\nbase = \"1m\"\ncap = \"1m\"", ROUTES.replace("failures = 2", "failures = 1"));
    let rig = without_a_place(answering(500), &settings).await;
    let begun = Instant::now();
    let ticket = rig.daemon.ticket_of("search", "fails once", "6s").await;
    let answer = rig.daemon.redeem(&ticket).await;
    assert!(begun.elapsed() < Duration::from_secs(8), "{:?}", begun.elapsed());
    assert_eq!((answer.header("x-offpeak-mode"), answer.header("x-offpeak-attempts")), ("fallback", "1"));
    assert_eq!(rig.provider.calls(Endpoint::ChatCompletions), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_well_again_before_the_deadline_answers_itself() {
    let settings = ROUTES.replace("1h", "1s");
    let rig = without_a_place(answering(500), &settings).await;
    for _ in 0..2 {
        rig.daemon.ask(MODEL, "it fails").await;
    }
    let ticket = rig.daemon.ticket_of("search", "patient", "20s").await;
    rig.provider.faults().set(Faults::default());
    rig.all_answered(&[ticket]).await;
    assert_eq!(rig.daemon.metric("offpeak_requests_total", "mode=\"fallback\"").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_urgent_is_run_at_the_next_backend_while_its_own_takes_no_calls() {
    let other = sim().build();
    let server = Server::on_free_port(other.clone()).await.unwrap();
    let settings = format!(
        "[backends.zweite]\nbase_url = \"{}\"\napi_key = {{ env = \"PROVIDER_KEY\" }}\nmodels = [\"*\"]\n\
         config = {{ poll_ms = 30, poll_max_ms = 60, batch_usual = \"2s\" }}\n\
         [breaker]\nfailures = 2\nrest = \"1h\"\nrest_max = \"1h\"\n[retry]\nmax_attempts = 3\n\
         [routes.own]\ntenants = [\"mail\"]\nelsewhere = false",
        server.url()
    );
    let rig = without_a_place(answering(500), &settings).await;
    // The first ones open the breaker: what is tried a third time is tried there.
    let mut tickets = Vec::new();
    for n in 0..4 {
        tickets.push(rig.daemon.ticket_of("search", &format!("urgent {n}"), "10s").await);
    }
    rig.all_answered(&tickets).await;
    assert_eq!(rig.billed(Mode::Realtime), 0);
    assert_eq!(other.bill().requests(Mode::Realtime) + other.bill().requests(Mode::Batch), 4);
    let later = rig.daemon.ticket_of("search", "when it is known", "10s").await;
    let calls = rig.provider.calls(Endpoint::ChatCompletions);
    rig.all_answered(&[later]).await;
    assert_eq!(rig.provider.calls(Endpoint::ChatCompletions), calls, "its own was not asked");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_may_have_calls_wait_for_the_backend() {
    let settings =
        "[breaker]\nfailures = 1\nrest = \"1s\"\n[routes.minis]\nmodels = [\"*-mini\"]\nwait = \"50s\"";
    let rig = Rig::start(sim().faults(answering(500)), settings).await;
    rig.daemon.ask(MODEL, "it fails").await;
    rig.provider.faults().set(Faults::default());
    let (patient, other) =
        tokio::join!(rig.daemon.ask(MODEL, "patient"), rig.daemon.ask(PLAIN, "of no route"));
    assert!(patient.answers(MODEL, "patient"), "{patient:?}");
    assert_eq!(other.error(), (503, "backend_out_of_order"));
    assert_eq!(rig.provider.calls(Endpoint::ChatCompletions), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_route_may_keep_requests_at_their_backend() {
    let other = sim().build();
    let server = Server::on_free_port(other.clone()).await.unwrap();
    let settings = format!(
        "[backends.zweite]\nbase_url = \"{}\"\napi_key = {{ env = \"PROVIDER_KEY\" }}\nmodels = [\"*\"]\n\
         [breaker]\nfailures = 1\nrest = \"1h\"\nrest_max = \"1h\"\n[routes.own]\ntenants = [\"mail\"]\nelsewhere = false",
        server.url()
    );
    let rig = Rig::start(sim().faults(answering(500)), &settings).await;
    rig.daemon.ask(MODEL, "it fails").await;
    assert!(rig.daemon.ask(MODEL, "elsewhere").await.answers(MODEL, "elsewhere"));
    let kept = send(rig.daemon.post_as("mail", CHAT, &chat(MODEL, "here"))).await;
    assert_eq!(kept.error(), (503, "backend_out_of_order"));
    assert_eq!(
        (other.bill().requests(Mode::Realtime), rig.provider.calls(Endpoint::ChatCompletions)),
        (1, 1)
    );
}
