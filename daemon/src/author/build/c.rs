//! C: any compiler with a C library for WebAssembly, and the bindings that offpeak carries.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use offpeak_bundled::{C_BINDINGS, CBindings};

use super::{BuildError, Built, answers, encode, file_error, run_tool};

/// Where a compiler is looked for, in order, behind what `CC` names.
const COMPILERS: [&[&str]; 3] = [&["zig", "cc"], &["python3", "-m", "ziglang", "cc"], &["clang"]];

/// Each instance has a stack of its own, and Zig would give it 16 MiB.
const STACK: &str = "-Wl,-z,stack-size=262144";

/// Compiles and runs the tests of `folder`, then compiles its plugin.
pub(super) fn build(folder: &Path, out: &Path) -> Result<Built, BuildError> {
    let (tests, plugin): (Vec<_>, Vec<_>) = sources(folder)?.into_iter().partition(|path| is_test(path));
    let Some(first) = plugin.first() else { return Err(BuildError::NoPlugin(folder.to_owned())) };
    let world = world_of(&plugin)?;
    let bindings = out.join("bindings");
    write_bindings(&bindings, world)?;
    let compiler = compiler()?;
    let compile = || {
        let mut command = Command::new(compiler.first().map_or("cc", String::as_str));
        command.args(compiler.get(1..).unwrap_or_default()).current_dir(folder);
        command.args(["-std=c11", "-Wall", "-Wextra", "-Werror", "-I"]).arg(&bindings);
        command
    };
    for test in tests {
        let program = out.join(test.file_stem().unwrap_or_default());
        run_tool(compile().args(["-g", "-o"]).arg(&program).arg(&test))?;
        run_tool(&mut Command::new(&program))?;
    }
    let module = out.join("module.wasm");
    let file = |suffix: &str| bindings.join(format!("{}{suffix}", world.world));
    run_tool(
        compile()
            .args(["--target=wasm32-wasi", "-mexec-model=reactor", "-O2", "-s", STACK, "-o"])
            .arg(&module)
            .args(&plugin)
            .arg(file(".c"))
            .arg(file("_component_type.o")),
    )?;
    let bytes = encode(&fs::read(&module).map_err(file_error(&module))?, "cc")?;
    let name = first.file_stem().unwrap_or_default().to_string_lossy().replace('_', "-");
    Ok(Built { name, bytes })
}

/// The `.c` files of a folder, in order.
pub(super) fn sources(folder: &Path) -> Result<Vec<PathBuf>, BuildError> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).map_err(file_error(folder))? {
        let path = entry.map_err(file_error(folder))?.path();
        if path.extension().is_some_and(|extension| extension == "c") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn is_test(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("test_"))
}

/// The world whose header is included.
fn world_of(plugin: &[PathBuf]) -> Result<&'static CBindings, BuildError> {
    for path in plugin {
        let text = fs::read_to_string(path).map_err(file_error(path))?;
        let includes = |world: &str| {
            let header = format!("\"{world}.h\"");
            text.lines().any(|line| line.trim_start().starts_with("#include") && line.contains(&header))
        };
        if let Some(bindings) = C_BINDINGS.iter().find(|bindings| includes(bindings.world)) {
            return Ok(bindings);
        }
    }
    Err(BuildError::Missing {
        what: "the header of a world".to_owned(),
        remedy: "include one of \"router.h\", \"provider.h\", \"engine.h\", \"retry_policy.h\" and \"cost_policy.h\"",
    })
}

fn write_bindings(folder: &Path, world: &CBindings) -> Result<(), BuildError> {
    fs::create_dir_all(folder).map_err(file_error(folder))?;
    let files: [(&str, &[u8]); 3] = [
        (".h", world.header.as_bytes()),
        (".c", world.source.as_bytes()),
        ("_component_type.o", world.world_type),
    ];
    for (suffix, bytes) in files {
        let path = folder.join(format!("{}{suffix}", world.world));
        fs::write(&path, bytes).map_err(file_error(&path))?;
    }
    Ok(())
}

/// The first compiler that is there.
fn compiler() -> Result<Vec<String>, BuildError> {
    let named = env::var("CC").ok().filter(|named| !named.trim().is_empty());
    if let Some(named) = named {
        let words: Vec<_> = named.split_whitespace().map(str::to_owned).collect();
        return if is_there(&words) {
            Ok(words)
        } else {
            Err(BuildError::NotThere { variable: "CC", named })
        };
    }
    let mut known = COMPILERS.iter().map(|words| words.iter().map(|word| (*word).to_owned()).collect());
    known.find(|words: &Vec<String>| is_there(words)).ok_or_else(|| BuildError::Missing {
        what: "a C compiler that knows WebAssembly".to_owned(),
        remedy: "run `pip install ziglang`, or name one in the variable CC (clang with wasi-libc)",
    })
}

fn is_there(words: &[String]) -> bool {
    let Some((program, rest)) = words.split_first() else { return false };
    answers(Command::new(program).args(rest).arg("--version"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_tells_the_world() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("mine.c");
        let world = |text: &str| {
            fs::write(&file, text).unwrap();
            world_of(std::slice::from_ref(&file)).map(|bindings| bindings.world)
        };
        assert_eq!(world("#include <stdio.h>\n#include \"cost_policy.h\"\n").unwrap(), "cost_policy");
        assert!(world("// \"router.h\"").unwrap_err().to_string().contains("include one of"));
    }

    #[test]
    fn tests_are_told_from_the_plugin_by_name() {
        assert!(is_test(Path::new("/a/test_mine.c")));
        assert!(!is_test(Path::new("/test_a/mine.c")));
    }
}
