//! When a lane leaves.

use crate::words::{Millis, Timestamp};

/// What the backend, its batches of late, and the configuration say about a lane's journeys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Terms {
    /// Requests that fill a batch.
    pub max_requests: u64,
    /// Bytes on the wire that fill a batch.
    pub max_bytes: u64,
    /// How long the first request waits for others.
    pub linger: Millis,
    /// With less time than this, a batch is the worse buy; the time for a rescue after it comes on top.
    pub needs: Millis,
    /// With this much time, hardly any batch is late.
    pub safe: Millis,
    /// How long it takes to run in real time what a batch did not answer.
    pub rescue: Millis,
}

/// What is asked of the lane.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Waiting {
    /// Requests that could travel in the batch.
    pub count: u64,
    /// Their bytes on the wire.
    pub bytes: u64,
    /// When the oldest arrived.
    pub oldest: Timestamp,
    /// The earliest deadline.
    pub earliest_deadline: Timestamp,
}

/// Why a batch leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Reason {
    /// It holds as many requests or bytes as a batch may.
    Full,
    /// The first request has waited long enough for others.
    Linger,
    /// Later it could not be kept by a batch and a rescue after it.
    Deadline,
    /// Somebody asked for it.
    Flush,
    /// A batch would be too late: it is run in real time.
    Rescue,
}

impl Reason {
    /// The word as it stands in logs and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Full => "full",
            Self::Linger => "linger",
            Self::Deadline => "deadline",
            Self::Flush => "flush",
            Self::Rescue => "rescue",
        }
    }
}

/// Whether it leaves now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Departure {
    /// Look again at this time, unless something is appended before.
    Stay(Timestamp),
    /// As a batch.
    Batch(Reason),
    /// What is urgent is run in real time.
    Realtime,
}

impl Terms {
    /// From this deadline on, a batch that leaves now is the better buy. Before it, real time is.
    #[must_use]
    pub const fn soonest_kept(&self, now: Timestamp) -> Timestamp {
        now.after(self.needs).after(self.rescue)
    }

    /// The last moment at which a batch should leave, so that it is back in time and a rescue is possible after it.
    #[must_use]
    pub fn latest_safe(&self, deadline: Timestamp) -> Timestamp {
        deadline.before(self.safe.max(self.needs)).before(self.rescue)
    }

    /// From then on a batch would be too late.
    #[must_use]
    pub const fn urgent_at(&self, deadline: Timestamp) -> Timestamp {
        deadline.before(self.needs).before(self.rescue).after(Millis(1))
    }
}

/// Decides for a lane in which something waits.
#[must_use]
pub fn decide(waiting: &Waiting, terms: &Terms, now: Timestamp) -> Departure {
    if waiting.earliest_deadline < terms.soonest_kept(now) {
        return Departure::Realtime;
    }
    if waiting.count >= terms.max_requests || waiting.bytes >= terms.max_bytes {
        return Departure::Batch(Reason::Full);
    }
    let lingered = waiting.oldest.after(terms.linger);
    let latest_safe = terms.latest_safe(waiting.earliest_deadline);
    if now >= lingered {
        Departure::Batch(Reason::Linger)
    } else if now >= latest_safe {
        Departure::Batch(Reason::Deadline)
    } else {
        Departure::Stay(lingered.min(latest_safe))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TERMS: Terms = Terms {
        max_requests: 100,
        max_bytes: 10_000,
        linger: Millis::from_secs(60),
        needs: Millis::from_hours(1),
        safe: Millis::from_hours(2),
        rescue: Millis::from_mins(10),
    };
    const NOW: Timestamp = Timestamp(1_000_000_000);

    fn waiting() -> Waiting {
        Waiting { count: 1, bytes: 100, oldest: NOW, earliest_deadline: NOW.after(Millis::from_hours(24)) }
    }

    #[test]
    fn a_young_lane_stays_until_its_linger_is_over() {
        assert_eq!(decide(&waiting(), &TERMS, NOW), Departure::Stay(NOW.after(TERMS.linger)));
        let later = NOW.after(TERMS.linger);
        assert_eq!(decide(&waiting(), &TERMS, later), Departure::Batch(Reason::Linger));
    }

    #[test]
    fn a_full_lane_leaves_at_once() {
        let requests = Waiting { count: 100, ..waiting() };
        assert_eq!(decide(&requests, &TERMS, NOW), Departure::Batch(Reason::Full));
        let bytes = Waiting { bytes: 10_000, ..waiting() };
        assert_eq!(decide(&bytes, &TERMS, NOW), Departure::Batch(Reason::Full));
    }

    #[test]
    fn a_near_deadline_cuts_the_linger_short() {
        let patient = Terms { linger: Millis::from_hours(10), ..TERMS };
        let deadline = NOW.after(Millis::from_hours(4));
        let waiting = Waiting { earliest_deadline: deadline, ..waiting() };
        let latest = patient.latest_safe(deadline);
        assert_eq!(decide(&waiting, &patient, NOW), Departure::Stay(latest));
        assert_eq!(decide(&waiting, &patient, latest), Departure::Batch(Reason::Deadline));
    }

    #[test]
    fn what_no_batch_can_keep_is_run_in_real_time() {
        let waiting = Waiting { earliest_deadline: NOW.after(Millis::from_mins(69)), ..waiting() };
        assert_eq!(decide(&waiting, &TERMS, NOW), Departure::Realtime);
    }
}
