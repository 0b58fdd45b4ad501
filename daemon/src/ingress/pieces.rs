//! A request's body, piece by piece: bounded in size and patience, and never more of it in memory than one reader took.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream::{Stream, StreamExt};
use http::StatusCode;
use http_body::Body;
use tokio::time::{Instant, Sleep};

use crate::body::RequestBody;
use crate::reply::Refusal;

/// A client may pause this long between two pieces.
const PATIENCE: Duration = Duration::from_secs(30);

/// After so many bytes without a pause the reader gets its turn: a reader that takes whatever is there would otherwise
/// take all.
const TURN: usize = 256 << 10;

/// The body as a stream.
pub struct Pieces {
    body: RequestBody,
    left: u64,
    most: u64,
    since_pause: usize,
    timer: Pin<Box<Sleep>>,
    broken: Option<Broken>,
}

/// Why a body ended before its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Broken {
    /// It is larger than it may be.
    #[error("the body is larger than {0} bytes")]
    TooLarge(u64),
    /// Nothing came for a while.
    #[error("the body stopped coming")]
    Slow,
    /// The connection broke.
    #[error("the body broke off")]
    Off,
}

impl Pieces {
    /// At most so many bytes.
    pub fn new(body: RequestBody, most: u64) -> Self {
        let timer = Box::pin(tokio::time::sleep(PATIENCE));
        Self { body, left: most, most, since_pause: 0, timer, broken: None }
    }

    /// Reads and forgets the rest: a client that still sends does not read why it was refused.
    pub async fn drain(&mut self) {
        while let Some(Ok(_)) = self.next().await {}
    }

    /// What stopped the body, if something did.
    pub const fn broken(&self) -> Option<Broken> {
        self.broken
    }

    fn next_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Bytes, Broken>>> {
        loop {
            if self.since_pause >= TURN {
                self.since_pause = 0;
                context.waker().wake_by_ref();
                return Poll::Pending;
            }
            let frame = match Pin::new(&mut self.body).poll_frame(context) {
                Poll::Ready(frame) => frame,
                Poll::Pending => {
                    self.since_pause = 0;
                    ready!(self.timer.as_mut().poll(context));
                    return Poll::Ready(Some(Err(Broken::Slow)));
                }
            };
            self.timer.as_mut().reset(Instant::now() + PATIENCE);
            let Some(frame) = frame else { return Poll::Ready(None) };
            let Ok(frame) = frame else { return Poll::Ready(Some(Err(Broken::Off))) };
            let Ok(data) = frame.into_data() else { continue };
            self.since_pause += data.len();
            let Some(left) = self.left.checked_sub(data.len() as u64) else {
                return Poll::Ready(Some(Err(Broken::TooLarge(self.most))));
            };
            self.left = left;
            return Poll::Ready(Some(Ok(data)));
        }
    }
}

impl Stream for Pieces {
    type Item = Result<Bytes, Broken>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if self.broken.is_some() {
            return Poll::Ready(None);
        }
        let piece = ready!(self.next_frame(context));
        if let Some(Err(broken)) = piece {
            self.broken = Some(broken);
        }
        Poll::Ready(piece)
    }
}

impl From<Broken> for Refusal {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::TooLarge(most) => {
                let message =
                    format!("The request's body is larger than {most} bytes. Split it into several.");
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, "request_too_large", message)
            }
            Broken::Slow => {
                let message = "The request's body stopped coming before its end. Send it again.";
                Self::new(StatusCode::REQUEST_TIMEOUT, "body_timeout", message)
            }
            Broken::Off => {
                let message = "The request's body broke off before its end. Send it again.";
                Self::bad_request("incomplete_body", message)
            }
        }
    }
}
