//! `offpeak plugin new`: a folder with a router that builds and passes its own tests at once.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, ValueEnum};

/// A folder of templates: where a file goes, and what stands in it.
type Files = [(&'static str, &'static str)];

macro_rules! source {
    ($path:literal) => {
        include_str!(concat!("../../../", $path))
    };
}

/// The names in the templates, which are replaced by the plugin's own.
const RUST_NAME: &str = "my-plugin";
const PYTHON_NAME: &str = "working-hours";
const PYTHON_MODULE: &str = "working_hours";
const C_NAME: &str = "by-size";
const C_MODULE: &str = "by_size";

/// Where the Rust template's SDK comes from, unless the command names a folder.
const SDK: &str = "git = \"https://github.com/offpeak/offpeak\"";

const RUST: &Files = &[
    ("Cargo.toml", source!("sdk/rust/template/Cargo.toml.template")),
    ("src/lib.rs", source!("sdk/rust/template/src/lib.rs.template")),
];

const PYTHON: &Files = &[
    ("build.py", source!("plugins/examples/working-hours/build.py")),
    ("working_hours.py", source!("plugins/examples/working-hours/working_hours.py")),
    ("test_working_hours.py", source!("plugins/examples/working-hours/test_working_hours.py")),
    ("wit/router.wit", source!("wit/router.wit")),
    ("wit/types.wit", source!("wit/types.wit")),
];

const C: &Files = &[
    ("by_size.c", source!("plugins/examples/by-size/by_size.c")),
    ("test_by_size.c", source!("plugins/examples/by-size/test_by_size.c")),
];

/// Begins a plugin.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Its name, which is also that of the folder: lower-case letters, digits and hyphens, a letter first.
    name: String,
    /// The language.
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    lang: Language,
    /// The folder in which the plugin's folder is made.
    #[arg(long, value_name = "FOLDER", default_value = ".")]
    r#in: PathBuf,
    /// For Rust: a folder with the SDK's sources, in the place of the published one.
    #[arg(long, value_name = "FOLDER")]
    sdk: Option<PathBuf>,
}

/// The languages that there are templates for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Language {
    /// 30 KiB, and a microsecond a call.
    Rust,
    /// 18 MiB with Python's runtime in it, and some tens of microseconds a call.
    Python,
    /// 10 KiB, and a microsecond a call.
    C,
}

/// Why there is no new plugin. Nothing that was there before has changed.
#[derive(Debug, thiserror::Error)]
pub enum NewError {
    /// The name is not one.
    #[error(
        "'{0}' cannot be a plugin's name: take lower-case letters, digits and hyphens, with a letter first, such as \
         my-router"
    )]
    Name(String),
    /// There is something of that name.
    #[error("{} is there already: take another name, or remove it", .0.display())]
    Exists(PathBuf),
    /// A file cannot be written.
    #[error("{}: {source}; choose a folder that can be written with --in", .path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The SDK is not where it was said to be.
    #[error("{}: {source}; name the folder sdk/rust of offpeak's sources", .path.display())]
    Sdk {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Runs the command; returns what to say about the result.
pub fn run(args: &Args) -> Result<String, NewError> {
    if !is_name(&args.name) {
        return Err(NewError::Name(args.name.clone()));
    }
    let folder = args.r#in.join(&args.name);
    if folder.exists() {
        return Err(NewError::Exists(folder));
    }
    let module = args.name.replace('-', "_");
    let files = match args.lang {
        Language::Rust => RUST,
        Language::Python => PYTHON,
        Language::C => C,
    };
    let sdk = args.sdk.as_deref().map(sdk_folder).transpose()?;
    for (path, text) in files {
        let path = folder.join(path.replace(PYTHON_MODULE, &module).replace(C_MODULE, &module));
        // The contract is everybody's.
        let is_ours = path.extension().is_none_or(|extension| extension != "wit");
        let text =
            if is_ours { personal(text, &args.name, &module, sdk.as_deref()) } else { (*text).to_owned() };
        write(&path, &text)?;
    }
    Ok(next_steps(args.lang, &folder, &args.name))
}

fn is_name(name: &str) -> bool {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    name.starts_with(|c: char| c.is_ascii_lowercase())
        && !name.ends_with('-')
        && name.len() <= 64
        && name.chars().all(fits)
}

/// The SDK's folder as a dependency of Cargo's, whose paths are relative to the new manifest.
fn sdk_folder(path: &Path) -> Result<String, NewError> {
    let found = path.join("Cargo.toml").canonicalize();
    let manifest = found.map_err(|source| NewError::Sdk { path: path.to_owned(), source })?;
    let folder = manifest.parent().unwrap_or(path);
    Ok(format!("path = {}", toml::Value::from(folder.to_string_lossy().into_owned())))
}

fn personal(text: &str, name: &str, module: &str, sdk: Option<&str>) -> String {
    let names = [RUST_NAME, PYTHON_NAME, C_NAME].map(|theirs| (theirs, name));
    let modules = [PYTHON_MODULE, C_MODULE].map(|theirs| (theirs, module));
    let text = names.iter().chain(&modules).fold(text.to_owned(), |text, (from, to)| text.replace(from, to));
    match sdk {
        Some(sdk) => text.replace(SDK, sdk),
        None => text,
    }
}

fn write(path: &Path, text: &str) -> Result<(), NewError> {
    let failed = |source| NewError::Write { path: path.to_owned(), source };
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).map_err(failed)?;
    }
    fs::write(path, text).map_err(failed)
}

