//! What the tests need of Node's packages, the official SDKs and the tools for plugins in JavaScript, installed outside of the sources.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::step::{TaskError, announce, output_of, step};

/// The oldest Node that the packages and the tests run on.
const OLDEST: u32 = 20;

/// What says which packages, in which versions.
const MANIFESTS: [&str; 2] = ["package.json", "package-lock.json"];

/// Installs what the manifests in `sources` ask for into `folder`, unless it is there. Returns node, which runs the tests.
pub(crate) fn packages(folder: &Path, sources: &Path) -> Result<PathBuf, TaskError> {
    let node = node()?;
    // Written last: without it the folder is not complete.
    let installed = folder.join("installed.json");
    let lock = sources.join("package-lock.json");
    let wanted = fs::read(&lock).map_err(file_error(&lock))?;
    if fs::read(&installed).is_ok_and(|installed| installed == wanted) {
        announce("the Node packages are there");
        return Ok(node);
    }
    fs::create_dir_all(folder).map_err(file_error(folder))?;
    for name in MANIFESTS {
        let to = folder.join(name);
        fs::copy(sources.join(name), &to).map_err(file_error(&to))?;
    }
    // Packages are data here: nothing of theirs runs while they are installed.
    let mut npm = Command::new("npm");
    npm.args(["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"]);
    step("the Node packages", npm.current_dir(folder))?;
    fs::write(&installed, wanted).map_err(file_error(&installed))?;
    Ok(node)
}

/// Node, if it is there with its npm and new enough.
fn node() -> Result<PathBuf, TaskError> {
    let version = output_of("node", &["--version"]);
    let found = version.as_deref().and_then(parse_version);
    let has_npm = output_of("npm", &["--version"]).is_some();
    if has_npm && found.is_some_and(|found| found >= OLDEST) {
        return Ok(PathBuf::from("node"));
    }
    let found = match (version, has_npm) {
        (None, _) => "no node".to_owned(),
        (Some(version), true) => format!("node {}", version.trim()),
        (Some(version), false) => format!("node {} without npm", version.trim()),
    };
    Err(TaskError::Wrong(format!(
        "the tests with official clients need Node {OLDEST} or newer with npm (found: {found}); install it from \
         nodejs.org or with the system's package manager, so that `node --version` and `npm --version` work"
    )))
}

fn parse_version(text: &str) -> Option<u32> {
    text.trim().strip_prefix('v')?.split('.').next()?.parse().ok()
}

fn file_error(path: &Path) -> impl Fn(std::io::Error) -> TaskError {
    move |error| TaskError::File(path.to_owned(), error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_their_first_number() {
        assert_eq!(parse_version("v20.20.2\n"), Some(20));
        assert!(parse_version("v9.1.0").unwrap() < OLDEST);
        assert_eq!(parse_version("node"), None);
    }
}
