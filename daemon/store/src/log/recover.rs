//! Reads the log from a point on, after a crash: finds its end, cuts off a torn tail, steps over damage.
//!
//! A record whose checksum is wrong is either *torn* (its group was being written when the crash came, so nobody was
//! told that it is stored) or *damaged* (it was durable once). It is damaged if the log goes on behind it with a
//! later group, because a group is only begun after the one before is durable.

use std::io;
use std::sync::Arc;

use super::record::{self, Logged, MAGIC, PREFIX, Position, Prefix};
use super::segment::{HEADER, Header, Seed};
use crate::disk::{Disk, SegmentFile};
use crate::error::StoreError;
use crate::values::Quarantined;

/// Bytes read at once.
const WINDOW: u64 = 1 << 20;
/// Records handed on at once.
const RECORDS: usize = 4096;

/// What reading the log showed.
#[derive(Debug, Default)]
pub(crate) struct Replayed {
    pub(crate) records: u64,
    pub(crate) cut_off_bytes: u64,
    pub(crate) quarantined: Vec<Quarantined>,
    /// Where the last valid record ends. `None` if nothing was there to read.
    pub(crate) end: Option<Position>,
    /// The last segment, if the crash came while it was made: it has nothing in it.
    pub(crate) unbegun: Option<u32>,
}

/// Takes records and the position after the last of them.
pub(crate) type Sink<'a> = &'a mut dyn FnMut(&[Logged], Position) -> Result<(), StoreError>;

/// Reads all records from `from` on, up to `until` or to the log's end.
///
/// `segments` are the numbers of the files that there are, ascending, beginning with that of `from` if it exists.
pub(crate) fn replay(
    disk: &dyn Disk,
    install: u64,
    segments: &[u32],
    from: Position,
    until: Option<Position>,
    sink: Sink<'_>,
) -> Result<Replayed, StoreError> {
    let mut replayed = Replayed::default();
    let last = segments.last().copied();
    let mut expected = from.segment;
    for &segment in segments.iter().filter(|&&segment| segment >= from.segment) {
        for lost in expected..segment {
            tracing::error!(segment = lost, "a segment file is gone: what stood in it is lost");
            replayed.quarantined.push(Quarantined { segment: lost, offset: 0, bytes: 0 });
        }
        expected = segment + 1;
        let is_last = Some(segment) == last;
        let mut scan = Scan::open(disk, install, segment, is_last, &mut replayed)?;
        let begin = if segment == from.segment { from.offset.max(HEADER) } else { HEADER };
        let end = match until {
            Some(until) if until.segment == segment => until.offset,
            Some(until) if until.segment < segment => break,
            _ => u32::MAX,
        };
        scan.run(begin, end, sink)?;
    }
    Ok(replayed)
}

/// Reads one segment from its beginning and reports damage without keeping copies of it.
pub(crate) fn look_through(
    disk: &dyn Disk,
    install: u64,
    segment: u32,
    is_last: bool,
    replayed: &mut Replayed,
    sink: Sink<'_>,
) -> Result<(), StoreError> {
    let mut scan = Scan { keeps_copies: false, ..Scan::open(disk, install, segment, is_last, replayed)? };
    scan.run(HEADER, u32::MAX, sink)
}

/// The number that names the store, as the first readable segment header has it.
pub(crate) fn install_id(disk: &dyn Disk, segments: &[u32]) -> Result<Option<u64>, StoreError> {
    for &segment in segments {
        let file = disk.open(segment)?;
        if let Some(header) = read_header(file.as_ref())? {
            header.check_schema()?;
            return Ok(Some(header.install));
        }
    }
    Ok(None)
}

fn read_header(file: &dyn SegmentFile) -> io::Result<Option<Header>> {
    let mut bytes = [0; HEADER as usize];
    if file.len()? < u64::from(HEADER) {
        return Ok(None);
    }
    file.read_at(0, &mut bytes)?;
    Ok(Header::decode(&bytes))
}

/// One segment being read.
struct Scan<'a> {
    disk: &'a dyn Disk,
    segment: u32,
    seed: Seed,
    is_last: bool,
    file: Arc<dyn SegmentFile>,
    length: u64,
    /// Of what is damaged, for people to look at.
    keeps_copies: bool,
    window_at: u64,
    window: Vec<u8>,
    replayed: &'a mut Replayed,
}

/// A valid record.
struct Found {
    logged: Logged,
    group: u32,
    end: u32,
}

impl<'a> Scan<'a> {
    fn open(
        disk: &'a dyn Disk,
        install: u64,
        segment: u32,
        is_last: bool,
        replayed: &'a mut Replayed,
    ) -> Result<Self, StoreError> {
        let file = disk.open(segment)?;
        let length = file.len()?;
        let seed = Seed::new(install, segment);
        let (window_at, window) = (0, Vec::new());
        Ok(Self {
            disk,
            segment,
            seed,
            is_last,
            file,
            length,
            keeps_copies: true,
            window_at,
            window,
            replayed,
        })
    }

    fn run(&mut self, begin: u32, end: u32, sink: Sink<'_>) -> Result<(), StoreError> {
        match read_header(self.file.as_ref())? {
            Some(header) => header.check_schema()?,
            // The crash came while it was made: nothing can be in it.
            None if self.is_last && self.find_record(HEADER)?.is_none() => {
                self.replayed.unbegun = Some(self.segment);
                return Ok(());
            }
            None => self.quarantine(0, HEADER)?,
        }
        let mut offset = begin;
        let mut records = Vec::new();
        while offset < end && u64::from(offset) < self.length {
            if let Some(found) = self.record(offset)? {
                offset = found.end;
                records.push(found.logged);
                if records.len() == RECORDS {
                    self.hand_on(&mut records, offset, sink)?;
                }
            } else if let Some(next) = self.behind_damage(offset)? {
                self.quarantine(offset, next)?;
                offset = next;
            } else {
                self.end_of_segment(offset)?;
                break;
            }
        }
        self.hand_on(&mut records, offset, sink)?;
        self.replayed.end = Some(Position { segment: self.segment, offset });
        Ok(())
    }

