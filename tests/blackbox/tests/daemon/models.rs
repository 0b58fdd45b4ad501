//! /v1/models: what the backends serve and the tenant may use.

use http::Method;
use provider_sim::Endpoint;
use serde_json::{Value, json};

use crate::rig::{Rig, send, sim};

fn ids(list: &Value) -> Vec<&str> {
    list["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backends_list_is_shown_as_far_as_its_patterns_and_the_tenants_go() {
    let settings = "[backends.simulated]\nmodels = [\"gpt-4o*\", \"a-name-in-full\"]\n[tenants.mail]\nmodels = [\"*-mini\"]";
    let rig = Rig::start(sim(), settings).await;
    let list = rig.daemon.get("/v1/models").await.body;
    assert_eq!(list["object"], "list");
    let all = ids(&list);
    assert!(
        all.contains(&"gpt-4o-mini") && all.contains(&"gpt-4o") && all.contains(&"a-name-in-full"),
        "{all:?}"
    );
    assert!(all.iter().all(|id| id.starts_with("gpt-4o") || *id == "a-name-in-full"), "{all:?}");
    let mail = send(rig.daemon.call("mail", Method::GET, "/v1/models")).await.body;
    assert!(ids(&mail).contains(&"gpt-4o-mini") && !ids(&mail).contains(&"gpt-4o"), "{mail}");
    assert_eq!(rig.provider.calls(Endpoint::Models), 1, "the list is kept");

    let one = rig.daemon.get("/v1/models/gpt-4o").await.body;
    assert_eq!((&one["object"], &one["owned_by"]), (&json!("model"), &json!("simulated")));
    let hidden = send(rig.daemon.call("mail", Method::GET, "/v1/models/gpt-4o")).await;
    assert_eq!(hidden.error(), (404, "model_not_found"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anthropics_sdks_get_it_in_their_form() {
    let rig = Rig::start(sim(), "[backends.simulated]\nmodels = [\"gpt-4o-mini\"]").await;
    let call =
        |path: &str| rig.daemon.call("search", Method::GET, path).header("anthropic-version", "2023-06-01");
    let list = send(call("/v1/models")).await.body;
    assert_eq!(
        (&list["has_more"], &list["first_id"], &list["last_id"]),
        (&json!(false), &json!("gpt-4o-mini"), &json!("gpt-4o-mini"))
    );
    let model = &list["data"][0];
    assert_eq!((&model["type"], &model["display_name"]), (&json!("model"), &json!("gpt-4o-mini")));
    assert!(model["created_at"].as_str().is_some_and(|at| at.ends_with('Z')), "{model}");
    assert_eq!(send(call("/v1/models/gpt-4o-mini")).await.body, *model);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_cannot_be_asked_shows_the_names_in_full() {
    let rig = Rig::start(sim(), "[backends.simulated]\nmodels = [\"gpt-*\", \"mine\"]").await;
    let down = provider_sim::Fault::Status { status: 503, retry_after_ms: None };
    rig.provider.faults().next(Endpoint::Models, down);
    let list = rig.daemon.get("/v1/models").await.body;
    assert_eq!(ids(&list), ["mine"]);
    let list = rig.daemon.get("/v1/models").await.body;
    assert!(ids(&list).len() > 1, "it is asked again: {list}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_models_name_may_come_escaped() {
    let rig = Rig::start(sim(), "[backends.simulated]\nmodels = [\"meta/llama 3\"]").await;
    for path in ["meta%2Fllama%203", "meta/llama%203", "meta%2fllama%203/"] {
        let found = rig.daemon.get(&format!("/v1/models/{path}")).await;
        assert_eq!((found.status.as_u16(), &found.body["id"]), (200, &json!("meta/llama 3")), "{path}");
    }
    // What is escaped twice, or is no text, is another name.
    for path in ["meta%252Fllama%203", "meta%2Fllama%ff", "meta%2Fllama%2"] {
        let other = rig.daemon.get(&format!("/v1/models/{path}")).await;
        assert_eq!(other.error(), (404, "model_not_found"), "{path}");
    }
}
