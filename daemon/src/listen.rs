//! Listeners: accept with back-off, a bound on connections, TLS, HTTP/1.1 and HTTP/2, and a drain that lets work finish.

#[cfg(test)]
mod slow;
mod unread;

use std::convert::Infallible;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

use self::unread::Unread;
use crate::body::{ReplyBody, RequestBody};
use crate::tls::Tls;
use crate::workers::Workers;

/// The longest pause after a failed accept.
const ACCEPT_BACKOFF_MAX: Duration = Duration::from_secs(1);

/// A client gets this long to send a request's head, and a new connection for its first one, handshake included.
const HEAD_TIMEOUT: Duration = Duration::from_secs(30);

/// The largest head of a request over HTTP/2, in bytes; HTTP/1.1 has a bound of its own.
const HEAD_MAX: usize = 64 << 10;

/// Requests under way at once on one connection of HTTP/2.
const STREAMS_MAX: u32 = 1000;

/// A connection of HTTP/2 on which nothing moves is asked after this long whether anybody is there,
const ASK_AFTER: Duration = Duration::from_secs(30);

/// and is closed if no answer comes.
const ANSWER_WITHIN: Duration = Duration::from_secs(20);

/// File handles that are no connection's.
const OWN_FILES: u64 = 128;

/// What a listener allows.
pub struct Terms {
    /// Connections at once.
    pub max_connections: usize,
    /// How long requests under way may take when it is told to stop.
    pub drain: Duration,
    /// Certificates; without them it speaks plain text.
    pub tls: Option<Arc<Tls>>,
}

/// How many connections there may be at once where so many files may be open: each may need a second one to a backend, and
/// the store, plugins, uploads and the admin plane need some of their own.
pub fn connections_with(files: u64) -> usize {
    usize::try_from(files.saturating_sub(OWN_FILES) / 2).unwrap_or(usize::MAX).max(1)
}

/// Serves connections until `stop`; then lets requests under way finish. Connections are served on the caller's runtime
/// where there are no workers.
pub async fn serve<H, F>(
    listener: TcpListener,
    workers: Option<&Workers>,
    terms: Terms,
    stop: CancellationToken,
    handle: H,
) where
    H: Fn(Request<RequestBody>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<ReplyBody>> + Send + 'static,
{
    let places = Arc::new(Semaphore::new(terms.max_connections.min(Semaphore::MAX_PERMITS)));
    let graceful = GracefulShutdown::new();
    let builder = Arc::new(connection_builder());
    loop {
        // Connections over the limit wait in the listener's backlog, where they cost nothing.
        let place = tokio::select! {
            () = stop.cancelled() => break,
            place = places.clone().acquire_owned() => place,
        };
        let stream = tokio::select! {
            () = stop.cancelled() => break,
            stream = accept(&listener) => stream,
        };
        let (builder, watcher, handle) = (builder.clone(), graceful.watcher(), handle.clone());
        let tls = terms.tls.as_ref().map(|tls| tls.acceptor());
        let connection = move |stream| async move {
            // The handshake is the connection's own business: a slow one keeps nobody waiting.
            match tls {
                None => drive(&builder, watcher, stream, handle).await,
                // Boxed: it is more than twice as large, and there may be ten thousand connections without it.
                Some(tls) => Box::pin(drive_tls(&builder, watcher, stream, tls, handle)).await,
            }
            drop(place);
        };
        match workers {
            None => drop(tokio::spawn(connection(stream))),
            Some(workers) => match stream.into_std() {
                Ok(stream) => workers.serve(move || hand_over(stream, connection)),
                Err(error) => tracing::warn!(%error, "a connection could not be handed to a thread"),
            },
        }
    }
    drop(listener);
    if tokio::time::timeout(terms.drain, graceful.shutdown()).await.is_err() {
        tracing::warn!(
            "requests were still under way when the drain time was over; deferred work is safe on disk"
        );
    }
}

/// Goes on with a connection on the runtime of the thread that it came to.
async fn hand_over<F: Future<Output = ()>>(
    stream: std::net::TcpStream,
    connection: impl FnOnce(TcpStream) -> F,
) {
    match TcpStream::from_std(stream) {
        Ok(stream) => connection(stream).await,
        Err(error) => tracing::warn!(%error, "a connection could not be taken over from the listener"),
    }
}

/// Serves one connection over TLS to its end.
async fn drive_tls<H, F>(
    builder: &auto::Builder<TokioExecutor>,
    watcher: Watcher,
    stream: TcpStream,
    tls: TlsAcceptor,
    handle: H,
) where
    H: Fn(Request<RequestBody>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<ReplyBody>> + Send + 'static,
{
    match tokio::time::timeout(HEAD_TIMEOUT, tls.accept(stream)).await {
        Ok(Ok(stream)) => drive(builder, watcher, stream, handle).await,
        Ok(Err(error)) => tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => tracing::debug!("a TLS handshake took too long"),
    }
}

/// Serves one connection to its end.
async fn drive<H, F>(
    builder: &auto::Builder<TokioExecutor>,
    watcher: Watcher,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    handle: H,
) where
    H: Fn(Request<RequestBody>) -> F + Clone + Send + Sync + 'static,
    F: Future<Output = Response<ReplyBody>> + Send + 'static,
{
    let has_asked = Arc::new(AtomicBool::new(false));
    let asked = has_asked.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        asked.store(true, Ordering::Relaxed);
        let answer = handle(request.map(RequestBody::from));
        async move { Ok::<_, Infallible>(answer.await) }
    });
    let connection = builder.serve_connection(TokioIo::new(Unread::new(stream)), service).into_owned();
    let connection = watcher.watch(connection);
    // Before HTTP knows which of its versions is spoken, it has no time-out of its own.
    let silent = async {
        tokio::time::sleep(HEAD_TIMEOUT).await;
        if has_asked.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        ended = connection => {
            // A connection that breaks is the client's choice; its requests are dropped with it.
            if let Err(error) = ended {
                tracing::trace!(%error, "a connection ended early");
            }
        }
        () = silent => tracing::debug!("a connection asked for nothing and was closed"),
    }
}

fn connection_builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIMEOUT)
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(STREAMS_MAX)
        .max_header_list_size(u32::try_from(HEAD_MAX).unwrap_or(u32::MAX))
        .keep_alive_interval(ASK_AFTER)
        .keep_alive_timeout(ANSWER_WITHIN);
    builder
}

/// The next connection. Failures (no file handles left, say) pass; each is waited out a little longer.
async fn accept(listener: &TcpListener) -> TcpStream {
    let mut pause = Duration::from_millis(5);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                // Answers are written whole; waiting to fill a packet would only delay them.
                if let Err(error) = stream.set_nodelay(true) {
                    tracing::debug!(%error, "TCP_NODELAY could not be set");
                }
                return stream;
            }
            Err(error) => {
                tracing::warn!(%error, ?pause, "a connection could not be accepted; trying again");
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(ACCEPT_BACKOFF_MAX);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn file_handles_are_shared_out() {
        assert_eq!(connections_with(1024), 448);
        assert_eq!(connections_with(100), 1, "too few to start with, and still somebody is served");
        assert_eq!(connections_with(1 << 20), 524_224);
    }
}
