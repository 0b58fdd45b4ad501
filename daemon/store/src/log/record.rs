//! A record of the log and its bytes.
//!
//! ```text
//! bytes  what
//!  0..4  "OPk1"
//!  4..8  crc32 of bytes 8.. up to the end of meta, seeded by store, segment and offset
//!  8..12 where the group begins that this record was written with, in bytes of the segment
//! 12..16 length of the head
//! 16..20 length of meta
//! 20..24 length of the body
//! 24..28 crc32 of the body
//! 28     kind of the change
//! 29..32 zero
//! 32..   head: the change itself
//!        meta: small and opaque
//!        body: opaque
//! ```
//! A group is what was written together and made durable by one sync. Because a group is written only after the one
//! before it was synced, a valid record of a later group proves that what stands before it was once durable.

use bytes::BufMut;
use offpeak_core::outcome::Ending;
use offpeak_core::words::{BatchId, LaneId, LaneKey, Place, Timestamp};

use super::segment::Seed;
use crate::codec::{Put, Take, some_batch};
use crate::values::{BatchRecord, Document, Idempotency};

/// Bytes before the head.
pub(crate) const PREFIX: usize = 32;
/// Bytes of a request's head: always the same, so that an index entry need not hold it.
pub(crate) const REQUEST_HEAD: u16 = 66;
pub(crate) const MAGIC: [u8; 4] = *b"OPk1";
/// The largest record in bytes.
pub(crate) const RECORD_LIMIT: u64 = 256 << 20;

/// A point in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub(crate) struct Position {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
}

/// Where a record is, and how its bytes are divided.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Location {
    pub(crate) segment: u32,
    pub(crate) offset: u32,
    pub(crate) head: u16,
    pub(crate) meta: u16,
    pub(crate) body: u32,
}

impl Location {
    /// Length of the record in bytes.
    pub(crate) const fn len(&self) -> u64 {
        PREFIX as u64 + self.head as u64 + self.meta as u64 + self.body as u64
    }
}

/// What a record changes, without its body.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Change {
    LaneCreated { id: LaneId, key: LaneKey },
    Request(Request),
    Requeued(Requeued),
    Ended(Ended),
    BatchSealed(Box<BatchRecord>),
    BatchAdvanced { id: BatchId, version: u32, progress: bytes::Bytes },
    BatchEnded { id: BatchId, at: Timestamp, ending: String },
    Documents(Vec<Document>),
    LaneRemoved { id: LaneId },
}

/// A new request at the end of a lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Request {
    pub(crate) place: Place,
    pub(crate) arrived: Timestamp,
    pub(crate) deadline: Timestamp,
    pub(crate) tokens: u32,
    pub(crate) body_hash: u64,
    pub(crate) flags: u8,
    pub(crate) idempotency: Option<Idempotency>,
}

/// An attempt ended and the request goes again: a new entry at the end of a lane, its body stays where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Requeued {
    pub(crate) from: Place,
    pub(crate) to: Place,
    pub(crate) deadline: Timestamp,
    pub(crate) not_before: Timestamp,
    pub(crate) attempts: u16,
    pub(crate) batch: Option<BatchId>,
    pub(crate) finished_at: Timestamp,
    pub(crate) reason: Ending,
    pub(crate) documents: Vec<Document>,
}

/// A request is finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Ended {
    pub(crate) place: Place,
    pub(crate) attempts: u16,
    pub(crate) batch: Option<BatchId>,
    pub(crate) finished_at: Timestamp,
    pub(crate) ending: Ending,
    pub(crate) documents: Vec<Document>,
}

/// A change and where its record is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Logged {
    pub(crate) change: Change,
    pub(crate) at: Location,
}

impl Change {
    const fn kind(&self) -> u8 {
        match self {
            Self::LaneCreated { .. } => 1,
            Self::Request(_) => 2,
            Self::Requeued(_) => 3,
            Self::Ended(_) => 4,
            Self::BatchSealed(_) => 5,
            Self::BatchAdvanced { .. } => 6,
            Self::BatchEnded { .. } => 7,
            Self::Documents(_) => 8,
            Self::LaneRemoved { .. } => 9,
        }
    }

    fn encode_head(&self, out: &mut Vec<u8>) {
        match self {
            Self::LaneCreated { id, key } => {
                out.put_u32_le(id.0);
                out.put_lane_key(key);
            }
            Self::Request(request) => request.encode(out),
            Self::Requeued(requeued) => requeued.encode(out),
            Self::Ended(ended) => ended.encode(out),
            Self::BatchSealed(batch) => out.put_batch_record(batch),
            Self::BatchAdvanced { id, version, progress } => {
                out.put_u64_le(id.0);
                out.put_u32_le(*version);
                out.put_bytes_with_len(progress);
            }
            Self::BatchEnded { id, at, ending } => {
                out.put_u64_le(id.0);
                out.put_time(*at);
                out.put_text(ending);
            }
            Self::Documents(documents) => out.put_documents(documents),
            Self::LaneRemoved { id } => out.put_u32_le(id.0),
        }
    }

