//! Tenants beside each other: for each of them, what belongs to another does not exist.

use http::{Method, StatusCode};
use reqwest::RequestBuilder;
use serde_json::{Value, json};

use crate::jobs::lines;
use crate::rig::{Answer, BY_HAND, CHAT, Daemon, MODEL, chat, send, sim};

/// Every call of a thing that offpeak keeps; `{id}` stands for which.
pub(crate) const ROUTES: [(Method, &str); 19] = [
    (Method::GET, "/v1/deferred/{id}"),
    (Method::DELETE, "/v1/deferred/{id}"),
    (Method::GET, "/v1/files/{id}"),
    (Method::DELETE, "/v1/files/{id}"),
    (Method::GET, "/v1/files/{id}/content"),
    (Method::GET, "/v1/files?after={id}"),
    (Method::POST, "/v1/uploads/{id}/parts"),
    (Method::POST, "/v1/uploads/{id}/complete"),
    (Method::POST, "/v1/uploads/{id}/cancel"),
    (Method::GET, "/v1/batches/{id}"),
    (Method::POST, "/v1/batches/{id}/cancel"),
    (Method::GET, "/v1/messages/batches/{id}"),
    (Method::GET, "/v1/messages/batches/{id}/results"),
    (Method::POST, "/v1/messages/batches/{id}/cancel"),
    (Method::DELETE, "/v1/messages/batches/{id}"),
    (Method::GET, "/v1/responses/{id}"),
    (Method::GET, "/v1/responses/{id}/input_items"),
    (Method::POST, "/v1/responses/{id}/cancel"),
    (Method::DELETE, "/v1/responses/{id}"),
];

/// What the first tenant has: an id of every kind.
async fn things(daemon: &Daemon) -> Vec<String> {
    let id = |answer: Answer| answer.body["id"].as_str().expect("it has an id").to_owned();
    let ticket = daemon.ticket("the secret plan").await.location;
    let ticket = ticket.rsplit('/').next().expect("a name").to_owned();
    let file = daemon.upload(lines(2, "the secret plan")).await;
    let job = id(daemon.create(&file, "24h").await);
    let upload =
        json!({ "bytes": 10, "filename": "secret.jsonl", "mime_type": "text/jsonl", "purpose": "batch" });
    let upload = id(send(daemon.post("/v1/uploads", &upload)).await);
    let messages = json!([{ "role": "user", "content": "the secret plan" }]);
    let message = json!({ "model": "claude-haiku-5-5", "max_tokens": 100, "messages": messages });
    let message = json!({ "requests": [{ "custom_id": "a", "params": message }] });
    let message_job = id(send(daemon.post("/v1/messages/batches", &message)).await);
    let response = json!({ "model": MODEL, "input": "the secret plan", "background": true });
    let response = id(send(daemon.post("/v1/responses", &response)).await);

    // One that is over, so that there is output to steal.
    let over = id(daemon.create(&file, "24h").await);
    daemon.job_is(&over, "in_progress").await;
    daemon.cancel_job(&over).await;
    let over = daemon.job_is(&over, "cancelled").await;
    let errors = over["error_file_id"].as_str().expect("what was cancelled is told").to_owned();
    vec![ticket, file, errors, job, upload, message_job, response]
}

/// The same id but for its last digit: nobody was ever given it.
fn never_given(id: &str) -> String {
    let (rest, last) = id.split_at(id.len() - 1);
    format!("{rest}{}", if last == "f" { "e" } else { "f" })
}

