//! The ladder of offers under conditions: quotas, slow and stalled batches, what is not sold.

use std::time::Duration;

use provider_sim::{Faults, Limits, Mode, NotSold, RealtimeLimits, Scenario, Stall, Timing};
use serde_json::{Value, json};

use crate::messages::{MESSAGES, message};
use crate::rig::{CHAT, MODEL, Rig, chat, good, lines, refused, sim};

const MINUTE: Duration = Duration::from_mins(1);
const HOUR: Duration = Duration::from_hours(1);

fn named(name: &str) -> Scenario {
    Scenario::named(name).unwrap()
}

fn done(batch: &Value) -> u64 {
    batch["request_counts"]["completed"].as_u64().unwrap()
}

#[tokio::test]
async fn tokens_of_a_minute_run_out_and_come_back() {
    let realtime = RealtimeLimits { requests_per_minute: Some(50), tokens_per_minute: Some(300) };
    let rig = Rig::of(sim().limits(Limits { realtime, ..Limits::default() })).await;
    let mut body = chat("How are you today?");
    body["max_tokens"] = 120.into();
    let call = async || rig.post(CHAT, &body).send().await.unwrap();
    let headers = call().await.headers().clone();
    let shown = |name: &str| headers[name].to_str().unwrap().to_owned();
    assert_eq!(
        (shown("x-ratelimit-limit-tokens"), shown("x-ratelimit-remaining-tokens")),
        ("300".into(), "180".into())
    );
    assert_eq!(shown("x-ratelimit-remaining-requests"), "49");
    assert!(shown("x-ratelimit-reset-tokens").ends_with("ms"));
    assert_eq!(call().await.status(), 200);
    let error = refused(rig.post(CHAT, &body), 429).await;
    assert_eq!((&error["type"], &error["code"]), (&"tokens".into(), &"rate_limit_exceeded".into()));
    assert!(error["message"].as_str().unwrap().contains("Limit 300, Used 240, Requested 120"));
    let response = call().await;
    assert!(response.headers()["retry-after"].to_str().unwrap().parse::<u64>().unwrap() <= 60);
    let other = json!({"model": "gpt-5-mini", "max_tokens": 120, "messages": body["messages"]});
    assert_eq!(rig.post(CHAT, &other).send().await.unwrap().status(), 200, "each model has its own");
    rig.advance(MINUTE);
    assert_eq!(call().await.status(), 200);
    body["max_tokens"] = 301.into();
    let response = rig.post(CHAT, &body).send().await.unwrap();
    assert!(response.status() == 429 && !response.headers().contains_key("retry-after"), "it never fits");
    assert_eq!(rig.provider.bill().requests(Mode::Realtime), 4);
}

#[tokio::test]
async fn requests_of_a_minute_are_counted_in_both_dialects() {
    let rig = Rig::of(sim()).await;
    let realtime = RealtimeLimits { requests_per_minute: Some(2), tokens_per_minute: None };
    let mut scenario = rig.provider.scenario();
    scenario.limits.realtime_of.insert("claude-haiku-5-5".to_owned(), realtime);
    rig.provider.set_scenario(scenario);
    let call = async || rig.ask(MESSAGES, &message("x")).send().await.unwrap();
    assert_eq!(call().await.headers()["anthropic-ratelimit-requests-remaining"], "1");
    call().await;
    let over = call().await;
    assert!(over.status() == 429 && over.headers().contains_key("retry-after"));
    for _ in 0..5 {
        good(rig.post(CHAT, &chat("x")).send().await.unwrap()).await;
    }
    let batches = rig.get("/v1/batches").await;
    assert_eq!(batches["data"], json!([]), "and polling is not real time");
}

