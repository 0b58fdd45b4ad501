//! All that the store asks of a disk, so that a simulation can put faults there.

mod folder;
pub mod memory;

use std::any::Any;
use std::fmt;
use std::io;
use std::sync::Arc;

pub use folder::Folder;

/// A place for one store: numbered segment files, an index, and a folder for damaged parts.
pub trait Disk: fmt::Debug + Send + Sync + 'static {
    /// Takes the whole place until the guard is dropped. `None` if somebody else has it.
    fn lock(&self) -> io::Result<Option<Guard>>;
    /// The numbers of the segment files that there are, in any order.
    fn segments(&self) -> io::Result<Vec<u32>>;
    /// Makes an empty segment file, or empties one; durable when it returns.
    fn create(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>>;
    /// Opens a segment file for reading and writing.
    fn open(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>>;
    /// Removes a segment file; it is no error if it is not there.
    fn remove(&self, segment: u32) -> io::Result<()>;
    /// Keeps a damaged part for people to look at.
    fn quarantine(&self, name: &str, bytes: &[u8]) -> io::Result<()>;
    /// Opens the index, or makes an empty one.
    fn open_index(&self, builder: &redb::Builder) -> Result<redb::Database, redb::DatabaseError>;
    /// Removes the index, which is closed; it is no error if it is not there.
    fn remove_index(&self) -> io::Result<()>;
    /// How many bytes the index has.
    fn index_bytes(&self) -> u64;
}

/// Holds a place; dropping it gives the place back.
pub type Guard = Box<dyn Any + Send + Sync>;

/// An open segment file.
pub trait SegmentFile: fmt::Debug + Send + Sync {
    /// How many bytes it has.
    fn len(&self) -> io::Result<u64>;
    /// It has no bytes.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }
    /// Fills the slice from a position on.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()>;
    /// Writes all bytes at a position, which may be the file's end.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Takes room up to this length beforehand, so that a later sync has less to do. The new bytes read as zeros.
    fn reserve(&self, bytes: u64) -> io::Result<()>;
    /// Cuts or extends it.
    fn set_len(&self, bytes: u64) -> io::Result<()>;
    /// Returns when what was written and its length will be found after a power failure.
    fn sync(&self) -> io::Result<()>;
}
