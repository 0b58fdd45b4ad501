//! Reading runs of entries.

use std::collections::BTreeSet;
use std::ops::ControlFlow;

use offpeak_core::extent::{Extent, Range};
use offpeak_core::outcome::Ending;
use offpeak_core::words::{LaneId, Place, Seq, Timestamp};

use super::extents::{Indexed, Row};
use super::lanes::LaneRow;
use super::lookup::{Rows, View, row_before};
use super::outcomes::OutcomeRow;
use super::tables::key;
use crate::error::StoreError;
use crate::log::read::LogReader;
use crate::log::{Change, Location};
use crate::values::{BodyAt, Chunk, Counts, Damaged, Entry, IdleLane, Outcome, Selection, Standing, Waiting};

/// What an entry without a body counts for in a chunk, in bytes.
const ENTRY_BYTES: u64 = 256;
/// Extents given to the scheduler have at most so many entries.
const EXTENT_ENTRIES: u32 = 512;
/// How many rows of a lane, from its end, are searched for a body.
const ROWS_SEARCHED: usize = 640;

/// An entry that was found, and where it stands.
type Found = (Place, Indexed);

/// Lanes of which nothing is left but their rows: everything in them was swept, and so were their batches.
pub(crate) fn idle_lanes(view: &View) -> Result<Vec<IdleLane>, StoreError> {
    let mut used: BTreeSet<u32> = view.touched()?.into_iter().map(|(_, lane)| lane).collect();
    for batch in view.batches(|_| true)? {
        used.extend(batch.ranges.iter().map(|range| range.lane.0));
    }
    let mut idle = Vec::new();
    for (id, _, row) in view.lanes()? {
        let has_entries = view.extents.range((id.0, 0)..=(id.0, u64::MAX))?.next().is_some();
        if !used.contains(&id.0) && !has_entries {
            idle.push(IdleLane { id, next: Seq(row.next) });
        }
    }
    Ok(idle)
}

/// The next entries of a selection that have no outcome, with their bodies.
pub(crate) fn requests(
    view: &View,
    log: &LogReader,
    what: Selection,
    max_bytes: usize,
) -> Result<Chunk, StoreError> {
    let max_bytes = max_bytes as u64;
    let (found, rest) = match what {
        Selection::Ranges(ranges) => in_ranges(view, ranges, max_bytes)?,
        Selection::Places(places) => in_places(view, places, max_bytes)?,
    };
    let (entries, damaged) = read_sound(view, log, &found)?;
    Ok(Chunk { entries, damaged, rest })
}

fn in_ranges(
    view: &View,
    ranges: Vec<Range>,
    max_bytes: u64,
) -> Result<(Vec<Found>, Option<Selection>), StoreError> {
    let mut found = Vec::new();
    let mut bytes = 0;
    let mut ranges = ranges.into_iter();
    while let Some(range) = ranges.next() {
        let mut stopped = None;
        walk(view, range, &mut |place, entry, is_finished| {
            if is_finished {
                return ControlFlow::Continue(());
            }
            if bytes >= max_bytes && !found.is_empty() {
                stopped = Some(place.seq);
                return ControlFlow::Break(());
            }
            bytes += entry.at.len() + ENTRY_BYTES;
            found.push((place, *entry));
            ControlFlow::Continue(())
        })?;
        if let Some(from) = stopped {
            let rest = std::iter::once(Range { from, ..range }).chain(ranges).collect();
            return Ok((found, Some(Selection::Ranges(rest))));
        }
    }
    Ok((found, None))
}

fn in_places(
    view: &View,
    mut places: Vec<Place>,
    max_bytes: u64,
) -> Result<(Vec<Found>, Option<Selection>), StoreError> {
    let mut found = Vec::new();
    let mut bytes = 0;
    let mut rows = Rows::default();
    for at in 0..places.len() {
        let Some(&place) = places.get(at) else { break };
        if bytes >= max_bytes && !found.is_empty() {
            return Ok((found, Some(Selection::Places(places.split_off(at)))));
        }
        if view.outcomes.get(key(place))?.is_none()
            && let Some(entry) = rows.entry(&view.extents, place)?
        {
            bytes += entry.at.len() + ENTRY_BYTES;
            found.push((place, entry));
        }
    }
    Ok((found, None))
}

