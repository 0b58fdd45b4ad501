//! What must be true of an index at any time. For tests.

use std::collections::{BTreeMap, BTreeSet};

use offpeak_core::words::{LaneId, Place, Seq};
use redb::{ReadOnlyTable, ReadableTable, TableDefinition};

use super::extents::Row;
use super::lookup::{Rows, View};
use super::outcomes::OutcomeRow;
use super::tables::{KEY_OF, KEYS, TOUCHED, key};

/// Panics if something in the index points to what is not there, or if a count is wrong.
pub(crate) fn check(view: &View, segments_on_disk: &BTreeSet<u32>) {
    let segments = view.segment_rows().unwrap();
    let known: BTreeSet<u32> = segments.iter().map(|(segment, _)| *segment).collect();
    assert_eq!(&known, segments_on_disk, "segments of the index and of the disk");
    let unfinished = check_extents(view, &known);
    for (segment, row) in segments {
        assert_eq!(
            unfinished.get(&segment).copied().unwrap_or(0),
            row.unfinished,
            "unfinished in segment {segment}"
        );
    }
    check_outcomes(view, &known);
    check_keys(view);
    let touched: ReadOnlyTable<(u32, u32), (u64, u64, u64, u64)> = table(view, TOUCHED);
    for row in touched.iter().unwrap() {
        assert!(known.contains(&row.unwrap().0.value().0), "touched");
    }
}

fn table<K: redb::Key + 'static, V: redb::Value + 'static>(
    view: &View,
    definition: TableDefinition<'_, K, V>,
) -> ReadOnlyTable<K, V> {
    view.open(definition).unwrap()
}

/// Counts the requests that are not finished, by segment.
fn check_extents(view: &View, known: &BTreeSet<u32>) -> BTreeMap<u32, u64> {
    let mut unfinished: BTreeMap<u32, u64> = BTreeMap::new();
    let mut before: Option<Row> = None;
    for row in view.extents.iter().unwrap() {
        let (at, value) = row.unwrap();
        let row = Row::decode(at.value(), value.value()).unwrap();
        assert!(known.contains(&row.segment), "extent of segment {}", row.segment);
        let follows =
            |before: &Row| before.extent.lane != row.extent.lane || before.end() <= row.extent.first.0;
        assert!(before.as_ref().is_none_or(follows), "rows overlap");
        for (place, entry) in row.entries(0, u64::MAX) {
            let is_open = view.outcomes.get(key(place)).unwrap().is_none();
            *unfinished.entry(entry.at.segment).or_default() += u64::from(is_open);
        }
        before = Some(row);
    }
    unfinished
}

fn check_outcomes(view: &View, known: &BTreeSet<u32>) {
    let mut rows = Rows::default();
    for row in view.outcomes.iter().unwrap() {
        let (at, value) = row.unwrap();
        let (lane, seq) = at.value();
        let place = Place { lane: LaneId(lane), seq: Seq(seq) };
        match OutcomeRow::decode(value.value()).unwrap() {
            OutcomeRow::Final { at, .. } => assert!(known.contains(&at.segment), "outcome of {place}"),
            OutcomeRow::Requeued { .. } | OutcomeRow::Swept => {
                assert!(rows.entry(&view.extents, place).unwrap().is_some(), "outcome of {place}");
            }
        }
    }
}

fn check_keys(view: &View) {
    let mut rows = Rows::default();
    let key_of = table(view, KEY_OF);
    for row in table(view, KEYS).iter().unwrap() {
        let (idempotency, row) = row.unwrap();
        let (_, lane, seq, _) = row.value();
        let place = Place { lane: LaneId(lane), seq: Seq(seq) };
        assert!(rows.entry(&view.extents, place).unwrap().is_some(), "key of {place}");
        assert_eq!(key_of.get(key(place)).unwrap().map(|key| *key.value()), Some(*idempotency.value()));
    }
    for row in key_of.iter().unwrap() {
        let (lane, seq) = row.unwrap().0.value();
        let place = Place { lane: LaneId(lane), seq: Seq(seq) };
        assert!(rows.entry(&view.extents, place).unwrap().is_some(), "key of {place}");
    }
}
