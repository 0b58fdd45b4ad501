//! What the scheduler is told while the store is open is what it would find after a restart.

use std::sync::Arc;

use offpeak_core::extent::Extent;
use parking_lot::Mutex;

use super::*;

#[test]
fn a_requeued_request_is_told_of_as_it_is_found() {
    let disk = MemoryDisk::new();
    let told: Arc<Mutex<Vec<Extent>>> = Arc::default();
    let hear = {
        let told = told.clone();
        Box::new(move |extents: &[Extent]| told.lock().extend_from_slice(extents))
    };
    let options = Options { on_appended: hear, ..options() };
    let (store, _) = Store::open_on(disk.clone(), options, Timestamp(0)).unwrap();
    let lane = now(store.lane(&lane_key("a"))).unwrap();
    let first = append(&store, lane, "body");
    now(store.seal(batch(vec![range(lane, 0, 1)]))).unwrap();
    now(store.record(vec![requeued(first, lane)])).unwrap();
    let live = told.lock().last().copied().unwrap();
    assert_eq!(live.oldest, Timestamp(2500), "it begins to wait when it may");
    let (_, recovered) = open(&disk.after_power_failure(&mut || true));
    assert_eq!(recovered.lanes[0].extents, [live]);
}
