//! A data folder that version 3 wrote, kept as text: read as it was meant, gone on with, and left as today's.

use super::*;
use crate::disk::Disk;
use crate::migrate::SCHEMA;
use crate::{Document, Idempotency, Kind, StoreError};

/// Lines of files: `file`, its name and length, then rows of 32 bytes that are not all zero, each behind its offset; all in
/// hexadecimal. Version 3 was asked for two lanes, eight requests, of which one came under a key, a batch that is under way,
/// one that has ended, with an answer and a request that goes again in the other lane, and two documents. It was killed when
/// one more answer and one more request stood in the log and not in the index yet.
const WRITTEN: &str = include_str!("version3.txt");

fn written() -> Arc<MemoryDisk> {
    let disk = MemoryDisk::new();
    for file in WRITTEN.split("file ").skip(1) {
        let mut lines = file.lines();
        let (name, length) = lines.next().unwrap().split_once(' ').unwrap();
        let mut bytes = vec![0; length.parse().unwrap()];
        for line in lines {
            let (offset, row) = line.split_once(' ').unwrap();
            let offset = usize::from_str_radix(offset, 16).unwrap();
            for (at, pair) in row.as_bytes().chunks(2).enumerate() {
                bytes[offset + at] = u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
            }
        }
        if let Some(segment) = name.strip_prefix("log/") {
            let file = disk.create(segment.parse().unwrap()).unwrap();
            file.write_at(0, &bytes).unwrap();
            file.sync().unwrap();
        } else {
            drop(disk.open_index(&redb::Database::builder()).unwrap());
            disk.damage_index(|index| *index = bytes);
        }
    }
    disk
}

const FIRST: LaneId = LaneId(0);
const SECOND: LaneId = LaneId(1);

fn at(lane: LaneId, seq: u64) -> Place {
    Place { lane, seq: Seq(seq) }
}

fn answer(store: &Store, place: Place) -> Bytes {
    match now(store.outcome(place)).unwrap() {
        Some(Standing::Final(outcome)) => now(store.read_body(outcome.body)).unwrap(),
        other => panic!("{other:?}"),
    }
}

fn document(store: &Store, kind: Kind, key: &'static str) -> Option<Bytes> {
    now(store.document(kind, Bytes::from_static(key.as_bytes()))).unwrap()
}

#[test]
fn what_version_3_wrote_is_read_as_it_was_meant() {
    let disk = written();
    let looked_at = Store::check_on(&*disk, &options());
    assert!(matches!(looked_at, Err(StoreError::SchemaOld { found: 3, .. })), "{looked_at:?}");
    let (store, recovered) = open(&disk);
    assert_eq!((recovered.replayed, recovered.cut_off_bytes, recovered.quarantined.len()), (2, 0, 0));
    let headers = KeptHeaders::new([("openai-organization".into(), "o".into())]);
    let keys: Vec<LaneKey> = recovered.lanes.iter().map(|lane| lane.key.clone()).collect();
    assert_eq!(keys, [lane_key("first"), LaneKey { headers, ..lane_key("second") }]);
    let unsealed: Vec<(u64, u64)> = recovered.lanes.iter().map(|lane| (lane.head.0, lane.next.0)).collect();
    assert_eq!(unsealed, [(5, 8), (0, 2)]);

    for (n, body) in ["question 0", "question 1", "question 2", "question 3", "question 4", "question 5"]
        .into_iter()
        .chain(["with a key", "last question"])
        .enumerate()
    {
        let entry = now(store.entry(at(FIRST, n as u64))).unwrap().unwrap();
        assert_eq!((entry.body.as_ref(), entry.meta.as_ref()), (body.as_bytes(), &b"x-header: 1"[..]));
        assert_eq!((entry.arrived, entry.deadline, entry.tokens), (Timestamp(100), Timestamp(5000), 7));
    }
    assert_eq!(answer(&store, at(FIRST, 0)), "answer 0");
    assert_eq!(answer(&store, at(FIRST, 3)), "answer 3");
    assert_eq!(
        now(store.outcome(at(FIRST, 4))).unwrap(),
        Some(Standing::Waiting { current: at(SECOND, 1), attempts: 1 })
    );
    let again = now(store.entry(at(SECOND, 1))).unwrap().unwrap();
    assert_eq!((again.origin, again.attempts, again.not_before), (at(FIRST, 4), 1, Timestamp(2500)));

    let [under_way] = &recovered.open_batches[..] else { panic!("{:?}", recovered.open_batches) };
    assert_eq!((&under_way.progress[..], under_way.version), (&b"further"[..], 1));
    assert_eq!(under_way.ranges, [range(FIRST, 0, 3)]);
    assert_eq!(now(store.missing(under_way.id)).unwrap(), [at(FIRST, 1), at(FIRST, 2)]);
    assert_eq!(document(&store, Kind::Ledger, "entry").unwrap(), "cost");
    assert_eq!(document(&store, Kind::Job, "job").unwrap(), "its life");
    let same = NewRequest {
        idempotency: Some(Idempotency { key: [7; 16], expires: Timestamp(90_000) }),
        ..request(FIRST, "with a key")
    };
    assert_eq!(now(store.append(same)).unwrap(), Appended::Same(at(FIRST, 6)));
    check_index(&store, &disk);
}

#[test]
fn what_version_3_wrote_is_gone_on_with_and_left_as_todays() {
    let disk = written();
    let (store, recovered) = open(&disk);
    let batch_under_way = recovered.open_batches[0].id;
    now(store.record(vec![answered(at(FIRST, 1), "one"), answered(at(FIRST, 2), "two")])).unwrap();
    now(store.end(batch_under_way, Timestamp(2200), "completed")).unwrap();
    let rest = now(store.seal(batch(vec![range(FIRST, 5, 8), range(SECOND, 0, 2)]))).unwrap();
    let all = [at(FIRST, 5), at(FIRST, 6), at(FIRST, 7), at(SECOND, 0), at(SECOND, 1)];
    now(store.record(all.map(|place| answered(place, "done")).to_vec())).unwrap();
    now(store.end(rest, Timestamp(2300), "completed")).unwrap();
    assert_eq!(answer(&store, at(FIRST, 4)), "done", "the one that went again");
    let kept = Document { kind: Kind::Job, key: Bytes::from_static(b"job"), value: None };
    now(store.keep(vec![kept])).unwrap();
    // Enough for what was there before to be swept, and its lanes with it.
    let third = now(store.lane(&lane_key("third"))).unwrap();
    for n in 0..40 {
        let place = append(&store, third, &format!("{n}").repeat(100));
        now(store.record(vec![answered(place, "")])).unwrap();
    }
    now(store.checkpoint()).unwrap();
    now(store.sweep(LATER)).unwrap();
    let idle = now(store.idle_lanes()).unwrap();
    let gone = now(store.remove_lanes(idle)).unwrap();
    assert_eq!(gone, [FIRST, SECOND]);
    now(store.close()).unwrap();
    drop(store);

    let audit = Store::check_on(&*disk, &options()).unwrap();
    assert_eq!((audit.schema, audit.findings), (SCHEMA, Vec::<String>::new()));
    let (store, recovered) = open(&disk);
    let lanes: Vec<LaneId> = recovered.lanes.iter().map(|lane| lane.id).collect();
    assert_eq!((lanes, recovered.open_batches.len()), (vec![third], 0));
    assert_eq!(document(&store, Kind::Ledger, "entry").unwrap(), "cost");
    assert_eq!(document(&store, Kind::Job, "job"), None);
}
