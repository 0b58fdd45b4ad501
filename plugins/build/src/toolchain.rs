//! Finds a compiler that has the WebAssembly target.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// The target of plugins: they do no I/O, so the plain one without WASI is enough.
pub const TARGET: &str = "wasm32-unknown-unknown";

/// The oldest compiler that builds the plugins, as `major.minor`: the workspace's own `rust-version`.
pub const OLDEST_RUST: &str = env!("CARGO_PKG_RUST_VERSION");

/// The file that says that a private tool chain is complete. Its lines: the folder beside it, and what tells this
/// tool chain from another of the same version.
pub const READY_FILE: &str = "ready";

/// A compiler that has [`TARGET`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Compiler {
    /// The `rustc` to run.
    pub rustc: PathBuf,
    /// The linker for the target, where `rustc` does not bring one.
    pub linker: Option<PathBuf>,
    /// Tells compilers of the same version apart: their standard libraries were compiled at different places, and what
    /// was compiled with one cannot be used with the other.
    pub identity: String,
}

/// Why there is no compiler for plugins.
#[derive(Debug)]
pub enum ToolchainError {
    /// `rustc` could not be asked where its files are.
    Rustc {
        /// The program that was run.
        rustc: PathBuf,
        /// What went wrong.
        problem: String,
    },
    /// None of the variables that say where private files go is set.
    NoFolder,
    /// The private tool chain's marker could not be read.
    Marker(PathBuf, io::Error),
    /// The linker of the toolchain in use is missing.
    NoLinker(PathBuf),
}

impl fmt::Display for ToolchainError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Rustc { rustc, problem } => {
                write!(f, "cannot run {}: {problem}; check the Rust installation", rustc.display())
            }
            Self::NoFolder => f.write_str(
                "no folder for the private WebAssembly tool chain: set HOME, XDG_CACHE_HOME or OFFPEAK_TOOLCHAIN",
            ),
            Self::Marker(path, error) => {
                write!(f, "cannot read {}: {error}; make it readable or delete it", path.display())
            }
            Self::NoLinker(path) => write!(
                f,
                "the linker {} is missing; install the Rust toolchain that rust-toolchain.toml names with rustup",
                path.display()
            ),
        }
    }
}

impl std::error::Error for ToolchainError {}

/// Where a `rustc` has its files, and what it runs on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sysroot {
    /// The folder that holds `lib/rustlib`.
    pub path: PathBuf,
    /// The host's target name, such as `x86_64-unknown-linux-gnu`.
    pub host: String,
}

impl Sysroot {
    /// Asks `rustc`.
    pub fn of(rustc: &Path) -> Result<Self, ToolchainError> {
        let failed = |problem: String| ToolchainError::Rustc { rustc: rustc.to_owned(), problem };
        let output = Command::new(rustc)
            .args(["--print", "sysroot", "--print", "host-tuple"])
            .output()
            .map_err(|error| failed(error.to_string()))?;
        if !output.status.success() {
            return Err(failed(String::from_utf8_lossy(&output.stderr).trim().to_owned()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        match text.lines().collect::<Vec<_>>()[..] {
            [path, host] => Ok(Self { path: PathBuf::from(path), host: host.to_owned() }),
            _ => Err(failed(format!("unexpected answer {text:?}"))),
        }
    }

    /// The folder of the standard library for [`TARGET`].
    pub fn target_libraries(&self) -> PathBuf {
        self.path.join("lib/rustlib").join(TARGET).join("lib")
    }

    /// The linker that every rustup toolchain brings.
    pub fn linker(&self) -> PathBuf {
        self.path.join("lib/rustlib").join(&self.host).join("bin/rust-lld")
    }

    fn has_target(&self) -> bool {
        fs::read_dir(self.target_libraries()).is_ok_and(|entries| {
            entries.flatten().any(|entry| entry.file_name().to_string_lossy().starts_with("libstd-"))
        })
    }
}

/// The folder of the private tool chain, shared by all clones of one user.
pub fn private_folder() -> Result<PathBuf, ToolchainError> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("OFFPEAK_TOOLCHAIN")
        .or_else(|| set("XDG_CACHE_HOME").map(|cache| cache.join("offpeak/wasm-toolchain")))
        .or_else(|| set("HOME").map(|home| home.join(".cache/offpeak/wasm-toolchain")))
        .ok_or(ToolchainError::NoFolder)
}

/// Finds a compiler with the target: `rustc` itself, or the private tool chain in `folder`. None if neither has it.
pub fn find(rustc: &Path, folder: &Path) -> Result<Option<Compiler>, ToolchainError> {
    let sysroot = Sysroot::of(rustc)?;
    if sysroot.has_target() {
        return Ok(Some(Compiler { rustc: rustc.to_owned(), linker: None, identity: String::new() }));
    }
    let Some((rustc, identity)) = private_rustc(folder)? else { return Ok(None) };
    let linker = sysroot.linker();
    if !linker.exists() {
        return Err(ToolchainError::NoLinker(linker));
    }
    Ok(Some(Compiler { rustc, linker: Some(linker), identity }))
}

/// The private tool chain's compiler in `folder`, if it is complete and not too old.
fn private_rustc(folder: &Path) -> Result<Option<(PathBuf, String)>, ToolchainError> {
    let marker = folder.join(READY_FILE);
    let text = match fs::read_to_string(&marker) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(ToolchainError::Marker(marker, error)),
    };
    let mut lines = text.lines();
    let (name, identity) = (lines.next().unwrap_or_default(), lines.next().unwrap_or_default());
    let rustc = folder.join(name).join("bin/rustc");
    Ok((is_recent(name) && rustc.exists()).then(|| (rustc, identity.to_owned())))
}

/// Whether a version, such as Debian's `1.96.0+dfsg1-1`, is at least [`OLDEST_RUST`].
pub fn is_recent(version: &str) -> bool {
    fn parts(version: &str) -> Option<(u32, u32)> {
        let mut parts = version.split(|c: char| !c.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    }
    match (parts(version), parts(OLDEST_RUST)) {
        (Some(version), Some(oldest)) => version >= oldest,
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(is_recent(OLDEST_RUST));
        assert!(is_recent("1.96.0+dfsg1-1~deb12u2"));
        assert!(is_recent("1.100.0"));
        assert!(is_recent("2.0"));
        assert!(!is_recent("1.85.0+dfsg3-1~deb12u3"));
        assert!(!is_recent("1.9.0"));
        assert!(!is_recent(""));
        assert!(!is_recent("(none)"));
    }

    #[test]
    fn an_incomplete_private_tool_chain_is_not_used() -> io::Result<()> {
        let folder = env::temp_dir().join(format!("offpeak-toolchain-test-{}", std::process::id()));
        let bin = folder.join("1.999.0/bin");
        fs::create_dir_all(&bin)?;
        assert!(matches!(private_rustc(&folder), Ok(None)), "no marker");

        fs::write(folder.join(READY_FILE), "1.999.0\n42\n")?;
        assert!(matches!(private_rustc(&folder), Ok(None)), "no compiler");

        fs::write(bin.join("rustc"), "")?;
        let found = private_rustc(&folder);
        assert!(
            matches!(found, Ok(Some((rustc, identity))) if rustc == bin.join("rustc") && identity == "42")
        );

        fs::rename(folder.join("1.999.0"), folder.join("1.2.0"))?;
        fs::write(folder.join(READY_FILE), "1.2.0\n")?;
        assert!(matches!(private_rustc(&folder), Ok(None)), "too old");
        fs::remove_dir_all(folder)
    }
}
