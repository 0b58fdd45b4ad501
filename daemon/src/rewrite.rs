//! Answers that the provider plugin writes anew: whole, or part by part while they arrive.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderMap};
use http_body::{Body, Frame};
use offpeak_host::PluginError;
use offpeak_host::values::provider::{Answer, AnswerRef};

use crate::backends::{Backend, PreparedCall, with_time_for};
use crate::body::ReplyError;
use crate::clock::Clock;

/// The answer is a stream of events.
pub fn is_stream(headers: &HeaderMap) -> bool {
    content_type(headers).is_some_and(|kind| kind.starts_with("text/event-stream"))
}

/// A whole answer, written anew. `notes` are what the plugin noted of the request.
pub fn answer(
    call: &PreparedCall,
    notes: &[u8],
    (status, headers, body): (u16, &HeaderMap, &[u8]),
    clock: Clock,
) -> Result<Answer, PluginError> {
    let answer = AnswerRef { status, content_type: content_type(headers), body };
    with_time_for(body.len(), || call.plugin().rewrite_answer(&call.named(), notes, answer, clock.now().0))
}

fn content_type(headers: &HeaderMap) -> Option<&str> {
    headers.get(CONTENT_TYPE)?.to_str().ok()
}

/// A streamed answer, written anew while it arrives. What the plugin keeps between two parts is kept here, so that any of
/// its instances can go on.
pub struct Stream {
    upstream: reqwest::Body,
    backend: Arc<Backend>,
    call: Arc<PreparedCall>,
    clock: Clock,
    state: Vec<u8>,
    is_over: bool,
}

impl Stream {
    /// The stream of a call whose request left `notes`.
    pub fn new(
        upstream: reqwest::Body,
        backend: Arc<Backend>,
        call: Arc<PreparedCall>,
        clock: Clock,
        notes: Vec<u8>,
    ) -> Self {
        Self { upstream, backend, call, clock, state: notes, is_over: false }
    }

    /// A part for the client; none where the plugin has nothing to say yet.
    fn write(&mut self, part: &[u8], last: bool) -> Result<Option<Frame<Bytes>>, PluginError> {
        let now = self.clock.now().0;
        let call = self.call.named();
        let rewritten = self.call.plugin().rewrite_chunk(&call, &self.state, part, last, now)?;
        self.state = rewritten.state;
        Ok((!rewritten.output.is_empty()).then(|| Frame::data(rewritten.output.into())))
    }
}

impl Body for Stream {
    type Data = Bytes;
    type Error = ReplyError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReplyError>>> {
        let stream = self.get_mut();
        while !stream.is_over {
            let written = match ready!(Pin::new(&mut stream.upstream).poll_frame(context)) {
                Some(Ok(frame)) => match frame.into_data() {
                    Ok(data) => stream.write(&data, false),
                    // Trailers say nothing to clients of this API.
                    Err(_) => continue,
                },
                Some(Err(error)) => {
                    stream.is_over = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
                None => {
                    stream.is_over = true;
                    stream.write(&[], true)
                }
            };
            match written {
                Ok(Some(frame)) => return Poll::Ready(Some(Ok(frame))),
                Ok(None) => {}
                Err(error) => {
                    tracing::error!(backend = %stream.backend.id, %error, "a streamed answer was broken off");
                    stream.is_over = true;
                    return Poll::Ready(Some(Err(error.into())));
                }
            }
        }
        Poll::Ready(None)
    }

    fn is_end_stream(&self) -> bool {
        self.is_over
    }
}
