//! Whether what can wait is taken in: room in lanes, and memory for bodies. What is refused is told when to come again; calls
//! in real time and what was taken in before are not affected.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use http::StatusCode;
use offpeak_core::lane::Sums;
use offpeak_core::room::{Bound, Full, Load, Whose};
use offpeak_core::words::{LaneKey, ModelId, TenantId};

use crate::backends::Backends;
use crate::lane_book::LaneBook;
use crate::reply::Refusal;
use crate::tenant::{Account, Tenants};

/// Lanes have room again when a batch leaves, which takes a while.
const TRY_AGAIN_S: u64 = 30;

/// Bodies are in memory for moments.
const BUSY_S: u64 = 1;

/// Bodies up to this size are not counted: there is at most one a connection.
const SMALL_BODY: u64 = 64 << 10;

/// Bounds that are not a tenant's or a lane's own, and the bodies in memory.
pub struct Room {
    /// What may wait in all.
    pub all: Bound,
    /// The large bodies of calls that are in memory.
    pub bodies: Arc<Bodies>,
}

/// What tells how much waits and may wait.
#[derive(Clone, Copy)]
pub struct Books<'a> {
    /// What waits.
    pub lanes: &'a LaneBook,
    /// The bounds of lanes.
    pub backends: &'a Backends,
    /// Those of keys.
    pub tenants: &'a Tenants,
}

/// Counts the bytes of large bodies in memory.
pub struct Bodies {
    used: AtomicU64,
    most: u64,
}

/// A large body that is in memory as long as this is.
pub struct InMemory {
    bodies: Arc<Bodies>,
    bytes: u64,
}

/// Requests of jobs that were taken in and do not stand in lanes yet.
#[derive(Debug, Clone, Default)]
pub struct Coming {
    /// The tenant's.
    pub jobs: Vec<ComingJob>,
    /// All of them.
    pub all: u64,
}

/// The requests of one job that do not stand in lanes yet.
#[derive(Debug, Clone)]
pub struct ComingJob {
    /// So many.
    pub requests: u64,
    /// What they came with, if that key has limits of its own for deferred work; else empty.
    pub api_key: Arc<str>,
    /// Their model; none if there are several, of which any may have the most.
    pub model: Option<ModelId>,
}

impl Coming {
    /// Those of some of the tenant's jobs.
    fn of(&self, is_one: impl Fn(&ComingJob) -> bool) -> u64 {
        let jobs = self.jobs.iter().filter(|job| is_one(job));
        jobs.fold(0, |sum, job| sum.saturating_add(job.requests))
    }
}

impl Room {
    /// Whether so much more of a tenant may wait, in a lane where that is known, beside what waits and is coming.
    pub fn check(
        &self,
        books: Books<'_>,
        account: &Account,
        key: Option<&LaneKey>,
        load: Load,
        coming: &Coming,
    ) -> Result<(), Refusal> {
        // A call's own body does not count, so that none is too large for ever; a job's lies on disk.
        let own = if load.requests == 1 { load.bytes } else { 0 };
        if self.bodies.are_too_many_to_wait(own) {
            return Err(busy());
        }
        let tenant = Bound { requests: account.max_queued, bytes: account.max_queued_bytes };
        let waiting = with(books.lanes.waiting_of(&account.id), coming.of(|_| true));
        let checked = tenant
            .check(Whose::Tenant, waiting, load)
            .and_then(|()| key.map_or(Ok(()), |key| check_parts(books, account, key, load, coming)))
            .and_then(|()| self.all.check(Whose::All, with(books.lanes.waiting_in_all(), coming.all), load));
        checked.map_err(|full| refusal(full, load, &account.id))
    }
}

/// What has bounds of its own within the tenant's: the lane, the API key, the model.
fn check_parts(
    books: Books<'_>,
    account: &Account,
    key: &LaneKey,
    load: Load,
    coming: &Coming,
) -> Result<(), Full> {
    let Books { lanes, backends, tenants } = books;
    if let Some(backend) = backends.get(&key.backend) {
        backend.lanes.queue.check(Whose::Lane, lanes.waiting_in(key), load)?;
    }
    if let Some(bound) = tenants.queue_of_key(&account.id, &key.api_key) {
        let coming = coming.of(|job| job.api_key == key.api_key);
        bound.check(Whose::Key, with(lanes.waiting_of_key(&key.api_key), coming), load)?;
    }
    if let Some((bound, is_one)) = account.queue_of_models(&key.model) {
        let coming = coming.of(|job| job.model.as_ref().is_none_or(&is_one));
        bound.check(Whose::Models, with(lanes.waiting_of_models(&account.id, &is_one), coming), load)?;
    }
    Ok(())
}

