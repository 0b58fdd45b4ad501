//! Steps of a task: a line for people, a program that is run, and what to do if it fails.

use std::{
    env,
    ffi::OsStr,
    fmt, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::Instant,
};

use crate::setup::SetupError;

/// Why a task did not come to its end.
#[derive(Debug)]
pub(crate) enum TaskError {
    /// The set-up failed.
    Setup(SetupError),
    /// A program could not be started.
    Start { program: String, error: io::Error, remedy: String },
    /// A program failed; it has said why.
    Failed { step: String },
    /// A file could not be read or written.
    File(PathBuf, io::Error),
    /// Something that a program said could not be understood.
    Unreadable { what: &'static str, problem: String },
    /// What was checked is not as it should be.
    Wrong(String),
}

impl fmt::Display for TaskError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Setup(error) => error.fmt(f),
            Self::Start { program, error, remedy } => write!(f, "cannot run {program}: {error}; {remedy}"),
            Self::Failed { step } => write!(f, "{step} failed; what it wrote above says why"),
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
            Self::Unreadable { what, problem } => write!(f, "{what} is not as expected: {problem}"),
            Self::Wrong(text) => f.write_str(text),
        }
    }
}

impl From<SetupError> for TaskError {
    fn from(error: SetupError) -> Self {
        Self::Setup(error)
    }
}

/// The folder of the workspace.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.ancestors().nth(2).unwrap_or(here)
}

/// The cargo that runs us, in the workspace.
pub(crate) fn cargo() -> Command {
    let mut command = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command.current_dir(root());
    // These are about this very package; what is run would take them for its own.
    for (name, _) in env::vars_os() {
        let is_ours = |name: &str| name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
        if name.to_str().is_some_and(is_ours) {
            command.env_remove(name);
        }
    }
    command
}

/// `cargo` with arguments.
pub(crate) fn cargo_with(arguments: &[&str]) -> Command {
    let mut command = cargo();
    command.args(arguments);
    command
}

/// Announces a step, runs its program with our output, and says how long it took.
pub(crate) fn step(what: &str, command: &mut Command) -> Result<(), TaskError> {
    announce(what);
    let started = Instant::now();
    let status = command.stdin(Stdio::null()).status().map_err(|error| TaskError::Start {
        program: command.get_program().to_string_lossy().into_owned(),
        error,
        remedy: "check that it is installed".to_owned(),
    })?;
    if !status.success() {
        return Err(TaskError::Failed { step: what.to_owned() });
    }
    announce(&format!("{what}: done after {} s", started.elapsed().as_secs()));
    Ok(())
}

/// A line about what is going on.
pub(crate) fn announce(text: &str) {
    eprintln!("xtask: {text}");
}

/// What a program writes to stdout, if it can be run and is content.
pub(crate) fn output_of(program: impl AsRef<OsStr>, arguments: &[&str]) -> Option<String> {
    let output = Command::new(program).args(arguments).stderr(Stdio::null()).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}
