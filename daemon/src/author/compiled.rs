//! Where the commands for authors compile, and what they keep of it: an author calls one after the other on the same component,
//! and a large one takes its time.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::{Duration, SystemTime};

use offpeak_host::{Engine, EngineOptions, HostError, Inspection, Source};
use tempfile::TempDir;

/// As many components are kept, each tens of mebibytes: those that somebody works at now.
const KEPT: usize = 6;

/// Whoever waits this long is told for what.
const PATIENCE: Duration = Duration::from_secs(1);

/// There is no engine to try a component on.
#[derive(Debug, thiserror::Error)]
pub enum WorkbenchError {
    /// There is no place for what is compiled.
    #[error("there is no folder for what is compiled on the way: {0}; set TMPDIR to one that can be written")]
    Folder(#[from] io::Error),
    /// The engine cannot be had.
    #[error(transparent)]
    Engine(#[from] HostError),
}

/// An engine for a command.
pub(super) struct Workbench {
    pub engine: Engine,
    /// Where nothing is kept.
    _temporary: Option<TempDir>,
}

impl Workbench {
    /// One that keeps what it compiles in a folder, or without one or where that cannot be used, nothing.
    pub(super) fn new(folder: Option<&Path>, pool_instances: u32) -> Result<Self, WorkbenchError> {
        let engine = |folder: &Path| {
            let cache_dir = Some(folder.to_owned());
            Engine::new(&EngineOptions { cache_dir, pool_instances, ..EngineOptions::default() })
        };
        if let Some(folder) = folder
            && let Ok(engine) = engine(folder)
        {
            forget_old(folder)?;
            return Ok(Self { engine, _temporary: None });
        }
        let temporary = tempfile::tempdir()?;
        Ok(Self { engine: engine(temporary.path())?, _temporary: Some(temporary) })
    }

    /// What a component is. If it has to be compiled and that takes long, standard error says so.
    pub(super) fn inspect(&self, name: &str, source: Source<'_>) -> Result<Inspection, HostError> {
        let (done, is_done) = channel::<()>();
        std::thread::scope(|scope| {
            scope.spawn(move || {
                if is_done.recv_timeout(PATIENCE) == Err(RecvTimeoutError::Timeout) {
                    eprintln!(
                        "offpeak: compiling {name}; one with a language's runtime in it takes up to a minute"
                    );
                }
            });
            let found = self.engine.inspect(name, source);
            drop(done);
            found
        })
    }
}

/// Where components are kept between commands; nowhere for a user without a home.
pub(super) fn folder() -> Option<PathBuf> {
    let named = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    let cache = named("XDG_CACHE_HOME").or_else(|| Some(named("HOME")?.join(".cache")))?;
    Some(cache.join("offpeak").join("plugins"))
}

/// Removes all but the newest.
fn forget_old(folder: &Path) -> io::Result<()> {
    let mut kept: Vec<(SystemTime, PathBuf)> = Vec::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        // Another command may be at it too.
        let modified = entry.metadata().and_then(|metadata| metadata.modified());
        if let (true, Ok(modified)) = (entry.path().extension().is_some_and(|end| end == "cwasm"), modified) {
            kept.push((modified, entry.path()));
        }
    }
    kept.sort_unstable_by(|one, other| other.cmp(one));
    for (_, path) in kept.into_iter().skip(KEPT) {
        for path in [path.with_extension("sum"), path] {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_component_is_compiled_for_the_first_command_only() {
        let folder = tempfile::tempdir().unwrap();
        let compiled = || {
            let bench = Workbench::new(Some(folder.path()), 1).unwrap();
            bench.inspect("router", Source::Bytes(offpeak_bundled::SLA_ROUTER)).unwrap();
            bench.engine.compilations()
        };
        assert_eq!((compiled(), compiled()), (1, 0));
    }

    #[test]
    fn the_newest_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let begin = SystemTime::now();
        for number in 0..2 * KEPT {
            let code = folder.path().join(format!("{number}.cwasm"));
            std::fs::write(code.with_extension("sum"), "").unwrap();
            let file = std::fs::File::create(code).unwrap();
            file.set_modified(begin + Duration::from_secs(number as u64)).unwrap();
        }
        forget_old(folder.path()).unwrap();
        let mut left: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort_unstable();
        assert_eq!(left.len(), 2 * KEPT);
        assert!((KEPT..2 * KEPT).all(|number| left.contains(&format!("{number}.cwasm").into())), "{left:?}");
    }

    #[test]
    fn a_folder_that_cannot_be_used_is_done_without() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("file");
        std::fs::write(&file, "").unwrap();
        let bench = Workbench::new(Some(&file), 1).unwrap();
        assert!(bench.inspect("router", Source::Bytes(offpeak_bundled::SLA_ROUTER)).is_ok());
    }
}
