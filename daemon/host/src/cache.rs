//! Machine code kept on disk: one file for each component, version of wasmtime and settings.
//!
//! ```text
//! <sha-256 of the wasm>-<hash of wasmtime's version and settings>.cwasm    what wasmtime serialised, memory-mapped
//! <the same>.sum                                                           "<length> <crc32 in hex>\n"
//! ```
//! Whoever can write such a file can run code in this process. So the folder and the files must belong to this user
//! and be writable by nobody else; the checksum is against damage, not against people. Whatever does not fit is
//! compiled again and replaced. Files are written beside their place and renamed into it, so that several processes may
//! share a folder.

use std::{
    fs::{self, DirBuilder, File, Metadata},
    hash::{DefaultHasher, Hash, Hasher},
    io::{self, Read, Write},
    os::unix::fs::{DirBuilderExt, MetadataExt},
    path::{Path, PathBuf},
};

use tempfile::NamedTempFile;
use wasmtime::component::Component;

use crate::{
    error::HostError,
    precompiled::{self, Vouched},
};

/// Write permission for the group or for everybody.
const WRITABLE_BY_OTHERS: u32 = 0o022;

/// The folder of compiled components.
pub(crate) struct Cache {
    folder: PathBuf,
    /// Version and settings: the part of a file's name that is the same for all components.
    suffix: String,
}

impl Cache {
    /// Makes the folder if need be, and refuses one that somebody else could write to.
    pub(crate) fn open(folder: &Path, engine: &wasmtime::Engine) -> Result<Self, HostError> {
        let failed = |source| HostError::CacheFolder { path: folder.to_owned(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(failed)?;
        let metadata = fs::metadata(folder).map_err(failed)?;
        if let Err(why) = ours_alone(&metadata) {
            return Err(HostError::CacheUnsafe { path: folder.to_owned(), why });
        }
        // The standard library's hasher without keys gives the same number in every run of one build, and a number
        // that changes with the compiler only means one compilation more.
        let mut hasher = DefaultHasher::new();
        engine.precompile_compatibility_hash().hash(&mut hasher);
        let suffix = format!("{:016x}", hasher.finish());
        Ok(Self { folder: folder.to_owned(), suffix })
    }

    /// The component as it was compiled before, if it is there and unhurt.
    pub(crate) fn get(&self, engine: &wasmtime::Engine, sha256: &str) -> Option<Component> {
        let (code, sum) = self.paths(sha256);
        match vouch(&code, &sum) {
            Ok(()) => {}
            Err(refusal) if refusal.kind() == io::ErrorKind::NotFound => return None,
            Err(refusal) => {
                tracing::warn!(file = %code.display(), why = %refusal, "compiling a plugin again: kept code refused");
                return None;
            }
        }
        match precompiled::map(engine, &Vouched(&code)) {
            Ok(component) => Some(component),
            Err(refusal) => {
                tracing::warn!(
                    file = %code.display(),
                    why = format!("{refusal:#}"),
                    "compiling a plugin again: kept code refused"
                );
                None
            }
        }
    }

    /// Keeps a component's code. A failure costs a compilation at the next start, and is only logged.
    pub(crate) fn put(&self, component: &Component, sha256: &str) {
        let (code, sum) = self.paths(sha256);
        let kept =
            component.serialize().map_err(|error| io::Error::other(format!("{error:#}"))).and_then(|bytes| {
                // The sum first: code without its sum is not used.
                self.place(&sum, checksum_line(bytes.len() as u64, crc32fast::hash(&bytes)).as_bytes())?;
                self.place(&code, &bytes)
            });
        if let Err(error) = kept {
            tracing::warn!(file = %code.display(), %error, "cannot keep a plugin's compiled code");
        }
    }

    fn place(&self, path: &Path, bytes: &[u8]) -> io::Result<()> {
        let mut file = NamedTempFile::new_in(&self.folder)?;
        file.write_all(bytes)?;
        file.persist(path)?;
        Ok(())
    }

    fn paths(&self, sha256: &str) -> (PathBuf, PathBuf) {
        let stem = format!("{sha256}-{}", self.suffix);
        (self.folder.join(format!("{stem}.cwasm")), self.folder.join(format!("{stem}.sum")))
    }
}

/// Whether a file's code may run in this process.
fn vouch(code: &Path, sum: &Path) -> io::Result<()> {
    let metadata = fs::symlink_metadata(code)?;
    if !metadata.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    ours_alone(&metadata).map_err(io::Error::other)?;
    let noted = fs::read_to_string(sum)?;
    if noted == checksum_line(metadata.len(), checksum(code)?) {
        Ok(())
    } else {
        Err(io::Error::new(
            io::ErrorKind::InvalidData,
            "its checksum is not the one noted when it was written",
        ))
    }
}

fn ours_alone(metadata: &Metadata) -> Result<(), String> {
    let us = rustix::process::geteuid().as_raw();
    if metadata.uid() != us {
        return Err(format!("it belongs to user {}, and this process runs as user {us}", metadata.uid()));
    }
    if metadata.mode() & WRITABLE_BY_OTHERS != 0 {
        return Err(format!("others may write to it (mode {:o})", metadata.mode() & 0o7777));
    }
    Ok(())
}

fn checksum(path: &Path) -> io::Result<u32> {
    let mut file = File::open(path)?;
    let mut hasher = crc32fast::Hasher::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(hasher.finalize()),
            length => hasher.update(buffer.get(..length).unwrap_or_default()),
        }
    }
}

fn checksum_line(length: u64, crc32: u32) -> String {
    format!("{length} {crc32:08x}\n")
}