    /// `None` if the bytes are not what this version writes.
    pub(crate) fn decode(kind: u8, head: &[u8]) -> Option<Self> {
        let mut take = Take(head);
        let change = match kind {
            1 => Self::LaneCreated { id: LaneId(take.u32()?), key: take.lane_key()? },
            2 => Self::Request(Request::decode(&mut take)?),
            3 => Self::Requeued(Requeued::decode(&mut take)?),
            4 => Self::Ended(Ended::decode(&mut take)?),
            5 => Self::BatchSealed(Box::new(take.batch_record()?)),
            6 => Self::BatchAdvanced {
                id: BatchId(take.u64()?),
                version: take.u32()?,
                progress: bytes::Bytes::copy_from_slice(take.bytes()?),
            },
            7 => Self::BatchEnded {
                id: BatchId(take.u64()?),
                at: take.time()?,
                ending: take.text()?.to_owned(),
            },
            8 => Self::Documents(take.documents()?),
            9 => Self::LaneRemoved { id: LaneId(take.u32()?) },
            _ => return None,
        };
        take.finish()?;
        Some(change)
    }
}

impl Request {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_place(self.place);
        out.put_time(self.arrived);
        out.put_time(self.deadline);
        out.put_u32_le(self.tokens);
        out.put_u64_le(self.body_hash);
        out.put_u8(self.flags);
        out.put_u8(self.idempotency.is_some().into());
        let idempotency = self.idempotency.unwrap_or(Idempotency { key: [0; 16], expires: Timestamp(0) });
        out.put_slice(&idempotency.key);
        out.put_time(idempotency.expires);
    }

    fn decode(take: &mut Take<'_>) -> Option<Self> {
        let (place, arrived, deadline) = (take.place()?, take.time()?, take.time()?);
        let (tokens, body_hash, flags) = (take.u32()?, take.u64()?, take.u8()?);
        let has_key = take.u8()? != 0;
        let idempotency = Idempotency { key: take.array()?, expires: take.time()? };
        let idempotency = has_key.then_some(idempotency);
        Some(Self { place, arrived, deadline, tokens, body_hash, flags, idempotency })
    }
}

impl Requeued {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_place(self.from);
        out.put_place(self.to);
        out.put_time(self.deadline);
        out.put_time(self.not_before);
        out.put_u16_le(self.attempts);
        out.put_batch(self.batch);
        out.put_time(self.finished_at);
        out.put_ending(&self.reason);
        put_attached(out, &self.documents);
    }

    fn decode(take: &mut Take<'_>) -> Option<Self> {
        Some(Self {
            from: take.place()?,
            to: take.place()?,
            deadline: take.time()?,
            not_before: take.time()?,
            attempts: take.u16()?,
            batch: some_batch(take.u64()?),
            finished_at: take.time()?,
            reason: take.ending()?,
            documents: take_attached(take)?,
        })
    }
}

impl Ended {
    fn encode(&self, out: &mut Vec<u8>) {
        out.put_place(self.place);
        out.put_u16_le(self.attempts);
        out.put_batch(self.batch);
        out.put_time(self.finished_at);
        out.put_ending(&self.ending);
        put_attached(out, &self.documents);
    }

    fn decode(take: &mut Take<'_>) -> Option<Self> {
        Some(Self {
            place: take.place()?,
            attempts: take.u16()?,
            batch: some_batch(take.u64()?),
            finished_at: take.time()?,
            ending: take.ending()?,
            documents: take_attached(take)?,
        })
    }
}

/// Documents at the end of a head, where most have none: none take no bytes, as before there were documents.
fn put_attached(out: &mut Vec<u8>, documents: &[Document]) {
    if !documents.is_empty() {
        out.put_documents(documents);
    }
}

fn take_attached(take: &mut Take<'_>) -> Option<Vec<Document>> {
    if take.finish().is_some() { Some(Vec::new()) } else { take.documents() }
}

/// The opaque parts of a record.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Payload<'a> {
    pub(crate) meta: &'a [u8],
    pub(crate) body: &'a [u8],
    /// [`crc32fast::hash`] of the body: computed by whoever brings it, not by the one thread that writes.
    pub(crate) body_crc: u32,
}

