//! `cargo xtask licences`: everything that we are built from may be used, and nothing is there that we do not want.

use crate::{
    metadata::{Metadata, Package},
    step::TaskError,
};

/// Licences that ask for no more than to be named.
const ALLOWED: [&str; 13] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CC0-1.0",
    "CDLA-Permissive-2.0", // for data: the root certificates
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Packages that must not come in by the back door, with the reason.
const BANNED: [(&str, &str); 11] = [
    ("aws-lc-rs", "ring is the one cryptography"),
    ("aws-lc-sys", "ring is the one cryptography"),
    ("curl", "reqwest is the one HTTP client"),
    ("curl-sys", "reqwest is the one HTTP client"),
    ("hyper-tls", "rustls is the one TLS"),
    ("isahc", "reqwest is the one HTTP client"),
    ("native-tls", "rustls is the one TLS"),
    ("openssl", "rustls is the one TLS"),
    ("openssl-sys", "rustls is the one TLS"),
    ("surf", "reqwest is the one HTTP client"),
    ("ureq", "reqwest is the one HTTP client"),
];

/// Checks every package of the dependency graph.
pub(crate) fn run() -> Result<String, TaskError> {
    let packages = Metadata::read()?.packages()?;
    let problems: Vec<String> = packages.iter().filter_map(problem).collect();
    if problems.is_empty() {
        return Ok(format!("the licences of {} packages are allowed, and none is banned", packages.len()));
    }
    Err(TaskError::Wrong(format!(
        "{}\n`cargo tree --workspace --invert PACKAGE` shows what brings a package in; what is allowed and banned stands in \
         {}",
        problems.join("\n"),
        file!()
    )))
}

fn problem(package: &Package) -> Option<String> {
    let Package { name, version, licence } = package;
    if let Some((_, reason)) = BANNED.iter().find(|(banned, _)| banned == name) {
        return Some(format!("{name} {version} is banned: {reason}"));
    }
    match licence {
        None => Some(format!("{name} {version} names no licence")),
        Some(licence) if is_allowed(licence) => None,
        Some(licence) => {
            Some(format!("{name} {version} has the licence {licence}, which is not on the list"))
        }
    }
}

/// Evaluates an SPDX expression (`A OR (B AND C)`; `A/B` is an old way to write `A OR B`). What cannot be read is not
/// allowed.
fn is_allowed(expression: &str) -> bool {
    let spaced = expression.replace('/', " OR ").replace('(', " ( ").replace(')', " ) ");
    let words: Vec<&str> = spaced.split_whitespace().collect();
    let mut rest = words.as_slice();
    any_of(&mut rest) == Some(true) && rest.is_empty()
}

/// `AND` binds more strongly than `OR`.
fn any_of(words: &mut &[&str]) -> Option<bool> {
    let mut allowed = all_of(words)?;
    while eat(words, "OR") {
        allowed |= all_of(words)?;
    }
    Some(allowed)
}

fn all_of(words: &mut &[&str]) -> Option<bool> {
    let mut allowed = one(words)?;
    while eat(words, "AND") {
        allowed &= one(words)?;
    }
    Some(allowed)
}

fn one(words: &mut &[&str]) -> Option<bool> {
    if eat(words, "(") {
        let allowed = any_of(words)?;
        return eat(words, ")").then_some(allowed);
    }
    let (licence, rest) = words.split_first()?;
    *words = rest;
    if !eat(words, "WITH") {
        return Some(ALLOWED.contains(licence));
    }
    let (exception, rest) = words.split_first()?;
    *words = rest;
    // An exception only ever gives more rights.
    Some(ALLOWED.contains(licence) || ALLOWED.contains(&format!("{licence} WITH {exception}").as_str()))
}

fn eat(words: &mut &[&str], word: &str) -> bool {
    match words.split_first() {
        Some((first, rest)) if *first == word => {
            *words = rest;
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn expressions_are_evaluated() {
        for (expression, allowed) in [
            ("MIT", true),
            ("MIT OR Apache-2.0", true),
            ("MIT/Apache-2.0", true),
            ("GPL-3.0-only OR MIT", true),
            ("GPL-3.0-only", false),
            ("MIT AND GPL-3.0-only", false),
            ("MIT OR GPL-3.0-only AND GPL-2.0-only", true),
            ("(MIT OR GPL-3.0-only) AND ISC", true),
            ("(MIT AND GPL-3.0-only) OR (ISC AND MPL-2.0)", false),
            ("Apache-2.0 WITH LLVM-exception OR Apache-2.0 OR MIT", true),
            ("GPL-2.0-only WITH Classpath-exception-2.0", false),
            ("(MIT", false),
            ("MIT Apache-2.0", false),
            ("", false),
        ] {
            assert_eq!(is_allowed(expression), allowed, "{expression}");
        }
    }

    #[test]
    fn problems_name_the_package() {
        let package = |name: &str, licence: Option<&str>| Package {
            name: name.into(),
            version: "1.2.3".into(),
            licence: licence.map(str::to_owned),
        };
        assert_eq!(problem(&package("good", Some("MIT"))), None);
        for (package, part) in [
            (package("openssl", Some("Apache-2.0")), "openssl 1.2.3 is banned"),
            (package("mine", None), "names no licence"),
            (package("theirs", Some("SSPL-1.0")), "SSPL-1.0"),
        ] {
            assert!(problem(&package).unwrap().contains(part));
        }
    }
}
