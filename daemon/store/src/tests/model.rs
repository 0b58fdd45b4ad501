//! Random operations on a store and on a model of it which is too simple to be wrong.

use std::collections::BTreeMap;
use std::ops::Bound;

use offpeak_core::words::BatchId;
use proptest::prelude::*;

use super::*;
use crate::{Document, Idempotency, Kind, Order, Recorded, StoreError};

/// What is done. Numbers choose among what there is at that moment.
#[derive(Debug, Clone)]
enum Act {
    Lane(u8),
    Append { lane: u8, bytes: u16, key: Option<u8> },
    Seal { lane: u8, skip: u8, length: u8 },
    Advance(u8, u8),
    End(u8),
    Finish { place: u16, bytes: u16 },
    Requeue { place: u16, lane: u8 },
    Cancel(u16),
    Keep { key: u8, value: Option<u8> },
    Sweep,
    Checkpoint,
    Reopen { is_clean: bool },
}

fn acts() -> impl Strategy<Value = Act> {
    prop_oneof![
        1 => (0..4_u8).prop_map(Act::Lane),
        8 => (any::<u8>(), 0..900_u16, proptest::option::weighted(0.3, 0..6_u8))
            .prop_map(|(lane, bytes, key)| Act::Append { lane, bytes, key }),
        2 => (any::<u8>(), 0..3_u8, 0..6_u8).prop_map(|(lane, skip, length)| Act::Seal { lane, skip, length }),
        1 => any::<(u8, u8)>().prop_map(|(batch, progress)| Act::Advance(batch, progress)),
        1 => any::<u8>().prop_map(Act::End),
        8 => (any::<u16>(), 0..900_u16).prop_map(|(place, bytes)| Act::Finish { place, bytes }),
        3 => any::<(u16, u8)>().prop_map(|(place, lane)| Act::Requeue { place, lane }),
        1 => any::<u16>().prop_map(Act::Cancel),
        3 => (0..6_u8, proptest::option::weighted(0.7, any::<u8>()))
            .prop_map(|(key, value)| Act::Keep { key, value }),
        1 => Just(Act::Sweep),
        1 => Just(Act::Checkpoint),
        2 => any::<bool>().prop_map(|is_clean| Act::Reopen { is_clean }),
    ]
}

/// What should be in the store.
#[derive(Debug, Default)]
struct Model {
    lanes: Vec<Vec<Entry>>,
    keys: BTreeMap<u8, (Place, String)>,
    batches: Vec<(Vec<Range>, u32, bool)>,
    sealed: Vec<Range>,
    documents: BTreeMap<u8, u8>,
    /// Something was swept: what is finished may be gone.
    is_swept: bool,
}

#[derive(Debug)]
struct Entry {
    origin: Place,
    attempts: u16,
    body: String,
    ended: Option<Ended>,
}

#[derive(Debug)]
enum Ended {
    Final(String),
    Requeued(Place),
}

impl Model {
    fn places(&self) -> Vec<Place> {
        (0..)
            .zip(&self.lanes)
            .flat_map(|(lane, entries)| {
                (0..entries.len() as u64).map(move |seq| Place { lane: LaneId(lane), seq: Seq(seq) })
            })
            .collect()
    }

    fn entry(&mut self, place: Place) -> &mut Entry {
        &mut self.lanes[place.lane.0 as usize][usize::try_from(place.seq.0).unwrap()]
    }

    fn keep(&mut self, key: u8, value: Option<u8>) {
        match value {
            Some(value) => self.documents.insert(key, value),
            None => self.documents.remove(&key),
        };
    }

    fn push(&mut self, lane: LaneId, entry: Entry) -> Place {
        let entries = &mut self.lanes[lane.0 as usize];
        entries.push(entry);
        Place { lane, seq: Seq(entries.len() as u64 - 1) }
    }
}

/// The store and the model, side by side.
struct Pair {
    disk: Arc<MemoryDisk>,
    store: Store,
    model: Model,
}

fn pick<T: Copy>(from: &[T], number: impl Into<usize>) -> Option<T> {
    from.get(number.into() % from.len().max(1)).copied()
}

