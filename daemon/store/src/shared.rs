//! What the log's side, the index's side and the readers share.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::disk::Guard;
use crate::engine::Written;
use crate::error::StoreError;
use crate::index::{Group, Index};
use crate::log::Position;
use crate::log::read::LogReader;
use crate::ops::Answer;
use crate::options::OnAppended;
use crate::values::{Stats, Swept};

/// What the log's side, the index's side and the readers share.
pub(crate) struct Shared {
    pub(crate) index: Arc<Index>,
    pub(crate) log: Arc<LogReader>,
    on_appended: OnAppended,
    /// Groups that are durable.
    durable: AtomicU64,
    /// The position up to which the index has the log: segment and offset, 32 bits each.
    applied: AtomicU64,
    progress: watch::Sender<Progress>,
    stats: Mutex<Stats>,
    /// Gives the folder back when the store is closed.
    guard: Mutex<Option<Guard>>,
}

/// How far the index is.
#[derive(Debug, Clone, Default)]
struct Progress {
    /// Groups that it has.
    applied: u64,
    failed: Option<StoreError>,
}

impl fmt::Debug for Shared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Shared").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl Shared {
    pub(crate) fn new(
        index: Arc<Index>,
        log: Arc<LogReader>,
        on_appended: OnAppended,
        applied: Position,
        stats: Stats,
        guard: Guard,
    ) -> Self {
        let shared = Self {
            index,
            log,
            on_appended,
            durable: AtomicU64::new(0),
            applied: AtomicU64::new(0),
            progress: watch::Sender::default(),
            stats: Mutex::new(stats),
            guard: Mutex::new(Some(guard)),
        };
        shared.set_applied(applied);
        shared
    }

    /// The index has everything before this.
    pub(crate) fn applied(&self) -> Position {
        let packed = self.applied.load(Ordering::Acquire);
        #[expect(clippy::cast_possible_truncation, reason = "two halves of 32 bits")]
        Position { segment: (packed >> 32) as u32, offset: packed as u32 }
    }

    fn set_applied(&self, at: Position) {
        let packed = (u64::from(at.segment) << 32) | u64::from(at.offset);
        self.applied.store(packed, Ordering::Release);
    }

    /// A group is durable: counts it, tells the scheduler, and hands over the group and those who wait.
    pub(crate) fn announce(&self, written: Written) -> (Group, Vec<Answer>) {
        let Written { group, extents, answers, took, bytes } = written;
        // Whoever reads after this waits for the index to have the group.
        self.durable.fetch_add(1, Ordering::Release);
        {
            let mut stats = self.stats.lock();
            let records = u32::try_from(group.records.len()).unwrap_or(u32::MAX);
            if records > 0 {
                stats.records += u64::from(records);
                stats.groups += 1;
                stats.last_group = records;
                stats.largest_group = stats.largest_group.max(records);
                stats.last_sync_micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
                stats.log_bytes += bytes;
            }
        }
        if !extents.is_empty() {
            (self.on_appended)(&extents);
        }
        (group, answers)
    }

    /// The index has so many groups more.
    pub(crate) fn advance(&self, groups: u64, applied: Position) {
        self.set_applied(applied);
        self.progress.send_if_modified(|progress| {
            progress.applied += groups;
            progress.failed.take().is_some() || groups > 0
        });
    }

    /// The index cannot follow just now.
    pub(crate) fn fail(&self, error: StoreError) {
        self.progress.send_modify(|progress| progress.failed = Some(error));
    }

    /// Why the index cannot follow just now.
    pub(crate) fn failure(&self) -> Option<StoreError> {
        self.progress.borrow().failed.clone()
    }

    /// The index has everything that is durable now.
    pub(crate) fn is_caught_up(&self) -> bool {
        let durable = self.durable.load(Ordering::Acquire);
        let progress = self.progress.borrow();
        progress.applied >= durable && progress.failed.is_none()
    }

    /// Waits until the index has everything that is durable now.
    pub(crate) async fn catch_up(&self) -> Result<(), StoreError> {
        let durable = self.durable.load(Ordering::Acquire);
        let mut progress = self.progress.subscribe();
        let reached = progress
            .wait_for(|progress| progress.applied >= durable || progress.failed.is_some())
            .await
            .map_err(|_| StoreError::Closed)?;
        reached.failed.clone().map_or(Ok(()), Err)
    }

    pub(crate) fn count_swept(&self, swept: &Swept) {
        let mut stats = self.stats.lock();
        stats.log_bytes = stats.log_bytes.saturating_sub(swept.bytes);
        stats.segments = stats.segments.saturating_sub(swept.segments);
    }

    pub(crate) fn stats(&self) -> Stats {
        let unapplied = self.durable.load(Ordering::Acquire).saturating_sub(self.progress.borrow().applied);
        Stats { unapplied, index_bytes: self.index.bytes(), ..*self.stats.lock() }
    }

    /// Counts a segment that was begun.
    pub(crate) fn count_segments(&self, segments: u32) {
        self.stats.lock().segments += segments;
    }

    /// Lets another process have the folder.
    pub(crate) fn give_back(&self) {
        drop(self.guard.lock().take());
    }
}
