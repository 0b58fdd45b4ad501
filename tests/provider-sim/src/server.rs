//! Puts a provider on a port: HTTP/1.1 and HTTP/2 without TLS.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, Response};
use http_body::{Body, Frame, SizeHint};
use http_body_util::{BodyExt, Either};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Sleep;

use crate::engine::{Piece, Pieces};
use crate::provider::Provider;
use crate::reply::{SimBody, SimResponse};

/// The most room that is reserved on the word of a `content-length`.
const RESERVE: u64 = 512 << 20;
/// Pause after a failed accept, so that a lack of file descriptors does not spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(20);

/// Starts servers.
#[derive(Debug)]
pub struct Server;

/// A running server; it ends when this is dropped.
#[derive(Debug)]
pub struct Handle {
    addr: SocketAddr,
    stop: watch::Sender<bool>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Serves `provider` on a free loopback port. Needs a tokio runtime.
    pub async fn on_free_port(provider: Provider) -> io::Result<Handle> {
        Self::start(TcpListener::bind(("127.0.0.1", 0)).await?, provider)
    }

    /// Serves `provider` on `listener`. Needs a tokio runtime.
    pub fn start(listener: TcpListener, provider: Provider) -> io::Result<Handle> {
        let addr = listener.local_addr()?;
        let (stop, stopped) = watch::channel(false);
        let (driven, mut ended) = (provider.clone(), stopped.clone());
        tokio::spawn(async move {
            tokio::select! {
                _ = ended.wait_for(|stop| *stop) => {}
                () = driven.drive() => {}
            }
        });
        let accepting = tokio::spawn(accept(listener, provider, stopped));
        Ok(Handle { addr, stop, accepting })
    }
}

impl Handle {
    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// `http://` and the address, without a path.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Stops accepting and breaks all connections.
    pub async fn shutdown(mut self) {
        self.stop.send_replace(true);
        // An error would say that the task was cancelled or panicked: either way it has ended.
        (&mut self.accepting).await.ok();
    }

    /// Waits until the server ends by itself, which it does not.
    pub async fn wait(&mut self) {
        (&mut self.accepting).await.ok();
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        self.stop.send_replace(true);
    }
}

