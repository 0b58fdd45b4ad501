//! Checks the input of a job line by line while it arrives: each byte is looked at once, and no line is copied unless
//! the network cut it.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::hash::{BuildHasher, RandomState};

use serde::Deserialize;
use serde::de::{IgnoredAny, MapAccess, Visitor};
use serde_json::error::Category;
use serde_json::value::RawValue;

use crate::documents::file::{Check, Named, Problem};

/// A file that has more errors is as bad.
const PROBLEMS_MAX: usize = 100;

/// As many different models or endpoints, and lines of each, are remembered.
const NAMES_MAX: usize = 20;

/// Longest names.
const CUSTOM_ID_MAX: usize = 1024;
const NAME_MAX: usize = 256;

/// What a file may hold.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Lines.
    pub lines: u64,
    /// Bytes of a line.
    pub line_bytes: usize,
}

/// A line as it is understood, borrowed from the file.
#[derive(Debug, Deserialize)]
pub struct Line<'a> {
    /// The client's name for it.
    #[serde(borrow, default)]
    pub custom_id: Option<Text<'a>>,
    /// Always POST.
    #[serde(borrow, default)]
    pub method: Option<Text<'a>>,
    /// The endpoint.
    #[serde(borrow, default)]
    pub url: Option<Text<'a>>,
    /// The request's body.
    #[serde(borrow, default)]
    pub body: Option<Body<'a>>,
}

/// A text, borrowed where JSON has it as it is.
#[derive(Debug, Deserialize)]
pub struct Text<'a>(#[serde(borrow)] pub Cow<'a, str>);

/// As much of a request's body as a job needs to know.
#[derive(Debug, Default)]
pub struct Body<'a> {
    /// The model.
    pub model: Option<Text<'a>>,
    /// It wants its answer in pieces.
    pub stream: bool,
}

impl<'de: 'a, 'a> Deserialize<'de> for Body<'a> {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Object;

        impl<'de> Visitor<'de> for Object {
            type Value = Body<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut body = Body::default();
                while let Some(Text(name)) = map.next_key()? {
                    match &*name {
                        "model" => body.model = map.next_value()?,
                        "stream" => body.stream = map.next_value::<&RawValue>()?.get() == "true",
                        _ => {
                            map.next_value::<IgnoredAny>()?;
                        }
                    }
                }
                Ok(body)
            }
        }

        deserializer.deserialize_map(Object)
    }
}

/// Checks a file while it arrives.
pub struct Checker {
    limits: Limits,
    hasher: RandomState,
    /// Hashes of the custom ids: of 50,000 ids two are taken for the same once in ten thousand million files.
    ids: HashSet<u64>,
    /// The beginning of a line whose end has not arrived.
    partial: Vec<u8>,
    /// The line is too long; it has been reported.
    is_skipping: bool,
    check: Check,
}

impl Checker {
    /// Nothing has arrived.
    pub fn new(limits: Limits) -> Self {
        Self {
            limits,
            hasher: RandomState::new(),
            ids: HashSet::new(),
            partial: Vec::new(),
            is_skipping: false,
            check: Check::default(),
        }
    }

    /// Takes in what has arrived.
    pub fn push(&mut self, data: &[u8]) {
        let mut rest = data;
        while let Some(end) = memchr::memchr(b'\n', rest) {
            let (line, after) = rest.split_at(end);
            self.end_line(line);
            rest = after.get(1..).unwrap_or_default();
        }
        if self.is_skipping {
            return;
        }
        if self.partial.len() + rest.len() > self.limits.line_bytes {
            self.too_long();
            self.is_skipping = true;
            self.partial.clear();
        } else {
            self.partial.extend_from_slice(rest);
        }
    }

