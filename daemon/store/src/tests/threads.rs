//! The store as the daemon uses it: with threads, in a folder.

use std::collections::BTreeSet;

use parking_lot::Mutex;

use super::*;
use crate::{Recorded, StoreError};

fn folder_options(folder: &std::path::Path) -> Options {
    Options { segment_bytes: 1 << 20, ..Options::new(folder) }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_writers_share_syncs_and_lose_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let told = Arc::new(Mutex::new(Vec::<Extent>::new()));
    let on_appended = {
        let told = told.clone();
        Box::new(move |extents: &[Extent]| told.lock().extend_from_slice(extents))
    };
    let options = Options { on_appended, ..folder_options(folder.path()) };
    let (store, _) = Store::open(options, Timestamp(0)).unwrap();
    let lanes = [store.lane(&lane_key("a")).await.unwrap(), store.lane(&lane_key("b")).await.unwrap()];
    let mut writers = tokio::task::JoinSet::new();
    for writer in 0..40 {
        let store = store.clone();
        writers.spawn(async move {
            let mut places = Vec::new();
            for number in 0..50 {
                let body = format!("{writer} {number} {}", "x".repeat(300));
                let Appended::New(place) = store.append(request(lanes[number % 2], &body)).await.unwrap()
                else {
                    panic!("not new")
                };
                let entry = store.entry(place).await.unwrap().unwrap();
                assert_eq!((entry.place, entry.origin), (place, place));
                assert_eq!(entry.body, body.as_bytes());
                places.push(place);
            }
            places
        });
    }
    let places: BTreeSet<Place> = writers.join_all().await.into_iter().flatten().collect();
    assert_eq!(places.len(), 2000);
    let stats = store.stats();
    assert_eq!(stats.records, 2002);
    assert!(stats.groups < 2002 && stats.largest_group > 1, "{stats:?}");
    for lane in lanes {
        let mut next = Seq(0);
        for extent in told.lock().iter().filter(|extent| extent.lane == lane) {
            assert_eq!(extent.first, next);
            next = extent.end();
        }
        assert_eq!(next, Seq(1000));
    }
    drop(store);
    let (store, recovered) = Store::open(folder_options(folder.path()), Timestamp(0)).unwrap();
    assert_eq!((recovered.cut_off_bytes, recovered.quarantined.len(), recovered.replayed), (0, 0, 0));
    for lane in &recovered.lanes {
        assert_eq!(lane.extents.iter().map(|extent| extent.count).sum::<u32>(), 1000);
        assert!(lane.extents.iter().all(|extent| extent.count <= 512));
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_outcome_counts_of_many_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder_options(folder.path()), Timestamp(0)).unwrap();
    let lane = store.lane(&lane_key("a")).await.unwrap();
    for round in 0..20 {
        let Appended::New(place) = store.append(request(lane, "x")).await.unwrap() else { panic!("not new") };
        let mut writers = tokio::task::JoinSet::new();
        for number in 0..8 {
            let store = store.clone();
            writers.spawn(
                async move { store.record(vec![answered(place, &number.to_string())]).await.unwrap() },
            );
        }
        let new = Recorded::New { origin: place, requeued: None };
        let recorded: Vec<Recorded> = writers.join_all().await.into_iter().flatten().collect();
        assert_eq!(recorded.iter().filter(|&&recorded| recorded == new).count(), 1, "round {round}");
    }
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn one_key_is_one_request_of_many_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder_options(folder.path()), Timestamp(0)).unwrap();
    let lane = store.lane(&lane_key("a")).await.unwrap();
    let mut writers = tokio::task::JoinSet::new();
    for number in 0..64_u8 {
        let store = store.clone();
        let idempotency = Some(crate::Idempotency { key: [number % 4; 16], expires: Timestamp(u64::MAX) });
        let request = NewRequest { idempotency, ..request(lane, "x") };
        writers.spawn(async move { store.append(request).await.unwrap() });
    }
    let appended = writers.join_all().await;
    assert_eq!(appended.iter().filter(|appended| matches!(appended, Appended::New(_))).count(), 4);
    assert!(!appended.contains(&Appended::Conflict));
}

