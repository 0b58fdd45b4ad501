//! Reads single records of the log by their location.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::Mutex;

use super::record::{self, Change, Location, PREFIX, RECORD_LIMIT};
use super::segment::Seed;
use crate::disk::{Disk, SegmentFile};
use crate::error::StoreError;

/// Files kept open for reading.
const OPEN_FILES: usize = 16;
/// Neighbouring records are read together when no more bytes than this lie between them ...
const GAP: u64 = 4 << 10;
/// ... up to so many bytes at once.
const SPAN: u64 = 1 << 20;

/// Reads records by location.
#[derive(Debug)]
pub(crate) struct LogReader {
    disk: Arc<dyn Disk>,
    install: u64,
    /// The latest used last.
    files: Mutex<Vec<(u32, Arc<dyn SegmentFile>)>>,
}

/// A record read back.
#[derive(Debug, Clone)]
pub(crate) struct Stored {
    pub(crate) change: Change,
    pub(crate) meta: Bytes,
    pub(crate) body: Bytes,
}

impl LogReader {
    pub(crate) fn new(disk: Arc<dyn Disk>, install: u64) -> Self {
        Self { disk, install, files: Mutex::new(Vec::new()) }
    }

    fn file(&self, segment: u32) -> Result<Arc<dyn SegmentFile>, StoreError> {
        {
            let mut files = self.files.lock();
            if let Some(at) = files.iter().position(|(number, _)| *number == segment) {
                let entry = files.remove(at);
                let file = entry.1.clone();
                files.push(entry);
                return Ok(file);
            }
        }
        let file = match self.disk.open(segment) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(StoreError::Gone),
            other => other?,
        };
        let mut files = self.files.lock();
        if files.len() >= OPEN_FILES {
            files.remove(0);
        }
        files.push((segment, file.clone()));
        Ok(file)
    }

    /// Forgets a segment's file, which is about to be removed.
    pub(crate) fn forget(&self, segment: u32) {
        self.files.lock().retain(|(number, _)| *number != segment);
    }

    /// One record.
    pub(crate) fn read(&self, at: Location) -> Result<Stored, StoreError> {
        let mut read = self.read_all(&[at])?;
        read.pop().ok_or(StoreError::Corrupt { segment: at.segment, offset: at.offset })
    }

    /// The meta part of a record, without reading its body.
    pub(crate) fn read_meta(&self, at: Location) -> Result<Bytes, StoreError> {
        if at.meta == 0 {
            return Ok(Bytes::new());
        }
        let corrupt = || StoreError::Corrupt { segment: at.segment, offset: at.offset };
        let mut buffer = vec![0; PREFIX + usize::from(at.head) + usize::from(at.meta)];
        read_or(self.file(at.segment)?.as_ref(), at, &mut buffer)?;
        let buffer = Bytes::from(buffer);
        let seed = Seed::new(self.install, at.segment);
        let parts = record::parse_without_body(&buffer, seed, at.offset).ok_or_else(corrupt)?;
        Ok(buffer.slice_ref(parts.meta))
    }

    /// Many records, in the order given; neighbours in one go, and their bodies share one buffer.
    pub(crate) fn read_all(&self, locations: &[Location]) -> Result<Vec<Stored>, StoreError> {
        let mut stored = Vec::with_capacity(locations.len());
        let mut rest = locations;
        while let Some(first) = rest.first() {
            let mut end = u64::from(first.offset) + first.len();
            let mut count = 1;
            for next in rest.iter().skip(1) {
                let begin = u64::from(next.offset);
                let fits = next.segment == first.segment
                    && (end..=end + GAP).contains(&begin)
                    && begin + next.len() - u64::from(first.offset) <= SPAN;
                if !fits {
                    break;
                }
                end = begin + next.len();
                count += 1;
            }
            let (run, later) = rest.split_at(count);
            self.read_run(run, end - u64::from(first.offset), &mut stored)?;
            rest = later;
        }
        Ok(stored)
    }

    fn read_run(&self, run: &[Location], bytes: u64, stored: &mut Vec<Stored>) -> Result<(), StoreError> {
        let Some(first) = run.first() else { return Ok(()) };
        let corrupt = |at: &Location| StoreError::Corrupt { segment: at.segment, offset: at.offset };
        if bytes > RECORD_LIMIT.max(SPAN) {
            return Err(corrupt(first));
        }
        let mut buffer = vec![0; usize::try_from(bytes).map_err(io::Error::other)?];
        read_or(self.file(first.segment)?.as_ref(), *first, &mut buffer)?;
        let buffer = Bytes::from(buffer);
        let seed = Seed::new(self.install, first.segment);
        for at in run {
            let begin = (at.offset - first.offset) as usize;
            let bytes = buffer.get(begin..).unwrap_or_default();
            let parts = record::parse(bytes, seed, at.offset).ok_or_else(|| corrupt(at))?;
            let logged = parts.logged(at.segment, at.offset).ok_or_else(|| corrupt(at))?;
            stored.push(Stored {
                change: logged.change,
                meta: buffer.slice_ref(parts.meta),
                body: buffer.slice_ref(parts.body),
            });
        }
        Ok(())
    }
}

/// Fills the buffer from a record's place on. A file that ends before is damaged.
fn read_or(file: &dyn SegmentFile, at: Location, buffer: &mut [u8]) -> Result<(), StoreError> {
    match file.read_at(at.offset.into(), buffer) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
            Err(StoreError::Corrupt { segment: at.segment, offset: at.offset })
        }
        other => Ok(other?),
    }
}
