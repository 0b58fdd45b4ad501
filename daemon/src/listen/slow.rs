//! Clients that take their time, on a clock that does not.

use std::net::SocketAddr;

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::*;
use crate::ingress::read_body;
use crate::reply::Dialect;

const MOST: usize = 1 << 10;

/// More than sockets hold.
const LARGE: usize = 64 << 20;

/// Reads bodies as the data plane does; a large answer is to be had, too.
async fn answer(request: Request<RequestBody>) -> Response<ReplyBody> {
    if request.uri().path() == "/large" {
        return Response::new(ReplyBody::Whole(Some(vec![b' '; LARGE].into())));
    }
    let (head, body) = request.into_parts();
    match read_body(&head.headers, body, MOST, |_| Ok(())).await {
        Ok(_) => Response::new(ReplyBody::Whole(None)),
        Err(refusal) => refusal.into_response(Dialect::OpenAi, "id"),
    }
}

/// A listener that reads bodies and answers.
struct Server {
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<()>,
}

impl Server {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let terms = Terms { max_connections: 9, drain: Duration::ZERO, tls: None };
        let stop = CancellationToken::new();
        let serving = tokio::spawn(serve(listener, None, terms, stop.clone(), answer));
        Self { address, stop, serving }
    }

    async fn stop(self) {
        self.stop.cancel();
        self.serving.await.unwrap();
    }
}

/// What the server said until it closed the connection.
struct Said {
    text: String,
    /// After so long it said the first of it,
    answered: Option<Duration>,
    /// and after so long it closed the connection.
    closed: Duration,
}

/// Begins with `begun`, then sends a piece after each pause.
async fn dawdle(begun: &str, piece: &'static str, pause: Duration) -> Said {
    let server = Server::start().await;
    let started = Instant::now();
    let (mut read, mut write) = TcpStream::connect(server.address).await.unwrap().into_split();
    write.write_all(begun.as_bytes()).await.unwrap();
    let writing = tokio::spawn(async move {
        loop {
            tokio::time::sleep(pause).await;
            if write.write_all(piece.as_bytes()).await.is_err() {
                return;
            }
        }
    });
    let (mut said, mut answered) = (Vec::new(), None);
    // A server that closes while bytes are on their way resets the connection, and then there is no more to read either.
    while read.read_buf(&mut said).await.is_ok_and(|bytes| bytes > 0) {
        answered.get_or_insert_with(|| started.elapsed());
    }
    let closed = started.elapsed();
    writing.abort();
    server.stop().await;
    Said { text: String::from_utf8_lossy(&said).into_owned(), answered, closed }
}

const NEVER: Duration = Duration::from_hours(9);

#[tokio::test(start_paused = true)]
async fn a_connection_that_asks_for_nothing_is_closed() {
    for begun in ["", "P", "POST /v1/x HTTP/1.1\r\nhost: x\r\nx-slow: "] {
        let Said { text: said, closed: took, .. } = dawdle(begun, "", NEVER).await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{begun:?}: {said}");
        assert!((HEAD_TIMEOUT..=2 * HEAD_TIMEOUT).contains(&took), "{begun:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_comes_letter_by_letter_has_no_more_time() {
    let took = dawdle("POST /v1/x HTTP/1.1\r\nhost: x\r\nx-slow: ", "a", Duration::from_secs(1)).await.closed;
    assert!(took <= 2 * HEAD_TIMEOUT, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stops_coming_is_not_waited_for() {
    let head = "POST /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n{";
    let Said { text: said, closed: took, .. } = dawdle(head, "", NEVER).await;
    assert!(said.starts_with(&format!("HTTP/1.1 {}", StatusCode::REQUEST_TIMEOUT)), "{said}");
    assert!(took <= Duration::from_mins(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_comes_letter_by_letter_ends_some_time() {
    let head = "POST /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n";
    let Said { text: said, closed: took, .. } = dawdle(head, "a", Duration::from_secs(20)).await;
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    assert!(took <= Duration::from_mins(11), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_is_refused_as_soon_as_it_is_too_large() {
    let announced = format!(
        "POST /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        MOST + 1
    );
    let said = dawdle(&announced, "", NEVER).await;
    assert!(said.text.starts_with("HTTP/1.1 413"), "{}", said.text);
    assert!(said.answered.unwrap() < Duration::from_secs(1), "{:?}", said.answered);
    assert!(said.closed < Duration::from_secs(6), "what does not come is not waited for: {:?}", said.closed);
    let head = "POST /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let said = dawdle(head, "10\r\n0123456789abcdef\r\n", Duration::from_secs(1)).await;
    assert!(said.text.starts_with("HTTP/1.1 413"), "{}", said.text);
    assert!(said.answered.unwrap() <= Duration::from_secs(70), "{:?}", said.answered);
    assert!(
        said.closed <= Duration::from_secs(105),
        "what goes on for ever is not read for ever: {:?}",
        said.closed
    );
}

#[tokio::test(start_paused = true)]
async fn who_does_not_read_is_not_waited_for() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\n\r\n").await.unwrap();
    tokio::time::sleep(unread::PATIENCE * 2).await;
    let mut said = Vec::new();
    // What was on its way comes, and then no more.
    drop(stream.read_to_end(&mut said).await);
    assert!(said.len() < LARGE, "{} bytes", said.len());
    server.stop().await;
}

#[tokio::test(start_paused = true)]
async fn who_reads_slowly_gets_all() {
    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    stream.write_all(b"GET /large HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut stream = stream.into_std().unwrap();
    stream.set_nonblocking(false).unwrap();
    let mut said = 0;
    loop {
        tokio::time::sleep(unread::PATIENCE / 4).await;
        // Virtual time stands still while a thread is at work, so that none passes until the kernel has handed over what is there.
        let read = tokio::task::spawn_blocking(move || {
            let mut piece = vec![0; 1 << 20];
            let bytes = std::io::Read::read(&mut stream, &mut piece).unwrap();
            (stream, bytes)
        });
        let bytes;
        (stream, bytes) = read.await.unwrap();
        if bytes == 0 {
            break;
        }
        said += bytes;
    }
    assert!(said > LARGE, "{said} bytes");
    server.stop().await;
}

#[tokio::test]
async fn who_is_refused_for_the_head_may_send_the_whole_body_before_the_answer_is_read() {
    const LENGTH: usize = 8 << 20;

    let server = Server::start().await;
    let mut stream = TcpStream::connect(server.address).await.unwrap();
    for _ in 0..2 {
        let head = format!("POST /v1/x HTTP/1.1\r\nhost: x\r\ncontent-length: {LENGTH}\r\n\r\n");
        stream.write_all(head.as_bytes()).await.unwrap();
        stream.write_all(&vec![b' '; LENGTH]).await.unwrap();
        let mut said = vec![0; 12];
        stream.read_exact(&mut said).await.unwrap();
        assert_eq!(String::from_utf8_lossy(&said), "HTTP/1.1 413");
        // The rest of the answer, whose end is the object's.
        while !said.ends_with(b"}}") {
            said.push(stream.read_u8().await.unwrap());
        }
    }
    drop(stream);
    server.stop().await;
}
