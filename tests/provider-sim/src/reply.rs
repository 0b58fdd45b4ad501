//! What the core answers: a response, and how the shell is to deliver it.

use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use serde::Serialize;

use crate::engine::EngineAnswer;

/// A response of the core, with instructions for the shell.
#[derive(Debug, Clone)]
pub struct SimResponse {
    /// The status.
    pub status: StatusCode,
    /// The headers, without `content-length`.
    pub headers: HeaderMap,
    /// The body.
    pub body: SimBody,
    /// How to deliver it.
    pub delivery: Delivery,
}

/// A body.
#[derive(Debug, Clone)]
pub enum SimBody {
    /// All at once, with a known length.
    Full(Bytes),
    /// Piece by piece, as server-sent events are.
    Pieces {
        /// All pieces, one after the other.
        bytes: Bytes,
        /// Where each piece ends.
        ends: Vec<usize>,
        /// Real time between two pieces.
        gap: Duration,
    },
    /// As an engine has it: not there yet.
    Engine(EngineAnswer),
}

/// How a response reaches the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Delivery {
    /// Real time to wait before the head is sent.
    pub after: Duration,
    /// Break the connection after this many bytes of the body; `Some(0)` sends nothing at all, not even the head.
    pub cut: Option<usize>,
}

impl SimBody {
    /// The bytes of the whole body; none of one that an engine is still working on.
    pub fn bytes(&self) -> &Bytes {
        static NONE: Bytes = Bytes::new();
        match self {
            Self::Engine(_) => &NONE,
            Self::Full(bytes) | Self::Pieces { bytes, .. } => bytes,
        }
    }

    /// Whether it goes out piece by piece, and is known whole.
    pub(crate) fn is_pieces(&self) -> bool {
        matches!(self, Self::Pieces { .. })
    }

    /// Lets what goes out piece by piece end after half of its pieces with another one. `last` is told how many went
    /// before.
    pub(crate) fn break_off(&mut self, last: impl FnOnce(usize) -> Vec<u8>) {
        let Self::Pieces { bytes, ends, .. } = self else { return };
        ends.truncate(ends.len() / 2);
        let kept = bytes.get(..ends.last().copied().unwrap_or(0)).unwrap_or_default();
        let all = [kept, &last(ends.len())].concat();
        ends.push(all.len());
        *bytes = Bytes::from(all);
    }

    /// Cuts the body to `len` bytes.
    pub(crate) fn truncate(&mut self, len: usize) {
        match self {
            Self::Engine(_) => {}
            Self::Full(bytes) => bytes.truncate(len),
            Self::Pieces { bytes, ends, .. } => {
                bytes.truncate(len);
                ends.retain(|end| *end < len);
                ends.push(bytes.len());
            }
        }
    }
}

impl SimResponse {
    /// 200 with a body of type `content_type`.
    pub(crate) fn new(content_type: &'static str, body: SimBody) -> Self {
        let mut headers = HeaderMap::with_capacity(8);
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
        Self { status: StatusCode::OK, headers, body, delivery: Delivery::default() }
    }

    /// No answer at all: the connection breaks.
    pub(crate) fn broken() -> Self {
        let mut response = Self::json(Bytes::new());
        response.delivery.cut = Some(0);
        response
    }

    /// 200 with this JSON text.
    pub(crate) fn json(text: impl Into<Bytes>) -> Self {
        Self::new("application/json", SimBody::Full(text.into()))
    }

    /// 200 with `value` as JSON.
    pub(crate) fn of(value: &impl Serialize) -> Self {
        Self::json(to_json(value))
    }
}

/// `value` as JSON text. The values serialised here are this crate's own (no maps with keys that are not strings, no
/// failing implementations), so an error would be a defect of the simulator; it shows as an empty body.
pub(crate) fn to_json(value: &impl Serialize) -> Vec<u8> {
    let mut text = Vec::with_capacity(1024);
    append_json(&mut text, value);
    text
}

/// Appends `value` as JSON text.
pub(crate) fn append_json(text: &mut Vec<u8>, value: &impl Serialize) {
    let start = text.len();
    if serde_json::to_writer(&mut *text, value).is_err() {
        text.truncate(start);
    }
}
