//! TLS, and clients that take their time.

use std::time::{Duration, Instant};

use http::Version;
use provider_sim::Mode;
use rcgen::generate_simple_self_signed;
use reqwest::{Certificate, Client, ClientBuilder, Identity};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::rig::{CHAT, MODEL, Rig, chat, eventually, key_of, sim};

/// Long enough for a loaded machine, and shorter than the daemon's own patience.
const PATIENCE: Duration = Duration::from_secs(20);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn applications_come_in_by_tls_and_show_their_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = folder.path().join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let server = generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let client = generate_simple_self_signed(["application".to_owned()]).unwrap();
    let settings = format!(
        "[server.tls]\ncertificate = '{}'\nkey = '{}'\nclient_ca = '{}'",
        file("chain.pem", &server.cert.pem()),
        file("key.pem", &server.signing_key.serialize_pem()),
        file("clients.pem", &client.cert.pem()),
    );
    let rig = Rig::start(sim(), &settings).await;
    let trusting = || -> ClientBuilder {
        let root = Certificate::from_pem(server.cert.pem().as_bytes()).unwrap();
        Client::builder().no_proxy().tls_certs_only([root]).resolve("localhost", rig.daemon.data)
    };
    let call = |client: Client| {
        let url = format!("https://localhost:{}{CHAT}", rig.daemon.data.port());
        client.post(url).bearer_auth(key_of("search")).json(&chat(MODEL, "by TLS")).send()
    };
    let shown = client.cert.pem() + &client.signing_key.serialize_pem();
    let identity = Identity::from_pem(shown.as_bytes()).unwrap();
    let answer = call(trusting().identity(identity).build().unwrap()).await.unwrap();
    assert_eq!((answer.status().as_u16(), answer.version()), (200, Version::HTTP_2));

    assert!(call(trusting().build().unwrap()).await.is_err(), "without a certificate nobody comes in");
    let another = generate_simple_self_signed(["application".to_owned()]).unwrap();
    let forged = another.cert.pem() + &another.signing_key.serialize_pem();
    let forged = Identity::from_pem(forged.as_bytes()).unwrap();
    assert!(call(trusting().identity(forged).build().unwrap()).await.is_err(), "nor with another's");
    let plain = Client::builder().no_proxy().build().unwrap();
    assert!(plain.get(rig.daemon.url("/v1/deferred/x")).send().await.is_err(), "nor in plain text");
    assert_eq!(rig.billed(Mode::Realtime), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_dawdle_keep_nobody_waiting() {
    let rig = Rig::start(sim(), "").await;
    let mut slow = Vec::new();
    for n in 0..200 {
        let mut stream = TcpStream::connect(rig.daemon.data).await.unwrap();
        let begun = match n % 4 {
            0 => String::new(),
            1 => "P".to_owned(),
            2 => format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nx-slow: "),
            _ => format!(
                "POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\ncontent-length: 1000\r\n\r\n{{",
                key_of("search")
            ),
        };
        stream.write_all(begun.as_bytes()).await.unwrap();
        slow.push(stream);
    }
    let started = Instant::now();
    for n in 0..20 {
        assert!(rig.daemon.ask(MODEL, &format!("quick {n}")).await.status.is_success());
    }
    assert!(started.elapsed() < Duration::from_secs(20), "{:?}", started.elapsed());
    assert_eq!(rig.billed(Mode::Realtime), 20);
    drop(slow);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_over_the_limit_wait_until_one_is_free() {
    let rig = Rig::start(sim(), "[server]\nmax_connections = 2").await;
    let connect = || TcpStream::connect(rig.daemon.data);
    let (first, second) = (connect().await.unwrap(), connect().await.unwrap());
    let mut third = connect().await.unwrap();
    third.write_all(b"GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let early = tokio::time::timeout(Duration::from_millis(300), third.read_to_end(&mut answer)).await;
    assert!(early.is_err() && answer.is_empty(), "two are all that are served");
    drop(first);
    tokio::time::timeout(PATIENCE, third.read_to_end(&mut answer)).await.expect("it is its turn").unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 401"), "{}", String::from_utf8_lossy(&answer));
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn heads_that_are_too_large_are_refused_and_others_are_served() {
    let rig = Rig::start(sim(), "").await;
    let many = (0..500).map(|n| format!("x-{n}: a\r\n")).collect::<Vec<_>>().concat();
    let large = "a".repeat(1 << 20);
    for (what, head) in [
        ("many headers", format!("GET /v1/models HTTP/1.1\r\nhost: x\r\n{many}\r\n")),
        ("a large header", format!("GET /v1/models HTTP/1.1\r\nhost: x\r\nx-large: {large}\r\n\r\n")),
        ("a long path", format!("GET /v1/files/{large} HTTP/1.1\r\nhost: x\r\n\r\n")),
    ] {
        let mut stream = TcpStream::connect(rig.daemon.data).await.unwrap();
        // The server may close before it has read everything, and then its answer may be lost on the way.
        drop(stream.write_all(head.as_bytes()).await);
        let mut answer = Vec::new();
        let read = stream.read_to_end(&mut answer);
        drop(tokio::time::timeout(PATIENCE, read).await.expect("it closes the connection"));
        let answer = String::from_utf8_lossy(&answer);
        let is_refused = ["HTTP/1.1 431", "HTTP/1.1 414"].iter().any(|status| answer.starts_with(status));
        assert!(answer.is_empty() || is_refused, "{what}: {answer}");
    }
    assert!(rig.daemon.ask(MODEL, "others are served").await.status.is_success());
}

/// How long calls in real time take, the one in the middle.
async fn median(rig: &Rig, what: &str) -> Duration {
    let mut took = Vec::new();
    for n in 0..40 {
        let started = Instant::now();
        assert!(rig.daemon.ask(MODEL, &format!("{what} {n}")).await.status.is_success());
        took.push(started.elapsed());
    }
    took.sort();
    took[took.len() / 2]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_real_time_take_as_long_as_ever_while_others_send_rubbish() {
    let rig = Rig::start(sim(), "").await;
    let address = rig.daemon.data;
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n", key_of("search"));
    let rubbish = [
        "\x16\x03\x01\x02\x00 not HTTP\r\n\r\n".to_owned(),
        format!("{head}content-length: 4\r\ncontent-length: 5\r\n\r\nabcde"),
        format!("{head}x-large: {}\r\n\r\n", "a".repeat(300_000)),
        format!("{head}content-length: 99999999999\r\n\r\n"),
        format!("{head}content-length: 9\r\nconnection: close\r\n\r\nnot JSON "),
        format!("{head}content-length: 1000\r\n\r\n{{\"model\": "),
    ];
    let quiet = median(&rig, "quiet").await;
    let sent = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
    let mut senders = tokio::task::JoinSet::new();
    for request in rubbish {
        let sent = sent.clone();
        senders.spawn(async move {
            // What has an answer is closed by the daemon; the others stay, and pile up.
            let mut open = Vec::new();
            loop {
                let mut stream = TcpStream::connect(address).await.unwrap();
                drop(stream.write_all(request.as_bytes()).await);
                open.push(stream);
                if open.len() > 100 {
                    open.remove(0);
                }
                sent.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
    }
    let so_far = || sent.load(std::sync::atomic::Ordering::Relaxed);
    eventually("it has piled up", async || (so_far() > 40).then_some(())).await;
    let loud = median(&rig, "loud").await;
    senders.shutdown().await;
    let sent = so_far();
    // They share two cores with the rubbish and with other tests, which is most of the difference.
    assert!(
        loud < quiet * 10 + Duration::from_millis(100),
        "{quiet:?} without, {loud:?} with {sent} of them"
    );
    assert_eq!(rig.billed(Mode::Realtime), 80);
}
