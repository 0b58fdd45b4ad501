//! What is kept with a deferred request beside its body, and travels with it: whom its answer is for, the router that chose
//! its way, and what a job calls it.

use bytes::Bytes;
use offpeak_store::Entry;

/// What the flags of a request say: whom its answer is for. This one is for whoever called or holds a ticket; its meta is the
/// router's name,
pub const FOR_ITS_CALLER: u8 = 0;
/// and this one for a job; its meta is the job's [`Label`].
pub const FOR_A_JOB: u8 = 1;
/// This one is fetched as a background response; its meta is the router's name.
pub const FOR_A_RESPONSE: u8 = 2;

/// Between a job's name for a request and its router. No text has this byte.
const NOT_TEXT: u8 = 0xff;

/// What a job's request is to its client, and how it came into its lane.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Label {
    /// The line in the job's input, counted from 1.
    pub line: u64,
    /// The client's name for it.
    pub custom_id: String,
    /// The router that chose its way; empty if it was kept before that was noted.
    pub router: String,
}

impl Label {
    /// As it travels.
    pub fn encode(&self) -> Bytes {
        let Self { line, custom_id, router } = self;
        [&line.to_le_bytes()[..], custom_id.as_bytes(), &[NOT_TEXT], router.as_bytes()].concat().into()
    }

    /// Reads what [`Label::encode`] wrote.
    pub fn decode(meta: &[u8]) -> Option<Self> {
        let (line, texts) = meta.split_first_chunk::<8>()?;
        let mut texts = texts.split(|byte| *byte == NOT_TEXT).map(std::str::from_utf8);
        let custom_id = texts.next()?.ok()?.to_owned();
        let router = texts.next().unwrap_or(Ok("")).ok()?.to_owned();
        Some(Self { line: u64::from_le_bytes(*line), custom_id, router })
    }
}

/// The router that chose a request's way; none if it was kept before that was noted.
pub fn router_of(entry: &Entry) -> Option<String> {
    let router = if entry.flags == FOR_A_JOB {
        Label::decode(&entry.meta)?.router
    } else {
        std::str::from_utf8(&entry.meta).ok()?.to_owned()
    };
    (!router.is_empty()).then_some(router)
}

#[cfg(test)]
mod tests {
    use offpeak_core::words::{LaneId, Place, Seq, Timestamp};

    use super::*;

    fn entry(flags: u8, meta: Bytes) -> Entry {
        let place = Place { lane: LaneId(1), seq: Seq(1) };
        Entry {
            place,
            origin: place,
            attempts: 0,
            arrived: Timestamp(0),
            deadline: Timestamp(0),
            not_before: Timestamp(0),
            tokens: 0,
            body_hash: 0,
            flags,
            meta,
            body: Bytes::new(),
        }
    }

    #[test]
    fn a_label_travels() {
        let label = Label { line: 9, custom_id: "é\0".to_owned(), router: "by-hour".to_owned() };
        assert_eq!(Label::decode(&label.encode()), Some(label.clone()));
        assert_eq!(router_of(&entry(FOR_A_JOB, label.encode())).as_deref(), Some("by-hour"));
        assert_eq!(Label::decode(b"short"), None);
    }

    #[test]
    fn what_was_kept_before_routers_were_noted_is_read() {
        let old = [&9_u64.to_le_bytes()[..], b"mine"].concat();
        let label = Label { line: 9, custom_id: "mine".to_owned(), router: String::new() };
        assert_eq!(Label::decode(&old), Some(label));
        assert_eq!(router_of(&entry(FOR_A_JOB, old.into())), None);
        assert_eq!(router_of(&entry(FOR_ITS_CALLER, Bytes::new())), None);
        assert_eq!(
            router_of(&entry(FOR_A_RESPONSE, Bytes::from_static(b"by-hour"))).as_deref(),
            Some("by-hour")
        );
    }
}
