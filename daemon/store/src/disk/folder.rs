//! A store's place in the file system.
//!
//! ```text
//! lock                      taken while a process uses the folder
//! index.redb                the index
//! log/0000000001.log        segment files
//! quarantine/               copies of damaged parts
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{Disk, Guard, SegmentFile};
use crate::error::StoreError;

/// A folder of the file system.
#[derive(Debug)]
pub struct Folder {
    path: PathBuf,
}

impl Folder {
    /// Uses a folder; makes it, readable by its owner alone, if it is not there.
    pub fn new(path: &Path) -> io::Result<Self> {
        make_folder(path)?;
        make_folder(&path.join("log"))?;
        Ok(Self { path: path.to_owned() })
    }

    /// Uses a folder in which there is a store already; makes nothing.
    pub fn existing(path: &Path) -> Result<Arc<Self>, StoreError> {
        if path.join("index.redb").is_file() {
            Ok(Arc::new(Self { path: path.to_owned() }))
        } else {
            Err(StoreError::NoIndex { folder: path.to_owned() })
        }
    }

    fn segment_path(&self, segment: u32) -> PathBuf {
        self.path.join("log").join(format!("{segment:010}.log"))
    }

    fn index_path(&self) -> PathBuf {
        self.path.join("index.redb")
    }
}

/// Makes a folder and those above it, each readable by its owner alone, and makes that durable.
fn make_folder(path: &Path) -> io::Result<()> {
    if path.is_dir() {
        return Ok(());
    }
    DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).map_or(Ok(()), sync_folder)
}

fn sync_folder(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

fn remove_file(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Disk for Folder {
    fn lock(&self) -> io::Result<Option<Guard>> {
        let file = private().create(true).truncate(false).open(self.path.join("lock"))?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Box::new(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    fn segments(&self) -> io::Result<Vec<u32>> {
        let mut found = Vec::new();
        for file in fs::read_dir(self.path.join("log"))? {
            let name = file?.file_name();
            let number = name.to_str().and_then(|name| name.strip_suffix(".log")).map(str::parse);
            if let Some(Ok(number)) = number {
                found.push(number);
            }
        }
        Ok(found)
    }

    fn create(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
        let path = self.segment_path(segment);
        let file = private().create(true).truncate(true).open(&path)?;
        file.sync_all()?;
        sync_folder(&self.path.join("log"))?;
        Ok(Arc::new(OpenFile(file)))
    }

    fn open(&self, segment: u32) -> io::Result<Arc<dyn SegmentFile>> {
        Ok(Arc::new(OpenFile(private().open(self.segment_path(segment))?)))
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        remove_file(&self.segment_path(segment))?;
        sync_folder(&self.path.join("log"))
    }

    fn quarantine(&self, name: &str, bytes: &[u8]) -> io::Result<()> {
        let folder = self.path.join("quarantine");
        make_folder(&folder)?;
        let file = private().create(true).truncate(true).open(folder.join(name))?;
        file.write_all_at(bytes, 0)?;
        file.sync_all()
    }

    fn open_index(&self, builder: &redb::Builder) -> Result<redb::Database, redb::DatabaseError> {
        let path = self.index_path();
        let is_new = !path.exists();
        let file = private().create(true).truncate(false).open(path)?;
        if is_new {
            sync_folder(&self.path)?;
        }
        builder.create_with_backend(redb::backends::FileBackend::new(file)?)
    }

    fn remove_index(&self) -> io::Result<()> {
        remove_file(&self.index_path())?;
        sync_folder(&self.path)
    }

    fn index_bytes(&self) -> u64 {
        fs::metadata(self.index_path()).map_or(0, |found| found.len())
    }
}

#[derive(Debug)]
struct OpenFile(File);

impl SegmentFile for OpenFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        self.0.read_exact_at(out, offset)
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn reserve(&self, bytes: u64) -> io::Result<()> {
        Ok(rustix::fs::fallocate(&self.0, rustix::fs::FallocateFlags::empty(), 0, bytes)?)
    }

    fn set_len(&self, bytes: u64) -> io::Result<()> {
        self.0.set_len(bytes)
    }

    fn sync(&self) -> io::Result<()> {
        self.0.sync_data()
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_folder_is_private_and_locked_once() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        let first = Folder::new(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o700);
        let guard = first.lock().unwrap();
        assert!(guard.is_some());
        let second = Folder::new(&path).unwrap();
        assert!(second.lock().unwrap().is_none());
        drop(guard);
        assert!(second.lock().unwrap().is_some());
    }

    #[test]
    fn segments_are_found_and_removed() {
        let folder = tempfile::tempdir().unwrap();
        let disk = Folder::new(folder.path()).unwrap();
        fs::write(folder.path().join("log/notes.txt"), "not a segment").unwrap();
        let file = disk.create(7).unwrap();
        file.write_at(0, b"hello").unwrap();
        assert_eq!(disk.segments().unwrap(), [7]);
        let mut read = [0; 5];
        disk.open(7).unwrap().read_at(0, &mut read).unwrap();
        assert_eq!(&read, b"hello");
        disk.remove(7).unwrap();
        disk.remove(7).unwrap();
        assert_eq!(disk.segments().unwrap(), Vec::<u32>::new());
    }
}
