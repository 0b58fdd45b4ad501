//! The ledger is the provider's bill: to the last pico-dollar, through retries, failures, rescues and restarts.

use provider_sim::{BatchFault, Endpoint, Fault, Faults, ItemFault, ItemRule, Mode, PicoDollars, Server};
use serde_json::{Value, json};

use crate::anthropic;
use crate::rig::{BY_HAND, CHAT, Daemon, MODEL, Rig, chat, eventually, send, sim};

/// Dollars as the admin plane writes them, in the bill's unit.
fn pico(text: &Value) -> PicoDollars {
    let text = text.as_str().expect("money is a text");
    let (whole, part) = text.split_once('.').unwrap_or((text, ""));
    let digits = format!("{whole}{part:0<12}");
    PicoDollars(digits.parse().unwrap())
}

/// The ledger's rows and their sum.
async fn ledger(daemon: &Daemon, by: &str) -> (Vec<Value>, Value) {
    let answer = daemon.admin(&format!("/admin/v1/costs?by={by}")).await;
    assert_eq!(answer.status.as_u16(), 200, "{answer:?}");
    (answer.body["data"].as_array().unwrap().clone(), answer.body["total"].clone())
}

/// The sum, once so many outcomes are in it: real-time calls are written right after their answer.
async fn total(daemon: &Daemon, outcomes: u64) -> Value {
    eventually(&format!("{outcomes} outcomes in the ledger"), async || {
        let total = ledger(daemon, "tenant").await.1;
        (total["outcomes"] == outcomes).then_some(total)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn real_time_calls_cost_what_the_provider_charges_in_every_tier_and_form() {
    let rig = Rig::start(sim(), "").await;
    assert!(rig.daemon.ask(MODEL, "plain").await.answers(MODEL, "plain"));
    let with = |prompt: &str, more: Value| {
        let mut body = chat(MODEL, prompt);
        body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        body
    };
    let stream = with("a stream", json!({ "stream": true, "stream_options": { "include_usage": true } }));
    rig.daemon.post(CHAT, &stream).send().await.unwrap().text().await.unwrap();
    send(rig.daemon.post(CHAT, &with("dear", json!({ "service_tier": "priority" })))).await;
    let flex = rig.daemon.post(CHAT, &with("cheap", json!({ "service_tier": "flex" })));
    send(flex.header("x-offpeak-sla", "realtime")).await;
    send(rig.daemon.post("/v1/embeddings", &json!({ "model": "text-embedding-3-small", "input": "e" })))
        .await;
    send(rig.daemon.post("/v1/responses", &json!({ "model": "gpt-6-luna", "input": "r" }))).await;
    let refused = send(rig.daemon.post(CHAT, &json!({ "model": MODEL }))).await;
    assert_eq!(refused.status.as_u16(), 400);

    let sum = total(&rig.daemon, 7).await;
    let bill = rig.provider.bill();
    assert_eq!(pico(&sum["cost_usd"]), bill.total(), "{sum} {bill:?}");
    assert_eq!(pico(&sum["realtime_cost_usd"]), bill.all_realtime());
    assert_eq!((&sum["estimated"], &sum["unpriced"], &sum["unknown"]), (&json!(0), &json!(0), &json!(0)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_whose_usage_nobody_asked_for_is_reckoned_and_not_changed() {
    let rig = Rig::start(sim(), "").await;
    let mut body = chat(MODEL, "a stream");
    body["stream"] = json!(true);
    let answer = rig.daemon.post(CHAT, &body).send().await.unwrap().text().await.unwrap();
    assert!(!answer.contains("usage"), "{answer}");
    let sum = total(&rig.daemon, 1).await;
    assert_eq!(sum["estimated"], 1);
    let (reckoned, billed) = (pico(&sum["cost_usd"]).0, rig.provider.bill().total().0);
    assert!(reckoned > billed / 2 && reckoned < billed * 2, "{reckoned} of {billed}");
}

/// Anthropic says at the beginning what the input was, and at the end what the output was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_of_messages_that_is_cut_is_reckoned_by_what_passed() {
    let rig = anthropic::rig(Faults::default(), "").await;
    let prompt = "so many words that the cut comes among them ".repeat(20);
    let body = json!({ "model": anthropic::CLAUDE, "max_tokens": 500, "stream": true,
        "messages": [{ "role": "user", "content": prompt }] });
    rig.provider.faults().next(Endpoint::Messages, Fault::CutBody);
    let answer = rig.daemon.post("/v1/messages", &body).send().await.unwrap();
    let passed = answer.text().await;
    assert!(passed.is_err(), "it was cut: {passed:?}");
    let sum = total(&rig.daemon, 1).await;
    assert_eq!(sum["estimated"], 1, "{sum}");
    let whole = rig.provider.bill().total();
    let cost = pico(&sum["cost_usd"]);
    assert!(cost > PicoDollars(whole.0 / 10) && cost < whole, "{cost:?} of {whole:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deferred_work_costs_what_the_provider_charges_through_everything() {
    let rule = |fault, word: &str, times| ItemRule {
        fault,
        probability: 1.0,
        custom_id: None,
        body: Some(word.to_owned()),
        times,
    };
    let faults = Faults {
        items: vec![
            rule(ItemFault::Status { status: 500 }, "fragile", Some(2)),
            rule(ItemFault::NoResponse { code: "request_timeout".to_owned() }, "lost", Some(1)),
            rule(ItemFault::Status { status: 400 }, "wrong", None),
        ],
        ..Faults::default()
    };
    let provider = sim().faults(faults).build();
    let server = Server::on_free_port(provider.clone()).await.unwrap();
    let settings = "[lanes]\nlinger = \"50ms\"\nmax_requests = 20";
    let daemon = Daemon::start(&server.url(), settings).await;
    provider.faults().next(Endpoint::FileContent, Fault::CutBody);
    provider.faults().next(Endpoint::CreateBatch, Fault::DropResponseAfterEffect);
    provider.faults().next_batch(vec![BatchFault::OutputDuplicateId]);
    let kind = |n: usize| ["fragile", "lost", "wrong", "sound", "sound"][n % 5];
    let tickets = daemon.tickets(60, |n| format!("{} {n}", kind(n))).await;
    let other = daemon.ticket_of("mail", "of another tenant", "24h").await;
    daemon.ask(MODEL, "meanwhile").await;
    let daemon = daemon.restart(&server.url(), settings).await;
    for (n, ticket) in tickets.iter().enumerate() {
        let answer = daemon.redeem(ticket).await;
        let expected = if kind(n) == "wrong" { 400 } else { 200 };
        assert_eq!(answer.status.as_u16(), expected, "{answer:?}");
        if expected == 200 {
            let (cost, realtime) =
                (answer.header("x-offpeak-cost-usd"), answer.header("x-offpeak-cost-realtime-usd"));
            let (cost, realtime) = (pico(&json!(cost)).0, pico(&json!(realtime)).0);
            assert!(cost > 0 && cost * 2 == realtime, "half price: {cost} of {realtime}");
        }
    }
    daemon.redeem(&other).await;

    let (rows, sum) = ledger(&daemon, "tenant,model,mode").await;
    let bill = provider.bill();
    assert_eq!(pico(&sum["cost_usd"]), bill.total(), "{rows:?} {bill:?}");
    let of = |tenant: &str, mode: &str| {
        rows.iter().find(|row| row["tenant"] == tenant && row["mode"] == mode).unwrap_or(&Value::Null)
    };
    assert_eq!(of("search", "realtime")["outcomes"], 1);
    assert_eq!(of("mail", "batch")["outcomes"], 1);
    // 12 of each kind: fragile ones take three attempts, lost ones two.
    assert_eq!(of("search", "batch")["outcomes"], 12 * (3 + 2 + 1 + 1 + 1));
    assert!(pico(&of("search", "batch")["retries_usd"]).0 > 0);
    let tokens: u64 = bill.lines.iter().map(|line| line.usage.input_tokens + line.usage.output_tokens).sum();
    let counted = sum["input_tokens"].as_u64().unwrap() + sum["output_tokens"].as_u64().unwrap();
    assert_eq!(counted, tokens);
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rescues_and_answers_that_nobody_wants_are_shown_apart() {
    let settings =
        "[backends.simulated]\nconfig.batch_usual = \"2s\"\nlanes = { linger = \"50ms\", max_running = 1 }";
    let rig = Rig::start(sim(), settings).await;
    rig.provider.faults().next_batch(vec![BatchFault::Turnaround { ms: 3 * 3_600_000 }]);
    let unwanted = rig.daemon.ticket("unwanted").await;
    eventually("the first batch is made", async || (rig.batches() == 1).then_some(())).await;
    assert_eq!(rig.daemon.cancel(&unwanted).await.status.as_u16(), 200);
    let urgent = rig.daemon.ticket_of("search", "urgent", "5s").await;
    let answer = rig.daemon.redeem(&urgent).await;
    assert!(answer.is_to(&urgent), "{answer:?}");
    eventually("the first batch has run", async || (rig.billed(Mode::Batch) == 1).then_some(())).await;
    let sum = eventually("what nobody wanted is in the ledger", async || {
        let sum = ledger(&rig.daemon, "tenant").await.1;
        (pico(&sum["waste_usd"]).0 > 0).then_some(sum)
    })
    .await;
    let bill = rig.provider.bill();
    assert_eq!(pico(&sum["cost_usd"]), bill.total());
    assert_eq!(pico(&sum["waste_usd"]), bill.cost(Mode::Batch));
    assert_eq!(pico(&sum["rescues_usd"]), bill.cost(Mode::Realtime));
    assert_eq!(
        pico(&sum["realtime_cost_usd"]),
        bill.cost(Mode::Realtime),
        "waste would not have been bought"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_ledger_is_asked_in_several_forms_and_says_what_is_wrong_with_a_question() {
    let rig = Rig::start(sim(), BY_HAND).await;
    rig.daemon.ask(MODEL, "one").await;
    total(&rig.daemon, 1).await;
    let text =
        async |path: &str| reqwest::get(rig.daemon.admin_url(path)).await.unwrap().text().await.unwrap();
    let csv = text("/admin/v1/costs?by=model,purpose&format=csv").await;
    assert!(csv.starts_with("model,purpose,outcomes,") && csv.contains("\ngpt-4o-mini,first,1,"), "{csv}");
    let focus = text("/admin/v1/costs?format=focus&from=2020-01-01").await;
    assert!(focus.starts_with("BilledCost,") && focus.lines().count() == 2, "{focus}");
    let nothing = rig.daemon.admin("/admin/v1/costs?to=2020-01-01").await;
    assert_eq!(nothing.body["data"], json!([]));
    for wrong in ["by=colour", "from=yesterday", "format=xml", "limit=1"] {
        let answer = rig.daemon.admin(&format!("/admin/v1/costs?{wrong}")).await;
        assert_eq!(answer.error(), (400, "invalid_query"), "{wrong}");
    }
    let metrics = rig.daemon.metrics().await;
    assert!(
        metrics.contains(
            "offpeak_cost_dollars_total{tenant=\"search\",backend=\"simulated\",mode=\"realtime\"}"
        )
    );
}
