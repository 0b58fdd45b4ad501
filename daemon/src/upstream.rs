//! The only HTTP client: the lock to the backend's base URL, credentials, time-outs, and "did it run?".

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{AUTHORIZATION, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Response};
use offpeak_core::outcome::DidItRun;
use offpeak_core::words::Millis;
use reqwest::{Body, Client, Url};
use thread_local::ThreadLocal;

/// Where a backend is and how to be let in.
pub struct Upstream {
    transport: Transport,
    base: Url,
    credential: Option<(HeaderName, HeaderValue)>,
}

/// What carries calls.
enum Transport {
    Http(Box<PerThread>),
    InProcess(InProcess),
}

/// A client for each thread, so that the connections of its pool are served where they are used: a call that crossed to
/// another thread and back would wait for that thread to wake up twice.
struct PerThread {
    clients: ThreadLocal<Client>,
    connect_timeout: Millis,
    answer_timeout: Millis,
}

/// The way to all backends.
#[derive(Debug, Clone, Default)]
pub enum Network {
    /// HTTP.
    #[default]
    Http,
    /// Calls are answered in this process, and time-outs are the answerer's business: for simulations.
    InProcess(InProcess),
}

/// Answers calls without a socket.
#[derive(Clone)]
pub struct InProcess(Arc<dyn Fn(http::Request<Body>) -> Answering + Send + Sync>);

/// An answer on its way.
pub type Answering = Pin<Box<dyn Future<Output = Result<Response<Body>, SendError>> + Send>>;

impl InProcess {
    /// All calls are given to this function.
    pub fn new(answer: impl Fn(http::Request<Body>) -> Answering + Send + Sync + 'static) -> Self {
        Self(Arc::new(answer))
    }
}

impl fmt::Debug for InProcess {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("InProcess")
    }
}

/// How a backend is reached.
pub struct Address {
    /// Scheme, host, port, and perhaps a path that comes before all others.
    pub base: Url,
    /// The header that lets offpeak in.
    pub credential: Option<(HeaderName, HeaderValue)>,
    /// For making a connection.
    pub connect_timeout: Millis,
    /// Between two pieces of an answer.
    pub answer_timeout: Millis,
}

/// A call that got no answer.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct SendError {
    /// Whether the provider may have worked on it.
    pub ran: DidItRun,
    /// It took too long.
    pub timed_out: bool,
    /// What happened, without credentials.
    pub message: String,
}

/// The client could not be built.
#[derive(Debug, thiserror::Error)]
#[error(
    "the HTTP client could not be set up: {0}. Check that the system's TLS root certificates are installed"
)]
pub struct ClientError(#[from] reqwest::Error);

/// A plugin asked for a path outside the backend.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "the plugin named the path {0:?}, which does not lie below the backend's base URL; paths begin with / and stay there"
)]
pub struct BadPath(String);

impl Upstream {
    /// A client for one backend.
    pub fn new(address: Address, network: &Network) -> Result<Self, ClientError> {
        let transport = match network {
            Network::Http => Transport::Http(Box::new(PerThread::new(&address)?)),
            Network::InProcess(answer) => Transport::InProcess(answer.clone()),
        };
        Ok(Self { transport, base: address.base, credential: address.credential })
    }

    /// Makes ready what this thread needs for its first call.
    pub fn warm(&self) {
        if let Transport::Http(clients) = &self.transport
            && let Err(error) = clients.get()
        {
            tracing::warn!(%error, "a thread's HTTP client could not be set up; its first call tries again");
        }
    }

    /// The URL of a path below the base.
    pub fn url(&self, path: &str) -> Result<Url, BadPath> {
        let bad = || BadPath(path.chars().take(200).collect());
        let prefix = self.base.path().trim_end_matches('/');
        if !path.starts_with('/') || path.starts_with("//") {
            return Err(bad());
        }
        let url = self.base.join(&format!("{prefix}{path}")).map_err(|_| bad())?;
        let stays = url.origin() == self.base.origin() && url.path().starts_with(prefix);
        // A URL parser resolves "..", so that a path may leave the prefix without leaving the host.
        if stays && !path.contains("/..") { Ok(url) } else { Err(bad()) }
    }

    /// Sends a call and waits for the head of the answer. `headers` hold nothing of the caller's credentials.
    pub async fn send(
        &self,
        method: Method,
        url: Url,
        mut headers: HeaderMap,
        body: Body,
    ) -> Result<Response<Body>, SendError> {
        if let Some((name, value)) = &self.credential {
            headers.insert(name.clone(), value.clone());
        }
        match &self.transport {
            Transport::Http(clients) => {
                let client = clients.get().map_err(send_error)?;
                let mut request = reqwest::Request::new(method, url);
                *request.headers_mut() = headers;
                *request.body_mut() = Some(body);
                client.execute(request).await.map(Into::into).map_err(send_error)
            }
            Transport::InProcess(answer) => {
                let mut request = http::Request::new(body);
                *request.method_mut() = method;
                *request.uri_mut() = url.as_str().parse().map_err(|error| bad_uri(&error))?;
                *request.headers_mut() = headers;
                (answer.0)(request).await
            }
        }
    }