    /// What was found in the whole file.
    pub fn finish(mut self) -> Check {
        if !self.partial.is_empty() || self.is_skipping {
            self.end_line(b"");
        }
        if self.check.lines == 0 {
            self.check.problems.push(Problem::of_file("empty_file", "The input file has no requests."));
        }
        if self.check.lines > self.limits.lines {
            let message = format!(
                "The input file has {} requests; {} are the most. Split it into several.",
                self.check.lines, self.limits.lines
            );
            self.check.problems.insert(0, Problem::of_file("too_many_tasks", message));
        }
        self.check
    }

    fn end_line(&mut self, tail: &[u8]) {
        if std::mem::take(&mut self.is_skipping) {
            self.check.lines += 1;
            return;
        }
        if self.partial.is_empty() {
            self.line(tail);
        } else {
            let mut line = std::mem::take(&mut self.partial);
            line.extend_from_slice(tail);
            self.line(&line);
            line.clear();
            self.partial = line;
        }
    }

    fn line(&mut self, line: &[u8]) {
        if line.len() > self.limits.line_bytes {
            self.too_long();
            self.check.lines += 1;
            return;
        }
        self.check.lines += 1;
        // Beyond the limit lines are only counted.
        if self.check.lines <= self.limits.lines
            && let Err(problem) = self.understand(line)
        {
            self.report(problem);
        }
    }

    fn too_long(&mut self) {
        let most = self.limits.line_bytes;
        let message = format!("This line is longer than {most} bytes, which is the largest request.");
        let line = Some(self.check.lines + 1);
        self.push_problem(Problem { code: "request_too_large".to_owned(), line, message, param: None });
    }

    fn report(&mut self, Wrong { code, param, message }: Wrong) {
        let line = Some(self.check.lines);
        self.push_problem(Problem { code: code.to_owned(), line, message, param: param.map(str::to_owned) });
    }

    fn push_problem(&mut self, problem: Problem) {
        if self.check.problems.len() < PROBLEMS_MAX {
            self.check.problems.push(problem);
        }
    }

    fn understand(&mut self, line: &[u8]) -> Result<(), Wrong> {
        let line = read(line)?;
        let custom_id = line.custom_id.filter(|id| !id.0.is_empty()).ok_or_else(|| missing("custom_id"))?;
        let method = line.method.ok_or_else(|| missing("method"))?;
        let url = line.url.ok_or_else(|| missing("url"))?;
        let body = line.body.ok_or_else(|| missing("body"))?;
        let model = body.model.filter(|name| !name.0.is_empty()).ok_or_else(|| missing("body.model"))?;
        if method.0 != "POST" {
            return Err(wrong("invalid_method", "method", "The method must be POST."));
        }
        if body.stream {
            let message = "Streaming is not supported in a batch: leave out \"stream\".";
            return Err(wrong("invalid_request", "body.stream", message));
        }
        if custom_id.0.len() > CUSTOM_ID_MAX {
            let message = format!("The custom_id is longer than {CUSTOM_ID_MAX} bytes.");
            return Err(wrong("invalid_request", "custom_id", message));
        }
        if !self.ids.insert(self.hasher.hash_one(&*custom_id.0)) {
            let message = format!("The custom_id '{}' is used more than once.", shortened(&custom_id.0));
            return Err(wrong("duplicate_custom_id", "custom_id", message));
        }
        remember(&mut self.check.models, &model.0, self.check.lines);
        remember(&mut self.check.urls, &url.0, self.check.lines);
        Ok(())
    }
}

/// What is wrong with a line.
struct Wrong {
    code: &'static str,
    param: Option<&'static str>,
    message: String,
}

fn wrong(code: &'static str, param: &'static str, message: impl Into<String>) -> Wrong {
    Wrong { code, param: Some(param), message: message.into() }
}

fn missing(param: &'static str) -> Wrong {
    wrong("missing_required_parameter", param, format!("Missing required parameter: '{param}'."))
}