async fn accept(listener: TcpListener, provider: Provider, mut stopped: watch::Receiver<bool>) {
    loop {
        let stream = tokio::select! {
            _ = stopped.wait_for(|stop| *stop) => return,
            accepted = listener.accept() => accepted,
        };
        match stream {
            Ok((stream, _)) => {
                tokio::spawn(connection(stream, provider.clone(), stopped.clone()));
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn connection(stream: TcpStream, provider: Provider, mut stopped: watch::Receiver<bool>) {
    // Without this small answers wait for the client's acknowledgement; failing to set it only costs speed.
    stream.set_nodelay(true).ok();
    let service = service_fn(move |request| serve(provider.clone(), request));
    let builder = auto::Builder::new(TokioExecutor::new());
    let serving = builder.serve_connection(TokioIo::new(stream), service);
    tokio::select! {
        _ = stopped.wait_for(|stop| *stop) => {}
        // A connection that the client breaks, or that a fault breaks, is nothing to report.
        _ = serving => {}
    }
}

/// Why a connection is broken.
#[derive(Debug, thiserror::Error)]
enum Broken {
    #[error("the request ended before its body did: {0}")]
    Request(#[from] hyper::Error),
    #[error("the fault plan cuts this connection")]
    Cut,
    #[error("the engine ended before the answer did")]
    Engine,
    #[error("the simulator's worker ended without an answer: {0}")]
    Worker(#[from] tokio::task::JoinError),
}

async fn serve(provider: Provider, request: Request<Incoming>) -> Result<Response<Outgoing>, Broken> {
    let (parts, body) = request.into_parts();
    let body = read(body).await?;
    let slow = Provider::is_slow(&parts.method, parts.uri.path());
    let request = Request::from_parts(parts, body);
    let response = if slow {
        tokio::task::spawn_blocking(move || provider.handle(request)).await?
    } else {
        provider.handle(request)
    };
    deliver(response).await
}

/// The whole body: as it is when it came in one piece, else copied once into one.
async fn read(mut body: Incoming) -> Result<Bytes, hyper::Error> {
    let expected = body.size_hint().lower().min(RESERVE);
    let mut first = Bytes::new();
    let mut all = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame?.into_data() else { continue };
        if first.is_empty() && all.is_empty() {
            first = data;
            continue;
        }
        if all.is_empty() {
            all.reserve(usize::try_from(expected).unwrap_or(0).max(first.len() + data.len()));
            all.extend_from_slice(&std::mem::take(&mut first));
        }
        all.extend_from_slice(&data);
    }
    Ok(if all.is_empty() { first } else { all.freeze() })
}

/// What goes out: a body that is there, or one that an engine is still working on.
type Outgoing = Either<Delivered, Live>;

async fn deliver(response: SimResponse) -> Result<Response<Outgoing>, Broken> {
    let SimResponse { status, headers, body, delivery } = response;
    if !delivery.after.is_zero() {
        tokio::time::sleep(delivery.after).await;
    }
    if delivery.cut == Some(0) {
        return Err(Broken::Cut);
    }
    let (bytes, ends, gap) = match body {
        SimBody::Engine(answer) => {
            let pieces = answer.take().ok_or(Broken::Engine)?;
            if answer.is_stream() {
                let mut live = Response::new(Either::Right(Live { pieces, broken: false, ended: false }));
                (*live.status_mut(), *live.headers_mut()) = (status, headers);
                return Ok(live);
            }
            (pieces.whole().await.ok_or(Broken::Engine)?, None, Duration::ZERO)
        }
        SimBody::Full(bytes) => (bytes, None, Duration::ZERO),
        SimBody::Pieces { bytes, ends, gap } => (bytes, Some(ends.into_iter()), gap),
    };
    let sleep = (!gap.is_zero()).then(|| Box::pin(tokio::time::sleep(Duration::ZERO)));
    let body = Delivered { bytes, ends, sent: 0, cut: delivery.cut, paused: false, gap, sleep };
    let mut delivered = Response::new(Either::Left(body));
    *delivered.status_mut() = status;
    *delivered.headers_mut() = headers;
    Ok(delivered)
}

/// A stream whose pieces come as an engine makes them.
struct Live {
    pieces: Pieces,
    broken: bool,
    ended: bool,
}

impl Body for Live {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        if !this.broken {
            match ready!(this.pieces.poll_next(cx)) {
                Some(Piece::Data(bytes)) => return Poll::Ready(Some(Ok(Frame::data(bytes)))),
                Some(Piece::End) => {
                    this.ended = true;
                    return Poll::Ready(None);
                }
                None => this.broken = true,
            }
            // One pause first, so that what has been sent goes out.
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Err(Broken::Engine)))
    }
}

/// A body on its way out.
struct Delivered {
    bytes: Bytes,
    /// Where the pieces end; `None` for a body in one piece.
    ends: Option<std::vec::IntoIter<usize>>,
    sent: usize,
    cut: Option<usize>,
    paused: bool,
    gap: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Body for Delivered {
    type Data = Bytes;
    type Error = Broken;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Broken>>> {
        let this = &mut *self;
        let all = this.bytes.len();
        let most = this.cut.unwrap_or(all).min(all);
        if this.sent >= most {
            if this.cut.is_none() {
                return Poll::Ready(None);
            }
            // One pause first: hyper sends what it holds when the body has nothing ready, and drops it on an error.
            if !std::mem::replace(&mut this.paused, true) {
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
            return Poll::Ready(Some(Err(Broken::Cut)));
        }
        if let Some(sleep) = &mut this.sleep {
            ready!(sleep.as_mut().poll(cx));
            sleep.as_mut().reset(tokio::time::Instant::now() + this.gap);
        }
        let end = match &mut this.ends {
            None => most,
            Some(ends) => ends.next().unwrap_or(most).min(most),
        };
        let piece = this.bytes.slice(this.sent..end.max(this.sent));
        this.sent = end.max(this.sent);
        Poll::Ready(Some(Ok(Frame::data(piece))))
    }

    fn is_end_stream(&self) -> bool {
        self.cut.is_none() && self.sent >= self.bytes.len()
    }

    fn size_hint(&self) -> SizeHint {
        match self.ends {
            // A cut body promises its whole length, so that the client sees that it was cut.
            None => SizeHint::with_exact((self.bytes.len() - self.sent) as u64),
            Some(_) => SizeHint::default(),
        }
    }
}
