//! What there is to say about a job: as text for people, as JSON for scripts.

use std::collections::BTreeMap;
use std::fmt;
use std::fs::File;
use std::io::{self, BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cli::screen::{cost, count, short};
use crate::cli::wire::{Cost, Counts, Job, LineError, Status, Usage};

/// Errors of a refused file that are shown to people.
const LINES_SHOWN: usize = 20;
/// Kinds of failures that are shown, and that are told apart at all.
const REASONS_SHOWN: usize = 5;
const REASONS_MOST: usize = 1000;

/// A job and its results.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) id: String,
    pub(crate) status: Status,
    pub(crate) endpoint: String,
    pub(crate) window: String,
    pub(crate) created_at: u64,
    pub(crate) expires_at: Option<u64>,
    pub(crate) requests: Counts,
    /// The file that was handed in.
    pub(crate) input: PathBuf,
    /// The answers, once they are fetched.
    pub(crate) output: Option<PathBuf>,
    /// What has no answer, once it is fetched.
    pub(crate) errors: Option<PathBuf>,
    /// Why requests have no answer, the most frequent reason first.
    #[serde(default)]
    pub(crate) reasons: Vec<Reason>,
    /// Why the file was refused.
    #[serde(default)]
    pub(crate) refused: Vec<LineError>,
    pub(crate) usage: Option<Usage>,
    /// What it has cost, in dollars.
    #[serde(default)]
    pub(crate) cost: Option<Cost>,
    /// An earlier command handed the file in.
    pub(crate) resumed: bool,
}

/// Why some requests have no answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reason {
    pub(crate) requests: u64,
    pub(crate) message: String,
}

impl Report {
    /// A job as it is, without results.
    pub(crate) fn new(job: &Job, input: &Path, resumed: bool) -> Self {
        Self {
            id: job.id.clone(),
            status: job.status,
            endpoint: job.endpoint.clone(),
            window: job.completion_window.clone(),
            created_at: job.created_at,
            expires_at: job.expires_at,
            requests: job.counts(),
            input: input.to_owned(),
            output: None,
            errors: None,
            reasons: Vec::new(),
            refused: job.errors.clone().unwrap_or_default().data,
            usage: job.usage,
            cost: job.cost,
            resumed,
        }
    }

    /// Nothing went wrong so far.
    pub(crate) fn is_good(&self) -> bool {
        match self.status {
            Status::Completed => self.requests.failed == 0,
            Status::Failed | Status::Expired | Status::Cancelled => false,
            Status::Validating
            | Status::InProgress
            | Status::Finalizing
            | Status::Cancelling
            | Status::Unknown => true,
        }
    }

    /// For scripts.
    pub(crate) fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).unwrap_or_default()
    }

    fn refusals(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for error in self.refused.iter().take(LINES_SHOWN) {
            let place = error.line.map_or_else(|| "the file".to_owned(), |line| format!("line {line}"));
            let message = error.message.as_deref().or(error.code.as_deref()).unwrap_or("refused");
            write!(f, "\n  {place}: {message}")?;
        }
        match self.refused.len().saturating_sub(LINES_SHOWN) {
            0 => Ok(()),
            more => write!(f, "\n  and {more} more (--json shows all)"),
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { id, status, requests, .. } = self;
        let earlier = if self.resumed { " (handed in before)" } else { "" };
        let done = match status {
            Status::Validating
            | Status::InProgress
            | Status::Finalizing
            | Status::Cancelling
            | Status::Unknown => {
                write!(f, "{id}: {}{earlier}", status.as_str())?;
                if requests.total > 0 {
                    write!(f, ", {} of {} done", count(requests.finished()), count(requests.total))?;
                }
                if let Some(spent) = self.cost.filter(|_| requests.finished() > 0) {
                    write!(f, ", {} so far", cost(&spent))?;
                }
                return write!(
                    f,
                    "\nThe same command with --watch waits for the answers; `offpeak jobs` shows all jobs."
                );
            }
            Status::Failed => {
                write!(f, "{id}: the file was refused, and nothing of it was run{earlier}")?;
                return self.refusals(f);
            }
            Status::Completed => "completed",
            Status::Expired => "the window is over",
            Status::Cancelled => "cancelled",
        };
        let without = requests.total.saturating_sub(requests.completed);
        write!(
            f,
            "{id}: {done}, {} of {} answered{earlier}",
            count(requests.completed),
            count(requests.total)
        )?;
        if let Some(usage) = &self.usage {
            write!(f, ", {} tokens in, {} out", count(usage.input_tokens), count(usage.output_tokens))?;
        }
        if let Some(spent) = &self.cost {
            write!(f, ", {}", cost(spent))?;
        }
        if let Some(output) = &self.output {
            write!(f, "\n  answers  {}", output.display())?;
        }
        if let Some(errors) = &self.errors {
            write!(f, "\n  errors   {}", errors.display())?;
        }
        for Reason { requests, message } in self.reasons.iter().take(REASONS_SHOWN) {
            write!(f, "\n           {} x {message}", count(*requests))?;
        }
        if without > 0 && self.errors.is_none() {
            write!(f, "\n  {} have no answer", count(without))?;
        }
        Ok(())
    }
}

