//! When the items of a batch finish, whoever's batch it is.

use rand::RngExt;
use rand::rngs::StdRng;
use rand::seq::SliceRandom;

use crate::batches::Cancel;
use crate::clock::SimTime;
use crate::config::Timing;
use crate::faults::BatchFault;
use crate::responses::draw_millis;

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
    timing: &Timing,
    faults: &[BatchFault],
    start: SimTime,
    overhead_ms: u64,
    mut items: Vec<T>,
) -> Plan<T> {
    let ordered = faults.iter().find_map(|fault| match fault {
        BatchFault::Turnaround { ms } => Some(*ms),
        _ => None,
    });
    let turnaround = ordered.unwrap_or_else(|| draw_millis(rng, &timing.turnaround));
    let span = turnaround.saturating_sub(overhead_ms).max(1);
    items.shuffle(rng);
    let lost = draw_lost(faults, &mut items, rng);
    let mut after: Vec<u64> = items.iter().map(|_| rng.random_range(1..=span)).collect();
    after.sort_unstable();
    if let Some(last) = after.last_mut() {
        *last = span;
    }
    let item = |(what, ms)| Item { finishes: start.plus_millis(ms), what };
    let items = items.into_iter().zip(after).map(item).collect();
    let last_item = lost.is_empty().then(|| start.plus_millis(span));
    Plan { items, lost, last_item }
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
