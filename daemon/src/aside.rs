//! Where requests wait whose router takes long: not on the threads that serve connections, so that nobody else waits behind
//! its calls, and a few calls at a time, so that they leave cores to the others.

use std::num::NonZeroUsize;
use std::sync::Arc;

use http::StatusCode;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::reply::Refusal;

/// As many requests of one router may wait: at its time limit, a few seconds' worth of calls.
const WAITING_MAX: usize = 64;

/// The turns of one router.
pub struct Aside {
    places: Arc<Semaphore>,
    turns: Arc<Semaphore>,
}

/// The right to ask the router, for as long as this is there.
pub struct Turn {
    _place: OwnedSemaphorePermit,
    _turn: OwnedSemaphorePermit,
}

impl Default for Aside {
    /// One that may use half of the cores.
    fn default() -> Self {
        let cores = std::thread::available_parallelism().map_or(1, NonZeroUsize::get);
        Self::new(WAITING_MAX, (cores / 2).max(1))
    }
}

impl Aside {
    fn new(places: usize, turns: usize) -> Self {
        Self { places: Arc::new(Semaphore::new(places)), turns: Arc::new(Semaphore::new(turns)) }
    }

    /// Waits for a turn, in the order of arrival.
    pub async fn turn(&self) -> Result<Turn, Refusal> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| router_busy())?;
        let turn = self.turns.clone().acquire_owned().await.map_err(|_| router_busy())?;
        Ok(Turn { _place: place, _turn: turn })
    }
}

fn router_busy() -> Refusal {
    let message = "The router plugin that decides about this request takes long, and too many requests wait for it. Send \
                   it again.";
    let refusal = Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "router_busy", message);
    Refusal { retry_after_s: Some(1), ..refusal }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn who_waits_is_let_in_by_and_by_and_no_more_than_there_are_places() {
        let aside = Aside::new(2, 1);
        let first = aside.turn().await.unwrap();
        let second = aside.turn();
        tokio::pin!(second);
        assert!(futures_util::poll!(&mut second).is_pending());
        let Err(refusal) = aside.turn().await else { panic!("there was a third place") };
        assert_eq!((refusal.status.as_u16(), refusal.retry_after_s), (503, Some(1)));
        drop(first);
        let second = second.await.unwrap();
        drop(second);
        assert!(aside.turn().await.is_ok());
    }
}
