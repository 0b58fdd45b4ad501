//! Reads all that a store has and says what is wrong with it, without changing anything.

use std::collections::{BTreeMap, BTreeSet};

use redb::Database;

use crate::disk::{Disk, Guard};
use crate::error::StoreError;
use crate::index::check::{self, Expected};
use crate::index::lookup::Rows;
use crate::index::outcomes::OutcomeRow;
use crate::index::tables::meta;
use crate::index::{View, database};
use crate::log::recover::{self, Replayed};
use crate::log::{Change, Logged, Position};
use crate::migrate::{self, SCHEMA};
use crate::options::Options;
use crate::values::{Audit, Compacted, Findings};

/// The index is open and the whole place is ours.
struct Alone {
    database: Database,
    _guard: Guard,
}

fn open_alone(disk: &dyn Disk, options: &Options) -> Result<Alone, StoreError> {
    let guard = disk.lock()?.ok_or_else(|| StoreError::Locked { folder: options.folder.clone() })?;
    // Opening would make one.
    if disk.index_bytes() == 0 {
        return Err(StoreError::NoIndex { folder: options.folder.clone() });
    }
    let database = database::open_as_it_is(disk, options.index_cache_bytes)?;
    match migrate::version(&database)? {
        None => Err(StoreError::NoIndex { folder: options.folder.clone() }),
        Some(found) if found < SCHEMA => Err(StoreError::SchemaOld { found, known: SCHEMA }),
        Some(found) => {
            migrate::check(found)?;
            Ok(Alone { database, _guard: guard })
        }
    }
}

/// Checks the index by itself, every record of the log by its checksums, and each against the other.
pub(crate) fn audit(disk: &dyn Disk, options: &Options) -> Result<Audit, StoreError> {
    database::contained(|| look_at(disk, options))
}

fn look_at(disk: &dyn Disk, options: &Options) -> Result<Audit, StoreError> {
    let mut alone = open_alone(disk, options)?;
    let mut found = Findings::default();
    if !alone.database.check_integrity()? {
        found.add(
            "pages of the index did not have their checksums; they were restored from the last good state"
                .to_owned(),
        );
    }
    let Alone { database, _guard } = alone;
    let view = View::new(std::sync::Arc::new(database))?;
    let applied = view.applied()?;
    let on_disk: BTreeSet<u32> = disk.segments()?.into_iter().collect();
    let expected = check::check(&view, &on_disk, applied, &mut found)?;
    let mut audit = Audit {
        schema: SCHEMA,
        lanes: view.lanes()?.len() as u64,
        open_batches: view.open_batches()?.len() as u64,
        requests: expected.requests.values().sum(),
        answers: expected.answers.values().sum(),
        unfinished: expected.unfinished,
        segments: on_disk.len() as u64,
        index_bytes: disk.index_bytes(),
        ..Audit::default()
    };
    let known: BTreeSet<u32> = view.segment_rows()?.into_iter().map(|(segment, _)| segment).collect();
    let mut reading = Reading { view: &view, applied, rows: Rows::default(), seen: BTreeMap::new() };
    for &segment in &on_disk {
        if segment < applied.segment && !known.contains(&segment) {
            // A sweep was interrupted; the next start removes it.
            audit.leftovers += 1;
            continue;
        }
        let is_last = on_disk.last() == Some(&segment);
        reading.read(disk, segment, is_last, &mut audit, &mut found)?;
    }
    reading.compare(&expected, &mut found);
    audit.findings = found.texts;
    audit.more_findings = found.more;
    Ok(audit)
}

/// Records of a segment that the index knows as it should.
#[derive(Debug, Default, Clone, Copy)]
struct Seen {
    requests: u64,
    answers: u64,
}

/// The log, read from its beginning and compared with the index.
struct Reading<'a> {
    view: &'a View,
    applied: Position,
    rows: Rows,
    seen: BTreeMap<u32, Seen>,
}

impl Reading<'_> {
    fn read(
        &mut self,
        disk: &dyn Disk,
        segment: u32,
        is_last: bool,
        audit: &mut Audit,
        found: &mut Findings,
    ) -> Result<(), StoreError> {
        let install = self.view.number(meta::INSTALL)?;
        let mut behind = 0;
        let mut replayed = Replayed::default();
        let sink = &mut |records: &[Logged], _: Position| {
            for logged in records {
                let at = Position { segment, offset: logged.at.offset };
                if at < self.applied {
                    self.check(logged, found)?;
                } else {
                    behind += 1;
                }
            }
            Ok(())
        };
        recover::look_through(disk, install, segment, is_last, &mut replayed, sink)?;
        audit.records += replayed.records;
        audit.behind_index += behind;
        audit.torn_bytes += replayed.cut_off_bytes;
        audit.log_bytes += replayed.end.map_or(0, |end| u64::from(end.offset));
        for part in replayed.quarantined {
            found.add(format!(
                "segment {segment} is damaged at byte {}, for {} bytes",
                part.offset, part.bytes
            ));
        }
        Ok(())
    }

    /// One record that the index must have.
    fn check(&mut self, logged: &Logged, found: &mut Findings) -> Result<(), StoreError> {
        match &logged.change {
            Change::Request(request) => {
                let entry = self.rows.entry(&self.view.extents, request.place)?;
                if entry.is_some_and(|entry| entry.at == logged.at) {
                    self.seen.entry(logged.at.segment).or_default().requests += 1;
                } else {
                    found.add(format!("the index does not have {} where the log has it", request.place));
                }
            }
            Change::Ended(ended) => match self.view.outcome(ended.place)? {
                Some(OutcomeRow::Final { at, .. }) if at == logged.at => {
                    self.seen.entry(at.segment).or_default().answers += 1;
                }
                _ => found
                    .add(format!("the index does not have the outcome of {} that the log has", ended.place)),
            },
            Change::LaneCreated { .. }
            | Change::Requeued(_)
            | Change::BatchSealed(_)
            | Change::BatchAdvanced { .. }
            | Change::BatchEnded { .. }
            | Change::Documents(_)
            | Change::LaneRemoved { .. } => {}
        }
        Ok(())
    }

    /// What the index has and the log has not.
    fn compare(&self, expected: &Expected, found: &mut Findings) {
        for (what, counts) in [("requests", &expected.requests), ("answers", &expected.answers)] {
            for (segment, count) in counts {
                let seen = self.seen.get(segment).copied().unwrap_or_default();
                let seen = if what == "requests" { seen.requests } else { seen.answers };
                if seen < *count {
                    found.add(format!("{} {what} of segment {segment} cannot be read", count - seen));
                }
            }
        }
    }
}

/// Gives back the room in the index file that nothing needs.
pub(crate) fn compact(disk: &dyn Disk, options: &Options) -> Result<Compacted, StoreError> {
    database::contained(|| shrink(disk, options))
}

fn shrink(disk: &dyn Disk, options: &Options) -> Result<Compacted, StoreError> {
    let mut alone = open_alone(disk, options)?;
    let before = disk.index_bytes();
    // Each round moves what it can; the last one finds nothing more.
    while alone.database.compact()? {}
    drop(alone);
    Ok(Compacted { before, after: disk.index_bytes() })
}
