//! Deferred work on an engine of one's own: no batch API, no discount, but idle time.

mod merged;

use futures_util::future::join_all;
use http::StatusCode;
use provider_sim::{Endpoint, EngineOptions, Fault, Handle, Mode, Provider, Server};
use serde_json::json;

use crate::rig::{Answer, CHAT, Daemon, MODEL, Ticket, eventually, send, sim};

/// A daemon before an engine.
struct Workshop {
    daemon: Daemon,
    provider: Provider,
    server: Handle,
    settings: String,
}

impl Workshop {
    /// With steps of these lengths.
    async fn open(step_us: Vec<(u32, u64)>) -> Self {
        Self::open_with(step_us, "").await
    }

    async fn open_with(step_us: Vec<(u32, u64)>, more: &str) -> Self {
        Self::open_as(EngineOptions { step_us, ..EngineOptions::default() }, more).await
    }

    async fn open_as(options: EngineOptions, more: &str) -> Self {
        let provider = sim().speed(1).models([MODEL]).engine(options).build();
        let server = Server::on_free_port(provider.clone()).await.unwrap();
        let settings = format!(
            "backends.simulated.models = [\"none\"]\nplugins.providers.vllm.time_limit = \"5s\"\n\
             [backends.gpu]\nprovider = \"vllm\"\nbase_url = \"{}\"\nmodels = [\"*\"]\napi_key = {{ env = \"PROVIDER_KEY\" }}\n\
             engine.look_every = \"50ms\"\n{more}",
            server.url()
        );
        let daemon = Daemon::start(&server.url(), &settings).await;
        Self { daemon, provider, server, settings }
    }

    fn running(&self) -> usize {
        self.provider.engine().unwrap().running
    }

    async fn all_answered(&self, tickets: &[Ticket]) -> Vec<Answer> {
        let answers = join_all(tickets.iter().map(|ticket| self.daemon.redeem(ticket))).await;
        for (ticket, answer) in tickets.iter().zip(&answers) {
            assert!(answer.is_to(ticket), "{ticket:?} got {answer:?}");
        }
        answers
    }

