//! A job through its whole path: uploaded, checked, put into lanes, run by a simulated provider in one batch, and its
//! answers read; and how fast input is checked, by itself.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue};
use http::{Method, StatusCode};
use http_body_util::BodyExt as _;
use offpeak::jsonl::{Checker, Limits};
use provider_sim::{Server, Sim};
use serde::Serialize;
use serde_json::Value;

use crate::error::{Context, Error};
use crate::process::Memory;
use crate::report::{Table, Target, figure, median, megabytes, thousands};
use crate::talk::{MODEL, PATH, call, chat_body, connect};
use crate::targets::{Daemon, Setup};

/// Bytes of a request's body: 50,000 lines of it are about 190 MB.
const BODY_BYTES: usize = 3700;

/// Rounds of checking; the median counts.
const ROUNDS: usize = 5;

/// How long a job gets.
const LIMIT: Duration = Duration::from_mins(10);

/// How often a job is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// Between two parts of the form.
const BOUNDARY: &str = "offpeak-bench-boundary";

/// A job's way.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Way {
    /// Its requests.
    pub requests: u64,
    /// Bytes of its input.
    pub bytes: u64,
    /// Until the upload was acknowledged.
    pub uploaded: Duration,
    /// Until its requests stood in lanes.
    pub in_lanes: Duration,
    /// Until it was completed.
    pub completed: Duration,
    /// Until its answers were read.
    pub read: Duration,
    /// The daemon's memory after it; the peak is the most there was on the way.
    pub memory: Memory,
}

/// What was found.
#[derive(Debug, Clone, Serialize)]
pub struct Report {
    /// Input checked on one core, in MB a second.
    pub checked_mb_s: f64,
    /// A fifth of the requests, then all of them, each with a fresh daemon.
    pub ways: Vec<Way>,
}

/// Runs a job of so many requests.
pub async fn run(count: u64, setup: &Setup<'_>) -> Result<Report, Error> {
    let checked_mb_s = check(count);
    let mut ways = Vec::new();
    for count in [count / 5, count] {
        let provider =
            Sim::builder().seed(1).speed(36_000).keys(["sk-upstream-0123456789abcdef"]).models([MODEL]);
        let server =
            Server::on_free_port(provider.build()).await.context("starting the simulated provider")?;
        let upstream = address(&server.url())?;
        let store = setup.store.join(count.to_string());
        let daemon = Setup { upstream, store: &store, ..setup.clone() }.start().await?;
        ways.push(go(count, &daemon).await?);
    }
    Ok(Report { checked_mb_s, ways })
}

fn address(url: &str) -> Result<SocketAddr, Error> {
    let address = url.strip_prefix("http://").and_then(|address| address.parse().ok());
    address.ok_or_else(|| Error::WrongAnswer(format!("{url} is not the provider's address")))
}

/// How fast input is checked that arrives in pieces as from a connection.
fn check(count: u64) -> f64 {
    let input = input(count);
    median((0..ROUNDS).map(|_| {
        let began = Instant::now();
        let mut checker = Checker::new(Limits { lines: count, line_bytes: 1 << 20 });
        for piece in input.chunks(64 << 10) {
            checker.push(piece);
        }
        let check = checker.finish();
        let took = began.elapsed();
        if !check.problems.is_empty() {
            eprintln!("the input has problems: {:?}", check.problems.first());
        }
        megabytes(input.len() as u64) / took.as_secs_f64()
    }))
}

fn input(count: u64) -> Vec<u8> {
    let body = chat_body(MODEL, BODY_BYTES, false);
    let mut input = Vec::new();
    for number in 0..count {
        input.extend_from_slice(line(&format!("request-{number}"), PATH, &body).as_bytes());
    }
    input
}

/// A line of a job's input.
pub(crate) fn line(id: &str, endpoint: &str, body: &str) -> String {
    format!("{{\"custom_id\":\"{id}\",\"method\":\"POST\",\"url\":\"{endpoint}\",\"body\":{body}}}\n")
}

async fn go(count: u64, daemon: &Daemon) -> Result<Way, Error> {
    let input = input(count);
    let bytes = input.len() as u64;
    let began = Instant::now();
    let file = upload(daemon.data, &input).await?;
    drop(input);
    let uploaded = began.elapsed();
    let job = submit(daemon.data, &file, PATH).await?;
    wait(daemon.data, &job, "in_progress").await?;
    let in_lanes = began.elapsed();
    call_json(daemon.admin, Method::POST, "/admin/v1/lanes/0/flush", Bytes::new()).await?;
    let done = wait(daemon.data, &job, "completed").await?;
    let completed = began.elapsed();
    read_all(daemon.data, &done, count).await?;
    let memory = daemon.process.memory()?;
    Ok(Way { requests: count, bytes, uploaded, in_lanes, completed, read: began.elapsed(), memory })
}

