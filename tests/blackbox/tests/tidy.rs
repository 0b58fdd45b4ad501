//! What is promised about the shape of the code.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Lines of a file; longer ones are two files.
const FILE_LINES: usize = 700;
/// Lines of a function, and those that all but a few keep to.
const FUNCTION_LINES: usize = 100;
const USUAL_FUNCTION_LINES: usize = 70;
/// Functions of a hundred that keep to it.
const USUAL_PERCENT: usize = 98;

/// Folders, and a file where this is a work tree of another clone, that hold nothing of ours.
const FOREIGN: [&str; 6] = ["target", ".git", "node_modules", "__pycache__", ".venv", "offpeak-data"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize().unwrap()
}

/// The name as people write it, and the text, of each text file that passes `wanted`.
fn texts(wanted: impl Fn(&Path) -> bool) -> Vec<(String, String)> {
    let root = root();
    let mut folders = vec![root.clone()];
    let mut texts = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy();
            if FOREIGN.contains(&&*name) {
                continue;
            }
            if path.is_dir() {
                folders.push(path);
            } else if wanted(&path)
                && let Ok(text) = fs::read_to_string(&path)
            {
                texts.push((path.strip_prefix(&root).unwrap().display().to_string(), text));
            }
        }
    }
    assert!(!texts.is_empty());
    texts.sort();
    texts
}

fn rust_files() -> Vec<(String, String)> {
    texts(|path| path.extension().is_some_and(|extension| extension == "rs"))
}

#[test]
fn modules_of_the_daemon_use_only_what_stands_after_them() {
    let files: Vec<_> =
        rust_files().into_iter().filter(|(name, _)| name.starts_with("daemon/src/")).collect();
    let (_, lib) = files.iter().find(|(name, _)| name == "daemon/src/lib.rs").unwrap();
    let order: Vec<&str> = lib
        .lines()
        .filter_map(|line| line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';'))
        .collect();
    assert!(order.len() > 15, "{order:?}");
    let place = |module: &str| order.iter().position(|name| *name == module);
    let mut wrong = Vec::new();
    for (name, text) in &files {
        let module =
            name.trim_start_matches("daemon/src/").split('/').next().unwrap().trim_end_matches(".rs");
        let Some(here) = place(module) else { continue };
        for used in crate_modules(text) {
            match place(&used) {
                Some(there) if there >= here => {}
                Some(_) => wrong.push(format!("{name} uses {used}, which stands before {module} in lib.rs")),
                None => wrong.push(format!("{name} uses crate::{used}, which is no module")),
            }
        }
    }
    assert_eq!(wrong, [""; 0]);
}

/// First names behind `crate::` outside comments; of `use crate::{a, b::c}` all of them.
fn crate_modules(text: &str) -> BTreeSet<String> {
    let code: Vec<&str> = text.lines().filter(|line| !line.trim_start().starts_with("//")).collect();
    let code = code.join(" ");
    let pieces: Vec<&str> = code.split("crate::").collect();
    let mut found = BTreeSet::new();
    for (before, behind) in pieces.iter().zip(pieces.iter().skip(1)) {
        let is_end_of_other_name = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        match behind.strip_prefix('{') {
            _ if is_end_of_other_name => {}
            Some(group) => found.extend(group_heads(group)),
            None => found.extend(identifier(behind)),
        }
    }
    found
}

/// First names in `a, b::c, d::{e, f}}`.
fn group_heads(group: &str) -> Vec<String> {
    let mut depth = 0_i32;
    let top: String = group
        .chars()
        .take_while(|c| {
            depth += i32::from(*c == '{') - i32::from(*c == '}');
            depth >= 0
        })
        .collect();
    // Inner groups are put out of the way, so that each comma left parts two names.
    let mut depth = 0_i32;
    let flat = top.chars().map(|c| {
        depth += i32::from(c == '{') - i32::from(c == '}');
        if depth > 0 { ' ' } else { c }
    });
    flat.collect::<String>().split(',').filter_map(|part| identifier(part.trim())).collect()
}

fn identifier(text: &str) -> Option<String> {
    let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    (!name.is_empty()).then_some(name)
}

#[test]
fn files_and_functions_fit_a_reader() {
    let mut wrong = Vec::new();
    let mut lengths = Vec::new();
    for (name, text) in rust_files() {
        let lines = text.lines().count();
        if lines > FILE_LINES {
            wrong.push(format!("{name} has {lines} lines; {FILE_LINES} are the most"));
        }
        for (function, lines) in functions(code_of(&name, &text)) {
            if lines > FUNCTION_LINES {
                wrong.push(format!("{name}: {function} has {lines} lines; {FUNCTION_LINES} are the most"));
            }
            lengths.push(lines);
        }
    }
    assert_eq!(wrong, [""; 0]);
    let usual = lengths.iter().filter(|lines| **lines <= USUAL_FUNCTION_LINES).count();
    assert!(usual * 100 >= lengths.len() * USUAL_PERCENT, "{usual} of {} are short", lengths.len());
}

