//! A disk in memory that loses power and runs full on command.

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::sync::Arc;

use parking_lot::Mutex;

use super::{Disk, Guard, SegmentFile};

/// What a power failure keeps or loses as a whole.
const SECTOR: usize = 512;

/// A disk in memory. Clones of its `Arc` are the same disk.
#[derive(Debug, Default)]
pub struct MemoryDisk(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    files: BTreeMap<Name, Image>,
    quarantined: BTreeMap<String, Vec<u8>>,
    is_locked: bool,
    /// Operations that changed something or made something durable.
    steps: u64,
    power_off_at: Option<u64>,
    failing: std::ops::Range<u64>,
    is_off: bool,
    is_read_only: bool,
    limit: Option<u64>,
    /// Operations that failed, and those that found no room.
    failed: u64,
    refused: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Name {
    Segment(u32),
    Index,
}

#[derive(Debug, Default, Clone)]
struct Image {
    current: Vec<u8>,
    durable: Vec<u8>,
    pending: Vec<Pending>,
}

#[derive(Debug, Clone)]
enum Pending {
    Write { offset: usize, bytes: Vec<u8> },
    Length(usize),
}

impl MemoryDisk {
    /// An empty disk.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// How many operations there have been that changed something or made something durable.
    #[must_use]
    pub fn steps(&self) -> u64 {
        self.0.lock().steps
    }

    /// The power goes off in the middle of that step: it and every later one fails.
    pub fn power_off_at(&self, step: u64) {
        self.0.lock().power_off_at = Some(step);
    }

    /// The power has gone off.
    #[must_use]
    pub fn is_off(&self) -> bool {
        self.0.lock().is_off
    }

    /// These steps fail, and change nothing but what they wrote before they failed.
    pub fn fail_steps(&self, steps: std::ops::Range<u64>) {
        self.0.lock().failing = steps;
    }

    /// Nothing can be changed or made durable any more, or it can again; reading goes on.
    pub fn set_read_only(&self, is_read_only: bool) {
        self.0.lock().is_read_only = is_read_only;
    }

    /// All files together may have so many bytes from now on.
    pub fn limit_bytes(&self, limit: Option<u64>) {
        self.0.lock().limit = limit;
    }

    /// How many operations have failed because [`Self::fail_steps`] said so, and how many found no room.
    #[must_use]
    pub fn trouble(&self) -> (u64, u64) {
        let state = self.0.lock();
        (state.failed, state.refused)
    }

    /// How many bytes all files together have.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.0.lock().bytes()
    }

    /// Copies of damaged parts, by name.
    #[must_use]
    pub fn quarantined(&self) -> BTreeMap<String, Vec<u8>> {
        self.0.lock().quarantined.clone()
    }

    /// Changes a segment's bytes as a failing disk does.
    pub fn damage(&self, segment: u32, change: impl FnOnce(&mut Vec<u8>)) {
        self.damage_file(Name::Segment(segment), change);
    }

    /// Changes the index's bytes as a failing disk does.
    pub fn damage_index(&self, change: impl FnOnce(&mut Vec<u8>)) {
        self.damage_file(Name::Index, change);
    }

    fn damage_file(&self, name: Name, change: impl FnOnce(&mut Vec<u8>)) {
        if let Some(image) = self.0.lock().files.get_mut(&name) {
            change(&mut image.current);
            image.pending.clear();
            image.durable.clone_from(&image.current);
        }
    }

    /// The disk as it is found after the power failed: what was synced, and those parts of what was not for which
    /// `luck` says so.
    #[must_use]
    pub fn after_power_failure(&self, luck: &mut dyn FnMut() -> bool) -> Arc<Self> {
        let state = self.0.lock();
        let files = state.files.iter().map(|(&name, image)| {
            let mut kept = image.durable.clone();
            for pending in &image.pending {
                pending.apply_partly(&mut kept, luck);
            }
            (name, Image { current: kept.clone(), durable: kept, pending: Vec::new() })
        });
        let state = State { files: files.collect(), ..State::default() };
        Arc::new(Self(Arc::new(Mutex::new(state))))
    }
}

impl State {
    fn step(&mut self) -> io::Result<()> {
        self.steps += 1;
        self.is_off |= self.power_off_at == Some(self.steps);
        self.writable()?;
        if self.failing.contains(&self.steps) {
            self.failed += 1;
            return Err(io::Error::other("the disk failed"));
        }
        self.power()
    }

