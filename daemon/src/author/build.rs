//! `offpeak plugin build`: from a folder with a plugin's sources to a component, by the language's own tools.

mod c;
pub(super) mod go;
mod rust;

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use clap::Args as ClapArgs;
use wit_component::ComponentEncoder;

/// Builds a plugin.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// The plugin's folder.
    #[arg(default_value = ".")]
    folder: PathBuf,
    /// Where everything that is made goes [default: the folder's own `build`].
    #[arg(long, value_name = "FOLDER")]
    out: Option<PathBuf>,
}

/// Why there is no component.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The folder holds no plugin.
    #[error(
        "{}: no Cargo.toml (Rust), no build.py (Python), no build.js (JavaScript and TypeScript), no go.mod (Go) and no .c file (C) is there; name a plugin's folder, or begin one \
         with `offpeak plugin new`",
        .0.display()
    )]
    NoPlugin(PathBuf),
    /// A tool is missing.
    #[error("{what} is missing: {remedy}")]
    Missing {
        /// What.
        what: String,
        /// How to get it.
        remedy: &'static str,
    },
    /// A variable names a tool that is not there.
    #[error("the variable {variable} names {named}, which is not there; name another one, or unset it")]
    NotThere {
        /// Which variable.
        variable: &'static str,
        /// What it names.
        named: String,
    },
    /// A tool was not content.
    #[error("`{0}` failed; what it wrote above says why")]
    Failed(String),
    /// Nothing was built, and what was built before is still there.
    #[error("{error}\n{} is that of an earlier build", .old.display())]
    Stale {
        /// Why nothing was built.
        error: Box<BuildError>,
        /// The component of before.
        old: PathBuf,
    },
    /// What came out of the tools is something else.
    #[error("what `{tool}` has built cannot be made a component: {problem}{}", hint(.problem))]
    NotAComponent {
        /// Which tool.
        tool: &'static str,
        /// Why.
        problem: String,
    },
    /// A file cannot be read or written.
    #[error("{}: {source}", .path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// What is behind the most usual of problems.
fn hint(problem: &str) -> &'static str {
    if problem.contains("wasi") {
        "; something in it asks for a file, a clock or for output (printf, time), which a plugin does not have: the functions of the \
         interface `host` write to the log and know the time"
    } else {
        ""
    }
}

/// What a folder's sources are written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Language {
    Rust,
    Python,
    /// And TypeScript.
    Javascript,
    Go,
    C,
}

/// Runs the command; returns what to say about the result.
pub fn run(args: &Args) -> Result<String, BuildError> {
    let folder = args.folder.canonicalize().map_err(file_error(&args.folder))?;
    let language = language_of(&folder)?;
    let out = args.out.clone().unwrap_or_else(|| folder.join("build"));
    fs::create_dir_all(&out).map_err(file_error(&out))?;
    let out = out.canonicalize().map_err(file_error(&out))?;
    build(language, &folder, &out).map_err(|error| match components(&out).first() {
        // Another folder may hold the components of others.
        Some(old) if args.out.is_none() => BuildError::Stale { error: Box::new(error), old: old.clone() },
        _ => error,
    })
}

/// The components in a folder, without what the tools of C and Go leave on the way.
pub(super) fn components(folder: &Path) -> Vec<PathBuf> {
    let files = fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    let is_component =
        |path: &PathBuf| path.extension().is_some_and(|end| end == "wasm") && !path.ends_with("module.wasm");
    files.filter(is_component).collect()
}

fn build(language: Language, folder: &Path, out: &Path) -> Result<String, BuildError> {
    let component = match language {
        Language::Python => return scripted(&PYTHON, folder, out),
        Language::Javascript => return scripted(&NODE, folder, out),
        Language::Rust => rust::build(folder)?,
        Language::Go => go::build(folder, out)?,
        Language::C => c::build(folder, out)?,
    };
    let path = out.join(&component.name).with_extension("wasm");
    fs::write(&path, &component.bytes).map_err(file_error(&path))?;
    let kib = component.bytes.len().div_ceil(1024);
    let path = path.display();
    Ok(format!("built {path} ({kib} KiB); look at it with `offpeak plugin check {path}`\n"))
}

