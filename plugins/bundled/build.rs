//! Compiles the bundled plugins, and says the contract in the languages that are not given it as it is: C, Go and TypeScript.

#[path = "build/golang.rs"]
mod golang;
#[path = "build/typescript.rs"]
mod typescript;

use std::{env, error::Error, fmt::Write as _, fs, path::PathBuf, process::ExitCode};

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
    match bindings() {
        Ok(folder) => println!("cargo::rustc-env=OFFPEAK_BINDINGS={}", folder.display()),
        Err(error) => {
            return failed(&format!("the contract in wit/ cannot be said in another language: {error}"));
        }
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

/// For C a header, a source file, and an object file with the world's type, for each world; for Go a folder of packages; for
/// TypeScript a file of declarations.
fn bindings() -> Result<PathBuf, Box<dyn Error>> {
    let wit = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../../wit");
    let folder = PathBuf::from(env::var("OUT_DIR")?).join("bindings");
    fs::create_dir_all(&folder)?;
    let mut in_go = String::new();
    for name in WORLDS {
        let mut resolve = Resolve::default();
        let (package, _) = resolve.push_dir(&wit)?;
        let world = resolve.select_world(&[package], Some(name))?;
        fs::write(folder.join(name).with_extension("d.ts"), typescript::declarations(&resolve, world)?)?;
        writeln!(
            in_go,
            "{}",
            golang::bindings(resolve.clone(), name, world, &folder.join("go").join(name))?
        )?;
        let mut files = Files::default();
        wit_bindgen_c::Opts::default().build().generate(&mut resolve, world, &mut files)?;
        for (name, text) in files.iter() {
            fs::write(folder.join(name), text)?;
        }
    }
    let adapter = folder.join("wasi.wasm");
    let source = wit.join("../sdk/go/wasi.wat");
    println!("cargo::rerun-if-changed={}", source.display());
    fs::write(&adapter, wat::parse_file(source)?)?;
    let list = format!(
        "/// Those of all worlds.\npub const GO_BINDINGS: [GoBindings; {}] = [{in_go}];\n",
        WORLDS.len()
    );
    fs::write(folder.join("go.rs"), list)?;
    Ok(folder)
}
