//! What clients say: the request of the benchmarks, connections, and small calls to the admin plane.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{AUTHORIZATION, CONTENT_TYPE, HOST, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use crate::error::{Context, Error};

/// The API key that clients send.
pub const KEY: &str = "sk-bench-0123456789abcdef0123456789abcdef";

/// Where completions are asked for.
pub const PATH: &str = "/v1/chat/completions";

/// The model that is asked.
pub const MODEL: &str = "gpt-5-mini";

/// How often a condition is looked at that is waited for.
const LOOK_EVERY: Duration = Duration::from_millis(2);

/// The headers that the official Python SDK sends along.
const SDK_HEADERS: [(&str, &str); 12] = [
    ("accept", "application/json"),
    ("accept-encoding", "gzip, deflate"),
    ("user-agent", "OpenAI/Python 2.8.0"),
    ("x-stainless-lang", "python"),
    ("x-stainless-package-version", "2.8.0"),
    ("x-stainless-os", "Linux"),
    ("x-stainless-arch", "x64"),
    ("x-stainless-runtime", "CPython"),
    ("x-stainless-runtime-version", "3.13.1"),
    ("x-stainless-async", "false"),
    ("x-stainless-retry-count", "0"),
    ("x-stainless-read-timeout", "600"),
];

/// A call that is made again and again.
#[derive(Debug, Clone)]
pub struct Call {
    headers: HeaderMap,
    body: Bytes,
}

impl Call {
    /// A chat completion whose body has about `bytes` bytes.
    pub fn chat(bytes: usize, stream: bool) -> Self {
        Self::chat_with(MODEL, bytes, stream)
    }

    /// The same of another model.
    pub fn chat_with(model: &str, bytes: usize, stream: bool) -> Self {
        let mut headers = HeaderMap::new();
        let sdk =
            SDK_HEADERS.map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)));
        headers.extend(sdk);
        headers.insert(HOST, HeaderValue::from_static("localhost"));
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if let Ok(key) = HeaderValue::try_from(format!("Bearer {KEY}")) {
            headers.insert(AUTHORIZATION, key);
        }
        Self { headers, body: chat_body(model, bytes, stream).into() }
    }

    /// The same with another header.
    #[must_use]
    pub fn with(mut self, name: &'static str, value: HeaderValue) -> Self {
        self.headers.insert(HeaderName::from_static(name), value);
        self
    }

    /// A request of this kind.
    pub fn request(&self) -> Request<Full<Bytes>> {
        let mut request = Request::new(Full::new(self.body.clone()));
        *request.method_mut() = Method::POST;
        *request.uri_mut() = http::Uri::from_static(PATH);
        *request.headers_mut() = self.headers.clone();
        request
    }
}

/// The body of a chat completion, of about `bytes` bytes.
pub fn chat_body(model: &str, bytes: usize, stream: bool) -> String {
    const TEXT: &str =
        "The ship's log says that the wind turned at four, and the \\\"night watch\\\" wrote it down.\\n";
    let options = if stream { r#","stream":true,"stream_options":{"include_usage":true}"# } else { "" };
    let head = format!(
        r#"{{"model":"{model}"{options},"temperature":0.2,"max_completion_tokens":256,"messages":[{{"role":"system","content":"Answer in one short sentence."}},{{"role":"user","content":""#
    );
    let text = TEXT.repeat((bytes.saturating_sub(head.len()) / TEXT.len()).max(1));
    format!(r#"{head}{text}"}}]}}"#)
}

/// A call with a body of JSON, or without one.
pub fn call(method: Method, path: &str, body: Bytes) -> Result<Request<Full<Bytes>>, Error> {
    let mut request = Request::new(Full::new(body));
    *request.method_mut() = method;
    *request.uri_mut() = path.parse().map_err(|_| Error::WrongAnswer(format!("{path} is not a path")))?;
    let headers = request.headers_mut();
    headers.insert(HOST, HeaderValue::from_static("localhost"));
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(key) = HeaderValue::try_from(format!("Bearer {KEY}")) {
        headers.insert(AUTHORIZATION, key);
    }
    Ok(request)
}

/// Opens a keep-alive connection.
pub async fn connect(to: SocketAddr) -> Result<SendRequest<Full<Bytes>>, Error> {
    let stream = TcpStream::connect(to).await.context(format!("connecting to {to}"))?;
    stream.set_nodelay(true).context("setting TCP_NODELAY")?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await?;
    // How a connection ends is seen by whoever waits for an answer on it.
    tokio::spawn(async move { drop(connection.await) });
    Ok(sender)
}

/// Fetches a page of the admin plane.
pub async fn get(from: SocketAddr, path: &str) -> Result<(StatusCode, String), Error> {
    let mut request = Request::new(Full::new(Bytes::new()));
    *request.uri_mut() = path.parse().map_err(|_| Error::WrongAnswer(format!("{path} is not a path")))?;
    request.headers_mut().insert(HOST, HeaderValue::from_static("localhost"));
    let response = connect(from).await?.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok((status, String::from_utf8_lossy(&body).into_owned()))
}

/// A value of the daemon's metrics.
pub async fn metric(admin: SocketAddr, name: &str) -> Result<u64, Error> {
    let (_, page) = get(admin, "/metrics").await?;
    let value = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok());
    value.ok_or_else(|| Error::WrongAnswer(format!("there is no number for {name} in /metrics")))
}

/// Waits until a metric has a value.
pub async fn wait_for_metric(
    admin: SocketAddr,
    name: &str,
    wanted: u64,
    limit: Duration,
) -> Result<(), Error> {
    let until = Instant::now() + limit;
    loop {
        let value = metric(admin, name).await?;
        if value == wanted {
            return Ok(());
        }
        if Instant::now() > until {
            return Err(Error::TimedOut { what: format!("{name} = {wanted} (it is {value})"), limit });
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Whether a page answers with 200.
pub async fn is_up(at: SocketAddr, path: &str) -> bool {
    matches!(get(at, path).await, Ok((StatusCode::OK, _)))
}

/// A port of the loopback interface that is free now.
pub fn free_port() -> Result<SocketAddr, Error> {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").context("looking for a free port")?;
    listener.local_addr().context("looking for a free port")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_json_of_about_their_size() {
        for (bytes, stream) in [(1024, false), (1024, true), (2048, false)] {
            let body = chat_body(MODEL, bytes, stream);
            assert!(body.len().abs_diff(bytes) < 100, "{}", body.len());
            let json: serde_json::Value = serde_json::from_str(&body).unwrap();
            assert_eq!(json["model"], MODEL);
            assert_eq!(json["stream"].as_bool().unwrap_or(false), stream);
        }
    }
}
