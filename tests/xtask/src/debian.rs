//! A private compiler with the WebAssembly target, out of Debian's packages.
//!
//! For machines where rustup must not install anything. Debian carries a recent `rustc-web` with its sources; it is
//! unpacked into a private folder, nothing is installed. The standard library for the target is compiled from the
//! sources once and put where that compiler looks for it, so that plugins are then built like with any other toolchain.
//!
//! Every step may be cut off and repeated: only the marker, written last, makes the folder count.

use std::{
    collections::BTreeSet,
    env,
    ffi::OsStr,
    fs, io,
    os::unix::fs::{PermissionsExt, symlink},
    path::{Path, PathBuf},
    process::Command,
    time::{SystemTime, UNIX_EPOCH},
};

use offpeak_plugin_build::toolchain::{OLDEST_RUST, READY_FILE, Sysroot, TARGET, is_recent};

use crate::setup::{SetupError, capture, progress, stream, succeeds};

const COMPILER: &str = "rustc-web";
const SOURCES: &str = "rust-web-src";

/// Makes the private tool chain in `folder`. `rustc` is the toolchain in use, which lends its linker.
pub(crate) fn install(rustc: &Path, folder: &Path) -> Result<(), SetupError> {
    require_tools()?;
    let linker = Sysroot::of(rustc)?.linker();
    let version = compiler_version()?;
    let root = folder.join(&version);
    let packages = packages(&version)?;

    let downloads = folder.join("packages");
    download(&packages, &downloads)?;
    unpack(&downloads, &root)?;
    let compiler = write_compiler_script(&root)?;
    let release = release(&compiler)?;
    link_sources(&root, &release)?;
    build_standard_library(&compiler, &linker, &folder.join("std"))?;

    write_marker(folder, &version)?;
    for needless in [downloads, folder.join("std"), root.join("usr/src")] {
        remove_folder(&needless)?;
    }
    Ok(())
}

fn require_tools() -> Result<(), SetupError> {
    let missing: Vec<&str> = ["apt-get", "apt-cache", "dpkg", "dpkg-query"]
        .into_iter()
        .filter(|tool| !succeeds(Command::new(tool).arg("--version")))
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    Err(SetupError::NoWay(format!(
        "the Rust toolchain has no {TARGET}, rustup must not or cannot install it, and this is not a Debian machine \
         ({} missing); run `rustup target add {TARGET}`, or install that target with the system's package manager",
        missing.join(", ")
    )))
}

// === Which packages ===

/// The newest version of the compiler that apt offers, refreshing apt's lists if it is too old.
fn compiler_version() -> Result<String, SetupError> {
    let mut version = candidate(COMPILER)?;
    if !version.as_deref().is_some_and(is_recent) {
        let found = version.as_deref().unwrap_or("none").to_owned();
        progress(&format!("apt offers {COMPILER} {found}; {OLDEST_RUST} or newer is needed"));
        update_lists()?;
        version = candidate(COMPILER)?;
    }
    version.filter(|version| is_recent(version)).ok_or_else(|| {
        SetupError::NoWay(format!(
            "apt offers no {COMPILER} from {OLDEST_RUST} on; Debian's security updates have it: check apt's sources, or \
             run `rustup target add {TARGET}` where rustup may install"
        ))
    })
}

fn update_lists() -> Result<(), SetupError> {
    progress("apt-get update");
    stream(Command::new("apt-get").args(["update", "-qq"])).map_err(|problem| {
        SetupError::NoWay(format!(
            "`apt-get update` failed ({problem}); run it as root, then `cargo xtask setup` again"
        ))
    })
}

/// The version of a package that apt would install.
fn candidate(package: &str) -> Result<Option<String>, SetupError> {
    let text = capture(Command::new("apt-cache").args(["policy", package]))
        .map_err(program_error("apt-cache policy"))?;
    Ok(parse_candidate(&text))
}

fn parse_candidate(policy: &str) -> Option<String> {
    let version = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?.trim();
    (version != "(none)").then(|| version.to_owned())
}

