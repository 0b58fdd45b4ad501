//! How an attempt ended: whose fault it was, whether it ran, and so whether it may be sent again.

use serde::{Deserialize, Serialize};

/// What is known about whether the provider worked on a request.
///
/// Promise 2 (never paid twice) is a match over this: only [`NotSent`](DidItRun::NotSent) and
/// [`Refused`](DidItRun::Refused) may be sent again without a decision on record.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub enum DidItRun {
    /// It never left offpeak.
    NotSent,
    /// The provider said that it did not run it.
    Refused,
    /// The connection broke after it was sent.
    Unknown,
    /// It ran, well or badly.
    Ran,
}

impl DidItRun {
    /// Sending it again cannot be paid twice.
    #[must_use]
    pub const fn is_free_to_repeat(self) -> bool {
        matches!(self, Self::NotSent | Self::Refused)
    }
}

/// How an attempt ended, without the body of the answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// The provider answered with this status; the body is the provider's own.
    Answered {
        /// HTTP status of the item's answer.
        status: u16,
    },
    /// There is no answer.
    Failed {
        /// Whether the provider worked on it.
        ran: DidItRun,
        /// For programs, such as `batch_expired`.
        code: String,
        /// For people: what happened and what to do.
        message: String,
    },
}

impl Ending {
    /// An answer that the caller asked for.
    #[must_use]
    pub const fn is_success(&self) -> bool {
        matches!(self, Self::Answered { status: 200..=299 })
    }
}
