//! Compiles the misbehaving plugins.

use std::process::ExitCode;

/// The crate of each guest, and the variable that tells `src/lib.rs` where its component lies.
const GUESTS: [(&str, &str); 5] = [
    ("offpeak-guest-first", "OFFPEAK_GUEST_FIRST"),
    ("offpeak-guest-night", "OFFPEAK_GUEST_NIGHT"),
    ("offpeak-guest-router", "OFFPEAK_GUEST_ROUTER"),
    ("offpeak-guest-provider", "OFFPEAK_GUEST_PROVIDER"),
    ("offpeak-guest-retry", "OFFPEAK_GUEST_RETRY"),
];

fn main() -> ExitCode {
    for (package, variable) in GUESTS {
        match offpeak_plugin_build::component(package) {
            Ok(path) => println!("cargo::rustc-env={variable}={}", path.display()),
            Err(error) => {
                for line in error.to_string().lines() {
                    println!("cargo::error={line}");
                }
                return ExitCode::FAILURE;
            }
        }
    }
    ExitCode::SUCCESS
}