/// The compiler, its sources, and the libraries they need that the system does not have.
fn packages(version: &str) -> Result<Vec<String>, SetupError> {
    let installed = installed_packages()?;
    let mut wanted = vec![format!("{COMPILER}={version}"), format!("{SOURCES}={version}")];
    let mut seen = BTreeSet::new();
    let mut next = 0;
    while let Some(package) = wanted.get(next).cloned() {
        next += 1;
        let text = capture(Command::new("apt-cache").args(["show", "--no-all-versions", &package]))
            .map_err(program_error("apt-cache show"))?;
        for (name, exact) in parse_depends(&text) {
            if is_needed_library(&name) && !installed.contains(&name) && seen.insert(name.clone()) {
                wanted.push(match exact {
                    Some(version) => format!("{name}={version}"),
                    None => name,
                });
            }
        }
    }
    Ok(wanted)
}

fn installed_packages() -> Result<BTreeSet<String>, SetupError> {
    let text = capture(Command::new("dpkg-query").args(["-W", "-f", "${db:Status-Abbrev} ${Package}\n"]))
        .map_err(program_error("dpkg-query"))?;
    Ok(text.lines().filter_map(|line| line.strip_prefix("ii ")).map(|name| name.trim().to_owned()).collect())
}

/// Libraries that the compiler loads, and its own. What it would need to link programs for the host is not ours to bring.
fn is_needed_library(name: &str) -> bool {
    name.starts_with("lib") && (name.starts_with("libstd-rust") || !name.ends_with("-dev"))
}

/// Names in a package's `Depends`, with the version where exactly one will do. Of alternatives the first is taken.
fn parse_depends(show: &str) -> Vec<(String, Option<String>)> {
    let fields = show
        .lines()
        .filter_map(|line| line.strip_prefix("Depends:").or_else(|| line.strip_prefix("Pre-Depends:")));
    fields
        .flat_map(|field| field.split(','))
        .filter_map(|dependency| {
            let first = dependency.split('|').next()?.trim();
            let name = first.split([' ', ':']).next().filter(|name| !name.is_empty())?;
            let exact = first.split_once("(= ").and_then(|(_, version)| version.strip_suffix(')'));
            Some((name.to_owned(), exact.map(str::to_owned)))
        })
        .collect()
}

// === Getting them ===

/// Downloads what is not there yet; apt checks sizes and hashes.
fn download(packages: &[String], downloads: &Path) -> Result<(), SetupError> {
    fs::create_dir_all(downloads).map_err(file_error(downloads))?;
    progress(&format!("downloading {}", packages.join(" ")));
    let get =
        || stream(Command::new("apt-get").args(["download", "-q"]).args(packages).current_dir(downloads));
    if get().is_ok() {
        return Ok(());
    }
    update_lists()?; // they may name files that the mirror has replaced
    get().map_err(|problem| {
        SetupError::Program(format!(
            "`apt-get download` failed ({problem}); check the network and run `cargo xtask setup` again"
        ))
    })
}

fn unpack(downloads: &Path, root: &Path) -> Result<(), SetupError> {
    remove_folder(root)?;
    for entry in fs::read_dir(downloads).map_err(file_error(downloads))? {
        let package = entry.map_err(file_error(downloads))?.path();
        if package.extension() != Some(OsStr::new("deb")) {
            continue;
        }
        progress(&format!("unpacking {}", package.file_name().unwrap_or_default().to_string_lossy()));
        stream(Command::new("dpkg").arg("-x").arg(&package).arg(root)).map_err(|problem| {
            SetupError::Program(format!(
                "unpacking {} failed ({problem}); delete that file and run `cargo xtask setup` again",
                package.display()
            ))
        })?;
    }
    Ok(())
}

// === Making a toolchain of them ===

