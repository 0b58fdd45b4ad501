//! What must be true of an index at any time. Tests ask after every step, and people with `offpeak db check`.

use std::collections::{BTreeMap, BTreeSet};

use offpeak_core::words::{LaneId, Place, Seq};
use redb::ReadableTable;

use super::extents::Row;
use super::lookup::{Rows, View, decode_batch};
use super::outcomes::OutcomeRow;
use super::tables::{BATCHES, DOCUMENTS, KEY_OF, KEYS, TOUCHED, key, meta};
use crate::error::StoreError;
use crate::log::Position;
use crate::values::{Findings, Kind};

/// What the index says is in the log.
#[derive(Debug, Default)]
pub(crate) struct Expected {
    /// By segment, the requests whose bodies it has.
    pub(crate) requests: BTreeMap<u32, u64>,
    /// By segment, the answers that it has.
    pub(crate) answers: BTreeMap<u32, u64>,
    /// Requests without an outcome.
    pub(crate) unfinished: u64,
}

/// Finds what points to what is not there, and counts that are wrong. Nothing is found in a healthy index.
///
/// `on_disk` are the segment files that there are. Those before `applied` must be those of the index.
pub(crate) fn check(
    view: &View,
    on_disk: &BTreeSet<u32>,
    applied: Position,
    found: &mut Findings,
) -> Result<Expected, StoreError> {
    let segments = view.segment_rows()?;
    let known: BTreeSet<u32> = segments.iter().map(|(segment, _)| *segment).collect();
    for lost in known.difference(on_disk) {
        found.add(format!("the file of segment {lost} is gone"));
    }
    let mut expected = Expected::default();
    let unfinished = check_extents(view, &known, &mut expected, found)?;
    for (segment, row) in segments {
        let counted = unfinished.get(&segment).copied().unwrap_or(0);
        if counted != row.unfinished {
            found.add(format!("segment {segment} counts {} unfinished and has {counted}", row.unfinished));
        }
    }
    if known.last().is_some_and(|last| *last > applied.segment) {
        found.add(format!("there are rows of segments after {}, up to which the index is", applied.segment));
    }
    check_outcomes(view, &known, &mut expected, found)?;
    check_keys(view, found)?;
    check_lanes(view, found)?;
    check_batches(view, found)?;
    for row in view.open(TOUCHED)?.iter()? {
        let segment = row?.0.value().0;
        if !known.contains(&segment) {
            found.add(format!("rows are said to point into segment {segment}, which is gone"));
        }
    }
    for row in view.open(DOCUMENTS)?.iter()? {
        let kind = row?.0.value().0;
        if Kind::from_number(kind).is_none() {
            found.add(format!("a document is of kind {kind}, which this version does not know"));
        }
    }
    Ok(expected)
}

/// Counts the requests that are not finished, by segment.
fn check_extents(
    view: &View,
    known: &BTreeSet<u32>,
    expected: &mut Expected,
    found: &mut Findings,
) -> Result<BTreeMap<u32, u64>, StoreError> {
    let mut unfinished: BTreeMap<u32, u64> = BTreeMap::new();
    let mut before: Option<Row> = None;
    let mut origins = Rows::default();
    for row in view.extents.iter()? {
        let (at, value) = row?;
        let row = Row::decode(at.value(), value.value())?;
        if !known.contains(&row.segment) {
            found.add(format!(
                "requests from {:?} on are in segment {}, which is gone",
                at.value(),
                row.segment
            ));
        }
        let follows =
            |before: &Row| before.extent.lane != row.extent.lane || before.end() <= row.extent.first.0;
        if !before.as_ref().is_none_or(follows) {
            found.add(format!("the requests from {:?} on overlap those before", at.value()));
        }
        for (place, entry) in row.entries(0, u64::MAX) {
            let is_open = view.outcomes.get(key(place))?.is_none();
            *unfinished.entry(entry.at.segment).or_default() += u64::from(is_open);
            expected.unfinished += u64::from(is_open);
            match entry.again {
                None => *expected.requests.entry(entry.at.segment).or_default() += 1,
                Some(again) => {
                    let origin = origins.entry(&view.extents, again.origin)?;
                    if origin.is_none_or(|origin| origin.at != entry.at) {
                        found.add(format!(
                            "{place} goes again for {}, which has another body or none",
                            again.origin
                        ));
                    }
                }
            }
        }
        before = Some(row);
    }
    Ok(unfinished)
}

