//! How values are written as bytes, in the log and in the index: little-endian, texts and lists with their length first.

use bytes::{Buf, BufMut, Bytes};
use offpeak_core::extent::Range;
use offpeak_core::outcome::{DidItRun, Ending};
use offpeak_core::words::{BatchId, KeptHeaders, LaneId, LaneKey, Place, Seq, SlaClass, Timestamp};

use crate::values::{BatchEnd, BatchRecord, Document, Kind};

/// Longest texts of an ending in bytes; what is longer is cut.
const CODE_BYTES: usize = 256;
const MESSAGE_BYTES: usize = 4096;

/// Set in the last byte of a lane's key and in the byte that tells a batch's end: kept headers follow. Neither byte had
/// this bit before there were any.
const HAS_HEADERS: u8 = 0x80;

/// Set in the last byte of a lane's key: the name of an API key follows. The longest SLA there is has class 49.
const HAS_API_KEY: u8 = 0x40;

/// Reads from a slice; `None` when the bytes are not what was written.
pub(crate) struct Take<'a>(pub(crate) &'a [u8]);

impl<'a> Take<'a> {
    pub(crate) fn u8(&mut self) -> Option<u8> {
        self.0.try_get_u8().ok()
    }

    pub(crate) fn u16(&mut self) -> Option<u16> {
        self.0.try_get_u16_le().ok()
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.0.try_get_u32_le().ok()
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.0.try_get_u64_le().ok()
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (array, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*array)
    }

    pub(crate) fn time(&mut self) -> Option<Timestamp> {
        self.u64().map(Timestamp)
    }

    pub(crate) fn bytes(&mut self) -> Option<&'a [u8]> {
        let length = usize::try_from(self.u32()?).ok()?;
        let (bytes, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(bytes)
    }

    pub(crate) fn text(&mut self) -> Option<&'a str> {
        std::str::from_utf8(self.bytes()?).ok()
    }

    pub(crate) fn place(&mut self) -> Option<Place> {
        Some(Place { lane: LaneId(self.u32()?), seq: Seq(self.u64()?) })
    }

    pub(crate) fn lane_key(&mut self) -> Option<LaneKey> {
        let (backend, endpoint) = (self.text()?.into(), self.text()?.into());
        let (model, tenant) = (self.text()?.into(), self.text()?.into());
        let (offer, name) = (self.text()?.into(), self.text()?.into());
        let class = self.u8()?;
        let sla_class = SlaClass(class & !(HAS_HEADERS | HAS_API_KEY));
        let headers = self.headers_if(class & HAS_HEADERS != 0)?;
        let api_key = if class & HAS_API_KEY == 0 { "".into() } else { self.text()?.into() };
        Some(LaneKey { backend, endpoint, model, tenant, offer, sla_class, name, api_key, headers })
    }

    fn headers_if(&mut self, there_are: bool) -> Option<KeptHeaders> {
        if !there_are {
            return Some(KeptHeaders::default());
        }
        let count = self.u32()?;
        let headers = (0..count).map(|_| Some((self.text()?.into(), self.text()?.into())));
        headers.collect::<Option<Vec<_>>>().map(KeptHeaders::new)
    }

    pub(crate) fn ending(&mut self) -> Option<Ending> {
        let ran = match self.u8()? {
            0 => return Some(Ending::Answered { status: self.u16()? }),
            1 => DidItRun::NotSent,
            2 => DidItRun::Refused,
            3 => DidItRun::Unknown,
            4 => DidItRun::Ran,
            _ => return None,
        };
        Some(Ending::Failed { ran, code: self.text()?.to_owned(), message: self.text()?.to_owned() })
    }

    pub(crate) fn batch_record(&mut self) -> Option<BatchRecord> {
        let id = BatchId(self.u64()?);
        let (backend, endpoint) = (self.text()?.into(), self.text()?.into());
        let (model, offer) = (self.text()?.into(), self.text()?.into());
        let created_at = self.time()?;
        let count = self.u32()?;
        let ranges = (0..count)
            .map(|_| Some(Range { lane: LaneId(self.u32()?), from: Seq(self.u64()?), to: Seq(self.u64()?) }))
            .collect::<Option<_>>()?;
        let version = self.u32()?;
        let progress = Bytes::copy_from_slice(self.bytes()?);
        let what_follows = self.u8()?;
        let ended = match what_follows & !HAS_HEADERS {
            0 => None,
            _ => Some(BatchEnd { at: self.time()?, ending: self.text()?.to_owned() }),
        };
        let headers = self.headers_if(what_follows & HAS_HEADERS != 0)?;
        Some(BatchRecord {
            id,
            backend,
            endpoint,
            model,
            offer,
            headers,
            ranges,
            created_at,
            version,
            progress,
            ended,
        })
    }

    pub(crate) fn documents(&mut self) -> Option<Vec<Document>> {
        let count = self.u32()?;
        (0..count)
            .map(|_| {
                let kind = Kind::from_number(self.u8()?)?;
                let key = Bytes::copy_from_slice(self.bytes()?);
                let value = match self.u8()? {
                    0 => None,
                    _ => Some(Bytes::copy_from_slice(self.bytes()?)),
                };
                Some(Document { kind, key, value })
            })
            .collect()
    }

    /// Everything was read.
    pub(crate) fn finish(&self) -> Option<()> {
        self.0.is_empty().then_some(())
    }
}

