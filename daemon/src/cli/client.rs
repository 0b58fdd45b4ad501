//! The way to the daemon: its address, the key, and the calls.

use std::env;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use clap::Args;
use http::StatusCode;
use http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap, HeaderValue, RETRY_AFTER};
use reqwest::{Body, RequestBuilder, Response, Url};
use serde::de::DeserializeOwned;

use crate::cli::failure::chain;
use crate::cli::wire::{ErrorBody, File, Job, NewJob, Page};

/// For making a connection.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For a call without a large body, from its first byte to its last.
const CALL_TIMEOUT: Duration = Duration::from_mins(1);
/// How long sent bytes may stay unacknowledged before the connection counts as lost.
const SILENCE: Duration = Duration::from_mins(1);
/// Of an error's body, so much is read.
const ERROR_BYTES: usize = 64 * 1024;

/// Where the key may stand in the environment, the strongest first.
const KEY_VARIABLES: [&str; 2] = ["OFFPEAK_API_KEY", "OPENAI_API_KEY"];

/// How to reach the daemon.
#[derive(Debug, Clone, Args)]
pub(crate) struct ConnectArgs {
    /// The daemon's address.
    #[arg(long, env = "OFFPEAK_URL", default_value = "http://127.0.0.1:8400")]
    pub(crate) url: String,
    /// A file that holds the API key. Without it: `OFFPEAK_API_KEY` or `OPENAI_API_KEY`; a daemon without tenants needs none.
    #[arg(long, value_name = "FILE")]
    pub(crate) api_key_file: Option<PathBuf>,
}

/// The daemon cannot even be called.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ConnectError {
    /// No URL.
    #[error("'{0}' is not an address of a daemon: give --url something like http://127.0.0.1:8400")]
    BadUrl(String),
    /// The key's file.
    #[error("cannot read the key from {path}: {1}; mend the file or --api-key-file", path = .0.display())]
    KeyFile(PathBuf, #[source] io::Error),
    /// A key that no header can carry.
    #[error("the key in {0} is empty or has characters that a key cannot have")]
    BadKey(String),
    /// The HTTP client.
    #[error(
        "the HTTP client could not be set up: {0}. Check that the system's TLS root certificates are installed"
    )]
    Setup(#[from] reqwest::Error),
}

/// A call got no good answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CallError {
    /// No connection: the call was not made.
    #[error(
        "the daemon cannot be reached at {url} ({message}); is `offpeak serve` running there? --url names another"
    )]
    Unreachable {
        /// Where.
        url: String,
        /// What happened.
        message: String,
    },
    /// The connection broke, so that nobody knows what became of the call.
    #[error("the connection to the daemon broke ({message}); the same command goes on from here")]
    BrokenOff {
        /// What happened.
        message: String,
    },
    /// The daemon cannot do it now.
    #[error("the daemon cannot do it now ({status}): {message}")]
    Passing {
        /// The answer's status.
        status: StatusCode,
        /// What it says.
        message: String,
        /// When it may be asked again.
        retry_after: Option<Duration>,
    },
    /// The key is not known, or may not do this.
    #[error("{message} ({status}); give the key with --api-key-file or in OFFPEAK_API_KEY")]
    NotAllowed {
        /// The answer's status.
        status: StatusCode,
        /// What it says.
        message: String,
    },
    /// There is no such thing.
    #[error("{message}")]
    NotFound {
        /// What the daemon says.
        message: String,
    },
    /// The daemon refuses, and would again.
    #[error("the daemon refuses ({status}): {message}")]
    Refused {
        /// The answer's status.
        status: StatusCode,
        /// What it says.
        message: String,
    },
    /// The answer is not what the API gives.
    #[error(
        "the answer from {url} is not what offpeak's API gives ({message}); is another program listening there?"
    )]
    Strange {
        /// Where.
        url: String,
        /// What is wrong with it.
        message: String,
    },
}

impl CallError {
    /// The same call may succeed later.
    pub(crate) fn is_passing(&self) -> bool {
        matches!(self, Self::Unreachable { .. } | Self::BrokenOff { .. } | Self::Passing { .. })
    }

    /// When the daemon wants to be asked again.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Passing { retry_after, .. } => *retry_after,
            _ => None,
        }
    }
}

/// The daemon.
#[derive(Debug, Clone)]
pub(crate) struct Client {
    http: reqwest::Client,
    base: Url,
}

impl Client {
    /// Makes no call yet.
    pub(crate) fn new(args: &ConnectArgs) -> Result<Self, ConnectError> {
        let base = base_url(&args.url)?;
        let mut headers = HeaderMap::new();
        if let Some(key) = key(args.api_key_file.as_deref())? {
            headers.insert(AUTHORIZATION, key);
        }
        let mut builder = reqwest::Client::builder()
            .user_agent(concat!("offpeak/", env!("CARGO_PKG_VERSION")))
            .default_headers(headers)
            // A key must not follow to wherever somebody points.
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_user_timeout(SILENCE);
        if is_loopback(&base) {
            builder = builder.no_proxy();
        }
        Ok(Self { http: builder.build()?, base })
    }