/// Reads what the log has of these entries, and sets those aside whose records are damaged: nobody else waits for them.
fn read_sound(
    view: &View,
    log: &LogReader,
    found: &[Found],
) -> Result<(Vec<Entry>, Vec<Damaged>), StoreError> {
    match read_entries(log, found) {
        Err(StoreError::Corrupt { .. }) => {}
        read => return Ok((read?, Vec::new())),
    }
    let (mut entries, mut damaged) = (Vec::new(), Vec::new());
    for one in found {
        match read_entries(log, &[*one]) {
            Ok(read) => entries.extend(read),
            Err(why @ StoreError::Corrupt { .. }) => {
                damaged.push(Damaged { waiting: about(view, one.0, &one.1)?, why });
            }
            Err(error) => return Err(error),
        }
    }
    Ok((entries, damaged))
}

/// What the index knows of an entry.
pub(crate) fn about(view: &View, place: Place, entry: &Indexed) -> Result<Waiting, StoreError> {
    let origin = entry.origin(place);
    let first = if origin == place { None } else { view.entry(origin)? };
    Ok(Waiting {
        extent: entry.extent(place),
        origin,
        attempts: entry.attempts(),
        due: first.map_or(entry.deadline, |first| first.deadline.max(entry.deadline)),
    })
}

/// Reads what the log has of these entries.
pub(crate) fn read_entries(log: &LogReader, found: &[Found]) -> Result<Vec<Entry>, StoreError> {
    let locations: Vec<Location> = found.iter().map(|(_, entry)| entry.at).collect();
    let stored = log.read_all(&locations)?;
    let mut entries = Vec::with_capacity(found.len());
    for ((place, entry), stored) in found.iter().zip(stored) {
        let origin = entry.origin(*place);
        let Change::Request(request) = stored.change else {
            return Err(corrupt(entry.at));
        };
        if request.place != origin {
            return Err(corrupt(entry.at));
        }
        entries.push(Entry {
            place: *place,
            origin,
            attempts: entry.attempts(),
            arrived: entry.arrived,
            deadline: entry.deadline,
            not_before: entry.again.map_or(Timestamp(0), |again| again.not_before),
            tokens: entry.tokens,
            body_hash: entry.body_hash,
            flags: request.flags,
            meta: stored.meta,
            body: stored.body,
        });
    }
    Ok(entries)
}

fn corrupt(at: Location) -> StoreError {
    StoreError::Corrupt { segment: at.segment, offset: at.offset }
}

/// Visits the entries of a range in order; the flag says that an entry has an outcome.
pub(crate) fn walk(
    view: &View,
    range: Range,
    visit: &mut dyn FnMut(Place, &Indexed, bool) -> ControlFlow<()>,
) -> Result<(), StoreError> {
    if range.is_empty() {
        return Ok(());
    }
    let (lane, from, to) = (range.lane.0, range.from.0, range.to.0);
    let mut finished = view.outcomes.range((lane, from)..(lane, to))?;
    let mut next_finished = next_seq(&mut finished)?;
    let mut row_at = |row: &Row| -> Result<ControlFlow<()>, StoreError> {
        for (place, entry) in row.entries(from, to) {
            while next_finished.is_some_and(|seq| seq < place.seq.0) {
                next_finished = next_seq(&mut finished)?;
            }
            if visit(place, &entry, next_finished == Some(place.seq.0)).is_break() {
                return Ok(ControlFlow::Break(()));
            }
        }
        Ok(ControlFlow::Continue(()))
    };
    if let Some(row) = row_before(&view.extents, Place { lane: range.lane, seq: range.from })?
        && row_at(&row)?.is_break()
    {
        return Ok(());
    }
    for row in view.extents.range((lane, from + 1)..(lane, to.max(from + 1)))? {
        let (key, value) = row?;
        if row_at(&Row::decode(key.value(), value.value())?)?.is_break() {
            break;
        }
    }
    Ok(())
}

fn next_seq(rows: &mut redb::Range<'_, (u32, u64), &'static [u8]>) -> Result<Option<u64>, StoreError> {
    Ok(rows.next().transpose()?.map(|(key, _)| key.value().1))
}

/// The places of these ranges whose entries have no outcome.
pub(crate) fn missing(view: &View, ranges: &[Range]) -> Result<Vec<Place>, StoreError> {
    let mut places = Vec::new();
    for &range in ranges {
        walk(view, range, &mut |place, _, is_finished| {
            if !is_finished {
                places.push(place);
            }
            ControlFlow::Continue(())
        })?;
    }
    Ok(places)
}

