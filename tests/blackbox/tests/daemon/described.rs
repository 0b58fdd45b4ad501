//! The description of the API: it has every route that is served, and no other.

use std::collections::BTreeSet;

use http::Method;
use serde_json::{Value, json};

use crate::isolation::ROUTES;
use crate::rig::{Daemon, MODEL, chat, key_of, send, sim};

const METHODS: [Method; 5] = [Method::GET, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];

/// Every path of the description, with its methods.
fn described(document: &Value) -> Vec<(String, BTreeSet<String>)> {
    let paths = document["paths"].as_object().expect("paths");
    let methods = |path: &Value| path.as_object().unwrap().keys().map(|name| name.to_uppercase()).collect();
    paths.iter().map(|(path, item)| (path.clone(), methods(item))).collect()
}

/// An id of something that is not there.
fn example(path: &str) -> String {
    let prefixes = [
        ("/v1/deferred/", "dfr-7-7"),
        ("/v1/files/", "file-7"),
        ("/v1/uploads/", "upload_7"),
        ("/v1/batches/", "batch_7"),
        ("/v1/messages/batches/", "msgbatch_7"),
        ("/v1/responses/", "resp_7"),
        ("/v1/models/", "nobodys-model"),
    ];
    let id = prefixes.iter().find(|(prefix, _)| path.starts_with(prefix)).map_or("7", |(_, id)| id);
    path.replace("{id}", id)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_described_is_what_is_served() {
    let provider = sim().build();
    let server = provider_sim::Server::on_free_port(provider.clone()).await.unwrap();
    let settings = format!(
        "[backends.claude]\nprovider = \"anthropic\"\nbase_url = \"{}\"\nmodels = [\"claude-*\"]\n\
         [plugins.providers.anthropic]\ntime_limit = \"5s\"",
        server.url()
    );
    let daemon = Daemon::start(&server.url(), &settings).await;
    let document = daemon.admin("/admin/v1/openapi").await.body;
    let described = described(&document);
    assert!(described.len() > 20, "{document}");
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    for (path, methods) in &described {
        for method in METHODS {
            // A ticket is looked for before the method is looked at, so that only a method that is there can tell.
            let is_there = methods.contains(method.as_str());
            let url = daemon.url(&example(path));
            let answer = send(client.request(method.clone(), url).bearer_auth(key_of("search"))).await;
            let (status, code) = answer.error();
            let what = format!("{method} {path}: {answer:?}");
            assert!(status < 500, "{what}");
            if is_there {
                assert!(
                    status != 405 && code != "unknown_endpoint",
                    "it is described and not served: {what}"
                );
            } else if code != "deferred_not_found" {
                assert_eq!(status, 405, "it is served and not described: {what}");
                let allowed = answer.header("allow").split(", ").map(str::to_owned).collect();
                assert_eq!(*methods, allowed, "{what}");
            }
        }
    }
    // And the other way round: what the daemon itself says that it has, and what is walked for strangers.
    let lost = send(daemon.post("/v1/nowhere", &chat(MODEL, "x"))).await;
    let message = lost.body["error"]["message"].as_str().unwrap().to_owned();
    let told = message
        .split([' ', ',', ';', '(', ')'])
        .filter(|word| word.starts_with("/v1/") && *word != "/v1/nowhere");
    let has = |path: &str| described.iter().any(|(known, _)| known == path);
    let told: Vec<&str> = told.collect();
    assert!(told.len() > 6, "{message}");
    for path in told {
        assert!(has(path), "{path} is not described");
    }
    for (method, path) in &ROUTES {
        let path = path.split('?').next().unwrap();
        let of = described.iter().find(|(known, _)| known == path);
        assert!(
            of.is_some_and(|(_, methods)| methods.contains(method.as_str())),
            "{method} {path} is not described"
        );
    }
    let kept = described.iter().filter(|(path, _)| path.contains("{id}") && !path.starts_with("/v1/models"));
    for (path, methods) in kept {
        for method in methods {
            let walked = ROUTES.iter().any(|(other, route)| {
                other.as_str() == method && route.split('?').next() == Some(path.as_str())
            });
            assert!(walked, "nobody walks {method} {path} as a stranger");
        }
    }
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn references_within_the_description_lead_somewhere() {
    let document: Value = serde_json::from_str(offpeak::admin::OPENAPI).unwrap();
    let mut found = 0;
    let mut open = vec![&document];
    while let Some(value) = open.pop() {
        match value {
            Value::Object(members) => {
                if let Some(to) = members.get("$ref").and_then(Value::as_str) {
                    assert!(document.pointer(to.trim_start_matches('#')).is_some(), "{to}");
                    found += 1;
                }
                open.extend(members.values());
            }
            Value::Array(items) => open.extend(items),
            _ => {}
        }
    }
    assert!(found > 100);
    assert_eq!(document["info"]["license"]["identifier"], json!("Apache-2.0"));
}
