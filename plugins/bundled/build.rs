//! Compiles the bundled plugins.

use std::process::ExitCode;

/// The crate of each plugin, and the variable that tells `src/lib.rs` where its component lies.
const PLUGINS: [(&str, &str); 6] = [
    ("offpeak-plugin-anthropic", "OFFPEAK_ANTHROPIC"),
    ("offpeak-plugin-openai", "OFFPEAK_OPENAI"),
    ("offpeak-plugin-sla-router", "OFFPEAK_SLA_ROUTER"),
    ("offpeak-plugin-standard-cost", "OFFPEAK_STANDARD_COST"),
    ("offpeak-plugin-standard-retry", "OFFPEAK_STANDARD_RETRY"),
    ("offpeak-plugin-vllm", "OFFPEAK_VLLM"),
];

fn main() -> ExitCode {
    for (package, variable) in PLUGINS {
        match offpeak_plugin_build::component(package) {
            Ok(path) => println!("cargo::rustc-env={variable}={}", path.display()),
            Err(error) => {
                // cargo prints these lines without a backtrace and without the script's other output.
                for line in error.to_string().lines() {
                    println!("cargo::error={line}");
                }
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
