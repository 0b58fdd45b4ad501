//! `cargo xtask setup`: the WebAssembly target, by the way that is open on this machine.

use std::{
    env, fmt,
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use offpeak_plugin_build::toolchain::{self, Compiler, TARGET, ToolchainError};

use crate::debian;

/// Why the set-up did not come to its end.
#[derive(Debug)]
pub(crate) enum SetupError {
    /// The search for a compiler failed.
    Toolchain(ToolchainError),
    /// A program that the set-up runs is missing or failed; what it said, and what to do.
    Program(String),
    /// A file could not be written or read.
    File(PathBuf, io::Error),
    /// This machine has no way to get the target.
    NoWay(String),
}

impl fmt::Display for SetupError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Toolchain(error) => error.fmt(f),
            Self::Program(text) | Self::NoWay(text) => f.write_str(text),
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl From<ToolchainError> for SetupError {
    fn from(error: ToolchainError) -> Self {
        Self::Toolchain(error)
    }
}

/// Makes the target available and returns a sentence about the result.
pub(crate) fn run() -> Result<String, SetupError> {
    let rustc = rustc();
    let folder = toolchain::private_folder()?;
    if let Some(compiler) = toolchain::find(&rustc, &folder)? {
        return Ok(describe(&compiler));
    }
    if may_use_rustup() {
        progress(&format!("rustup target add {TARGET}"));
        stream(Command::new("rustup").args(["target", "add", TARGET])).map_err(|problem| {
            SetupError::Program(format!(
                "`rustup target add {TARGET}` failed ({problem}); run it by hand, or set RUSTUP_AUTO_INSTALL=0 to use \
                 Debian's packages instead"
            ))
        })?;
    } else {
        install_private(&rustc, &folder)?;
    }
    toolchain::find(&rustc, &folder)?.map(|compiler| describe(&compiler)).ok_or_else(|| {
        SetupError::Program(format!(
            "the set-up ran, but {} still has no {TARGET}; is RUSTUP_TOOLCHAIN set to another toolchain than the one in \
             rust-toolchain.toml?",
            rustc.display()
        ))
    })
}

/// The compiler for plugins, once the set-up has run.
pub(crate) fn compiler() -> Result<Option<Compiler>, SetupError> {
    Ok(toolchain::find(&rustc(), &toolchain::private_folder()?)?)
}

/// The private tool chain, made by one process at a time.
fn install_private(rustc: &Path, folder: &Path) -> Result<(), SetupError> {
    let file_error = |error| SetupError::File(folder.to_owned(), error);
    fs::create_dir_all(folder).map_err(file_error)?;
    let lock = File::create(folder.join("lock")).map_err(file_error)?;
    if lock.try_lock().is_err() {
        progress("another set-up is at work; waiting for it");
        lock.lock().map_err(file_error)?;
    }
    if toolchain::find(rustc, folder)?.is_some() {
        return Ok(()); // the other one did it
    }
    debian::install(rustc, folder)
}

/// The compiler beside the cargo that runs us; through rustup's proxy it would take longer.
fn rustc() -> PathBuf {
    env::var_os("CARGO")
        .map(|cargo| Path::new(&cargo).with_file_name("rustc"))
        .filter(|rustc| rustc.exists())
        .unwrap_or_else(|| PathBuf::from("rustc"))
}

/// rustup may be asked to install things, unless the machine's owner said no.
fn may_use_rustup() -> bool {
    let forbidden = env::var("RUSTUP_AUTO_INSTALL").is_ok_and(|value| value == "0");
    !forbidden && succeeds(Command::new("rustup").arg("--version"))
}

fn describe(compiler: &Compiler) -> String {
    let rustc = compiler.rustc.display();
    match &compiler.linker {
        None => format!("ready: {TARGET} from the Rust toolchain, {rustc}"),
        Some(linker) => format!(
            "ready: {TARGET} from the private tool chain, {rustc}\nfor `offpeak plugin build` of a plugin in Rust:\n  export \
             RUSTC={rustc} CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER={}",
            linker.display()
        ),
    }
}

/// A line about what is going on, for people.
pub(crate) fn progress(text: &str) {
    eprintln!("setup: {text}");
}

/// Whether a program can be run and is content; its output is dropped.
pub(crate) fn succeeds(command: &mut Command) -> bool {
    command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
}

/// Runs a program whose output goes to stderr.
pub(crate) fn stream(command: &mut Command) -> Result<(), String> {
    let status = command.stdout(io::stderr()).status().map_err(|error| error.to_string())?;
    if status.success() { Ok(()) } else { Err(status.to_string()) }
}

/// Runs a program and returns what it wrote to stdout.
pub(crate) fn capture(command: &mut Command) -> Result<String, String> {
    let output = command.env("LC_ALL", "C").output().map_err(|error| error.to_string())?;
    if output.status.success() {
        Ok(String::from_utf8_lossy(&output.stdout).into_owned())
    } else {
        Err(format!("{}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()))
    }
}
