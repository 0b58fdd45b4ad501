//! How a store is opened.

use std::fmt;
use std::path::PathBuf;

use offpeak_core::extent::Extent;
use offpeak_core::words::Millis;

use crate::error::StoreError;

/// Called with the extents of new entries, one per lane, after they are durable and before anybody is told.
///
/// It runs on the log's thread: it must be quick and must not call the store.
pub type OnAppended = Box<dyn Fn(&[Extent]) + Send + Sync>;

/// How a store is opened. [`Options::new`] gives what suits a daemon.
pub struct Options {
    /// The data folder; made, readable by its owner alone, if it is not there.
    pub folder: PathBuf,
    /// A segment file that has reached this size in bytes gets no further groups. 4 KiB to 1 GiB.
    pub segment_bytes: u32,
    /// The index is made durable after so many bytes of log, which bounds how much is read again after a crash.
    pub checkpoint_bytes: u64,
    /// The index is made durable after this time, if anything changed.
    pub checkpoint_every: Millis,
    /// How long a final outcome and its request are kept after the request finished.
    pub retention: Millis,
    /// Memory for pages of the index, in bytes.
    pub index_cache_bytes: usize,
    /// A random number which names this store for good, if it is made now.
    pub install_id_if_new: u64,
    /// Told about new entries.
    pub on_appended: OnAppended,
    /// No threads: every call does its whole work on the caller, so that a simulation is deterministic.
    pub inline: bool,
}

impl Options {
    /// The defaults for a folder.
    pub fn new(folder: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            segment_bytes: 64 << 20,
            checkpoint_bytes: 64 << 20,
            checkpoint_every: Millis::from_secs(1),
            retention: Millis::from_hours(24),
            index_cache_bytes: 16 << 20,
            install_id_if_new: 0,
            on_appended: Box::new(|_| {}),
            inline: false,
        }
    }

    /// Refuses values that the file formats cannot hold.
    pub(crate) fn check(&self) -> Result<(), StoreError> {
        if (4 << 10..=1 << 30).contains(&self.segment_bytes) {
            return Ok(());
        }
        Err(StoreError::BadOption {
            name: "segment_bytes",
            value: self.segment_bytes.into(),
            allowed: "4096 to 1073741824",
        })
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Options")
            .field("folder", &self.folder)
            .field("segment_bytes", &self.segment_bytes)
            .field("checkpoint_bytes", &self.checkpoint_bytes)
            .field("checkpoint_every", &self.checkpoint_every)
            .field("retention", &self.retention)
            .field("index_cache_bytes", &self.index_cache_bytes)
            .field("inline", &self.inline)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn segment_sizes_have_bounds() {
        for (bytes, fits) in [(4095, false), (4096, true), (1 << 30, true), ((1 << 30) + 1, false)] {
            let options = Options { segment_bytes: bytes, ..Options::new("x") };
            assert_eq!(options.check().is_ok(), fits, "{bytes}");
        }
    }
}
