//! Clients with jobs: a file and a batch as OpenAI's API has them, or a message batch as Anthropic's.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use crate::api::{Api, error_code};
use crate::client::{Answer, Session, TENANTS};
use crate::record::Record;

/// What stands between the parts of an upload.
const BOUNDARY: &str = "between-the-parts";

const FILES: &str = "/v1/files";
const BATCHES: &str = "/v1/batches";
const MESSAGE_BATCHES: &str = "/v1/messages/batches";

/// What came of one request of a job.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Line {
    /// The model's answer to just this request.
    Right,
    /// A good answer to something else.
    Wrong(String),
    /// An error.
    Error(Failure),
}

/// What a line says about a request without an answer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Failure {
    /// For programs.
    pub(crate) code: String,
    /// What the provider answered, if it did.
    pub(crate) status: Option<u16>,
    /// All that is said.
    pub(crate) text: String,
}

/// A job that is over, as its client has read it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Report {
    /// By the clients' own names for the requests; more than one line for one of them is a broken promise.
    pub(crate) lines: BTreeMap<String, Vec<Line>>,
    /// The provider's word for how it ended.
    pub(crate) status: String,
    /// Requests, those that were answered, and those that were not, as the job's object counts them.
    pub(crate) counts: (u64, u64, u64),
    /// When it was read, in true milliseconds.
    pub(crate) read_ms: u64,
}

impl Session {
    /// The next thing that a client with a job does.
    pub(crate) async fn work_on_job(&self) {
        let (file, job) = self.knows(|client| (client.file.clone(), client.ticket.clone()));
        match (self.script.api, file, job) {
            (_, _, Some(job)) => self.look_at_job(&job).await,
            (Api::Messages, _, None) => self.submit_messages().await,
            (_, Some(file), None) => self.submit(&file).await,
            (_, None, None) => self.upload().await,
        }
    }

    /// The prompts of a job, by its client's names for them.
    pub(crate) fn prompts(&self) -> Vec<(String, String)> {
        prompts(self.life.world.plan.seed, self.number, self.script.lines, self.script.words)
    }

    async fn upload(&self) {
        self.begins();
        let mut text = String::new();
        for (id, prompt) in self.prompts() {
            let api = self.script.api;
            let line =
                json!({ "custom_id": id, "method": "POST", "url": api.path(), "body": api.body(&prompt) });
            text += &line.to_string();
            text.push('\n');
        }
        let (kind, form) = form(&text);
        let answer = self.send(Method::POST, FILES, form, &[("content-type", &kind)]).await;
        match id_of(&answer) {
            Some(id) => self.learns(|client| client.file = Some(id)),
            None => self.refused("a file was refused", answer).await,
        }
    }

    async fn submit(&self, file: &str) {
        let call = json!({
            "input_file_id": file, "endpoint": self.script.api.path(), "completion_window": self.script.sla
        });
        let key = format!("job-{}", self.number);
        let headers = [("idempotency-key", key.as_str())];
        let answer = self.send(Method::POST, BATCHES, call.to_string().into(), &headers).await;
        self.begun(answer).await;
    }

    async fn submit_messages(&self) {
        self.begins();
        let api = self.script.api;
        let requests: Vec<Value> = self
            .prompts()
            .into_iter()
            .map(|(id, prompt)| json!({ "custom_id": id, "params": api.body(&prompt) }))
            .collect();
        let key = format!("job-{}", self.number);
        let headers = [("idempotency-key", key.as_str()), ("x-offpeak-sla", self.script.sla)];
        let body = json!({ "requests": requests }).to_string();
        let answer = self.send(Method::POST, MESSAGE_BATCHES, body.into(), &headers).await;
        self.begun(answer).await;
    }

    async fn begun(&self, answer: Answer) {
        match id_of(&answer) {
            Some(id) => self.learns(|client| client.ticket = Some(id)),
            None => self.refused("a job was refused", answer).await,
        }
    }

    async fn look_at_job(&self, job: &str) {
        let path = match self.script.api {
            Api::Messages => format!("{MESSAGE_BATCHES}/{job}"),
            Api::Chat | Api::Responses => format!("{BATCHES}/{job}"),
        };
        if self.is_time_to_withdraw() {
            let answer = self.send(Method::POST, &format!("{path}/cancel"), Bytes::new(), &[]).await;
            match answer.status {
                StatusCode::OK | StatusCode::CONFLICT | StatusCode::BAD_REQUEST => {
                    self.life.world.count("client: cancels a job");
                    self.learns(|client| client.is_withdrawn = true);
                }
                _ => self.refused("a job could not be cancelled", answer).await,
            }
            return;
        }
        let answer = self.send(Method::GET, &path, Bytes::new(), &[]).await;
        if answer.status != StatusCode::OK {
            return self.refused("a job was not honoured", answer).await;
        }
        let other = self.send_as(1 - self.script.tenant, Method::GET, &path, Bytes::new(), &[]).await;
        if !matches!(other.status, StatusCode::NOT_FOUND | StatusCode::SERVICE_UNAVAILABLE) {
            self.violation(&format!("another tenant gets to see a job: {other:?}"));
        }
        let object: Value = serde_json::from_slice(&answer.body).unwrap_or(Value::Null);
        let status =
            object["status"].as_str().or_else(|| object["processing_status"].as_str()).unwrap_or_default();
        match status {
            "completed" | "expired" | "cancelled" | "failed" | "ended" => {
                self.read_results(&path, &object).await;
            }
            _ => self.pause_before_looking().await,
        }
    }

