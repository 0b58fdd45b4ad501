//! `cargo xtask test`: everything that can be tested, in one go.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    metadata::Metadata,
    node, python, setup,
    step::{TaskError, announce, cargo_with, output_of, root, step},
};

/// Which tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    Rust,
    Clients,
    Node,
}

/// Runs tests; `arguments` go to pytest, and leave out those in Node.
pub(crate) fn run(which: Which, arguments: &[&str]) -> Result<String, TaskError> {
    announce(&setup::run()?);
    if matches!(which, Which::All | Which::Rust) {
        rust()?;
    }
    if which == Which::Rust {
        return Ok("all tests passed".to_owned());
    }
    let target = programs()?;
    // Before the tests in Python: some of them build a plugin in JavaScript.
    let packages = target.join("node");
    let node = node::packages(&packages, &root().join("tests/clients/node"))?;
    if which != Which::Node {
        clients_in_python(&target, &packages, arguments)?;
    }
    if arguments.is_empty() {
        clients_in_node(&target, &packages, &node)?;
    }
    Ok("all tests passed".to_owned())
}

/// Unit tests, black-box tests and the examples in documentation.
fn rust() -> Result<(), TaskError> {
    if output_of(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()), &["nextest", "--version"]).is_some()
    {
        step(
            "tests in Rust",
            &mut cargo_with(&["nextest", "run", "--workspace", "--locked", "--no-fail-fast"]),
        )?;
        step("examples in documentation", &mut cargo_with(&["test", "--workspace", "--locked", "--doc"]))
    } else {
        announce("cargo-nextest is not installed; `cargo test` does the same, more slowly");
        step("tests in Rust", &mut cargo_with(&["test", "--workspace", "--locked", "--no-fail-fast"]))
    }
}

/// Builds the programs that clients talk to and returns the target folder.
fn programs() -> Result<PathBuf, TaskError> {
    // With the tests, so that dependencies have the features that the tests before were built with, and are not built twice.
    step("the programs", &mut cargo_with(&["build", "--workspace", "--bins", "--tests", "--locked"]))?;
    Metadata::read()?.target_directory()
}

/// Tells where the programs are.
fn with_programs<'c>(command: &'c mut Command, target: &Path) -> &'c mut Command {
    let programs = target.join("debug");
    command
        .env("OFFPEAK_BIN", programs.join("offpeak"))
        .env("PROVIDER_SIM_BIN", programs.join("provider-sim"))
}

/// Official client packages for Python against the programs as users run them.
fn clients_in_python(target: &Path, packages: &Path, arguments: &[&str]) -> Result<(), TaskError> {
    let sources = root().join("tests/clients");
    let python = python::environment(&target.join("venv"), &sources.join("requirements.txt"))?;
    let mut pytest = Command::new(python);
    pytest.args(["-m", "pytest"]).args(arguments).current_dir(sources).env("PYTHONDONTWRITEBYTECODE", "1");
    pytest.env("PLUGIN_NODE_TOOLS", packages.join("node_modules/.bin"));
    if let Some(compiler) = setup::compiler()? {
        pytest.env("PLUGIN_RUSTC", compiler.rustc);
        pytest.envs(compiler.linker.map(|linker| ("PLUGIN_LINKER", linker)));
    }
    step("tests with official clients in Python", with_programs(&mut pytest, target))
}

/// The same for Node.
fn clients_in_node(target: &Path, packages: &Path, node: &Path) -> Result<(), TaskError> {
    let sources = root().join("tests/clients/node");
    let mut tests = Command::new(node);
    tests
        .args(["--test", "--test-reporter=spec"])
        .args(test_files(&sources)?)
        .current_dir(&sources)
        .env("NODE_CLIENTS", packages)
        .env("PLUGIN_CACHE", packages.join("plugins"));
    step("tests with official clients in Node", with_programs(&mut tests, target))
}

/// The files of a folder that hold tests. An empty answer would let node look for tests of its own choice.
fn test_files(folder: &Path) -> Result<Vec<PathBuf>, TaskError> {
    let file_error = |error| TaskError::File(folder.to_owned(), error);
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(file_error)? {
        let path = entry.map_err(file_error)?.path();
        if path.to_string_lossy().ends_with(".test.js") {
            files.push(path);
        }
    }
    files.sort();
    if files.is_empty() {
        return Err(TaskError::Wrong(format!("there are no tests in {}", folder.display())));
    }
    Ok(files)
}