/// A batch's number, of which 0 stands for none: they begin at 1.
pub(crate) const fn some_batch(id: u64) -> Option<BatchId> {
    if id == 0 { None } else { Some(BatchId(id)) }
}

/// Writes to a vector.
pub(crate) trait Put: BufMut {
    fn put_bytes_with_len(&mut self, bytes: &[u8]) {
        // What is longer than 4 GiB cannot be: records are bounded before they are encoded.
        let length = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        self.put_u32_le(length);
        self.put_slice(bytes);
    }

    fn put_text(&mut self, text: &str) {
        self.put_bytes_with_len(text.as_bytes());
    }

    fn put_time(&mut self, time: Timestamp) {
        self.put_u64_le(time.0);
    }

    fn put_place(&mut self, place: Place) {
        self.put_u32_le(place.lane.0);
        self.put_u64_le(place.seq.0);
    }

    fn put_batch(&mut self, batch: Option<BatchId>) {
        self.put_u64_le(batch.map_or(0, |id| id.0));
    }

    fn put_lane_key(&mut self, key: &LaneKey) {
        self.put_text(key.backend.as_str());
        self.put_text(key.endpoint.as_str());
        self.put_text(key.model.as_str());
        self.put_text(key.tenant.as_str());
        self.put_text(key.offer.as_str());
        self.put_text(&key.name);
        let has_api_key = if key.api_key.is_empty() { 0 } else { HAS_API_KEY };
        self.put_u8(key.sla_class.0 | has_headers(&key.headers) | has_api_key);
        self.put_headers(&key.headers);
        if !key.api_key.is_empty() {
            self.put_text(&key.api_key);
        }
    }

    /// Nothing where there are none.
    fn put_headers(&mut self, headers: &KeptHeaders) {
        if headers.is_empty() {
            return;
        }
        self.put_u32_le(u32::try_from(headers.iter().len()).unwrap_or(u32::MAX));
        for (name, value) in headers.iter() {
            self.put_text(name);
            self.put_text(value);
        }
    }

    fn put_ending(&mut self, ending: &Ending) {
        match ending {
            Ending::Answered { status } => {
                self.put_u8(0);
                self.put_u16_le(*status);
            }
            Ending::Failed { ran, code, message } => {
                self.put_u8(match ran {
                    DidItRun::NotSent => 1,
                    DidItRun::Refused => 2,
                    DidItRun::Unknown => 3,
                    DidItRun::Ran => 4,
                });
                self.put_text(cut(code, CODE_BYTES));
                self.put_text(cut(message, MESSAGE_BYTES));
            }
        }
    }

