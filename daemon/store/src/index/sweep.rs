//! Removes what nobody needs any more: whole segments with all rows that point into them, and ended batches.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use offpeak_core::words::{LaneId, Millis, Place, Seq, TenantId, Timestamp};
use redb::{Durability, ReadableTable, Table, WriteTransaction};

use super::database::Index;
use super::extents::summary;
use super::lookup::Rows;
use super::outcomes::OutcomeRow;
use super::tables::{BATCHES, EXTENTS, KEY_OF, KEYS, OUTCOMES, PlaceKey, SEGMENTS, TOUCHED};
use crate::error::StoreError;

/// Rows removed; the files may go after the next checkpoint.
#[derive(Debug, Default)]
pub(crate) struct Removed {
    /// Segments, with their bytes.
    pub(crate) segments: Vec<(u32, u64)>,
    pub(crate) batches: u32,
}

/// Removes the rows of segments before `active` in which nothing is unfinished and whose last request finished at
/// least `retention` ago, and of batches that ended that long ago. What a tenant has since one of the entries in `since`
/// stays.
pub(crate) fn sweep(
    index: &Index,
    now: Timestamp,
    retention: Millis,
    active: u32,
    since: &[Place],
) -> Result<Removed, StoreError> {
    let database = index.database()?;
    let mut removed = Removed::default();
    let view = index.view()?;
    let is_over = |finished: u64| Timestamp(finished).after(retention) <= now;
    let kept = kept_since(&view, since)?;
    let mut segments = removable(&view, active, is_over)?;
    let ended = view.batches(|batch| batch.ended.as_ref().is_some_and(|end| is_over(end.at.0)))?;
    drop(view);
    segments.retain(|(segment, _)| !kept.contains(segment));
    for (segment, bytes) in segments {
        // One transaction a segment bounds what the index holds in memory.
        let mut transaction = database.begin_write()?;
        transaction.set_durability(Durability::None)?;
        remove_segment(&transaction, segment)?;
        transaction.commit()?;
        removed.segments.push((segment, bytes));
    }
    // A store in which nothing is over is not written to.
    if ended.is_empty() {
        return Ok(removed);
    }
    let mut transaction = database.begin_write()?;
    transaction.set_durability(Durability::None)?;
    {
        let mut batches = transaction.open_table(BATCHES)?;
        for batch in ended {
            batches.remove(batch.id.0)?;
            removed.batches += 1;
        }
    }
    transaction.commit()?;
    Ok(removed)
}

/// The segments that hold something of a tenant from one of its entries on. The log is in the order of time, so that
/// what became of an entry lies in its segment or in a later one, in whatever lane of the tenant it went on.
fn kept_since(view: &super::View, since: &[Place]) -> Result<BTreeSet<u32>, StoreError> {
    let mut kept = BTreeSet::new();
    if since.is_empty() {
        return Ok(kept);
    }
    let tenants: BTreeMap<u32, TenantId> =
        view.lanes()?.into_iter().map(|(lane, key, _)| (lane.0, key.tenant)).collect();
    let mut first: HashMap<&TenantId, u32> = HashMap::new();
    let mut rows = Rows::default();
    for &place in since {
        if let Some(entry) = rows.entry(&view.extents, place)?
            && let Some(tenant) = tenants.get(&place.lane.0)
        {
            let segment = first.entry(tenant).or_insert(entry.at.segment);
            *segment = entry.at.segment.min(*segment);
        }
    }
    for (segment, lane) in view.touched()? {
        let from = tenants.get(&lane).and_then(|tenant| first.get(tenant));
        if from.is_some_and(|from| *from <= segment) {
            kept.insert(segment);
        }
    }
    Ok(kept)
}

fn removable(
    view: &super::View,
    active: u32,
    is_over: impl Fn(u64) -> bool,
) -> Result<Vec<(u32, u64)>, StoreError> {
    let mut segments = Vec::new();
    for (segment, row) in view.segment_rows()? {
        if segment < active && row.unfinished == 0 && is_over(row.latest_finish) {
            segments.push((segment, row.bytes));
        }
    }
    Ok(segments)
}

