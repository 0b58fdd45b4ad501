//! Which plugins take long, so that whoever calls one can do it where nobody else waits.
//!
//! ```text
//!           a call over LONG on the wall             a watched call that worked over LONG
//!   quick ------------------------------> watched --------------------------------------> slow, and watched
//!     ^                                      |  ^                                           |
//!     +---- none for WATCHED_FOR ------------+  +-------------- none for SLOW_FOR ----------+
//! ```
//!
//! What a thread works costs two calls of the system to know, so it is looked at only where time on the wall gives reason:
//! on a busy machine any plugin is interrupted now and then, and is none the slower for it.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use crate::patience::thread_time;

/// Whoever shares a thread with such a call notices it.
const LONG: Duration = Duration::from_millis(5);

/// So long a plugin counts as slow after a long call.
const SLOW_FOR: Duration = Duration::from_mins(1);

/// So long its calls are looked at.
const WATCHED_FOR: Duration = Duration::from_mins(10);

/// What is known of a plugin. As long as no call is long, a call reads one atomic.
#[derive(Debug, Default)]
pub(crate) struct Slowness {
    /// Milliseconds on the daemon's clock; nothing is known where they are over.
    watched_until: AtomicU64,
    slow_until: AtomicU64,
}

/// A call that has begun.
#[derive(Debug)]
pub(crate) struct Watched {
    /// What the thread had worked by then, if the plugin is watched.
    worked: Option<Duration>,
}

impl Slowness {
    /// A call begins on this thread.
    pub(crate) fn begin(&self, now_ms: u64) -> Watched {
        Watched { worked: is_before(now_ms, &self.watched_until, WATCHED_FOR).then(thread_time) }
    }

    /// It has ended, on the same thread, after so much time on the wall. True if the plugin counts as slow from now on and did
    /// not before.
    pub(crate) fn end(&self, call: &Watched, took: Duration, now_ms: u64) -> bool {
        if took < LONG {
            return false;
        }
        let worked = call.worked.map(|before| thread_time().saturating_sub(before));
        self.note(worked, now_ms)
    }

    /// A call was long, and worked so much as far as that is known.
    fn note(&self, worked: Option<Duration>, now_ms: u64) -> bool {
        let until =
            |time: Duration| now_ms.saturating_add(u64::try_from(time.as_millis()).unwrap_or_default());
        if worked.is_some_and(|worked| worked < LONG) {
            return false;
        }
        self.watched_until.store(until(WATCHED_FOR), Ordering::Relaxed);
        let is_slow = worked.is_some();
        let is_new = is_slow && !self.is_slow(now_ms);
        if is_slow {
            self.slow_until.store(until(SLOW_FOR), Ordering::Relaxed);
        }
        is_new
    }

    /// Whether a call had better be made where nobody waits behind it.
    pub(crate) fn is_slow(&self, now_ms: u64) -> bool {
        is_before(now_ms, &self.slow_until, SLOW_FOR)
    }
}

/// Before a time that was at most `ahead` away when it was set: the clock may have been set back since.
fn is_before(now_ms: u64, until_ms: &AtomicU64, ahead: Duration) -> bool {
    let left = until_ms.load(Ordering::Relaxed).saturating_sub(now_ms);
    left > 0 && u128::from(left) <= ahead.as_millis()
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_700_000_000_000;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn who_was_only_interrupted_is_not_slow() {
        let slowness = Slowness::default();
        assert!(slowness.begin(NOW).worked.is_none(), "nobody looks without a reason");
        assert!(!slowness.end(&Watched { worked: None }, ms(20), NOW));
        assert!(!slowness.is_slow(NOW));
        assert!(slowness.begin(NOW + 1).worked.is_some());
        assert!(!slowness.note(Some(ms(1)), NOW + 1));
        assert!(!slowness.is_slow(NOW + 1));
        assert!(slowness.begin(NOW + 600_000).worked.is_none());
    }

    #[test]
    fn who_works_long_is_slow_for_a_while_and_told_once() {
        let slowness = Slowness::default();
        assert!(!slowness.note(None, NOW), "the first time it may be the machine");
        assert!(slowness.note(Some(ms(6)), NOW));
        assert!(!slowness.note(Some(ms(60)), NOW + 1), "known");
        assert!(slowness.is_slow(NOW + 60_000));
        assert!(!slowness.is_slow(NOW + 60_001));
        assert!(slowness.begin(NOW + 60_001).worked.is_some(), "the next long call is known at once");
    }

    #[test]
    fn a_clock_that_was_set_back_makes_nobody_slow_for_ever() {
        let slowness = Slowness::default();
        slowness.note(Some(ms(6)), NOW);
        assert!(!slowness.is_slow(NOW - 3_600_000));
    }

    #[test]
    fn a_call_that_is_watched_is_measured_by_what_its_thread_works() {
        let slowness = Slowness::default();
        slowness.note(None, NOW);
        let asleep = slowness.begin(NOW);
        std::thread::park_timeout(ms(6));
        assert!(!slowness.end(&asleep, ms(6), NOW));
        let at_work = slowness.begin(NOW);
        let until = thread_time() + ms(6);
        while thread_time() < until {
            std::hint::spin_loop();
        }
        assert!(slowness.end(&at_work, ms(6), NOW));
    }
}
