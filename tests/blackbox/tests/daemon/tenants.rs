//! Keys, quotas, and a door that stays shut: nobody does more than they may, or sees what is another's.

use std::time::{Duration, Instant};

use http::StatusCode;
use provider_sim::Mode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::{BY_HAND, CHAT, Daemon, MODEL, Rig, chat, eventually, key_of, send, sim};

/// An operator's call with a body.
pub(crate) async fn admin(
    daemon: &Daemon,
    method: reqwest::Method,
    path: &str,
    body: &Value,
) -> (u16, Value) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let response = client.request(method, daemon.admin_url(path)).json(body).send().await.unwrap();
    let status = response.status().as_u16();
    (status, response.json().await.unwrap_or_default())
}

pub(crate) async fn create(daemon: &Daemon, body: Value) -> (String, String) {
    let (status, made) = admin(daemon, reqwest::Method::POST, "/admin/v1/keys", &body).await;
    assert_eq!(status, 201, "{made}");
    (made["id"].as_str().unwrap().to_owned(), made["key"].as_str().unwrap().to_owned())
}

/// A call with any key; the status and the code of the answer.
pub(crate) async fn ask_with(daemon: &Daemon, key: &str, model: &str, sla: Option<&str>) -> (u16, String) {
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let mut request = client.post(daemon.url(CHAT)).bearer_auth(key).json(&chat(model, "with a key"));
    if let Some(sla) = sla {
        request = request.header("x-offpeak-sla", sla).header("prefer", "respond-async");
    }
    let answer = send(request).await;
    let (status, code) = answer.error();
    (status, code.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn keys_live_rotate_and_end() {
    let provider = sim().build();
    let server = provider_sim::Server::on_free_port(provider.clone()).await.unwrap();
    let daemon = Daemon::start(&server.url(), BY_HAND).await;
    let (first, key) = create(&daemon, json!({ "tenant": "search", "label": "ci" })).await;
    assert_eq!(ask_with(&daemon, &key, MODEL, None).await.0, 200);
    let path = format!("/admin/v1/keys/{first}/rotate");
    let (status, made) = admin(&daemon, reqwest::Method::POST, &path, &json!({ "overlap_s": 3600 })).await;
    let next = made["key"].as_str().unwrap().to_owned();
    assert_eq!((status, &made["label"]), (201, &json!("ci")));

    let daemon = daemon.restart(&server.url(), BY_HAND).await;
    for key in [&key, &next] {
        assert_eq!(
            ask_with(&daemon, key, MODEL, None).await.0,
            200,
            "both are accepted, after a restart too"
        );
    }
    let path = format!("/admin/v1/keys/{first}");
    assert_eq!(admin(&daemon, reqwest::Method::DELETE, &path, &Value::Null).await.0, 200);
    assert_eq!(ask_with(&daemon, &key, MODEL, None).await, (401, "expired_api_key".to_owned()));
    assert_eq!(ask_with(&daemon, &next, MODEL, None).await.0, 200);
    let (_, short) = create(&daemon, json!({ "tenant": "mail", "expires_in_s": 0 })).await;
    assert_eq!(ask_with(&daemon, &short, MODEL, None).await, (401, "expired_api_key".to_owned()));

    let listed = daemon.admin("/admin/v1/keys").await.body;
    assert_eq!(listed["data"].as_array().unwrap().len(), 3);
    assert!(!listed.to_string().contains("opk_"), "keys are shown once");
    for wrong in [json!({ "tenant": "nobody" }), json!({ "tenant": "search", "scope": {} }), json!(7)] {
        assert_eq!(admin(&daemon, reqwest::Method::POST, "/admin/v1/keys", &wrong).await.0, 400, "{wrong}");
    }
    let folder = daemon.stop().await;
    for file in walk(folder.path()) {
        let bytes = std::fs::read(&file).unwrap();
        for key in [&key, &next, &short] {
            let found = bytes.windows(key.len()).any(|window| window == key.as_bytes());
            assert!(!found, "a key is in {}", file.display());
        }
    }
}

fn walk(folder: &std::path::Path) -> Vec<std::path::PathBuf> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() { files.extend(walk(&path)) } else { files.push(path) }
    }
    files
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scopes_of_a_key_hold() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let scopes = json!({ "models": ["gpt-4o-*"], "endpoints": [CHAT], "sla": ["deferred"] });
    let (_, key) = create(&rig.daemon, json!({ "tenant": "search", "scopes": scopes })).await;
    let ask = async |model: &str, sla| ask_with(&rig.daemon, &key, model, sla).await;
    assert_eq!(ask(MODEL, Some("24h")).await.0, 202);
    assert_eq!(ask(MODEL, None).await, (403, "out_of_scope".to_owned()));
    assert_eq!(ask("gpt-4o", Some("24h")).await, (403, "model_not_allowed".to_owned()));
    let (_, elsewhere) =
        create(&rig.daemon, json!({ "tenant": "search", "scopes": { "backends": ["another"] } })).await;
    assert_eq!(ask_with(&rig.daemon, &elsewhere, MODEL, None).await, (403, "out_of_scope".to_owned()));
    assert_eq!(rig.provider.bill().requests(Mode::Realtime), 0);
}

