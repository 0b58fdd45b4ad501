//! Which backends take work: a circuit breaker for each mode of each backend.

use std::collections::HashMap;

use bytes::Bytes;
use offpeak_core::breaker::{Breaker, BreakerTerms, Report, State};
use offpeak_core::words::{BackendId, Mode, Timestamp};
use offpeak_store::{Document, Kind};
use parking_lot::Mutex;

/// All breakers. Those that were never told anything are closed and not in it.
pub struct Health {
    terms: BreakerTerms,
    breakers: Mutex<HashMap<(BackendId, Mode), Breaker>>,
}

/// A breaker has opened or closed.
pub struct Changed {
    /// Whose.
    pub key: (BackendId, Mode),
    /// Until when nothing passes; none if it has closed.
    pub until: Option<Timestamp>,
    /// So that it is known after a restart.
    pub document: Document,
}

impl Health {
    /// All breakers are closed.
    pub fn new(terms: BreakerTerms) -> Self {
        Self { terms, breakers: Mutex::default() }
    }

    /// Takes in a document of an earlier run, and tells since when it may be tried, or when; none if it cannot be read, or is
    /// closed.
    pub fn restore(&self, key: &[u8], value: &[u8]) -> Option<((BackendId, Mode), Timestamp)> {
        let key: (BackendId, Mode) = postcard::from_bytes(key).ok()?;
        let breaker: Breaker = postcard::from_bytes(value).ok()?;
        self.breakers.lock().insert(key.clone(), breaker);
        match breaker.state() {
            State::Closed => None,
            State::Open { until, .. } | State::Probing { until, .. } => Some((key, until)),
        }
    }

    /// Until when nothing should be sent, if it is so.
    pub fn shut_until(&self, backend: &BackendId, mode: Mode, now: Timestamp) -> Option<Timestamp> {
        self.breakers.lock().get(&(backend.clone(), mode))?.shut_until(now)
    }

    /// Asks to send something. An open breaker lets a probe through now and then; otherwise says until when it does not.
    pub fn admit(&self, backend: &BackendId, mode: Mode, now: Timestamp) -> Result<(), Timestamp> {
        let mut breakers = self.breakers.lock();
        let Some(breaker) = breakers.get_mut(&(backend.clone(), mode)) else { return Ok(()) };
        if breaker.admit(now) { Ok(()) } else { Err(breaker.shut_until(now).unwrap_or(now)) }
    }

    /// Takes in how something ended.
    pub fn tell(&self, backend: &BackendId, mode: Mode, report: Report, now: Timestamp) -> Option<Changed> {
        let key = (backend.clone(), mode);
        let mut breakers = self.breakers.lock();
        if report == Report::Fine && !breakers.contains_key(&key) {
            return None;
        }
        let breaker = breakers.entry(key.clone()).or_default();
        if !breaker.tell(report, &self.terms, now) {
            return None;
        }
        let until = breaker.shut_until(now);
        let document = document(&key, breaker)?;
        Some(Changed { key, until, document })
    }

    /// Those that are not closed, and until when nothing passes.
    pub fn open(&self, now: Timestamp) -> Vec<((BackendId, Mode), Timestamp)> {
        let breakers = self.breakers.lock();
        let mut open: Vec<_> = breakers
            .iter()
            .filter_map(|(key, breaker)| Some((key.clone(), breaker.shut_until(now)?)))
            .collect();
        open.sort();
        open
    }
}

fn document(key: &(BackendId, Mode), breaker: &Breaker) -> Option<Document> {
    // Names and numbers: there is nothing in it that cannot be written.
    Some(Document {
        kind: Kind::Breaker,
        key: Bytes::from(postcard::to_allocvec(key).ok()?),
        value: Some(Bytes::from(postcard::to_allocvec(breaker).ok()?)),
    })
}
