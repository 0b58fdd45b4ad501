//! Clients that take their time, on a clock that does not.

use http::StatusCode;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use super::*;
use crate::ingress::read_body;
use crate::reply::Dialect;

const MOST: usize = 1 << 10;

/// Reads bodies as the data plane does.
async fn answer(request: Request<RequestBody>) -> Response<ReplyBody> {
    let (head, body) = request.into_parts();
    match read_body(&head.headers, body, MOST, |_| Ok(())).await {
        Ok(_) => Response::new(ReplyBody::Whole(None)),
        Err(refusal) => refusal.into_response(Dialect::OpenAi, "id"),
    }
}

/// Begins with `begun`, then sends a piece after each pause; what the server says until it closes the connection, and how
/// long that took.
async fn dawdle(begun: &str, piece: &'static str, pause: Duration) -> (String, Duration) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let terms = Terms { max_connections: 9, drain: Duration::ZERO, tls: None };
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, None, terms, stop.clone(), answer));
    let started = Instant::now();
    let (mut read, mut write) = TcpStream::connect(address).await.unwrap().into_split();
    write.write_all(begun.as_bytes()).await.unwrap();
    let writing = tokio::spawn(async move {
        loop {
            tokio::time::sleep(pause).await;
            if write.write_all(piece.as_bytes()).await.is_err() {
                return;
            }
        }
    });
    let mut said = Vec::new();
    // A server that closes while bytes are on their way resets the connection, and then there is no more to read either.
    drop(read.read_to_end(&mut said).await);
    let took = started.elapsed();
    writing.abort();
    stop.cancel();
    serving.await.unwrap();
    (String::from_utf8_lossy(&said).into_owned(), took)
}

const NEVER: Duration = Duration::from_hours(9);

#[tokio::test(start_paused = true)]
async fn a_connection_that_asks_for_nothing_is_closed() {
    for begun in ["", "P", "POST /v1/x HTTP/1.1\r\nhost: x\r\nx-slow: "] {
        let (said, took) = dawdle(begun, "", NEVER).await;
        assert!(said.is_empty() || said.starts_with("HTTP/1.1 408"), "{begun:?}: {said}");
        assert!((HEAD_TIMEOUT..=2 * HEAD_TIMEOUT).contains(&took), "{begun:?}: {took:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_head_that_comes_letter_by_letter_has_no_more_time() {
    let (_, took) = dawdle("POST /v1/x HTTP/1.1\r\nhost: x\r\nx-slow: ", "a", Duration::from_secs(1)).await;
    assert!(took <= 2 * HEAD_TIMEOUT, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_stops_coming_is_not_waited_for() {
    let head = "POST /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n{";
    let (said, took) = dawdle(head, "", NEVER).await;
    assert!(said.starts_with(&format!("HTTP/1.1 {}", StatusCode::REQUEST_TIMEOUT)), "{said}");
    assert!(took <= Duration::from_mins(1), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_comes_letter_by_letter_ends_some_time() {
    let head = "POST /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 1000\r\n\r\n";
    let (said, took) = dawdle(head, "a", Duration::from_secs(20)).await;
    assert!(said.starts_with("HTTP/1.1 408"), "{said}");
    assert!(took <= Duration::from_mins(11), "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn a_body_is_refused_as_soon_as_it_is_too_large() {
    let announced = format!(
        "POST /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {}\r\n\r\n",
        MOST + 1
    );
    let (said, took) = dawdle(&announced, "", NEVER).await;
    assert!(said.starts_with("HTTP/1.1 413") && took < Duration::from_secs(1), "{took:?}: {said}");
    let head = "POST /v1/x HTTP/1.1\r\nhost: x\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
    let (said, took) = dawdle(head, "10\r\n0123456789abcdef\r\n", Duration::from_secs(1)).await;
    assert!(said.starts_with("HTTP/1.1 413"), "{said}");
    assert!(took <= Duration::from_secs(70), "{took:?}");
}
