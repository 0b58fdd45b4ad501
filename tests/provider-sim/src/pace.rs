//! When the items of a batch finish, whoever's batch it is.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::batches::Cancel;
use crate::clock::SimTime;
use crate::config::Pace;
use crate::faults::BatchFault;
use crate::responses::draw_millis;
use crate::scenario::Conditions;
use crate::stalls::Stalls;

/// The least time a cancellation takes.
const CANCEL_MS: u64 = 1_000;

/// An item and when it finishes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Item<T> {
    pub(crate) finishes: SimTime,
    pub(crate) what: T,
}

/// How a batch will go.
#[derive(Debug)]
pub(crate) struct Plan<T> {
    /// What runs, by the time at which it finishes.
    pub(crate) items: Vec<Item<T>>,
    /// What never runs.
    pub(crate) lost: Vec<T>,
    /// When the last item finishes; `None` when some never do.
    pub(crate) last_item: Option<SimTime>,
}

/// Spreads `items` over the batch's time, in random order. They start at `start`, and `overhead_ms` of the turnaround is
/// spent on other things.
pub(crate) fn plan<T>(
    rng: &mut StdRng,
    conditions: &Conditions,
    faults: &[BatchFault],
    start: SimTime,
    overhead_ms: u64,
    mut items: Vec<T>,
) -> Plan<T> {
    let ordered = faults.iter().find_map(|fault| match fault {
        BatchFault::Turnaround { ms } => Some(*ms),
        _ => None,
    });
    let timing = &conditions.timing;
    let pace = if ordered.is_some() { Pace::Even } else { timing.pace };
    let turnaround = ordered.unwrap_or_else(|| draw_millis(rng, &timing.turnaround));
    let span = turnaround.saturating_sub(overhead_ms).max(1);
    items.shuffle(rng);
    let mut lost = draw_lost(faults, &mut items, rng);
    if let Pace::Expiring { done_permille } = pace {
        lost.extend(items.split_off(part(items.len(), done_permille)));
    }
    let after = draw_times(rng, pace, span, items.len());
    let last_item = after.last().map(|ms| conditions.stalls.done(start, *ms)).filter(|_| lost.is_empty());
    let item = |(what, ms)| Item { finishes: conditions.stalls.done(start, ms), what };
    Plan { items: items.into_iter().zip(after).map(item).collect(), lost, last_item }
}

/// This many of a thousand of `count`.
fn part(count: usize, permille: u16) -> usize {
    count.saturating_mul(permille.min(1_000).into()) / 1_000
}

/// When `count` items finish, in milliseconds from the start of the work and in order.
fn draw_times(rng: &mut StdRng, pace: Pace, span: u64, count: usize) -> Vec<u64> {
    let (slow, end) = match pace {
        Pace::Even | Pace::Expiring { .. } => (0, span),
        Pace::SlowTail { permille, times } => {
            (part(count, permille).max(1), span.saturating_mul(times.max(1).into()))
        }
    };
    let quick = count.saturating_sub(slow);
    let mut after: Vec<u64> = (0..quick).map(|_| rng.random_range(1..=span)).collect();
    after.extend((quick..count).map(|_| rng.random_range(span..=end)));
    after.sort_unstable();
    if let Some(last) = after.last_mut() {
        *last = end;
    }
    after
}

/// Where the end of work moves that was to be done at `at`, when the stalls change at `now`.
pub(crate) fn moved(old: &Stalls, new: &Stalls, now: SimTime, at: SimTime) -> SimTime {
    if at <= now { at } else { new.done(now, old.worked_ms(now, at)) }
}

/// Takes what never runs out of the (shuffled) items.
fn draw_lost<T>(faults: &[BatchFault], items: &mut Vec<T>, rng: &mut StdRng) -> Vec<T> {
    let mut lost = Vec::new();
    for fault in faults {
        match fault {
            BatchFault::Stall => lost.extend(items.split_off(items.len() / 2)),
            BatchFault::LoseItems { permille } => {
                let is_lost = |_: &mut T| rng.random_range(0..1000) < *permille;
                lost.extend(items.extract_if(.., is_lost));
            }
            _ => {}
        }
    }
    lost
}