fn text(object: &Value, member: &str) -> Result<String, Error> {
    let text = object.get(member).and_then(Value::as_str).map(str::to_owned);
    text.ok_or_else(|| Error::WrongAnswer(format!("no {member} in {object}")))
}

/// Submits an uploaded file as a job; gives its name.
pub(crate) async fn submit(to: SocketAddr, file: &str, endpoint: &str) -> Result<String, Error> {
    let call = format!(r#"{{"input_file_id":"{file}","endpoint":"{endpoint}","completion_window":"24h"}}"#);
    text(&call_json(to, Method::POST, "/v1/batches", call.into()).await?, "id")
}

/// Reads the answers of a job that is done.
pub(crate) async fn read_all(from: SocketAddr, done: &Value, count: u64) -> Result<(), Error> {
    let lines = read(from, &text(done, "output_file_id")?).await?;
    if lines == count {
        return Ok(());
    }
    Err(Error::WrongAnswer(format!("{lines} answers to {count} requests")))
}

/// Waits until a job has this status.
pub(crate) async fn wait(at: SocketAddr, job: &str, status: &str) -> Result<Value, Error> {
    let until = Instant::now() + LIMIT;
    loop {
        let found = call_json(at, Method::GET, &format!("/v1/batches/{job}"), Bytes::new()).await?;
        match text(&found, "status")?.as_str() {
            now if now == status => return Ok(found),
            "failed" | "expired" | "cancelled" | "completed" => {
                return Err(Error::WrongAnswer(format!("the job ended: {found}")));
            }
            _ if Instant::now() > until => {
                return Err(Error::TimedOut { what: format!("the job to be {status}"), limit: LIMIT });
            }
            _ => tokio::time::sleep(LOOK_EVERY).await,
        }
    }
}

/// Uploads a job's input; gives the file's name.
pub(crate) async fn upload(to: SocketAddr, input: &[u8]) -> Result<String, Error> {
    let head = format!(
        "--{BOUNDARY}\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n--{BOUNDARY}\r\n\
         content-disposition: form-data; name=\"file\"; filename=\"in.jsonl\"\r\n\
         content-type: application/octet-stream\r\n\r\n"
    );
    let body = [head.as_bytes(), input, format!("\r\n--{BOUNDARY}--\r\n").as_bytes()].concat();
    let mut request = call(Method::POST, "/v1/files", body.into())?;
    let kind = format!("multipart/form-data; boundary={BOUNDARY}");
    if let Ok(kind) = HeaderValue::try_from(kind) {
        request.headers_mut().insert(CONTENT_TYPE, kind);
    }
    text(&json(connect(to).await?.send_request(request).await?).await?, "id")
}

async fn call_json(to: SocketAddr, method: Method, path: &str, body: Bytes) -> Result<Value, Error> {
    json(connect(to).await?.send_request(call(method, path, body)?).await?).await
}

async fn json(response: http::Response<hyper::body::Incoming>) -> Result<Value, Error> {
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    let value = serde_json::from_slice(&body).ok().filter(|_| status == StatusCode::OK);
    value.ok_or_else(|| Error::WrongAnswer(format!("{status}: {}", String::from_utf8_lossy(&body))))
}

/// Counts the lines of a file without keeping them.
async fn read(from: SocketAddr, file: &str) -> Result<u64, Error> {
    let request = call(Method::GET, &format!("/v1/files/{file}/content"), Bytes::new())?;
    let mut body = connect(from).await?.send_request(request).await?.into_body();
    let mut lines = 0;
    while let Some(frame) = body.frame().await {
        if let Ok(data) = frame?.into_data() {
            lines += data.split(|byte| *byte == b'\n').count() as u64 - 1;
        }
    }
    Ok(lines)
}

impl Report {
    /// The figures as Markdown.
    pub fn markdown(&self) -> String {
        let mut table = Table::new([
            "requests",
            "input MB",
            "uploaded after s",
            "in lanes after s",
            "completed after s",
            "answers read after s",
            "peak resident MB",
        ]);
        for way in &self.ways {
            let seconds = |time: Duration| figure(time.as_secs_f64());
            #[expect(clippy::cast_precision_loss, reason = "a count of requests is far below 2^52")]
            let requests = thousands(way.requests as f64);
            table.row([
                requests,
                figure(megabytes(way.bytes)),
                seconds(way.uploaded),
                seconds(way.in_lanes),
                seconds(way.completed),
                seconds(way.read),
                figure(megabytes(way.memory.peak)),
            ]);
        }
        format!("{}\nInput checked on one core: {} MB/s.\n", table.markdown(), figure(self.checked_mb_s))
    }

    /// What was wanted of these figures.
    pub fn targets(&self) -> Vec<Target> {
        let most = self.ways.iter().map(|way| way.memory.peak).max().unwrap_or_default();
        vec![
            Target::at_most("a job of 50,000 requests, peak resident", megabytes(most), 200.0, "MB"),
            Target::at_least("input checked on one core", self.checked_mb_s, 300.0, "MB/s"),
        ]
    }
}
