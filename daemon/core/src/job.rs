//! The life of a job: what a client submitted as one piece.
//!
//! Its requests live their own lives in lanes. The job begins by putting them there, waits for them, and ends by writing
//! down what they came to.

use serde::{Deserialize, Serialize};

use crate::words::{Millis, Timestamp};

/// The code of a request whose job's window was over before it had an answer.
pub const WINDOW_OVER: &str = "batch_expired";

/// The code of a request whose job was cancelled before it had an answer.
pub const CANCELLED: &str = "batch_cancelled";

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Stage {
    /// Its input is checked and its requests are put into lanes.
    Validating,
    /// Its requests are waiting or under way.
    InProgress,
    /// Nothing more is run; what is unfinished gets its outcome, and the sums are written down.
    Finalizing(Close),
    /// Nothing changes any more.
    Ended(End),
}

/// Why nothing more is run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Close {
    /// All requests are finished.
    Finished,
    /// The window is over.
    WindowOver,
    /// The client cancelled it.
    Cancelled,
}

/// How a job ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// Its input could not be run; nothing of it was.
    Failed,
    /// All its requests have an answer, good or bad.
    Completed,
    /// Its window passed; what was finished by then is kept.
    Expired,
    /// The client cancelled it; what was finished by then is kept.
    Cancelled,
}

/// What happens to a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    /// The input is at fault.
    Refused,
    /// All requests stand in lanes.
    Expanded,
    /// All requests have a final outcome.
    AllFinished,
    /// The client cancels.
    CancelAsked,
    /// The time is up.
    WindowOver,
    /// Each request has an outcome, and the sums are written down.
    Summed,
}

/// A job's stages and when it reached them.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Life {
    /// Where it stands.
    pub stage: Stage,
    /// When it was submitted.
    pub created_at: Timestamp,
    /// When its window is over.
    pub deadline: Timestamp,
    /// When its requests stood in lanes.
    pub in_progress_at: Option<Timestamp>,
    /// When cancelling was asked.
    pub cancelling_at: Option<Timestamp>,
    /// When nothing more was run.
    pub finalizing_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

impl Life {
    /// A job that was submitted now.
    #[must_use]
    pub const fn begin(now: Timestamp, window: Millis) -> Self {
        Self {
            stage: Stage::Validating,
            created_at: now,
            deadline: now.after(window),
            in_progress_at: None,
            cancelling_at: None,
            finalizing_at: None,
            ended_at: None,
        }
    }

    /// Takes an event in; false if it changes nothing, because it comes too late or too early.
    pub fn step(&mut self, event: Event, now: Timestamp) -> bool {
        let Some(stage) = next(self.stage, event) else { return false };
        self.stage = stage;
        match stage {
            Stage::Validating => {}
            Stage::InProgress => self.in_progress_at = Some(now),
            Stage::Finalizing(Close::Cancelled) => self.cancelling_at = Some(now),
            Stage::Finalizing(Close::Finished | Close::WindowOver) => self.finalizing_at = Some(now),
            Stage::Ended(_) => self.ended_at = Some(now),
        }
        true
    }

    /// Nothing changes any more.
    #[must_use]
    pub const fn has_ended(&self) -> bool {
        matches!(self.stage, Stage::Ended(_))
    }
}

