//! When a plugin that keeps failing is taken out of use, and when it is tried again.
//!
//! ```text
//!            failures in a row >= FAILURES_IN_A_ROW             rest is over, one call is let through
//!  in use ------------------------------------------> resting ---------------------------------> probing
//!    ^                                                   ^   the call failed: the rest is doubled   |  |
//!    |                                                   +------------------------------------------+  |
//!    +---------------------------------------- the call went well ------------------------------------+
//! ```

use std::{
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    time::Duration,
};

use parking_lot::Mutex;

use crate::error::PluginErrorKind;

/// Failures one after the other that take a plugin out of use. One bad request cannot do it, since others succeed
/// between its attempts; a plugin that is broken does it within one burst.
pub const FAILURES_IN_A_ROW: u32 = 5;

/// The first rest.
pub const REST: Duration = Duration::from_secs(10);

/// The longest rest, after several probes that failed.
pub const LONGEST_REST: Duration = Duration::from_mins(5);

/// What a plugin has done since it was loaded.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PluginHealth {
    /// Calls that were let through to it.
    pub calls: u64,
    /// Calls without a usable answer, for whatever reason.
    pub errors: u64,
    /// Of these: crashes, those for want of memory among them.
    pub traps: u64,
    /// Of these: over time.
    pub timeouts: u64,
    /// It rests after repeated failures, or is just being tried again.
    pub out_of_use: bool,
}

/// What the decider has to say about a call that is about to be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Admission {
    Go,
    /// Wait so many milliseconds.
    Rest(u64),
}

/// A change worth a line in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Change {
    OutOfUse { rest_ms: u64 },
    BackInUse,
}

/// The pure decider. Times are milliseconds on the daemon's clock, which may jump.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Decider {
    InUse { failures: u32 },
    Resting { since_ms: u64, rest_ms: u64 },
    Probing { since_ms: u64, rest_ms: u64 },
}

impl Decider {
    const NEW: Self = Self::InUse { failures: 0 };

    fn admit(&mut self, now_ms: u64) -> Admission {
        match *self {
            Self::InUse { .. } => Admission::Go,
            // A probe whose end was never told (its thread died) must not block the plugin for ever.
            Self::Resting { since_ms, rest_ms } | Self::Probing { since_ms, rest_ms } => {
                // A clock that was set back ends the rest: better one probe too many than none for a year.
                let over = now_ms < since_ms || now_ms - since_ms >= rest_ms;
                if over {
                    *self = Self::Probing { since_ms: now_ms, rest_ms };
                    Admission::Go
                } else {
                    Admission::Rest(rest_ms - (now_ms - since_ms))
                }
            }
        }
    }

    fn succeeded(&mut self) -> Option<Change> {
        let change = matches!(self, Self::Probing { .. }).then_some(Change::BackInUse);
        // A call that began before the plugin was taken out of use proves nothing about it now.
        if !matches!(self, Self::Resting { .. }) {
            *self = Self::NEW;
        }
        change
    }

    fn failed(&mut self, now_ms: u64) -> Option<Change> {
        let rest_ms = match *self {
            Self::InUse { failures } if failures + 1 < FAILURES_IN_A_ROW => {
                *self = Self::InUse { failures: failures + 1 };
                return None;
            }
            Self::InUse { .. } => milliseconds(REST),
            Self::Probing { rest_ms, .. } => (rest_ms * 2).min(milliseconds(LONGEST_REST)),
            Self::Resting { .. } => return None,
        };
        *self = Self::Resting { since_ms: now_ms, rest_ms };
        Some(Change::OutOfUse { rest_ms })
    }
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// The decider and the counters of one plugin. As long as nothing fails, a call touches two atomics and no lock.
#[derive(Debug)]
pub(crate) struct Health {
    decider: Mutex<Decider>,
    /// The decider is not as new: look at it.
    troubled: AtomicBool,
    calls: AtomicU64,
    errors: AtomicU64,
    traps: AtomicU64,
    timeouts: AtomicU64,
}

impl Health {
    pub(crate) fn new() -> Self {
        Self {
            decider: Mutex::new(Decider::NEW),
            troubled: AtomicBool::new(false),
            calls: AtomicU64::new(0),
            errors: AtomicU64::new(0),
            traps: AtomicU64::new(0),
            timeouts: AtomicU64::new(0),
        }
    }

