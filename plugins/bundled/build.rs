//! Compiles the bundled plugins, and makes headers of the contract for plugins in C.

use std::{env, error::Error, fs, path::PathBuf, process::ExitCode};

use wit_bindgen_core::{Files, wit_parser::Resolve};

/// The crate of each plugin, and the variable that tells `src/lib.rs` where its component lies.
const PLUGINS: [(&str, &str); 6] = [
    ("offpeak-plugin-anthropic", "OFFPEAK_ANTHROPIC"),
    ("offpeak-plugin-openai", "OFFPEAK_OPENAI"),
    ("offpeak-plugin-sla-router", "OFFPEAK_SLA_ROUTER"),
    ("offpeak-plugin-standard-cost", "OFFPEAK_STANDARD_COST"),
    ("offpeak-plugin-standard-retry", "OFFPEAK_STANDARD_RETRY"),
    ("offpeak-plugin-vllm", "OFFPEAK_VLLM"),
];

/// Every world of the contract.
const WORLDS: [&str; 5] = ["router", "provider", "engine", "retry-policy", "cost-policy"];

fn main() -> ExitCode {
    for (package, variable) in PLUGINS {
        match offpeak_plugin_build::component(package) {
            Ok(path) => println!("cargo::rustc-env={variable}={}", path.display()),
            Err(error) => return failed(&error.to_string()),
        }
    }
    match c_bindings() {
        Ok(folder) => println!("cargo::rustc-env=OFFPEAK_C_BINDINGS={}", folder.display()),
        Err(error) => return failed(&format!("the contract in wit/ cannot be said in C: {error}")),
    }
    ExitCode::SUCCESS
}

/// cargo prints these lines without a backtrace and without the script's other output.
fn failed(error: &str) -> ExitCode {
    for line in error.lines() {
        println!("cargo::error={line}");
    }
    ExitCode::FAILURE
}

/// For each world a header, a source file, and an object file with the world's type.
fn c_bindings() -> Result<PathBuf, Box<dyn Error>> {
    let wit = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../wit");
    let folder = PathBuf::from(env::var("OUT_DIR")?).join("c");
    fs::create_dir_all(&folder)?;
    for world in WORLDS {
        let mut resolve = Resolve::default();
        let (package, _) = resolve.push_dir(&wit)?;
        let world = resolve.select_world(&[package], Some(world))?;
        let mut files = Files::default();
        wit_bindgen_c::Opts::default().build().generate(&mut resolve, world, &mut files)?;
        for (name, text) in files.iter() {
            fs::write(folder.join(name), text)?;
        }
    }
    Ok(folder)
}
