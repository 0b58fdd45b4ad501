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
    /// What one batch may hold, and how many there may be, where what is bought can wait; none where it is run at once. In the
    /// background a batch holds one request.
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

/// What one rung means for what can wait, until something new is learnt.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlook {
    /// The rung of the ladder: one that is a batch, or runs in the background.
    pub rung: usize,
    /// With less time than this, it is the worse buy.
    pub needs: Millis,
    /// With this much time, hardly any is late.
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

/// The ways to run now what is urgent: those of its own backend as long as that takes calls; while it does not, those of
/// others that do, if it may go there.
pub fn ways_now(
    ladder: &[Rung],
    own: &BackendId,
    may_go_elsewhere: bool,
    takes_calls: impl Fn(&BackendId) -> bool,
) -> Vec<Rung> {
    let now = || ladder.iter().filter(|rung| rung.is_now());
    let at_home: Vec<Rung> = now().filter(|rung| rung.backend == *own).cloned().collect();
    if !at_home.is_empty() && (takes_calls(own) || !may_go_elsewhere) {
        return at_home;
    }
    let others = now().filter(|rung| rung.backend != *own && takes_calls(&rung.backend));
    let others: Vec<Rung> = others.cloned().collect();
    match (others.is_empty(), at_home.is_empty()) {
        (false, _) => others,
        (true, false) => at_home,
        (true, true) => now().cloned().collect(),
    }
}