    /// Lets a call through, or tells how long the plugin still rests.
    pub(crate) fn admit(&self, now_ms: u64) -> Result<(), PluginErrorKind> {
        if self.troubled.load(Ordering::Relaxed)
            && let Admission::Rest(rest_ms) = self.decider.lock().admit(now_ms)
        {
            return Err(PluginErrorKind::OutOfUse { rest: Duration::from_millis(rest_ms) });
        }
        self.calls.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    pub(crate) fn succeeded(&self, plugin: &str) {
        if !self.troubled.load(Ordering::Relaxed) {
            return;
        }
        let mut decider = self.decider.lock();
        let change = decider.succeeded();
        self.troubled.store(*decider != Decider::NEW, Ordering::Relaxed);
        drop(decider);
        tell(plugin, change);
    }

    pub(crate) fn failed(&self, plugin: &str, kind: &PluginErrorKind, now_ms: u64) {
        self.errors.fetch_add(1, Ordering::Relaxed);
        match kind {
            PluginErrorKind::Trap { .. } | PluginErrorKind::OutOfMemory { .. } => {
                self.traps.fetch_add(1, Ordering::Relaxed);
            }
            PluginErrorKind::Timeout { .. } => {
                self.timeouts.fetch_add(1, Ordering::Relaxed);
            }
            // It answered, or was not to blame.
            PluginErrorKind::Refused(_)
            | PluginErrorKind::Busy { .. }
            | PluginErrorKind::NoPlace
            | PluginErrorKind::OutOfUse { .. } => return,
            PluginErrorKind::BadAnswer(_) | PluginErrorKind::CannotStart(_) => {}
        }
        let mut decider = self.decider.lock();
        let change = decider.failed(now_ms);
        self.troubled.store(true, Ordering::Relaxed);
        drop(decider);
        tell(plugin, change);
    }

    pub(crate) fn report(&self) -> PluginHealth {
        PluginHealth {
            calls: self.calls.load(Ordering::Relaxed),
            errors: self.errors.load(Ordering::Relaxed),
            traps: self.traps.load(Ordering::Relaxed),
            timeouts: self.timeouts.load(Ordering::Relaxed),
            out_of_use: !matches!(*self.decider.lock(), Decider::InUse { .. }),
        }
    }
}

fn tell(plugin: &str, change: Option<Change>) {
    match change {
        Some(Change::OutOfUse { rest_ms }) => {
            tracing::error!(
                plugin,
                rest_ms,
                "plugin out of use after repeated failures; it is tried again after a rest"
            );
        }
        Some(Change::BackInUse) => tracing::info!(plugin, "plugin back in use"),
        None => {}
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn failing(times: u32, now_ms: u64) -> Decider {
        let mut decider = Decider::NEW;
        for _ in 0..times {
            decider.failed(now_ms);
        }
        decider
    }

    #[test]
    fn a_success_between_failures_keeps_a_plugin_in_use() {
        let mut decider = failing(FAILURES_IN_A_ROW - 1, 0);
        assert_eq!(decider.succeeded(), None);
        for _ in 0..FAILURES_IN_A_ROW - 1 {
            assert_eq!(decider.failed(0), None);
        }
        assert_eq!(decider.admit(0), Admission::Go);
        assert_eq!(decider.failed(0), Some(Change::OutOfUse { rest_ms: 10_000 }));
    }

    #[test]
    fn one_probe_after_the_rest_decides() {
        let mut decider = failing(FAILURES_IN_A_ROW, 1_000);
        assert_eq!(decider.admit(10_999), Admission::Rest(1));
        assert_eq!(decider.admit(11_000), Admission::Go);
        assert_eq!(decider.admit(11_000), Admission::Rest(10_000), "the others wait for the probe");
        let mut recovered = decider;
        assert_eq!(recovered.succeeded(), Some(Change::BackInUse));
        assert_eq!(recovered, Decider::NEW);
        assert_eq!(decider.failed(11_001), Some(Change::OutOfUse { rest_ms: 20_000 }));
    }

    #[test]
    fn a_probe_that_never_came_back_does_not_block_for_ever() {
        let mut decider = failing(FAILURES_IN_A_ROW, 0);
        assert_eq!(decider.admit(10_000), Admission::Go);
        assert_eq!(decider.admit(20_000), Admission::Go);
    }

    #[test]
    fn calls_that_were_under_way_do_not_end_or_lengthen_a_rest() {
        let mut decider = failing(FAILURES_IN_A_ROW, 0);
        assert_eq!(decider.failed(5_000), None);
        assert_eq!(decider.succeeded(), None);
        assert_eq!(decider.admit(5_000), Admission::Rest(5_000));
    }

    proptest! {
        /// Whatever happens, on whatever clock: no rest is longer than the longest, and a plugin rests only after
        /// enough failures in a row.
        #[test]
        fn rests_are_bounded(events in proptest::collection::vec((0_u8..3, 0_u64..1_000_000), 0..200)) {
            let mut decider = Decider::NEW;
            let mut in_a_row = 0;
            for (event, now_ms) in events {
                match event {
                    0 => {
                        if let Admission::Rest(rest_ms) = decider.admit(now_ms) {
                            prop_assert!(rest_ms <= milliseconds(LONGEST_REST));
                        }
                    }
                    1 => {
                        decider.succeeded();
                        in_a_row = 0;
                    }
                    _ => {
                        in_a_row += 1;
                        if let Some(Change::OutOfUse { rest_ms }) = decider.failed(now_ms) {
                            prop_assert!(rest_ms <= milliseconds(LONGEST_REST));
                            prop_assert!(rest_ms > milliseconds(REST) || in_a_row >= FAILURES_IN_A_ROW);
                        }
                    }
                }
            }
        }
    }
}
