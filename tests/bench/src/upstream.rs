//! The provider behind everything: as fast as it can be, so that the path to it is what is measured.
//!
//! `POST` anything: a completion of 1 KB. With the header `x-bench-chunks: N` a stream of N events instead, each written
//! on its own; `x-bench-gap-ms: T` puts so long a pause between them.

use std::convert::Infallible;
use std::io::Write as _;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::time::{Interval, MissedTickBehavior, interval};

use crate::error::{Context, Error};

/// How many events a stream has; without it the answer comes in one piece.
pub const CHUNKS: &str = "x-bench-chunks";

/// Milliseconds between two events.
pub const GAP: &str = "x-bench-gap-ms";

/// The answer in one piece: 1024 bytes with its padding.
pub const COMPLETION_BYTES: usize = 1024;

/// One event of a stream.
pub const EVENT: &str = concat!(
    r#"data: {"id":"chatcmpl-BmYxQ2L9sW3nT7vK1pRd5HcZ8aFgE","object":"chat.completion.chunk","created":1763940000,"#,
    r#""model":"gpt-5-mini-2025-08-07","service_tier":"default","system_fingerprint":"fp_a1b2c3d4e5","#,
    r#""choices":[{"index":0,"delta":{"content":" offshore"},"logprobs":null,"finish_reason":null}],"#,
    r#""obfuscation":"k3Jw9"}"#,
    "\n\n"
);

/// The end of a stream.
pub const LAST_EVENT: &str = "data: [DONE]\n\n";

/// The headers of an answer of the real thing.
const HEADERS: [(&str, &str); 10] = [
    ("access-control-expose-headers", "X-Request-ID"),
    ("openai-organization", "acme-1a2b3c"),
    ("openai-processing-ms", "412"),
    ("openai-version", "2020-10-01"),
    ("x-ratelimit-limit-requests", "10000"),
    ("x-ratelimit-limit-tokens", "2000000"),
    ("x-ratelimit-remaining-requests", "9999"),
    ("x-ratelimit-remaining-tokens", "1999742"),
    ("x-ratelimit-reset-requests", "6ms"),
    ("x-request-id", "req_5f0c2d1b7a9e4c3f8d6b0a1e2c4d6f80"),
];

/// Serves until the process is ended. Writes the address as the first line of standard output.
pub async fn serve(listen: SocketAddr) -> Result<(), Error> {
    let listener = TcpListener::bind(listen).await.context(format!("listening on {listen}"))?;
    let address = listener.local_addr().context("asking for the address")?;
    let mut out = std::io::stdout();
    writeln!(out, "{address}").and_then(|()| out.flush()).context("writing the address")?;
    let answers = Answers::new();
    loop {
        let (stream, _) = listener.accept().await.context("accepting a connection")?;
        stream.set_nodelay(true).context("setting TCP_NODELAY")?;
        let answers = answers.clone();
        let service = service_fn(move |request| {
            let answers = answers.clone();
            async move { Ok::<_, Infallible>(answers.answer(request).await) }
        });
        tokio::spawn(async move {
            // A connection that breaks is seen at its other end.
            drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
        });
    }
}

/// What is the same in all answers.
#[derive(Clone)]
struct Answers {
    headers: HeaderMap,
    completion: Bytes,
}

impl Answers {
    fn new() -> Self {
        let headers =
            HEADERS.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        Self { headers: headers.into_iter().collect(), completion: completion().into() }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Answer> {
        let chunks = number(request.headers(), CHUNKS);
        let gap = number(request.headers(), GAP).unwrap_or(0);
        let mut body = request.into_body();
        while let Some(Ok(_)) = body.frame().await {}
        let (answer, kind) = match chunks {
            Some(chunks) => (Answer::stream(chunks, gap), "text/event-stream; charset=utf-8"),
            None => (Answer::Whole(Some(self.completion.clone())), "application/json"),
        };
        let mut response = Response::new(answer);
        *response.headers_mut() = self.headers.clone();
        response.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static(kind));
        response
    }
}

/// A completion, padded to its size within the text.
fn completion() -> String {
    let head = r#"{"id":"chatcmpl-BmYxQ2L9sW3nT7vK1pRd5HcZ8aFgE","object":"chat.completion","created":1763940000,"model":"gpt-5-mini-2025-08-07","choices":[{"index":0,"message":{"role":"assistant","content":""#;
    let tail = r#"","refusal":null,"annotations":[]},"logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":258,"completion_tokens":96,"total_tokens":354,"prompt_tokens_details":{"cached_tokens":0,"audio_tokens":0}},"service_tier":"default","system_fingerprint":"fp_a1b2c3d4e5"}"#;
    let text = "The wind turned at four. ".repeat(COMPLETION_BYTES);
    let room = COMPLETION_BYTES.saturating_sub(head.len() + tail.len());
    format!("{head}{}{tail}", text.get(..room).unwrap_or_default())
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

enum Answer {
    Whole(Option<Bytes>),
    Events { left: u64, pace: Pace },
    Over,
}

/// What comes between two events.
enum Pace {
    /// So much time.
    Gap(Pin<Box<Interval>>),
    /// Only the write of the event before; true once that was given a chance.
    None { waited: bool },
}

impl Answer {
    fn stream(chunks: u64, gap_ms: u64) -> Self {
        let pace = if gap_ms == 0 {
            Pace::None { waited: true }
        } else {
            let mut gap = interval(Duration::from_millis(gap_ms));
            gap.set_missed_tick_behavior(MissedTickBehavior::Delay);
            Pace::Gap(Box::pin(gap))
        };
        Self::Events { left: chunks, pace }
    }
}

impl Pace {
    fn poll(&mut self, context: &mut TaskContext<'_>) -> Poll<()> {
        match self {
            Self::Gap(gap) => gap.poll_tick(context).map(drop),
            Self::None { waited } => {
                *waited = !*waited;
                if *waited {
                    return Poll::Ready(());
                }
                // hyper writes what it has when a body is not ready.
                context.waker().wake_by_ref();
                Poll::Pending
            }
        }
    }
}

impl Body for Answer {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        let answer = self.get_mut();
        let frame = match answer {
            Self::Whole(body) => body.take(),
            Self::Events { left: 0, .. } => {
                *answer = Self::Over;
                Some(Bytes::from_static(LAST_EVENT.as_bytes()))
            }
            Self::Events { left, pace } => {
                if pace.poll(context).is_pending() {
                    return Poll::Pending;
                }
                *left -= 1;
                Some(Bytes::from_static(EVENT.as_bytes()))
            }
            Self::Over => None,
        };
        Poll::Ready(frame.map(|data| Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        matches!(self, Self::Whole(None) | Self::Over)
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            _ => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_completion_is_json_of_its_size() {
        let text = completion();
        assert_eq!(text.len(), COMPLETION_BYTES);
        assert!(serde_json::from_str::<serde_json::Value>(&text).is_ok());
    }

    #[tokio::test]
    async fn a_stream_has_its_events_and_its_end() {
        let body = Answer::stream(3, 0).collect().await.unwrap().to_bytes();
        assert_eq!(body, format!("{}{LAST_EVENT}", EVENT.repeat(3)));
    }
}
