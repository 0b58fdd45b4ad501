//! Anthropic's API, from its clients through to its simulated self: real time, message batches, and the promises where a
//! batch has no name of its own.

use std::time::Duration;

use http::StatusCode;
use provider_sim::{BatchFault, Endpoint, Fault, Faults, Mode, answer};
use reqwest::{Client, RequestBuilder};
use serde_json::{Value, json};

use crate::rig::{Answer, BY_HAND, PROVIDER_KEY, Rig, Ticket, eventually, send, sim};

pub(crate) const CLAUDE: &str = "claude-haiku-5-5";
const MESSAGES: &str = "/v1/messages";
const BATCHES: &str = "/v1/messages/batches";
const VERSION: &str = "anthropic-version";

/// The backend speaks Anthropic's API, and looks for a lost creation take a fifth of a second. `backend` are further settings
/// of the backend, `rest` is TOML that stands before.
pub(crate) fn settings(rest: &str, backend: &str) -> String {
    format!(
        "{rest}\n[plugins.providers.anthropic]\ntime_limit = \"5s\"\n\
         [backends.simulated]\nprovider = \"anthropic\"\nconfig.settle_ms = 15\n{backend}\n"
    )
}

pub(crate) async fn rig(faults: Faults, rest: &str) -> Rig {
    Rig::start(sim().faults(faults), &settings(rest, "")).await
}

fn message(prompt: &str) -> Value {
    json!({"model": CLAUDE, "max_tokens": 1_000, "messages": [{"role": "user", "content": prompt}]})
}

fn said(prompt: &str) -> String {
    answer(CLAUDE, prompt, Some(1_000)).text
}

fn is_answer_to(answer: &Answer, prompt: &str) -> bool {
    answer.status == StatusCode::OK && answer.body["content"][0]["text"] == said(prompt)
}

impl Rig {
    fn message_batches(&self) -> u64 {
        self.provider.calls(Endpoint::CreateMessageBatch)
    }

    /// Deferred by a day, for a ticket.
    async fn messages(&self, count: usize, prompt: impl Fn(usize) -> String) -> Vec<Ticket> {
        let mut tickets = Vec::with_capacity(count);
        for n in 0..count {
            tickets.push(self.defer_message(&prompt(n), &message(&prompt(n)), &[]).await);
        }
        tickets
    }

    async fn defer_message(&self, prompt: &str, body: &Value, headers: &[(&str, &str)]) -> Ticket {
        let request =
            self.daemon.post(MESSAGES, body).header("x-offpeak-sla", "24h").header("prefer", "respond-async");
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        let answer = send(request).await;
        assert_eq!(answer.status, StatusCode::ACCEPTED, "{answer:?}");
        Ticket { prompt: prompt.to_owned(), tenant: "search", location: answer.header("location").to_owned() }
    }

    async fn all_messages(&self, tickets: &[Ticket]) {
        for ticket in tickets {
            let answer = self.daemon.redeem(ticket).await;
            assert!(is_answer_to(&answer, &ticket.prompt), "{ticket:?} got {answer:?}");
        }
    }

    /// Somebody else on the same account.
    fn neighbour(&self, method: http::Method, path: &str) -> RequestBuilder {
        let request =
            Client::builder().no_proxy().build().unwrap().request(method, format!("{}{path}", self.upstream));
        request.header("x-api-key", PROVIDER_KEY).header(VERSION, "2023-06-01")
    }

    async fn foreign_batch(&self, items: usize) {
        let requests: Vec<Value> = (0..items)
            .map(|n| json!({"custom_id": format!("fedcba9876543210-1-0-{n}"), "params": message(&format!("foreign {n}"))}))
            .collect();
        let made =
            send(self.neighbour(http::Method::POST, BATCHES).json(&json!({ "requests": requests }))).await;
        assert_eq!(made.status, StatusCode::OK, "{made:?}");
    }
}

