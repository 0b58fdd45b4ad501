//! The nested cargo: an environment of its own, so that nothing of the outer build reaches the plugins.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::Command,
};

use crate::toolchain::{Compiler, TARGET};

/// How plugins are optimised. Set here and not in the workspace's release profile, which is the daemon's.
const PROFILE: [(&str, &str); 7] = [
    ("CARGO_PROFILE_RELEASE_OPT_LEVEL", "3"),
    ("CARGO_PROFILE_RELEASE_LTO", "fat"),
    ("CARGO_PROFILE_RELEASE_CODEGEN_UNITS", "1"),
    ("CARGO_PROFILE_RELEASE_PANIC", "abort"),
    ("CARGO_PROFILE_RELEASE_STRIP", "symbols"),
    ("CARGO_PROFILE_RELEASE_DEBUG", "false"),
    ("CARGO_PROFILE_RELEASE_INCREMENTAL", "false"),
];

/// What of cargo's own variables concerns the machine and not the outer build.
const KEPT: [&str; 7] = [
    "CARGO_HOME",
    "CARGO_HTTP_",
    "CARGO_NET_",
    "CARGO_REGISTR",
    "CARGO_SOURCE_",
    "CARGO_TERM_",
    "CARGO_BUILD_JOBS",
];

/// Whether the nested cargo may see a variable of the outer build.
fn is_kept(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let is_ours = ["CARGO", "RUSTC", "RUSTDOC", "RUSTFLAGS", "CLIPPY", "MAKEFLAGS", "MFLAGS"]
        .iter()
        .any(|prefix| name.starts_with(prefix));
    !is_ours || KEPT.iter().any(|kept| name.starts_with(kept))
}

/// The command that compiles `package` to a core module below `target_folder`.
pub(crate) fn command(
    cargo: OsString,
    compiler: &Compiler,
    workspace: &Path,
    target_folder: &Path,
    package: &str,
) -> Command {
    let mut command = Command::new(cargo);
    for (name, _) in env::vars_os().filter(|(name, _)| !is_kept(name)) {
        command.env_remove(name);
    }
    // Empty, not unset: so they win over the user's cargo configuration as well.
    for name in ["RUSTC_WRAPPER", "RUSTC_WORKSPACE_WRAPPER"] {
        command.env(name, "");
    }
    // cargo sees no difference between compilers of the same version, but between flags it does.
    let flag = format!("--cfg=offpeak_toolchain=\"{}\"", compiler.identity);
    command.env("CARGO_ENCODED_RUSTFLAGS", flag);
    command.envs(PROFILE).env("RUSTC", &compiler.rustc);
    if let Some(linker) = &compiler.linker {
        command.env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
    }
    command
        .current_dir(workspace)
        .args(["rustc", "--release", "--locked", "--lib", "--crate-type", "cdylib"])
        .args(["--target", TARGET, "--package", package, "--target-dir"])
        .arg(target_folder);
    command
}

/// Where the module of `package` lies after [`command`].
pub(crate) fn module(target_folder: &Path, package: &str) -> PathBuf {
    target_folder.join(TARGET).join("release").join(package.replace('-', "_")).with_extension("wasm")
}

/// A target folder for plugins inside the one in use, so that debug and release builds of the daemon share it. It must
/// not be the same one: its lock is held by the outer cargo.
pub(crate) fn target_folder(out_dir: &Path) -> PathBuf {
    out_dir.ancestors().find(|folder| folder.join("CACHEDIR.TAG").exists()).unwrap_or(out_dir).join("plugins")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_of_the_outer_build_is_kept() {
        for name in
            ["CARGO_ENCODED_RUSTFLAGS", "RUSTFLAGS", "RUSTC_WRAPPER", "CARGO_MAKEFLAGS", "CLIPPY_ARGS"]
        {
            assert!(!is_kept(OsStr::new(name)), "{name}");
        }
        for name in ["CARGO_PROFILE_RELEASE_LTO", "CARGO_BUILD_TARGET", "CARGO_FEATURE_X", "CARGO_TARGET_DIR"]
        {
            assert!(!is_kept(OsStr::new(name)), "{name}");
        }
        for name in
            ["PATH", "HOME", "CARGO_HOME", "CARGO_NET_OFFLINE", "CARGO_REGISTRIES_X_TOKEN", "RUSTUP_HOME"]
        {
            assert!(is_kept(OsStr::new(name)), "{name}");
        }
    }
}
