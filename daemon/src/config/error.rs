//! What is wrong with a configuration, and where.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

/// There is no configuration that could be used.
#[derive(Debug, thiserror::Error)]
pub enum ConfigErrors {
    /// No path was given and none of the usual places has a file.
    #[error(
        "there is no configuration: OFFPEAK_CONFIG is not set, and neither {} exists. Begin with the documented \
         example config/offpeak.toml: copy it to {}, name a backend, and see what it does with `offpeak check` \
         (more: `offpeak check --help`)",
        display_paths(tried),
        tried.first().map(|path| path.display().to_string()).unwrap_or_default()
    )]
    NotFound {
        /// The usual places, in the order in which they were looked at.
        tried: Vec<PathBuf>,
    },
    /// The file cannot be read.
    #[error("cannot read the configuration {}: {source}; mend {named_by} or the file", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// What named it: an argument, a variable, or its being a usual place.
        named_by: &'static str,
        /// Why.
        source: io::Error,
    },
    /// It was read and has mistakes: all of them that could be found.
    #[error("{0}")]
    Invalid(Problems),
}

/// The mistakes of one configuration, in the order of the file; those of environment variables come last.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problems(Vec<Problem>);

/// One mistake.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// Where it was made.
    pub place: Place,
    /// The key, such as `backends.openai.base_url`; empty for the whole.
    pub path: String,
    /// What is wrong and what to do.
    pub message: String,
}

/// Where something of the configuration was written.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Place {
    /// Nowhere: it is missing, and nothing near it is there either.
    Whole(Arc<str>),
    /// In a file.
    File {
        /// The file's name.
        name: Arc<str>,
        /// Counted from 1.
        line: usize,
        /// In characters, counted from 1.
        column: usize,
    },
    /// In an environment variable of this name.
    Variable(Arc<str>),
}

impl Problems {
    pub(super) fn new(mut problems: Vec<Problem>) -> Self {
        problems.sort();
        problems.dedup();
        Self(problems)
    }

    /// The mistakes.
    pub fn as_slice(&self) -> &[Problem] {
        &self.0
    }
}

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.0.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            write!(f, "{problem}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: ", self.place)?;
        if !self.path.is_empty() {
            write!(f, "{}: ", self.path)?;
        }
        f.write_str(&self.message)
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Whole(name) | Self::Variable(name) => f.write_str(name),
            Self::File { name, line, column } => write!(f, "{name}:{line}:{column}"),
        }
    }
}

fn display_paths(paths: &[PathBuf]) -> String {
    paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(" nor ")
}
