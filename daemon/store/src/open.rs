//! Opening: takes the folder, brings the index up to the log, finds the log's end.

use std::sync::Arc;

use offpeak_core::words::Timestamp;

use crate::disk::{Disk, Guard};
use crate::engine::Engine;
use crate::error::StoreError;
use crate::index::tables::meta;
use crate::index::{Index, View, apply, query};
use crate::keeper::{Keeper, Tools};
use crate::log::Position;
use crate::log::read::LogReader;
use crate::log::recover::{self, Replayed};
use crate::log::segment::HEADER;
use crate::log::writer::LogWriter;
use crate::options::Options;
use crate::shared::Shared;
use crate::values::{LaneState, Quarantined, Recovered, Stats};

/// A clock that is so many milliseconds behind what was stored was probably set back.
const CLOCK_SLACK: u64 = 60_000;
/// The index is made durable each time so many records were read from the log, so that a crash while opening does not
/// begin from the start.
const RECORDS_SAVED: u64 = 1_000_000;

/// The parts of an open store.
#[derive(Debug)]
pub(crate) struct Opened {
    pub(crate) engine: Engine,
    pub(crate) keeper: Keeper,
    pub(crate) shared: Arc<Shared>,
    pub(crate) recovered: Recovered,
    pub(crate) install: u64,
}

pub(crate) fn open(disk: Arc<dyn Disk>, options: Options, now: Timestamp) -> Result<Opened, StoreError> {
    options.check()?;
    let guard: Guard = disk.lock()?.ok_or_else(|| StoreError::Locked { folder: options.folder.clone() })?;
    let mut segments = disk.segments()?;
    segments.sort_unstable();
    let (index, is_new) = open_index(&disk, options.index_cache_bytes, &segments)?;
    if is_new {
        let install = first_install(disk.as_ref(), &segments, options.install_id_if_new)?;
        index.create(install, Position { segment: 1, offset: HEADER })?;
    }
    let index = Arc::new(index);
    let view = index.view()?;
    let (install, applied) = (view.number(meta::INSTALL)?, view.applied()?);
    remove_leftovers(disk.as_ref(), &view, &mut segments, applied)?;
    drop(view);

    let mut replayed = catch_up(disk.as_ref(), &index, install, &segments, applied)?;
    if let Some(unbegun) = replayed.unbegun {
        disk.remove(unbegun)?;
        segments.retain(|&segment| segment != unbegun);
    }
    let writer = open_writer(&disk, install, &options, &segments, applied, &mut replayed)?;
    let end = writer.end();
    // Segments whose number was not in the index are by now.
    apply::apply(index.database()?.as_ref(), [(&[][..], end)].into_iter())?;
    let view = index.view()?;
    warn_of_clock(&view, now)?;
    let recovered = recovered(&view, replayed)?;
    let stats = first_stats(&view)?;
    drop(view);

    let log = Arc::new(LogReader::new(disk.clone(), install));
    let tools = Tools {
        disk,
        install,
        index: index.clone(),
        log: log.clone(),
        checkpoint_bytes: options.checkpoint_bytes,
        retention: options.retention,
    };
    let keeper = Keeper::new(tools, end);
    let engine = Engine::new(writer, index.clone())?;
    let shared = Arc::new(Shared::new(index, log, options.on_appended, end, stats, guard));
    Ok(Opened { engine, keeper, shared, recovered, install })
}

/// Opens the index. One that is not whole, because a crash came while it was made or for another reason, is made again
/// if the log has everything that belongs in it.
fn open_index(
    disk: &Arc<dyn Disk>,
    cache_bytes: usize,
    segments: &[u32],
) -> Result<(Index, bool), StoreError> {
    match Index::open(disk.clone(), cache_bytes) {
        Err(error) if is_damaged(&error) && has_all(segments) => {
            tracing::warn!(%error, "the index is not whole; it is made again from the log");
            disk.remove_index()?;
            Index::open(disk.clone(), cache_bytes)
        }
        other => other,
    }
}

fn is_damaged(error: &StoreError) -> bool {
    match error {
        StoreError::Io(error) => error.kind() == std::io::ErrorKind::InvalidData,
        StoreError::Index(error) => matches!(**error, redb::Error::Corrupted(_)),
        StoreError::IndexDamaged(_) => true,
        _ => false,
    }
}

