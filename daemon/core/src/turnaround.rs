//! How long a way of buying takes: what was seen lately, in a sketch small enough to be kept with every batch that ends.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::words::{BackendId, Millis, ModelId, OfferName, Timestamp};

/// Shares are counted in millionths, so that one late batch in a thousand is still a number.
pub const MILLION: u64 = 1_000_000;

/// The weight of one observation when it is made.
const ONE: u64 = 1 << 20;

/// What the provider's own word weighs beside observations: as much as four of them.
const PRIOR: u64 = 4 * ONE;

/// The share of the provider's word that is late at "usually": one in five.
const PRIOR_LATE: u64 = 200_000;

const DAY: Millis = Millis::from_hours(24);

/// What is bought where: turnarounds are kept for each of these.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Way {
    /// The backend.
    pub backend: BackendId,
    /// The offer.
    pub offer: OfferName,
    /// The model.
    pub model: ModelId,
}

/// A histogram of times, four steps to each doubling. Old observations fade: each new one takes a fiftieth of the weight
/// of those before, and each day a tenth.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sketch {
    weights: BTreeMap<u8, u64>,
    faded_at: Timestamp,
    /// The share, in millionths, of those that were refused for want of room lately.
    no_room: u64,
}

impl Sketch {
    /// Nothing was seen yet.
    pub const NOTHING: Self = Self { weights: BTreeMap::new(), faded_at: Timestamp(0), no_room: 0 };

    /// It took so long.
    pub fn observe(&mut self, took: Millis, now: Timestamp) {
        self.make_room(now);
        *self.weights.entry(step_of(took)).or_default() += ONE;
        self.no_room = self.no_room / 50 * 49;
    }

    /// It was given up after so long, when a share of it, in thousandths, was done, which was the case after `done_after`.
    /// How long the rest would have taken is unknown; twice as long is assumed.
    pub fn observe_given_up(
        &mut self,
        after: Millis,
        done_permille: u64,
        done_after: Millis,
        now: Timestamp,
    ) {
        self.make_room(now);
        let done = ONE / 1000 * done_permille.min(1000);
        *self.weights.entry(step_of(done_after)).or_default() += done;
        *self.weights.entry(step_of(Millis(after.0.saturating_mul(2)))).or_default() += ONE - done;
        self.weights.retain(|_, weight| *weight > 0);
    }

    /// There was no room for it.
    pub const fn observe_no_room(&mut self) {
        self.no_room = self.no_room / 50 * 49 + MILLION / 50;
    }

    /// How often, in millionths, there is no room.
    #[must_use]
    pub const fn no_room(&self) -> u64 {
        self.no_room
    }

    fn make_room(&mut self, now: Timestamp) {
        self.fade(now);
        for weight in self.weights.values_mut() {
            *weight = *weight / 50 * 49;
        }
        self.weights.retain(|_, weight| *weight > ONE / 1000);
    }

    /// The share, in millionths, of those that are not there after `left`. `usual` is what the provider says, which is all
    /// that is known at first and never quite forgotten.
    #[must_use]
    pub fn late(&self, left: Millis, usual: Millis) -> u64 {
        let seen: u64 = self.weights.values().sum();
        let late: u64 = self.weights.iter().filter(|(step, _)| end_of(**step) > left).map(|(_, w)| w).sum();
        let sum =
            u128::from(late) * u128::from(MILLION) + u128::from(prior_late(left, usual)) * u128::from(PRIOR);
        u64::try_from(sum / u128::from(seen + PRIOR)).unwrap_or(MILLION)
    }

    /// The shortest time after which at most this share (in millionths) is not there.
    #[must_use]
    pub fn within(&self, late_at_most: u64, usual: Millis) -> Millis {
        let (mut low, mut high) = (0, 1_u64 << 45);
        while low < high {
            let middle = low + (high - low) / 2;
            if self.late(Millis(middle), usual) <= late_at_most {
                high = middle;
            } else {
                low = middle + 1;
            }
        }
        Millis(low)
    }

    /// How many observations it stands for, in thousandths.
    #[must_use]
    pub fn weight_permille(&self) -> u64 {
        self.weights.values().sum::<u64>() * 1000 / ONE
    }

    fn fade(&mut self, now: Timestamp) {
        if self.weights.is_empty() {
            self.faded_at = now;
        }
        let days = now.since(self.faded_at).0 / DAY.0;
        for _ in 0..days.min(100) {
            for weight in self.weights.values_mut() {
                *weight = *weight / 10 * 9;
            }
        }
        self.faded_at = self.faded_at.after(Millis(days.saturating_mul(DAY.0)));
    }
}

