//! Watches a real-time answer pass, and notes in the ledger what it took.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::HeaderMap;
use offpeak_core::outcome::DidItRun;
use offpeak_core::quota::Demand;
use offpeak_core::usage::Usage;
use offpeak_core::words::{TenantId, Timestamp};
use tokio::time::Instant;

use super::ledger::{Ledger, Passed};
use super::usage::Scanner;
use super::{Purpose, SharedSale, Taken, Took};
use crate::admission::Admission;
use crate::body::Watch;
use crate::clock::Clock;
use crate::engine::Present;
use crate::reply::Dialect;

/// A real-time call, as far as it is known when it is sent.
pub struct Call {
    /// What is bought.
    pub sale: SharedSale,
    /// Who calls.
    pub tenant: TenantId,
    /// Its name.
    pub request: String,
    /// When it was sent.
    pub started: Instant,
    /// Input tokens, as they were reckoned from the body's length.
    pub input_estimate: u64,
    /// What it has taken from its quotas.
    pub admission: Admission,
    /// Its engine gives it the right of way until its answer has passed.
    pub present: Option<Present>,
}

/// A call that has no answer yet. One that has left and is dropped, because its client hung up, may have run all the same: it
/// keeps what it took from its quotas, and has an entry in the ledger.
pub struct UnderWay {
    call: Option<Call>,
    left: Left,
    ledger: Ledger,
    clock: Clock,
}

/// Whether a call has left.
#[derive(Debug)]
enum Left {
    No,
    Yes,
    /// Whoever sends it with others says so.
    Told(Arc<AtomicBool>),
}

impl UnderWay {
    /// One that has not left.
    pub const fn new(call: Call, ledger: Ledger, clock: Clock) -> Self {
        Self { call: Some(call), left: Left::No, ledger, clock }
    }

    /// It leaves now.
    pub fn leaves(&mut self) {
        self.left = Left::Yes;
    }

    /// It came back without having run: refused, or not sent at all.
    pub fn came_back(&mut self) {
        self.left = Left::No;
    }

    /// It leaves when this becomes true.
    pub fn leaves_when_told(&mut self) -> Arc<AtomicBool> {
        let told = Arc::new(AtomicBool::new(false));
        self.left = Left::Told(told.clone());
        told
    }

    /// It buys something else from now on.
    pub fn buys(&mut self, sale: &SharedSale) {
        if let Some(call) = &mut self.call {
            call.sale = sale.clone();
        }
    }

    /// An answer begins: how long that took tells how an engine bears what it has. An error says nothing about it, nor does the
    /// head of a stream, of which the meter sees the first event.
    pub fn answered(&self, status: u16, is_stream: bool) {
        if let Some(Call { started, present: Some(present), sale, .. }) = &self.call
            && (200..300).contains(&status)
            && !is_stream
        {
            if matches!(sale.endpoint.as_str(), "/v1/embeddings" | "/v1/moderations") {
                present.begins(started.elapsed());
            } else {
                present.is_made(started.elapsed());
            }
        }
    }

    /// Tells in an answer's headers how its quotas stand.
    pub fn describe(&self, headers: &mut HeaderMap, now: Timestamp, dialect: Dialect) {
        if let Some(call) = &self.call {
            call.admission.describe(headers, now, dialect);
        }
    }

    /// It has an answer with this status, and what passes from now on is watched. `is_stream` says that it is a stream of
    /// events.
    pub fn watched(mut self, status: u16, is_stream: bool) -> Meter {
        let (call, ledger, clock) = (self.call.take(), self.ledger.clone(), self.clock);
        Meter { call, status, is_stream, has_begun: false, scanner: Scanner::new(is_stream), ledger, clock }
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        let has_left = match &self.left {
            Left::No => false,
            Left::Yes => true,
            Left::Told(told) => told.load(Ordering::Acquire),
        };
        if let Some(call) = self.call.take().filter(|_| has_left) {
            note_unknown(&self.ledger, call, self.clock);
        }
    }
}

/// Watches one answer. Its end is when it is dropped: after the last byte, or when the client or the provider hangs up,
/// which is not told apart, since what ran is charged either way.
pub struct Meter {
    call: Option<Call>,
    status: u16,
    is_stream: bool,
    has_begun: bool,
    scanner: Scanner,
    ledger: Ledger,
    clock: Clock,
}

impl Watch for Meter {
    fn see(&mut self, data: &[u8]) {
        if !(200..300).contains(&self.status) {
            return;
        }
        if self.is_stream
            && !std::mem::replace(&mut self.has_begun, true)
            && let Some(Call { started, present: Some(present), .. }) = &self.call
        {
            present.begins(started.elapsed());
        }
        self.scanner.see(data);
    }
}

impl Drop for Meter {
    fn drop(&mut self) {
        let Some(call) = self.call.take() else { return };
        let found = self.scanner.found();
        let is_success = (200..300).contains(&self.status);
        let exact = found.usage.filter(|_| !self.is_cut());
        let reckoned = (exact.is_none() && self.is_stream && is_success)
            .then(|| reckoned(found.usage, &self.scanner, call.input_estimate));
        let took = took(&call);
        let taken = Taken {
            tenant: call.tenant,
            purpose: Purpose::First,
            ran: DidItRun::Ran,
            status: Some(self.status),
            tier: found.tier,
            estimated: reckoned.is_some(),
            usage: exact.or(reckoned),
            wasted: false,
            took,
        };
        if let Some(usage) = exact {
            call.sale.learnt.learn(call.input_estimate, usage);
        }
        let used = taken.usage.unwrap_or_default();
        let reservation = call.admission.settle(Demand { input: used.input, output: used.output });
        let (sale, at) = (call.sale, self.clock.now());
        self.ledger.note(Passed { sale, taken, at, request: call.request, reservation });
    }
}

/// Events of a stream that carry no token: one at its beginning and one at its end.
const EVENTS_BESIDE: u64 = 2;

impl Meter {
    /// The stream broke off after it had said what it took so far.
    fn is_cut(&self) -> bool {
        self.is_stream && self.scanner.events_since_usage() > EVENTS_BESIDE
    }
}

/// A stream tells what it took at its end, and some only if the client asked for it. What the client sees is not changed, so
/// that this is reckoned: providers send about a token an event. `so_far` is what it said before it broke off.
fn reckoned(so_far: Option<Usage>, scanner: &Scanner, input_estimate: u64) -> Usage {
    let of = |events: u64| events.saturating_sub(EVENTS_BESIDE);
    match so_far {
        Some(so_far) => Usage { output: so_far.output.max(of(scanner.events_since_usage())), ..so_far },
        None => Usage { input: input_estimate, output: of(scanner.events()), ..Usage::default() },
    }
}

fn took(call: &Call) -> Took {
    Took::new(call.started.elapsed(), call.present.as_ref().map_or(1, Present::together))
}

/// Notes a call that was sent and got no answer: it may have run.
fn note_unknown(ledger: &Ledger, call: Call, clock: Clock) {
    let took = took(&call);
    let taken = Taken {
        tenant: call.tenant,
        purpose: Purpose::First,
        ran: DidItRun::Unknown,
        status: None,
        tier: None,
        usage: None,
        estimated: false,
        wasted: true,
        took,
    };
    let demand = call.admission.demand();
    let reservation = call.admission.settle(demand);
    let (sale, at) = (call.sale, clock.now());
    ledger.note(Passed { sale, taken, at, request: call.request, reservation });
}