/// A component, and what the plugin is called.
struct Built {
    name: String,
    bytes: Vec<u8>,
}

fn language_of(folder: &Path) -> Result<Language, BuildError> {
    if folder.join("Cargo.toml").is_file() {
        Ok(Language::Rust)
    } else if folder.join("build.py").is_file() {
        Ok(Language::Python)
    } else if folder.join("build.js").is_file() {
        Ok(Language::Javascript)
    } else if folder.join("go.mod").is_file() {
        Ok(Language::Go)
    } else if c::sources(folder)?.is_empty() {
        Err(BuildError::NoPlugin(folder.to_owned()))
    } else {
        Ok(Language::C)
    }
}

/// A language in which the folder's own script knows all that there is to know.
struct Scripted {
    /// What runs it, unless the variable names another,
    interpreter: &'static str,
    variable: &'static str,
    arguments: &'static [&'static str],
    script: &'static str,
    remedy: &'static str,
}

const PYTHON: Scripted = Scripted {
    interpreter: "python3",
    variable: "PYTHON",
    arguments: &["-B"],
    script: "build.py",
    remedy: "install Python, or name one in the variable PYTHON",
};

const NODE: Scripted = Scripted {
    interpreter: "node",
    variable: "NODE",
    arguments: &[],
    script: "build.js",
    remedy: "install Node 20 or newer from nodejs.org, or name one in the variable NODE",
};

fn scripted(language: &Scripted, folder: &Path, out: &Path) -> Result<String, BuildError> {
    let interpreter = env::var_os(language.variable).unwrap_or_else(|| language.interpreter.into());
    if !answers(Command::new(&interpreter).arg("--version")) {
        let what = interpreter.to_string_lossy().into_owned();
        return Err(BuildError::Missing { what, remedy: language.remedy });
    }
    let mut build = Command::new(&interpreter);
    run_tool(build.args(language.arguments).arg(folder.join(language.script)).arg("--out").arg(out))?;
    Ok(String::new())
}

/// Wraps a core module into the component of the world that it was linked with, and checks it.
fn encode(module: &[u8], tool: &'static str) -> Result<Vec<u8>, BuildError> {
    let component =
        ComponentEncoder::default().validate(true).module(module).and_then(ComponentEncoder::encode);
    component.map_err(|error| BuildError::NotAComponent { tool, problem: format!("{error:#}") })
}

/// Runs a tool whose output people see, on standard error, and which must be content.
fn run_tool(command: &mut Command) -> Result<(), BuildError> {
    let failed = || BuildError::Failed(in_words(command));
    let text = failed();
    // Some take a minute, and say nothing.
    eprintln!("+ {}", in_words(command));
    match command.stdin(Stdio::null()).stdout(io::stderr()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(_) | Err(_) => Err(text),
    }
}

fn in_words(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// Whether a tool is there at all.
fn answers(command: &mut Command) -> bool {
    let status = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    status.is_ok_and(|status| status.success())
}

fn file_error(path: &Path) -> impl Fn(io::Error) -> BuildError {
    move |source| BuildError::File { path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_tells_its_language() {
        let folder = tempfile::tempdir().unwrap();
        let nothing = language_of(folder.path()).unwrap_err().to_string();
        assert!(nothing.contains("offpeak plugin new"), "{nothing}");
        for (file, language) in [
            ("a.c", Language::C),
            ("go.mod", Language::Go),
            ("build.js", Language::Javascript),
            ("build.py", Language::Python),
            ("Cargo.toml", Language::Rust),
        ] {
            fs::write(folder.path().join(file), "").unwrap();
            assert_eq!(language_of(folder.path()).unwrap(), language);
        }
    }

    #[test]
    fn a_module_of_no_world_is_refused() {
        let error = encode(b"\0asm\x01\0\0\0 and then?", "cc").err().unwrap().to_string();
        assert!(error.contains("`cc` has built"), "{error}");
    }
}