fn remove_segment(transaction: &WriteTransaction, segment: u32) -> Result<(), StoreError> {
    let mut touched = transaction.open_table(TOUCHED)?;
    let mut lanes = Vec::new();
    for row in touched.range((segment, 0)..=(segment, u32::MAX))? {
        let (key, row) = row?;
        lanes.push((key.value().1, row.value()));
    }
    let mut segments = transaction.open_table(SEGMENTS)?;
    segments.remove(segment)?;
    let mut removal = Removal {
        segment,
        segments,
        extents: transaction.open_table(EXTENTS)?,
        outcomes: transaction.open_table(OUTCOMES)?,
        keys: transaction.open_table(KEYS)?,
        key_of: transaction.open_table(KEY_OF)?,
    };
    for (lane, (first_entry, last_entry, first_outcome, last_outcome)) in lanes {
        touched.remove((segment, lane))?;
        if first_entry <= last_entry {
            removal.remove_entries(lane, first_entry, last_entry)?;
        }
        if first_outcome <= last_outcome {
            removal.remove_outcomes(lane, first_outcome, last_outcome)?;
        }
    }
    Ok(())
}

struct Removal<'t> {
    segment: u32,
    segments: Table<'t, u32, (u64, u64, u64)>,
    extents: Table<'t, PlaceKey, &'static [u8]>,
    outcomes: Table<'t, PlaceKey, &'static [u8]>,
    keys: Table<'t, &'static [u8; 16], (u64, u32, u64, u64)>,
    key_of: Table<'t, PlaceKey, &'static [u8; 16]>,
}

impl Removal<'_> {
    /// Removes entries whose bodies are in the segment, and what is known of them.
    fn remove_entries(&mut self, lane: u32, first: u64, last: u64) -> Result<(), StoreError> {
        let mut rows = Vec::new();
        for row in self.extents.range((lane, first)..=(lane, last))? {
            let (key, row) = row?;
            let (segment, extent) = summary(key.value(), row.value())?;
            if segment == self.segment {
                rows.push(extent);
            }
        }
        for extent in rows {
            let range = (lane, extent.first.0)..(lane, extent.end().0);
            self.extents.remove(range.start)?;
            self.remove_keys(range.clone())?;
            let mut gone = Vec::new();
            for row in self.outcomes.range(range)? {
                let (key, row) = row?;
                let keep = match OutcomeRow::decode(row.value())? {
                    // It goes with the segment where the answer is.
                    OutcomeRow::Final { at, .. } => {
                        at.segment != self.segment && self.segments.get(at.segment)?.is_some()
                    }
                    OutcomeRow::Requeued { .. } | OutcomeRow::Swept => false,
                };
                if !keep {
                    gone.push(key.value());
                }
            }
            for key in gone {
                self.outcomes.remove(key)?;
            }
        }
        Ok(())
    }

    fn remove_keys(&mut self, range: std::ops::Range<PlaceKey>) -> Result<(), StoreError> {
        let mut keys = Vec::new();
        for row in self.key_of.range(range)? {
            let (place, key) = row?;
            keys.push((place.value(), *key.value()));
        }
        for (place, key) in keys {
            self.key_of.remove(place)?;
            // An expired key may stand for a later request by now.
            let stands_for = self.keys.get(&key)?.map(|row| (row.value().1, row.value().2));
            if stands_for == Some(place) {
                self.keys.remove(&key)?;
            }
        }
        Ok(())
    }

    /// Removes outcomes whose answers are in the segment. Where the entry stays, because others need its segment,
    /// it must be remembered that it is finished.
    fn remove_outcomes(&mut self, lane: u32, first: u64, last: u64) -> Result<(), StoreError> {
        let mut here = Vec::new();
        for row in self.outcomes.range((lane, first)..=(lane, last))? {
            let (key, row) = row?;
            if let OutcomeRow::Final { at, .. } = OutcomeRow::decode(row.value())?
                && at.segment == self.segment
            {
                here.push(key.value());
            }
        }
        let swept = OutcomeRow::Swept.encode();
        let mut rows = Rows::default();
        for (lane, seq) in here {
            let place = Place { lane: LaneId(lane), seq: Seq(seq) };
            if rows.entry(&self.extents, place)?.is_some() {
                self.outcomes.insert((lane, seq), swept.as_slice())?;
            } else {
                self.outcomes.remove((lane, seq))?;
            }
        }
        Ok(())
    }
}
