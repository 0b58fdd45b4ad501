//! What can go wrong with the store, and what to do about it.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use offpeak_core::extent::Range;
use offpeak_core::words::{BatchId, LaneId};

/// An operation of the store failed. Unless a variant says otherwise, it changed nothing.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// No room on the disk. Nothing was stored; the store goes on by itself when there is room again.
    #[error("the disk of the data folder is full: free space there, offpeak then goes on by itself ({0})")]
    Full(Arc<io::Error>),
    /// The disk failed. A change that got this answer may or may not be found after a restart.
    #[error("the disk of the data folder failed: {0}; look at the system's log and check the disk")]
    Io(Arc<io::Error>),
    /// A record does not have the checksum that it was written with.
    #[error(
        "segment {segment} is damaged at byte {offset}: check the disk; only the requests there are affected"
    )]
    Corrupt {
        /// The segment file's number.
        segment: u32,
        /// Where the record begins, in bytes.
        offset: u32,
    },
    /// The index failed in a way that is not the disk's.
    #[error(
        "the index of the data folder failed: {0}; restart offpeak, and restore the folder if it happens again"
    )]
    Index(Arc<redb::Error>),
    /// The index holds a row that this version cannot read.
    #[error("the index of the data folder is damaged ({0}): restore the folder from a copy")]
    IndexDamaged(&'static str),
    /// There are segments but no index, and not all segments are there, so that it cannot be made again.
    #[error("the folder has segments but no index: restore index.redb from a copy, or empty the folder")]
    IndexMissing,
    /// Another process works in the folder.
    #[error("another process uses the data folder {}: stop it, or name another folder", folder.display())]
    Locked {
        /// The data folder.
        folder: PathBuf,
    },
    /// A later version of offpeak wrote the folder.
    #[error("the data folder has schema {found}, this offpeak knows {known} at most: use a later offpeak")]
    SchemaTooNew {
        /// The folder's schema version.
        found: u32,
        /// The latest version that this build knows.
        known: u32,
    },
    /// An earlier version of offpeak wrote the folder, and it is not to be changed now.
    #[error(
        "the data folder has schema {found}; offpeak brings it to {known} when it starts: start it once, then ask again"
    )]
    SchemaOld {
        /// The folder's schema version.
        found: u32,
        /// The version of this build.
        known: u32,
    },
    /// There is nothing to look at.
    #[error("there is no store in {}: name the folder of store.folder", folder.display())]
    NoIndex {
        /// The folder.
        folder: PathBuf,
    },
    /// The answer was kept for as long as configured and has been removed.
    #[error(
        "the answer was kept for the configured time and is gone: raise the retention to keep answers longer"
    )]
    Gone,
    /// The store was closed.
    #[error("the store is closed: offpeak is stopping, ask again when it is back")]
    Closed,
    /// A value is larger than a record may be.
    #[error("{bytes} bytes are too many for one record, which may have {limit}: send less at once")]
    TooLarge {
        /// Its size in bytes.
        bytes: u64,
        /// The largest size in bytes.
        limit: u64,
    },
    /// There is no such lane.
    #[error("there is no lane {}: make it first", .0.0)]
    UnknownLane(LaneId),
    /// There is no such batch, or it has ended.
    #[error("batch {0} does not exist or has ended: nothing can change it any more")]
    UnknownBatch(BatchId),
    /// A range is empty, reaches past its lane's end, or is part of another batch.
    #[error("positions {} to {} of lane {} cannot be sealed: they are empty, not there yet, or sealed before",
        .0.from.0, .0.to.0, .0.lane.0)]
    BadRange(Range),
    /// An option has a value that the store cannot work with.
    #[error("option {name} of the store cannot be {value}: use {allowed}")]
    BadOption {
        /// The option's name.
        name: &'static str,
        /// The value that it has.
        value: u64,
        /// What it may be.
        allowed: &'static str,
    },
}

impl StoreError {
    /// The same call may succeed later without anybody's change to it.
    #[must_use]
    pub const fn is_temporary(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Io(_))
    }
}

impl From<io::Error> for StoreError {
    fn from(error: io::Error) -> Self {
        match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
                Self::Full(Arc::new(error))
            }
            _ => Self::Io(Arc::new(error)),
        }
    }
}

impl From<redb::Error> for StoreError {
    fn from(error: redb::Error) -> Self {
        match error {
            redb::Error::Io(error) => error.into(),
            error => Self::Index(Arc::new(error)),
        }
    }
}

macro_rules! from_redb {
    ($($error:ident),*) => {
        $(impl From<redb::$error> for StoreError {
            fn from(error: redb::$error) -> Self {
                redb::Error::from(error).into()
            }
        })*
    };
}

from_redb!(
    CommitError,
    CompactionError,
    DatabaseError,
    SetDurabilityError,
    StorageError,
    TableError,
    TransactionError
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        assert!(matches!(io::Error::from(io::ErrorKind::StorageFull).into(), StoreError::Full(_)));
        assert!(matches!(io::Error::from(io::ErrorKind::QuotaExceeded).into(), StoreError::Full(_)));
        assert!(matches!(io::Error::other("broken").into(), StoreError::Io(_)));
        let nested = redb::StorageError::Io(io::ErrorKind::StorageFull.into());
        assert!(matches!(nested.into(), StoreError::Full(_)));
    }
}
