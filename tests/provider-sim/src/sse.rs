//! Server-sent events, written into one buffer with the end of each event noted.

use std::time::Duration;

use bytes::Bytes;
use serde::Serialize;

use crate::reply::{SimBody, SimResponse, append_json};

/// Collects the events of one stream.
#[derive(Debug, Default)]
pub(crate) struct Events {
    buffer: Vec<u8>,
    ends: Vec<usize>,
}

impl Events {
    pub(crate) fn with_capacity(events: usize) -> Self {
        Self { buffer: Vec::with_capacity(events * 256), ends: Vec::with_capacity(events) }
    }

    /// `data: {value}`, as chat completions have it.
    pub(crate) fn data(&mut self, value: &impl Serialize) {
        self.buffer.extend_from_slice(b"data: ");
        append_json(&mut self.buffer, value);
        self.end();
    }

    /// `event: {name}` and `data: {value}`, as responses have it.
    pub(crate) fn event(&mut self, name: &str, value: &impl Serialize) {
        self.buffer.extend_from_slice(b"event: ");
        self.buffer.extend_from_slice(name.as_bytes());
        self.buffer.push(b'\n');
        self.data(value);
    }

    /// The end marker of chat completions and completions.
    pub(crate) fn done(&mut self) {
        self.buffer.extend_from_slice(b"data: [DONE]");
        self.end();
    }

    fn end(&mut self) {
        self.buffer.extend_from_slice(b"\n\n");
        self.ends.push(self.buffer.len());
    }

    pub(crate) fn response(self, gap: Duration) -> SimResponse {
        let body = SimBody::Pieces { bytes: Bytes::from(self.buffer), ends: self.ends, gap };
        SimResponse::new("text/event-stream; charset=utf-8", body)
    }
}