/// The ways to buy what can wait, the cheapest first; each further one is dearer and sooner there. With less time than the last
/// one needs, it is run at once. Rungs that `is_open` does not let pass are taken only if there is no other.
pub fn outlooks(
    ladder: &[Rung],
    model: &ModelId,
    seen: &Turnarounds,
    is_open: impl Fn(&Rung) -> bool,
) -> Vec<Outlook> {
    let can_wait = || ladder.iter().enumerate().filter(|(_, rung)| rung.batch.is_some());
    let mut rungs: Vec<(usize, &Rung)> = can_wait().filter(|(_, rung)| is_open(rung)).collect();
    if rungs.is_empty() {
        rungs = can_wait().collect();
    }
    rungs.sort_by_key(|(_, rung)| (rung.price_permille, rung.usual));
    let fastest = fastest(ladder);
    let needs = |rung: &Rung, dearer: Option<u64>| {
        // There is nothing to fall back on: it is the best there is, however little time is left.
        let Some(dearer) = dearer else { return Millis(0) };
        if fastest.is_some_and(|fastest| rung.price_permille > fastest.price_permille) {
            return Millis(u64::MAX);
        }
        let gain = dearer.saturating_sub(rung.price_permille.into());
        let late_at_most =
            (gain * MILLION / (dearer + RISK_PERMILLE)).clamp(*LATE_AT_MOST.start(), *LATE_AT_MOST.end());
        rung.seen(model, seen).within(late_at_most, rung.usual)
    };
    // What is run at once when there is as much time as the rung usually takes.
    let at_once = |rung: &Rung| {
        let fastest = fastest?;
        let now = best_now(ladder, model, seen, rung.usual);
        let price = |now: &Rung| now.price(fastest, now.seen(model, seen));
        Some(now.map_or_else(|| fastest.price_permille.into(), price))
    };
    // First as if there were no step between a rung and running it at once; what that leaves is compared with the next step.
    let mut kept: Vec<(usize, &Rung, Millis)> = Vec::new();
    for (at, rung) in rungs {
        let now = at_once(rung);
        let is_worth_it = now.is_none_or(|now| u64::from(rung.price_permille) < now);
        let time = needs(rung, now.or_else(|| Some(u64::from(rung.price_permille))));
        if kept.last().is_none_or(|(.., before)| is_worth_it && time < *before) {
            kept.push((at, rung, time));
        }
    }
    let mut outlooks: Vec<Outlook> = Vec::with_capacity(kept.len());
    let mut next: Option<u64> = None;
    for (at, rung, _) in kept.into_iter().rev() {
        let sketch = rung.seen(model, seen);
        let (needs, safe) =
            (needs(rung, next.or_else(|| at_once(rung))), sketch.within(LATE_AT_DEPARTURE, rung.usual));
        // Dearer ones that are not sooner there are no steps.
        while outlooks.last().is_some_and(|dearer| dearer.needs >= needs) {
            outlooks.pop();
        }
        outlooks.push(Outlook { rung: at, needs, safe });
        next = Some(rung.price_permille.into());
    }
    outlooks.reverse();
    outlooks
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

    #[test]
    fn what_is_urgent_leaves_its_own_backend_only_while_that_takes_no_calls() {
        let at = |backend: &str| Rung { backend: backend.into(), ..standard() };
        let batch = Rung { backend: "c".into(), ..rung("batch", Mode::Batch, 500, HOUR) };
        let ladder = [at("a"), at("b"), batch];
        let ways = |ladder: &[Rung], own: &str, may_go: bool, open: &[&str]| -> Vec<String> {
            let ways = ways_now(ladder, &own.into(), may_go, |backend| open.contains(&backend.as_str()));
            ways.iter().map(|rung| rung.backend.to_string()).collect()
        };
        assert_eq!(ways(&ladder, "a", true, &["a", "b"]), ["a"]);
        assert_eq!(ways(&ladder, "a", true, &["b"]), ["b"]);
        assert_eq!(ways(&ladder, "a", false, &["b"]), ["a"], "it is to stay");
        assert_eq!(ways(&ladder, "a", true, &[]), ["a"], "nobody takes it: its own is as good");
        assert_eq!(ways(&ladder, "c", true, &["a"]), ["a"], "where nothing is sold in real time");
        assert_eq!(ways(&ladder, "c", true, &[]), ["a", "b"]);
        assert_eq!(ways(&ladder[2..], "c", true, &["c"]), [""; 0]);
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

    fn background(hours: u64) -> Rung {
        let gate = GateLimits { running: 10, an_hour: 100 };
        let room = BatchRoom { max_requests: 1, max_bytes: 1000, overhead_bytes: 0, gate };
        let (price, usual) =
            if hours == 2 { (700, Millis::from_mins(10)) } else { (600, Millis::from_mins(30)) };
        Rung { batch: Some(room), ..rung(&format!("background-{hours}h"), Mode::Background, price, usual) }
    }

    fn model() -> ModelId {
        "m".into()
    }

    fn first(ladder: &[Rung], seen: &Turnarounds) -> Outlook {
        outlooks(ladder, &model(), seen, |_| true)[0]
    }

    #[test]
    fn each_step_is_dearer_and_sooner_there() {
        let ladder = [standard(), background(2), batch(), background(8)];
        let steps = outlooks(&ladder, &model(), &Turnarounds::new(), |_| true);
        let names: Vec<&str> = steps.iter().map(|step| ladder[step.rung].offer.as_str()).collect();
        assert_eq!(names, ["batch", "background-8h", "background-2h"]);
        assert!(steps.windows(2).all(|two| two[0].needs > two[1].needs), "{steps:?}");
        // The little that a batch saves beside the next step is not worth much risk.
        assert!(steps[0].needs > Millis::from_hours(1), "{steps:?}");
        // A window that is never kept is no step.
        let mut seen = Turnarounds::new();
        let sketch = seen.entry(background(8).way(&model())).or_default();
        for _ in 0..100 {
            sketch.observe(Millis::from_hours(7), Timestamp(0));
        }
        let steps = outlooks(&ladder, &model(), &seen, |_| true);
        let names: Vec<&str> = steps.iter().map(|step| ladder[step.rung].offer.as_str()).collect();
        assert_eq!(names, ["batch", "background-2h"]);
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
        assert_eq!(ladder[first(&ladder, &Turnarounds::new()).rung].offer.as_str(), "night");
    }

    #[test]
    fn at_first_a_batch_needs_what_the_provider_says() {
        let outlook = first(&[standard(), batch()], &Turnarounds::new());
        assert!(outlook.needs <= HOUR, "{outlook:?}");
        assert_eq!(outlook.safe, Millis::from_hours(2));
    }

    #[test]
    fn an_offer_that_seldom_has_room_is_dear() {
        let ladder = [standard(), flex(), batch()];
        let needs = |seen: &Turnarounds| first(&ladder, seen).needs;
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
        let outlook = first(&[standard(), batch()], &seen);
        assert!(outlook.needs > Millis::from_hours(6), "{outlook:?}");
    }

    #[test]
    fn without_a_way_out_a_batch_is_taken_however_late_it_is() {
        assert_eq!(first(&[batch()], &Turnarounds::new()).needs, Millis(0));
        assert_eq!(outlooks(&[standard()], &model(), &Turnarounds::new(), |_| true), []);
    }

    #[test]
    fn a_closed_rung_is_left_out_while_there_is_another() {
        let other = Rung { backend: "b".into(), price_permille: 600, ..batch() };
        let ladder = [standard(), batch(), other];
        let open = |rung: &Rung| rung.backend.as_str() == "b";
        assert_eq!(outlooks(&ladder, &model(), &Turnarounds::new(), open)[0].rung, 2);
        assert_eq!(outlooks(&ladder, &model(), &Turnarounds::new(), |_| false)[0].rung, 1);
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
            let steps = outlooks(&ladder, &model(), &Turnarounds::new(), |_| true);
            prop_assert_eq!(steps.is_empty(), ladder.iter().all(Rung::is_now));
            prop_assert!(steps.iter().all(|step| ladder[step.rung].batch.is_some()));
            if let Some(last) = steps.last() {
                prop_assert!(fastest(&ladder).is_some() || last.needs == Millis(0));
            }
            for two in steps.windows(2) {
                prop_assert!(two[0].needs > two[1].needs);
                prop_assert!(ladder[two[0].rung].price_permille <= ladder[two[1].rung].price_permille);
            }
        }
    }
}
