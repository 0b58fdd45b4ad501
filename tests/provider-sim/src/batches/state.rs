//! What has become of a batch at a given time: a pure function of its timeline.

use serde::Serialize;

use crate::clock::SimTime;
use crate::pace::Item;

/// The wire's `status`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    Validating,
    Failed,
    InProgress,
    Finalizing,
    Completed,
    Expired,
    Cancelling,
    Cancelled,
}

impl Status {
    pub(crate) fn is_terminal(self) -> bool {
        matches!(self, Self::Failed | Self::Completed | Self::Expired | Self::Cancelled)
    }
}

/// How a batch ends if nobody cancels it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fate {
    /// It does not pass validation.
    Fails,
    /// It runs.
    Runs {
        /// When the last item finishes; `None` when some items never do.
        last_item: Option<SimTime>,
        /// How long writing the results takes, in milliseconds.
        finalizing_ms: u64,
    },
}

/// A cancellation that was accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Cancel {
    pub(crate) at: SimTime,
    /// Items that finish until then were in flight and count.
    pub(crate) runs_until: SimTime,
    /// When the batch is `cancelled`.
    pub(crate) done: SimTime,
}

/// All that decides about a batch's status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timeline {
    pub(crate) created: SimTime,
    /// When validation ends.
    pub(crate) validated: SimTime,
    pub(crate) expires: SimTime,
    pub(crate) fate: Fate,
    pub(crate) cancel: Option<Cancel>,
}

/// Status and time stamps at one moment; a stamp is set once its state has been reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    pub(crate) status: Status,
    pub(crate) in_progress: Option<SimTime>,
    pub(crate) finalizing: Option<SimTime>,
    pub(crate) completed: Option<SimTime>,
    pub(crate) failed: Option<SimTime>,
    pub(crate) expired: Option<SimTime>,
    pub(crate) cancelling: Option<SimTime>,
    pub(crate) cancelled: Option<SimTime>,
}

impl Timeline {
    /// The batch at `now`.
    pub(crate) fn at(&self, now: SimTime) -> Moment {
        let mut moment = Moment {
            status: Status::Validating,
            in_progress: None,
            finalizing: None,
            completed: None,
            failed: None,
            expired: None,
            cancelling: None,
            cancelled: None,
        };
        // A cancellation freezes what came before it.
        let until = self.cancel.map_or(now, |cancel| cancel.at.min(now));
        if until >= self.validated {
            self.run_to(until, &mut moment);
        }
        if let Some(cancel) = self.cancel.filter(|cancel| now >= cancel.at) {
            moment.cancelling = Some(cancel.at);
            moment.status = Status::Cancelling;
            if now >= cancel.done {
                moment.cancelled = Some(cancel.done);
                moment.status = Status::Cancelled;
            }
        }
        moment
    }

    fn run_to(&self, until: SimTime, moment: &mut Moment) {
        let Fate::Runs { last_item, finalizing_ms } = self.fate else {
            moment.failed = Some(self.validated);
            moment.status = Status::Failed;
            return;
        };
        moment.in_progress = Some(self.validated);
        moment.status = Status::InProgress;
        let Some(last) = last_item.filter(|last| *last <= self.expires) else {
            if until >= self.expires {
                moment.expired = Some(self.expires);
                moment.status = Status::Expired;
            }
            return;
        };
        if until >= last {
            moment.finalizing = Some(last);
            moment.status = Status::Finalizing;
        }
        let end = last.plus_millis(finalizing_ms);
        if until >= end {
            moment.completed = Some(end);
            moment.status = Status::Completed;
        }
    }

    /// Items that finish until this time run, later ones never do.
    pub(crate) fn runs_until(&self) -> SimTime {
        self.cancel.map_or(self.expires, |cancel| cancel.runs_until)
    }

    /// Moves what has not finished, and the end with it, as the stalls of the provider change. A batch that is being
    /// cancelled is past that.
    pub(crate) fn move_items<'i, T: 'i>(
        &mut self,
        unfinished: impl Iterator<Item = &'i mut Item<T>>,
        to: impl Fn(SimTime) -> SimTime,
    ) {
        if self.cancel.is_some() {
            return;
        }
        for item in unfinished {
            item.finishes = to(item.finishes);
        }
        if let Fate::Runs { last_item: Some(last), .. } = &mut self.fate {
            *last = to(*last);
        }
    }