    async fn read_results(&self, path: &str, object: &Value) {
        let mut report = match self.script.api {
            Api::Messages => counts_of_messages(object),
            Api::Chat | Api::Responses => counts(object),
        };
        report.read_ms = self.life.now_ms();
        let sources: Vec<String> = match self.script.api {
            Api::Messages => vec![format!("{path}/results")],
            Api::Chat | Api::Responses => ["output_file_id", "error_file_id"]
                .iter()
                .filter_map(|name| Some(format!("{FILES}/{}/content", object[*name].as_str()?)))
                .collect(),
        };
        for source in sources {
            let answer = self.send(Method::GET, &source, Bytes::new(), &[]).await;
            if answer.status != StatusCode::OK || answer.is_broken {
                return self.refused("a job's answers were not honoured", answer).await;
            }
            for line in answer.body.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
                let line: Value = serde_json::from_slice(line).unwrap_or(Value::Null);
                let id = line["custom_id"].as_str().unwrap_or("(none)").to_owned();
                report.lines.entry(id.clone()).or_default().push(self.read(&id, &line));
            }
        }
        let Some(records) = self.records_of(object["id"].as_str().unwrap_or_default()).await else {
            return self.pause_before_looking().await;
        };
        self.life.note(&|| format!("client {}'s job is over: {}", self.number, report.status));
        self.learns(|client| {
            client.records.extend(records);
            client.report = Some(report);
            client.is_done = true;
        });
    }

    async fn records_of(&self, job: &str) -> Option<Vec<(String, Record)>> {
        let tenant = TENANTS.get(self.script.tenant).copied().unwrap_or_default();
        let read = || Record::of_job(&self.gateway.store, tenant, self.script.api, job);
        self.until_readable(read).await.flatten()
    }

    fn read(&self, id: &str, line: &Value) -> Line {
        let prompt = self.prompts().into_iter().find(|(name, _)| name == id).map(|(_, prompt)| prompt);
        let (body, error) = match self.script.api {
            Api::Messages => (
                line.pointer("/result/message"),
                line.pointer("/result/error").or_else(|| line.pointer("/result")),
            ),
            Api::Chat | Api::Responses => {
                let is_good = line.pointer("/response/status_code").and_then(Value::as_u64) == Some(200);
                let body = line.pointer("/response/body");
                let error = line.get("error").filter(|error| !error.is_null()).or(body);
                (body.filter(|_| is_good), error)
            }
        };
        match (body, prompt) {
            (Some(body), Some(prompt)) if self.script.api.is_answer_to(body, &prompt) => Line::Right,
            (Some(body), _) => Line::Wrong(body.to_string()),
            (None, _) => {
                let error = error.unwrap_or(line);
                let code = match (error["type"].as_str(), error_code(error)) {
                    (Some(kind), code) if code == "(none)" => kind.to_owned(),
                    (_, code) => code,
                };
                let status = line.pointer("/response/status_code").and_then(Value::as_u64);
                let status = status.and_then(|status| u16::try_from(status).ok());
                Line::Error(Failure { code, status, text: error.to_string() })
            }
        }
    }

    async fn pause_before_looking(&self) {
        tokio::time::sleep(Duration::from_millis(self.until_withdrawal(self.script.patience_ms))).await;
    }

    /// What is refused for a passing reason is tried again.
    async fn refused(&self, what: &str, answer: Answer) {
        let passes = matches!(
            answer.status,
            StatusCode::SERVICE_UNAVAILABLE
                | StatusCode::TOO_MANY_REQUESTS
                | StatusCode::INTERNAL_SERVER_ERROR
        );
        if answer.is_broken {
            tokio::time::sleep(Duration::from_secs(10)).await;
        } else if passes {
            self.wait_after(&answer).await;
        } else {
            self.surprise(what, answer).await;
        }
    }
}

/// A form with a file of requests, and its type.
pub(crate) fn form(lines: &str) -> (String, Bytes) {
    let form = format!(
        "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--{BOUNDARY}\r\n\
         content-disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\r\n{lines}\r\n--{BOUNDARY}--\r\n"
    );
    (format!("multipart/form-data; boundary={BOUNDARY}"), form.into())
}

/// The prompts of a client's job, by its names for them.
pub(crate) fn prompts(seed: u64, client: usize, lines: u64, words: u64) -> Vec<(String, String)> {
    let words = "word ".repeat(usize::try_from(words).unwrap_or(1));
    let prompt = |line| format!("seed {seed} client {client} line {line} {words}");
    (0..lines).map(|line| (format!("line-{line}"), prompt(line))).collect()
}

fn id_of(answer: &Answer) -> Option<String> {
    let body: Value = serde_json::from_slice(&answer.body).ok()?;
    (answer.status == StatusCode::OK).then(|| body["id"].as_str().map(str::to_owned)).flatten()
}

fn counts(object: &Value) -> Report {
    let count = |name: &str| object["request_counts"][name].as_u64().unwrap_or(0);
    Report {
        status: object["status"].as_str().unwrap_or_default().to_owned(),
        counts: (count("total"), count("completed"), count("failed")),
        ..Report::default()
    }
}

fn counts_of_messages(object: &Value) -> Report {
    let count = |name: &str| object["request_counts"][name].as_u64().unwrap_or(0);
    let failed = count("errored") + count("canceled") + count("expired");
    let total = count("succeeded") + failed + count("processing");
    Report { status: "ended".to_owned(), counts: (total, count("succeeded"), failed), ..Report::default() }
}
