//! Answers that an engine is still working on.

use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender};

use crate::clock::SimTime;
use crate::engine::{Engine, send};
use crate::error::ApiError;
use crate::prices::Mode;
use crate::provider::Inner;
use crate::realtime;
use crate::reply::SimBody;
use crate::work::{Api, Ending, Run, Streaming, Work};

/// A piece of an answer on its way.
#[derive(Debug)]
pub(crate) enum Piece {
    Data(Bytes),
    /// The answer is whole. A channel that closes without this broke.
    End,
}

/// A call under way; dropping it tells the engine that the caller has gone.
#[derive(Debug)]
pub(super) struct Ticket {
    pub(super) engine: Arc<Engine>,
    pub(super) call: u64,
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.engine.cancel(self.call);
    }
}

/// An answer that an engine is still working on. Only the first who waits for it gets it.
#[derive(Debug, Clone)]
pub struct EngineAnswer {
    waiting: Arc<Mutex<Option<Pieces>>>,
    is_stream: bool,
}

/// The pieces of an answer as they come.
#[derive(Debug)]
pub(crate) struct Pieces {
    receiver: UnboundedReceiver<Piece>,
    _ticket: Ticket,
}

impl EngineAnswer {
    pub(super) fn new(receiver: UnboundedReceiver<Piece>, ticket: Ticket, is_stream: bool) -> Self {
        let pieces = Pieces { receiver, _ticket: ticket };
        Self { waiting: Arc::new(Mutex::new(Some(pieces))), is_stream }
    }

    /// Whether the answer goes out piece by piece.
    pub(crate) fn is_stream(&self) -> bool {
        self.is_stream
    }

    /// Takes the pieces; the second who asks gets none.
    pub(crate) fn take(&self) -> Option<Pieces> {
        self.waiting.lock().take()
    }
}

impl Pieces {
    /// The next piece, when it is there.
    pub(crate) fn poll_next(&mut self, cx: &mut std::task::Context<'_>) -> std::task::Poll<Option<Piece>> {
        self.receiver.poll_recv(cx)
    }

    /// The whole answer; `None` when the engine broke.
    pub(crate) async fn whole(mut self) -> Option<Bytes> {
        let mut all = Vec::new();
        let mut only = None;
        loop {
            match self.receiver.recv().await? {
                Piece::End => return Some(only.unwrap_or_else(|| Bytes::from(all))),
                Piece::Data(bytes) if all.is_empty() && only.is_none() => only = Some(bytes),
                Piece::Data(bytes) => {
                    all.extend_from_slice(&only.take().unwrap_or_default());
                    all.extend_from_slice(&bytes);
                }
            }
        }
    }
}

/// Who waits for a call, and what it needs to be answered.
#[derive(Debug)]
pub(super) struct Waiter {
    sender: UnboundedSender<Piece>,
    api: Api,
    body: Bytes,
    /// Tokens that the engine is to generate.
    generate: u64,
    ending: Ending,
    stream: Option<Stream>,
}

/// The events of a stream, made in advance; they go out as the tokens come.
#[derive(Debug)]
struct Stream {
    bytes: Bytes,
    ends: Vec<usize>,
    sent: usize,
    usage: crate::bill::Usage,
}

impl Stream {
    fn send_up_to(&mut self, count: usize, sender: &UnboundedSender<Piece>) {
        for place in self.sent..count.min(self.ends.len()) {
            send(sender, Piece::Data(self.piece(place)));
        }
        self.sent = self.sent.max(count.min(self.ends.len()));
    }

    fn piece(&self, place: usize) -> Bytes {
        let start = place.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        let end = self.ends.get(place).copied().unwrap_or(self.bytes.len());
        self.bytes.slice(start..end)
    }
}

impl Waiter {
    pub(super) fn new(
        sender: UnboundedSender<Piece>,
        api: Api,
        body: Bytes,
        generate: u64,
        ending: Ending,
    ) -> Self {
        Self { sender, api, body, generate, ending, stream: None }
    }

