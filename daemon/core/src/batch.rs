//! The life of a batch: which step its persisted coroutine is at, and where it goes on after a crash.
//!
//! The shell stores a [`Progress`] before it acts on it. So whatever a crash interrupts, the stored step tells what may
//! have happened at the provider, and [`Progress::resume`] turns that into the event which the plugin is given.

use serde::{Deserialize, Serialize};

use crate::extent::Cargo;
use crate::outcome::DidItRun;
use crate::retry::PERMANENT;
use crate::scheduler::Fate;
use crate::words::{BatchId, Timestamp};

/// A sealed batch's way, as it is stored with it: the first record of its life and every later one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Journey {
    /// Each request is run by itself in real time; there is nothing else to remember.
    Realtime,
    /// As one batch of the provider.
    Batch {
        /// Its parts with their deadlines.
        cargo: Vec<Cargo>,
        /// No progress yet means that no step was made.
        progress: Option<Progress>,
    },
    /// Parts of another batch, run in real time beside it. It has no ranges of its own.
    Beside {
        /// The other batch.
        batch: BatchId,
        /// The parts of it.
        cargo: Vec<Cargo>,
    },
}

/// Where a batch stands, as it is stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// The plugin's own state; opaque.
    pub plugin_state: Vec<u8>,
    /// What the plugin asked for last.
    pub step: Step,
    /// The provider's name for the batch, once known.
    pub provider_id: Option<String>,
    /// As far as the provider tells.
    pub tally: Option<Tally>,
    /// How many steps it has made.
    pub steps: u32,
}

/// How many of its items the provider says are done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tally {
    /// Answered.
    pub completed: u32,
    /// Refused or broken.
    pub failed: u32,
}

/// What is being done for a batch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// A small call is under way.
    Calling,
    /// The items are being sent.
    Uploading,
    /// Results are being read.
    Reading,
    /// Nothing until this time.
    Waiting(Timestamp),
    /// The plugin is done; outcomes of what has no result are still to be recorded.
    Finished(Finish),
}

/// How a batch ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Finish {
    /// For logs, metrics and outcomes: `completed`, `expired`, `cancelled`, or the failure's code.
    pub code: String,
    /// For people.
    pub message: String,
    /// What is known of items without a result.
    pub missing: DidItRun,
    /// The same requests would fail in the same way.
    pub permanent: bool,
    /// No batch of this backend should be made before.
    pub hold_until: Option<Timestamp>,
}

/// How to go on with a batch that was under way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    /// The first step was never made.
    Start,
    /// What was under way has an unknown outcome.
    Interrupted,
    /// Sleep until then, then tell the plugin that it has waited.
    Wait(Timestamp),
    /// Record what has no result.
    Settle(Finish),
}

impl Finish {
    /// How many attempts this ending was, for requests that have no result: none where they did not get to run, so that
    /// a provider's full queue uses up nobody's attempts. Their deadline still bounds how long they go round.
    #[must_use]
    pub const fn attempts(&self) -> u16 {
        match self.missing {
            DidItRun::NotSent | DidItRun::Refused => self.permanent as u16,
            DidItRun::Unknown | DidItRun::Ran => 1,
        }
    }

    /// What it says about batches to come.
    #[must_use]
    pub fn fate(&self) -> Fate {
        match self.code.as_str() {
            "completed" => Fate::Completed,
            "expired" | "cancelled" => Fate::GivenUp,
            "token_limit_exceeded" => Fate::NoRoom,
            _ => Fate::Refused,
        }
    }

    /// The code of a request that got no result.
    #[must_use]
    pub fn item_code(&self) -> String {
        match self.code.as_str() {
            "completed" => "result_missing".to_owned(),
            "expired" => "batch_expired".to_owned(),
            "cancelled" => "batch_cancelled".to_owned(),
            code if self.permanent => format!("{PERMANENT}{code}"),
            code => code.to_owned(),
        }
    }
}

impl Progress {
    /// How to go on after the daemon was stopped at this point. No progress means that the batch was sealed and no more.
    #[must_use]
    pub fn resume(stored: Option<&Self>) -> Resume {
        match stored.map(|progress| &progress.step) {
            None => Resume::Start,
            Some(Step::Calling | Step::Uploading | Step::Reading) => Resume::Interrupted,
            Some(Step::Waiting(until)) => Resume::Wait(*until),
            Some(Step::Finished(finish)) => Resume::Settle(finish.clone()),
        }
    }
}

impl Step {
    /// The word as people see it.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Calling => "calling",
            Self::Uploading => "uploading",
            Self::Reading => "reading",
            Self::Waiting(_) => "waiting",
            Self::Finished(_) => "finished",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(step: Step) -> Progress {
        Progress { plugin_state: vec![1], step, provider_id: None, tally: None, steps: 1 }
    }

    #[test]
    fn whatever_may_have_reached_the_provider_is_resumed_as_interrupted() {
        assert_eq!(Progress::resume(None), Resume::Start);
        for step in [Step::Calling, Step::Uploading, Step::Reading] {
            assert_eq!(Progress::resume(Some(&at(step))), Resume::Interrupted);
        }
        assert_eq!(Progress::resume(Some(&at(Step::Waiting(Timestamp(7))))), Resume::Wait(Timestamp(7)));
    }
}