    /// The daemon's address, without anything behind it.
    pub(crate) fn address(&self) -> &str {
        self.base.as_str().trim_end_matches('/')
    }

    /// A job; none if the daemon knows no such job.
    pub(crate) async fn job<T: DeserializeOwned>(&self, id: &str) -> Result<Option<T>, CallError> {
        found(self.json(self.http.get(self.url(&["batches", id]))).await)
    }

    /// Jobs, the newest first, behind the one that is named.
    pub(crate) async fn jobs<T: DeserializeOwned>(
        &self,
        limit: usize,
        after: Option<&str>,
    ) -> Result<Page<T>, CallError> {
        let mut url = self.url(&["batches"]);
        url.query_pairs_mut().append_pair("limit", &limit.to_string());
        if let Some(after) = after {
            url.query_pairs_mut().append_pair("after", after);
        }
        self.json(self.http.get(url)).await
    }

    /// Makes a job of a file that is there. A daemon that knows such keys makes one job of a file, however often it is
    /// asked; with others it is looked for first.
    pub(crate) async fn create(&self, job: &NewJob<'_>) -> Result<Job, CallError> {
        let key = format!("offpeak-submit-{}", job.input_file_id);
        self.json(self.http.post(self.url(&["batches"])).header("idempotency-key", key).json(job)).await
    }

    /// Stops a job.
    pub(crate) async fn cancel<T: DeserializeOwned>(&self, id: &str) -> Result<T, CallError> {
        self.json(self.http.post(self.url(&["batches", id, "cancel"])).body("")).await
    }

    /// A file; none if the daemon knows no such file.
    pub(crate) async fn file(&self, id: &str) -> Result<Option<File>, CallError> {
        found(self.json(self.http.get(self.url(&["files", id]))).await)
    }

    /// Uploads a form of known length. However long that takes, it goes on while bytes are acknowledged.
    pub(crate) async fn upload(&self, boundary: &str, length: u64, form: Body) -> Result<File, CallError> {
        let request = self
            .http
            .post(self.url(&["files"]))
            .header(CONTENT_TYPE, format!("multipart/form-data; boundary={boundary}"))
            .header(CONTENT_LENGTH, length)
            .body(form);
        let response = self.good(request).await?;
        self.parse(response).await
    }

    /// The content of a file; the answer's body is still to be read.
    pub(crate) async fn content(&self, id: &str) -> Result<Response, CallError> {
        self.good(self.http.get(self.url(&["files", id, "content"]))).await
    }

    /// What a call that broke off while its answer was read is.
    pub(crate) fn broken(&self, error: reqwest::Error) -> CallError {
        let (connecting, error) = (error.is_connect(), error.without_url());
        let message = chain(&error);
        if connecting {
            CallError::Unreachable { url: self.address().to_owned(), message }
        } else {
            CallError::BrokenOff { message }
        }
    }

    fn url(&self, path: &[&str]) -> Url {
        let mut url = self.base.clone();
        // Only a URL that has no host has no path; ours has one.
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.pop_if_empty().push("v1").extend(path);
        }
        url
    }

    async fn json<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, CallError> {
        let response = self.good(request.timeout(CALL_TIMEOUT)).await?;
        self.parse(response).await
    }

    async fn parse<T: DeserializeOwned>(&self, response: Response) -> Result<T, CallError> {
        let body = response.bytes().await.map_err(|error| self.broken(error))?;
        serde_json::from_slice(&body).map_err(|error| CallError::Strange {
            url: self.address().to_owned(),
            message: format!("{error}, in {}", excerpt(&body)),
        })
    }

    /// Sends a request; an answer that is no success is an error.
    async fn good(&self, request: RequestBuilder) -> Result<Response, CallError> {
        let mut response = request.send().await.map_err(|error| self.broken(error))?;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let retry_after = retry_after(response.headers());
        let mut body = Vec::new();
        // Of an error that breaks off, what came is as good as it gets.
        while body.len() < ERROR_BYTES
            && let Ok(Some(chunk)) = response.chunk().await
        {
            body.extend_from_slice(&chunk);
        }
        Err(refusal(status, &body.into(), retry_after))
    }
}

/// An answer that is no success, as an error.
fn refusal(status: StatusCode, body: &Bytes, retry_after: Option<Duration>) -> CallError {
    let message = match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => body.error.message,
        Err(_) => excerpt(body),
    };
    match status {
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => CallError::NotAllowed { status, message },
        StatusCode::NOT_FOUND => CallError::NotFound { message },
        StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => {
            CallError::Passing { status, message, retry_after }
        }
        _ if status.is_server_error() => CallError::Passing { status, message, retry_after },
        _ => CallError::Refused { status, message },
    }
}

