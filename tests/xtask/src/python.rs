//! A private Python environment with the packages that the tests ask for.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::step::{TaskError, announce, output_of, step};

/// The oldest Python that the packages run on, as (major, minor).
const OLDEST: (u32, u32) = (3, 10);

/// Makes the environment in `folder`, or takes the one that is there if it holds what `requirements` asks for. Returns
/// its interpreter.
pub(crate) fn environment(folder: &Path, requirements: &Path) -> Result<PathBuf, TaskError> {
    let interpreter = folder.join("bin/python");
    let wanted = fs::read_to_string(requirements).map_err(file_error(requirements))?;
    // Written last: without it the environment is not complete.
    let installed = folder.join("installed.txt");
    let is_complete = fs::read_to_string(&installed).is_ok_and(|installed| installed == wanted);
    if is_complete && output_of(&interpreter, &["-c", "import anthropic, openai, pytest"]).is_some() {
        announce("the Python environment is there");
        return Ok(interpreter);
    }
    let python = python()?;
    if folder.exists() {
        fs::remove_dir_all(folder).map_err(file_error(folder))?;
    }
    let mut pip = create(&python, folder)?;
    pip.args(["install", "--quiet", "--disable-pip-version-check", "--no-input", "--requirement"]);
    step("the Python packages", pip.arg(requirements))?;
    fs::write(&installed, wanted).map_err(file_error(&installed))?;
    Ok(interpreter)
}

/// The interpreter to start from: the one named by PYTHON, else python3.
fn python() -> Result<PathBuf, TaskError> {
    let python = env::var_os("PYTHON").map_or_else(|| PathBuf::from("python3"), PathBuf::from);
    let version = output_of(&python, &["-c", "import sys; print(*sys.version_info[:2])"]);
    let found = version.as_deref().and_then(parse_version);
    match found {
        Some(found) if found >= OLDEST => Ok(python),
        found => {
            let found = found.map_or_else(|| "none".to_owned(), |(major, minor)| format!("{major}.{minor}"));
            Err(TaskError::Wrong(format!(
                "the tests with official clients need Python {}.{} or newer as `{}` (found: {found}); install it (on \
                 Debian: apt-get install python3 python3-venv), or name another one in the variable PYTHON",
                OLDEST.0,
                OLDEST.1,
                python.display()
            )))
        }
    }
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split_whitespace().map(|number| number.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

/// Makes an empty environment and returns the pip that fills it.
fn create(python: &Path, folder: &Path) -> Result<Command, TaskError> {
    announce(&format!("making a Python environment in {}", folder.display()));
    let arguments = |extra: &[&str]| {
        let mut command = Command::new(python);
        command.args(["-m", "venv"]).args(extra).arg(folder);
        command
    };
    if crate::setup::succeeds(&mut arguments(&[])) {
        let mut pip = Command::new(folder.join("bin/python"));
        pip.args(["-m", "pip"]);
        return Ok(pip);
    }
    // Debian packs what puts pip into an environment apart; a pip outside of it will do as well.
    if output_of(python, &["-m", "pip", "--version"]).is_some()
        && crate::setup::succeeds(&mut arguments(&["--clear", "--without-pip"]))
    {
        let mut pip = Command::new(python);
        pip.args(["-m", "pip", "--python"]).arg(folder.join("bin/python"));
        return Ok(pip);
    }
    Err(TaskError::Wrong(format!(
        "`{} -m venv` does not work, and there is no pip either; install them (on Debian: apt-get install python3-venv)",
        python.display()
    )))
}

fn file_error(path: &Path) -> impl Fn(std::io::Error) -> TaskError {
    move |error| TaskError::File(path.to_owned(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(parse_version("3 11\n"), Some((3, 11)));
        assert!(parse_version("3 9").unwrap() < OLDEST);
        assert!(parse_version("3 10").unwrap() >= OLDEST);
        assert_eq!(parse_version("Python"), None);
        assert_eq!(parse_version(""), None);
    }
}
