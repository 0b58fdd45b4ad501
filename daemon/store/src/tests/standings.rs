//! Many requests at once: how they stand, their answers, and what a sweep leaves of them.

use super::*;
use crate::{Recorded, StoreError, Tally};

fn failed(place: Place) -> NewOutcome {
    let ending = Ending::Answered { status: 400 };
    NewOutcome { ending, ..answered(place, "no") }
}

fn finish(store: &Store, outcome: NewOutcome) {
    let recorded = now(store.record(vec![outcome])).unwrap().pop();
    assert!(matches!(recorded, Some(Recorded::New { .. })), "{recorded:?}");
}

#[test]
fn requests_are_counted_and_read_wherever_they_went() {
    let (store, _) = open(&MemoryDisk::new());
    let (a, b) = (now(store.lane(&lane_key("a"))).unwrap(), now(store.lane(&lane_key("b"))).unwrap());
    let places: Vec<Place> = (0..10).map(|n| append(&store, a, &format!("question {n}"))).collect();
    let ranges = vec![range(a, 0, 4), range(a, 5, 10)];
    finish(&store, answered(places[1], "one"));
    finish(&store, failed(places[2]));
    finish(&store, requeued(places[3], b));
    finish(&store, requeued(places[6], b));
    finish(&store, answered(Place { lane: b, seq: Seq(1) }, "six"));
    let tally = now(store.tally(ranges.clone())).unwrap();
    assert_eq!(tally, Tally { succeeded: 2, failed: 1, unfinished: 6 });

    let open = now(store.unfinished(ranges.clone(), 3)).unwrap();
    let found: Vec<(u64, LaneId, u16)> =
        open.iter().map(|one| (one.origin.seq.0, one.current.lane, one.attempts)).collect();
    assert_eq!(found, [(0, a, 0), (3, b, 1), (5, a, 0)]);
    assert_eq!(now(store.unfinished(ranges.clone(), 100)).unwrap().len(), 6);

    let mut rest = Some(ranges);
    let (mut read, mut retried) = (Vec::new(), Vec::new());
    while let Some(ranges) = rest {
        // One byte: one request at a time.
        let chunk = now(store.finished(ranges, 1)).unwrap();
        assert!(chunk.finished.len() <= 1);
        read.extend(chunk.finished);
        retried.extend(chunk.retried.into_iter().map(|(place, _)| place));
        rest = chunk.rest;
    }
    assert_eq!(retried, [places[3], places[6]], "each once, finished by now or not");
    let read: Vec<(u64, &[u8], bool)> =
        read.iter().map(|one| (one.origin.seq.0, &one.body[..], one.outcome.ending.is_success())).collect();
    assert_eq!(read, [(1, &b"one"[..], true), (2, &b"no"[..], false), (6, &b"six"[..], true)]);
}

#[test]
fn the_requests_meta_comes_with_the_answer() {
    let (store, _) = open(&MemoryDisk::new());
    let lane = now(store.lane(&lane_key("a"))).unwrap();
    finish(&store, answered(append(&store, lane, "x"), "y"));
    let chunk = now(store.finished(vec![range(lane, 0, 1)], 1000)).unwrap();
    assert_eq!(chunk.finished[0].request_meta, &b"x-header: 1"[..]);
    assert_eq!(chunk.rest, None);
}

#[test]
fn a_batch_has_what_it_was_sealed_with() {
    let (store, _) = open(&MemoryDisk::new());
    let lane = now(store.lane(&lane_key("a"))).unwrap();
    let (first, second) = (append(&store, lane, "x"), append(&store, lane, "y"));
    now(store.seal(batch(vec![range(lane, 0, 1)]))).unwrap();
    assert!(now(store.is_sealed(first)).unwrap() && !now(store.is_sealed(second)).unwrap());
}

/// Fills segments until there are so many more.
fn fill(store: &Store, lane: LaneId, segments: u32) -> Vec<Place> {
    let before = store.stats().segments;
    let mut places = Vec::new();
    while store.stats().segments < before + segments {
        places.push(append(store, lane, &"f".repeat(700)));
    }
    places
}

#[test]
fn a_sweep_leaves_what_a_tenant_has_since_a_request() {
    let disk = MemoryDisk::new();
    let (store, _) = open(&disk);
    let lanes = ["a", "b"].map(|name| now(store.lane(&lane_key(name))).unwrap());
    let other = LaneKey { tenant: "other".into(), ..lane_key("a") };
    let other = now(store.lane(&other)).unwrap();
    let early = fill(&store, lanes[0], 3);
    let job = append(&store, lanes[0], "the job's first");
    finish(&store, requeued(job, lanes[1]));
    fill(&store, other, 3);
    finish(&store, answered(Place { lane: lanes[1], seq: Seq(0) }, "its answer"));
    fill(&store, other, 3);
    for place in early {
        finish(&store, answered(place, ""));
    }
    for seq in 0..now(store.requests(range(other, 0, 1000), usize::MAX)).unwrap().entries.len() as u64 {
        finish(&store, answered(Place { lane: other, seq: Seq(seq) }, ""));
    }
    fill(&store, other, 2);
    let swept = now(store.sweep_but(LATER, vec![job])).unwrap();
    assert!(swept.segments >= 4, "{swept:?}");
    let left = now(store.finished(vec![range(lanes[0], job.seq.0, job.seq.0 + 1)], 1)).unwrap();
    assert_eq!(left.finished[0].body, &b"its answer"[..]);
    assert!(now(store.sweep(LATER)).unwrap().segments >= 2);
    let gone = now(store.finished(vec![range(lanes[0], job.seq.0, job.seq.0 + 1)], 1));
    assert!(matches!(&gone, Ok(chunk) if chunk.finished.is_empty()) || matches!(gone, Err(StoreError::Gone)));
}
