//! Work that takes its time: a plugin's step, say.

use tokio::runtime::{Handle, RuntimeFlavor};

/// Does the work here. Where the runtime has several threads, the tasks that wait behind it go on on another.
pub fn blocking<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        _ => work(),
    }
}