const fn with(waiting: Sums, coming: u64) -> Sums {
    Sums { count: waiting.count.saturating_add(coming), ..waiting }
}

fn refusal(full: Full, load: Load, tenant: &TenantId) -> Refusal {
    let whose = full.whose();
    let limit = match full {
        Full::Requests(_, limit) => format!("{limit} deferred requests"),
        Full::Bytes(_, limit) => format!("{limit} bytes of deferred requests"),
    };
    let who = match whose {
        Whose::Lane => "The lane of this model",
        Whose::Tenant => "The tenant",
        Whose::Key => "This API key",
        Whose::Models => "The tenant, of this model and those that share its limits,",
        Whose::All => "offpeak",
    };
    let (more, advice) = match load.requests {
        1 => ("one more".to_owned(), "send x-offpeak-sla: realtime"),
        many => (format!("the {many} of this batch"), "split it"),
    };
    let message = format!(
        "{who} may have {limit} waiting, and has no room for {more}. Try again when some have left, or \
         {advice}."
    );
    tracing::debug!(%tenant, ?full, "there is no room for what could wait");
    let status = match whose {
        Whose::Lane | Whose::Tenant | Whose::Key | Whose::Models => StatusCode::TOO_MANY_REQUESTS,
        Whose::All => StatusCode::SERVICE_UNAVAILABLE,
    };
    Refusal { retry_after_s: Some(TRY_AGAIN_S), ..Refusal::new(status, "queue_full", message) }
}

fn busy() -> Refusal {
    let message = "offpeak has as many large requests in memory as it may (server.body_memory). Try again.";
    Refusal::unavailable("busy", message, BUSY_S)
}

impl Bodies {
    /// At most so many bytes.
    pub fn new(most: u64) -> Arc<Self> {
        Arc::new(Self { used: AtomicU64::new(0), most })
    }

    /// For a body of which nothing has come yet.
    pub fn begin(self: &Arc<Self>) -> InMemory {
        InMemory { bodies: self.clone(), bytes: 0 }
    }

    /// The second half of the memory is for calls that cannot wait.
    fn are_too_many_to_wait(&self, own: u64) -> bool {
        self.used.load(Ordering::Relaxed).saturating_sub(own) > self.most / 2
    }
}

impl InMemory {
    /// So much of it has come. What was announced does not count: whoever sends slowly would keep others out with it.
    pub fn grow_to(&mut self, bytes: u64) -> Result<(), Refusal> {
        let more = bytes.saturating_sub(self.bytes);
        if bytes <= SMALL_BODY || more == 0 {
            return Ok(());
        }
        let before = self.bodies.used.fetch_add(more, Ordering::Relaxed);
        let is_alone = before <= self.bytes;
        self.bytes += more;
        // One that is alone may be as large as bodies may be.
        if is_alone || before.saturating_add(more) <= self.bodies.most { Ok(()) } else { Err(busy()) }
    }
}

impl Drop for InMemory {
    fn drop(&mut self) {
        self.bodies.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn bodies_in_memory_are_bounded_and_the_last_half_cannot_be_used_by_what_can_wait() {
        let bodies = Bodies::new(10 * MIB);
        let begun = |bytes| {
            let mut body = bodies.begin();
            body.grow_to(bytes).map(|()| body)
        };
        let small = begun(SMALL_BODY).unwrap();
        assert_eq!(bodies.used.load(Ordering::Relaxed), 0, "small ones are not counted");
        let first = begun(5 * MIB).unwrap();
        assert!(!bodies.are_too_many_to_wait(0));
        let mut second = begun(MIB).unwrap();
        assert!(bodies.are_too_many_to_wait(0));
        assert!(!bodies.are_too_many_to_wait(MIB), "but for itself");
        second.grow_to(5 * MIB).unwrap();
        let refused = begun(MIB).err().unwrap();
        assert_eq!((refused.status.as_u16(), refused.retry_after_s), (503, Some(1)));
        assert!(second.grow_to(6 * MIB).is_err(), "nor may one grow that was there before");
        drop(first);
        assert!(begun(MIB).is_ok(), "what was refused left nothing behind");
        drop((small, second));
        assert_eq!(bodies.used.load(Ordering::Relaxed), 0);
        assert!(begun(20 * MIB).is_ok(), "no body is too large for ever");
    }
}
