//! Writes groups of records at the end of the log.

use std::sync::Arc;

use super::record::{self, Change, Location, Payload, Position, RECORD_LIMIT};
use super::segment::{HEADER, Header, Seed};
use crate::disk::{Disk, SegmentFile};
use crate::error::StoreError;
use crate::migrate::SCHEMA;

/// A buffer larger than this is given back after its group was written.
const BUFFER_KEPT: usize = 16 << 20;

/// The end of the log.
#[derive(Debug)]
pub(crate) struct LogWriter {
    disk: Arc<dyn Disk>,
    install: u64,
    segment_bytes: u32,
    file: Arc<dyn SegmentFile>,
    seed: Seed,
    /// Everything before this is durable.
    end: Position,
    /// The group under construction.
    buffer: Vec<u8>,
    /// A write or sync failed: what stands behind `end` is not known.
    is_suspect: bool,
}

impl LogWriter {
    /// Begins a log with its first segment, or goes on after a segment that is lost.
    pub(crate) fn create(
        disk: Arc<dyn Disk>,
        install: u64,
        segment: u32,
        segment_bytes: u32,
    ) -> Result<Self, StoreError> {
        let file = create_segment(disk.as_ref(), install, segment, segment_bytes)?;
        Ok(Self {
            disk,
            install,
            segment_bytes,
            file,
            seed: Seed::new(install, segment),
            end: Position { segment, offset: HEADER },
            buffer: Vec::new(),
            is_suspect: false,
        })
    }

    /// Goes on where the last valid record ends. What stands behind it is cut off.
    pub(crate) fn resume(
        disk: Arc<dyn Disk>,
        install: u64,
        end: Position,
        segment_bytes: u32,
    ) -> Result<Self, StoreError> {
        let file = disk.open(end.segment)?;
        let seed = Seed::new(install, end.segment);
        let mut writer =
            Self { disk, install, segment_bytes, file, seed, end, buffer: Vec::new(), is_suspect: true };
        writer.heal()?;
        reserve(writer.file.as_ref(), end.segment, segment_bytes);
        Ok(writer)
    }

    /// Where the durable log ends.
    pub(crate) const fn end(&self) -> Position {
        self.end
    }

    /// Bytes of the group under construction.
    pub(crate) fn pending_bytes(&self) -> usize {
        self.buffer.len()
    }

    /// Begins a group. An error means that nothing can be written now.
    pub(crate) fn begin(&mut self) -> Result<(), StoreError> {
        self.buffer.clear();
        if self.is_suspect {
            self.heal()?;
        }
        if self.end.offset >= self.segment_bytes {
            self.rotate()?;
        }
        Ok(())
    }

    /// Adds a record to the group.
    pub(crate) fn push(&mut self, change: &Change, payload: Payload<'_>) -> Result<Location, StoreError> {
        let too_large = |bytes: u64| StoreError::TooLarge { bytes, limit: RECORD_LIMIT };
        let payload_bytes = payload.meta.len() as u64 + payload.body.len() as u64;
        let meta = u16::try_from(payload.meta.len()).map_err(|_| too_large(RECORD_LIMIT + payload_bytes))?;
        let start = self.buffer.len();
        // The log's offsets are 32 bits wide; a group may not reach past them.
        let offset = u64::from(self.end.offset) + start as u64;
        if payload_bytes > RECORD_LIMIT || offset + payload_bytes > u64::from(u32::MAX) - (1 << 20) {
            return Err(too_large(payload_bytes));
        }
        let offset = u32::try_from(offset).map_err(|_| too_large(offset))?;
        let body = u32::try_from(payload.body.len()).map_err(|_| too_large(payload_bytes))?;
        let head = record::encode(&mut self.buffer, self.seed, self.end.offset, offset, change, payload);
        let total = (self.buffer.len() - start) as u64;
        if total > RECORD_LIMIT || head > 1 << 20 {
            self.buffer.truncate(start);
            return Err(too_large(total));
        }
        let head = u16::try_from(head).unwrap_or(u16::MAX);
        Ok(Location { segment: self.end.segment, offset, head, meta, body })
    }

