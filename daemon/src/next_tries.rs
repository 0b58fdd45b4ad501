//! When requests that are run by themselves, and failed, are tried for the next time: for those who ask why nothing happens.

use std::collections::HashMap;

use offpeak_core::words::{Place, Timestamp};
use parking_lot::Mutex;

/// The requests that wait for their next try.
#[derive(Default)]
pub struct NextTries(Mutex<HashMap<Place, Timestamp>>);

/// One of them. Dropped, it does not wait any longer.
pub struct Waiting<'a> {
    tries: &'a NextTries,
    place: Place,
}

impl NextTries {
    /// It waits, as long as what is returned lives.
    pub fn wait(&self, place: Place, until: Timestamp) -> Waiting<'_> {
        self.0.lock().insert(place, until);
        Waiting { tries: self, place }
    }

    /// When this one is tried; none if it does not wait for that.
    pub fn of(&self, place: Place) -> Option<Timestamp> {
        self.0.lock().get(&place).copied()
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.tries.0.lock().remove(&self.place);
    }
}

#[cfg(test)]
mod tests {
    use offpeak_core::words::{LaneId, Seq};

    use super::*;

    #[test]
    fn who_does_not_wait_any_longer_is_not_told_of() {
        let tries = NextTries::default();
        let place = Place { lane: LaneId(1), seq: Seq(2) };
        let waiting = tries.wait(place, Timestamp(3));
        assert_eq!(tries.of(place), Some(Timestamp(3)));
        drop(waiting);
        assert_eq!(tries.of(place), None);
    }
}