/// A script that starts the unpacked compiler with its libraries, which are not where the system looks.
fn write_compiler_script(root: &Path) -> Result<PathBuf, SetupError> {
    let libraries: Vec<String> = library_folders(root)
        .map_err(file_error(root))?
        .iter()
        .filter_map(|folder| folder.strip_prefix(root).ok())
        .map(|folder| format!("$root/{}", folder.display()))
        .collect();
    let script = format!(
        "#!/bin/sh\nroot=\"${{0%/*}}/..\"\nLD_LIBRARY_PATH=\"{}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}\"\n\
         export LD_LIBRARY_PATH\nexec \"$root/usr/bin/rustc\" \"$@\"\n",
        libraries.join(":")
    );
    let path = root.join("bin/rustc");
    let write = || -> io::Result<()> {
        fs::create_dir_all(root.join("bin"))?;
        fs::write(&path, script)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755))
    };
    write().map_err(file_error(&path))?;
    Ok(path)
}

/// Folders below `root` with shared libraries.
fn library_folders(root: &Path) -> io::Result<BTreeSet<PathBuf>> {
    let mut folders = BTreeSet::new();
    for base in ["usr/lib", "lib"].map(|base| root.join(base)) {
        for folder in subfolders(&base)? {
            for candidate in [folder.clone(), folder.join("lib")] {
                let is_shared = |name: &OsStr| name.to_string_lossy().contains(".so");
                if candidate.is_dir()
                    && fs::read_dir(&candidate)?.flatten().any(|entry| is_shared(&entry.file_name()))
                {
                    folders.insert(candidate);
                }
            }
        }
    }
    Ok(folders)
}

fn subfolders(folder: &Path) -> io::Result<Vec<PathBuf>> {
    if !folder.is_dir() {
        return Ok(Vec::new());
    }
    let entries = fs::read_dir(folder)?.collect::<io::Result<Vec<_>>>()?;
    Ok(entries.into_iter().map(|entry| entry.path()).filter(|path| path.is_dir()).collect())
}

/// The compiler's release, such as `1.96.0`; asking for it proves that it runs.
fn release(compiler: &Path) -> Result<String, SetupError> {
    let text = capture(Command::new(compiler).arg("-vV")).map_err(|problem| {
        SetupError::Program(format!(
            "the unpacked compiler does not run ({problem}); is this another architecture?"
        ))
    })?;
    text.lines()
        .find_map(|line| line.strip_prefix("release: "))
        .map(str::to_owned)
        .ok_or_else(|| SetupError::Program(format!("{} does not tell its release", compiler.display())))
}

/// Puts the sources where `-Zbuild-std` looks for them.
fn link_sources(root: &Path, release: &str) -> Result<(), SetupError> {
    let sources = root.join("usr/src").join(format!("rustc-{release}"));
    let link = root.join("usr/lib/rustlib/src/rust");
    let make = || -> io::Result<()> {
        sources.join("library/std").metadata()?;
        fs::create_dir_all(root.join("usr/lib/rustlib/src"))?;
        if link.symlink_metadata().is_ok() {
            fs::remove_file(&link)?;
        }
        symlink(&sources, &link)
    };
    make().map_err(file_error(&sources))
}