#[tokio::test(flavor = "multi_thread")]
async fn files_as_a_kill_leaves_them_are_enough() {
    let (folder, copy) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let options = Options { checkpoint_every: Millis::from_hours(1), ..folder_options(folder.path()) };
    let (store, _) = Store::open(options, Timestamp(0)).unwrap();
    let lane = store.lane(&lane_key("a")).await.unwrap();
    for number in 0..300 {
        store.append(request(lane, &format!("{number} {}", "x".repeat(5000)))).await.unwrap();
        if number == 200 {
            store.checkpoint().await.unwrap();
        }
    }
    // The index has it all too, so that nobody writes any more: what the files hold now is what a kill leaves,
    // with the room that the last segment has reserved.
    let last = Place { lane, seq: Seq(299) };
    assert!(store.entry(last).await.unwrap().is_some());
    std::fs::create_dir(copy.path().join("log")).unwrap();
    std::fs::copy(folder.path().join("index.redb"), copy.path().join("index.redb")).unwrap();
    for file in std::fs::read_dir(folder.path().join("log")).unwrap() {
        let name = file.unwrap().file_name();
        let log = |folder: &std::path::Path| folder.join("log").join(&name);
        std::fs::copy(log(folder.path()), log(copy.path())).unwrap();
    }
    let (found, recovered) = Store::open(folder_options(copy.path()), Timestamp(0)).unwrap();
    assert_eq!((recovered.replayed, recovered.cut_off_bytes, recovered.quarantined.len()), (99, 0, 0));
    assert_eq!(recovered.lanes[0].next, Seq(300));
    assert_eq!(found.entry(last).await.unwrap(), store.entry(last).await.unwrap());
}

#[tokio::test]
async fn a_folder_has_one_store_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(folder_options(folder.path()), Timestamp(0)).unwrap();
    let second = Store::open(folder_options(folder.path()), Timestamp(0));
    assert!(matches!(second, Err(StoreError::Locked { .. })));
    let lane = store.lane(&lane_key("a")).await.unwrap();
    let copy = store.clone();
    store.close().await.unwrap();
    store.close().await.unwrap();
    assert!(matches!(copy.append(request(lane, "x")).await, Err(StoreError::Closed)));
    assert!(matches!(copy.entry(Place { lane, seq: Seq(0) }).await, Err(StoreError::Closed)));
    assert!(matches!(copy.sweep(LATER).await, Err(StoreError::Closed)));
    let (again, recovered) = Store::open(folder_options(folder.path()), Timestamp(0)).unwrap();
    assert_eq!(again.lane(&lane_key("a")).await.unwrap(), lane);
    assert_eq!(again.lane_key(lane), Some(lane_key("a")));
    assert_eq!(recovered.replayed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn upkeep_works_beside_the_rest() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options { segment_bytes: 8192, retention: Millis(0), ..folder_options(folder.path()) };
    let (store, _) = Store::open(options, Timestamp(0)).unwrap();
    let lane = store.lane(&lane_key("a")).await.unwrap();
    let mut swept = 0;
    for _ in 0..60 {
        let Appended::New(place) = store.append(request(lane, &"x".repeat(900))).await.unwrap() else {
            panic!("not new")
        };
        store.record(vec![answered(place, "done")]).await.unwrap();
        swept += store.sweep(LATER).await.unwrap().segments;
    }
    assert!(swept > 4);
    let stats = store.stats();
    assert!(stats.segments <= 2 && stats.log_bytes < 20_000, "{stats:?}");
    let files = std::fs::read_dir(folder.path().join("log")).unwrap().count();
    assert_eq!(files, stats.segments as usize);
}
