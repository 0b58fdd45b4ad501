//! The least that a proxy in the path costs when it is built of the same parts as offpeak: hyper at both ends, a pool of
//! connections for each thread, and nothing in between. What it takes is not offpeak's to save.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::num::NonZeroUsize;

use bytes::Bytes;
use http::uri::{Authority, Scheme};
use http::{Request, Response, StatusCode, Uri, Version};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use offpeak::workers::Workers;
use tokio::net::{TcpListener, TcpStream};

use crate::error::{Context, Error};

type Pool = Client<HttpConnector, Incoming>;
type Body = BoxBody<Bytes, hyper::Error>;

thread_local! {
    static POOL: Pool = Client::builder(TokioExecutor::new()).build(connector());
}

/// Passes all calls on to the upstream until the process is ended.
pub async fn serve(listen: SocketAddr, upstream: SocketAddr) -> Result<(), Error> {
    let listener = TcpListener::bind(listen).await.context(format!("listening on {listen}"))?;
    let authority: Authority = upstream
        .to_string()
        .parse()
        .map_err(std::io::Error::other)
        .context("taking the upstream's address")?;
    let cores = NonZeroUsize::new(crate::machine::cores());
    let workers = Workers::start(cores, || ()).context("starting threads")?;
    loop {
        let (stream, _) = listener.accept().await.context("accepting a connection")?;
        stream.set_nodelay(true).context("setting TCP_NODELAY")?;
        let stream = stream.into_std().context("handing a connection over")?;
        let authority = authority.clone();
        workers.serve(move || connection(stream, authority));
    }
}

fn connector() -> HttpConnector {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    connector
}

async fn connection(stream: std::net::TcpStream, upstream: Authority) {
    let Ok(stream) = TcpStream::from_std(stream) else { return };
    let service = service_fn(move |request| {
        let passed = pass(request, upstream.clone());
        async move { Ok::<_, Infallible>(passed.await) }
    });
    // A connection that breaks is seen at its other end.
    drop(http1::Builder::new().serve_connection(TokioIo::new(stream), service).await);
}

fn pass(mut request: Request<Incoming>, upstream: Authority) -> impl Future<Output = Response<Body>> {
    let mut to = std::mem::take(request.uri_mut()).into_parts();
    to.scheme = Some(Scheme::HTTP);
    to.authority = Some(upstream);
    *request.uri_mut() = Uri::from_parts(to).unwrap_or_default();
    request.headers_mut().remove(http::header::HOST);
    let sent = POOL.with(|pool| pool.request(request));
    async move {
        let Ok(response) = sent.await else { return bad_gateway() };
        let mut response = response.map(BodyExt::boxed);
        *response.version_mut() = Version::HTTP_11;
        response
    }
}

fn bad_gateway() -> Response<Body> {
    let mut response = Response::new(Empty::new().map_err(|never| match never {}).boxed());
    *response.status_mut() = StatusCode::BAD_GATEWAY;
    response
}