fn check_outcomes(
    view: &View,
    known: &BTreeSet<u32>,
    expected: &mut Expected,
    found: &mut Findings,
) -> Result<(), StoreError> {
    let (mut rows, mut next) = (Rows::default(), Rows::default());
    for row in view.outcomes.iter()? {
        let (at, value) = row?;
        let (lane, seq) = at.value();
        let place = Place { lane: LaneId(lane), seq: Seq(seq) };
        let is_sound = match OutcomeRow::decode(value.value())? {
            OutcomeRow::Final { at, .. } => {
                *expected.answers.entry(at.segment).or_default() += 1;
                known.contains(&at.segment)
            }
            OutcomeRow::Requeued { to, .. } => {
                rows.entry(&view.extents, place)?.is_some() && next.entry(&view.extents, to)?.is_some()
            }
            OutcomeRow::Swept => rows.entry(&view.extents, place)?.is_some(),
        };
        if !is_sound {
            found.add(format!("the outcome of {place} points to what is gone"));
        }
    }
    Ok(())
}

fn check_keys(view: &View, found: &mut Findings) -> Result<(), StoreError> {
    let mut rows = Rows::default();
    let key_of = view.open(KEY_OF)?;
    for row in view.open(KEYS)?.iter()? {
        let (idempotency, row) = row?;
        let (_, lane, seq, _) = row.value();
        let place = Place { lane: LaneId(lane), seq: Seq(seq) };
        let back = key_of.get(key(place))?.map(|key| *key.value());
        if rows.entry(&view.extents, place)?.is_none() || back != Some(*idempotency.value()) {
            found.add(format!("an idempotency key stands for {place}, which is gone"));
        }
    }
    for row in key_of.iter()? {
        let (lane, seq) = row?.0.value();
        let place = Place { lane: LaneId(lane), seq: Seq(seq) };
        if rows.entry(&view.extents, place)?.is_none() {
            found.add(format!("{place} has an idempotency key and is gone"));
        }
    }
    Ok(())
}

/// Numbers that are given out next are larger than all that were given.
fn check_lanes(view: &View, found: &mut Findings) -> Result<(), StoreError> {
    let next_lane = view.number(meta::NEXT_LANE)?;
    let mut known = BTreeSet::new();
    for (lane, _, state) in view.lanes()? {
        known.insert(lane.0);
        if u64::from(lane.0) >= next_lane {
            found.add(format!("lane {} is there, and the next one's number is {next_lane}", lane.0));
        }
        let last = view.extents.range((lane.0, 0)..=(lane.0, u64::MAX))?.next_back();
        let end = match last {
            Some(row) => {
                let (at, value) = row?;
                Row::decode(at.value(), value.value())?.end()
            }
            None => 0,
        };
        if end > state.next || state.sealed.head() > state.next {
            found.add(format!("lane {} goes on at {} and has {end} already", lane.0, state.next));
        }
    }
    let mut after = 0;
    while let Some(row) = view.extents.range((after, 0)..)?.next() {
        let (lane, _) = row?.0.value();
        if !known.contains(&lane) {
            found.add(format!("there are requests in lane {lane}, which is gone"));
        }
        let Some(next) = lane.checked_add(1) else { break };
        after = next;
    }
    Ok(())
}

fn check_batches(view: &View, found: &mut Findings) -> Result<(), StoreError> {
    let next_batch = view.number(meta::NEXT_BATCH)?;
    for row in view.open(BATCHES)?.iter()? {
        let (id, value) = row?;
        let batch = decode_batch(value.value())?;
        if batch.id.0 != id.value() || batch.id.0 >= next_batch {
            found.add(format!("batch {} is there, and the next one's number is {next_batch}", batch.id));
        }
        for range in batch.ranges.iter().filter(|_| batch.ended.is_none()) {
            let state = view.lane_row(range.lane)?;
            if state.is_none_or(|state| {
                range.to.0 > state.next || !state.sealed.overlaps(range.from.0, range.to.0)
            }) {
                found.add(format!(
                    "batch {} is under way with what lane {} has not given it",
                    batch.id, range.lane.0
                ));
            }
        }
    }
    Ok(())
}
