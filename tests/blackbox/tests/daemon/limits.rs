//! What is over a limit, or not allowed, is refused at the door: an error in OpenAI's form, and nothing is stored.

use http::{Method, StatusCode};
use provider_sim::Endpoint;
use serde_json::json;

use crate::jobs::lines;
use crate::rig::{Answer, BY_HAND, CHAT, Daemon, MODEL, Rig, chat, eventually, send, sim};
use crate::tenants::{admin, ask_with, create, hand_in};

/// All four members are there, and the message says something.
fn is_openai_shaped(answer: &Answer) -> bool {
    let error = &answer.body["error"];
    let has_all = ["message", "type", "param", "code"].iter().all(|name| error.get(name).is_some());
    has_all && error["message"].as_str().is_some_and(|message| message.len() > 20)
}

async fn nothing_was_stored(daemon: &Daemon) -> bool {
    daemon.metric("offpeak_deferred_accepted_total", "").await == 0 && daemon.waiting().await == 0
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_only_so_many_requests_waiting() {
    let rig = Rig::start(sim(), &format!("{BY_HAND}\n[tenants.search]\nmax_queued = 3")).await;
    let tickets = rig.daemon.tickets(3, |n| format!("question {n}")).await;
    rig.daemon.wait_for_waiting(3).await;
    let refused = rig.daemon.defer("search", MODEL, "one more", "24h").await;
    assert_eq!(refused.error(), (429, "queue_full"));
    assert!(is_openai_shaped(&refused) && !refused.header("retry-after").is_empty(), "{refused:?}");
    // Another tenant has room of its own, and real time needs none.
    rig.daemon.ticket_of("mail", "mine", "24h").await;
    assert!(rig.daemon.ask(MODEL, "now").await.answers(MODEL, "now"));
    rig.daemon.flush().await;
    rig.all_answered(&tickets).await;
    rig.daemon.ticket("there is room again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_model_has_only_so_many_requests_waiting() {
    let settings = |most| {
        format!("{BY_HAND}\n[tenants.search.model_limits.mini]\nmodels = [\"*-mini\"]\nmax_queued = {most}")
    };
    let rig = Rig::start(sim(), &settings(3)).await;
    let tickets = rig.daemon.tickets(3, |n| format!("question {n}")).await;
    rig.daemon.wait_for_waiting(3).await;
    is_full(&rig.daemon.defer("search", MODEL, "one more", "24h").await, 429);
    // However it comes; what shares its limits has no room either, and other models and tenants have.
    is_full(&rig.daemon.create(&rig.daemon.upload(lines(1, "of a job")).await, "24h").await, 429);
    is_full(&rig.daemon.defer("search", "gpt-4.1-mini", "alike", "24h").await, 429);
    for (tenant, model) in [("search", "gpt-4o"), ("mail", MODEL)] {
        assert_eq!(rig.daemon.defer(tenant, model, "there is room", "24h").await.status, 202);
    }
    rig.daemon.reload(&rig.upstream, &settings(4)).await;
    rig.daemon.ticket("there is more room").await;
    rig.daemon.flush().await;
    rig.all_answered(&tickets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_key_has_only_so_many_requests_waiting() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let (id, key) = create(&rig.daemon, json!({ "tenant": "search", "queue": { "max_queued": 5 } })).await;
    // A job of two and a background response.
    assert!(hand_in(&rig.daemon, &key).await.iter().all(|(status, _)| *status == 200));
    rig.daemon.wait_for_waiting(3).await;
    let full = (429, "queue_full".to_owned());
    assert_eq!(ask_with(&rig.daemon, &key, MODEL, Some("24h")).await.0, 202);
    rig.daemon.wait_for_waiting(4).await;
    let [job, response] = hand_in(&rig.daemon, &key).await;
    assert_eq!((job, response.0), (full.clone(), 200), "there is room for one");
    rig.daemon.wait_for_waiting(5).await;
    // In the form that it is rotated to, it is the same key.
    let (_, made) =
        admin(&rig.daemon, Method::POST, &format!("/admin/v1/keys/{id}/rotate"), &json!({})).await;
    assert_eq!(ask_with(&rig.daemon, made["key"].as_str().unwrap(), MODEL, Some("24h")).await, full);
    // Other keys have room, and real time needs none.
    rig.daemon.ticket("with another key").await;
    assert_eq!(ask_with(&rig.daemon, &key, MODEL, None).await.0, 200);
    rig.daemon.flush().await;
    eventually("all have left", async || (rig.daemon.waiting().await == 0).then_some(())).await;
    assert_eq!(ask_with(&rig.daemon, &key, MODEL, Some("24h")).await.0, 202);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_calls_are_held() {
    let rig = Rig::start(sim(), &format!("{BY_HAND}\n[server]\nheld_max = 1")).await;
    let request = rig.daemon.post(CHAT, &chat(MODEL, "held")).header("x-offpeak-sla", "24h");
    let held = tokio::spawn(send(request));
    eventually("it is held", async || (rig.daemon.metric("offpeak_held_calls", "").await == 1).then_some(()))
        .await;
    let refused = rig.daemon.hold("another").await;
    assert_eq!(refused.error(), (503, "too_many_held"));
    assert_eq!(rig.daemon.metric("offpeak_deferred_accepted_total", "").await, 1);
    rig.daemon.ticket("a ticket goes").await;
    rig.daemon.flush().await;
    assert!(held.await.unwrap().answers(MODEL, "held"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_so_many_requests_a_minute() {
    let rig = Rig::start(sim(), "[tenants.search]\nrequests_per_minute = 2").await;
    for n in 0..2 {
        assert_eq!(rig.daemon.ask(MODEL, &format!("question {n}")).await.status, StatusCode::OK);
    }
    let refused = rig.daemon.ask(MODEL, "one more").await;
    assert_eq!(refused.error(), (429, "rate_limit_exceeded"));
    let seconds: u64 = refused.header("retry-after").parse().unwrap();
    assert!((1..=30).contains(&seconds), "{seconds}");
    assert_eq!(rig.provider.calls(Endpoint::ChatCompletions), 2);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_models_that_the_tenant_may_use() {
    let rig = Rig::start(sim(), "[tenants.search]\nmodels = [\"gpt-5-*\"]").await;
    for sla in ["realtime", "24h"] {
        let refused = rig.daemon.defer("search", MODEL, "not mine", sla).await;
        assert_eq!(refused.error(), (403, "model_not_allowed"));
        assert!(is_openai_shaped(&refused), "{refused:?}");
    }
    assert!(nothing_was_stored(&rig.daemon).await);
    assert!(rig.daemon.ask("gpt-5-mini", "mine").await.answers("gpt-5-mini", "mine"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_over_the_limit() {
    let rig = Rig::start(sim(), "[server]\nmax_body = \"4KiB\"").await;
    for sla in ["realtime", "24h"] {
        let refused = rig.daemon.defer("search", MODEL, &"x".repeat(8000), sla).await;
        assert_eq!(refused.error(), (413, "request_too_large"));
        assert!(is_openai_shaped(&refused), "{refused:?}");
    }
    assert!(nothing_was_stored(&rig.daemon).await);
    assert_eq!(rig.daemon.ask(MODEL, &"x".repeat(3000)).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tags_that_cannot_be_kept() {
    let rig = Rig::start(sim(), "").await;
    for sla in ["", "soon", "0s", "-5m", "366d", "24", "99999999999999999999h"] {
        let by_header = rig.daemon.defer("search", MODEL, "x", sla).await;
        let mut body = chat(MODEL, "x");
        body["metadata"] = json!({ "offpeak_sla": sla });
        let by_body = send(rig.daemon.post(CHAT, &body)).await;
        for answer in [by_header, by_body] {
            assert_eq!(answer.error(), (400, "invalid_sla"), "{sla}");
            assert!(is_openai_shaped(&answer), "{answer:?}");
        }
    }
    assert!(nothing_was_stored(&rig.daemon).await);
    assert_eq!(rig.provider.calls(Endpoint::ChatCompletions), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_nobody_sells() {
    let rig = Rig::start(sim(), "[backends.simulated]\nmodels = [\"gpt-*\"]").await;
    let unknown = rig.daemon.ask("claude-of-elsewhere", "hello").await;
    assert_eq!(unknown.error(), (404, "model_not_found"));
    assert!(is_openai_shaped(&unknown), "{unknown:?}");
    for path in [
        "/v1/chat",
        "/v1/audio/speech",
        "/",
        "/v2/chat/completions",
        "/v1/threads",
        "/metrics",
        "/admin/v1/lanes",
    ] {
        let answer = send(rig.daemon.post(path, &chat(MODEL, "x"))).await;
        assert_eq!(answer.error(), (404, "unknown_endpoint"), "{path}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_is_not_kept_for_later() {
    let rig = Rig::start(sim(), "").await;
    let mut body = chat(MODEL, "in pieces");
    body["stream"] = true.into();
    let response = rig.daemon.post(CHAT, &body).header("x-offpeak-sla", "24h").send().await.unwrap();
    assert_eq!(response.headers()["x-offpeak-mode"], "realtime");
    assert!(response.text().await.unwrap().ends_with("data: [DONE]\n\n"));
    assert!(nothing_was_stored(&rig.daemon).await);
}

/// There is no room: an error of this status that says when to come again.
fn is_full(answer: &Answer, status: u16) {
    assert_eq!(answer.error(), (status, "queue_full"));
    assert_eq!(answer.header("retry-after"), "30");
    assert!(is_openai_shaped(answer), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lane_holds_only_so_many_requests_and_bytes() {
    let rig =
        Rig::start(sim(), "[lanes]\nlinger = \"1h\"\nmax_queued = 3\nmax_queued_bytes = \"1MiB\"").await;
    let tickets = rig.daemon.tickets(3, |n| format!("question {n}")).await;
    rig.daemon.wait_for_waiting(3).await;
    is_full(&rig.daemon.defer("search", MODEL, "one more", "24h").await, 429);
    // A job has no room there either; another tenant's lane has, and real time needs none.
    let job = rig.daemon.create(&rig.daemon.upload(crate::jobs::lines(1, "of a job")).await, "24h").await;
    is_full(&job, 429);
    rig.daemon.ticket_of("mail", "mine", "24h").await;
    assert!(rig.daemon.ask(MODEL, "now").await.answers(MODEL, "now"));
    rig.daemon.flush().await;
    rig.all_answered(&tickets).await;
    // Few requests, and many bytes.
    let large = rig.daemon.ticket(&"x".repeat(600_000)).await;
    rig.daemon.wait_for_waiting(1).await;
    is_full(&rig.daemon.defer("search", MODEL, &"y".repeat(600_000), "24h").await, 429);
    rig.daemon.flush().await;
    rig.all_answered(&[large]).await;
    rig.daemon.ticket("there is room again").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_lanes_together_hold_only_so_many() {
    let rig = Rig::start(sim(), &format!("{BY_HAND}\n[store]\nmax_queued = 4")).await;
    let tickets = rig.daemon.tickets(4, |n| format!("question {n}")).await;
    rig.daemon.wait_for_waiting(4).await;
    // Whoever it is: nobody learns from it who fills it.
    for tenant in ["search", "mail"] {
        is_full(&rig.daemon.defer(tenant, MODEL, "one more", "24h").await, 503);
    }
    assert!(rig.daemon.ask(MODEL, "now").await.answers(MODEL, "now"));
    rig.daemon.flush().await;
    rig.all_answered(&tickets).await;
    let too_many =
        rig.daemon.create(&rig.daemon.upload(crate::jobs::lines(5, "of a job")).await, "24h").await;
    is_full(&too_many, 503);
    rig.daemon.submit(crate::jobs::lines(4, "of a job"), "24h").await;
    assert_eq!(rig.ran_twice(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_on_their_way_into_lanes_count_too() {
    let rig = Rig::start(sim(), &format!("{BY_HAND}\n[tenants.search]\nmax_queued = 6000")).await;
    let file = rig.daemon.upload(crate::jobs::lines(2000, "of a job")).await;
    for _ in 0..3 {
        // What is being put into lanes may count twice for a moment, so that a job is refused too early but none too late.
        eventually("there is room for a job", async || {
            let answer = rig.daemon.create(&file, "24h").await;
            if answer.status != StatusCode::OK {
                is_full(&answer, 429);
            }
            (answer.status == StatusCode::OK).then_some(())
        })
        .await;
    }
    for _ in 0..9 {
        is_full(&rig.daemon.create(&file, "24h").await, 429);
    }
    rig.daemon.wait_for_waiting(6000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tenant_has_only_so_many_bytes_waiting() {
    let settings = format!("{BY_HAND}\n[tenants.search]\nmax_queued_bytes = \"1MiB\"");
    let rig = Rig::start(sim(), &settings).await;
    let large = rig.daemon.ticket(&"x".repeat(600_000)).await;
    rig.daemon.wait_for_waiting(1).await;
    // In its other lanes too; what fits still goes, and so does another tenant's.
    for (model, sla) in [(MODEL, "24h"), (MODEL, "12h"), ("gpt-5-mini", "24h")] {
        is_full(&rig.daemon.defer("search", model, &"y".repeat(600_000), sla).await, 429);
    }
    let small = rig.daemon.ticket(&"z".repeat(300_000)).await;
    let others = rig.daemon.ticket_of("mail", &"w".repeat(600_000), "24h").await;
    assert!(rig.daemon.ask(MODEL, &"n".repeat(700_000)).await.status.is_success());
    rig.daemon.flush().await;
    rig.all_answered(&[large, small, others]).await;
    rig.daemon.ticket(&"r".repeat(700_000)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_lanes_together_hold_only_so_many_bytes() {
    let rig = Rig::start(sim(), &format!("{BY_HAND}\n[store]\nmax_queued_bytes = \"1MiB\"")).await;
    let large = rig.daemon.ticket(&"x".repeat(600_000)).await;
    rig.daemon.wait_for_waiting(1).await;
    for tenant in ["search", "mail"] {
        is_full(&rig.daemon.defer(tenant, MODEL, &"y".repeat(600_000), "24h").await, 503);
    }
    assert!(rig.daemon.ask(MODEL, &"n".repeat(700_000)).await.status.is_success());
    rig.daemon.flush().await;
    rig.all_answered(&[large]).await;
    rig.daemon.ticket_of("mail", &"y".repeat(600_000), "24h").await;
}

/// A refusal as Anthropic's API has it, of this status and type, that says when to come again.
fn is_full_at_anthropics(answer: &Answer, status: u16, kind: &str) {
    assert_eq!((answer.status.as_u16(), answer.header("retry-after")), (status, "30"), "{answer:?}");
    let error = &answer.body["error"];
    assert_eq!((&answer.body["type"], &error["type"]), (&json!("error"), &json!(kind)), "{answer:?}");
    assert!(error["message"].as_str().is_some_and(|message| message.contains("waiting")), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn at_its_bounds_anthropics_api_is_answered_in_its_own_words() {
    let bounds = |bounds: &str| crate::anthropic::settings(&format!("{BY_HAND}\n{bounds}"), "");
    for (settings, status, kind) in [
        ("[tenants.search]\nmax_queued = 1", 429, "rate_limit_error"),
        ("[lanes]\nlinger = \"1h\"\nmax_queued_bytes = \"1MiB\"", 429, "rate_limit_error"),
        ("[store]\nmax_queued_bytes = \"1MiB\"", 503, "api_error"),
    ] {
        let settings = if settings.starts_with("[lanes]") {
            crate::anthropic::settings(settings, "")
        } else {
            bounds(settings)
        };
        let rig = Rig::start(sim(), &settings).await;
        let body = |n: usize| {
            let prompt = format!("{n}").repeat(600_000);
            let messages = json!([{ "role": "user", "content": prompt }]);
            json!({ "model": crate::anthropic::CLAUDE, "max_tokens": 100, "messages": messages })
        };
        let ask = |n: usize, sla: &'static str| {
            let call = rig.daemon.post("/v1/messages", &body(n)).header("x-offpeak-sla", sla);
            send(call.header("prefer", "respond-async"))
        };
        assert_eq!(ask(1, "24h").await.status, StatusCode::ACCEPTED, "{settings}");
        rig.daemon.wait_for_waiting(1).await;
        is_full_at_anthropics(&ask(2, "24h").await, status, kind);
        let requests = json!([{ "custom_id": "a", "params": body(3) }]);
        let batch = rig.daemon.post("/v1/messages/batches", &json!({ "requests": requests }));
        is_full_at_anthropics(&send(batch).await, status, kind);
        assert_eq!(ask(4, "realtime").await.status, StatusCode::OK, "{settings}");
        rig.daemon.flush().await;
        rig.daemon.wait_for_waiting(0).await;
        assert_eq!(ask(5, "24h").await.status, StatusCode::ACCEPTED, "{settings}");
    }
}

/// A call that announces a body and sends only its first bytes, until it is dropped.
async fn unfinished(daemon: &Daemon, length: usize, sent: usize) -> tokio::net::TcpStream {
    use tokio::io::AsyncWriteExt;

    let mut stream = tokio::net::TcpStream::connect(daemon.data).await.unwrap();
    let head = format!(
        "POST {CHAT} HTTP/1.1\r\nhost: offpeak\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
         content-length: {length}\r\n\r\n{}",
        crate::rig::key_of("search"),
        " ".repeat(sent)
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn large_bodies_in_memory_are_bounded_and_what_can_wait_gives_way_first() {
    let rig = Rig::start(sim(), "[server]\nbody_memory = \"1MiB\"").await;
    // What is announced and does not come keeps nobody out.
    let _announced = unfinished(&rig.daemon, 900_000, 1).await;
    let large = unfinished(&rig.daemon, 800_000, 700_000).await;
    let ask = async |length: usize| rig.daemon.ask(MODEL, &"x".repeat(length)).await;
    let refused = eventually("the memory is nearly full", async || {
        let answer = ask(400_000).await;
        (answer.status != StatusCode::OK).then_some(answer)
    })
    .await;
    assert_eq!((refused.error(), refused.header("retry-after")), ((503, "busy"), "1"));
    assert_eq!(rig.daemon.defer("search", MODEL, "can wait", "24h").await.error(), (503, "busy"));
    // What is small and cannot wait goes on; what is large does as long as there is room.
    assert!(rig.daemon.ask(MODEL, "now").await.answers(MODEL, "now"));
    assert_eq!(ask(300_000).await.status, StatusCode::OK);
    drop(large);
    eventually("there is room again", async || {
        let answer = rig.daemon.defer("search", MODEL, "can wait", "24h").await;
        (answer.status == StatusCode::ACCEPTED).then_some(())
    })
    .await;
    assert_eq!(ask(400_000).await.status, StatusCode::OK);
}
