//! Checks a batch's input file, line by line.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::config::{Catalog, Limits};
use crate::wire::{Head, Text};
use crate::work::{Api, Work};

/// Errors beyond this many are not listed.
const MAX_ERRORS: usize = 100;

/// One entry of a batch's `errors.data`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct BatchError {
    pub(crate) code: String,
    /// 1-based.
    pub(crate) line: Option<usize>,
    pub(crate) message: String,
    pub(crate) param: Option<&'static str>,
}

impl BatchError {
    /// An error of the file as a whole.
    pub(crate) fn of_file(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), line: None, message: message.into(), param: None }
    }
}

/// A line of the input file.
#[derive(Deserialize)]
pub(crate) struct Line<'a> {
    #[serde(borrow)]
    pub(crate) custom_id: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) method: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) url: Option<Text<'a>>,
    #[serde(borrow)]
    pub(crate) body: Option<&'a RawValue>,
}

/// Where a line stands in the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Span {
    pub(crate) start: usize,
    pub(crate) end: usize,
}

/// A file that may run.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Checked {
    pub(crate) model: usize,
    pub(crate) prompt_tokens: u64,
    pub(crate) lines: Vec<Span>,
}

/// Checks `input` for a batch of `api`.
pub(crate) fn check(
    input: &[u8],
    api: Api,
    catalog: &Catalog,
    limits: &Limits,
) -> Result<Checked, Vec<BatchError>> {
    if input.len() as u64 > limits.batch_file_bytes {
        let message =
            format!("The input file has {} bytes, the limit is {}.", input.len(), limits.batch_file_bytes);
        return Err(vec![BatchError::of_file("file_too_large", message)]);
    }
    let lines = split(input);
    if lines.is_empty() {
        return Err(vec![BatchError::of_file("empty_file", "The input file has no requests.")]);
    }
    if lines.len() > limits.batch_requests {
        let message =
            format!("The input file has {} requests, the limit is {}.", lines.len(), limits.batch_requests);
        return Err(vec![BatchError::of_file("too_many_tasks", message)]);
    }
    let mut checker =
        Checker { api, catalog, ids: HashSet::with_capacity(lines.len()), model: None, tokens: 0, inputs: 0 };
    let mut errors = Vec::new();
    for (line, number) in lines.iter().zip(1..) {
        let text = input.get(line.start..line.end).unwrap_or_default();
        if let Err(problem) = checker.line(text) {
            let Problem { code, message, param } = problem;
            errors.push(BatchError { code: code.to_owned(), line: Some(number), message, param });
            if errors.len() >= MAX_ERRORS {
                break;
            }
        }
    }
    if checker.inputs > limits.batch_embedding_inputs {
        let message = format!(
            "The batch has {} embedding inputs, the limit is {}.",
            checker.inputs, limits.batch_embedding_inputs
        );
        errors.push(BatchError::of_file("too_many_tasks", message));
    }
    match (checker.model, errors.is_empty()) {
        (Some(model), true) => Ok(Checked { model, prompt_tokens: checker.tokens, lines }),
        _ => Err(errors),
    }
}

/// The lines, without their ends. Nothing after the last line feed is no line.
fn split(input: &[u8]) -> Vec<Span> {
    let mut lines = Vec::new();
    let mut start = 0;
    for piece in input.split_inclusive(|byte| *byte == b'\n') {
        let text = piece.strip_suffix(b"\n").unwrap_or(piece);
        let text = text.strip_suffix(b"\r").unwrap_or(text);
        lines.push(Span { start, end: start + text.len() });
        start += piece.len();
    }
    lines
}

struct Problem {
    code: &'static str,
    message: String,
    param: Option<&'static str>,
}

fn problem(code: &'static str, param: Option<&'static str>, message: impl Into<String>) -> Problem {
    Problem { code, message: message.into(), param }
}

fn missing(param: &'static str) -> Problem {
    problem("missing_required_parameter", Some(param), format!("Missing required parameter: '{param}'."))
}

struct Checker<'a> {
    api: Api,
    catalog: &'a Catalog,
    ids: HashSet<Text<'a>>,
    model: Option<usize>,
    tokens: u64,
    inputs: usize,
}

