//! What is remembered of a file that is being handed in, so that the same command goes on instead of beginning anew.
//!
//! One small file beside the results, named by what the job is: the file's content, the window and the daemon. What it
//! lacks because the machine died between a call and its note is found out at the daemon.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::cli::report::Report;

/// The file cannot be used.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MemoryError {
    /// The file system says no.
    #[error("cannot keep {path}, which remembers the job: {1}; mend that, or name another folder with --out", path = .0.display())]
    File(PathBuf, #[source] io::Error),
    /// Not ours, or damaged.
    #[error(
        "{path} cannot be understood ({1}); if it is damaged, remove it: a job that was made is found at the daemon",
        path = .0.display()
    )]
    Unreadable(PathBuf, #[source] serde_json::Error),
}

/// How far handing in is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "stage", rename_all = "snake_case")]
pub(crate) enum Stage {
    /// Nothing is at the daemon that we know of.
    New,
    /// The file is there; a job of it may be.
    Uploaded {
        /// The file at the daemon.
        file_id: String,
    },
    /// There is a job.
    Submitted {
        /// Its id.
        job_id: String,
    },
    /// It has ended and its results are here.
    Fetched {
        /// What there is to say about it.
        report: Box<Report>,
    },
}

/// What makes two commands the same: who runs them twice means one job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Key {
    /// The daemon.
    pub(crate) url: String,
    /// Of the file's content.
    pub(crate) sha256: String,
    /// As it was written.
    pub(crate) window: String,
}

impl Key {
    /// The name of the file that remembers.
    fn file_name(&self) -> String {
        let mut hash = Sha256::new();
        for part in [&self.url, &self.sha256, &self.window] {
            hash.update(part);
            hash.update([0]);
        }
        let name: String = format!("{:x}", hash.finalize()).chars().take(16).collect();
        format!(".offpeak-{name}.json")
    }
}

#[derive(Serialize, Deserialize)]
struct Record {
    about: String,
    #[serde(flatten)]
    key: Key,
    #[serde(flatten)]
    stage: Stage,
}

/// The stage, on disk.
#[derive(Debug)]
pub(crate) struct Memory {
    folder: PathBuf,
    path: PathBuf,
    key: Key,
    stage: Stage,
}

impl Memory {
    /// What is remembered in `folder`; the beginning if nothing is.
    pub(crate) fn open(folder: &Path, key: Key) -> Result<Self, MemoryError> {
        let path = folder.join(key.file_name());
        let stage = match fs::read(&path) {
            Ok(text) => {
                let record: Record = serde_json::from_slice(&text)
                    .map_err(|error| MemoryError::Unreadable(path.clone(), error))?;
                if record.key == key { record.stage } else { Stage::New }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Stage::New,
            Err(error) => return Err(MemoryError::File(path, error)),
        };
        Ok(Self { folder: folder.to_owned(), path, key, stage })
    }

    /// How far it is.
    pub(crate) fn stage(&self) -> &Stage {
        &self.stage
    }

    /// What the command is about.
    pub(crate) fn key(&self) -> &Key {
        &self.key
    }

    /// Goes on to a stage; it is on disk when this returns.
    pub(crate) fn set(&mut self, stage: Stage) -> Result<(), MemoryError> {
        let failed = |error| MemoryError::File(self.path.clone(), error);
        if stage == Stage::New {
            match fs::remove_file(&self.path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
                _ => self.stage = stage,
            }
            return Ok(());
        }
        let record = Record {
            about: "offpeak submit remembers here which job it made of a file; it may be removed when the job is done"
                .to_owned(),
            key: self.key.clone(),
            stage: stage.clone(),
        };
        let text = serde_json::to_vec_pretty(&record).map_err(|error| failed(error.into()))?;
        self.write(&text).map_err(failed)?;
        self.stage = stage;
        Ok(())
    }

    /// Beside and renamed, so that it is never half there.
    fn write(&self, text: &[u8]) -> io::Result<()> {
        let mut file = tempfile::NamedTempFile::new_in(&self.folder)?;
        file.write_all(text)?;
        file.as_file().sync_all()?;
        file.persist(&self.path)?;
        fs::File::open(&self.folder)?.sync_all()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(window: &str) -> Key {
        Key { url: "http://127.0.0.1:8400".to_owned(), sha256: "ab".repeat(32), window: window.to_owned() }
    }

    #[test]
    fn the_same_command_finds_its_stage_and_another_does_not() {
        let folder = tempfile::tempdir().unwrap();
        let open = |window| Memory::open(folder.path(), key(window)).unwrap();
        let mut memory = open("24h");
        assert_eq!(*memory.stage(), Stage::New);
        let uploaded = Stage::Uploaded { file_id: "file-1".to_owned() };
        memory.set(uploaded.clone()).unwrap();
        let submitted = Stage::Submitted { job_id: "batch_1".to_owned() };
        assert_eq!(*open("24h").stage(), uploaded);
        assert_eq!(*open("1h").stage(), Stage::New);
        memory.set(submitted.clone()).unwrap();
        assert_eq!(*open("24h").stage(), submitted);
        memory.set(Stage::New).unwrap();
        memory.set(Stage::New).unwrap();
        assert_eq!(*open("24h").stage(), Stage::New);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0, "it leaves nothing behind");
    }

    #[test]
    fn damage_is_told_and_not_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(key("24h").file_name());
        fs::write(&path, "{").unwrap();
        let error = Memory::open(folder.path(), key("24h")).unwrap_err();
        assert!(error.to_string().contains("remove it"), "{error}");
        assert_eq!(fs::read(&path).unwrap(), b"{");
    }
}