    /// Waits for a gauge of the engine.
    async fn gauge(&self, name: &str, label: &str, is_right: impl Fn(u64) -> bool) {
        eventually(&format!("{name}{{{label}}}"), async || {
            is_right(self.daemon.metric(name, label).await).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deferred_work_runs_on_an_engine_that_has_no_batch_api() {
    let shop = Workshop::open(EngineOptions::default().step_us).await;
    let tickets = shop.daemon.tickets(60, |n| format!("question {n}")).await;
    shop.all_answered(&tickets).await;
    let rescued = shop.daemon.metric("offpeak_batch_requests_sealed_total", "reason=\"rescue\"").await;
    assert_eq!(rescued, 0, "all of it was idle time");
    let bill = shop.provider.bill();
    assert_eq!((bill.requests(Mode::Realtime), bill.executions.repeated().len()), (60, 0));
    let finished = shop.daemon.metric("offpeak_deferred_finished_total", "gpu").await;
    assert_eq!(finished, 60);
    let held = shop.daemon.hold("a held one").await;
    assert!(held.answers(MODEL, "a held one"), "{held:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_number_at_once_grows_with_the_gain_and_falls_when_a_real_time_call_comes() {
    let shop = Workshop::open(vec![(1, 10_000), (256, 60_000)]).await;
    let body = |n: usize| {
        json!({
            "model": MODEL, "max_tokens": 150, "ignore_eos": true,
            "messages": [{ "role": "user", "content": format!("a long story {n}") }],
        })
    };
    let calls = (0..400).map(|n| {
        let call = shop.daemon.post(CHAT, &body(n));
        send(call.header("x-offpeak-sla", "24h").header("prefer", "respond-async"))
    });
    let tickets = join_all(calls).await;
    assert!(tickets.iter().all(|answer| answer.status == StatusCode::ACCEPTED));
    shop.gauge("offpeak_engine_deferred_at_once", "gpu", |at_once| at_once >= 32).await;
    eventually("many run", async || (shop.running() >= 32).then_some(())).await;
    let has_given_way = async {
        shop.gauge("offpeak_engine_requests", "realtime", |calls| calls > 0).await;
        shop.gauge("offpeak_engine_deferred_at_once", "gpu", |at_once| at_once < 16).await;
    };
    let asking = async {
        let mut n = 0;
        loop {
            let answer = shop.daemon.ask(MODEL, &format!("urgent {n}")).await;
            assert!(answer.answers(MODEL, &format!("urgent {n}")), "{answer:?}");
            n += 1;
        }
    };
    tokio::select! {
        () = has_given_way => {}
        () = asking => {}
    }
    for ticket in tickets {
        let ticket = Ticket {
            prompt: String::new(),
            tenant: "search",
            location: ticket.header("location").to_owned(),
        };
        assert_eq!(shop.daemon.redeem(&ticket).await.status, StatusCode::OK);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_engine_dies_with_runs_when_it_is_back() {
    let shop = Workshop::open(vec![(1, 10_000), (256, 60_000)]).await;
    let tickets = shop.daemon.tickets(80, |n| format!("question {n}")).await;
    eventually("some run", async || (shop.running() >= 2).then_some(())).await;
    shop.provider.crash_engine();
    shop.gauge("offpeak_engine_ready", "gpu", |ready| ready == 0).await;
    shop.provider.start_engine();
    eventually("some run again", async || (shop.running() >= 2).then_some(())).await;
    // As vLLM ends on SIGTERM: calls under way are answered 200 with half a text.
    shop.provider.stop_engine();
    shop.gauge("offpeak_engine_ready", "gpu", |ready| ready == 0).await;
    shop.provider.start_engine();
    shop.all_answered(&tickets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_engine_dies_with_runs_at_another_when_it_does_not_come_back() {
    let other = sim().speed(1).models([MODEL]).engine(EngineOptions::default()).build();
    let server = Server::on_free_port(other.clone()).await.unwrap();
    let settings = format!(
        "[backends.spare]\nprovider = \"vllm\"\nbase_url = \"{}\"\nmodels = [\"*\"]\n\
         api_key = {{ env = \"PROVIDER_KEY\" }}\nengine.look_every = \"50ms\"\n\
         [breaker]\nfailures = 2\nrest = \"1h\"\nrest_max = \"1h\"",
        server.url()
    );
    let shop = Workshop::open_with(vec![(1, 50_000), (256, 300_000)], &settings).await;
    let tickets = shop.daemon.tickets(60, |n| format!("question {n}")).await;
    eventually("some run", async || (shop.running() >= 2).then_some(())).await;
    assert_eq!(other.bill().requests(Mode::Realtime), 0, "the first one has them all");
    shop.provider.crash_engine();
    shop.all_answered(&tickets).await;
    let (here, there) =
        (shop.provider.bill().requests(Mode::Realtime), other.bill().requests(Mode::Realtime));
    assert!(there > 0 && here + there >= 60, "{here} before it died, {there} at the other");
    let finished = shop.daemon.metric("offpeak_deferred_finished_total", "spare").await;
    assert!(finished > 0 && finished <= there, "{finished} of {there}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deferred_work_gives_way_to_a_stream_whose_first_token_is_late() {
    // Whatever the answer's head says, the first token comes after two steps at most.
    let shop = Workshop::open_with(vec![(1, 200_000), (256, 200_000)], "engine.latency = \"100ms\"").await;
    shop.gauge("offpeak_engine_deferred_at_once", "gpu", |at_once| at_once > 1).await;
    let body = json!({
        "model": MODEL, "max_tokens": 100, "ignore_eos": true, "stream": true,
        "messages": [{ "role": "user", "content": "a long story" }],
    });
    let stream = shop.daemon.post(CHAT, &body).send().await.unwrap();
    assert_eq!(stream.status(), StatusCode::OK);
    shop.gauge("offpeak_engine_deferred_at_once", "gpu", |at_once| at_once == 1).await;
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_real_time_call_that_waits_behind_deferred_work_gets_its_place() {
    let slots = EngineOptions {
        step_us: vec![(1, 20_000), (4, 20_000)],
        max_num_seqs: 4,
        max_model_len: 100_000,
        kv_cache_tokens: 1_000_000,
        ..EngineOptions::default()
    };
    let shop = Workshop::open_as(slots, "").await;
    let calls = (0..8).map(|n| {
        // Three minutes long, which nobody waits for.
        let body = json!({
            "model": MODEL, "max_tokens": 9_000, "ignore_eos": true,
            "messages": [{ "role": "user", "content": format!("a very long story {n}") }],
        });
        send(shop.daemon.post(CHAT, &body).header("x-offpeak-sla", "24h").header("prefer", "respond-async"))
    });
    let tickets = join_all(calls).await;
    eventually("the engine is full", async || (shop.running() >= 4).then_some(())).await;
    let answer = shop.daemon.ask(MODEL, "urgent").await;
    assert!(answer.answers(MODEL, "urgent"), "{answer:?}");
    shop.gauge("offpeak_engine_taken_back_total", "gpu", |taken_back| taken_back > 0).await;
    for ticket in tickets {
        let ticket = Ticket {
            prompt: String::new(),
            tenant: "search",
            location: ticket.header("location").to_owned(),
        };
        assert_eq!(shop.daemon.look(&ticket).await.status, StatusCode::ACCEPTED, "it is to be had later");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_an_engine_breaks_off_or_has_no_memory_for_runs_later() {
    let shop = Workshop::open_with(EngineOptions::default().step_us, "answer_timeout = \"3s\"").await;
    for fault in [
        // Out of memory: with a status, and with a broken connection.
        Fault::Status { status: 500, retry_after_ms: None },
        Fault::StatusAfterEffect { status: 500 },
        Fault::DropResponseAfterEffect,
        // Half an answer, cut off or as if it were whole.
        Fault::CutBody,
        Fault::TruncateBody,
        // Nothing comes any more.
        Fault::Slow { ms: 60_000 },
        // No room.
        Fault::Status { status: 503, retry_after_ms: Some(50) },
    ] {
        shop.provider.faults().next(Endpoint::ChatCompletions, fault);
    }
    let tickets = shop.daemon.tickets(30, |n| format!("question {n}")).await;
    shop.all_answered(&tickets).await;
    let finished = shop.daemon.metric("offpeak_deferred_finished_total", "gpu").await;
    assert_eq!(finished, 30, "each once");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_an_engine_is_dead_calls_in_real_time_get_the_answer_of_their_route() {
    let routes = "[breaker]\nfailures = 1\nrest = \"1h\"\nrest_max = \"1h\"\n[routes.all]\nmodels = [\"*\"]\n\
                  [routes.all.answer]\nstatus = 203\nbody = '{ \"choices\": [] }'";
    let shop = Workshop::open_with(EngineOptions::default().step_us, routes).await;
    assert!(shop.daemon.ask(MODEL, "alive").await.answers(MODEL, "alive"));
    shop.provider.crash_engine();
    let first = shop.daemon.ask(MODEL, "dead").await;
    assert!(first.status.is_server_error(), "{first:?}");
    let answer = shop.daemon.ask(MODEL, "still dead").await;
    assert_eq!((answer.status.as_u16(), answer.header("x-offpeak-mode")), (203, "fallback"), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_waits_for_its_turn_is_explained_and_can_be_cancelled() {
    // A single step lasts long, so that most of them wait.
    let shop = Workshop::open(vec![(1, 200_000), (256, 200_000)]).await;
    let tickets = shop.daemon.tickets(40, |n| format!("question {n}")).await;
    eventually("some run", async || (shop.running() >= 2).then_some(())).await;
    let last = tickets.last().unwrap();
    let id = last.location.rsplit('/').next().unwrap();
    let told = eventually("it is given to the engine's idle time", async || {
        let told = shop.daemon.admin(&format!("/admin/v1/explain/{id}")).await;
        (told.body["state"] == "in_engine").then_some(told.body)
    })
    .await;
    let why =
        told["why"].as_array().unwrap().iter().map(|why| why.as_str().unwrap()).collect::<Vec<_>>().join(" ");
    assert!(why.contains("the idle time of 'gpu'") && why.contains("deferred request(s) at once"), "{why}");
    assert_eq!(shop.daemon.cancel(last).await.status, StatusCode::OK);
    let cancelled = shop.daemon.look(last).await;
    assert!(cancelled.status != StatusCode::ACCEPTED && !cancelled.is_to(last), "{cancelled:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_daemon_that_stops_goes_on_with_what_its_engine_has_not_answered() {
    let Workshop { daemon, provider, server, settings } =
        Workshop::open(vec![(1, 10_000), (256, 60_000)]).await;
    let tickets = daemon.tickets(40, |n| format!("question {n}")).await;
    eventually("some run", async || (provider.engine().unwrap().running >= 2).then_some(())).await;
    let daemon = daemon.restart(&server.url(), &settings).await;
    Workshop { daemon, provider, server, settings }.all_answered(&tickets).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instances_hour_is_shared_by_those_who_run_at_once() {
    let settings = "[plugins.cost_policy.config]\nusd_per_hour = { gpu = 3600.0 }";
    let shop = Workshop::open_with(vec![(1, 10_000), (256, 60_000)], settings).await;
    let alone = shop.daemon.redeem(&shop.daemon.ticket("alone").await).await;
    let tickets = shop.daemon.tickets(40, |n| format!("question {n}")).await;
    let many = shop.all_answered(&tickets).await;
    let cost = |answer: &Answer| answer.header("x-offpeak-cost-usd").parse::<f64>().unwrap();
    assert!(cost(&alone) > 0.0, "{alone:?}");
    let busy_us = shop.provider.engine().unwrap().busy_us;
    let busy_s = std::time::Duration::from_micros(busy_us).as_secs_f64();
    let all: f64 = cost(&alone) + many.iter().map(cost).sum::<f64>();
    // A dollar a second; calls take longer than the engine works on them, and counts are taken as they end.
    assert!(all > busy_s * 0.3 && all < busy_s * 4.0, "{all} dollars for {busy_s} s");
    let sum_alone: f64 = cost(&alone) * 40.0;
    assert!(many.iter().map(cost).sum::<f64>() < sum_alone, "they shared");
}
