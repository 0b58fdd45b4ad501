//! Which models a backend serves and a tenant may use; and whose requests a route is for.

use std::fmt;

use serde::Serialize;

/// Names, mostly of models, with `*` for any number of any characters. Nothing else is special.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct ModelPatterns(Vec<String>);

impl ModelPatterns {
    /// A model fits if it fits one of these.
    pub fn new(patterns: impl IntoIterator<Item = impl Into<String>>) -> Self {
        Self(patterns.into_iter().map(Into::into).collect())
    }

    /// Every model.
    pub fn any() -> Self {
        Self::new(["*"])
    }

    /// Whether the model fits. No name has control characters in it: whoever sends some is after the terminals that show them.
    pub fn matches(&self, model: &str) -> bool {
        !model.contains(char::is_control) && self.0.iter().any(|pattern| fits(pattern, model))
    }

    /// The patterns as they were written.
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

impl fmt::Display for ModelPatterns {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.join(", "))
    }
}

/// The pieces between the stars must follow each other: the first at the start, the last at the end, the others
/// wherever they come first. Taking the earliest place is safe because only order matters; so it takes no backtracking.
fn fits(pattern: &str, model: &str) -> bool {
    let Some((first, rest)) = pattern.split_once('*') else { return pattern == model };
    let Some(mut left) = model.strip_prefix(first) else { return false };
    let (between, last) = rest.rsplit_once('*').unwrap_or(("", rest));
    for piece in between.split('*') {
        match left.split_once(piece) {
            Some((_, after)) => left = after,
            None => return false,
        }
    }
    left.ends_with(last)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The definition: a star is nothing, or one character and a star.
    fn oracle(pattern: &[char], model: &[char]) -> bool {
        match (pattern, model) {
            ([], []) => true,
            (['*', pattern @ ..], []) => oracle(pattern, &[]),
            (['*', after @ ..], [_, rest @ ..]) => oracle(after, model) || oracle(pattern, rest),
            ([p, pattern @ ..], [m, model @ ..]) => p == m && oracle(pattern, model),
            ([] | [_, ..], _) => false,
        }
    }

    #[test]
    fn stars_stand_for_anything_and_nothing_else_is_special() {
        for (pattern, model, expected) in [
            ("gpt-4o", "gpt-4o", true),
            ("gpt-4o", "gpt-4o-mini", false),
            ("gpt-*", "gpt-", true),
            ("gpt-*", "xgpt-4", false),
            ("*-mini", "gpt-4o-mini", true),
            ("*-mini", "gpt-4o-mini-2", false),
            ("a*b*c", "a1b2b3c", true),
            ("a*a", "a", false),
            ("*", "", true),
            ("**", "x", true),
            ("", "", true),
            ("", "x", false),
            ("gpt-4.o", "gpt-4xo", false),
            ("gpt-?", "gpt-4", false),
            ("\u{e9}*", "\u{e9}t\u{e9}", true),
        ] {
            assert_eq!(ModelPatterns::new([pattern]).matches(model), expected, "{pattern} {model}");
        }
    }

    #[test]
    fn one_that_fits_is_enough() {
        let patterns = ModelPatterns::new(["gpt-*", "o3"]);
        assert!(patterns.matches("o3") && patterns.matches("gpt-4o") && !patterns.matches("o4"));
        assert!(!ModelPatterns::new(Vec::<String>::new()).matches(""));
        assert!(ModelPatterns::any().matches("whatever"));
        assert!(["a\u{1b}[2J", "a\n", "\u{9b}m"].iter().all(|model| !ModelPatterns::any().matches(model)));
    }

    proptest! {
        // Few letters and many stars, so that matches are not rare.
        #[test]
        fn it_does_what_the_definition_says(pattern in "[ab*]{0,8}", model in "[ab*]{0,12}") {
            let chars = |text: &str| text.chars().collect::<Vec<_>>();
            let expected = oracle(&chars(&pattern), &chars(&model));
            prop_assert_eq!(ModelPatterns::new([pattern]).matches(&model), expected);
        }
    }
}