/// Appends a record's bytes; it will stand at `offset` in a group that begins at `group`. Returns the head's length.
pub(crate) fn encode(
    out: &mut Vec<u8>,
    seed: Seed,
    group: u32,
    offset: u32,
    change: &Change,
    payload: Payload<'_>,
) -> usize {
    let start = out.len();
    out.put_slice(&MAGIC);
    out.put_u32_le(0);
    out.put_u32_le(group);
    // Lengths fit, because the writer has refused what is over the limit.
    out.put_u32_le(0);
    out.put_u32_le(u32::try_from(payload.meta.len()).unwrap_or(u32::MAX));
    out.put_u32_le(u32::try_from(payload.body.len()).unwrap_or(u32::MAX));
    out.put_u32_le(payload.body_crc);
    out.put_u32_le(change.kind().into());
    change.encode_head(out);
    let head = out.len() - start - PREFIX;
    let head_len = u32::try_from(head).unwrap_or(u32::MAX);
    out.put_slice(payload.meta);
    if let Some(field) = out.get_mut(start + 12..start + 16) {
        field.copy_from_slice(&head_len.to_le_bytes());
    }
    let mut hasher = seed.hasher(offset);
    hasher.update(out.get(start + 8..).unwrap_or_default());
    let crc = hasher.finalize();
    if let Some(field) = out.get_mut(start + 4..start + 8) {
        field.copy_from_slice(&crc.to_le_bytes());
    }
    out.put_slice(payload.body);
    head
}

/// A record's prefix.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Prefix {
    crc: u32,
    pub(crate) group: u32,
    head: u32,
    meta: u32,
    body: u32,
    body_crc: u32,
    kind: u8,
}

impl Prefix {
    /// `None` if these cannot be the first bytes of a record.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let mut take = Take(bytes);
        if take.array()? != MAGIC {
            return None;
        }
        let prefix = Self {
            crc: take.u32()?,
            group: take.u32()?,
            head: take.u32()?,
            meta: take.u32()?,
            body: take.u32()?,
            body_crc: take.u32()?,
            kind: u8::try_from(take.u32()?).ok()?,
        };
        (prefix.len() <= RECORD_LIMIT && prefix.meta <= u16::MAX.into()).then_some(prefix)
    }

    /// Length of the record in bytes.
    pub(crate) fn len(&self) -> u64 {
        PREFIX as u64 + u64::from(self.head) + u64::from(self.meta) + u64::from(self.body)
    }
}

/// A record's parts, checked.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parts<'a> {
    pub(crate) prefix: Prefix,
    pub(crate) head: &'a [u8],
    pub(crate) meta: &'a [u8],
    pub(crate) body: &'a [u8],
}

/// Takes a record apart. `None` if a checksum says that it is not as it was written.
pub(crate) fn parse(bytes: &[u8], seed: Seed, offset: u32) -> Option<Parts<'_>> {
    let length = usize::try_from(Prefix::decode(bytes)?.len()).ok()?;
    let parts = parse_without_body(bytes.get(..length)?, seed, offset)?;
    (crc32fast::hash(parts.body) == parts.prefix.body_crc).then_some(parts)
}

/// Takes a record apart whose body may be missing and is not looked at.
pub(crate) fn parse_without_body(bytes: &[u8], seed: Seed, offset: u32) -> Option<Parts<'_>> {
    let prefix = Prefix::decode(bytes)?;
    let head_end = PREFIX + prefix.head as usize;
    let meta_end = head_end + prefix.meta as usize;
    let mut hasher = seed.hasher(offset);
    hasher.update(bytes.get(8..meta_end)?);
    if hasher.finalize() != prefix.crc {
        return None;
    }
    let (head, meta) = (bytes.get(PREFIX..head_end)?, bytes.get(head_end..meta_end)?);
    Some(Parts { prefix, head, meta, body: bytes.get(meta_end..)? })
}