/// Nothing was swept yet: every segment from the first on is there. Otherwise outcomes may be in the index alone, and
/// without them requests would be sent, and paid, again.
fn has_all(segments: &[u32]) -> bool {
    (1..).zip(segments).all(|(expected, &segment)| segment == expected)
}

/// The number that names the store, for an index that has to be made.
fn first_install(disk: &dyn Disk, segments: &[u32], install_if_new: u64) -> Result<u64, StoreError> {
    if !has_all(segments) {
        return Err(StoreError::IndexMissing);
    }
    Ok(recover::install_id(disk, segments)?.unwrap_or(install_if_new))
}

/// Removes files whose rows a sweep has removed before a crash came.
fn remove_leftovers(
    disk: &dyn Disk,
    view: &View,
    segments: &mut Vec<u32>,
    applied: Position,
) -> Result<(), StoreError> {
    let known: Vec<u32> = view.segment_rows()?.into_iter().map(|(segment, _)| segment).collect();
    for &segment in segments.iter() {
        if segment < applied.segment && known.binary_search(&segment).is_err() {
            disk.remove(segment)?;
        }
    }
    segments.retain(|&segment| segment >= applied.segment || known.binary_search(&segment).is_ok());
    Ok(())
}

fn catch_up(
    disk: &dyn Disk,
    index: &Index,
    install: u64,
    segments: &[u32],
    from: Position,
) -> Result<Replayed, StoreError> {
    let database = index.database()?;
    let mut unsaved = 0;
    let replayed = recover::replay(disk, install, segments, from, None, &mut |records, upto| {
        apply::apply(&database, [(records, upto)].into_iter())?;
        unsaved += records.len() as u64;
        if unsaved >= RECORDS_SAVED {
            unsaved = 0;
            index.make_durable()?;
        }
        Ok(())
    })?;
    if replayed.records > 0 {
        tracing::info!(records = replayed.records, "the index was brought up to the log");
    }
    Ok(replayed)
}

/// Opens the log for writing behind its last valid record.
fn open_writer(
    disk: &Arc<dyn Disk>,
    install: u64,
    options: &Options,
    segments: &[u32],
    applied: Position,
    replayed: &mut Replayed,
) -> Result<LogWriter, StoreError> {
    let create = |segment| LogWriter::create(disk.clone(), install, segment, options.segment_bytes);
    let last = segments.last().copied().unwrap_or(0);
    match replayed.end {
        Some(end) if last >= applied.segment => {
            LogWriter::resume(disk.clone(), install, end, options.segment_bytes)
        }
        // The very first segment.
        _ if last == 0 && applied == start_of(1) => create(1),
        _ => {
            tracing::error!(segment = applied.segment, "the log's last segment is gone");
            let lost = Quarantined { segment: applied.segment, offset: 0, bytes: 0 };
            replayed.quarantined.push(lost);
            create(last.max(applied.segment) + 1)
        }
    }
}

const fn start_of(segment: u32) -> Position {
    Position { segment, offset: HEADER }
}

fn warn_of_clock(view: &View, now: Timestamp) -> Result<(), StoreError> {
    let latest = view.segment_rows()?.into_iter().map(|(_, row)| row.latest_finish).max().unwrap_or(0);
    if now.0.saturating_add(CLOCK_SLACK) < latest {
        tracing::warn!(
            behind_ms = latest - now.0,
            "the clock is behind what the store holds: set it right, deadlines depend on it"
        );
    }
    Ok(())
}

fn recovered(view: &View, replayed: Replayed) -> Result<Recovered, StoreError> {
    let mut lanes = Vec::new();
    for (id, key, row) in view.lanes()? {
        let extents = query::unsealed(view, id, &row)?;
        let (next, head) = (offpeak_core::words::Seq(row.next), offpeak_core::words::Seq(row.sealed.head()));
        lanes.push(LaneState { id, key, next, head, extents });
    }
    Ok(Recovered {
        lanes,
        open_batches: view.open_batches()?,
        replayed: replayed.records,
        cut_off_bytes: replayed.cut_off_bytes,
        quarantined: replayed.quarantined,
    })
}

fn first_stats(view: &View) -> Result<Stats, StoreError> {
    let segments = view.segment_rows()?;
    Ok(Stats {
        log_bytes: segments.iter().map(|(_, row)| row.bytes).sum(),
        segments: u32::try_from(segments.len()).unwrap_or(u32::MAX),
        ..Stats::default()
    })
}