    /// When the batch reaches its last state, as things stand.
    pub(crate) fn end(&self) -> SimTime {
        if let Some(cancel) = self.cancel {
            return cancel.done;
        }
        match self.fate {
            Fate::Fails => self.validated,
            Fate::Runs { last_item, finalizing_ms } => last_item
                .filter(|last| *last <= self.expires)
                .map_or(self.expires, |last| last.plus_millis(finalizing_ms)),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn timeline(last_item: Option<u64>) -> Timeline {
        Timeline {
            created: SimTime(0),
            validated: SimTime(10),
            expires: SimTime(1_000),
            fate: Fate::Runs { last_item: last_item.map(SimTime), finalizing_ms: 5 },
            cancel: None,
        }
    }

    fn statuses(timeline: &Timeline, times: &[u64]) -> Vec<Status> {
        times.iter().map(|ms| timeline.at(SimTime(*ms)).status).collect()
    }

    #[test]
    fn the_usual_way() {
        use Status::{Completed, Finalizing, InProgress, Validating};
        let got = statuses(&timeline(Some(100)), &[0, 9, 10, 99, 100, 104, 105, 9_999]);
        let way =
            [Validating, Validating, InProgress, InProgress, Finalizing, Finalizing, Completed, Completed];
        assert_eq!(got, way);
    }

    #[test]
    fn what_does_not_finish_expires() {
        use Status::{Expired, InProgress};
        assert_eq!(statuses(&timeline(None), &[999, 1_000]), [InProgress, Expired]);
        assert_eq!(statuses(&timeline(Some(1_001)), &[999, 1_000]), [InProgress, Expired]);
    }

    #[test]
    fn a_cancellation_freezes_what_came_before() {
        let mut batch = timeline(Some(100));
        batch.cancel = Some(Cancel { at: SimTime(50), runs_until: SimTime(60), done: SimTime(58) });
        assert_eq!(
            statuses(&batch, &[49, 50, 58]),
            [Status::InProgress, Status::Cancelling, Status::Cancelled]
        );
        let end = batch.at(SimTime(5_000));
        assert_eq!((end.completed, end.in_progress), (None, Some(SimTime(10))));
        assert_eq!((end.cancelling, end.cancelled), (Some(SimTime(50)), Some(SimTime(58))));
    }

    fn any_timeline() -> impl Strategy<Value = Timeline> {
        let fate = prop_oneof![
            Just(Fate::Fails),
            (prop::option::of(11_u64..1_500), 0_u64..50).prop_map(|(last, finalizing_ms)| {
                Fate::Runs { last_item: last.map(SimTime), finalizing_ms }
            }),
        ];
        (fate, prop::option::of((0_u64..1_600, 0_u64..40))).prop_map(|(fate, cancel)| {
            let mut timeline = Timeline { fate, ..timeline(None) };
            let accepted = cancel.filter(|(at, _)| !timeline.at(SimTime(*at)).status.is_terminal());
            timeline.cancel = accepted.map(|(at, more)| {
                let done = SimTime(at).plus_millis(more);
                Cancel { at: SimTime(at), runs_until: done, done }
            });
            timeline
        })
    }

    proptest! {
        #[test]
        fn a_batch_ends_once_and_stays_ended(timeline in any_timeline(), times in prop::collection::vec(0_u64..3_000, 30)) {
            let mut times = times;
            times.sort_unstable();
            for pair in times.windows(2) {
                let (before, after) = (timeline.at(SimTime(pair[0])), timeline.at(SimTime(pair[1])));
                if before.status.is_terminal() {
                    prop_assert_eq!(before, after);
                }
                prop_assert!(before.in_progress.is_none() || after.in_progress == before.in_progress);
            }
            prop_assert!(timeline.at(timeline.end()).status.is_terminal());
            if timeline.end().0 > 0 {
                prop_assert!(!timeline.at(SimTime(timeline.end().0 - 1)).status.is_terminal());
            }
        }
    }
}
