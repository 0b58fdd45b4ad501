//! The ladder of offers: what a provider turns out not to sell is taken off it, visibly, and comes back.

use std::collections::BTreeSet;

use provider_sim::{Endpoint, Mode, NotSold, Scenario};

use crate::rig::{MODEL, Rig, sim};

fn without_flex() -> Scenario {
    let flex = BTreeSet::from([MODEL.to_owned()]);
    Scenario { not_sold: NotSold { flex, ..NotSold::default() }, ..Scenario::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tier_that_the_provider_refuses_is_not_asked_for_again_until_it_is_restored() {
    let settings = "[backends.simulated]\nconfig.flex = true";
    let rig = Rig::start(sim().scenario(without_flex()), settings).await;
    for n in 0..3 {
        let prompt = format!("question {n}");
        let answer = rig.daemon.defer("search", MODEL, &prompt, "10m").await;
        assert!(answer.answers(MODEL, &prompt), "{answer:?}");
    }
    // The first was refused as flex and bought at the list price, which the others were at once.
    assert_eq!((rig.provider.calls(Endpoint::ChatCompletions), rig.billed(Mode::Realtime)), (4, 3));
    assert_eq!(rig.daemon.metric("offpeak_offers_lost", "offer=\"flex\"").await, 1);
    let lost = rig.daemon.admin("/admin/v1/offers").await.body;
    assert_eq!((&lost["data"][0]["offer"], &lost["data"][0]["model"]), (&"flex".into(), &MODEL.into()));
    assert!(lost["data"][0]["why"].as_str().unwrap().contains("service_tier"), "{lost}");
    // It is known after a restart.
    let daemon = rig.daemon.restart(&rig.upstream, settings).await;
    assert_eq!(daemon.metric("offpeak_offers_lost", "offer=\"flex\"").await, 1);
    assert_eq!(daemon.admin_post("/admin/v1/offers/restore?offer=batch").await.error().0, 404);
    assert_eq!(daemon.admin_post("/admin/v1/offers/restore?offer=flex").await.body["restored"], 1);
    assert_eq!(daemon.metric("offpeak_offers_lost", "offer=\"flex\"").await, 0);
    rig.provider.set_scenario(Scenario::default());
    let answer = daemon.defer("search", MODEL, "sold again", "10m").await;
    assert!(answer.answers(MODEL, "sold again"), "{answer:?}");
    assert_eq!(rig.provider.bill().requests(Mode::Flex), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_callers_own_mistake_costs_no_offer() {
    let rig = Rig::start(sim(), "[backends.simulated]\nconfig.flex = true").await;
    let body = serde_json::json!({ "model": MODEL, "messages": [{ "role": "user", "content": "x" }], "temperature": 7 });
    let request = rig.daemon.post(crate::rig::CHAT, &body).header("x-offpeak-sla", "10m");
    let answer = crate::rig::send(request.header("prefer", "respond-async")).await;
    assert_eq!(answer.status.as_u16(), 400, "{answer:?}");
    assert_eq!(answer.body["error"]["param"], "temperature", "{answer:?}");
    assert_eq!(rig.daemon.metric("offpeak_offers_lost", "").await, 0);
}
