//! What the faults of a run explain: which deviations the checks have to bear with, and no others.

use crate::plan::{Kind, Plan};

impl Plan {
    /// No fault hides from the daemon that something ran: its ledger has all that the provider charges for.
    pub(crate) fn hides_no_run(&self) -> bool {
        const HARMLESS: [Kind; 9] = [
            Kind::Refused,
            Kind::LostBefore,
            Kind::Stale,
            Kind::Outage,
            Kind::ListingLag,
            Kind::ItemFailures,
            Kind::Expiry,
            Kind::Validation,
            Kind::Cancelled,
        ];
        self.kinds.iter().all(|kind| HARMLESS.contains(kind))
    }

    /// Calls to the provider go wrong, so that one in real time may be answered by an error.
    pub(crate) fn troubles_calls(&self) -> bool {
        const TROUBLE: [Kind; 11] = [
            Kind::Refused,
            Kind::LostBefore,
            Kind::LostAfter,
            Kind::TimeoutBefore,
            Kind::TimeoutAfter,
            Kind::LateEffect,
            Kind::Outage,
            Kind::ProviderCrash,
            Kind::Storm,
            Kind::WrongAnswers,
            Kind::CutAnswers,
        ];
        TROUBLE.into_iter().any(|kind| self.has(kind))
    }

    /// A file may be left at the provider: its deletion is tried again where calls go wrong, and not for ever. Whatever
    /// happens to the daemon and its disk, none is left.
    pub(crate) fn may_leave_files(&self) -> bool {
        self.troubles_calls()
    }

    /// An attempt at a deferred request may come to nothing.
    pub(crate) fn may_fail_attempts(&self) -> bool {
        const HARMLESS: [Kind; 8] = [
            Kind::Stop,
            Kind::DiskFull,
            Kind::DiskErrors,
            Kind::ClockJumps,
            Kind::Stale,
            Kind::ListingLag,
            Kind::HangUps,
            Kind::Withdrawals,
        ];
        self.kinds.iter().any(|kind| !HARMLESS.contains(kind))
    }

    /// An attempt's answer may be lost though it ran, so that a recorded decision may run it again.
    pub(crate) fn may_run_again(&self) -> bool {
        self.has(Kind::DamagedResults) || self.has(Kind::WrongAnswers) || self.has(Kind::CutAnswers)
    }
}
