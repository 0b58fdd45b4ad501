//! `cargo xtask test`: everything that can be tested, in one go.

use std::{env, process::Command};

use crate::{
    metadata::Metadata,
    python, setup,
    step::{TaskError, announce, cargo_with, output_of, root, step},
};

/// Which tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Which {
    All,
    Rust,
    Clients,
}

/// Runs tests; `arguments` go to pytest.
pub(crate) fn run(which: Which, arguments: &[&str]) -> Result<String, TaskError> {
    announce(&setup::run()?);
    if which != Which::Clients {
        rust()?;
    }
    if which != Which::Rust {
        clients(arguments)?;
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

/// Official client packages against the programs as users run them.
fn clients(arguments: &[&str]) -> Result<(), TaskError> {
    // With the tests, so that dependencies have the features that the tests before were built with, and are not built twice.
    step("the programs", &mut cargo_with(&["build", "--workspace", "--bins", "--tests", "--locked"]))?;
    let target = Metadata::read()?.target_directory()?;
    let python = python::environment(&target.join("venv"), &root().join("tests/clients/requirements.txt"))?;
    let programs = target.join("debug");
    let mut pytest = Command::new(python);
    pytest
        .args(["-m", "pytest"])
        .args(arguments)
        .current_dir(root().join("tests/clients"))
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env("OFFPEAK_BIN", programs.join("offpeak"))
        .env("PROVIDER_SIM_BIN", programs.join("provider-sim"));
    step("tests with official clients", &mut pytest)
}