impl Parts<'_> {
    /// What the record changes. `None` if this version does not know it.
    pub(crate) fn logged(&self, segment: u32, offset: u32) -> Option<Logged> {
        let change = Change::decode(self.prefix.kind, self.head)?;
        // Heads of batches may be longer than a location can say; nothing is ever read from there.
        let head = u16::try_from(self.prefix.head).unwrap_or(u16::MAX);
        let meta = u16::try_from(self.prefix.meta).ok()?;
        Some(Logged { change, at: Location { segment, offset, head, meta, body: self.prefix.body } })
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use offpeak_core::words::Seq;
    use proptest::prelude::*;

    use super::*;
    use crate::codec::tests::{batches, documents, endings, lane_keys};

    pub(crate) fn places() -> impl Strategy<Value = Place> {
        (any::<u32>(), any::<u64>()).prop_map(|(lane, seq)| Place { lane: LaneId(lane), seq: Seq(seq) })
    }

    fn times() -> impl Strategy<Value = Timestamp> {
        any::<u64>().prop_map(Timestamp)
    }

    fn batch_ids() -> impl Strategy<Value = Option<BatchId>> {
        proptest::option::of((1..u64::MAX).prop_map(BatchId))
    }

    fn changes() -> impl Strategy<Value = Change> {
        let key = proptest::option::of(
            (any::<[u8; 16]>(), times()).prop_map(|(key, expires)| Idempotency { key, expires }),
        );
        let request = (places(), times(), times(), any::<u32>(), any::<u64>(), any::<u8>(), key).prop_map(
            |(place, arrived, deadline, tokens, body_hash, flags, idempotency)| {
                Change::Request(Request { place, arrived, deadline, tokens, body_hash, flags, idempotency })
            },
        );
        let requeued = (
            (places(), places()),
            times(),
            times(),
            any::<u16>(),
            batch_ids(),
            times(),
            endings(),
            documents(),
        )
            .prop_map(
                |((from, to), deadline, not_before, attempts, batch, finished_at, reason, documents)| {
                    let requeued = Requeued {
                        from,
                        to,
                        deadline,
                        not_before,
                        attempts,
                        batch,
                        finished_at,
                        reason,
                        documents,
                    };
                    Change::Requeued(requeued)
                },
            );
        let ended = (places(), any::<u16>(), batch_ids(), times(), endings(), documents()).prop_map(
            |(place, attempts, batch, finished_at, ending, documents)| {
                Change::Ended(Ended { place, attempts, batch, finished_at, ending, documents })
            },
        );
        prop_oneof![
            (any::<u32>(), lane_keys()).prop_map(|(id, key)| Change::LaneCreated { id: LaneId(id), key }),
            request,
            requeued,
            ended,
            batches().prop_map(|batch| Change::BatchSealed(Box::new(batch))),
            (any::<u64>(), any::<u32>(), any::<[u8; 5]>()).prop_map(|(id, version, progress)| {
                Change::BatchAdvanced {
                    id: BatchId(id),
                    version,
                    progress: bytes::Bytes::copy_from_slice(&progress),
                }
            }),
            (any::<u64>(), times(), ".{0,9}").prop_map(|(id, at, ending)| Change::BatchEnded {
                id: BatchId(id),
                at,
                ending
            }),
            documents().prop_map(Change::Documents),
            any::<u32>().prop_map(|id| Change::LaneRemoved { id: LaneId(id) }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            change in changes(), meta: Vec<u8>, body: Vec<u8>, seed: u32, group: u32, offset: u32,
        ) {
            let seed = Seed::new(1, seed);
            let payload = Payload { meta: &meta, body: &body, body_crc: crc32fast::hash(&body) };
            let mut bytes = Vec::new();
            let head = encode(&mut bytes, seed, group, offset, &change, payload);
            if matches!(change, Change::Request(_)) {
                prop_assert_eq!(head, usize::from(REQUEST_HEAD));
            }
            let parts = parse(&bytes, seed, offset).unwrap();
            prop_assert_eq!((parts.meta, parts.body), (&meta[..], &body[..]));
            prop_assert_eq!(parts.prefix.group, group);
            let logged = parts.logged(3, offset).unwrap();
            prop_assert_eq!(logged.change, change);
            prop_assert_eq!(logged.at.len(), bytes.len() as u64);
        }

        #[test]
        fn a_changed_byte_is_noticed(change in changes(), body: Vec<u8>, at: prop::sample::Index, bit in 0..8) {
            let seed = Seed::new(1, 2);
            let payload = Payload { meta: b"m", body: &body, body_crc: crc32fast::hash(&body) };
            let mut bytes = Vec::new();
            encode(&mut bytes, seed, 64, 64, &change, payload);
            let at = at.index(bytes.len());
            bytes[at] ^= 1_u8 << bit;
            prop_assert!(parse(&bytes, seed, 64).is_none());
        }

        #[test]
        fn a_record_is_valid_only_where_it_was_written(change in changes(), offset: u32, other: u32) {
            prop_assume!(offset != other);
            let mut bytes = Vec::new();
            encode(&mut bytes, Seed::new(1, 2), 64, offset, &change, Payload::default());
            prop_assert!(parse(&bytes, Seed::new(1, 2), offset).is_some());
            prop_assert!(parse(&bytes, Seed::new(1, 2), other).is_none());
            prop_assert!(parse(&bytes, Seed::new(1, 3), offset).is_none());
            prop_assert!(parse(&bytes, Seed::new(2, 2), offset).is_none());
        }
    }
}