fn found<T>(called: Result<T, CallError>) -> Result<Option<T>, CallError> {
    match called {
        Ok(found) => Ok(Some(found)),
        Err(CallError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = |name| headers.get(name).and_then(|value: &HeaderValue| value.to_str().ok());
    let millis = text("retry-after-ms").and_then(|value| value.parse().ok()).map(Duration::from_millis);
    millis.or_else(|| text(RETRY_AFTER.as_str())?.parse().ok().map(Duration::from_secs))
}

/// The beginning of what somebody said, on one line.
fn excerpt(body: &[u8]) -> String {
    let text = String::from_utf8_lossy(body.get(..300).unwrap_or(body));
    let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
    if text.is_empty() { "an empty answer".to_owned() } else { text }
}

/// Users give the address with or without the API's `/v1`, as they do to SDKs.
fn base_url(text: &str) -> Result<Url, ConnectError> {
    let bad = || ConnectError::BadUrl(text.to_owned());
    let trimmed = text.trim().trim_end_matches('/');
    let url = Url::parse(trimmed.strip_suffix("/v1").unwrap_or(trimmed)).map_err(|_| bad())?;
    let is_plain = url.query().is_none() && url.fragment().is_none();
    if matches!(url.scheme(), "http" | "https") && url.has_host() && is_plain { Ok(url) } else { Err(bad()) }
}

fn is_loopback(url: &Url) -> bool {
    let host = url.host_str().unwrap_or_default();
    let address = host.trim_start_matches('[').trim_end_matches(']').parse::<std::net::IpAddr>();
    host == "localhost" || address.is_ok_and(|address| address.is_loopback())
}

/// The key as a header, from the file or the environment.
fn key(file: Option<&Path>) -> Result<Option<HeaderValue>, ConnectError> {
    let (origin, key) = if let Some(path) = file {
        let text = fs::read_to_string(path).map_err(|error| ConnectError::KeyFile(path.to_owned(), error))?;
        (path.display().to_string(), text)
    } else {
        let set = KEY_VARIABLES.iter().find_map(|name| Some((*name, env::var(name).ok()?)));
        match set.filter(|(_, key)| !key.trim().is_empty()) {
            Some((name, key)) => (name.to_owned(), key),
            None => return Ok(None),
        }
    };
    let key = key.trim();
    let value = HeaderValue::try_from(format!("Bearer {key}")).ok().filter(|_| !key.is_empty());
    let mut value = value.ok_or(ConnectError::BadKey(origin))?;
    value.set_sensitive(true);
    Ok(Some(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_people_write_them() {
        for text in [
            "http://127.0.0.1:8400",
            "http://127.0.0.1:8400/",
            "http://127.0.0.1:8400/v1",
            " http://127.0.0.1:8400/v1/ ",
        ] {
            assert_eq!(base_url(text).unwrap().as_str(), "http://127.0.0.1:8400/", "{text}");
        }
        assert_eq!(base_url("https://gate.example/llm/v1").unwrap().as_str(), "https://gate.example/llm");
        for text in ["", "127.0.0.1:8400", "localhost", "ftp://x/", "http://", "http://x/?a=b"] {
            assert!(base_url(text).is_err(), "{text}");
        }
    }

    #[test]
    fn ids_cannot_leave_their_place() {
        crate::upstream::install_crypto();
        let args = ConnectArgs { url: "https://gate.example/llm/v1".to_owned(), api_key_file: None };
        let client = Client::new(&args).unwrap();
        let url = client.url(&["batches", "../x?y#z/..", "cancel"]);
        assert_eq!(url.as_str(), "https://gate.example/llm/v1/batches/..%2Fx%3Fy%23z%2F../cancel");
        assert_eq!(client.address(), "https://gate.example/llm");
    }

    #[test]
    fn own_machine_needs_no_proxy() {
        for (url, loopback) in [
            ("http://127.0.0.1:1", true),
            ("http://[::1]:1", true),
            ("http://localhost", true),
            ("http://10.0.0.1", false),
            ("https://gate.example", false),
        ] {
            assert_eq!(is_loopback(&Url::parse(url).unwrap()), loopback, "{url}");
        }
    }

    #[test]
    fn refusals_say_what_the_daemon_said() {
        let body = Bytes::from(
            r#"{"error": {"message": "No such Batch.", "type": "x", "param": null, "code": null}}"#,
        );
        assert_eq!(refusal(StatusCode::NOT_FOUND, &body, None).to_string(), "No such Batch.");
        let html = Bytes::from("<html>\n  <p>Bad gateway</p>\n");
        let error = refusal(StatusCode::BAD_GATEWAY, &html, Some(Duration::from_secs(3)));
        assert!(error.is_passing() && error.to_string().contains("<html> <p>Bad gateway</p>"), "{error}");
        assert_eq!(error.retry_after(), Some(Duration::from_secs(3)));
        assert!(!refusal(StatusCode::BAD_REQUEST, &html, None).is_passing());
    }
}