/// What one key may hand in to be bought later: a job, a message batch, a background response. The status and the code of
/// each answer.
pub(crate) async fn hand_in(daemon: &Daemon, key: &str) -> [(u16, String); 2] {
    let file = daemon.upload(crate::jobs::lines(2, "scoped")).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let ask = async |path: &str, body: Value| {
        let answer = send(client.post(daemon.url(path)).bearer_auth(key).json(&body)).await;
        let (status, code) = answer.error();
        (status, code.to_owned())
    };
    [
        ask("/v1/batches", json!({ "input_file_id": file, "endpoint": CHAT, "completion_window": "24h" }))
            .await,
        ask("/v1/responses", json!({ "model": MODEL, "input": "later", "background": true })).await,
    ]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scopes_decide_what_may_be_handed_in() {
    let provider = sim().build();
    let server = provider_sim::Server::on_free_port(provider.clone()).await.unwrap();
    let second = format!(
        "{BY_HAND}\n[backends.second]\nbase_url = \"{}\"\nmodels = [\"o3\"]\napi_key = {{ env = \"PROVIDER_KEY\" }}",
        server.url()
    );
    let daemon = Daemon::start(&server.url(), &second).await;
    let out = (403, "out_of_scope".to_owned());
    for (scopes, may) in [
        (json!({}), true),
        (json!({ "models": ["gpt-4o-*"], "backends": ["simulated"], "sla": ["deferred"] }), true),
        (json!({ "endpoints": [CHAT, "/v1/responses"] }), true),
        (json!({ "models": ["o3"] }), false),
        (json!({ "backends": ["second"] }), false),
        (json!({ "endpoints": ["/v1/embeddings"] }), false),
        (json!({ "sla": ["realtime"] }), false),
    ] {
        let (_, key) = create(&daemon, json!({ "tenant": "search", "scopes": scopes })).await;
        for answer in hand_in(&daemon, &key).await {
            assert_eq!(answer == out, !may, "{scopes}: {answer:?}");
            assert!(may == (answer.0 == 200), "{scopes}: {answer:?}");
        }
    }

    // What the first backend cannot do goes to the next one, which must be the key's too.
    let both = second.replace("\"o3\"", "\"*\"");
    let daemon = daemon.restart(&server.url(), &both).await;
    let (_, key) =
        create(&daemon, json!({ "tenant": "search", "scopes": { "backends": ["simulated"] } })).await;
    for answer in hand_in(&daemon, &key).await {
        assert_eq!(answer, out);
    }
    let listed = reqwest::Client::builder().no_proxy().build().unwrap();
    let (_, key) = create(&daemon, json!({ "tenant": "search", "scopes": { "models": ["gpt-4o-*"] } })).await;
    let models = send(listed.get(daemon.url("/v1/models")).bearer_auth(&key)).await.body;
    let names: Vec<&str> =
        models["data"].as_array().unwrap().iter().map(|model| model["id"].as_str().unwrap()).collect();
    assert!(names.contains(&MODEL) && names.iter().all(|name| name.starts_with("gpt-4o-")), "{names:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn quotas_hold_for_each_tenant_key_model_and_backend() {
    let settings = "[tenants.search]\nconcurrent = 50\n\
                    [tenants.search.model_limits.embeddings]\nmodels = [\"text-*\"]\nrequests_per_minute = 1\n\
                    [tenants.mail]\nrequests_per_minute = 60\nburst = \"2s\"\noutput_tokens_per_minute = 100000\n";
    let rig = Rig::start(sim(), settings).await;
    let embed = async || {
        let body = json!({ "model": "text-embedding-3-small", "input": "e" });
        send(rig.daemon.post("/v1/embeddings", &body)).await
    };
    assert_eq!(embed().await.status, StatusCode::OK);
    assert_eq!(embed().await.error(), (429, "rate_limit_exceeded"));
    assert!(rig.daemon.ask(MODEL, "the other models go on").await.status.is_success());

    let mail =
        async |n: usize| send(rig.daemon.post_as("mail", CHAT, &chat(MODEL, &format!("mail {n}")))).await;
    let first = mail(0).await;
    assert_eq!(first.header("x-ratelimit-limit-requests"), "60");
    assert_eq!(first.header("x-ratelimit-remaining-requests"), "1");
    assert!(!first.header("x-ratelimit-remaining-tokens").is_empty());
    let started = Instant::now();
    let refused = eventually("the burst is used up", async || {
        let answer = mail(1).await;
        (answer.status == StatusCode::TOO_MANY_REQUESTS).then_some(answer)
    })
    .await;
    let wait: u64 = refused.header("retry-after-ms").parse().unwrap();
    assert!(wait <= 1000, "{wait}");
    tokio::time::sleep(Duration::from_millis(wait)).await;
    assert!(mail(2).await.status.is_success(), "it is there when it was said to be");
    let passed = rig.provider.bill().requests(Mode::Realtime) - 2;
    assert!(passed <= 2 + started.elapsed().as_secs() + 1, "{passed} in {:?}", started.elapsed());

    let (_, narrow) =
        create(&rig.daemon, json!({ "tenant": "search", "limits": { "requests_per_minute": 1 } })).await;
    assert_eq!(ask_with(&rig.daemon, &narrow, MODEL, None).await.0, 200);
    assert_eq!(ask_with(&rig.daemon, &narrow, MODEL, None).await.0, 429);
    assert_eq!(ask_with(&rig.daemon, key_of("search"), MODEL, None).await.0, 200);
    assert_eq!(ask_with(&rig.daemon, &narrow, MODEL, Some("24h")).await.0, 202, "what can wait is queued");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn estimates_come_nearer_and_a_restart_forgets_none_of_it() {
    let provider = sim().build();
    let server = provider_sim::Server::on_free_port(provider.clone()).await.unwrap();
    let settings = "[tenants.search]\noutput_tokens_per_minute = 6000";
    let daemon = Daemon::start(&server.url(), settings).await;
    let left = |answer: &crate::rig::Answer| -> u64 {
        answer.header("x-ratelimit-remaining-tokens").parse().unwrap()
    };
    let first = daemon.ask(MODEL, "a short one").await;
    let took = first.body["usage"]["completion_tokens"].as_u64().unwrap();
    assert!(took < 200, "{took}");
    assert!(left(&first) < 5_700, "nothing is known of the model yet: {first:?}");
    let daemon = daemon.restart(&server.url(), settings).await;
    let second = daemon.ask(MODEL, "a short one").await;
    assert!(left(&second) > 5_750, "{took} tokens are expected now: {second:?}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backends_own_limit_holds_for_all_tenants_together() {
    let rig = Rig::start(sim(), "[backends.simulated.limits]\nrequests_per_minute = 1").await;
    assert_eq!(rig.daemon.ask(MODEL, "one").await.status, StatusCode::OK);
    let other = send(rig.daemon.post_as("mail", CHAT, &chat(MODEL, "two"))).await;
    assert_eq!(other.error(), (429, "rate_limit_exceeded"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_anothers_does_not_exist_and_a_wrong_key_opens_nothing() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let ticket = rig.daemon.ticket("of search").await;
    let id = ticket.location.rsplit('/').next().unwrap().to_owned();
    let (_, made) = create(&rig.daemon, json!({ "tenant": "mail" })).await;
    let client = reqwest::Client::builder().no_proxy().build().unwrap();
    let paths = ["/v1/deferred/", "/v1/files/", "/v1/batches/", "/v1/messages/batches/", "/v1/responses/"];
    for path in paths {
        for (method, after) in [
            (reqwest::Method::GET, ""),
            (reqwest::Method::DELETE, ""),
            (reqwest::Method::GET, "/content"),
            (reqwest::Method::POST, "/cancel"),
        ] {
            let url = rig.daemon.url(&format!("{path}{id}{after}"));
            for key in [key_of("mail"), &made] {
                let answer = send(client.request(method.clone(), &url).bearer_auth(key)).await;
                let status = answer.status.as_u16();
                assert!(status == 404 || status == 405, "{method} {url}: {answer:?}");
                assert!(!answer.body.to_string().contains("of search"));
            }
            for key in ["sk-wrong", "", "opk_", "Bearer"] {
                let answer = send(client.request(method.clone(), &url).bearer_auth(key)).await;
                assert_eq!(answer.status.as_u16(), 401, "{method} {url} with {key:?}");
            }
            assert_eq!(send(client.request(method.clone(), &url)).await.status.as_u16(), 401);
        }
    }
    assert_eq!(rig.daemon.look(&ticket).await.status.as_u16(), 202, "it is still there for its own tenant");
    for path in ["/admin/v1/keys", "/admin/v1/costs", "/admin/v1/lanes", "/metrics", "/healthz"] {
        let answer = send(client.get(rig.daemon.url(path)).bearer_auth(key_of("search"))).await;
        assert_eq!(answer.status.as_u16(), 404, "{path} is not on the data plane");
        let page = client.get(rig.daemon.admin_url(path)).header("origin", "https://evil.example");
        assert_eq!(send(page).await.status.as_u16(), 403, "{path} takes no calls of web pages");
    }
}

/// What a connection answers to these bytes, until it is closed or says nothing more for a while.
async fn raw(daemon: &Daemon, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(daemon.data).await.unwrap();
    stream.write_all(bytes).await.unwrap();
    // The other half stays open: a client that closes it is taken for one that has hung up, and gets no answer.
    let mut answer = Vec::new();
    let read = stream.read_to_end(&mut answer);
    drop(tokio::time::timeout(Duration::from_secs(20), read).await.expect("it closes the connection"));
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn smuggled_and_malformed_requests_reach_nobody() {
    let rig = Rig::start(sim(), "").await;
    let key = key_of("search");
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {key}\r\n");
    let body = chat(MODEL, "smuggled").to_string();
    let length = body.len();
    let inner = format!("{head}content-length: {length}\r\n\r\n{body}");
    for (what, request) in [
        ("two lengths", format!("{head}content-length: 4\r\ncontent-length: 5\r\n\r\nabcde{inner}")),
        ("a length that is none", format!("{head}content-length: -1\r\n\r\n{inner}")),
        ("a length with a plus", format!("{head}content-length: +5\r\n\r\nabcde{inner}")),
        ("an odd coding", format!("{head}transfer-encoding: xchunked\r\n\r\n0\r\n\r\n{inner}")),
        ("a chunk of no size", format!("{head}transfer-encoding: chunked\r\n\r\nzz\r\n\r\n{inner}")),
        ("a line break in a header", format!("{head}x-a: b\r\n\tc: d\r\n\r\n{inner}")),
        ("a space before the colon", format!("{head}content-length : 3\r\n\r\nabc{inner}")),
        ("a null byte", format!("{head}x-a: b\0c\r\n\r\n{inner}")),
        ("no host and a strange version", format!("POST {CHAT} HTTP/3.7\r\n\r\n{inner}")),
        ("not HTTP", "\x16\x03\x01\x02\x00garbage".to_owned()),
    ] {
        let answer = raw(&rig.daemon, request.as_bytes()).await;
        assert!(!answer.contains(" 200 OK"), "{what}: {answer}");
    }
    // A length beside chunks: the chunks count (RFC 9112, 6.3), and what follows them is no second request of a smuggler's.
    let both = format!(
        "{head}connection: close\r\ncontent-length: 4\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
    );
    assert!(raw(&rig.daemon, both.as_bytes()).await.starts_with("HTTP/1.1 400"));
    assert_eq!(rig.provider.bill().requests(Mode::Realtime), 0);

    let huge = format!("{head}x-huge: {}\r\n\r\n", "a".repeat(1 << 20));
    let mut stream = TcpStream::connect(rig.daemon.data).await.unwrap();
    drop(stream.write_all(huge.as_bytes()).await);
    let mut answer = Vec::new();
    drop(stream.read_to_end(&mut answer).await);
    assert!(!String::from_utf8_lossy(&answer).contains("200 OK"));
    assert!(rig.daemon.ask(MODEL, "others are served").await.status.is_success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hard_budget_buys_nothing_that_has_no_price() {
    let nameless = "nameless-1";
    let budget = "[tenants.search.budget]\nday_usd = \"10\"";
    let rig = Rig::start(sim().models([MODEL, nameless]), budget).await;
    for sla in ["realtime", "24h"] {
        let refused = rig.daemon.defer("search", nameless, "how much?", sla).await;
        assert_eq!(refused.error(), (403, "model_without_price"), "{sla}");
        let message = refused.body["error"]["message"].as_str().unwrap();
        assert!(message.contains(nameless) && message.contains("costs.prices"), "{message}");
    }
    assert_eq!(rig.provider.bill().requests(Mode::Realtime), 0);
    assert!(rig.daemon.ask(MODEL, "this has one").await.status.is_success());
    let body = chat(nameless, "no budget, no question");
    assert!(send(rig.daemon.post_as("mail", CHAT, &body)).await.status.is_success());

    rig.daemon.reload(&rig.upstream, &format!("{budget}\nunpriced = \"allow\"")).await;
    assert!(rig.daemon.ask(nameless, "whatever it costs").await.status.is_success());
    // With a price it is bought and counted under the strict budget again.
    let folder = tempfile::tempdir().unwrap();
    let prices = folder.path().join("prices.json");
    let text =
        json!({ nameless: { "input_cost_per_token": 1e-6, "output_cost_per_token": 1e-6 } }).to_string();
    std::fs::write(&prices, text).unwrap();
    rig.daemon.reload(&rig.upstream, &format!("{budget}\n[costs]\nprices = {prices:?}")).await;
    assert!(rig.daemon.ask(nameless, "now there is one").await.status.is_success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_budget_holds_for_calls_that_come_together_and_is_remembered() {
    let provider = sim().build();
    let server = provider_sim::Server::on_free_port(provider.clone()).await.unwrap();
    let settings = "[tenants.search.budget]\nday_usd = \"0.0002\"";
    let daemon = Daemon::start(&server.url(), settings).await;
    let call = |n: usize| {
        let mut body = chat(MODEL, &format!("costly {n}"));
        body["max_tokens"] = json!(20);
        daemon.post(CHAT, &body)
    };
    let answers = futures_util::future::join_all((0..200).map(|n| send(call(n)))).await;
    let refused = answers.iter().filter(|answer| answer.status != StatusCode::OK);
    for answer in refused.clone() {
        assert_eq!(answer.error(), (429, "insufficient_quota"), "{answer:?}");
        assert_eq!(answer.header("x-should-retry"), "false");
    }
    assert!(refused.count() > 0);
    eventually("the budget is used up", async || {
        (send(call(999)).await.status != StatusCode::OK).then_some(())
    })
    .await;
    // 0.0002 dollars, and no more than one answer beyond: estimates are by the longest answer.
    let billed = provider.bill().total().0;
    assert!((100_000_000..=220_000_000).contains(&billed), "{billed}");
    let deferred = daemon.defer("search", MODEL, "later", "24h").await;
    assert!(send(daemon.post_as("mail", CHAT, &chat(MODEL, "others go on"))).await.status.is_success());
    assert!(deferred.status.as_u16() == 202 || deferred.error().1 == "insufficient_quota");

    // A budget that was forgotten would be there anew. How much is reckoned for a call is what was learnt before.
    let before = provider.bill().cost(Mode::Realtime).0;
    let daemon = daemon.restart(&server.url(), settings).await;
    let refused = eventually("the budget is still used up", async || {
        let mut body = chat(MODEL, "after a restart");
        body["max_tokens"] = json!(20);
        let answer = send(daemon.post(CHAT, &body)).await;
        (answer.status != StatusCode::OK).then_some(answer)
    })
    .await;
    assert_eq!(refused.error(), (429, "insufficient_quota"));
    let billed = billed + provider.bill().cost(Mode::Realtime).0 - before;
    assert!(billed <= 220_000_000, "{billed}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tenants_limits_and_prices_change_without_a_restart() {
    let provider = sim().build();
    let server = provider_sim::Server::on_free_port(provider.clone()).await.unwrap();
    let daemon = Daemon::start(&server.url(), "[tenants.search]\nrequests_per_minute = 1").await;
    assert!(daemon.ask(MODEL, "one").await.status.is_success());
    assert_eq!(daemon.ask(MODEL, "two").await.error(), (429, "rate_limit_exceeded"));
    daemon
        .reload(&server.url(), "[tenants.search]\nrequests_per_minute = 1\n[tenants.mail]\nconcurrent = 9")
        .await;
    assert_eq!(
        daemon.ask(MODEL, "three").await.error(),
        (429, "rate_limit_exceeded"),
        "what is taken stays taken"
    );

    let folder = tempfile::tempdir().unwrap();
    let prices = folder.path().join("prices.json");
    std::fs::write(&prices, r#"{"gpt-4o-mini": {"input_cost_per_token": 1, "output_cost_per_token": 1}}"#)
        .unwrap();
    let settings =
        format!("costs.prices = '{}'\n[tenants.search]\nrequests_per_minute = 100", prices.display());
    daemon.reload(&server.url(), &settings).await;
    assert!(daemon.ask(MODEL, "four").await.status.is_success());
    eventually("a dollar a token", async || {
        let total = daemon.admin("/admin/v1/costs").await.body["total"].clone();
        let cost: f64 = total["cost_usd"].as_str()?.parse().ok()?;
        (cost > 1.0).then_some(())
    })
    .await;
    daemon.stop().await;
}

/// Where alerts go: what it has heard, and how many of the first calls it refuses.
struct Hearer {
    heard: std::sync::Arc<parking_lot::Mutex<Vec<(String, Value)>>>,
    calls: std::sync::Arc<std::sync::atomic::AtomicU32>,
    server: crate::upstream::Upstream,
}

impl Hearer {
    async fn deaf_for(first: u32) -> Self {
        use std::sync::atomic::Ordering;

        let (heard, calls) = (std::sync::Arc::default(), std::sync::Arc::default());
        let hearing: std::sync::Arc<parking_lot::Mutex<Vec<(String, Value)>>> = std::sync::Arc::clone(&heard);
        let counting: std::sync::Arc<std::sync::atomic::AtomicU32> = std::sync::Arc::clone(&calls);
        let server = crate::upstream::Upstream::start(move |request: http::Request<bytes::Bytes>| {
            let (heard, calls) = (hearing.clone(), counting.clone());
            async move {
                let id = request.headers()["webhook-id"].to_str().unwrap().to_owned();
                assert!(request.headers().contains_key("webhook-signature"));
                let mut answer = http::Response::new(crate::upstream::full(""));
                if calls.fetch_add(1, Ordering::SeqCst) < first {
                    *answer.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                } else {
                    heard.lock().push((id, serde_json::from_slice(request.body()).unwrap()));
                }
                answer
            }
        })
        .await;
        Self { heard, calls, server }
    }

    /// A soft budget of a month, and this as the place where alerts go.
    fn settings(&self, month_usd: &str) -> String {
        format!(
            "[tenants.search.budget]\nmonth_usd = \"{month_usd}\"\nhard = false\n\
             [alerts]\nurl = \"{}\"\nsecret = {{ env = \"ALERTS_SECRET\" }}\ninternal = true",
            self.server.url
        )
    }

    fn percents(&self) -> Vec<u64> {
        self.heard.lock().iter().map(|(_, body)| body["data"]["percent"].as_u64().unwrap()).collect()
    }

    async fn hears(&self, percents: &[u64]) {
        eventually(&format!("it hears {percents:?}"), async || (self.percents() == percents).then_some(()))
            .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_share_of_a_budget_is_told_to_a_webhook_until_it_listens() {
    use std::sync::atomic::Ordering;

    let hearer = Hearer::deaf_for(1).await;
    let rig = Rig::start(sim(), &hearer.settings("0.000001")).await;
    assert!(rig.daemon.ask(MODEL, "over the budget at once").await.status.is_success(), "it is soft");
    hearer.hears(&[100]).await;
    let (id, body) = hearer.heard.lock()[0].clone();
    assert!(id.starts_with("msg_"));
    assert_eq!((&body["type"], &body["data"]["tenant"]), (&json!("budget.reached"), &json!("search")));
    assert_eq!(&body["data"]["period"], &json!("month"));
    assert_eq!(hearer.calls.load(Ordering::SeqCst), 2, "the first call was refused and tried again");
}

/// What is spent so far, in pico-dollars, as soon as `calls` calls are in the ledger.
async fn spent_after(daemon: &Daemon, calls: u64) -> u64 {
    eventually("the calls are in the ledger", async || {
        let total = daemon.admin("/admin/v1/costs").await.body["total"].clone();
        let dollars: f64 = total["cost_usd"].as_str()?.parse().ok()?;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "parts of a cent")]
        (total["outcomes"] == json!(calls)).then_some((dollars * 1e12).round() as u64)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn each_share_is_told_once_in_its_turn_over_restarts_and_changes_of_the_budget() {
    use std::sync::atomic::Ordering;

    let provider = sim().build();
    let server = provider_sim::Server::on_free_port(provider.clone()).await.unwrap();
    let hearer = Hearer::deaf_for(0).await;
    let budget = |pico: u64| hearer.settings(&format!("0.{pico:012}"));
    // What is spent before anybody is told of it: as after a kill between the ledger and the alert.
    let quiet = "[tenants.search.budget]\nmonth_usd = 1";
    let daemon = Daemon::start(&server.url(), quiet).await;
    assert!(daemon.ask(MODEL, "the first").await.status.is_success());
    let spent = spent_after(&daemon, 1).await;
    let daemon = daemon.restart(&server.url(), &budget(spent * 10 / 6)).await;
    hearer.hears(&[50]).await;
    let daemon = daemon.restart(&server.url(), &budget(spent * 10 / 6)).await;
    daemon.reload(&server.url(), &budget(spent * 10 / 9)).await;
    hearer.hears(&[50, 80]).await;
    assert!(daemon.ask(MODEL, "beyond it").await.status.is_success());
    hearer.hears(&[50, 80, 100]).await;
    assert!(daemon.ask(MODEL, "further beyond it").await.status.is_success());
    spent_after(&daemon, 3).await;
    let daemon = daemon.restart(&server.url(), &budget(spent * 10 / 9)).await;
    assert!(daemon.ask(MODEL, "still further").await.status.is_success());
    spent_after(&daemon, 4).await;
    daemon.stop().await;
    assert_eq!((hearer.percents(), hearer.calls.load(Ordering::SeqCst)), (vec![50, 80, 100], 3));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_dead_receiver_did_not_hear_is_told_after_a_restart() {
    use std::sync::atomic::Ordering;

    let provider = sim().build();
    let server = provider_sim::Server::on_free_port(provider.clone()).await.unwrap();
    let hearer = Hearer::deaf_for(1).await;
    let settings = hearer.settings("0.000001");
    let daemon = Daemon::start(&server.url(), &settings).await;
    assert!(daemon.ask(MODEL, "nobody hears of it").await.status.is_success());
    eventually("it was tried", async || (hearer.calls.load(Ordering::SeqCst) == 1).then_some(())).await;
    let daemon = daemon.restart(&server.url(), &settings).await;
    hearer.hears(&[100]).await;
    // What is told at the very end is kept before the daemon stops.
    let daemon = daemon.restart(&server.url(), &hearer.settings("1")).await;
    daemon.reload(&server.url(), &hearer.settings("0.000002")).await;
    let daemon = daemon.restart(&server.url(), &hearer.settings("0.000002")).await;
    hearer.hears(&[100, 100]).await;
    daemon.stop().await;
}