    fn put_documents(&mut self, documents: &[Document]) {
        self.put_u32_le(u32::try_from(documents.len()).unwrap_or(u32::MAX));
        for document in documents {
            self.put_u8(document.kind.number());
            self.put_bytes_with_len(&document.key);
            self.put_u8(document.value.is_some().into());
            if let Some(value) = &document.value {
                self.put_bytes_with_len(value);
            }
        }
    }

    fn put_batch_record(&mut self, batch: &BatchRecord) {
        self.put_u64_le(batch.id.0);
        self.put_text(batch.backend.as_str());
        self.put_text(batch.endpoint.as_str());
        self.put_text(batch.model.as_str());
        self.put_text(batch.offer.as_str());
        self.put_time(batch.created_at);
        self.put_u32_le(u32::try_from(batch.ranges.len()).unwrap_or(u32::MAX));
        for range in &batch.ranges {
            self.put_u32_le(range.lane.0);
            self.put_u64_le(range.from.0);
            self.put_u64_le(range.to.0);
        }
        self.put_u32_le(batch.version);
        self.put_bytes_with_len(&batch.progress);
        self.put_u8(u8::from(batch.ended.is_some()) | has_headers(&batch.headers));
        if let Some(end) = &batch.ended {
            self.put_time(end.at);
            self.put_text(&end.ending);
        }
        self.put_headers(&batch.headers);
    }
}

impl Put for Vec<u8> {}

fn has_headers(headers: &KeptHeaders) -> u8 {
    if headers.is_empty() { 0 } else { HAS_HEADERS }
}

/// The text, or its beginning of at most so many bytes.
fn cut(text: &str, bytes: usize) -> &str {
    text.get(..text.floor_char_boundary(bytes)).unwrap_or(text)
}