/// A cancellation at `now`: what finishes within `in_flight_ms` still counts. `upcoming` are the times at which the
/// items still to run would finish, in order.
pub(crate) fn cancellation(
    now: SimTime,
    in_flight_ms: u64,
    upcoming: impl Iterator<Item = SimTime>,
) -> Cancel {
    let runs_until = now.plus_millis(in_flight_ms);
    let last = upcoming.take_while(|finishes| *finishes <= runs_until).last().unwrap_or(now);
    Cancel { at: now, runs_until, done: last.max(now.plus_millis(CANCEL_MS)) }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use rand::SeedableRng;

    use super::*;
    use crate::scenario::Scenario;
    use crate::stalls::Stall;

    const START: SimTime = SimTime(1_000);

    fn plan_of(seed: u64, pace: Pace, stalls: Vec<Stall>, count: usize) -> Plan<usize> {
        let mut scenario = Scenario::default();
        scenario.timing.pace = pace;
        scenario.timing.stalls = stalls;
        let conditions = Conditions::of(scenario, START);
        plan(&mut StdRng::seed_from_u64(seed), &conditions, &[], START, 0, (0..count).collect())
    }

    fn minutes(at: SimTime) -> u64 {
        at.millis_since(START) / 60_000
    }

    #[test]
    fn a_slow_tail_is_a_few_items_that_take_longer() {
        let even = plan_of(1, Pace::Even, Vec::new(), 1_000);
        let tail = plan_of(1, Pace::SlowTail { permille: 20, times: 6 }, Vec::new(), 1_000);
        let turnaround = even.last_item.unwrap();
        assert_eq!(minutes(tail.last_item.unwrap()) / minutes(turnaround), 6);
        let late = tail.items.iter().filter(|item| item.finishes > turnaround).count();
        assert!((15..=20).contains(&late), "{late}");
    }

    #[test]
    fn an_expiring_batch_does_its_part() {
        let plan = plan_of(1, Pace::Expiring { done_permille: 300 }, Vec::new(), 1_000);
        assert_eq!((plan.items.len(), plan.lost.len(), plan.last_item), (300, 700, None));
    }

    #[test]
    fn nothing_finishes_in_a_stall() {
        let stall = Stall { from_ms: 5 * 60_000, until_ms: 300 * 60_000 };
        let plan = plan_of(1, Pace::Even, vec![stall], 1_000);
        let during = |at: SimTime| (5..300).contains(&minutes(at)) && at.millis_since(START) > stall.from_ms;
        assert!(plan.items.iter().all(|item| !during(item.finishes)));
        assert!((304..=335).contains(&minutes(plan.last_item.unwrap())));
    }

    proptest! {
        #[test]
        fn every_item_is_planned_once_and_in_order(
            seed in any::<u64>(),
            kind in 0..3,
            count in 1_usize..200,
            permille in 0_u16..1_000,
        ) {
            let pace = match kind {
                0 => Pace::Even,
                1 => Pace::SlowTail { permille, times: 3 },
                _ => Pace::Expiring { done_permille: permille },
            };
            let plan = plan_of(seed, pace, Vec::new(), count);
            let mut all: Vec<_> = plan.items.iter().map(|item| item.what).chain(plan.lost.iter().copied()).collect();
            all.sort_unstable();
            prop_assert_eq!(all, (0..count).collect::<Vec<_>>());
            prop_assert!(plan.items.is_sorted_by_key(|item| item.finishes));
            if plan.lost.is_empty() {
                prop_assert_eq!(plan.last_item, plan.items.last().map(|item| item.finishes));
            } else {
                prop_assert_eq!(plan.last_item, None);
            }
        }
    }
}
