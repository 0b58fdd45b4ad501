//! How many requests stand, whose identities lie in some ranges: what a job is, seen from the store.

use std::ops::ControlFlow;

use bytes::Bytes;
use offpeak_core::extent::Range;
use offpeak_core::words::{Place, Seq};

use super::extents::Indexed;
use super::lookup::View;
use super::outcomes::OutcomeRow;
use super::query::walk;
use crate::error::StoreError;
use crate::log::Location;
use crate::log::read::LogReader;
use crate::values::{BodyAt, Finished, FinishedChunk, Outcome, Tally, Unfinished};

/// What a request without a body counts for in a chunk, in bytes.
const REQUEST_BYTES: u64 = 256;

/// What an entry is, and what became of the request that first stood there.
struct Seen {
    origin: Place,
    entry: Indexed,
    latest: Place,
    row: Option<OutcomeRow>,
}

/// Visits the requests that first stood in a range, in order.
fn each(
    view: &View,
    range: Range,
    visit: &mut dyn FnMut(Seen) -> Result<ControlFlow<()>, StoreError>,
) -> Result<ControlFlow<()>, StoreError> {
    let mut result = Ok(ControlFlow::Continue(()));
    walk(view, range, &mut |origin, entry, has_outcome| {
        let latest = if has_outcome { view.latest(origin) } else { Ok((origin, None)) };
        result = latest.and_then(|(latest, row)| visit(Seen { origin, entry: *entry, latest, row }));
        match result {
            Ok(flow) => flow,
            Err(_) => ControlFlow::Break(()),
        }
    })?;
    result
}

/// How many are finished. What is swept is not counted at all.
pub(crate) fn tally(view: &View, ranges: &[Range]) -> Result<Tally, StoreError> {
    let mut tally = Tally::default();
    for &range in ranges {
        let flow = each(view, range, &mut |seen| {
            match seen.row {
                Some(OutcomeRow::Final { ending, .. }) if ending.is_success() => tally.succeeded += 1,
                Some(OutcomeRow::Final { .. }) => tally.failed += 1,
                Some(OutcomeRow::Swept) => {}
                None | Some(OutcomeRow::Requeued { .. }) => tally.unfinished += 1,
            }
            Ok(ControlFlow::Continue(()))
        })?;
        if flow.is_break() {
            break;
        }
    }
    Ok(tally)
}

/// The first that have no final outcome.
pub(crate) fn unfinished(view: &View, ranges: &[Range], most: usize) -> Result<Vec<Unfinished>, StoreError> {
    let mut found = Vec::new();
    for &range in ranges {
        let flow = each(view, range, &mut |seen| {
            if seen.row.is_some() {
                return Ok(ControlFlow::Continue(()));
            }
            if found.len() >= most {
                return Ok(ControlFlow::Break(()));
            }
            let attempts = match view.entry(seen.latest)? {
                Some(entry) => entry.attempts(),
                None => 0,
            };
            found.push(Unfinished { origin: seen.origin, current: seen.latest, attempts });
            Ok(ControlFlow::Continue(()))
        })?;
        if flow.is_break() {
            break;
        }
    }
    Ok(found)
}

/// A finished request, before its answer is read.
struct Ended {
    origin: Place,
    request: Location,
    answer: Location,
    outcome: Outcome,
}

/// The next finished requests with their answers, and what was tried again on the way to them.
pub(crate) fn finished(
    view: &View,
    log: &LogReader,
    ranges: Vec<Range>,
    max_bytes: usize,
) -> Result<FinishedChunk, StoreError> {
    let mut ended = Vec::new();
    let mut retried = Vec::new();
    let mut bytes = 0;
    let mut rest = None;
    let mut ranges = ranges.into_iter();
    while let Some(range) = ranges.next() {
        let mut stopped = None;
        let flow = each(view, range, &mut |seen| {
            if bytes >= max_bytes as u64 && !(ended.is_empty() && retried.is_empty()) {
                stopped = Some(seen.origin.seq);
                return Ok(ControlFlow::Break(()));
            }
            if seen.latest != seen.origin {
                view.follow(seen.origin, |place, finished_at| {
                    bytes += REQUEST_BYTES;
                    retried.push((place, finished_at));
                })?;
            }
            let Some(OutcomeRow::Final { at, attempts, batch, finished_at, ending }) = seen.row else {
                return Ok(ControlFlow::Continue(()));
            };
            bytes += at.len() + REQUEST_BYTES;
            let (meta, body) = (Bytes::new(), BodyAt(at));
            let outcome = Outcome { place: seen.latest, ending, attempts, batch, finished_at, meta, body };
            ended.push(Ended { origin: seen.origin, request: seen.entry.at, answer: at, outcome });
            Ok(ControlFlow::Continue(()))
        })?;
        if let (ControlFlow::Break(()), Some(from)) = (flow, stopped) {
            rest = Some(std::iter::once(Range { from, ..range }).chain(ranges).collect());
            break;
        }
    }
    Ok(FinishedChunk { finished: read(log, ended)?, retried, rest })
}

fn read(log: &LogReader, ended: Vec<Ended>) -> Result<Vec<Finished>, StoreError> {
    let answers: Vec<Location> = ended.iter().map(|one| one.answer).collect();
    let stored = log.read_all(&answers)?;
    ended
        .into_iter()
        .zip(stored)
        .map(|(one, stored)| {
            Ok(Finished {
                origin: one.origin,
                request_meta: log.read_meta(one.request)?,
                outcome: Outcome { meta: stored.meta, ..one.outcome },
                body: stored.body,
            })
        })
        .collect()
}

/// A batch has the entry.
pub(crate) fn is_sealed(view: &View, place: Place) -> Result<bool, StoreError> {
    let Seq(seq) = place.seq;
    Ok(view.lane_row(place.lane)?.is_some_and(|row| row.sealed.overlaps(seq, seq + 1)))
}