    fn writable(&self) -> io::Result<()> {
        if self.is_read_only { Err(io::ErrorKind::ReadOnlyFilesystem.into()) } else { Ok(()) }
    }

    fn power(&self) -> io::Result<()> {
        if self.is_off { Err(io::Error::other("the power is off")) } else { Ok(()) }
    }

    fn bytes(&self) -> u64 {
        self.files.values().map(|image| image.current.len() as u64).sum()
    }

    fn image(&mut self, name: Name) -> io::Result<&mut Image> {
        self.files.get_mut(&name).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn room(&self) -> u64 {
        self.limit.map_or(u64::MAX, |limit| limit.saturating_sub(self.bytes()))
    }

    fn read(&mut self, name: Name, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.power()?;
        let image = self.image(name)?;
        let bytes = usize::try_from(offset)
            .ok()
            .and_then(|offset| image.current.get(offset..offset.checked_add(out.len())?))
            .ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn write(&mut self, name: Name, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let powered = self.step();
        self.writable()?;
        let room = self.room();
        let image = self.image(name)?;
        let offset = usize::try_from(offset).map_err(io::Error::other)?;
        let growth = (offset + bytes.len()).saturating_sub(image.current.len());
        let missing = usize::try_from((growth as u64).saturating_sub(room)).map_err(io::Error::other)?;
        // A disk that runs full takes what fits.
        let fitting = bytes.len() - missing.min(bytes.len());
        let bytes = bytes.get(..fitting).unwrap_or_default().to_vec();
        let pending = Pending::Write { offset, bytes };
        pending.apply(&mut image.current);
        image.pending.push(pending);
        powered?;
        if missing == 0 {
            return Ok(());
        }
        self.refused += 1;
        Err(io::ErrorKind::StorageFull.into())
    }

    fn set_len(&mut self, name: Name, bytes: u64) -> io::Result<()> {
        self.step()?;
        let room = self.room();
        let image = self.image(name)?;
        if bytes.saturating_sub(image.current.len() as u64) > room {
            self.refused += 1;
            return Err(io::ErrorKind::StorageFull.into());
        }
        let pending = Pending::Length(usize::try_from(bytes).map_err(io::Error::other)?);
        pending.apply(&mut image.current);
        image.pending.push(pending);
        Ok(())
    }

    fn sync(&mut self, name: Name) -> io::Result<()> {
        self.step()?;
        let image = self.image(name)?;
        for pending in image.pending.drain(..) {
            pending.apply(&mut image.durable);
        }
        Ok(())
    }

    fn len(&mut self, name: Name) -> io::Result<u64> {
        self.power()?;
        Ok(self.image(name)?.current.len() as u64)
    }
}

impl Pending {
    fn apply(&self, image: &mut Vec<u8>) {
        self.apply_partly(image, &mut || true);
    }

    fn apply_partly(&self, image: &mut Vec<u8>, luck: &mut dyn FnMut() -> bool) {
        match self {
            Self::Length(bytes) => {
                if luck() {
                    image.resize(*bytes, 0);
                }
            }
            Self::Write { offset, bytes } => {
                for (number, sector) in bytes.chunks(SECTOR).enumerate() {
                    let at = offset + number * SECTOR;
                    if luck() {
                        image.resize(image.len().max(at + sector.len()), 0);
                        if let Some(place) = image.get_mut(at..at + sector.len()) {
                            place.copy_from_slice(sector);
                        }
                    }
                }
            }
        }
    }
}

impl Disk for MemoryDisk {
    fn lock(&self) -> io::Result<Option<Guard>> {
        let mut state = self.0.lock();
        state.power()?;
        if state.is_locked {
            return Ok(None);
        }
        state.is_locked = true;
        Ok(Some(Box::new(Unlock(self.0.clone()))))
    }

    fn segments(&self) -> io::Result<Vec<u32>> {
        let state = self.0.lock();
        state.power()?;
        Ok(state
            .files
            .keys()
            .filter_map(|name| match name {
                Name::Segment(number) => Some(*number),
                Name::Index => None,
            })
            .collect())
    }

    fn create(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
        let mut state = self.0.lock();
        state.step()?;
        state.files.insert(Name::Segment(segment), Image::default());
        Ok(Arc::new(Open { state: self.0.clone(), name: Name::Segment(segment) }))
    }

    fn open(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
        let mut state = self.0.lock();
        state.power()?;
        state.image(Name::Segment(segment))?;
        Ok(Arc::new(Open { state: self.0.clone(), name: Name::Segment(segment) }))
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step()?;
        state.files.remove(&Name::Segment(segment));
        Ok(())
    }

    fn quarantine(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step()?;
        state.quarantined.insert(name.to_owned(), bytes.to_owned());
        Ok(())
    }

    fn open_index(&self, builder: &redb::Builder) -> Result<redb::Database, redb::DatabaseError> {
        self.0.lock().files.entry(Name::Index).or_default();
        builder.create_with_backend(Open { state: self.0.clone(), name: Name::Index })
    }

    fn remove_index(&self) -> io::Result<()> {
        let mut state = self.0.lock();
        state.step()?;
        state.files.remove(&Name::Index);
        Ok(())
    }

    fn index_bytes(&self) -> u64 {
        self.0.lock().len(Name::Index).unwrap_or(0)
    }
}

struct Unlock(Arc<Mutex<State>>);

impl Drop for Unlock {
    fn drop(&mut self) {
        self.0.lock().is_locked = false;
    }
}

/// An open file.
struct Open {
    state: Arc<Mutex<State>>,
    name: Name,
}

impl fmt::Debug for Open {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Open").field(&self.name).finish()
    }
}

impl SegmentFile for Open {
    fn len(&self) -> io::Result<u64> {
        self.state.lock().len(self.name)
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.state.lock().read(self.name, offset, out)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.state.lock().write(self.name, offset, bytes)
    }

