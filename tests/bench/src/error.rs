//! What stops a benchmark.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A benchmark that could not be brought to its end; no figure of it counts.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The operating system refused something.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: io::Error,
    },
    /// A connection of the load generator broke.
    #[error("a connection of the load generator broke: {0}. Does the process at its other end still run?")]
    Http(#[from] hyper::Error),
    /// An answer was not what it had to be.
    #[error("a wrong answer, so that nothing was measured: {0}")]
    WrongAnswer(String),
    /// What is to be measured needs more open files.
    #[error(
        "only {files} files may be open (ulimit -Hn), which is enough for {calls} held calls: raise that, or say --calls {calls}"
    )]
    Files {
        /// The limit.
        files: u64,
        /// What it is enough for.
        calls: u64,
    },
    /// Some benchmarks failed; the others have their figures.
    #[error("not measured: {0}")]
    Parts(String),
    /// A program is not installed.
    #[error("{program} is not on the PATH. Install it ({remedy}), or name it with {option}")]
    Missing {
        /// Which.
        program: &'static str,
        /// How to get it.
        remedy: &'static str,
        /// The option that names it.
        option: &'static str,
    },
    /// The daemon could not be built.
    #[error("`{0}` failed; run it by hand to see why")]
    Build(String),
    /// A process ended, or did not get ready.
    #[error("{name} was not ready within {limit:?}. Its last words, from {log}:\n{tail}")]
    NotReady {
        /// Which.
        name: &'static str,
        /// How long it was waited for.
        limit: Duration,
        /// Where it logs.
        log: PathBuf,
        /// The end of that.
        tail: String,
    },
    /// Something that had to come about did not.
    #[error("{what} did not come about within {limit:?}")]
    TimedOut {
        /// What.
        what: String,
        /// How long it was waited for.
        limit: Duration,
    },
    /// The store.
    #[error("the store failed: {0}")]
    Store(#[from] offpeak_store::StoreError),
    /// The plugin host.
    #[error("a plugin could not be loaded: {0}")]
    Host(#[from] offpeak_host::HostError),
    /// A plugin.
    #[error("a plugin failed: {0}")]
    Plugin(#[from] offpeak_host::PluginError),
}

/// Gives an I/O error the sentence that it lacks.
pub trait Context<T> {
    /// `what` was tried.
    fn context(self, what: impl Into<String>) -> Result<T, Error>;
}

impl<T, E: Into<io::Error>> Context<T> for Result<T, E> {
    fn context(self, what: impl Into<String>) -> Result<T, Error> {
        self.map_err(|source| Error::Io { what: what.into(), source: source.into() })
    }
}
