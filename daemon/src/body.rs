//! Bodies: of a request, as it arrives; of an answer, made here or passed on from a provider as it arrives.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::runtime::Handle;

/// The rest of a body that nobody wants is waited for as long as it keeps coming at this pace,
const REST_PATIENCE: Duration = Duration::from_secs(5);

/// and no longer than this.
const REST_TIME: Duration = Duration::from_secs(30);

/// What listeners receive.
pub enum RequestBody {
    /// It comes over a connection.
    Arriving(Arriving),
    /// All of it is there, as in a simulation.
    Whole(Option<Bytes>),
}

/// A body that comes over a connection. If it is dropped before its end, as where a request is refused for its head, the
/// rest is read and forgotten for a while: most clients send all before they look for the answer, and a connection that is
/// closed meanwhile would take the answer away with it.
pub struct Arriving(Option<Incoming>);

impl From<Incoming> for RequestBody {
    fn from(body: Incoming) -> Self {
        Self::Arriving(Arriving(Some(body)))
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        match self.get_mut() {
            Self::Arriving(body) => body.poll_frame(context),
            Self::Whole(body) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Arriving(body) => body.0.as_ref().is_none_or(Body::is_end_stream),
            Self::Whole(body) => body.is_none(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Arriving(body) => body.0.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint),
            Self::Whole(body) => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
        }
    }
}

impl Arriving {
    fn poll_frame(&mut self, context: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(body) = &mut self.0 else { return Poll::Ready(None) };
        let frame = ready!(Pin::new(body).poll_frame(context));
        if !matches!(frame, Some(Ok(_))) {
            self.0 = None;
        }
        Poll::Ready(frame)
    }
}

impl Drop for Arriving {
    fn drop(&mut self) {
        if let Some(rest) = self.0.take_if(|body| !body.is_end_stream())
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(tokio::time::timeout(REST_TIME, forget(rest)));
        }
    }
}

async fn forget(mut rest: Incoming) {
    while let Ok(Some(Ok(_))) = tokio::time::timeout(REST_PATIENCE, rest.frame()).await {}
}

/// What listeners send.
pub enum ReplyBody {
    /// All of it is known.
    Whole(Option<Bytes>),
    /// It is passed on frame by frame, unread.
    Passed(reqwest::Body),
    /// It is passed on frame by frame, and somebody looks at what passes.
    Watched(WatchedBody),
    /// It is made while it is sent.
    Made(Pin<Box<dyn Body<Data = Bytes, Error = ReplyError> + Send>>),
}

/// Looks at an answer's bytes as they pass, without keeping them up. When the answer is over, or broken off, it is
/// dropped.
pub trait Watch: Send + Sync {
    /// The next bytes.
    fn see(&mut self, data: &[u8]);
}

/// An answer from a provider, and who looks at it.
pub struct WatchedBody {
    body: reqwest::Body,
    watch: Box<dyn Watch>,
}

impl WatchedBody {
    /// Lets somebody look at an answer.
    pub fn new(body: reqwest::Body, watch: impl Watch + 'static) -> Self {
        Self { body, watch: Box::new(watch) }
    }
}

impl Body for WatchedBody {
    type Data = Bytes;
    type Error = reqwest::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, reqwest::Error>>> {
        let Self { body, watch } = self.get_mut();
        let frame = Pin::new(body).poll_frame(context);
        if let Poll::Ready(Some(Ok(frame))) = &frame
            && let Some(data) = frame.data_ref()
        {
            watch.see(data);
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Why a body breaks off.
pub type ReplyError = Box<dyn std::error::Error + Send + Sync>;

impl ReplyBody {
    /// No body.
    pub const fn empty() -> Self {
        Self::Whole(None)
    }
}

impl<B: Into<Bytes>> From<B> for ReplyBody {
    fn from(body: B) -> Self {
        let body = body.into();
        Self::Whole((!body.is_empty()).then_some(body))
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        match self.get_mut() {
            Self::Whole(body) => Poll::Ready(body.take().map(|body| Ok(Frame::data(body)))),
            Self::Passed(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Self::Watched(body) => Pin::new(body).poll_frame(context).map_err(Into::into),
            Self::Made(body) => body.as_mut().poll_frame(context),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            Self::Whole(body) => body.is_none(),
            Self::Passed(body) => body.is_end_stream(),
            Self::Watched(body) => body.is_end_stream(),
            Self::Made(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            Self::Whole(body) => SizeHint::with_exact(body.as_ref().map_or(0, |body| body.len() as u64)),
            Self::Passed(body) => body.size_hint(),
            Self::Watched(body) => body.size_hint(),
            Self::Made(body) => body.size_hint(),
        }
    }
}