#[tokio::test]
async fn a_stalled_batch_waits_and_goes_on() {
    let stalls = vec![Stall { from_ms: 5 * 60_000, until_ms: 4 * 3_600_000 }];
    let rig = Rig::of(sim().timing(Timing { stalls, ..Timing::default() })).await;
    let id = rig.batch(&lines(300)).await;
    rig.advance(5 * MINUTE);
    let before = done(&rig.retrieve(&id).await);
    assert!(before > 10, "{before}");
    rig.advance(3 * HOUR);
    let during = rig.retrieve(&id).await;
    assert_eq!((done(&during), &during["status"]), (before, &"in_progress".into()));
    rig.advance(HOUR + 36 * MINUTE);
    let after = rig.retrieve(&id).await;
    assert_eq!((done(&after), &after["status"]), (300, &"completed".into()));
}

#[tokio::test]
async fn a_stall_that_begins_while_batches_run_holds_them_up() {
    let rig = Rig::of(sim()).await;
    let id = rig.batch(&lines(300)).await;
    let requests: Vec<_> =
        (0..300).map(|n| json!({"custom_id": n.to_string(), "params": message("x")})).collect();
    let other =
        good(rig.ask("/v1/messages/batches", &json!({"requests": requests})).send().await.unwrap()).await;
    rig.advance(5 * MINUTE);
    let before = done(&rig.retrieve(&id).await);
    let billed = rig.provider.bill().requests(Mode::Batch);
    let stall =
        json!({"set": {"timing": {"stalls": [{"from_ms": 0, "until_ms": 7_200_000}]}}, "from_now": true});
    let now = good(rig.post("/sim/scenario", &stall).send().await.unwrap()).await;
    assert_eq!(now["timing"]["stalls"][0]["from_ms"], 300_000);
    rig.advance(119 * MINUTE);
    assert_eq!(done(&rig.retrieve(&id).await), before);
    assert_eq!(rig.provider.bill().requests(Mode::Batch), billed);
    // The provider recovers earlier than it had said.
    good(rig.post("/sim/scenario", &json!({"name": "healthy"})).send().await.unwrap()).await;
    rig.advance(41 * MINUTE);
    assert_eq!(rig.retrieve(&id).await["status"], "completed");
    let path = format!("/v1/messages/batches/{}", other["id"].as_str().unwrap());
    assert_eq!(rig.look(&path).await["request_counts"]["succeeded"], 300);
    assert_eq!(rig.provider.bill().requests(Mode::Batch), 600);
}

#[tokio::test]
async fn batches_have_slow_tails_or_expire_half_done() {
    let rig = Rig::of(sim().scenario(named("slow_tail"))).await;
    let id = rig.batch(&lines(200)).await;
    rig.advance(41 * MINUTE);
    let batch = rig.retrieve(&id).await;
    assert_eq!(batch["status"], "in_progress");
    assert!((190..200).contains(&done(&batch)), "{}", done(&batch));
    rig.advance(6 * HOUR);
    assert_eq!(rig.retrieve(&id).await["status"], "completed");

    rig.provider.set_scenario(named("expiring"));
    let id = rig.batch(&lines(200)).await;
    rig.advance(24 * HOUR);
    let batch = rig.retrieve(&id).await;
    assert_eq!((&batch["status"], done(&batch)), (&"expired".into(), 140));
    let errors = rig.lines(&batch["error_file_id"]).await;
    assert!(errors.len() == 60 && errors.iter().all(|line| line["error"]["code"] == "batch_expired"));
    assert_eq!(rig.provider.bill().requests(Mode::Batch), 340);
}

#[tokio::test]
async fn waiting_tokens_are_limited_by_model() {
    let rig = Rig::of(sim().scenario(named("tight_enqueued"))).await;
    let long = |n: usize| {
        json!({"custom_id": n.to_string(), "method": "POST", "url": CHAT, "body": chat(&"word ".repeat(4_000))})
            .to_string()
    };
    let id = rig.batch(&(0..30).map(long).collect::<Vec<_>>()).await;
    let over = rig.batch(&(0..30).map(long).collect::<Vec<_>>()).await;
    rig.advance(MINUTE);
    let failed = rig.retrieve(&over).await;
    assert_eq!(
        (&failed["status"], &failed["errors"]["data"][0]["code"]),
        (&"failed".into(), &"token_limit_exceeded".into())
    );
    rig.advance(HOUR);
    assert_eq!(rig.retrieve(&id).await["status"], "completed");
    let again = rig.batch(&(0..30).map(long).collect::<Vec<_>>()).await;
    rig.advance(HOUR);
    assert_eq!(rig.retrieve(&again).await["status"], "completed");
}

