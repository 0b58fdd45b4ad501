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

/// Files that lift the ban on unsafe code, and how often each is unsafe in our own words: where compiled code is loaded, once,
/// and where bindings are generated, never.
const UNSAFE: [(&str, usize); 3] = [
    ("daemon/host/src/bindings.rs", 0),
    ("daemon/host/src/precompiled.rs", 1),
    ("tests/guests/first/src/bindings.rs", 0),
];

fn rust_files() -> Vec<(String, String)> {
    texts(|path| path.extension().is_some_and(|extension| extension == "rs"))
}

/// The modules of the daemon, in reading order.
fn modules() -> Vec<String> {
    let lib = fs::read_to_string(root().join("daemon/src/lib.rs")).unwrap();
    let module = |line: &str| {
        line.trim_start_matches("pub ").strip_prefix("mod ")?.strip_suffix(';').map(str::to_owned)
    };
    let order: Vec<String> = lib.lines().filter_map(module).collect();
    assert!(order.len() > 15, "{order:?}");
    order
}

#[test]
fn the_map_of_the_daemon_has_its_modules_in_reading_order() {
    let map = fs::read_to_string(root().join("daemon/ARCHITECTURE.md")).unwrap();
    let (_, table) = map.split_once("\n| module | purpose |\n").unwrap();
    let rows = table.lines().take_while(|line| line.starts_with('|')).skip(1);
    let names: Vec<&str> = rows
        .filter_map(|row| row.split('|').nth(1))
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .collect();
    assert_eq!(names, modules());
}

#[test]
fn modules_of_the_daemon_use_only_what_stands_after_them() {
    let files: Vec<_> =
        rust_files().into_iter().filter(|(name, _)| name.starts_with("daemon/src/")).collect();
    let order = modules();
    let place = |module: &str| order.iter().position(|name| name == module);
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

/// What leaves a test out, or counts its failure as a success, by the language of the file.
fn marks_of_skipping(name: &str) -> &'static [&'static str] {
    match Path::new(name).extension().and_then(|extension| extension.to_str()) {
        Some("rs") => &["#[ignore"],
        Some("py") => &["pytest.mark.skip", "pytest.skip", "importorskip", "mark.xfail", "pytest.xfail"],
        Some("js") => &[".skip(", "skip:", ".todo(", "todo:", ".only(", "only:"],
        _ => &[],
    }
}

#[test]
fn no_test_is_skipped() {
    let mut languages = BTreeSet::new();
    let of_us = |path: &Path| path.extension().is_some_and(|e| e == "rs" || e == "py" || e == "js");
    for (name, text) in texts(of_us).into_iter().filter(|(name, _)| !name.ends_with("tidy.rs")) {
        let marks = marks_of_skipping(&name);
        languages.insert(name.rsplit('.').next().unwrap().to_owned());
        for line in text.lines() {
            assert!(!marks.iter().any(|mark| line.contains(mark)), "{name}: {line}");
        }
    }
    assert_eq!(languages.len(), 3, "{languages:?}");
}

#[test]
fn unsafe_code_stands_in_one_place() {
    const USES: [&str; 5] = ["unsafe {", "unsafe fn ", "unsafe impl ", "unsafe extern ", "unsafe trait "];
    let mut found = Vec::new();
    for (name, text) in rust_files().into_iter().filter(|(name, _)| !name.ends_with("tidy.rs")) {
        let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
        let uses = code.map(|line| USES.iter().filter(|using| line.contains(*using)).count()).sum();
        if uses > 0 || text.contains("unsafe_code") {
            found.push((name, uses));
        }
    }
    let found: Vec<(&str, usize)> = found.iter().map(|(name, uses)| (name.as_str(), *uses)).collect();
    assert_eq!(found, UNSAFE);
    // The ban reaches whoever takes the workspace's lints.
    let root = fs::read_to_string(root().join("Cargo.toml")).unwrap();
    assert!(root.contains("unsafe_code = \"deny\""));
    let members = root.split_once("members = [").unwrap().1.split_once(']').unwrap().0;
    // What `offpeak plugin new` copies stands alone, and asks for lints of its own.
    let ours = members.split('"').skip(1).step_by(2).filter(|member| *member != "tests/guests/template");
    for member in ours {
        let manifest = fs::read_to_string(self::root().join(member).join("Cargo.toml")).unwrap();
        assert!(
            manifest.contains("[lints]\nworkspace = true"),
            "{member} does not take the workspace's lints"
        );
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
    // The examples are crates of their own, as those of users are.
    let ours = |name: &str| name != "Cargo.toml" && !name.starts_with("plugins/examples/");
    for (name, text) in manifests.iter().filter(|(name, _)| ours(name)) {
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
