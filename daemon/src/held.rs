//! Who waits for which answer. A waiter is only told that the answer is there; the answer itself stays in the store.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use offpeak_core::words::Place;
use parking_lot::Mutex;
use tokio::sync::Notify;

/// The calls that are held open.
#[derive(Default)]
pub struct Held {
    waiting: Mutex<HashMap<Place, Seat>>,
    count: AtomicUsize,
    max: usize,
}

struct Seat {
    told: Arc<Notify>,
    waiters: usize,
}

/// A held call. Dropping it, when the client hangs up, gives the place free; the work goes on.
pub struct Waiter {
    held: Arc<Held>,
    origin: Place,
    told: Arc<Notify>,
}

impl Held {
    /// At most so many calls at once.
    pub fn new(max: usize) -> Self {
        Self { max, ..Self::default() }
    }

    /// Waits for the answer to the request that stood here first; none if too many wait already.
    pub fn wait(self: &Arc<Self>, origin: Place) -> Option<Waiter> {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        if count >= self.max {
            self.count.fetch_sub(1, Ordering::Relaxed);
            return None;
        }
        let mut waiting = self.waiting.lock();
        let seat = waiting.entry(origin).or_insert_with(|| Seat { told: Arc::default(), waiters: 0 });
        seat.waiters += 1;
        Some(Waiter { held: self.clone(), origin, told: seat.told.clone() })
    }

    /// There is room for another.
    pub fn has_room(&self) -> bool {
        self.count() < self.max
    }

    /// How many wait.
    pub fn count(&self) -> usize {
        self.count.load(Ordering::Relaxed)
    }

    /// Tells whoever waits for these that their answers are in the store.
    pub fn tell(&self, origins: impl IntoIterator<Item = Place>) {
        let mut waiting = self.waiting.lock();
        for origin in origins {
            if let Some(seat) = waiting.remove(&origin) {
                seat.told.notify_waiters();
                // One that has its seat but does not wait yet finds this permit.
                seat.told.notify_one();
            }
        }
    }

    /// Tells everybody, so that each looks for itself: at shutdown.
    pub fn tell_all(&self) {
        let origins: Vec<Place> = self.waiting.lock().keys().copied().collect();
        self.tell(origins);
    }
}

impl Waiter {
    /// Returns when the answer is in the store.
    pub async fn told(&self) {
        self.told.notified().await;
        // The permit is for all who share the seat.
        self.told.notify_one();
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        self.held.count.fetch_sub(1, Ordering::Relaxed);
        let mut waiting = self.held.waiting.lock();
        if let Some(seat) = waiting.get_mut(&self.origin).filter(|seat| Arc::ptr_eq(&seat.told, &self.told)) {
            seat.waiters -= 1;
            if seat.waiters == 0 {
                waiting.remove(&self.origin);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use offpeak_core::words::{LaneId, Seq};

    use super::*;

    const HERE: Place = Place { lane: LaneId(1), seq: Seq(2) };

    #[tokio::test]
    async fn all_who_wait_are_told_even_if_they_begin_to_wait_late() {
        let held = Arc::new(Held::new(10));
        let first = held.wait(HERE).unwrap();
        let second = held.wait(HERE).unwrap();
        let early = tokio::spawn(async move { first.told().await });
        tokio::task::yield_now().await;
        held.tell([HERE]);
        early.await.unwrap();
        second.told().await;
        second.told().await;
        drop(second);
        assert_eq!(held.count(), 0);
        assert!(held.waiting.lock().is_empty());
    }

    #[test]
    fn a_client_that_hangs_up_leaves_nothing_behind() {
        let held = Arc::new(Held::new(1));
        let waiter = held.wait(HERE).unwrap();
        assert!(held.wait(HERE).is_none() && !held.has_room());
        drop(waiter);
        assert!(held.waiting.lock().is_empty() && held.has_room());
    }

    #[test]
    fn a_seat_told_of_and_taken_anew_is_not_given_free_by_the_old_waiter() {
        let held = Arc::new(Held::new(10));
        let old = held.wait(HERE).unwrap();
        held.tell([HERE]);
        let _new = held.wait(HERE).unwrap();
        drop(old);
        assert_eq!(held.waiting.lock().len(), 1);
    }
}