// === Real time ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_passes_as_it_is() {
    let rig = rig(Faults::default(), "").await;
    let answer = send(rig.daemon.post(MESSAGES, &message("plain"))).await;
    assert!(is_answer_to(&answer, "plain"), "{answer:?}");
    assert_eq!(answer.header("x-offpeak-mode"), "realtime");
    assert!(answer.header("request-id").starts_with("req_"));
    assert_eq!(rig.billed(Mode::Realtime), 1);
    // A version of the client's own counts: this one knows no temperature.
    let mut body = message("plain");
    body["temperature"] = json!(0.5);
    let version = |version| send(rig.daemon.post(MESSAGES, &body).header(VERSION, version));
    assert_eq!(version("2023-06-01").await.status.as_u16(), 200);
    let refused = version("2026-10-21").await;
    assert_eq!(
        (refused.status.as_u16(), &refused.body["error"]["type"]),
        (400, &"invalid_request_error".into())
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_streamed_message_passes_with_all_its_events() {
    let rig = rig(Faults::default(), "").await;
    let mut body = message("streamed");
    body["stream"] = json!(true);
    let response = rig.daemon.post(MESSAGES, &body).send().await.unwrap();
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let text = response.text().await.unwrap();
    let mut events: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("event: ")).collect();
    events.dedup();
    events.retain(|event| *event != "ping");
    assert_eq!(events.first(), Some(&"message_start"), "{text}");
    assert_eq!(events[events.len() - 3..], ["content_block_stop", "message_delta", "message_stop"]);
    let parts: String = text
        .lines()
        .filter_map(|line| serde_json::from_str::<Value>(line.strip_prefix("data: ")?).ok())
        .filter_map(|event| event["delta"]["text"].as_str().map(str::to_owned))
        .collect();
    assert_eq!(parts, said("streamed"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_counted_at_once_even_where_all_can_wait() {
    let rig = rig(Faults::default(), BY_HAND).await;
    let mut body = message("count these");
    body.as_object_mut().unwrap().remove("max_tokens");
    let request = rig.daemon.post("/v1/messages/count_tokens", &body).header("x-offpeak-sla", "24h");
    let counted = send(request).await;
    assert!(counted.status == StatusCode::OK && counted.body["input_tokens"].is_u64(), "{counted:?}");
    assert_eq!(counted.header("x-offpeak-mode"), "realtime");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_change_a_requests_meaning_make_it_another_one() {
    let rig = rig(Faults::default(), BY_HAND).await;
    let call = |beta: &str| {
        let request = rig.daemon.post(MESSAGES, &message("once")).header("x-offpeak-sla", "24h");
        request.header("prefer", "respond-async").header("anthropic-beta", beta)
    };
    let place = |answer: Answer| answer.header("location").to_owned();
    let keyed = |beta: &str| call(beta).header("idempotency-key", "mine");
    let first = place(send(keyed("one")).await);
    assert_eq!(place(send(keyed("one")).await), first);
    let refused = send(keyed("two")).await;
    assert_eq!(refused.status, StatusCode::CONFLICT, "{refused:?}");

    let retry = |beta: &str| call(beta).header("x-stainless-retry-count", "1");
    assert_eq!(place(send(retry("one")).await), first, "an SDK's retry is the same call");
    assert_ne!(place(send(retry("three")).await), first);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offpeaks_own_errors_have_anthropics_form() {
    let rig = Rig::start(sim(), &settings(BY_HAND, "models = [\"claude-*\"]")).await;
    let mut other = message("x");
    other["model"] = json!("gpt-4o-mini");
    let unknown = send(rig.daemon.post(MESSAGES, &other)).await;
    assert_eq!(unknown.status.as_u16(), 404);
    assert_eq!(
        (&unknown.body["type"], &unknown.body["error"]["type"]),
        (&"error".into(), &"not_found_error".into())
    );
    assert_eq!(unknown.body["error"]["details"]["error_code"], "model_not_found");
    let id = unknown.header("x-offpeak-request-id");
    assert_eq!((unknown.header("request-id"), &unknown.body["request_id"]), (id, &id.into()));

    let nobody = send(Client::new().post(rig.daemon.url(MESSAGES)).json(&message("x"))).await;
    assert_eq!(
        (nobody.status.as_u16(), &nobody.body["error"]["type"]),
        (401, &"authentication_error".into())
    );
    let tagged = rig.daemon.post(MESSAGES, &message("x")).header("x-offpeak-sla", "soon");
    assert_eq!(send(tagged).await.body["error"]["type"], "invalid_request_error");
    let ticket = rig.defer_message("x", &message("x"), &[]).await;
    assert_eq!(rig.daemon.cancel(&ticket).await.status.as_u16(), 200);
    let cancelled = rig.daemon.look(&ticket).await;
    assert_eq!(
        (cancelled.status.as_u16(), &cancelled.body["error"]["type"]),
        (409, &"conflict_error".into())
    );
    assert_eq!(send(rig.daemon.post("/v1/chat", &other)).await.error(), (404, "unknown_endpoint"));
}

// === Deferred ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deferred_messages_go_in_one_batch_at_half_the_price() {
    let rig = rig(Faults::default(), BY_HAND).await;
    let tickets = rig.messages(20, |n| format!("half {n}")).await;
    let held = send(rig.daemon.post(MESSAGES, &message("half held")).header("x-offpeak-sla", "24h"));
    let flushed = async {
        rig.daemon.wait_for_waiting(21).await;
        rig.daemon.flush().await;
    };
    let (held, ()) = tokio::join!(held, flushed);
    assert!(is_answer_to(&held, "half held"), "{held:?}");
    assert_eq!(held.body["usage"]["service_tier"], "batch");
    rig.all_messages(&tickets).await;
    let bill = rig.provider.bill();
    let [line] = &bill.lines[..] else { panic!("{bill:?}") };
    assert_eq!((line.mode, line.requests, rig.message_batches(), rig.ran_twice()), (Mode::Batch, 21, 1, 0));
    assert_eq!(2 * line.cost.0, line.realtime_cost.0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_that_change_the_meaning_travel_and_part_lanes() {
    let rig = rig(Faults::default(), BY_HAND).await;
    let mut body = message("warm");
    body["temperature"] = json!(0.5);
    let older = rig.defer_message("warm", &body, &[]).await;
    let newer = rig.defer_message("warm", &body, &[(VERSION, "2026-10-21")]).await;
    rig.daemon.wait_for_waiting(2).await;
    rig.daemon.flush().await;
    assert!(is_answer_to(&rig.daemon.redeem(&older).await, "warm"));
    let refused = rig.daemon.redeem(&newer).await;
    assert_eq!((refused.status.as_u16(), &refused.body["type"]), (400, &"error".into()), "{refused:?}");
    assert_eq!((rig.message_batches(), rig.billed(Mode::Batch)), (2, 1));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rescue_is_sent_with_the_headers_of_its_request() {
    // One batch at a time, and the first takes (nearly) for ever.
    let rig = Rig::start(sim(), &settings("", "config.batch_usual = \"2s\"\nlanes.max_running = 1")).await;
    rig.provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 20 * 3_600_000 }]);
    rig.defer_message("patient", &message("patient"), &[]).await;
    eventually("the first batch is made", async || (rig.message_batches() == 1).then_some(())).await;
    let mut body = message("urgent");
    body["temperature"] = json!(0.5);
    let urgent = |version: &'static str| {
        let request = rig.daemon.post(MESSAGES, &body).header("x-offpeak-sla", "5s").header(VERSION, version);
        send(request)
    };
    let (older, newer) = tokio::join!(urgent("2023-06-01"), urgent("2026-10-21"));
    assert!(is_answer_to(&older, "urgent"), "{older:?}");
    assert_eq!((newer.status.as_u16(), &newer.body["type"]), (400, &"error".into()), "{newer:?}");
    assert_eq!((rig.billed(Mode::Realtime), older.header("x-offpeak-mode")), (1, "deferred"));
}

// === A creation whose fate is unknown ===

/// The work is done, and the daemon cannot know it.
const AFTER_EFFECT: [Fault; 5] = [
    Fault::DropResponseAfterEffect,
    Fault::StatusAfterEffect { status: 500 },
    Fault::Garbage,
    Fault::TruncateBody,
    Fault::CutBody,
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_whose_answer_is_lost_is_found_among_others_of_its_size() {
    let rig = rig(Faults::default(), BY_HAND).await;
    for (round, fault) in AFTER_EFFECT.into_iter().enumerate() {
        rig.provider.faults().next(Endpoint::CreateMessageBatch, fault);
        let tickets = rig.messages(3, |n| format!("{fault:?} {n}")).await;
        rig.daemon.flush().await;
        // A neighbour's batch of the same size, as near as it gets.
        eventually("it is made", async || {
            (rig.provider.faults().injected(Endpoint::CreateMessageBatch) == round as u64 + 1).then_some(())
        })
        .await;
        rig.foreign_batch(3).await;
        rig.all_messages(&tickets).await;
        let rounds = round as u64 + 1;
        assert_eq!(rig.message_batches(), 2 * rounds, "{fault:?}");
        eventually("both are billed", async || (rig.billed(Mode::Batch) == 6 * rounds).then_some(())).await;
        assert_eq!(rig.daemon.lines("taken").await, 3 * rounds, "none of the neighbour's");
    }
    assert_eq!(rig.daemon.metric("offpeak_requests_retried_total", "").await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_the_listing_shows_late_is_waited_for() {
    // 200 s of the provider's time are 0.06 s here: later than the first look, before the last.
    let rig = rig(Faults { listing_lag_ms: 200_000, ..Faults::default() }, BY_HAND).await;
    rig.provider.faults().next(Endpoint::CreateMessageBatch, Fault::DropResponseAfterEffect);
    let tickets = rig.messages(5, |n| format!("late {n}")).await;
    rig.daemon.flush().await;
    rig.all_messages(&tickets).await;
    assert_eq!((rig.message_batches(), rig.billed(Mode::Batch), rig.ran_twice()), (1, 5, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_creation_that_never_arrived_is_made_again_after_the_search() {
    let rig = rig(Faults::default(), BY_HAND).await;
    rig.foreign_batch(5).await;
    rig.provider.faults().next(Endpoint::CreateMessageBatch, Fault::DropBeforeEffect);
    let tickets = rig.messages(5, |n| format!("again {n}")).await;
    rig.daemon.flush().await;
    rig.all_messages(&tickets).await;
    assert!(rig.provider.calls(Endpoint::ListMessageBatches) >= 4, "the fence and three looks");
    eventually("both are billed", async || (rig.billed(Mode::Batch) == 10).then_some(())).await;
    assert_eq!(rig.ran_twice(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_stops_in_the_middle_of_a_creation_finds_it() {
    let mut rig = rig(Faults::default(), BY_HAND).await;
    // The answer comes only after the daemon has gone.
    rig.provider.faults().next(Endpoint::CreateMessageBatch, Fault::Slow { ms: 60_000 });
    let tickets = rig.messages(4, |n| format!("stopped {n}")).await;
    rig.daemon.flush().await;
    eventually("the creation is under way", async || (rig.message_batches() == 1).then_some(())).await;
    rig.daemon = rig.daemon.restart(&rig.upstream, &settings(BY_HAND, "")).await;
    rig.all_messages(&tickets).await;
    assert_eq!((rig.billed(Mode::Batch), rig.ran_twice()), (4, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_lost_creations_of_one_size_find_each_its_own() {
    let rig = rig(Faults::default(), BY_HAND).await;
    for _ in 0..2 {
        rig.provider.faults().next(Endpoint::CreateMessageBatch, Fault::DropResponseAfterEffect);
    }
    let mut tickets = Vec::new();
    for n in 0..6 {
        let (prompt, version) = (format!("twin {n}"), if n % 2 == 0 { "2023-06-01" } else { "2026-10-21" });
        tickets.push(rig.defer_message(&prompt, &message(&prompt), &[(VERSION, version)]).await);
    }
    rig.daemon.wait_for_waiting(6).await;
    rig.daemon.flush().await;
    rig.all_messages(&tickets).await;
    assert_eq!((rig.message_batches(), rig.billed(Mode::Batch), rig.ran_twice()), (2, 6, 0));
    assert_eq!(rig.daemon.lines("taken").await, 6);
}

// === Odd results ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lines_that_are_nobodys_or_come_twice_change_nothing() {
    let rig = rig(Faults::default(), BY_HAND).await;
    let faults = [BatchFault::OutputUnknownId, BatchFault::OutputGarbageLine, BatchFault::OutputDuplicateId];
    for (round, fault) in faults.into_iter().enumerate() {
        rig.provider.faults().next_batch(vec![fault.clone()]);
        let tickets = rig.messages(10, |n| format!("{fault:?} {n}")).await;
        rig.daemon.flush().await;
        rig.all_messages(&tickets).await;
        let ended = round as u64 + 1;
        eventually("the batch ends", async || {
            (rig.daemon.metric("offpeak_batches_ended_total", "completed").await == ended).then_some(())
        })
        .await;
    }
    let lines = async |kind| rig.daemon.lines(kind).await;
    assert_eq!((lines("garbage").await, lines("duplicate").await, lines("taken").await), (2, 1, 30));
    assert_eq!((rig.message_batches(), rig.billed(Mode::Batch), rig.ran_twice()), (3, 30, 0));
}

// === What the provider does not run ===

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_expires_goes_again_and_costs_once() {
    let rig = rig(Faults::default(), BY_HAND).await;
    rig.provider.faults().next_batch(vec![BatchFault::Stall]);
    let tickets = rig.messages(20, |n| format!("expires {n}")).await;
    rig.daemon.flush().await;
    eventually("the batch is made", async || (rig.message_batches() == 1).then_some(())).await;
    rig.provider.clock().advance(Duration::from_hours(24));
    eventually("the batch expires", async || {
        (rig.daemon.metric("offpeak_batches_ended_total", "expired").await == 1).then_some(())
    })
    .await;
    let expired = rig.daemon.metric("offpeak_requests_retried_total", "").await;
    assert_eq!(rig.billed(Mode::Batch), 20 - expired, "what expired did not run");
    rig.daemon.wait_for_waiting(expired).await;
    rig.daemon.flush().await;
    rig.all_messages(&tickets).await;
    assert_eq!((rig.message_batches(), rig.billed(Mode::Batch), rig.ran_twice()), (2, 20, 0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_somebody_cancels_at_the_provider_goes_again() {
    let rig = rig(Faults::default(), BY_HAND).await;
    rig.provider.faults().next_batch(vec![BatchFault::Stall]);
    let tickets = rig.messages(6, |n| format!("canceled {n}")).await;
    rig.daemon.flush().await;
    let id = eventually("the batch is listed", async || {
        let batches = send(rig.neighbour(http::Method::GET, BATCHES)).await;
        batches.body["data"][0]["id"].as_str().map(str::to_owned)
    })
    .await;
    let canceled = send(rig.neighbour(http::Method::POST, &format!("{BATCHES}/{id}/cancel"))).await;
    assert_eq!(canceled.status, StatusCode::OK, "{canceled:?}");
    let again = eventually("some wait again", async || {
        Some(rig.daemon.waiting().await).filter(|waiting| *waiting > 0)
    })
    .await;
    assert!(again <= 6);
    eventually("the batch ends", async || {
        (rig.daemon.metric("offpeak_batches_ended_total", "").await == 1).then_some(())
    })
    .await;
    rig.daemon.flush().await;
    rig.all_messages(&tickets).await;
    assert_eq!((rig.billed(Mode::Batch), rig.ran_twice()), (6, 0));
}