/// Nothing comes earlier than the provider says; after twice the time a quarter of the stragglers is left.
fn prior_late(left: Millis, usual: Millis) -> u64 {
    if left < usual {
        return MILLION;
    }
    let (left, usual) = (u128::from(left.0.max(1)), u128::from(usual.0));
    u64::try_from((u128::from(PRIOR_LATE) * usual * usual).div_ceil(left * left)).unwrap_or(MILLION)
}

/// Four steps to each doubling: a time's highest three bits.
fn step_of(time: Millis) -> u8 {
    let time = time.0.max(4);
    let octave = time.ilog2();
    let quarter = (time >> (octave - 2)) & 3;
    u8::try_from(u64::from(octave) * 4 + quarter).unwrap_or(u8::MAX)
}

/// The longest time of a step.
fn end_of(step: u8) -> Millis {
    let (octave, quarter) = (u32::from(step / 4).max(2), u128::from(step % 4));
    Millis(u64::try_from(((5 + quarter) << (octave - 2)) - 1).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const HOUR: Millis = Millis::from_hours(1);
    const START: Timestamp = Timestamp(1_700_000_000_000);

    #[test]
    fn before_anything_was_seen_the_provider_is_believed() {
        let fresh = Sketch::default();
        assert_eq!(fresh.late(Millis(HOUR.0 - 1), HOUR), MILLION);
        assert_eq!(fresh.late(HOUR, HOUR), 200_000);
        assert_eq!(fresh.within(200_000, HOUR), HOUR);
        assert_eq!(fresh.within(50_000, HOUR), Millis::from_hours(2));
    }

    #[test]
    fn what_is_seen_outweighs_what_was_said() {
        let mut sketch = Sketch::default();
        for _ in 0..50 {
            sketch.observe(Millis::from_mins(10), START);
        }
        assert!(sketch.within(150_000, HOUR) < Millis::from_mins(15));
        for _ in 0..25 {
            sketch.observe_given_up(Millis::from_hours(5), 0, Millis(0), START);
        }
        assert!(sketch.late(Millis::from_hours(6), HOUR) > 300_000);
    }

    #[test]
    fn what_ran_of_a_batch_that_was_given_up_is_not_late() {
        let mut sketch = Sketch::default();
        for _ in 0..50 {
            sketch.observe_given_up(Millis::from_hours(23), 700, Millis::from_mins(30), START);
        }
        let late = sketch.late(Millis::from_hours(23), HOUR);
        assert!((250_000..320_000).contains(&late), "{late}");
    }

    #[test]
    fn want_of_room_is_remembered_and_forgotten() {
        let mut sketch = Sketch::default();
        for _ in 0..200 {
            sketch.observe_no_room();
        }
        assert!(sketch.no_room() > 700_000, "{}", sketch.no_room());
        for _ in 0..200 {
            sketch.observe(Millis(1000), START);
        }
        assert!(sketch.no_room() < 100_000, "{}", sketch.no_room());
    }

    #[test]
    fn old_news_fades() {
        let mut sketch = Sketch::default();
        for _ in 0..20 {
            sketch.observe(Millis::from_hours(9), START);
        }
        let before = sketch.late(Millis::from_hours(2), HOUR);
        sketch.observe(Millis::from_mins(30), START.after(Millis::from_hours(24 * 30)));
        assert!(sketch.late(Millis::from_hours(2), HOUR) < before / 3);
    }

    proptest! {
        #[test]
        fn a_time_lies_in_its_step(time in 4_u64..) {
            let step = step_of(Millis(time));
            prop_assert!(Millis(time) <= end_of(step));
            prop_assert!(step == 0 || Millis(time) > end_of(step - 1));
        }

        /// More time is never more risk, and `within` is the edge.
        #[test]
        fn late_falls_and_within_is_its_inverse(
            seen in prop::collection::vec((1_u64..1_000_000_000, 0_u64..10_000_000_000), 0..40),
            usual in 1_u64..100_000_000,
            left in 0_u64..2_000_000_000,
            share in 1_000_u64..900_000,
        ) {
            let mut sketch = Sketch::default();
            let mut now = START;
            for (took, pause) in seen {
                now = now.after(Millis(pause));
                sketch.observe(Millis(took), now);
            }
            let usual = Millis(usual);
            prop_assert!(sketch.late(Millis(left), usual) >= sketch.late(Millis(left + 1000), usual));
            let edge = sketch.within(share, usual);
            prop_assert!(sketch.late(edge, usual) <= share);
            prop_assert!(edge.0 == 0 || sketch.late(Millis(edge.0 - 1), usual) > share);
        }
    }
}
