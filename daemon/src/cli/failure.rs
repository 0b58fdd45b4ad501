//! Why a command did not do what it was asked for, and with which code the program ends.

use std::fmt::Write as _;
use std::io;
use std::path::PathBuf;

use crate::cli::client::{CallError, ConnectError};
use crate::cli::input::InputError;
use crate::cli::memory::MemoryError;

/// What the user has to mend (`EX_USAGE` of sysexits.h).
const USAGE: u8 = 64;
/// The daemon cannot be reached, or cannot work now (`EX_UNAVAILABLE`).
const UNAVAILABLE: u8 = 69;
/// A file cannot be written (`EX_IOERR`).
const CANNOT_WRITE: u8 = 74;
/// The daemon does not let us in (`EX_NOPERM`).
const NOT_ALLOWED: u8 = 77;
/// Ended by Ctrl-C, as shells number it.
const INTERRUPTED: u8 = 130;

/// A command failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Failure {
    /// Some requests of the job have no answer; the report has said so.
    #[error("some requests have no answer")]
    NotAllAnswered,
    /// The file cannot be handed in.
    #[error(transparent)]
    Input(#[from] InputError),
    /// The daemon's address or the key cannot be used.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// A call got no good answer.
    #[error(transparent)]
    Call(#[from] CallError),
    /// The very first call found nobody.
    #[error(transparent)]
    NobodyThere(CallError),
    /// The file that remembers the job.
    #[error(transparent)]
    Memory(#[from] MemoryError),
    /// A result would go over a file that is none of this job's.
    #[error(
        "{path} is there already and is not of this job: move it away, name another folder with --out, or give --overwrite",
        path = .0.display()
    )]
    InTheWay(PathBuf),
    /// A result cannot be written.
    #[error("cannot write {path}: {1}", path = .0.display())]
    Write(PathBuf, #[source] io::Error),
    /// A result that is cut off without any sign of it.
    #[error(
        "{} has {lines} lines where the job counts {expected}; the same command fetches it again",
        path.display()
    )]
    Incomplete {
        /// What was fetched.
        path: PathBuf,
        /// So many are there.
        lines: u64,
        /// So many should be.
        expected: u64,
    },
    /// The job that this file was handed in as is gone.
    #[error(
        "this file was handed in as {0}, and the daemon does not know that job: was it with another key, or is it long \
         ago? Give --again to hand it in anew"
    )]
    JobGone(String),
    /// The command line asks for what cannot be.
    #[error("{0}")]
    Usage(String),
    /// Ctrl-C; with what the user may do now.
    #[error("{0}")]
    Interrupted(&'static str),
}

impl Failure {
    /// What to print, unless everything has been said.
    pub(crate) fn text(&self) -> Option<String> {
        (!matches!(self, Self::NotAllAnswered)).then(|| self.to_string())
    }

    /// The program's exit code.
    pub(crate) fn exit_code(&self) -> u8 {
        match self {
            Self::NotAllAnswered => 1,
            Self::Input(_) | Self::Connect(_) | Self::InTheWay(_) | Self::JobGone(_) | Self::Usage(_) => {
                USAGE
            }
            Self::Call(error) | Self::NobodyThere(error) => match error {
                CallError::Unreachable { .. }
                | CallError::BrokenOff { .. }
                | CallError::Passing { .. }
                | CallError::Strange { .. } => UNAVAILABLE,
                CallError::NotAllowed { .. } => NOT_ALLOWED,
                CallError::NotFound { .. } | CallError::Refused { .. } => USAGE,
            },
            Self::Incomplete { .. } => UNAVAILABLE,
            Self::Memory(_) | Self::Write(..) => CANNOT_WRITE,
            Self::Interrupted(_) => INTERRUPTED,
        }
    }
}

/// An error with all its causes, each once.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            // Writing to a String cannot fail.
            let _infallible = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text
}