    fn hand_on(&mut self, records: &mut Vec<Logged>, end: u32, sink: Sink<'_>) -> Result<(), StoreError> {
        sink(records, Position { segment: self.segment, offset: end })?;
        self.replayed.records += records.len() as u64;
        records.clear();
        Ok(())
    }

    /// The bytes from `offset` on: `wanted` of them unless the file ends before, perhaps more.
    fn bytes(&mut self, offset: u64, wanted: u64) -> io::Result<&[u8]> {
        let wanted = wanted.min(self.length.saturating_sub(offset));
        let window_end = self.window_at + self.window.len() as u64;
        if offset < self.window_at || offset + wanted > window_end {
            let size = wanted.max(WINDOW).min(self.length.saturating_sub(offset));
            self.window.resize(usize::try_from(size).map_err(io::Error::other)?, 0);
            self.window_at = offset;
            self.file.read_at(offset, &mut self.window)?;
        }
        let at = usize::try_from(offset - self.window_at).map_err(io::Error::other)?;
        Ok(self.window.get(at..).unwrap_or_default())
    }

    /// The record that begins there, if it is valid.
    fn record(&mut self, offset: u32) -> io::Result<Option<Found>> {
        let Some(prefix) = Prefix::decode(self.bytes(offset.into(), PREFIX as u64)?) else { return Ok(None) };
        let end = u64::from(offset) + prefix.len();
        let Some(end) = u32::try_from(end).ok().filter(|&end| u64::from(end) <= self.length) else {
            return Ok(None);
        };
        let (seed, segment) = (self.seed, self.segment);
        let parts = record::parse(self.bytes(offset.into(), prefix.len())?, seed, offset);
        let logged = parts.and_then(|parts| parts.logged(segment, offset));
        Ok(logged.map(|logged| Found { logged, group: prefix.group, end }))
    }

    /// The first valid record at or behind `offset`.
    fn find_record(&mut self, offset: u32) -> io::Result<Option<u32>> {
        let mut offset = u64::from(offset);
        while offset < self.length {
            let bytes = self.bytes(offset, WINDOW.min(self.length - offset))?;
            let size = bytes.len() as u64;
            // Most of what is searched is room that was reserved and never written.
            let candidate = if bytes.iter().all(|&byte| byte == 0) {
                None
            } else {
                bytes.windows(MAGIC.len()).position(|four| four == MAGIC)
            };
            let Some(candidate) = candidate else {
                // The magic may lie across the window's end.
                offset += size.saturating_sub(MAGIC.len() as u64 - 1).max(1);
                continue;
            };
            offset += candidate as u64;
            let Ok(at) = u32::try_from(offset) else { return Ok(None) };
            if self.record(at)?.is_some() {
                return Ok(Some(at));
            }
            offset += 1;
        }
        Ok(None)
    }

    /// Where the log goes on behind an invalid record, if that record was durable once.
    fn behind_damage(&mut self, damage: u32) -> io::Result<Option<u32>> {
        let Some(first) = self.find_record(damage + 1)? else { return Ok(None) };
        if !self.is_last {
            return Ok(Some(first));
        }
        let mut next = Some(first);
        while let Some(at) = next {
            let Some(found) = self.record(at)? else {
                next = self.find_record(at)?;
                continue;
            };
            if found.group > damage {
                return Ok(Some(first));
            }
            next = Some(found.end).filter(|&end| u64::from(end) < self.length);
        }
        Ok(None)
    }

    /// No valid record stands at or behind `offset`: reserved room, a torn tail or damage up to the end.
    fn end_of_segment(&mut self, offset: u32) -> Result<(), StoreError> {
        let written = self.last_written(offset)?;
        if written <= offset {
            return Ok(());
        }
        if self.is_last {
            self.replayed.cut_off_bytes += u64::from(written - offset);
            tracing::warn!(
                segment = self.segment,
                offset,
                bytes = written - offset,
                "a write that a crash interrupted was cut off"
            );
            return Ok(());
        }
        self.quarantine(offset, written)
    }

    /// The position behind the last byte that is not zero.
    fn last_written(&mut self, from: u32) -> io::Result<u32> {
        let mut last = from;
        let mut offset = u64::from(from);
        while offset < self.length {
            let bytes = self.bytes(offset, WINDOW.min(self.length - offset))?;
            if let Some(at) = bytes.iter().rposition(|&byte| byte != 0) {
                last = u32::try_from(offset + at as u64 + 1).unwrap_or(u32::MAX);
            }
            offset += bytes.len().max(1) as u64;
        }
        Ok(last)
    }

    fn quarantine(&mut self, from: u32, to: u32) -> Result<(), StoreError> {
        let bytes = u64::from(to - from);
        tracing::error!(segment = self.segment, offset = from, bytes, "a part of the log is damaged");
        if self.keeps_copies {
            let size = usize::try_from(bytes).map_err(io::Error::other)?;
            let damaged = self.bytes(from.into(), bytes)?;
            let damaged = damaged.get(..size).unwrap_or(damaged).to_vec();
            self.disk.quarantine(&format!("{:010}-{from:010}.bytes", self.segment), &damaged)?;
        }
        self.replayed.quarantined.push(Quarantined { segment: self.segment, offset: from, bytes });
        Ok(())
    }
}