    fn reserve(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.state.lock().set_len(self.name, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.state.lock().sync(self.name)
    }
}

impl redb::StorageBackend for Open {
    fn len(&self) -> io::Result<u64> {
        self.state.lock().len(self.name)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.state.lock().read(self.name, offset, out)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.state.lock().set_len(self.name, bytes)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.state.lock().sync(self.name)
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        self.state.lock().write(self.name, offset, data)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn power_failure_keeps_what_was_synced_and_what_was_lucky() {
        let disk = MemoryDisk::new();
        let file = disk.create(1).unwrap();
        file.write_at(0, &[1; 600]).unwrap();
        file.sync().unwrap();
        file.write_at(600, &[2; 1024]).unwrap();
        let unlucky = disk.after_power_failure(&mut || false).open(1).unwrap();
        assert_eq!(unlucky.len().unwrap(), 600);
        let mut turn = false;
        let torn = disk.after_power_failure(&mut || {
            turn = !turn;
            !turn
        });
        let mut bytes = vec![9; 1024];
        torn.open(1).unwrap().read_at(600, &mut bytes).unwrap();
        assert_eq!((&bytes[..512], &bytes[512..]), (&[0; 512][..], &[2; 512][..]));
    }

    #[test]
    fn without_power_nothing_works() {
        let disk = MemoryDisk::new();
        let file = disk.create(1).unwrap();
        disk.power_off_at(disk.steps() + 2);
        file.write_at(0, &[1]).unwrap();
        assert!(file.sync().is_err());
        assert!(file.len().is_err());
        assert_eq!(disk.after_power_failure(&mut || false).open(1).unwrap().len().unwrap(), 0);
    }

    #[test]
    fn a_disk_that_cannot_be_written_to_changes_nothing_and_is_read() {
        let disk = MemoryDisk::new();
        let file = disk.create(1).unwrap();
        file.write_at(0, &[1; 8]).unwrap();
        disk.set_read_only(true);
        let error = file.write_at(0, &[2; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::ReadOnlyFilesystem);
        assert!(file.sync().is_err() && disk.create(2).is_err() && disk.remove(1).is_err());
        let mut bytes = [0; 8];
        file.read_at(0, &mut bytes).unwrap();
        assert_eq!(bytes, [1; 8]);
        disk.set_read_only(false);
        file.sync().unwrap();
    }

    #[test]
    fn a_full_disk_takes_what_fits() {
        let disk = MemoryDisk::new();
        let file = disk.create(1).unwrap();
        disk.limit_bytes(Some(5));
        let error = file.write_at(0, &[1; 8]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert_eq!(file.len().unwrap(), 5);
    }
}