#[tokio::test]
async fn what_is_not_sold_is_refused_and_not_charged() {
    let not_sold = NotSold { flex: [MODEL.to_owned()].into(), background_windows: [MODEL.to_owned()].into() };
    let rig = Rig::of(sim().scenario(Scenario { not_sold, ..Scenario::default() })).await;
    let mut flex = chat("x");
    flex["service_tier"] = "flex".into();
    assert_eq!(refused(rig.post(CHAT, &flex), 400).await["param"], "service_tier");
    flex["model"] = "gpt-5-mini".into();
    good(rig.post(CHAT, &flex).send().await.unwrap()).await;
    let later = |window: &str| {
        json!({"model": MODEL, "input": "later", "background": true,
            "background_options": {"completion_window": window}})
    };
    let error = refused(rig.post("/v1/responses", &later("8h")), 400).await;
    assert_eq!(error["param"], "background_options.completion_window");
    good(rig.post("/v1/responses", &later("soonest")).send().await.unwrap()).await;
    rig.provider.set_scenario(named("no_flex"));
    refused(rig.post(CHAT, &flex), 400).await;
    assert_eq!(rig.provider.bill().requests(Mode::Flex), 1);
}

#[tokio::test]
async fn storms_come_and_go_at_their_times() {
    for (name, status) in [("storm_429", 429), ("storm_5xx", 503)] {
        let rig = Rig::of(sim().scenario(named(name))).await;
        let refusals = async || {
            let mut refusals = 0;
            for _ in 0..60 {
                let response = rig.post(CHAT, &chat("x")).send().await.unwrap();
                refusals += usize::from(response.status() == status);
            }
            refusals
        };
        assert_eq!(refusals().await, 0);
        rig.advance(10 * MINUTE);
        assert!((40..60).contains(&refusals().await));
        rig.advance(30 * MINUTE);
        assert_eq!(refusals().await, 0);
    }
}

#[tokio::test]
async fn background_responses_may_fail_and_then_cost_nothing() {
    let faults = Faults { background_fails: 1.0, ..Faults::default() };
    let rig = Rig::of(sim().faults(faults)).await;
    let body = json!({"model": MODEL, "input": "later", "background": true,
        "background_options": {"completion_window": "2h"}});
    let created = good(rig.post("/v1/responses", &body).send().await.unwrap()).await;
    assert_eq!((&created["status"], &created["error"]), (&"queued".into(), &Value::Null));
    rig.advance(2 * HOUR);
    let path = format!("/v1/responses/{}", created["id"].as_str().unwrap());
    let failed = rig.get(&path).await;
    assert_eq!((&failed["status"], &failed["error"]["code"]), (&"failed".into(), &"server_error".into()));
    assert_eq!((&failed["output"], &failed["usage"]), (&json!([]), &Value::Null));
    let cancelled = good(rig.client.post(rig.url(&format!("{path}/cancel"))).send().await.unwrap()).await;
    assert_eq!(cancelled["status"], "failed", "it has ended");
    assert_eq!(rig.provider.bill().lines, []);
}

#[tokio::test]
async fn a_scenario_must_be_a_known_or_a_whole_one() {
    let rig = Rig::of(sim()).await;
    for wrong in
        [json!({}), json!({"name": "who"}), json!({"name": "stall", "set": {}}), json!({"set": {"x": 1}})]
    {
        refused(rig.post("/sim/scenario", &wrong), 400).await;
    }
    let shown = rig.get("/sim/scenario").await;
    assert_eq!(serde_json::from_value::<Scenario>(shown).unwrap(), rig.provider.scenario());
}
