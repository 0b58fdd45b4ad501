//! The index's side of the store: applies durable groups, makes checkpoints, sweeps, and opens the index again after
//! its disk ran full. Synchronous and single-threaded, as the log's side is.

use std::collections::VecDeque;
use std::sync::Arc;

use offpeak_core::words::{Millis, Place, Timestamp};

use crate::disk::Disk;
use crate::error::StoreError;
use crate::index::{Group, Index, apply, sweep};
use crate::log::Position;
use crate::log::read::LogReader;
use crate::log::recover::replay;
use crate::values::Swept;

/// The index's side of the store.
#[derive(Debug)]
pub(crate) struct Keeper {
    disk: Arc<dyn Disk>,
    install: u64,
    index: Arc<Index>,
    log: Arc<LogReader>,
    checkpoint_bytes: u64,
    retention: Millis,
    /// Durable groups that the index does not have.
    pending: VecDeque<Group>,
    /// Groups that the index got when a save failed right after: nobody has been told of them.
    untold: u64,
    /// The index had everything before this; after a failure it may have less until it has caught up.
    applied: Position,
    /// Log that would have to be read again after a crash, in bytes.
    unsaved_bytes: u64,
    has_unsaved: bool,
    failed: Option<StoreError>,
}

/// What a keeper works with.
#[derive(Debug)]
pub(crate) struct Tools {
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) install: u64,
    pub(crate) index: Arc<Index>,
    pub(crate) log: Arc<LogReader>,
    pub(crate) checkpoint_bytes: u64,
    pub(crate) retention: Millis,
}

impl Keeper {
    pub(crate) fn new(tools: Tools, applied: Position) -> Self {
        let Tools { disk, install, index, log, checkpoint_bytes, retention } = tools;
        Self {
            disk,
            install,
            index,
            log,
            checkpoint_bytes,
            retention,
            pending: VecDeque::new(),
            untold: 0,
            applied,
            unsaved_bytes: 0,
            has_unsaved: true,
            failed: None,
        }
    }

    /// The index has everything before this, unless it failed.
    pub(crate) const fn applied(&self) -> Position {
        self.applied
    }

    /// Why the index cannot be used now.
    pub(crate) const fn failed(&self) -> Option<&StoreError> {
        self.failed.as_ref()
    }

    /// There is something to make durable.
    pub(crate) const fn has_unsaved(&self) -> bool {
        self.has_unsaved
    }

    /// Takes durable groups, in the log's order.
    pub(crate) fn add(&mut self, groups: impl IntoIterator<Item = Group>) {
        self.pending.extend(groups);
    }

    /// Applies what is pending; returns how many groups. After a failure it first opens the index again.
    pub(crate) fn apply(&mut self) -> Result<u64, StoreError> {
        let applied = self.try_apply();
        if let Err(error) = &applied {
            tracing::error!(%error, "the index cannot follow the log; trying again");
            self.failed = Some(error.clone());
        }
        applied
    }

    fn try_apply(&mut self) -> Result<u64, StoreError> {
        if let Some(why) = self.failed.clone() {
            self.heal(why)?;
        }
        if self.pending.is_empty() {
            return Ok(std::mem::take(&mut self.untold));
        }
        let groups = self.pending.iter().map(|group| (group.records.as_slice(), group.upto));
        let applied = apply::apply(self.index.database()?.as_ref(), groups)?;
        self.applied = applied.unwrap_or(self.applied);
        self.untold += self.pending.len() as u64;
        let records = self.pending.drain(..).flat_map(|group| group.records);
        self.unsaved_bytes += records.map(|logged| logged.at.len()).sum::<u64>();
        self.has_unsaved = true;
        if self.unsaved_bytes >= self.checkpoint_bytes {
            self.save()?;
        }
        Ok(std::mem::take(&mut self.untold))
    }

    fn save(&mut self) -> Result<(), StoreError> {
        if self.has_unsaved {
            self.index.make_durable()?;
            self.unsaved_bytes = 0;
            self.has_unsaved = false;
        }
        Ok(())
    }

    /// Makes durable what was applied.
    pub(crate) fn checkpoint(&mut self) -> Result<(), StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let saved = self.save();
        if let Err(error) = &saved {
            tracing::error!(%error, "the index could not be made durable; trying again");
            self.failed = Some(error.clone());
        }
        saved
    }

    /// Opens the index again and reads from the log what it lost by that.
    fn heal(&mut self, why: StoreError) -> Result<(), StoreError> {
        self.index.close(why)?;
        let database = self.index.reopen()?;
        let from = crate::index::View::new(database.clone())?.applied()?;
        let mut segments = self.disk.segments()?;
        segments.sort_unstable();
        let sink = &mut |records: &[crate::log::Logged], upto: Position| {
            apply::apply(&database, [(records, upto)].into_iter()).map(|_| ())
        };
        replay(self.disk.as_ref(), self.install, &segments, from, Some(self.applied), sink)?;
        self.index.publish(database);
        self.has_unsaved = true;
        self.failed = None;
        tracing::info!("the index follows the log again");
        Ok(())
    }

    /// Removes what nobody needs any more, but nothing that a tenant has since one of these.
    pub(crate) fn sweep(&mut self, now: Timestamp, since: &[Place]) -> Result<Swept, StoreError> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let removed = sweep::sweep(&self.index, now, self.retention, self.applied.segment, since);
        if let Err(error) = &removed {
            self.failed = Some(error.clone());
        }
        let removed = removed?;
        if removed.segments.is_empty() && removed.batches == 0 {
            return Ok(Swept::default());
        }
        self.has_unsaved = true;
        // Files may only go when no restart can bring back the rows that point to them.
        self.checkpoint()?;
        let mut swept = Swept { batches: removed.batches, ..Swept::default() };
        for (segment, bytes) in removed.segments {
            self.log.forget(segment);
            self.disk.remove(segment)?;
            swept.segments += 1;
            swept.bytes += bytes;
        }
        Ok(swept)
    }

    /// Applies and saves all that is left, and closes the index.
    pub(crate) fn close(&mut self) -> Result<(), StoreError> {
        self.apply()?;
        self.checkpoint()?;
        self.index.close(StoreError::Closed)
    }
}