impl<'a> Checker<'a> {
    fn line(&mut self, text: &'a [u8]) -> Result<(), Problem> {
        let line: Line<'a> = serde_json::from_slice(text).map_err(|error| match error.classify() {
            serde_json::error::Category::Data => {
                problem("invalid_request", None, format!("This line is not a valid request: {error}."))
            }
            _ => problem("invalid_json_line", None, "This line is not parseable as valid JSON."),
        })?;
        let custom_id = line.custom_id.filter(|id| !id.is_empty()).ok_or_else(|| missing("custom_id"))?;
        let method = line.method.ok_or_else(|| missing("method"))?;
        let url = line.url.ok_or_else(|| missing("url"))?;
        let body = line.body.ok_or_else(|| missing("body"))?;
        if &*method != "POST" {
            let message = format!("Invalid method '{}': only POST is supported.", &*method);
            return Err(problem("invalid_method", Some("method"), message));
        }
        if &*url != self.api.path() {
            let message =
                format!("The URL '{}' does not match the batch's endpoint '{}'.", &*url, self.api.path());
            return Err(problem("url_mismatch", Some("url"), message));
        }
        self.body(body.get())?;
        if self.ids.contains(&custom_id) {
            let message = format!("The custom_id '{}' is used more than once.", &*custom_id);
            return Err(problem("duplicate_custom_id", Some("custom_id"), message));
        }
        self.ids.insert(custom_id);
        Ok(())
    }

    fn body(&mut self, body: &'a str) -> Result<(), Problem> {
        let invalid = || problem("invalid_request", Some("body"), "The body must be an object.");
        if !body.starts_with('{') {
            return Err(invalid());
        }
        let head: Head<'a> = serde_json::from_str(body).map_err(|_| invalid())?;
        if head.stream == Some(true) {
            let message = "Streaming is not supported in a batch.";
            return Err(problem("invalid_request", Some("body.stream"), message));
        }
        let name = head.model.ok_or_else(|| missing("body.model"))?;
        let unknown = || {
            problem("model_not_found", Some("body.model"), format!("The model `{}` does not exist.", &*name))
        };
        let model = self.catalog.find(&name).ok_or_else(unknown)?;
        if *self.model.get_or_insert(model) != model {
            let message = "All requests of a batch must name the same model.";
            return Err(problem("model_mismatch", Some("body.model"), message));
        }
        // What else is wrong with a body is the model endpoint's business: the item then fails when it runs.
        if let Ok(work) = Work::parse(self.api, body.as_bytes()) {
            self.tokens += work.prompt_tokens();
            self.inputs += work.embedding_inputs();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str, model: &str, url: &str) -> String {
        format!(
            r#"{{"custom_id":"{id}","method":"POST","url":"{url}","body":{{"model":"{model}","messages":[{{"role":"user","content":"12345678"}}]}}}}"#
        )
    }

    fn run(lines: &[String]) -> Result<Checked, Vec<(String, Option<usize>)>> {
        let catalog = Catalog::new(["m", "n"].map(str::to_owned));
        let limits = Limits { batch_requests: 4, ..Limits::default() };
        check(lines.join("\n").as_bytes(), Api::Chat, &catalog, &limits)
            .map_err(|errors| errors.into_iter().map(|error| (error.code, error.line)).collect())
    }

    const URL: &str = "/v1/chat/completions";

    #[test]
    fn a_good_file_passes() {
        let checked = run(&[line("a", "m", URL), line("b", "m", URL) + "\r\n"]).unwrap();
        assert_eq!((checked.model, checked.prompt_tokens, checked.lines.len()), (0, 4, 2));
    }

    #[test]
    fn each_problem_has_its_code_and_line() {
        let good = line("a", "m", URL);
        let cases = [
            ("{".to_owned(), "invalid_json_line"),
            (String::new(), "invalid_json_line"),
            ("[]".to_owned(), "invalid_request"),
            (r#"{"custom_id":"b"}"#.to_owned(), "missing_required_parameter"),
            (line("a", "m", URL), "duplicate_custom_id"),
            (line("b", "m", "/v1/embeddings"), "url_mismatch"),
            (line("b", "n", URL), "model_mismatch"),
            (line("b", "who", URL), "model_not_found"),
            (line("b", "m", URL).replace("POST", "GET"), "invalid_method"),
            (line("b", "m", URL).replace(r#""model""#, r#""stream":true,"model""#), "invalid_request"),
        ];
        for (bad, code) in cases {
            let got = run(&[good.clone(), bad, good.replace("\"a\"", "\"z\"")]).unwrap_err();
            assert_eq!(got, [(code.to_owned(), Some(2))]);
        }
    }

    #[test]
    fn limits_hold() {
        assert_eq!(run(&[]).unwrap_err(), [("empty_file".to_owned(), None)]);
        let lines: Vec<_> = (0..5).map(|n| line(&n.to_string(), "m", URL)).collect();
        assert_eq!(run(&lines).unwrap_err(), [("too_many_tasks".to_owned(), None)]);
    }
}