/// Reads a line. A member of the wrong type is found on the way; the slow look at which one it is, is for the bad ones.
fn read(line: &[u8]) -> Result<Line<'_>, Wrong> {
    let unreadable =
        |message: &str| Wrong { code: "invalid_json_line", param: None, message: message.to_owned() };
    if line.starts_with(b"\xef\xbb\xbf") {
        let message = "This line is not parseable as valid JSON: it begins with a byte order mark. Save the file as \
                       UTF-8 without one.";
        return Err(unreadable(message));
    }
    let text = std::str::from_utf8(line).map_err(|_| unreadable("This line is not UTF-8."))?;
    match parse(text) {
        Ok(line) => Ok(line),
        Err(error) if error.classify() == Category::Data => Err(misshapen(text, &error)),
        Err(_) => Err(unreadable("This line is not parseable as valid JSON.")),
    }
}

/// Reads a line as JSON.
fn parse(text: &str) -> Result<Line<'_>, serde_json::Error> {
    // Serde would take an array for a struct's members in their order.
    if text.trim_start().starts_with('[') {
        return serde_json::from_str::<Body<'_>>(text).map(|_| Line {
            custom_id: None,
            method: None,
            url: None,
            body: None,
        });
    }
    serde_json::from_str(text)
}

fn misshapen(text: &str, error: &serde_json::Error) -> Wrong {
    #[derive(Deserialize)]
    struct Loose<'a> {
        #[serde(borrow, default)]
        custom_id: Option<&'a RawValue>,
        #[serde(borrow, default)]
        method: Option<&'a RawValue>,
        #[serde(borrow, default)]
        url: Option<&'a RawValue>,
        #[serde(borrow, default)]
        body: Option<&'a RawValue>,
    }
    let loose = serde_json::from_str::<Loose<'_>>(text).ok().filter(|_| text.trim_start().starts_with('{'));
    let Some(line) = loose else {
        let message = format!("This line is not a request: {error}.");
        return Wrong { code: "invalid_request", param: None, message };
    };
    let texts = [("custom_id", line.custom_id), ("method", line.method), ("url", line.url)];
    for (param, value) in texts {
        if value.is_some_and(|value| !value.get().starts_with('"')) {
            return wrong("invalid_request", param, format!("'{param}' must be a text."));
        }
    }
    if line.body.is_some_and(|body| !body.get().starts_with('{')) {
        return wrong("invalid_request", "body", "'body' must be an object.");
    }
    wrong("invalid_request", "body.model", "'model' must be a text.")
}

/// Remembers a name and the first lines in which it stands; at most a few of both.
pub fn remember(names: &mut Vec<Named>, name: &str, line: u64) {
    if let Some(known) = names.iter_mut().find(|known| known.name == name) {
        if known.lines.len() < NAMES_MAX {
            known.lines.push(line);
        }
    } else if names.len() < NAMES_MAX {
        names.push(Named { name: name.chars().take(NAME_MAX).collect(), lines: vec![line] });
    }
}

