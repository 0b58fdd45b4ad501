//! From a plugin crate to a component.

use std::{
    env, fmt, fs, io,
    path::{Path, PathBuf},
};

use wit_component::ComponentEncoder;

use crate::{
    cargo,
    toolchain::{self, ToolchainError},
};

/// Why a component could not be built.
#[derive(Debug)]
pub enum BuildError {
    /// A variable that cargo sets for build scripts is missing.
    NotABuildScript(&'static str),
    /// The search for a compiler went wrong.
    Toolchain(ToolchainError),
    /// There is no compiler with the WebAssembly target.
    NoToolchain,
    /// The nested cargo failed; its messages.
    Compile(String, String),
    /// The compiled module is not a component's.
    Encode(String, String),
    /// A file could not be read or written.
    File(PathBuf, io::Error),
}

impl fmt::Display for BuildError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotABuildScript(name) => write!(f, "{name} is not set: call this from a build script"),
            Self::Toolchain(error) => error.fmt(f),
            Self::NoToolchain => f.write_str(
                "plugins need the WebAssembly target, which is not there yet: run `cargo xtask setup` once",
            ),
            Self::Compile(package, messages) => {
                write!(f, "the plugin {package} does not compile:\n{messages}")
            }
            Self::Encode(package, problem) => write!(f, "the plugin {package} is not a component: {problem}"),
            Self::File(path, error) => write!(f, "{}: {error}", path.display()),
        }
    }
}

impl std::error::Error for BuildError {}

/// What cargo tells a build script.
struct Surroundings {
    cargo: std::ffi::OsString,
    rustc: PathBuf,
    package_folder: PathBuf,
    out_folder: PathBuf,
}

impl Surroundings {
    fn read() -> Result<Self, BuildError> {
        let get = |name: &'static str| env::var_os(name).ok_or(BuildError::NotABuildScript(name));
        Ok(Self {
            cargo: get("CARGO")?,
            rustc: get("RUSTC")?.into(),
            package_folder: get("CARGO_MANIFEST_DIR")?.into(),
            out_folder: get("OUT_DIR")?.into(),
        })
    }
}

/// Compiles the workspace's crate `package` into a component and returns its path. For build scripts: it also tells
/// cargo when to run the script again.
///
/// The crate must be a library that exports a world through the SDK. It is compiled alone, so that another plugin's
/// choice of the SDK's features does not reach it.
///
/// # Panics
/// Never; all that can go wrong is a [`BuildError`] whose text says what to do.
pub fn component(package: &str) -> Result<PathBuf, BuildError> {
    let surroundings = Surroundings::read()?;
    let workspace = workspace_root(&surroundings.package_folder)?;
    let private = toolchain::private_folder().map_err(BuildError::Toolchain)?;
    declare_inputs(&workspace, &surroundings.package_folder, &private);

    let compiler = toolchain::find(&surroundings.rustc, &private)
        .map_err(BuildError::Toolchain)?
        .ok_or(BuildError::NoToolchain)?;
    let target_folder = cargo::target_folder(&surroundings.out_folder);
    let output = cargo::command(surroundings.cargo, &compiler, &workspace, &target_folder, package)
        .output()
        .map_err(|error| BuildError::Compile(package.to_owned(), error.to_string()))?;
    if !output.status.success() {
        let messages = String::from_utf8_lossy(&output.stderr).into_owned();
        return Err(BuildError::Compile(package.to_owned(), messages));
    }

    let module = cargo::module(&target_folder, package);
    let bytes = fs::read(&module).map_err(|error| BuildError::File(module, error))?;
    let bytes = encode(&bytes).map_err(|problem| BuildError::Encode(package.to_owned(), problem))?;
    let path = surroundings.out_folder.join(package).with_extension("wasm");
    fs::write(&path, bytes).map_err(|error| BuildError::File(path.clone(), error))?;
    Ok(path)
}

/// Wraps a core module into the component that its embedded world describes, and checks it.
fn encode(module: &[u8]) -> Result<Vec<u8>, String> {
    ComponentEncoder::default()
        .validate(true)
        .module(module)
        .and_then(ComponentEncoder::encode)
        .map_err(|error| format!("{error:#}"))
}

/// The folder with the lock file, at or above the calling package.
fn workspace_root(package_folder: &Path) -> Result<PathBuf, BuildError> {
    package_folder
        .ancestors()
        .find(|folder| folder.join("Cargo.lock").exists())
        .map(Path::to_owned)
        .ok_or_else(|| BuildError::File(package_folder.join("Cargo.lock"), io::ErrorKind::NotFound.into()))
}

/// Tells cargo what the components are made of.
fn declare_inputs(workspace: &Path, package_folder: &Path, private_toolchain: &Path) {
    for name in ["plugins", "sdk/rust", "wit", "Cargo.lock", "Cargo.toml"] {
        println!("cargo::rerun-if-changed={}", workspace.join(name).display());
    }
    println!("cargo::rerun-if-changed={}", package_folder.display());
    let marker = private_toolchain.join(toolchain::READY_FILE);
    if marker.exists() {
        println!("cargo::rerun-if-changed={}", marker.display());
    }
    for name in ["OFFPEAK_TOOLCHAIN", "XDG_CACHE_HOME", "HOME"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_without_a_world_is_no_component() {
        // An empty core module is a component without imports and exports; half a module is none.
        assert!(encode(b"\0asm\x01\0\0\0").is_ok());
        assert!(encode(b"\0asm\x01\0\0").is_err());
    }
}