/// The entries of a range that have no outcome.
pub(crate) fn waiting(view: &View, range: Range) -> Result<Vec<Waiting>, StoreError> {
    let mut found: Vec<Found> = Vec::new();
    walk(view, range, &mut |place, entry, is_finished| {
        if !is_finished {
            found.push((place, *entry));
        }
        ControlFlow::Continue(())
    })?;
    found.iter().map(|(place, entry)| about(view, *place, entry)).collect()
}

/// How many of these ranges' entries have an outcome. Entries that are swept are finished.
pub(crate) fn counts(view: &View, ranges: &[Range]) -> Result<Counts, StoreError> {
    let total = ranges.iter().map(Range::len).sum();
    let missing = missing(view, ranges)?.len() as u64;
    Ok(Counts { total, finished: total - missing })
}

/// The identity of a request with this body that is not finished, or was finished since; the latest first.
pub(crate) fn find_by_body(
    view: &View,
    lanes: &[LaneId],
    body_hash: u64,
    finished_since: Timestamp,
) -> Result<Option<Place>, StoreError> {
    for lane in lanes {
        for row in view.extents.range((lane.0, 0)..=(lane.0, u64::MAX))?.rev().take(ROWS_SEARCHED) {
            let (at, value) = row?;
            let row = Row::decode(at.value(), value.value())?;
            let alike: Vec<Found> =
                row.entries(0, u64::MAX).filter(|(_, entry)| entry.body_hash == body_hash).collect();
            for (place, entry) in alike.iter().rev() {
                let is_wanted = match view.outcomes.get(key(*place))? {
                    None => true,
                    Some(row) => match OutcomeRow::decode(row.value())? {
                        OutcomeRow::Final { finished_at, .. } => finished_at >= finished_since,
                        OutcomeRow::Requeued { .. } | OutcomeRow::Swept => false,
                    },
                };
                if is_wanted {
                    return Ok(Some(entry.origin(*place)));
                }
            }
        }
    }
    Ok(None)
}

/// What no batch has of a lane, in order.
pub(crate) fn unsealed(view: &View, lane: LaneId, row: &LaneRow) -> Result<Vec<Extent>, StoreError> {
    let mut extents: Vec<Extent> = Vec::new();
    let mut add = |parts: Vec<Extent>| {
        for part in parts {
            match extents.last_mut() {
                Some(last) if last.goes_on_with(&part) && last.count + part.count <= EXTENT_ENTRIES => {
                    last.join(&part);
                }
                _ => extents.push(part),
            }
        }
    };
    for (from, to) in row.sealed.gaps(0, row.next) {
        if let Some(row) = row_before(&view.extents, Place { lane, seq: Seq(from) })? {
            add(row.parts(from, to));
        }
        for row in view.extents.range((lane.0, from + 1)..(lane.0, to.max(from + 1)))? {
            let (at, value) = row?;
            add(Row::decode(at.value(), value.value())?.parts(from, to));
        }
    }
    Ok(extents)
}

/// How a request stands.
pub(crate) fn standing(view: &View, log: &LogReader, origin: Place) -> Result<Option<Standing>, StoreError> {
    let (place, row) = view.latest(origin)?;
    Ok(match row {
        None => {
            view.entry(place)?.map(|entry| Standing::Waiting { current: place, attempts: entry.attempts() })
        }
        Some(OutcomeRow::Final { at, attempts, batch, finished_at, ending }) => {
            let (meta, body) = (log.read_meta(at)?, BodyAt(at));
            Some(Standing::Final(Outcome { place, ending, attempts, batch, finished_at, meta, body }))
        }
        // `latest` has followed these to their end.
        Some(OutcomeRow::Requeued { .. } | OutcomeRow::Swept) => None,
    })
}

/// Which of these requests have no outcome and wait at just these places. What the index knows suffices: no log is read.
pub(crate) fn wait_here(view: &View, places: &[Place]) -> Result<Vec<bool>, StoreError> {
    let waits = |place: &Place| {
        let (current, row) = view.latest(*place)?;
        Ok(row.is_none() && current == *place && view.entry(current)?.is_some())
    };
    places.iter().map(waits).collect()
}

/// The ending of a request that was cancelled: by its caller, whether or not it had left in a batch.
pub(crate) fn cancelled() -> Ending {
    Ending::Failed {
        ran: offpeak_core::outcome::DidItRun::NotSent,
        code: "cancelled".to_owned(),
        message:
            "The request was cancelled. If it had left in a batch by then, the provider may have run and \
                  charged it; its answer is dropped."
                .to_owned(),
    }
}