impl Pair {
    fn lane(&self, number: u8) -> Option<LaneId> {
        pick(&(0..self.model.lanes.len()).collect::<Vec<_>>(), number)
            .map(|lane| LaneId(u32::try_from(lane).unwrap()))
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Lane(name) => {
                let known = self.store.lane_key(LaneId(u32::from(name)));
                // Lanes are made in order, so that a name is a number.
                let name = if known.is_some() { name.into() } else { self.model.lanes.len() };
                let id = now(self.store.lane(&lane_key(&name.to_string()))).unwrap();
                assert_eq!(id.0 as usize, name);
                if name == self.model.lanes.len() {
                    self.model.lanes.push(Vec::new());
                }
            }
            Act::Append { lane, bytes, key } => self.append(lane, bytes, key),
            Act::Seal { lane, skip, length } => self.seal(lane, skip, length),
            Act::Advance(number, progress) => {
                let progress = Bytes::copy_from_slice(&[progress]);
                self.change_batch(number, false, |store, id| now(store.advance(id, progress)));
            }
            Act::End(number) => {
                self.change_batch(number, true, |store, id| now(store.end(id, Timestamp(3000), "done")));
            }
            Act::Finish { place, bytes } => {
                let body = "a".repeat(bytes.into());
                let [value, _] = bytes.to_le_bytes();
                let documents = vec![document(7, Some(value)), document(0, None)];
                let outcome = |place| NewOutcome { documents, ..answered(place, &body) };
                self.record(place, outcome, |model, _| {
                    model.keep(7, Some(value));
                    model.keep(0, None);
                    Ended::Final(body.clone())
                });
            }
            Act::Requeue { place, lane } => {
                let Some(lane) = self.lane(lane) else { return };
                self.record(
                    place,
                    |place| requeued(place, lane),
                    |model, place| {
                        let Entry { origin, ref body, .. } = *model.entry(place);
                        let body = body.clone();
                        Ended::Requeued(model.push(lane, Entry { origin, attempts: 1, body, ended: None }))
                    },
                );
            }
            Act::Cancel(place) => self.cancel(place),
            Act::Keep { key, value } => {
                now(self.store.keep(vec![document(key, value)])).unwrap();
                self.model.keep(key, value);
            }
            Act::Sweep => {
                now(self.store.sweep(LATER)).unwrap();
                self.model.is_swept = true;
            }
            Act::Checkpoint => now(self.store.checkpoint()).unwrap(),
            Act::Reopen { is_clean } => self.reopen(is_clean),
        }
    }

    fn append(&mut self, lane: u8, bytes: u16, key: Option<u8>) {
        let Some(lane) = self.lane(lane) else { return };
        let body = "b".repeat(bytes.into());
        let idempotency = key.map(|key| Idempotency { key: [key; 16], expires: Timestamp(u64::MAX) });
        let appended = now(self.store.append(NewRequest { idempotency, ..request(lane, &body) })).unwrap();
        let known = key.and_then(|key| self.model.keys.get(&key));
        match known {
            // A sweep may have removed the request and its key.
            Some(_) if self.model.is_swept && matches!(appended, Appended::New(_)) => {}
            Some((place, before)) if *before == body => return assert_eq!(appended, Appended::Same(*place)),
            Some(_) => return assert_eq!(appended, Appended::Conflict),
            None => {}
        }
        let entries = self.model.lanes[lane.0 as usize].len() as u64;
        let place = Place { lane, seq: Seq(entries) };
        assert_eq!(appended, Appended::New(place));
        if let Some(key) = key {
            self.model.keys.insert(key, (place, body.clone()));
        }
        self.model.push(lane, Entry { origin: place, attempts: 0, body, ended: None });
    }

    fn seal(&mut self, lane: u8, skip: u8, length: u8) {
        let Some(lane) = self.lane(lane) else { return };
        let head = (0..=1000).find(|&seq| !self.is_sealed(lane, seq)).unwrap_or(0);
        let wanted = range(lane, head + u64::from(skip), head + u64::from(skip) + u64::from(length));
        let entries = self.model.lanes[lane.0 as usize].len() as u64;
        let is_good = !wanted.is_empty()
            && wanted.to.0 <= entries
            && (wanted.from.0..wanted.to.0).all(|seq| !self.is_sealed(lane, seq));
        match now(self.store.seal(batch(vec![wanted]))) {
            Ok(id) => {
                assert!(is_good);
                self.model.batches.push((vec![wanted], 0, false));
                self.model.sealed.push(wanted);
                assert_eq!(id.0, self.model.batches.len() as u64);
            }
            Err(error) => assert!(!is_good && matches!(error, StoreError::BadRange(_)), "{error}"),
        }
    }

    fn is_sealed(&self, lane: LaneId, seq: u64) -> bool {
        self.model.sealed.iter().any(|range| range.contains(Place { lane, seq: Seq(seq) }))
    }

    fn change_batch(
        &mut self,
        number: u8,
        ends: bool,
        change: impl FnOnce(&Store, BatchId) -> Result<(), StoreError>,
    ) {
        let count = self.model.batches.len();
        let Some(at) = pick(&(0..count).collect::<Vec<_>>(), number) else { return };
        let (_, version, has_ended) = &mut self.model.batches[at];
        let changed = change(&self.store, BatchId(at as u64 + 1));
        if *has_ended {
            assert!(matches!(changed, Err(StoreError::UnknownBatch(_))));
            return;
        }
        changed.unwrap();
        *version += u32::from(!ends);
        *has_ended = ends;
    }

    fn record(
        &mut self,
        number: u16,
        outcome: impl FnOnce(Place) -> NewOutcome,
        ended: impl FnOnce(&mut Model, Place) -> Ended,
    ) {
        let Some(place) = pick(&self.model.places(), number) else { return };
        let recorded = now(self.store.record(vec![outcome(place)])).unwrap();
        if self.model.entry(place).ended.is_some() {
            let is_gone = self.model.is_swept && recorded == [Recorded::Unknown];
            assert!(is_gone || recorded == [Recorded::Duplicate], "{recorded:?}");
            return;
        }
        let ended = ended(&mut self.model, place);
        let requeued = if let Ended::Requeued(to) = ended { Some(to) } else { None };
        let entry = self.model.entry(place);
        entry.ended = Some(ended);
        assert_eq!(recorded, [Recorded::New { origin: entry.origin, requeued }]);
    }

    fn cancel(&mut self, number: u16) {
        let Some(origin) = pick(&self.model.places(), number) else { return };
        let recorded = now(self.store.cancel(origin, Timestamp(2000), 0)).unwrap();
        let mut place = origin;
        while let Some(Ended::Requeued(to)) = self.model.entry(place).ended {
            place = to;
        }
        let is_swept = self.model.is_swept;
        let entry = self.model.entry(place);
        if entry.ended.is_some() {
            assert!(recorded == Recorded::Duplicate || is_swept, "{recorded:?}");
        } else {
            assert_eq!(recorded, Recorded::New { origin: entry.origin, requeued: None });
            entry.ended = Some(Ended::Final(String::new()));
        }
    }

    fn reopen(&mut self, is_clean: bool) {
        if is_clean {
            now(self.store.close()).unwrap();
        } else {
            // All that was acknowledged is synced, so it does not matter what of the rest is kept.
            self.disk = self.disk.after_power_failure(&mut || false);
        }
        let (store, recovered) = open_again(&self.disk, &mut self.store);
        self.store = store;
        assert_eq!((recovered.cut_off_bytes, recovered.quarantined.len()), (0, 0));
        for (lane, entries) in recovered.lanes.iter().zip(&self.model.lanes) {
            assert_eq!(lane.next.0, entries.len() as u64);
            let unsealed: Vec<u64> =
                lane.extents.iter().flat_map(|extent| extent.first.0..extent.end().0).collect();
            let expected: Vec<u64> = (0..lane.next.0).filter(|&seq| !self.is_sealed(lane.id, seq)).collect();
            if self.model.is_swept {
                let waiting = |seq: &u64| entries[usize::try_from(*seq).unwrap()].ended.is_none();
                assert!(expected.iter().filter(|seq| waiting(seq)).all(|seq| unsealed.contains(seq)));
                assert!(unsealed.iter().all(|seq| expected.contains(seq)));
            } else {
                assert_eq!(unsealed, expected);
            }
        }
        let open: Vec<(u64, u32)> =
            recovered.open_batches.iter().map(|batch| (batch.id.0, batch.version)).collect();
        let expected: Vec<(u64, u32)> = (1..)
            .zip(&self.model.batches)
            .filter(|(_, (_, _, has_ended))| !has_ended)
            .map(|(id, (_, version, _))| (id, *version))
            .collect();
        assert_eq!(open, expected);
    }

    /// Everything that can be asked is answered as the model would.
    fn compare(&mut self) {
        check_index(&self.store, &self.disk);
        for place in self.model.places() {
            let is_swept = self.model.is_swept;
            let found = now(self.store.entry(place)).unwrap();
            let entry = self.model.entry(place);
            match &found {
                Some(found) => {
                    assert_eq!((found.origin, found.attempts), (entry.origin, entry.attempts));
                    assert_eq!(found.body, entry.body.as_bytes());
                }
                None => assert!(is_swept && entry.ended.is_some(), "{place} is gone"),
            }
            let (is_origin, ended) = (entry.origin == place, entry.ended.is_some());
            if is_origin {
                self.compare_outcome(place);
            }
            let waiting = now(self.store.requests(vec![place], 0)).unwrap();
            assert_eq!(waiting.entries.is_empty(), ended, "{place}");
        }
        for at in 0..self.model.batches.len() {
            let id = BatchId(at as u64 + 1);
            let (ranges, version, has_ended) = self.model.batches[at].clone();
            let Some(found) = now(self.store.batch(id)).unwrap() else {
                assert!(has_ended && self.model.is_swept);
                continue;
            };
            assert_eq!((found.version, found.ended.is_some()), (version, has_ended));
            let missing = now(self.store.missing(id)).unwrap();
            let mut expected = self.model.places();
            expected.retain(|&place| ranges.iter().any(|range| range.contains(place)));
            let total = expected.len() as u64;
            expected.retain(|&place| self.model.entry(place).ended.is_none());
            assert_eq!(missing, expected);
            let counts = now(self.store.counts(id)).unwrap();
            assert_eq!((counts.total, counts.finished), (total, total - expected.len() as u64));
        }
        self.compare_search();
        self.compare_documents();
    }

    fn compare_outcome(&mut self, origin: Place) {
        let mut place = origin;
        while let Some(Ended::Requeued(to)) = self.model.entry(place).ended {
            place = to;
        }
        let is_swept = self.model.is_swept;
        let entry = self.model.entry(place);
        let waits_here = now(self.store.wait_here(vec![origin, place])).unwrap();
        let waits = entry.ended.is_none();
        assert_eq!(waits_here, [waits && place == origin, waits], "{origin}, now at {place}");
        match (now(self.store.outcome(origin)).unwrap(), &entry.ended) {
            (Some(Standing::Waiting { current, attempts }), None) => {
                assert_eq!((current, attempts), (place, entry.attempts));
            }
            (Some(Standing::Final(outcome)), Some(Ended::Final(body))) => {
                assert_eq!(outcome.place, place);
                assert_eq!(now(self.store.read_body(outcome.body)).unwrap(), body.as_bytes());
            }
            (None, Some(_)) => assert!(is_swept),
            (found, expected) => panic!("{origin}: {found:?} instead of {expected:?}"),
        }
    }

    fn compare_documents(&self) {
        let everything = || (Bound::Unbounded, Bound::Unbounded);
        let kept = |order, most| {
            let found = now(self.store.documents(Kind::Job, everything(), order, most)).unwrap();
            found.iter().map(|(key, value)| (key[0], value[0])).collect::<Vec<_>>()
        };
        let mut expected: Vec<(u8, u8)> =
            self.model.documents.iter().map(|(key, value)| (*key, *value)).collect();
        assert_eq!(kept(Order::Ascending, 100), expected);
        expected.reverse();
        expected.truncate(2);
        assert_eq!(kept(Order::Descending, 2), expected);
        assert_eq!(now(self.store.documents(Kind::File, everything(), Order::Ascending, 9)).unwrap(), []);
        let after = (Bound::Excluded(Bytes::from_static(&[2])), Bound::Included(Bytes::from_static(&[5])));
        let found = now(self.store.documents(Kind::Job, after, Order::Ascending, 9)).unwrap();
        assert_eq!(found.len(), self.model.documents.range(3..=5).count());
        let one = now(self.store.document(Kind::Job, Bytes::from_static(&[7]))).unwrap();
        assert_eq!(one.map(|value| value[0]), self.model.documents.get(&7).copied());
    }

    fn compare_search(&mut self) {
        let lanes: Vec<LaneId> = (0..).map(LaneId).take(self.model.lanes.len()).collect();
        let found = now(self.store.find_by_body(&lanes, body_hash(b"bbb"), Timestamp::NEVER)).unwrap();
        let places = self.model.places();
        let alike = |place: &Place, model: &mut Model| {
            let entry = model.entry(*place);
            (entry.body == "bbb" && entry.ended.is_none()).then_some(entry.origin)
        };
        let expected: Vec<Place> = places.iter().filter_map(|place| alike(place, &mut self.model)).collect();
        assert_eq!(found.is_some(), !expected.is_empty());
        assert!(found.is_none_or(|origin| expected.contains(&origin)));
    }
}

fn document(key: u8, value: Option<u8>) -> Document {
    let bytes = |byte: u8| Bytes::copy_from_slice(&[byte]);
    Document { kind: Kind::Job, key: bytes(key), value: value.map(bytes) }
}

/// Lets go of the old store before the same disk is opened again.
fn open_again(disk: &Arc<MemoryDisk>, old: &mut Store) -> (Store, Recovered) {
    let (placeholder, _) = open(&MemoryDisk::new());
    drop(std::mem::replace(old, placeholder));
    open(disk)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(150))]

    #[test]
    fn the_store_does_what_the_model_does(
        acts in proptest::collection::vec(acts(), 1..120), checks: prop::sample::Index,
    ) {
        let disk = MemoryDisk::new();
        let (store, _) = open(&disk);
        let mut pair = Pair { disk, store, model: Model::default() };
        pair.act(&Act::Lane(0));
        let check_at = checks.index(acts.len());
        for (number, act) in acts.iter().enumerate() {
            pair.act(act);
            if number == check_at {
                pair.compare();
            }
        }
        pair.compare();
        pair.reopen(false);
        pair.compare();
    }
}