fn shortened(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits { lines: 6, line_bytes: 400 };

    fn line(id: &str) -> String {
        format!(r#"{{"custom_id":"{id}","method":"POST","url":"/v1/x","body":{{"model":"m","n":[1]}}}}"#)
    }

    fn check(text: &[u8]) -> Check {
        let mut checker = Checker::new(LIMITS);
        checker.push(text);
        checker.finish()
    }

    fn problems(check: &Check) -> Vec<(&str, Option<u64>, Option<&str>)> {
        check.problems.iter().map(|p| (p.code.as_str(), p.line, p.param.as_deref())).collect()
    }

    #[test]
    fn a_good_file_is_counted() {
        for end in ["", "\n", "\r\n"] {
            let found = check(format!("{}\r\n{}{end}", line("a"), line("b")).as_bytes());
            let named = |name: &str| vec![Named { name: name.to_owned(), lines: vec![1, 2] }];
            let expected = Check { lines: 2, models: named("m"), urls: named("/v1/x"), problems: vec![] };
            assert_eq!(found, expected);
        }
    }

    #[test]
    fn each_problem_has_its_code_line_and_member() {
        let cases = [
            ("{".to_owned(), "invalid_json_line", None),
            (String::new(), "invalid_json_line", None),
            ("nonsense".to_owned(), "invalid_json_line", None),
            (line("b") + " x", "invalid_json_line", None),
            ("\u{feff}".to_owned() + &line("b"), "invalid_json_line", None),
            ("[]".to_owned(), "invalid_request", None),
            ("7".to_owned(), "invalid_request", None),
            (r#"{"method":"POST"}"#.to_owned(), "missing_required_parameter", Some("custom_id")),
            (r#"{"custom_id":"b"}"#.to_owned(), "missing_required_parameter", Some("method")),
            (line("b").replace(r#""url":"/v1/x","#, ""), "missing_required_parameter", Some("url")),
            (line("b").replace(r#""model":"m","#, ""), "missing_required_parameter", Some("body.model")),
            (line("b").replace(r#""m""#, "null"), "missing_required_parameter", Some("body.model")),
            (line(""), "missing_required_parameter", Some("custom_id")),
            (line("a"), "duplicate_custom_id", Some("custom_id")),
            (line("\\u0061"), "duplicate_custom_id", Some("custom_id")),
            (line("b").replace("POST", "GET"), "invalid_method", Some("method")),
            (line("b").replace(r#""b""#, "7"), "invalid_request", Some("custom_id")),
            (line("b").replace(r#"{"model":"m","n":[1]}"#, r#"["m"]"#), "invalid_request", Some("body")),
            (line("b").replace(r#""m""#, "7"), "invalid_request", Some("body.model")),
            (line("b").replace(r#""n""#, r#""stream":true,"n""#), "invalid_request", Some("body.stream")),
            (line(&"b".repeat(400)), "request_too_large", None),
        ];
        for (bad, code, param) in cases {
            let found = check([line("a"), bad.clone(), line("z")].join("\n").as_bytes());
            assert_eq!(problems(&found), [(code, Some(2), param)], "{bad}");
            assert_eq!(found.lines, 3, "{bad}");
        }
        let mut not_text = line("b").into_bytes();
        not_text[14] = 0xff;
        assert_eq!(problems(&check(&not_text)), [("invalid_json_line", Some(1), None)]);
    }

    #[test]
    fn files_as_a_whole() {
        assert_eq!(problems(&check(b"")), [("empty_file", None, None)]);
        let many: Vec<String> = (0..7).map(|n| line(&n.to_string())).collect();
        let found = check(many.join("\n").as_bytes());
        assert_eq!((problems(&found), found.lines), (vec![("too_many_tasks", None, None)], 7));
    }

    #[test]
    fn different_names_are_remembered_with_their_lines() {
        let other = line("b").replace(r#""m""#, r#""n""#).replace("/v1/x", "/v1/y");
        let found = check([line("a"), other, line("c")].join("\n").as_bytes());
        let names = |named: &[Named]| {
            named.iter().map(|one| (one.name.clone(), one.lines.clone())).collect::<Vec<_>>()
        };
        assert_eq!(names(&found.models), [("m".to_owned(), vec![1, 3]), ("n".to_owned(), vec![2])]);
        assert_eq!(names(&found.urls), [("/v1/x".to_owned(), vec![1, 3]), ("/v1/y".to_owned(), vec![2])]);
    }

    proptest! {
        #[test]
        fn wherever_the_network_cuts_the_same_is_found(
            kinds in prop::collection::vec(0_usize..6, 0..9),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let lines: Vec<String> = kinds.iter().enumerate().map(|(at, kind)| match kind {
                0 => "{".to_owned(),
                1 => String::new(),
                2 => line("same"),
                3 => "x".repeat(500),
                _ => line(&at.to_string()),
            }).collect();
            let text = lines.join("\n").into_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(text.len() + 1)).collect();
            cuts.sort_unstable();
            let mut checker = Checker::new(LIMITS);
            let mut from = 0;
            for cut in cuts.into_iter().chain([text.len()]) {
                checker.push(&text[from..cut]);
                from = cut;
            }
            prop_assert_eq!(checker.finish(), check(&text));
        }
    }
}