    /// Sends a call and reads at most `limit` bytes of the answer's body.
    pub async fn call(
        &self,
        method: Method,
        url: Url,
        headers: HeaderMap,
        body: Body,
        limit: usize,
    ) -> Result<Response<Bytes>, SendError> {
        let response = self.send(method, url, headers, body).await?;
        let (parts, body) = response.into_parts();
        Ok(Response::from_parts(parts, read_up_to(body, limit).await?))
    }
}

impl PerThread {
    fn new(address: &Address) -> Result<Self, reqwest::Error> {
        let Address { connect_timeout, answer_timeout, .. } = *address;
        let new = Self { clients: ThreadLocal::new(), connect_timeout, answer_timeout };
        // If one can be built, so can the others.
        new.get()?;
        Ok(new)
    }

    /// This thread's.
    fn get(&self) -> Result<&Client, reqwest::Error> {
        self.clients.get_or_try(|| {
            Client::builder()
                .redirect(reqwest::redirect::Policy::none())
                .connect_timeout(self.connect_timeout.into())
                .read_timeout(self.answer_timeout.into())
                .pool_idle_timeout(std::time::Duration::from_mins(1))
                .build()
        })
    }
}

/// Reads a body to its end or to the limit, whichever comes first.
pub async fn read_up_to(mut body: Body, limit: usize) -> Result<Bytes, SendError> {
    use http_body_util::BodyExt;

    let mut read: Vec<u8> = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(send_error)?.into_data() else { continue };
        let room = limit - read.len();
        read.extend_from_slice(data.get(..room).unwrap_or(&data));
        if read.len() == limit {
            break;
        }
    }
    Ok(read.into())
}

/// What a broken call means. reqwest tells whether the connection was ever made; after that, nobody knows.
fn send_error(error: reqwest::Error) -> SendError {
    let ran = if error.is_connect() || error.is_builder() { DidItRun::NotSent } else { DidItRun::Unknown };
    let timed_out = error.is_timeout();
    let error = error.without_url();
    let mut message = error.to_string();
    let mut source = std::error::Error::source(&error);
    while let Some(cause) = source {
        message = format!("{message}: {cause}");
        source = cause.source();
    }
    SendError { ran, timed_out, message }
}

fn bad_uri(error: &http::uri::InvalidUri) -> SendError {
    SendError { ran: DidItRun::NotSent, timed_out: false, message: error.to_string() }
}

/// The code of what a backend refused because it does not know offpeak's credential.
pub const CREDENTIAL_REFUSED: &str = "backend_refused_credential";

/// What a caller is told of that: the provider's own answer shows a part of the credential, and is nothing that the caller
/// could mend. The operator finds it in the log.
pub fn credential_refused(backend: &str) -> String {
    tracing::error!(
        backend,
        "the backend refuses offpeak's credential; check its api_key in the configuration"
    );
    format!(
        "The backend '{backend}' does not accept offpeak's credential. Your own key is fine: tell offpeak's operator."
    )
}

/// The header that carries a credential.
pub fn credential_header(header: Option<&str>, secret: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = match header {
        None => (AUTHORIZATION, format!("Bearer {secret}")),
        Some(name) => (HeaderName::try_from(name).ok()?, secret.to_owned()),
    };
    let mut value = HeaderValue::try_from(value).ok()?;
    value.set_sensitive(true);
    Some((name, value))
}

/// Chooses the process's cryptography for TLS; once, before the first client.
pub fn install_crypto() {
    // A second call finds the same provider already there, which is as good.
    drop(rustls::crypto::ring::default_provider().install_default().map_err(Arc::new));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn upstream(base: &str) -> Upstream {
        install_crypto();
        let address = Address {
            base: Url::parse(base).unwrap(),
            credential: None,
            connect_timeout: Millis(1000),
            answer_timeout: Millis(1000),
        };
        Upstream::new(address, &Network::Http).unwrap()
    }

    #[test]
    fn paths_stay_below_the_base() {
        let upstream = upstream("https://api.example.com/openai");
        let url = upstream.url("/v1/files?purpose=batch").unwrap();
        assert_eq!(url.as_str(), "https://api.example.com/openai/v1/files?purpose=batch");
        for path in
            ["v1", "//evil.example/v1", "/../v1", "/v1/../../x", "https://evil.example/", "", "/..\\x"]
        {
            assert!(upstream.url(path).is_err(), "{path}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_was_not_sent() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        drop(listener);
        let upstream = upstream(&base);
        let url = upstream.url("/v1/x").unwrap();
        let sent = upstream.send(Method::GET, url, HeaderMap::new(), Body::from("")).await;
        assert_eq!(sent.unwrap_err().ran, DidItRun::NotSent);
    }
}
