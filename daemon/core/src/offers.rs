//! The ladder of offers, and which of them is bought: the cheapest that keeps the deadline, where being late has a price.
//!
//! The ladder is data. It comes from provider plugins, and a new rung needs nothing here.

use std::collections::BTreeMap;

use crate::gate::GateLimits;
use crate::turnaround::{MILLION, Sketch, Way};
use crate::words::{BackendId, Millis, Mode, ModelId, OfferName};

/// What a rescue costs beyond its price, in thousandths of the list price: it puts a deadline at stake and takes quota
/// from real-time traffic.
const RISK_PERMILLE: u64 = 500;

/// Bounds of what is taken for "usually in time", in millionths.
const LATE_AT_MOST: std::ops::RangeInclusive<u64> = 10_000..=250_000;

/// What is late at most when the latest departure is reckoned.
const LATE_AT_DEPARTURE: u64 = 50_000;

/// One offer of one backend for what a lane holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rung {
    /// Who sells.
    pub backend: BackendId,
    /// What.
    pub offer: OfferName,
    /// How it is run.
    pub mode: Mode,
    /// Price in thousandths of the list price.
    pub price_permille: u32,
    /// How long it usually takes, says the provider.
    pub usual: Millis,
    /// What one batch may hold, and how many there may be; none where requests go one by one.
    pub batch: Option<BatchRoom>,
}

/// What a batch of a rung may hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchRoom {
    /// Requests that fill it.
    pub max_requests: u64,
    /// Bytes on the wire that fill it.
    pub max_bytes: u64,
    /// What an item takes beyond its body.
    pub overhead_bytes: u64,
    /// How many batches the backend takes.
    pub gate: GateLimits,
}

/// What is known of turnarounds.
pub type Turnarounds = BTreeMap<Way, Sketch>;

/// What a ladder means for a lane, until something new is learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    /// The rung of the ladder that a batch is bought from.
    pub batch: usize,
    /// With less time than this, a batch is the worse buy.
    pub needs: Millis,
    /// With this much time, hardly any batch is late.
    pub safe: Millis,
}

impl Rung {
    /// Its place among the turnarounds.
    #[must_use]
    pub fn way(&self, model: &ModelId) -> Way {
        Way { backend: self.backend.clone(), offer: self.offer.clone(), model: model.clone() }
    }

    fn seen<'a>(&self, model: &ModelId, seen: &'a Turnarounds) -> &'a Sketch {
        static NOTHING: Sketch = Sketch::NOTHING;
        seen.get(&self.way(model)).unwrap_or(&NOTHING)
    }

    /// Its price, where those for which it has no room are bought as the fallback instead.
    fn price(&self, fallback: &Self, sketch: &Sketch) -> u64 {
        let own = u64::from(self.price_permille);
        own + u64::from(fallback.price_permille).saturating_sub(own) * sketch.no_room() / MILLION
    }

    fn is_now(&self) -> bool {
        self.mode == Mode::Realtime
    }
}

/// The price, in thousandths of the list price, that a share of late ones (in millionths) adds.
fn price_of_late(late: u64, rescue_permille: u64) -> u64 {
    late * (rescue_permille + RISK_PERMILLE) / MILLION
}

/// The way to an answer as soon as possible: what a rescue falls back on.
pub fn fastest(ladder: &[Rung]) -> Option<&Rung> {
    ladder.iter().filter(|rung| rung.is_now()).min_by_key(|rung| (rung.usual, rung.price_permille))
}

/// The best offer that is run now, with so much time left: the cheapest, where being late and having no room have their
/// price.
pub fn best_now<'a>(
    ladder: &'a [Rung],
    model: &ModelId,
    seen: &Turnarounds,
    left: Millis,
) -> Option<&'a Rung> {
    let fastest = fastest(ladder)?;
    let left = Millis(left.0.saturating_sub(fastest.usual.0));
    ladder.iter().filter(|rung| rung.is_now()).min_by_key(|rung| {
        let sketch = rung.seen(model, seen);
        let late = if *rung == fastest { 0 } else { sketch.late(left, rung.usual) };
        (rung.price(fastest, sketch) + price_of_late(late, fastest.price_permille.into()), rung.usual)
    })
}

