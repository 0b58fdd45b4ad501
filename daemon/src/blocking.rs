//! Work that takes its time: a plugin's step, say.

use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::task::JoinError;

/// Does the work here. Where the runtime has several threads, the tasks that wait behind it go on on another.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}

/// Does the work on a thread that is there for such, where the runtime has several threads.
pub async fn elsewhere<T: Send + 'static>(
    runtime: &Handle,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, JoinError> {
    match runtime.runtime_flavor() {
        RuntimeFlavor::MultiThread => runtime.spawn_blocking(work).await,
        _ => Ok(work()),
    }
}