/// The one table of transitions.
const fn next(stage: Stage, event: Event) -> Option<Stage> {
    match (stage, event) {
        (Stage::Validating, Event::Refused) => Some(Stage::Ended(End::Failed)),
        (Stage::Validating, Event::Expanded) => Some(Stage::InProgress),
        (Stage::Validating | Stage::InProgress, Event::CancelAsked) => {
            Some(Stage::Finalizing(Close::Cancelled))
        }
        (Stage::InProgress, Event::AllFinished) => Some(Stage::Finalizing(Close::Finished)),
        (Stage::InProgress, Event::WindowOver) => Some(Stage::Finalizing(Close::WindowOver)),
        (Stage::Finalizing(close), Event::Summed) => Some(Stage::Ended(match close {
            Close::Finished => End::Completed,
            Close::WindowOver => End::Expired,
            Close::Cancelled => End::Cancelled,
        })),
        // A window that is over before all requests are in their lanes is noticed when they are: each of them then gets
        // its outcome.
        (Stage::Validating, Event::AllFinished | Event::WindowOver | Event::Summed)
        | (Stage::InProgress, Event::Refused | Event::Expanded | Event::Summed)
        | (
            Stage::Finalizing(_),
            Event::Refused | Event::Expanded | Event::AllFinished | Event::CancelAsked | Event::WindowOver,
        )
        | (Stage::Ended(_), _) => None,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn events() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Refused),
            Just(Event::Expanded),
            Just(Event::AllFinished),
            Just(Event::CancelAsked),
            Just(Event::WindowOver),
            Just(Event::Summed),
        ]
    }

    /// How far a stage is from the beginning.
    const fn rank(stage: Stage) -> u8 {
        match stage {
            Stage::Validating => 0,
            Stage::InProgress => 1,
            Stage::Finalizing(_) => 2,
            Stage::Ended(_) => 3,
        }
    }

    proptest! {
        #[test]
        fn a_life_goes_forward_and_ends_once(events in prop::collection::vec((events(), 0_u64..100), 0..40)) {
            let mut life = Life::begin(Timestamp(1000), Millis(500));
            let mut now = Timestamp(1000);
            for (event, passed) in events {
                now = now.after(Millis(passed));
                let before = life.clone();
                let changed = life.step(event, now);
                prop_assert_eq!(changed, life != before);
                if changed {
                    prop_assert!(rank(life.stage) > rank(before.stage));
                } else {
                    prop_assert_eq!(&life, &before);
                }
                prop_assert_eq!(life.ended_at.is_some(), life.has_ended());
                prop_assert!(!before.has_ended() || !changed);
            }
        }

        #[test]
        fn times_are_in_the_order_of_the_stages(events in prop::collection::vec((events(), 0_u64..100), 0..40)) {
            let mut life = Life::begin(Timestamp(1000), Millis(500));
            let mut now = Timestamp(1000);
            for (event, passed) in events {
                now = now.after(Millis(passed));
                life.step(event, now);
            }
            let reached = [Some(life.created_at), life.in_progress_at, life.cancelling_at.or(life.finalizing_at), life.ended_at];
            let reached: Vec<Timestamp> = reached.into_iter().flatten().collect();
            prop_assert!(reached.is_sorted());
            prop_assert!(life.cancelling_at.is_none() || life.finalizing_at.is_none());
            let cancelled = matches!(life.stage, Stage::Finalizing(Close::Cancelled) | Stage::Ended(End::Cancelled));
            prop_assert_eq!(cancelled, life.cancelling_at.is_some());
        }

        #[test]
        fn what_may_still_run_can_be_cancelled(events in prop::collection::vec(events(), 0..10)) {
            let mut life = Life::begin(Timestamp(0), Millis(1));
            for event in events {
                life.step(event, Timestamp(1));
            }
            let may_run = matches!(life.stage, Stage::Validating | Stage::InProgress);
            prop_assert_eq!(life.step(Event::CancelAsked, Timestamp(2)), may_run);
        }
    }

    #[test]
    fn the_ways_to_each_end() {
        let ways: [(&[Event], End); 5] = [
            (&[Event::Refused], End::Failed),
            (&[Event::Expanded, Event::AllFinished, Event::Summed], End::Completed),
            (&[Event::WindowOver, Event::Expanded, Event::WindowOver, Event::Summed], End::Expired),
            (&[Event::CancelAsked, Event::Expanded, Event::Summed], End::Cancelled),
            (&[Event::Expanded, Event::CancelAsked, Event::AllFinished, Event::Summed], End::Cancelled),
        ];
        for (events, end) in ways {
            let mut life = Life::begin(Timestamp(0), Millis(1));
            for event in events {
                life.step(*event, Timestamp(1));
            }
            assert_eq!(life.stage, Stage::Ended(end), "{events:?}");
        }
    }
}
