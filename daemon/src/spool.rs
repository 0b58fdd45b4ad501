//! The folder of the files that clients uploaded. A file is there whole or not at all.

use std::collections::HashSet;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::fs::{File, OpenOptions};
use tokio::io::{AsyncReadExt, AsyncSeekExt, AsyncWriteExt, BufWriter};

/// What is written to the disk at once, in bytes.
const WRITE_AT_ONCE: usize = 256 << 10;

/// How the name of a file ends that is not whole yet.
const DRAFT: &str = "part";

/// How the name of a whole file ends.
const WHOLE: &str = "jsonl";

/// The folder.
#[derive(Debug, Clone)]
pub struct Spool {
    folder: PathBuf,
    /// Whole files that nothing knew when it was last asked.
    suspects: Arc<Mutex<HashSet<u64>>>,
}

/// A file that is being written. Dropped before it is whole, it is removed.
pub struct Draft {
    writer: BufWriter<File>,
    path: PathBuf,
    target: Option<PathBuf>,
}

impl Spool {
    /// Makes the folder, readable by its owner alone, if it is not there.
    pub fn open(folder: PathBuf) -> io::Result<Self> {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
        Ok(Self { folder, suspects: Arc::default() })
    }

    /// Begins a file.
    pub async fn begin(&self, number: u64) -> io::Result<Draft> {
        let path = self.path(number, DRAFT);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).await?;
        let writer = BufWriter::with_capacity(WRITE_AT_ONCE, file);
        Ok(Draft { writer, path, target: Some(self.path(number, WHOLE)) })
    }

    /// Opens a file for reading from a byte on.
    pub async fn read(&self, number: u64, from: u64) -> io::Result<File> {
        let mut file = File::open(self.path(number, WHOLE)).await?;
        file.seek(io::SeekFrom::Start(from)).await?;
        Ok(file)
    }

    /// Removes a file; none is there afterwards.
    pub async fn remove(&self, number: u64) -> io::Result<()> {
        match tokio::fs::remove_file(self.path(number, WHOLE)).await {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    /// Removes what a crash has left: drafts, and files that nothing knows.
    pub fn tidy(&self, known: &HashSet<u64>) -> io::Result<u32> {
        let mut removed = 0;
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            let is_known = path.extension().is_some_and(|extension| extension == WHOLE)
                && numbered(&path).is_some_and(|number| known.contains(&number));
            if !is_known && numbered(&path).is_some() {
                std::fs::remove_file(&path)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// Whole files that nothing knows, now and when it was last asked: what the store refused to know has nobody who waits
    /// for it. In between, one that is new has become known.
    pub fn forgotten(&self, known: &HashSet<u64>) -> io::Result<Vec<u64>> {
        let mut unknown = HashSet::new();
        for entry in std::fs::read_dir(&self.folder)? {
            let path = entry?.path();
            if path.extension().is_some_and(|extension| extension == WHOLE) {
                unknown.extend(numbered(&path).filter(|number| !known.contains(number)));
            }
        }
        let mut suspects = self.suspects.lock();
        let forgotten = unknown.intersection(&suspects).copied().collect();
        *suspects = unknown;
        Ok(forgotten)
    }

    fn path(&self, number: u64, ending: &str) -> PathBuf {
        self.folder.join(format!("{number:x}.{ending}"))
    }
}

/// The number in the name of one of our files.
fn numbered(path: &Path) -> Option<u64> {
    let is_ours = path.extension().is_some_and(|extension| extension == DRAFT || extension == WHOLE);
    let stem = path.file_stem().filter(|_| is_ours)?;
    u64::from_str_radix(stem.to_str()?, 16).ok()
}

impl Draft {
    /// Adds to the file.
    pub async fn write(&mut self, data: &[u8]) -> io::Result<()> {
        self.writer.write_all(data).await
    }

    /// Adds what another file holds.
    pub async fn write_all_of(&mut self, mut file: File) -> io::Result<u64> {
        let mut buffer = vec![0; WRITE_AT_ONCE];
        let mut bytes = 0;
        loop {
            let read = file.read(&mut buffer).await?;
            if read == 0 {
                return Ok(bytes);
            }
            self.write(buffer.get(..read).unwrap_or_default()).await?;
            bytes += read as u64;
        }
    }

    /// The file is whole, and durable when this returns.
    pub async fn finish(mut self) -> io::Result<()> {
        self.writer.flush().await?;
        self.writer.get_ref().sync_all().await?;
        if let Some(target) = self.target.take() {
            tokio::fs::rename(&self.path, &target).await?;
            if let Some(folder) = target.parent() {
                File::open(folder).await?.sync_all().await?;
            }
        }
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        if self.target.is_some()
            && let Err(error) = std::fs::remove_file(&self.path)
        {
            tracing::warn!(path = %self.path.display(), %error, "an unfinished upload could not be removed; the next start does");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(folder: &Path) -> Vec<String> {
        let mut names: Vec<String> = std::fs::read_dir(folder)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    #[tokio::test]
    async fn a_file_is_there_whole_or_not_at_all() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path().join("files")).unwrap();
        let folder = folder.path().join("files");
        let mut draft = spool.begin(0x2a).await.unwrap();
        draft.write(b"hello ").await.unwrap();
        assert!(spool.read(0x2a, 0).await.is_err());
        draft.write(b"world").await.unwrap();
        draft.finish().await.unwrap();
        let mut text = String::new();
        spool.read(0x2a, 6).await.unwrap().read_to_string(&mut text).await.unwrap();
        assert_eq!((text.as_str(), names(&folder)), ("world", vec!["2a.jsonl".to_owned()]));

        let mut given_up = spool.begin(0x2b).await.unwrap();
        given_up.write(b"x").await.unwrap();
        drop(given_up);
        assert_eq!(names(&folder), ["2a.jsonl"]);
        spool.remove(0x2a).await.unwrap();
        spool.remove(0x2a).await.unwrap();
        assert_eq!(names(&folder), [""; 0]);
    }

    #[test]
    fn what_a_crash_left_is_removed_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path().to_owned()).unwrap();
        for name in ["1.jsonl", "2.jsonl", "3.part", "notes.txt", "zz.jsonl"] {
            std::fs::write(folder.path().join(name), "x").unwrap();
        }
        assert_eq!(spool.tidy(&HashSet::from([1, 3])).unwrap(), 2);
        assert_eq!(names(folder.path()), ["1.jsonl", "notes.txt", "zz.jsonl"]);
    }

    #[test]
    fn what_nothing_knows_twice_is_forgotten() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::open(folder.path().to_owned()).unwrap();
        let write = |name: &str| std::fs::write(folder.path().join(name), "x").unwrap();
        for name in ["1.jsonl", "2.jsonl", "3.part", "notes.txt"] {
            write(name);
        }
        let known = HashSet::from([1]);
        assert_eq!(spool.forgotten(&known).unwrap(), [0; 0], "one that is new may become known");
        write("4.jsonl");
        assert_eq!(spool.forgotten(&known).unwrap(), [2]);
        assert_eq!(spool.forgotten(&HashSet::from([1, 2, 4])).unwrap(), [0; 0]);
    }
}