    /// Makes the events of the whole stream.
    pub(super) fn streaming(
        mut self,
        inner: &Inner,
        streaming: Streaming,
        now: SimTime,
    ) -> Result<Self, ApiError> {
        let mut work = Work::parse(self.api, &self.body)?;
        work.set_ending(self.ending);
        let run = Run { ids: &inner.ids, now, cached_tokens: 0 };
        let (usage, events) = realtime::events(&work, streaming, &run)?;
        if let SimBody::Pieces { bytes, ends, .. } = events.response(std::time::Duration::ZERO).body {
            self.stream = Some(Stream { bytes, ends, sent: 0, usage });
        }
        Ok(self)
    }

    /// Sends the events of a stream that has so many tokens by now; the last ones are kept for the end.
    pub(super) fn progress(&mut self, tokens: u64) {
        let Some(stream) = &mut self.stream else { return };
        let all = stream.ends.len() as u64;
        // Rounded up, so that the first event goes with the first token.
        let there = all.saturating_mul(tokens).div_ceil(self.generate.max(1));
        let count = usize::try_from(there.min(all.saturating_sub(3))).unwrap_or_default();
        stream.send_up_to(count, &self.sender);
    }

    /// Answers a call whose tokens are all there, and notes it in the bill.
    pub(super) fn finish(mut self, inner: &Inner, now: SimTime) {
        let Ok(mut work) = Work::parse(self.api, &self.body) else { return };
        work.set_ending(self.ending);
        let usage = if let Some(stream) = &mut self.stream {
            stream.send_up_to(usize::MAX, &self.sender);
            stream.usage
        } else {
            let run = Run { ids: &inner.ids, now, cached_tokens: 0 };
            let Ok(ran) = work.run(&run) else { return };
            send(&self.sender, Piece::Data(Bytes::from(ran.body)));
            ran.usage
        };
        send(&self.sender, Piece::End);
        if let Some(model) = inner.catalog.find(&work.model) {
            let key = inner.ledger.key(self.api.path(), &self.body);
            inner.ledger.charge(model, Mode::Realtime, usage, key);
        }
    }

    /// Answers a call that the engine gave up, with the `tokens` that are there: as if it were whole, but for the reason
    /// of its end. Nothing is noted in the bill.
    pub(super) fn abort(mut self, inner: &Inner, tokens: u64, now: SimTime) {
        self.progress(tokens);
        if let Some(stream) = &self.stream {
            // Of what is left only the events that tell the end go out.
            for place in stream.sent..stream.ends.len() {
                let piece = stream.piece(place);
                if let Some(end) = aborted(&piece) {
                    send(&self.sender, Piece::Data(end));
                }
            }
            send(&self.sender, Piece::End);
            return;
        }
        let Ok(mut work) = Work::parse(self.api, &self.body) else { return };
        work.set_ending(Ending { is_aborted: true, ..self.ending });
        work.limit(u32::try_from(tokens).unwrap_or(u32::MAX));
        let Ok(ran) = work.run(&Run { ids: &inner.ids, now, cached_tokens: 0 }) else { return };
        send(&self.sender, Piece::Data(Bytes::from(ran.body)));
        send(&self.sender, Piece::End);
    }
}

/// An event as an aborted stream has it: one that names the reason of its end names `abort`, the end marker stays, and
/// what only carries text is left out.
fn aborted(piece: &Bytes) -> Option<Bytes> {
    let text = std::str::from_utf8(piece).ok()?;
    if text.contains("[DONE]") {
        return Some(piece.clone());
    }
    let reason = [r#""finish_reason":"stop""#, r#""finish_reason":"length""#];
    let found = reason.into_iter().find(|reason| text.contains(reason))?;
    Some(Bytes::from(text.replace(found, r#""finish_reason":"abort""#)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_aborted_stream_the_end_remains() {
        let piece = |text: &'static str| aborted(&Bytes::from_static(text.as_bytes()));
        assert_eq!(piece("data: {\"delta\":{\"content\":\"x\"},\"finish_reason\":null}\n\n"), None);
        let end = piece("data: {\"delta\":{},\"finish_reason\":\"length\"}\n\n").unwrap();
        assert_eq!(end, "data: {\"delta\":{},\"finish_reason\":\"abort\"}\n\n");
        assert!(piece("data: [DONE]\n\n").is_some());
    }
}
