//! Providers that do what a test tells them: one made of a function, and one that stands between the daemon and the
//! simulator and changes what passes.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use reqwest::Client;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tokio_util::task::AbortOnDropHandle;

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A whole body.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A provider made of a function; it ends when this is dropped.
pub(crate) struct Upstream {
    pub(crate) url: String,
    connections: Arc<AtomicUsize>,
    _accepting: AbortOnDropHandle<()>,
}

impl Upstream {
    pub(crate) async fn start<F>(answer: impl Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::serve("http://127.0.0.1", None, answer).await
    }

    /// The same behind TLS, as `localhost`.
    pub(crate) async fn start_with_tls<F>(
        tls: TlsAcceptor,
        answer: impl Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        Self::serve("https://localhost", Some(tls), answer).await
    }

    async fn serve<F>(
        host: &str,
        tls: Option<TlsAcceptor>,
        answer: impl Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
    ) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("{host}:{}", listener.local_addr().unwrap().port());
        let connections = Arc::new(AtomicUsize::new(0));
        let count = connections.clone();
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                count.fetch_add(1, Ordering::Relaxed);
                let (answer, tls) = (answer.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => connection(stream, answer).await,
                        Some(tls) => {
                            if let Ok(stream) = tls.accept(stream).await {
                                connection(stream, answer).await;
                            }
                        }
                    }
                });
            }
        });
        Self { url, connections, _accepting: AbortOnDropHandle::new(accepting) }
    }

    /// Connections that were made to it.
    pub(crate) fn connections(&self) -> usize {
        self.connections.load(Ordering::Relaxed)
    }
}

async fn connection<F>(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    answer: impl Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static,
) where
    F: Future<Output = Response<Body>> + Send + 'static,
{
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
        let answer = answer.clone();
        async move {
            let (head, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            Ok::<_, hyper::Error>(answer(Request::from_parts(head, body)).await)
        }
    });
    let builder = auto::Builder::new(TokioExecutor::new());
    // A connection that the daemon breaks is what some tests are about.
    drop(builder.serve_connection(TokioIo::new(stream), service).await);
}

/// Stands between the daemon and a provider.
pub(crate) struct Between {
    pub(crate) upstream: Upstream,
}

impl Between {
    /// `edit` is given each call's path and its answer's body, and returns the body that the daemon gets.
    pub(crate) async fn start(
        provider: String,
        edit: impl Fn(&str, Bytes) -> Bytes + Send + Sync + 'static,
    ) -> Self {
        let edit = Arc::new(edit);
        // The daemon, which does this as well, is started later.
        offpeak::upstream::install_crypto();
        let client = Client::builder().no_proxy().build().unwrap();
        let upstream = Upstream::start(move |request| {
            let (edit, client) = (edit.clone(), client.clone());
            let provider = provider.clone();
            async move {
                let (head, body) = request.into_parts();
                let path = head.uri.path_and_query().unwrap().to_string();
                let mut headers = head.headers;
                headers.remove("host");
                let sent =
                    client.request(head.method, format!("{provider}{path}")).headers(headers).body(body);
                let response = sent.send().await.unwrap();
                let mut answer = Response::builder().status(response.status());
                for (name, value) in response.headers() {
                    if name != "content-length" && name != "transfer-encoding" {
                        answer = answer.header(name, value);
                    }
                }
                let body = response.bytes().await.unwrap();
                answer.body(full(edit(&path, body))).unwrap()
            }
        })
        .await;
        Self { upstream }
    }
}