    /// Makes the group durable. After an error it is as if it had never been, unless healing failed too: then it
    /// is not known until the next [`LogWriter::begin`] that succeeds.
    pub(crate) fn commit(&mut self) -> Result<Position, StoreError> {
        if self.buffer.is_empty() {
            return Ok(self.end);
        }
        let written =
            self.file.write_at(self.end.offset.into(), &self.buffer).and_then(|()| self.file.sync());
        if let Err(error) = written {
            self.is_suspect = true;
            if let Err(healing) = self.heal() {
                tracing::error!(%healing, "the log could not be set back after a failed write");
            }
            return Err(error.into());
        }
        // Fits: `push` has checked every record's offset.
        self.end.offset += u32::try_from(self.buffer.len()).unwrap_or(u32::MAX);
        if self.buffer.capacity() > BUFFER_KEPT {
            self.buffer = Vec::new();
        }
        Ok(self.end)
    }

    /// Takes back the group under construction.
    pub(crate) fn abandon(&mut self) {
        self.buffer.clear();
    }

    /// Gives back the room that was reserved and is not used.
    pub(crate) fn finish(&self) -> Result<(), StoreError> {
        self.file.set_len(self.end.offset.into())?;
        Ok(self.file.sync()?)
    }

    /// Cuts off what a failed write may have left, so that no restart can find it.
    fn heal(&mut self) -> Result<(), StoreError> {
        self.file.set_len(self.end.offset.into())?;
        self.file.sync()?;
        self.is_suspect = false;
        Ok(())
    }

    fn rotate(&mut self) -> Result<(), StoreError> {
        let segment = self.end.segment + 1;
        let file = create_segment(self.disk.as_ref(), self.install, segment, self.segment_bytes)?;
        self.file = file;
        self.seed = Seed::new(self.install, segment);
        self.end = Position { segment, offset: HEADER };
        Ok(())
    }
}

fn create_segment(
    disk: &dyn Disk,
    install: u64,
    segment: u32,
    segment_bytes: u32,
) -> Result<Arc<dyn SegmentFile>, StoreError> {
    let file = disk.create(segment)?;
    reserve(file.as_ref(), segment, segment_bytes);
    file.write_at(0, &Header { schema: SCHEMA, segment, install }.encode())?;
    file.sync()?;
    Ok(file)
}

/// Room taken beforehand makes syncs cheaper; without it everything works too.
fn reserve(file: &dyn SegmentFile, segment: u32, bytes: u32) {
    if let Err(error) = file.reserve(bytes.into()) {
        tracing::debug!(%error, segment, "no room was reserved");
    }
}

#[cfg(test)]
mod tests {
    use offpeak_core::words::{BatchId, Timestamp};

    use super::*;
    use crate::disk::memory::MemoryDisk;

    fn change(id: u64) -> Change {
        Change::BatchEnded { id: BatchId(id), at: Timestamp(1), ending: "x".into() }
    }

    fn write(writer: &mut LogWriter, ids: std::ops::Range<u64>) -> Result<Position, StoreError> {
        writer.begin()?;
        for id in ids {
            writer.push(&change(id), Payload::default())?;
        }
        writer.commit()
    }

    #[test]
    fn a_full_segment_is_followed_by_the_next() {
        let disk: Arc<dyn Disk> = MemoryDisk::new();
        let mut writer = LogWriter::create(disk.clone(), 1, 1, 4096).unwrap();
        while writer.end().segment < 3 {
            write(&mut writer, 0..10).unwrap();
        }
        let mut segments = disk.segments().unwrap();
        segments.sort_unstable();
        assert_eq!(segments, [1, 2, 3]);
        assert!(disk.open(1).unwrap().len().unwrap() >= 4096);
    }

    #[test]
    fn a_failed_write_leaves_nothing_behind_and_the_next_works() {
        let disk = MemoryDisk::new();
        let mut writer = LogWriter::create(disk.clone(), 1, 1, 1 << 20).unwrap();
        let end = write(&mut writer, 0..3).unwrap();
        disk.limit_bytes(Some(u64::from(end.offset) + 10));
        assert!(matches!(write(&mut writer, 3..6), Err(StoreError::Full(_))));
        assert_eq!(disk.open(1).unwrap().len().unwrap(), u64::from(end.offset));
        disk.limit_bytes(None);
        assert!(write(&mut writer, 3..6).unwrap() > end);
    }

    #[test]
    fn what_is_too_large_is_refused_and_the_group_goes_on() {
        let mut writer = LogWriter::create(MemoryDisk::new(), 1, 1, 1 << 20).unwrap();
        writer.begin().unwrap();
        let meta = vec![0; 1 << 16];
        let payload = Payload { meta: &meta, ..Payload::default() };
        assert!(matches!(writer.push(&change(1), payload), Err(StoreError::TooLarge { .. })));
        writer.push(&change(2), Payload::default()).unwrap();
        assert!(writer.commit().unwrap().offset < 200);
    }
}