/// What an answer says, without the names that the caller knew before, and without its own.
async fn told(request: RequestBuilder, id: &str) -> (StatusCode, Vec<String>, String) {
    let answer = send(request).await;
    let names = answer.headers.keys().map(ToString::to_string).collect();
    let own = answer.header("x-offpeak-request-id");
    assert!(!own.is_empty());
    let body = answer.body.to_string().replace(own, "OWN");
    (answer.status, names, body.replace(id, "ID"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn on_every_route_anothers_things_are_as_if_they_had_never_been() {
    let provider = sim().build();
    let server = provider_sim::Server::on_free_port(provider.clone()).await.unwrap();
    let settings = format!(
        "{BY_HAND}\n[backends.claude]\nprovider = \"anthropic\"\nbase_url = \"{}\"\nmodels = [\"claude-*\"]\n\
         [plugins.providers.anthropic]\ntime_limit = \"5s\"",
        server.url()
    );
    let daemon = Daemon::start(&server.url(), &settings).await;
    let things = things(&daemon).await;
    let call = |tenant: &str, method: &Method, path: &str, id: &str| {
        let request = daemon.call(tenant, method.clone(), &path.replace("{id}", id));
        // Whole for those that read it, or they would be refused before anything is looked for.
        if *method == Method::POST { request.json(&json!({ "part_ids": [] })) } else { request }
    };
    let stranger = reqwest::Client::builder().no_proxy().build().unwrap();
    for (method, path) in &ROUTES {
        let mut exists = 0;
        for id in &things {
            let nobodys = never_given(id);
            let anothers = told(call("mail", method, path, id), id).await;
            let nothing = told(call("mail", method, path, &nobodys), &nobodys).await;
            assert_eq!(anothers, nothing, "{method} {path} tells whether {id} is there");
            assert_eq!(anothers.0, StatusCode::NOT_FOUND, "{method} {path} of {id}: {}", anothers.2);
            assert!(!anothers.2.contains("secret"));
            for key in ["sk-wrong", ""] {
                let url = daemon.url(&path.replace("{id}", id));
                let wrong = stranger.request(method.clone(), url).bearer_auth(key);
                assert_eq!(send(wrong).await.status, StatusCode::UNAUTHORIZED, "{method} {path} of {id}");
            }
            if *method == Method::GET {
                exists +=
                    u32::from(send(call("search", method, path, id)).await.status != StatusCode::NOT_FOUND);
            }
        }
        assert!(*method != Method::GET || exists > 0, "{path} shows its owner nothing: is it still a route?");
    }
    for path in ["/v1/files", "/v1/batches", "/v1/messages/batches"] {
        let list = send(daemon.call("mail", Method::GET, path)).await;
        assert_eq!((list.status, &list.body["data"]), (StatusCode::OK, &json!([])), "{path}");
    }
    let job = |file: &str| daemon.post_as("mail", "/v1/batches", &job_of(file));
    let file = things.iter().find(|id| id.starts_with("file-")).unwrap();
    let nobodys = never_given(file);
    let anothers = told(job(file), file).await;
    assert!(anothers.0.is_client_error(), "a job of another's file: {anothers:?}");
    assert_eq!(anothers, told(job(&nobodys), &nobodys).await);
    // Nothing was cancelled or deleted by any of this.
    for id in &things {
        let mut found = false;
        for (method, path) in &ROUTES {
            if *method == Method::GET {
                found |= send(call("search", method, path, id)).await.status.is_success();
            }
        }
        // An upload is not shown; that it can be cancelled tells that it is still open.
        let cancel = format!("/v1/uploads/{id}/cancel");
        found |= send(daemon.post(&cancel, &json!({}))).await.status.is_success();
        assert!(found, "{id} is gone");
    }
    daemon.stop().await;
}

fn job_of(file: &str) -> Value {
    json!({ "input_file_id": file, "endpoint": CHAT, "completion_window": "24h" })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_routes_that_a_stranger_is_told_of_are_the_ones_that_are_walked() {
    let rig = crate::rig::Rig::start(sim(), "").await;
    let answer = send(rig.daemon.post("/v1/nowhere", &chat(MODEL, "x"))).await;
    let message = answer.body["error"]["message"].as_str().unwrap();
    // Those without things of a tenant are in brackets (model calls), or name a model.
    let (_, kept) = message.split_once("), ").expect("what is kept follows the endpoints of models");
    let kept: Vec<&str> = kept.split([' ', ',', ';']).filter(|word| word.starts_with("/v1/")).collect();
    assert!(kept.len() >= 7, "{message}");
    for path in kept.into_iter().filter(|path| *path != "/v1/models") {
        let path = path.trim_end_matches("/{id}");
        assert!(ROUTES.iter().any(|(_, route)| route.starts_with(path)), "nobody walks {path}");
    }
}