/// Compiles the standard library for the target with a crate that holds nothing else, and moves it to the compiler.
fn build_standard_library(compiler: &Path, linker: &Path, scratch: &Path) -> Result<(), SetupError> {
    progress(&format!("compiling the standard library for {TARGET} (about a minute, once)"));
    let write = || -> io::Result<()> {
        fs::create_dir_all(scratch.join("src"))?;
        fs::write(
            scratch.join("Cargo.toml"),
            "[package]\nname = \"scratch\"\nversion = \"0.0.0\"\nedition = \"2024\"\n\n[workspace]\n",
        )?;
        fs::write(scratch.join("src/lib.rs"), "")
    };
    write().map_err(file_error(scratch))?;

    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let mut command = Command::new(cargo);
    let of_outer = |name: &OsStr| {
        let name = name.to_string_lossy();
        name.starts_with("CARGO_PKG_")
            || name.starts_with("CARGO_PROFILE_")
            || name.starts_with("CARGO_BUILD_")
    };
    for (name, _) in env::vars_os().filter(|(name, _)| of_outer(name)) {
        command.env_remove(name);
    }
    command
        .current_dir(scratch)
        .args(["build", "--release", "--target", TARGET, "-Zbuild-std=std,panic_abort", "--target-dir"])
        .arg(scratch.join("target"))
        .env("RUSTC", compiler)
        .env("RUSTC_BOOTSTRAP", "1")
        .env("RUSTC_WRAPPER", "")
        .env("RUSTC_WORKSPACE_WRAPPER", "")
        // Both machine code and bitcode, so that plugins may be built with and without link-time optimisation.
        .env("CARGO_ENCODED_RUSTFLAGS", "-Cembed-bitcode=yes")
        .env("CARGO_TARGET_WASM32_UNKNOWN_UNKNOWN_LINKER", linker);
    stream(&mut command).map_err(|problem| {
        SetupError::Program(format!(
            "compiling the standard library failed ({problem}); it needs crates.io: check the network and run \
             `cargo xtask setup` again"
        ))
    })?;

    let libraries = Sysroot::of(compiler)?.target_libraries();
    let copy = || -> io::Result<()> {
        fs::create_dir_all(&libraries)?;
        copy_rlibs(&scratch.join("target").join(TARGET), &libraries)
    };
    copy().map_err(file_error(&libraries))
}

/// Copies all compiled libraries below `folder` but the scratch crate's own.
fn copy_rlibs(folder: &Path, to: &Path) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_dir() {
            copy_rlibs(&path, to)?;
        } else if path.extension() == Some(OsStr::new("rlib")) && !name.starts_with("libscratch") {
            fs::copy(&path, to.join(name))?;
        }
    }
    Ok(())
}

/// Says that the tool chain is complete. Written beside and renamed, so that it is never half there.
fn write_marker(folder: &Path, version: &str) -> Result<(), SetupError> {
    let new = folder.join("ready.new");
    let marker = folder.join(READY_FILE);
    let identity = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
    fs::write(&new, format!("{version}\n{identity}\n"))
        .and_then(|()| fs::rename(&new, &marker))
        .map_err(file_error(&marker))
}

fn remove_folder(folder: &Path) -> Result<(), SetupError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(SetupError::File(folder.to_owned(), error))
        }
        _ => Ok(()),
    }
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> SetupError {
    move |error| SetupError::File(path.to_owned(), error)
}

fn program_error(program: &str) -> impl Fn(String) -> SetupError {
    move |problem| SetupError::Program(format!("`{program}` failed: {problem}; run `apt-get update` as root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_candidate_is_read_from_the_policy() {
        let policy =
            "rustc-web:\n  Installed: (none)\n  Candidate: 1.96.0+dfsg1-1~deb12u2\n  Version table:\n";
        assert_eq!(parse_candidate(policy).as_deref(), Some("1.96.0+dfsg1-1~deb12u2"));
        assert_eq!(parse_candidate("rustc-web:\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }

    #[test]
    fn dependencies_are_read_with_exact_versions() {
        let show = "Package: x\nVersion: 1\nDepends: libc6 (>= 2.34), libstd-rust-web-dev (= 1.96.0~u2), gcc | clang, \
                    libfoo:any\nDescription: y\n";
        let names = |text: &str| text.to_owned();
        assert_eq!(
            parse_depends(show),
            vec![
                (names("libc6"), None),
                (names("libstd-rust-web-dev"), Some(names("1.96.0~u2"))),
                (names("gcc"), None),
                (names("libfoo"), None),
            ]
        );
        assert!(parse_depends("Package: x\n").is_empty());
    }

    #[test]
    fn only_libraries_that_the_compiler_loads_are_brought() {
        for name in ["libllvm22", "libstd-rust-web-dev", "libstd-rust-web-1.96", "libz3-4"] {
            assert!(is_needed_library(name), "{name}");
        }
        for name in ["gcc", "binutils", "libc-dev", "libc6-dev"] {
            assert!(!is_needed_library(name), "{name}");
        }
    }
}
