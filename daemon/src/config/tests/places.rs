//! Where the file is looked for.

use std::path::PathBuf;

use super::*;

struct Folder(tempfile::TempDir);

impl Folder {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// A configuration whose only backend tells which file it is.
    fn file(&self, name: &str) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, LEAST.replace(".b.", &format!(".{name}."))).unwrap();
        path
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

fn found(path: Option<&Path>, variables: &[(&str, &str)], usual: &[PathBuf]) -> Result<String, String> {
    let config = Config::load_from(path, &env(variables), usual).map_err(|error| error.to_string())?;
    Ok(config.backends[0].id.to_string())
}

#[test]
fn the_argument_comes_before_the_variable_and_that_before_the_usual_places() {
    let folder = Folder::new();
    let [a, v, u1, u2] = ["a", "v", "u1", "u2"].map(|name| folder.file(name));
    let variable = v.display().to_string();
    let variables = [("OFFPEAK_CONFIG", variable.as_str())];
    let usual = [u1, u2, folder.path("none")];
    assert_eq!(found(Some(&a), &variables, &usual), Ok("a".into()));
    assert_eq!(found(None, &variables, &usual), Ok("v".into()));
    assert_eq!(found(None, &[("OFFPEAK_CONFIG", "")], &usual), Ok("u1".into()));
    assert_eq!(found(None, &[], &[folder.path("none"), usual[1].clone()]), Ok("u2".into()));
}

#[test]
fn a_named_file_that_is_not_there_is_not_replaced_by_another() {
    let folder = Folder::new();
    let usual = [folder.file("u")];
    let none = folder.path("none");
    let error = found(Some(&none), &[], &usual).unwrap_err();
    let none = none.display().to_string();
    let expected = |named_by: &str| {
        format!(
            "cannot read the configuration {none}: No such file or directory (os error 2); mend {named_by} or the file"
        )
    };
    assert_eq!(error, expected("the argument"));
    let error = found(None, &[("OFFPEAK_CONFIG", &none)], &usual).unwrap_err();
    assert_eq!(error, expected("the environment variable OFFPEAK_CONFIG"));
}

#[test]
fn variables_alone_are_a_configuration_if_they_name_a_backend() {
    let folder = Folder::new();
    let usual = [folder.path("x.toml"), folder.path("y.toml")];
    let variables = [
        ("OFFPEAK_BACKENDS__ENV__BASE_URL", "https://api.openai.com"),
        ("OFFPEAK_BACKENDS__ENV__MODELS", "*"),
    ];
    assert_eq!(found(None, &variables, &usual), Ok("env".into()));
    assert_eq!(
        found(None, &variables[..1], &usual).unwrap_err(),
        "OFFPEAK_BACKENDS__ENV__BASE_URL: backends.env.models: this is missing: add it, such as models = [\"gpt-*\"]"
    );
}

#[test]
fn without_any_it_is_told_how_to_begin() {
    let usual = [PathBuf::from("/none/x.toml"), PathBuf::from("/none/y.toml")];
    assert_eq!(
        found(None, &[("OFFPEAK_SERVER__LISTEN", "127.0.0.1:1")], &usual).unwrap_err(),
        "there is no configuration: OFFPEAK_CONFIG is not set, and neither /none/x.toml nor /none/y.toml exists. Begin \
         with the documented example config/offpeak.toml: copy it to /none/x.toml, name a backend, and see what it does \
         with `offpeak check` (more: `offpeak check --help`)"
    );
}

#[test]
fn a_file_that_is_no_text_is_told_so() {
    let folder = Folder::new();
    let path = folder.path("x.toml");
    std::fs::write(&path, b"\xff").unwrap();
    let error = found(Some(&path), &[], &[]).unwrap_err();
    assert!(error.ends_with("x.toml: it is not UTF-8; mend the argument or the file"), "{error}");
}

#[test]
fn the_process_has_an_environment() {
    let names = ProcessEnv.names();
    assert!(names.iter().any(|name| name.to_str().is_some_and(|name| ProcessEnv.get(name).is_some())));
}
