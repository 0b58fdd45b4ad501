//! What passes through is faithful: headers, bodies, statuses and streams, over HTTP/1.1 and HTTP/2.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use futures_util::StreamExt;
use http::{HeaderMap, Method, Request, Response, StatusCode, Version};
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper_util::rt::TokioIo;
use rcgen::generate_simple_self_signed;
use reqwest::Client;
use rustls::ServerConfig;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::json;
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio_rustls::TlsAcceptor;

use crate::again;
use crate::rig::{BY_HAND, CHAT, Daemon, MODEL, PROVIDER_KEY, Rig, chat, eventually, key_of, send, sim};
use crate::upstream::{Body, Upstream, full};

const LIMIT: Duration = Duration::from_mins(1);

/// Remembers what it was asked.
type Seen = Arc<Mutex<Vec<Request<Bytes>>>>;

async fn recording(answer: impl Fn() -> Response<Body> + Clone + Send + Sync + 'static) -> (Upstream, Seen) {
    let seen = Seen::default();
    let note = seen.clone();
    let upstream = Upstream::start(move |request| {
        note.lock().unwrap().push(request);
        let answer = answer();
        async move { answer }
    })
    .await;
    (upstream, seen)
}

/// A provider whose answer is what is sent here; it ends when the sender is dropped.
async fn talking() -> (Upstream, mpsc::Sender<&'static str>) {
    let (sender, receiver) = mpsc::channel::<&'static str>(1);
    let receiver = Arc::new(Mutex::new(Some(receiver)));
    let upstream = Upstream::start(move |_| {
        let receiver = receiver.lock().unwrap().take().expect("one call");
        let pieces = futures_util::stream::unfold(receiver, |mut receiver| async move {
            let piece = receiver.recv().await?;
            Some((Ok(Frame::data(Bytes::from_static(piece.as_bytes()))), receiver))
        });
        let body = StreamBody::new(pieces).boxed_unsync();
        async move { Response::builder().header("content-type", "text/event-stream").body(body).unwrap() }
    })
    .await;
    (upstream, sender)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn request_headers_and_bodies() {
    let (upstream, seen) = recording(|| Response::new(full("{}"))).await;
    let daemon = Daemon::start(&upstream.url, "").await;
    let body = "{ \"model\" :\t\"gpt-4o-mini\",\n \"messages\": [], \"x\": 1.0, \"e\": \"\\u00e9\u{e9}\" }";
    let request = Client::new().post(daemon.url(CHAT)).bearer_auth(key_of("search"));
    let headers = [
        ("content-type", "application/json; charset=utf-8"),
        ("connection", "x-for-one-connection"),
        ("x-for-one-connection", "1"),
        ("keep-alive", "timeout=5"),
        ("te", "trailers"),
        ("proxy-authorization", "Basic abc"),
        ("x-api-key", "sk-of-nobody"),
        ("x-offpeak-sla", "realtime"),
        ("x-stainless-lang", "python"),
        ("openai-organization", "org-mine"),
        ("idempotency-key", "k-1"),
        ("x-many", "one"),
        ("x-many", "two"),
    ];
    let request = headers.into_iter().fold(request, |request, (name, value)| request.header(name, value));
    request.body(body).send().await.unwrap();

    let seen = seen.lock().unwrap().pop().unwrap();
    assert_eq!(seen.body(), body, "not a byte is changed");
    assert_eq!((seen.uri().path(), seen.method().as_str()), (CHAT, "POST"));
    let headers = seen.headers();
    for gone in [
        "connection",
        "x-for-one-connection",
        "keep-alive",
        "te",
        "proxy-authorization",
        "x-api-key",
        "x-offpeak-sla",
    ] {
        assert!(!headers.contains_key(gone), "{gone}: {headers:?}");
    }
    let all = |name: &str| headers.get_all(name).iter().map(|v| v.to_str().unwrap()).collect::<Vec<_>>();
    assert_eq!(all("authorization"), [format!("Bearer {PROVIDER_KEY}")]);
    assert_eq!(all("content-type"), ["application/json; charset=utf-8"]);
    assert_eq!(all("content-length"), [body.len().to_string()]);
    assert_eq!((all("openai-organization"), all("x-stainless-lang")), (vec!["org-mine"], vec!["python"]));
    assert_eq!(all("idempotency-key"), ["k-1"]);
    assert_eq!(all("x-many"), ["one", "two"]);
    assert_eq!(all("host"), [upstream.url.trim_start_matches("http://")]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_credential_that_the_provider_refuses_is_not_shown_to_the_caller() {
    let (upstream, _) = recording(|| {
        let body = "{\"error\":{\"message\":\"Incorrect API key provided: sk-of-th***ider\"}}";
        Response::builder().status(401).body(full(body)).unwrap()
    })
    .await;
    let daemon = Daemon::start(&upstream.url, "").await;
    let response = send_plainly(&daemon).await;
    assert_eq!(response.status().as_u16(), 502);
    let body = response.text().await.unwrap();
    assert!(body.contains("backend_refused_credential") && !body.contains("sk-of"), "{body}");
    daemon.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_of_every_kind() {
    for (status, body) in [
        (200, "{ \"id\":  \"odd   spaces\" }\n"),
        (201, ""),
        (400, "{\"error\":{\"message\":\"no\",\"type\":\"t\",\"param\":null,\"code\":null}}"),
        (404, "{\"error\":\"not even the right shape\"}"),
        (302, "moved"),
        (429, "slow down"),
        (500, "<html>oh no</html>"),
        (529, "overloaded"),
    ] {
        let (upstream, _) = recording(move || {
            let answer = Response::builder().status(status).header("x-request-id", "req-1");
            let answer = answer.header("x-many", "a=1").header("x-many", "b=2").header("retry-after", "7");
            // What the provider says to the holder of its account alone.
            let answer = answer.header("set-cookie", "a=1").header("openai-organization", "org-secret");
            let answer = answer.header("x-ratelimit-remaining-requests", "9");
            let answer =
                answer.header("connection", "x-inner").header("x-inner", "1").header("location", "/x");
            answer.header("content-type", "application/x-own").body(full(body)).unwrap()
        })
        .await;
        let daemon = Daemon::start(&upstream.url, "").await;
        let response = send_plainly(&daemon).await;
        let headers = response.headers().clone();
        assert_eq!(response.status().as_u16(), status);
        for (name, value) in [
            ("x-request-id", "req-1"),
            ("retry-after", "7"),
            ("content-type", "application/x-own"),
            ("location", "/x"),
            ("x-offpeak-mode", "realtime"),
        ] {
            assert_eq!(headers[name], value, "{status}");
        }
        assert_eq!(headers.get_all("x-many").iter().count(), 2);
        for name in ["set-cookie", "openai-organization", "x-ratelimit-remaining-requests"] {
            assert!(!headers.contains_key(name), "{name}");
        }
        assert!(!headers.contains_key("x-inner"), "it was about the connection to the provider");
        assert!(!headers["x-offpeak-request-id"].is_empty());
        assert_eq!(response.text().await.unwrap(), body, "{status}");
        daemon.stop().await;
    }
}

/// Without following redirects, and without reading what was compressed.
async fn send_plainly(daemon: &Daemon) -> reqwest::Response {
    let client = Client::builder().no_proxy().redirect(reqwest::redirect::Policy::none()).build().unwrap();
    let request = client.post(daemon.url(CHAT)).bearer_auth(key_of("search")).json(&chat(MODEL, "x"));
    request.timeout(LIMIT).send().await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_piece_of_a_stream_arrives_before_the_next_is_made() {
    let (upstream, talk) = talking().await;
    let daemon = Daemon::start(&upstream.url, "").await;
    let mut body = chat(MODEL, "slowly");
    body["stream"] = true.into();
    let response = daemon.post(CHAT, &body).send().await.unwrap();
    let mut pieces = response.bytes_stream();
    for piece in ["data: one\n\n", "data: two\n\n", "data: [DONE]\n\n"] {
        talk.send(piece).await.unwrap();
        // The next is sent only when this one is here: a buffer on the way would stop it all.
        let arrived = tokio::time::timeout(LIMIT, pieces.next()).await.expect("it arrives").unwrap().unwrap();
        assert_eq!(arrived, piece);
    }
    drop(talk);
    assert!(pieces.next().await.is_none());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_hangs_up_ends_the_call_upstream() {
    let (upstream, talk) = talking().await;
    let daemon = Daemon::start(&upstream.url, "").await;
    let mut response = daemon.post(CHAT, &chat(MODEL, "x")).send().await.unwrap();
    talk.send("data: one\n\n").await.unwrap();
    assert!(response.chunk().await.unwrap().is_some());
    drop(response);
    tokio::time::timeout(LIMIT, talk.closed()).await.expect("the provider notices");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_hangs_up_before_the_answer_has_used_what_may_have_run() {
    let (came, mut arrivals) = mpsc::channel(1);
    let upstream = Upstream::start(move |_| {
        let came = came.clone();
        async move {
            came.send(()).await.unwrap();
            std::future::pending().await
        }
    })
    .await;
    let settings = "[tenants.search]\nrequests_per_minute = 1\nconcurrent = 1";
    let daemon = Daemon::start(&upstream.url, settings).await;
    let asking = tokio::spawn(daemon.post(CHAT, &chat(MODEL, "x")).send());
    tokio::time::timeout(LIMIT, arrivals.recv()).await.unwrap().expect("the provider is asked");
    asking.abort();
    eventually("it is in the ledger", async || {
        let total = daemon.admin("/admin/v1/costs?by=tenant").await.body["total"].clone();
        (total["outcomes"] == 1 && total["unknown"] == 1).then_some(())
    })
    .await;
    let refused = daemon.ask(MODEL, "again").await;
    assert_eq!(
        refused.error(),
        (429, "rate_limit_exceeded"),
        "its request is used, its place is not: {refused:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_provider_that_breaks_off_is_seen_to_break_off() {
    let rig = Rig::start(sim(), "").await;
    rig.provider.faults().next(provider_sim::Endpoint::ChatCompletions, provider_sim::Fault::CutBody);
    let response = rig.daemon.post(CHAT, &chat(MODEL, "x")).send().await.unwrap();
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.bytes().await.is_err(), "half an answer is not passed off as a whole one");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn http_2_with_prior_knowledge() {
    let rig = Rig::start(sim(), "").await;
    let client = Client::builder().no_proxy().http2_prior_knowledge().timeout(LIMIT).build().unwrap();
    let ask = |prompt: String, sla: &'static str| {
        let request = client.post(rig.daemon.url(CHAT)).bearer_auth(key_of("search"));
        let request = request.json(&chat(MODEL, &prompt)).header("x-offpeak-sla", sla);
        async move {
            let response = request.send().await.unwrap();
            assert_eq!(response.version(), Version::HTTP_2);
            let body: serde_json::Value = serde_json::from_slice(&response.bytes().await.unwrap()).unwrap();
            assert_eq!(
                body["choices"][0]["message"]["content"],
                provider_sim::answer(MODEL, &prompt, None).text
            );
        }
    };
    // Many at once on one connection, now and later among each other.
    let slas = ["realtime", "24h"].into_iter().cycle();
    let asking = (0..40).zip(slas).map(|(n, sla)| ask(format!("question {n}"), sla));
    futures_util::future::join_all(asking).await;
    assert_eq!(rig.ran_twice(), 0);

    let response = client.post(rig.daemon.url(CHAT)).json(&chat(MODEL, "x")).send().await.unwrap();
    assert_eq!((response.version(), response.status().as_u16()), (Version::HTTP_2, 401));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn deferred_answers_are_the_providers_own_bytes() {
    let rig = Rig::start(sim(), "").await;
    let ticket = rig.daemon.ticket("word for word").await;
    let answer = rig.daemon.redeem(&ticket).await;
    assert!(answer.is_to(&ticket));
    let headers: &HeaderMap = &answer.headers;
    assert_eq!(headers["content-type"], "application/json");
    assert!(headers["x-request-id"].to_str().unwrap().starts_with("req_"), "the provider's name for it");
    assert_eq!(headers["x-offpeak-mode"], "deferred");
    let id = ticket.location.rsplit('/').next().unwrap();
    assert_eq!(headers["x-offpeak-request-id"], id);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_ticket_tells_its_deadline_as_long_as_it_waits() {
    let rig = Rig::start(sim(), BY_HAND).await;
    let given = rig.daemon.defer("search", MODEL, "tomorrow", "24h").await;
    let deadline = given.body["deadline_at"].as_u64().unwrap();
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    assert!((now + 86_000..=now + 86_400).contains(&deadline), "{given:?}");
    let seen = send(rig.daemon.call("search", Method::GET, given.header("location"))).await;
    assert_eq!((seen.status.as_u16(), seen.body["deadline_at"].as_u64()), (202, Some(deadline)), "{seen:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_moderation_need_not_name_its_model() {
    let path = "/v1/moderations";
    let rig = Rig::start(sim(), "").await;
    for sla in ["realtime", "24h"] {
        let call = rig.daemon.post(path, &json!({ "input": "kind words" })).header("x-offpeak-sla", sla);
        let answer = send(call).await;
        assert_eq!(
            (answer.status.as_u16(), answer.body["model"].as_str()),
            (200, Some("omni-moderation-latest")),
            "{sla}: {answer:?}"
        );
        assert_eq!(answer.body["results"].as_array().map(Vec::len), Some(1), "{sla}");
    }
    let rig = Rig::start(sim(), "[backends.simulated]\nmodels = [\"gpt-*\"]").await;
    let refused = send(rig.daemon.post(path, &json!({ "input": "kind words" }))).await;
    assert_eq!(refused.error(), (400, "missing_required_parameter"));
    let message = refused.body["error"]["message"].as_str().unwrap();
    assert!(message.contains("omni-moderation-latest") && message.contains("/v1/models"), "{message}");
}

/// On one connection, so that the same thread of the daemon's serves all of them.
async fn call_one_after_the_other(daemon: &Daemon, calls: usize) {
    let stream = TcpStream::connect(daemon.data).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for n in 0..calls {
        let body = Full::new(Bytes::from(chat(MODEL, &format!("question {n}")).to_string()));
        let request = Request::post(CHAT)
            .header("host", "offpeak")
            .header("authorization", format!("Bearer {}", key_of("search")))
            .header("content-type", "application/json");
        sender.ready().await.unwrap();
        let response = sender.send_request(request.body(body).unwrap()).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        response.into_body().collect().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_one_after_the_other_share_a_connection_to_the_backend() {
    let (upstream, seen) = recording(|| Response::new(full("{}"))).await;
    let daemon = Daemon::start(&upstream.url, "").await;
    call_one_after_the_other(&daemon, 30).await;
    assert_eq!((seen.lock().unwrap().len(), upstream.connections()), (30, 1));
    assert_eq!(seen.lock().unwrap()[0].version(), Version::HTTP_11, "without TLS nobody offers HTTP/2");
}

/// The system's root certificates are read from where `SSL_CERT_FILE` says, once a process.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_behind_tls_that_offers_http_2_is_spoken_to_by_it() {
    if !again::is_here() {
        let folder = tempfile::tempdir().unwrap();
        let (chain, key) = (folder.path().join("chain.pem"), folder.path().join("key.pem"));
        let made = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
        fs::write(&chain, made.cert.pem()).unwrap();
        fs::write(&key, made.signing_key.serialize_pem()).unwrap();
        let variables = [("SSL_CERT_FILE", chain.as_os_str()), ("BACKEND_KEY", key.as_os_str())];
        again::run("wire::a_backend_behind_tls_that_offers_http_2_is_spoken_to_by_it", &variables);
        return;
    }
    offpeak::upstream::install_crypto();
    let file = |variable: &str| PathBuf::from(std::env::var_os(variable).unwrap());
    let chain = vec![CertificateDer::from_pem_file(file("SSL_CERT_FILE")).unwrap()];
    let key = PrivateKeyDer::from_pem_file(file("BACKEND_KEY")).unwrap();
    let mut tls = ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap();
    tls.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    let seen = Seen::default();
    let note = seen.clone();
    let upstream = Upstream::start_with_tls(TlsAcceptor::from(Arc::new(tls)), move |request| {
        note.lock().unwrap().push(request);
        async { Response::new(full("{}")) }
    })
    .await;
    let daemon = Daemon::start(&upstream.url, "").await;
    call_one_after_the_other(&daemon, 10).await;
    let versions: Vec<Version> = seen.lock().unwrap().iter().map(Request::version).collect();
    assert_eq!(versions, [Version::HTTP_2; 10]);
    assert_eq!(upstream.connections(), 1);
}