/// Why the requests in a file of errors have no answer, the most frequent reason first.
pub(crate) fn reasons(path: &Path) -> io::Result<Vec<Reason>> {
    let mut counts: BTreeMap<String, u64> = BTreeMap::new();
    for line in BufReader::new(File::open(path)?).split(b'\n') {
        let message = reason(&line?);
        // Messages may hold what makes each of them different; there is a bound to telling them apart.
        let known = counts.len() < REASONS_MOST || counts.contains_key(&message);
        *counts.entry(if known { message } else { "other reasons".to_owned() }).or_default() += 1;
    }
    let mut reasons: Vec<Reason> =
        counts.into_iter().map(|(message, requests)| Reason { requests, message }).collect();
    reasons.sort_by_key(|reason| std::cmp::Reverse(reason.requests));
    Ok(reasons)
}

#[derive(Deserialize)]
struct ErrorLine {
    response: Option<ErrorResponse>,
    error: Option<Message>,
}

#[derive(Deserialize)]
struct ErrorResponse {
    status_code: u16,
    body: Option<ErrorResponseBody>,
}

#[derive(Deserialize)]
struct ErrorResponseBody {
    error: Option<Message>,
}

#[derive(Deserialize)]
struct Message {
    code: Option<String>,
    message: Option<String>,
}

/// Why the request of this line has no answer.
fn reason(line: &[u8]) -> String {
    let Ok(ErrorLine { response, error }) = serde_json::from_slice(line) else {
        return "a line that is no JSON".to_owned();
    };
    let said = |message: Message| message.message.or(message.code);
    match response {
        Some(ErrorResponse { status_code, body }) => {
            let text = body.and_then(|body| body.error).and_then(said);
            text.map_or_else(|| status_code.to_string(), |text| format!("{status_code}: {text}"))
        }
        None => error.and_then(said).unwrap_or_else(|| "no reason given".to_owned()),
    }
}

/// How long ago a moment was, both in seconds since 1970.
pub(crate) fn ago(then: u64, now: u64) -> String {
    format!("{} ago", short(Duration::from_secs(now.saturating_sub(then))))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn report(job: &str) -> Report {
        Report::new(&serde_json::from_str(job).unwrap(), Path::new("in.jsonl"), false)
    }

    #[test]
    fn what_fails_is_not_good() {
        for (status, failed, good) in [
            ("in_progress", 3, true),
            ("completed", 0, true),
            ("completed", 1, false),
            ("expired", 0, false),
            ("cancelled", 0, false),
            ("failed", 0, false),
        ] {
            let counts = format!(r#"{{"total": 9, "completed": 5, "failed": {failed}}}"#);
            let job = format!(r#"{{"id": "b", "status": "{status}", "request_counts": {counts}}}"#);
            assert_eq!(report(&job).is_good(), good, "{job}");
        }
    }

    #[test]
    fn people_get_the_files_and_the_reasons() {
        let mut report = report(
            r#"{"id": "batch_1", "status": "completed", "usage": {"input_tokens": 12000, "output_tokens": 300},
                "offpeak_cost": {"cost_usd": "1.5", "realtime_cost_usd": "3"},
                "request_counts": {"total": 5000, "completed": 4997, "failed": 3}}"#,
        );
        report.output = Some("in.output.jsonl".into());
        report.errors = Some("in.errors.jsonl".into());
        report.reasons = vec![Reason { requests: 3, message: "400: no".to_owned() }];
        assert_eq!(
            report.to_string(),
            "batch_1: completed, 4,997 of 5,000 answered, 12,000 tokens in, 300 out, $1.50 (real \
             time: $3.00)\n  answers  in.output.jsonl\n  \
             errors   in.errors.jsonl\n           3 x 400: no"
        );
    }

    #[test]
    fn a_refused_file_shows_its_lines() {
        let report = report(
            r#"{"id": "batch_1", "status": "failed", "errors": {"data": [
                {"line": 3, "code": "invalid_json_line", "message": "no JSON"}, {"code": "empty_file"}]}}"#,
        );
        assert_eq!(
            report.to_string(),
            "batch_1: the file was refused, and nothing of it was run\n  line 3: no JSON\n  the file: empty_file"
        );
    }

    #[test]
    fn reasons_are_counted() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("errors.jsonl");
        let refused =
            r#"{"response": {"status_code": 400, "body": {"error": {"message": "no"}}}, "error": null}"#;
        let expired = r#"{"response": null, "error": {"code": "batch_expired", "message": null}}"#;
        fs::write(&path, format!("{expired}\n{refused}\n{refused}\nrubbish\n")).unwrap();
        let found: Vec<_> =
            reasons(&path).unwrap().into_iter().map(|reason| (reason.requests, reason.message)).collect();
        assert_eq!(found[0], (2, "400: no".to_owned()));
        assert_eq!(found.len(), 3);
    }
}
