//! Providers that do what a test tells them: one made of a function, and one that stands between the daemon and the
//! simulator and changes what passes.

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use reqwest::Client;
use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

pub(crate) type Body = UnsyncBoxBody<Bytes, Infallible>;

/// A whole body.
pub(crate) fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).boxed_unsync()
}

/// A provider made of a function; it ends when this is dropped.
pub(crate) struct Upstream {
    pub(crate) url: String,
    _accepting: AbortOnDropHandle<()>,
}

impl Upstream {
    pub(crate) async fn start<F>(answer: impl Fn(Request<Bytes>) -> F + Clone + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Response<Body>> + Send + 'static,
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let accepting = tokio::spawn(async move {
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let answer = answer.clone();
                let service = service_fn(move |request: Request<hyper::body::Incoming>| {
                    let answer = answer.clone();
                    async move {
                        let (head, body) = request.into_parts();
                        let body = body.collect().await?.to_bytes();
                        Ok::<_, hyper::Error>(answer(Request::from_parts(head, body)).await)
                    }
                });
                tokio::spawn(async move {
                    // A connection that the daemon breaks is what some tests are about.
                    drop(
                        auto::Builder::new(TokioExecutor::new())
                            .serve_connection(TokioIo::new(stream), service)
                            .await,
                    );
                });
            }
        });
        Self { url, _accepting: AbortOnDropHandle::new(accepting) }
    }
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
