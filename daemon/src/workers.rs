//! Threads that serve connections. A connection, the requests on it and the calls to backends that they make stay on one
//! thread, so that a request that is passed through wakes no other thread on its way.

use std::future::Future;
use std::io;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

use tokio::runtime::{Builder, Handle};
use tokio_util::sync::CancellationToken;

/// The threads of a listener.
pub struct Workers {
    all: Vec<Worker>,
    stop: CancellationToken,
}

struct Worker {
    runtime: Handle,
    /// Connections that it has.
    connections: Arc<AtomicUsize>,
    thread: JoinHandle<()>,
}

/// Counts a connection as long as it is there.
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Workers {
    /// Starts so many threads, or one for each core. Each does `first` before anything else.
    pub fn start(count: Option<NonZeroUsize>, first: impl Fn() + Clone + Send + 'static) -> io::Result<Self> {
        let stop = CancellationToken::new();
        let cores = || std::thread::available_parallelism().unwrap_or(NonZeroUsize::MIN);
        let all = (0..count.unwrap_or_else(cores).get())
            .map(|number| Worker::start(number, first.clone(), stop.clone()))
            .collect::<io::Result<_>>()?;
        Ok(Self { all, stop })
    }

    /// Serves a connection on the thread that has the fewest. What it is made of is made there.
    pub fn serve<F>(&self, connection: impl FnOnce() -> F + Send + 'static)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let fewest = self.all.iter().min_by_key(|worker| worker.connections.load(Ordering::Relaxed));
        let Some(worker) = fewest else { return };
        let counted = Counted::new(&worker.connections);
        worker.runtime.spawn(async move {
            connection().await;
            drop(counted);
        });
    }

    /// Ends the threads; what they still serve is dropped.
    pub async fn stop(self) {
        self.stop.cancel();
        let join = || self.all.into_iter().map(|worker| worker.thread.join().is_ok());
        let joined: Vec<bool> =
            tokio::task::spawn_blocking(move || join().collect()).await.unwrap_or_default();
        if joined.contains(&false) {
            tracing::error!("a thread that served connections did not end as it should");
        }
    }
}

impl Worker {
    fn start(number: usize, first: impl Fn() + Send + 'static, stop: CancellationToken) -> io::Result<Self> {
        let runtime = Builder::new_current_thread().enable_all().build()?;
        let handle = runtime.handle().clone();
        let run = move || {
            first();
            runtime.block_on(stop.cancelled());
            // A look-up in the store may still be on its way; nobody waits for it.
            runtime.shutdown_background();
        };
        let thread = std::thread::Builder::new().name(format!("serve-{number}")).spawn(run)?;
        Ok(Self { runtime: handle, connections: Arc::default(), thread })
    }
}
