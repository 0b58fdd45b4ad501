//! Rust: cargo, and a target that rustup adds.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

use super::{BuildError, Built, encode, file_error, in_words};

const TARGET: &str = "wasm32-unknown-unknown";

/// Compiles the crate in `folder`. Its tests are `cargo test`'s business.
pub(super) fn build(folder: &Path) -> Result<Built, BuildError> {
    has_target(folder)?;
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo
        .current_dir(folder)
        .args(["build", "--release", "--lib", "--target", TARGET])
        .args(["--message-format", "json-render-diagnostics"])
        .stdin(Stdio::null())
        .stderr(Stdio::inherit());
    let failed = || BuildError::Failed(in_words(&cargo));
    let failed = failed();
    let Ok(output) = cargo.output() else { return Err(failed) };
    if !output.status.success() {
        return Err(failed);
    }
    let module =
        module(&String::from_utf8_lossy(&output.stdout)).ok_or_else(|| BuildError::NotAComponent {
            tool: "cargo",
            problem: "there is no module: has the crate `crate-type = [\"cdylib\"]`?".to_owned(),
        })?;
    let bytes = encode(&fs::read(&module).map_err(file_error(&module))?, "cargo")?;
    let name = module.file_stem().unwrap_or_default().to_string_lossy().replace('_', "-");
    Ok(Built { name, bytes })
}

/// The compiler that cargo takes has the target.
fn has_target(folder: &Path) -> Result<(), BuildError> {
    let rustc: OsString = env::var_os("RUSTC").unwrap_or_else(|| "rustc".into());
    let mut asked = Command::new(&rustc);
    let asked = asked.current_dir(folder).args(["--print", "target-libdir", "--target", TARGET]).output();
    let Ok(asked) = asked else {
        return Err(BuildError::Missing {
            what: rustc.to_string_lossy().into_owned(),
            remedy: "install Rust with rustup",
        });
    };
    let libraries = PathBuf::from(String::from_utf8_lossy(&asked.stdout).trim());
    if asked.status.success() && libraries.is_dir() {
        return Ok(());
    }
    Err(BuildError::Missing {
        what: format!("the target {TARGET}"),
        remedy: "run `rustup target add wasm32-unknown-unknown`, or name a compiler that has it in RUSTC",
    })
}

/// The last module of which cargo tells: that of the crate itself.
fn module(messages: &str) -> Option<PathBuf> {
    let files = messages.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let files = files.filter(|message| message["reason"] == "compiler-artifact");
    let mut files = files.filter_map(|message| {
        let files = message["filenames"].as_array()?.iter().filter_map(Value::as_str);
        files.map(PathBuf::from).find(|file| file.extension().is_some_and(|extension| extension == "wasm"))
    });
    files.next_back()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_module_is_the_last_one_that_cargo_names() {
        let messages = r#"{"reason":"compiler-artifact","filenames":["/t/libserde.rlib"]}
not JSON
{"reason":"compiler-artifact","filenames":["/t/my_router.d","/t/my_router.wasm"]}
{"reason":"build-finished","success":true}"#;
        assert_eq!(module(messages), Some(PathBuf::from("/t/my_router.wasm")));
        assert_eq!(module(""), None);
    }
}
