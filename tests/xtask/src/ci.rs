//! `cargo xtask ci`: what has to pass before a change lands. And `cargo xtask demo`.

use crate::{
    licences, setup,
    step::{TaskError, announce, cargo_with, step},
    test::{self, Which},
};

/// Format, lints, documentation, licences, all tests, and the demo.
pub(crate) fn run() -> Result<String, TaskError> {
    step("format", &mut cargo_with(&["fmt", "--all", "--check"]))?;
    announce(&licences::run()?);
    // Lints need the plugins too: the daemon holds them.
    announce(&setup::run()?);
    let lints = ["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"];
    step("lints", &mut cargo_with(&lints))?;
    let mut documentation = cargo_with(&["doc", "--workspace", "--no-deps", "--locked"]);
    step("documentation", documentation.env("RUSTDOCFLAGS", "-D warnings"))?;
    announce(&test::run(Which::All, &[])?);
    demo(&[])?;
    Ok("everything passed".to_owned())
}

/// The demo as the README shows it, in the build that users get.
pub(crate) fn demo(arguments: &[&str]) -> Result<(), TaskError> {
    announce(&setup::run()?);
    let mut demo = cargo_with(&["run", "--release", "--locked", "--package", "offpeak", "--", "demo"]);
    step("the demo", demo.args(arguments))
}