#[cfg(test)]
pub(crate) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// Most often none.
    fn headers() -> impl Strategy<Value = KeptHeaders> {
        let header = ("[a-z-]{1,9}", ".{0,9}").prop_map(|(name, value)| (name.into(), value.into()));
        let some = proptest::collection::btree_map("[a-z-]{1,9}", ".{0,9}", 1..3).prop_map(|headers| {
            KeptHeaders::new(headers.into_iter().map(|(name, value)| (name.into(), value.into())))
        });
        let one = header.prop_map(|header| KeptHeaders::new([header]));
        prop_oneof![2 => Just(KeptHeaders::default()), 1 => one, 1 => some]
    }

    pub(crate) fn lane_keys() -> impl Strategy<Value = LaneKey> {
        let texts = proptest::array::uniform5(".{0,12}");
        let names = (".{0,4}", ".{0,4}");
        (texts, names, 0_u8..HAS_API_KEY, headers()).prop_map(|(texts, (name, api_key), class, headers)| {
            let [backend, endpoint, model, tenant, offer] = texts;
            LaneKey {
                backend: backend.into(),
                endpoint: endpoint.into(),
                model: model.into(),
                tenant: tenant.into(),
                offer: offer.into(),
                sla_class: SlaClass(class),
                name: name.into(),
                api_key: api_key.into(),
                headers,
            }
        })
    }

    pub(crate) fn endings() -> impl Strategy<Value = Ending> {
        let ran = prop_oneof![
            Just(DidItRun::NotSent),
            Just(DidItRun::Refused),
            Just(DidItRun::Unknown),
            Just(DidItRun::Ran)
        ];
        prop_oneof![
            any::<u16>().prop_map(|status| Ending::Answered { status }),
            (ran, ".{0,20}", ".{0,40}").prop_map(|(ran, code, message)| Ending::Failed {
                ran,
                code,
                message
            }),
        ]
    }

    pub(crate) fn documents() -> impl Strategy<Value = Vec<Document>> {
        let bytes = || proptest::collection::vec(any::<u8>(), 0..9).prop_map(Bytes::from);
        let document = (proptest::sample::select(&Kind::ALL), bytes(), proptest::option::of(bytes()))
            .prop_map(|(kind, key, value)| Document { kind, key, value });
        proptest::collection::vec(document, 0..4)
    }

    pub(crate) fn batches() -> impl Strategy<Value = BatchRecord> {
        let range = (any::<u32>(), any::<u64>(), any::<u64>()).prop_map(|(lane, from, to)| Range {
            lane: LaneId(lane),
            from: Seq(from),
            to: Seq(to),
        });
        let ended = proptest::option::of(
            (any::<u64>(), ".{0,9}").prop_map(|(at, ending)| BatchEnd { at: Timestamp(at), ending }),
        );
        let texts = proptest::array::uniform4(".{0,9}");
        let ranges = proptest::collection::vec(range, 0..4);
        let progress = proptest::collection::vec(any::<u8>(), 0..20);
        (any::<u64>(), texts, any::<u64>(), ranges, any::<u32>(), progress, (ended, headers())).prop_map(
            |(
                id,
                [backend, endpoint, model, offer],
                created_at,
                ranges,
                version,
                progress,
                (ended, headers),
            )| {
                BatchRecord {
                    id: BatchId(id),
                    backend: backend.into(),
                    endpoint: endpoint.into(),
                    model: model.into(),
                    offer: offer.into(),
                    headers,
                    ranges,
                    created_at: Timestamp(created_at),
                    version,
                    progress: progress.into(),
                    ended,
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            key in lane_keys(), ending in endings(), batch in batches(), documents in documents(),
        ) {
            let mut bytes = Vec::new();
            bytes.put_lane_key(&key);
            bytes.put_ending(&ending);
            bytes.put_batch_record(&batch);
            bytes.put_documents(&documents);
            let mut take = Take(&bytes);
            prop_assert_eq!(take.lane_key(), Some(key));
            prop_assert_eq!(take.ending(), Some(ending));
            prop_assert_eq!(take.batch_record(), Some(batch));
            prop_assert_eq!(take.documents(), Some(documents));
            prop_assert_eq!(take.finish(), Some(()));
        }

        #[test]
        fn what_is_cut_off_is_refused(batch in batches(), at in 0.0..1.0_f64) {
            let mut bytes = Vec::new();
            bytes.put_batch_record(&batch);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss,
                reason = "a place in a short vector")]
            let at = (at * bytes.len() as f64) as usize;
            prop_assert_eq!(Take(&bytes[..at]).batch_record(), None);
        }
    }

    #[test]
    fn what_was_written_before_there_were_headers_is_read() {
        let key = [&b"\x01\0\0\0b\x01\0\0\0e\x01\0\0\0m\x01\0\0\0t\x01\0\0\0o\0\0\0\0"[..], &[11]].concat();
        let mut take = Take(&key);
        let key = take.lane_key().unwrap();
        assert_eq!((key.offer.as_str(), key.sla_class, key.headers.is_empty()), ("o", SlaClass(11), true));
        assert_eq!(take.finish(), Some(()));
        let texts = b"\x01\0\0\0b\x01\0\0\0e\x01\0\0\0m\x01\0\0\0o";
        let batch =
            [&7_u64.to_le_bytes()[..], texts, &9_u64.to_le_bytes(), &[0; 4], &[0; 4], &[0; 4], &[0]].concat();
        let mut take = Take(&batch);
        let batch = take.batch_record().unwrap();
        assert_eq!((batch.id, batch.ended, batch.headers.is_empty()), (BatchId(7), None, true));
        assert_eq!(take.finish(), Some(()));
    }

    #[test]
    fn long_texts_of_an_ending_are_cut_between_characters() {
        let long = Ending::Failed { ran: DidItRun::Ran, code: "x".into(), message: "\u{20ac}".repeat(2000) };
        let mut bytes = Vec::new();
        bytes.put_ending(&long);
        let Some(Ending::Failed { message, .. }) = Take(&bytes).ending() else { panic!("no ending") };
        assert_eq!(message.len(), 4095);
        assert!(message.chars().all(|c| c == '\u{20ac}'));
    }
}