/// What the ladder means for requests that can wait; none if no rung is a batch. Rungs that `is_open` does not let pass
/// are taken only if there is no other.
pub fn outlook(
    ladder: &[Rung],
    model: &ModelId,
    seen: &Turnarounds,
    is_open: impl Fn(&Rung) -> bool,
) -> Option<Outlook> {
    let batches = ladder.iter().enumerate().filter(|(_, rung)| rung.batch.is_some());
    let rank = |rung: &Rung| (!is_open(rung), rung.price_permille, rung.usual);
    let (batch, rung) = batches.min_by_key(|(_, rung)| rank(rung))?;
    let sketch = rung.seen(model, seen);
    let Some(fastest) = fastest(ladder) else {
        // There is nothing to fall back on: a batch is the best there is, however little time is left.
        return Some(Outlook { batch, needs: Millis(0), safe: sketch.within(LATE_AT_DEPARTURE, rung.usual) });
    };
    let rescue = u64::from(fastest.price_permille);
    let now = best_now(ladder, model, seen, rung.usual)
        .map_or(rescue, |now| now.price(fastest, now.seen(model, seen)));
    let gain = now.saturating_sub(rung.price_permille.into());
    let late_at_most =
        (gain * MILLION / (now + RISK_PERMILLE)).clamp(*LATE_AT_MOST.start(), *LATE_AT_MOST.end());
    let needs = if rung.price_permille > fastest.price_permille {
        Millis(u64::MAX)
    } else {
        sketch.within(late_at_most, rung.usual)
    };
    Some(Outlook { batch, needs, safe: sketch.within(LATE_AT_DEPARTURE, rung.usual) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::words::Timestamp;

    const HOUR: Millis = Millis::from_hours(1);

    fn rung(offer: &str, mode: Mode, price_permille: u32, usual: Millis) -> Rung {
        let gate = GateLimits { running: 10, an_hour: 100 };
        let room = BatchRoom { max_requests: 100, max_bytes: 1000, overhead_bytes: 0, gate };
        Rung {
            backend: "a".into(),
            offer: offer.into(),
            mode,
            price_permille,
            usual,
            batch: (mode == Mode::Batch).then_some(room),
        }
    }

    fn standard() -> Rung {
        rung("standard", Mode::Realtime, 1000, Millis::from_secs(5))
    }

    fn flex() -> Rung {
        rung("flex", Mode::Realtime, 500, Millis::from_secs(60))
    }

    fn batch() -> Rung {
        rung("batch", Mode::Batch, 500, HOUR)
    }

    fn model() -> ModelId {
        "m".into()
    }

    fn now(ladder: &[Rung], left: Millis) -> &str {
        best_now(ladder, &model(), &Turnarounds::new(), left).map_or("", |rung| rung.offer.as_str())
    }

    #[test]
    fn with_time_to_fall_back_the_cheap_rung_is_tried_first() {
        let ladder = [standard(), flex(), batch()];
        assert_eq!(now(&ladder, Millis::from_mins(10)), "flex");
        assert_eq!(now(&ladder, Millis::from_secs(40)), "standard");
        assert_eq!(now(&[flex()], Millis(0)), "flex");
        assert_eq!(now(&[batch()], HOUR), "");
    }

    #[test]
    fn a_new_rung_needs_no_new_code() {
        let ladder = [standard(), rung("calm", Mode::Realtime, 300, Millis::from_secs(90)), batch()];
        assert_eq!(now(&ladder, HOUR), "calm");
        let ladder = [standard(), batch(), rung("night", Mode::Batch, 350, Millis::from_hours(6))];
        let outlook = outlook(&ladder, &model(), &Turnarounds::new(), |_| true).unwrap();
        assert_eq!(ladder[outlook.batch].offer.as_str(), "night");
    }

    #[test]
    fn at_first_a_batch_needs_what_the_provider_says() {
        let outlook = outlook(&[standard(), batch()], &model(), &Turnarounds::new(), |_| true).unwrap();
        assert!(outlook.needs <= HOUR, "{outlook:?}");
        assert_eq!(outlook.safe, Millis::from_hours(2));
    }

    #[test]
    fn an_offer_that_seldom_has_room_is_dear() {
        let ladder = [standard(), flex(), batch()];
        let needs = |seen: &Turnarounds| outlook(&ladder, &model(), seen, |_| true).unwrap().needs;
        let mut seen = Turnarounds::new();
        assert!(needs(&seen) > Millis::from_hours(4), "flex costs the same and is sooner there");
        let sketch = seen.entry(flex().way(&model())).or_default();
        for _ in 0..100 {
            sketch.observe_no_room();
        }
        assert!(needs(&seen) < Millis::from_hours(2), "it has no room");
    }

    #[test]
    fn what_is_seen_moves_the_edge() {
        let mut seen = Turnarounds::new();
        let sketch = seen.entry(batch().way(&model())).or_default();
        for _ in 0..40 {
            sketch.observe(Millis::from_hours(6), Timestamp(0));
        }
        let outlook = outlook(&[standard(), batch()], &model(), &seen, |_| true).unwrap();
        assert!(outlook.needs > Millis::from_hours(6), "{outlook:?}");
    }

    #[test]
    fn without_a_way_out_a_batch_is_taken_however_late_it_is() {
        let outlook = outlook(&[batch()], &model(), &Turnarounds::new(), |_| true).unwrap();
        assert_eq!(outlook.needs, Millis(0));
        assert_eq!(super::outlook(&[standard()], &model(), &Turnarounds::new(), |_| true), None);
    }

    #[test]
    fn a_closed_rung_is_left_out_while_there_is_another() {
        let other = Rung { backend: "b".into(), price_permille: 600, ..batch() };
        let ladder = [standard(), batch(), other];
        let open = |rung: &Rung| rung.backend.as_str() == "b";
        assert_eq!(outlook(&ladder, &model(), &Turnarounds::new(), open).unwrap().batch, 2);
        assert_eq!(outlook(&ladder, &model(), &Turnarounds::new(), |_| false).unwrap().batch, 1);
    }

    proptest! {
        /// Whatever is on the ladder: what is bought now is sold now, and with time nothing dearer than the fastest is.
        #[test]
        fn nothing_dearer_than_the_fastest_is_bought(
            rungs in prop::collection::vec((0_u32..3000, 1_u64..100_000_000, any::<bool>()), 1..8),
            left in 0_u64..1_000_000_000,
        ) {
            let ladder: Vec<Rung> = rungs
                .iter()
                .enumerate()
                .map(|(n, (price, usual, is_now))| {
                    let mode = if *is_now { Mode::Realtime } else { Mode::Batch };
                    rung(&n.to_string(), mode, *price, Millis(*usual))
                })
                .collect();
            let bought = best_now(&ladder, &model(), &Turnarounds::new(), Millis(left));
            prop_assert_eq!(bought.is_some(), ladder.iter().any(Rung::is_now));
            if let Some((bought, fastest)) = bought.zip(fastest(&ladder)) {
                prop_assert!(bought.is_now() && bought.price_permille <= fastest.price_permille);
            }
            if let Some(outlook) = outlook(&ladder, &model(), &Turnarounds::new(), |_| true) {
                prop_assert!(ladder[outlook.batch].batch.is_some());
                prop_assert!(fastest(&ladder).is_some() || outlook.needs == Millis(0));
            }
        }
    }
}
