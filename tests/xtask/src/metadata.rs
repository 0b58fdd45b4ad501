//! What cargo knows about the workspace and everything that it is built from.

use std::path::PathBuf;

use serde_json::Value;

use crate::step::{TaskError, cargo_with};

/// The answer of `cargo metadata`.
pub(crate) struct Metadata(Value);

/// A package of the dependency graph.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Package {
    pub(crate) name: String,
    pub(crate) version: String,
    /// An SPDX expression, if the package names one.
    pub(crate) licence: Option<String>,
}

impl Metadata {
    pub(crate) fn read() -> Result<Self, TaskError> {
        let mut command = cargo_with(&["metadata", "--format-version", "1", "--locked"]);
        let output =
            command.stderr(std::process::Stdio::inherit()).output().map_err(|error| TaskError::Start {
                program: "cargo metadata".to_owned(),
                error,
                remedy: "check the Rust installation".to_owned(),
            })?;
        if !output.status.success() {
            return Err(TaskError::Failed { step: "cargo metadata".to_owned() });
        }
        serde_json::from_slice(&output.stdout).map(Self).map_err(|error| unreadable(error.to_string()))
    }

    /// Where cargo puts what it builds.
    pub(crate) fn target_directory(&self) -> Result<PathBuf, TaskError> {
        let folder = self.0.get("target_directory").and_then(Value::as_str);
        folder.map(PathBuf::from).ok_or_else(|| unreadable("it names no target directory".to_owned()))
    }

    /// All packages, our own included.
    pub(crate) fn packages(&self) -> Result<Vec<Package>, TaskError> {
        let packages = self.0.get("packages").and_then(Value::as_array);
        let packages = packages.ok_or_else(|| unreadable("it lists no packages".to_owned()))?;
        let text = |package: &Value, name: &str| package.get(name)?.as_str().map(str::to_owned);
        packages
            .iter()
            .map(|package| {
                Some(Package {
                    name: text(package, "name")?,
                    version: text(package, "version")?,
                    licence: text(package, "license"),
                })
            })
            .collect::<Option<_>>()
            .ok_or_else(|| unreadable("a package has no name".to_owned()))
    }
}

fn unreadable(problem: String) -> TaskError {
    TaskError::Unreadable { what: "the answer of `cargo metadata`", problem }
}