/// A file without its tests, which may hold tables of any length.
fn code_of<'t>(name: &str, text: &'t str) -> &'t str {
    let is_test = name.trim_start_matches("tests/").contains("/tests/") || name.ends_with("tests.rs");
    let code = if is_test { "" } else { text };
    code.split_once("#[cfg(test)]\nmod tests {").map_or(code, |(code, _)| code)
}

/// Functions and their lines, found by rustfmt's indentation: a function ends with the first `}` under its `fn`.
fn functions(text: &str) -> Vec<(String, usize)> {
    let lines: Vec<&str> = text.lines().collect();
    let mut functions = Vec::new();
    for (start, line) in lines.iter().enumerate() {
        let Some(name) = function_name(line) else { continue };
        let indentation = line.len() - line.trim_start().len();
        let end = lines.iter().skip(start).position(|line| {
            let is_here = line.len() - line.trim_start().len() == indentation;
            is_here && (line.trim() == "}" || line.trim_end().ends_with([';', '}']))
        });
        functions.push((name, end.map_or(1, |end| end + 1)));
    }
    functions
}

fn function_name(line: &str) -> Option<String> {
    let before = ["pub", "pub(crate)", "pub(super)", "async", "const", "unsafe", "extern", "\"C\""];
    let mut words = line.split_whitespace().skip_while(|word| before.contains(word));
    (words.next() == Some("fn")).then(|| words.next().and_then(identifier)).flatten()
}

#[test]
fn functions_are_measured_as_a_reader_counts() {
    let text = "fn one() {}\n\npub(crate) async fn three(\n    x: u8,\n) {\n}\nimpl X {\n    fn four() {\n        if x {\n        }\n    }\n}\n";
    let measured = functions(text);
    assert_eq!(measured, [("one".into(), 1), ("three".into(), 4), ("four".into(), 4)]);
    let used =
        crate_modules("use crate::{a, b::c, d::{e, f}};\n// crate::no\nlet x = crate::g::h; mycrate::i;");
    assert_eq!(used.into_iter().collect::<Vec<_>>(), ["a", "b", "d", "g"]);
}

#[test]
fn no_test_is_skipped() {
    let mark = ["#[ig", "nore"].concat();
    let marks = [mark.as_str(), "pytest.mark.skip", "pytest.skip"];
    let ours = |name: &str| name.ends_with("tidy.rs");
    for (name, text) in texts(|path| path.extension().is_some_and(|e| e == "rs" || e == "py")) {
        for line in text.lines().filter(|_| !ours(&name)) {
            assert!(!marks.iter().any(|mark| line.contains(mark)), "{name}: {line}");
        }
    }
}

#[test]
fn nothing_names_a_place_on_somebodys_machine() {
    let places =
        [["/ro", "ot/"].concat(), ["/wo", "rk/"].concat(), ["/ho", "me/"].concat(), ["/Us", "ers/"].concat()];
    for (name, text) in texts(|path| path.file_name().is_some_and(|name| name != "Cargo.lock")) {
        for (number, line) in text.lines().enumerate() {
            let found = places.iter().find(|place| line.contains(place.as_str()));
            assert!(found.is_none(), "{name}:{}: {line}", number + 1);
        }
    }
}

#[test]
fn every_version_of_a_dependency_stands_in_the_workspaces_manifest() {
    let manifests = texts(|path| path.file_name().is_some_and(|name| name == "Cargo.toml"));
    for (name, text) in manifests.iter().filter(|(name, _)| name != "Cargo.toml") {
        for line in text.lines() {
            let has_version =
                line.contains("version = \"") || line.trim_end().ends_with('"') && line.contains("= \"");
            let about_dependency = has_version && line.split('=').next().is_some_and(is_dependency_key);
            assert!(
                !about_dependency || is_package_key(line),
                "{name}: {line}: its version belongs in the root manifest"
            );
        }
    }
}

fn is_dependency_key(key: &str) -> bool {
    key.trim().chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
}

/// Keys of `[package]`, `[[bin]]` and the like, whose values are texts.
fn is_package_key(line: &str) -> bool {
    let key = line.split('=').next().unwrap_or_default().trim();
    ["name", "description", "path", "readme", "build", "links", "version", "edition", "license"]
        .contains(&key)
}
