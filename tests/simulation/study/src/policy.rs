//! What is compared.

use offpeak_core::words::Millis;

/// How deadlines are kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Policy {
    /// By the daemon's scheduler.
    Offpeak,
    /// Batches only, whatever happens to them; what expires goes into the next one.
    NeverEscalate,
    /// Everything at the list price, at once.
    Realtime,
    /// What has no answer a fixed time before its deadline is run in real time.
    FixedLead,
}

/// The time of [`Policy::FixedLead`].
pub(crate) const FIXED_LEAD: Millis = Millis::from_hours(2);

impl Policy {
    /// All of them.
    pub(crate) const ALL: [Self; 4] = [Self::Offpeak, Self::NeverEscalate, Self::FixedLead, Self::Realtime];

    /// Its name in tables.
    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Offpeak => "offpeak",
            Self::NeverEscalate => "never escalate",
            Self::FixedLead => "fixed lead of 2 h",
            Self::Realtime => "all real time",
        }
    }
}
