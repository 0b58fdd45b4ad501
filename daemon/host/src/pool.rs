//! Live instances of one plugin: warm ones wait in a lock-free queue, and all of them are counted.

use std::sync::{
    Arc,
    atomic::{AtomicU32, Ordering},
};

use crossbeam_queue::ArrayQueue;
use wasmtime::Store;

use crate::imports::State;

/// One instance with its own memory. It serves one call at a time; dropping it frees all that it holds.
pub(crate) struct Instance<W> {
    pub(crate) store: Store<State>,
    pub(crate) world: W,
    // Last, so that the memory is free before the place is.
    _place: Place,
}

impl<W> Instance<W> {
    pub(crate) fn new(store: Store<State>, world: W, place: Place) -> Self {
        Self { store, world, _place: place }
    }
}

/// The right to have one instance; given back by dropping it.
pub(crate) struct Place {
    live: Arc<AtomicU32>,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.live.fetch_sub(1, Ordering::Release);
    }
}

pub(crate) struct Pool<W> {
    idle: ArrayQueue<Instance<W>>,
    live: Arc<AtomicU32>,
    max: u32,
}

impl<W> Pool<W> {
    pub(crate) fn new(warm: u32, max: u32) -> Self {
        let capacity = usize::try_from(warm).unwrap_or(usize::MAX).max(1);
        Self { idle: ArrayQueue::new(capacity), live: Arc::new(AtomicU32::new(0)), max: max.max(1) }
    }

    pub(crate) fn max(&self) -> u32 {
        self.max
    }

    /// Instances that there are.
    pub(crate) fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    /// A warm instance, if one is idle.
    pub(crate) fn take(&self) -> Option<Instance<W>> {
        self.idle.pop()
    }

    /// The right to make another instance, if there are not too many.
    pub(crate) fn reserve(&self) -> Option<Place> {
        self.live
            .try_update(Ordering::Acquire, Ordering::Relaxed, |live| (live < self.max).then_some(live + 1))
            .ok()
            .map(|_| Place { live: Arc::clone(&self.live) })
    }

    /// Keeps an instance for a later call; more than are to be kept warm are dropped.
    pub(crate) fn give_back(&self, instance: Instance<W>) {
        drop(self.idle.push(instance));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_are_bounded_and_come_back() {
        let pool: Pool<()> = Pool::new(1, 2);
        let first = pool.reserve().unwrap();
        let _second = pool.reserve().unwrap();
        assert!(pool.reserve().is_none());
        drop(first);
        assert!(pool.reserve().is_some());
    }
}