fn next_steps(lang: Language, folder: &Path, name: &str) -> String {
    let folder = folder.display();
    let tools = match lang {
        Language::Rust => "rustup target add wasm32-unknown-unknown      # once\n  cargo test",
        Language::Python => "pip install componentize-py                   # once",
        Language::C => {
            "pip install ziglang                           # once: a C compiler that knows WebAssembly"
        }
    };
    let component = format!("build/{name}.wasm");
    format!(
        "made {folder}, a router. Next:\n\n  cd {folder}\n  {tools}\n  offpeak plugin build\n  offpeak plugin check \
         {component}\n\nThen name it in the configuration, and run `offpeak plugin reload`, or restart:\n\n  [plugins.router]\n  \
         file = \"{component}\"\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(folder: &Path, name: &str, lang: Language) -> Args {
        Args { name: name.to_owned(), lang, r#in: folder.to_owned(), sdk: None }
    }

    #[test]
    fn a_plugin_has_its_own_name_everywhere() {
        let folder = tempfile::tempdir().unwrap();
        let steps = run(&args(folder.path(), "night-owl", Language::Python)).unwrap();
        assert!(steps.contains("componentize-py") && steps.contains("build/night-owl.wasm"), "{steps}");
        let made = folder.path().join("night-owl");
        let text = |name: &str| fs::read_to_string(made.join(name)).unwrap();
        assert!(text("night_owl.py").contains("name=\"night-owl\""));
        assert!(text("test_night_owl.py").contains("from night_owl import"));
        assert!(text("build.py").contains("MODULE = \"night_owl\""));
        assert!(text("wit/router.wit").contains("world router"));

        let steps = run(&args(folder.path(), "early-bird", Language::Rust)).unwrap();
        assert!(steps.contains("offpeak plugin check build/early-bird.wasm"), "{steps}");
        let manifest = fs::read_to_string(folder.path().join("early-bird/Cargo.toml")).unwrap();
        assert!(manifest.contains("name = \"early-bird\"") && manifest.contains(SDK), "{manifest}");
    }

    #[test]
    fn one_in_c_too() {
        let folder = tempfile::tempdir().unwrap();
        let steps = run(&args(folder.path(), "night-owl", Language::C)).unwrap();
        assert!(steps.contains("ziglang"), "{steps}");
        let made = folder.path().join("night-owl");
        assert!(fs::read_to_string(made.join("night_owl.c")).unwrap().contains("\"night-owl\""));
        assert!(fs::read_to_string(made.join("test_night_owl.c")).unwrap().contains("\"night_owl.c\""));
    }

    #[test]
    fn the_sdk_may_lie_in_a_folder() {
        let folder = tempfile::tempdir().unwrap();
        let sdk = Path::new(env!("CARGO_MANIFEST_DIR")).join("../sdk/rust");
        let args = Args { sdk: Some(sdk.clone()), ..args(folder.path(), "bird", Language::Rust) };
        run(&args).unwrap();
        let manifest = fs::read_to_string(folder.path().join("bird/Cargo.toml")).unwrap();
        let table: toml::Table = manifest.parse().unwrap();
        let path = table["dependencies"]["offpeak-plugin"]["path"].as_str().unwrap();
        assert_eq!(Path::new(path), sdk.canonicalize().unwrap());
    }

    #[test]
    fn what_cannot_be_made_is_refused_and_nothing_is_overwritten() {
        let folder = tempfile::tempdir().unwrap();
        for name in ["", "My-Router", "7up", "a/b", "a_b", "../x", "a-"] {
            assert!(
                matches!(run(&args(folder.path(), name, Language::Rust)), Err(NewError::Name(_))),
                "{name}"
            );
        }
        run(&args(folder.path(), "mine", Language::Rust)).unwrap();
        let again = run(&args(folder.path(), "mine", Language::Python));
        assert!(matches!(again, Err(NewError::Exists(_))));
        assert!(!folder.path().join("mine/build.py").exists());
    }
}
