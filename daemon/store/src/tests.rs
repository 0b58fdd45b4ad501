//! The store as a whole, on a disk in memory and without threads unless a file says otherwise.

mod audit;
mod crash;
mod damage;
mod full;
mod model;
mod standings;
mod sweep;
mod threads;
mod told;
mod version3;

use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use bytes::Bytes;
use offpeak_core::extent::{Extent, Range};
use offpeak_core::outcome::Ending;
use offpeak_core::words::{KeptHeaders, LaneId, LaneKey, Millis, Place, Seq, SlaClass, Timestamp};

use crate::disk::memory::MemoryDisk;
use crate::{
    Appended, BatchRecord, NewBatch, NewOutcome, NewRequest, Options, Recovered, Standing, Store, Verdict,
    body_hash,
};

const LATER: Timestamp = Timestamp(1_000_000_000);

/// What a store without threads does is done when it is first polled.
fn now<T>(future: impl Future<Output = T>) -> T {
    match std::pin::pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
        Poll::Ready(value) => value,
        Poll::Pending => panic!("a store without threads left something for later"),
    }
}

fn options() -> Options {
    Options {
        segment_bytes: 4096,
        checkpoint_bytes: 3000,
        retention: Millis(1000),
        install_id_if_new: 0x5eed,
        inline: true,
        ..Options::new("in memory")
    }
}

fn open(disk: &Arc<MemoryDisk>) -> (Store, Recovered) {
    Store::open_on(disk.clone(), options(), Timestamp(0)).unwrap()
}

fn lane_key(name: &str) -> LaneKey {
    LaneKey {
        backend: "openai".into(),
        endpoint: "/v1/chat/completions".into(),
        model: "m".into(),
        tenant: "t".into(),
        offer: "batch".into(),
        sla_class: SlaClass(4),
        name: name.into(),
        api_key: "".into(),
        headers: KeptHeaders::default(),
    }
}

fn request(lane: LaneId, body: &str) -> NewRequest {
    NewRequest {
        lane,
        arrived: Timestamp(100),
        deadline: Timestamp(5000),
        tokens: 7,
        body_hash: body_hash(body.as_bytes()),
        idempotency: None,
        flags: 3,
        meta: Bytes::from_static(b"x-header: 1"),
        body: Bytes::copy_from_slice(body.as_bytes()),
    }
}

fn append(store: &Store, lane: LaneId, body: &str) -> Place {
    match now(store.append(request(lane, body))).unwrap() {
        Appended::New(place) => place,
        other => panic!("{other:?}"),
    }
}

fn answered(place: Place, body: &str) -> NewOutcome {
    NewOutcome {
        place,
        attempts: 1,
        batch: None,
        finished_at: Timestamp(2000),
        ending: Ending::Answered { status: 200 },
        verdict: Verdict::Final,
        meta: Bytes::from_static(b"content-type: application/json"),
        body: Bytes::copy_from_slice(body.as_bytes()),
        documents: Vec::new(),
    }
}

fn requeued(place: Place, lane: LaneId) -> NewOutcome {
    let verdict = Verdict::Requeue { lane, deadline: Timestamp(9000), not_before: Timestamp(2500) };
    let ending = Ending::Answered { status: 429 };
    NewOutcome { ending, verdict, ..answered(place, "") }
}

fn batch(ranges: Vec<Range>) -> NewBatch {
    NewBatch {
        backend: "openai".into(),
        endpoint: "/v1/chat/completions".into(),
        model: "m".into(),
        offer: "batch".into(),
        headers: KeptHeaders::default(),
        ranges,
        created_at: Timestamp(1500),
        progress: Bytes::from_static(b"begun"),
    }
}

fn range(lane: LaneId, from: u64, to: u64) -> Range {
    Range { lane, from: Seq(from), to: Seq(to) }
}

/// Nothing in the index points to what is not there.
fn check_index(store: &Store, disk: &MemoryDisk) {
    let segments: std::collections::BTreeSet<u32> =
        crate::disk::Disk::segments(disk).unwrap().into_iter().collect();
    let view = store.index_view();
    let known: Vec<u32> = view.segment_rows().unwrap().into_iter().map(|(segment, _)| segment).collect();
    assert!(known.iter().eq(&segments), "segments of the index {known:?} and of the disk {segments:?}");
    let mut found = crate::values::Findings::default();
    crate::index::check::check(&view, &segments, view.applied().unwrap(), &mut found).unwrap();
    assert_eq!(found.texts, [""; 0]);
}

/// Everything that a caller can see, in one comparable piece.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Dump {
    lanes: Vec<LaneDump>,
    open_batches: Vec<BatchRecord>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct LaneDump {
    key: LaneKey,
    next: u64,
    head: u64,
    extents: Vec<Extent>,
    entries: Vec<String>,
    waiting: Vec<Place>,
}

/// Looks at a store that was just opened.
fn dump(store: &Store, recovered: &Recovered) -> Dump {
    let lanes = recovered.lanes.iter().map(|lane| {
        let place = |seq| Place { lane: lane.id, seq: Seq(seq) };
        let entries = (0..lane.next.0).map(|seq| entry_dump(store, place(seq))).collect();
        let all = range(lane.id, 0, lane.next.0);
        let mut waiting = Vec::new();
        let mut rest = Some(crate::Selection::from(all));
        while let Some(what) = rest {
            let chunk = now(store.requests(what, 500)).unwrap();
            assert!(chunk.rest.is_none() || !chunk.entries.is_empty());
            waiting.extend(chunk.entries.iter().map(|entry| entry.place));
            rest = chunk.rest;
        }
        LaneDump {
            key: lane.key.clone(),
            next: lane.next.0,
            head: lane.head.0,
            extents: lane.extents.clone(),
            entries,
            waiting,
        }
    });
    Dump { lanes: lanes.collect(), open_batches: recovered.open_batches.clone() }
}

fn entry_dump(store: &Store, place: Place) -> String {
    let entry = now(store.entry(place)).unwrap();
    let standing = now(store.outcome(place)).unwrap();
    let body = match &standing {
        Some(Standing::Final(outcome)) => Some(now(store.read_body(outcome.body)).unwrap()),
        _ => None,
    };
    let standing = match standing {
        // Where in the log the answer is depends on what came before it.
        Some(Standing::Final(outcome)) => {
            format!("{:?} {:?} {} {:?}", outcome.place, outcome.ending, outcome.attempts, outcome.meta)
        }
        other => format!("{other:?}"),
    };
    format!("{entry:?} {standing} {body:?}")
}

/// What somebody would find who copied the disk now and opened the copy.
fn dump_of_copy(disk: &MemoryDisk) -> Dump {
    let (store, recovered) = open(&disk.after_power_failure(&mut || true));
    dump(&store, &recovered)
}

#[test]
fn the_hash_of_a_body_is_fixed() {
    // SHA-256 of the empty text begins e3b0c44298fc1c14.
    assert_eq!(body_hash(b""), 0xe3b0_c442_98fc_1c14);
    assert_ne!(body_hash(b"a"), body_hash(b"b"));
}
