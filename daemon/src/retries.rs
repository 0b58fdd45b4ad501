//! Asks the retry policy what a failed attempt means, and decides with [`RetryPolicy`] what follows.

use std::sync::Arc;

use arc_swap::ArcSwap;
use offpeak_core::outcome::{DidItRun, Ending};
use offpeak_core::retry::{self, CANCELLED_BY_CALLER, Class, RetryPolicy};
use offpeak_core::words::{Millis, Mode, Timestamp};
use offpeak_host::RetryPlugin;
use offpeak_host::values::retry as shown;

use crate::costs::Sale;
use crate::plugins::{InUse, Reloaded};
use crate::telemetry::Metrics;

/// As much of an answer's body as a policy gets to see.
const BODY_MAX: usize = 4096;

/// The code of what was not sent because its backend is out of order, and another one takes it.
pub const OUT_OF_ORDER: &str = "backend_out_of_order";

/// The code of what was under way at a backend that was taken out of the configuration.
pub const BACKEND_GONE: &str = "backend_removed";

/// The retry policy, the one that stands in for it, and the bounds of what both may decide.
pub struct Retries {
    /// The policy.
    pub policy: ArcSwap<InUse<RetryPlugin>>,
    /// How often and how far apart.
    pub terms: RetryPolicy,
    metrics: Arc<Metrics>,
}

/// An attempt that did not succeed, as far as its meaning depends on it.
#[derive(Debug, Clone, Copy)]
pub struct Failed<'a> {
    /// What was bought.
    pub sale: &'a Sale,
    /// How it was run.
    pub mode: Mode,
    /// How it ended.
    pub ending: &'a Ending,
    /// The answer.
    pub body: &'a [u8],
    /// Attempts that were made, this one included.
    pub attempts: u16,
    /// What the provider asked for.
    pub retry_after: Option<Millis>,
    /// When the answer is due.
    pub deadline: Timestamp,
}

/// What a policy said.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meaning {
    /// What it is.
    pub class: Class,
    /// Not before so long, says the provider or the policy.
    pub not_before: Option<Millis>,
}

impl Retries {
    /// With a policy and bounds.
    pub fn new(policy: InUse<RetryPlugin>, terms: RetryPolicy, metrics: Arc<Metrics>) -> Self {
        Self { policy: ArcSwap::from_pointee(policy), terms, metrics }
    }

    /// From now on this one is asked.
    pub fn replace(&self, fresh: InUse<RetryPlugin>) -> Reloaded {
        let (policy, told) = fresh.replacing(&self.policy.load());
        self.policy.store(Arc::new(policy));
        told
    }

    /// What a failed attempt means. If no policy can tell, its status and whether it ran do.
    pub fn meaning(&self, failed: &Failed<'_>, now: Timestamp) -> Meaning {
        // Nobody failed, and where it goes is not a policy's affair.
        if matches!(failed.ending, Ending::Failed { code, .. } if code == OUT_OF_ORDER || code == BACKEND_GONE)
        {
            return Meaning { class: Class::Elsewhere, not_before: None };
        }
        // What a caller has ended is over, whatever a policy thinks of it.
        if matches!(failed.ending, Ending::Failed { code, .. } if code == CANCELLED_BY_CALLER) {
            return Meaning { class: Class::Permanent, not_before: None };
        }
        let attempt = shown_attempt(failed, now);
        for policy in self.policy.load().each() {
            match policy.judge(&attempt, now.0) {
                Ok(said) => return understood(said, failed.retry_after),
                Err(error) => {
                    self.metrics.plugin_failed(policy.name());
                    tracing::error!(plugin = policy.name(), %error, "a retry policy failed");
                }
            }
        }
        Meaning { class: retry::class_of(failed.ending), not_before: failed.retry_after }
    }
}

fn understood(said: shown::Meaning, asked: Option<Millis>) -> Meaning {
    let (class, wanted) = match said {
        shown::Meaning::Permanent => (Class::Permanent, None),
        shown::Meaning::Temporary(wanted) => (Class::Temporary, wanted.map(Millis)),
        shown::Meaning::Elsewhere => (Class::Elsewhere, None),
        shown::Meaning::RunNow => (Class::RunNow, None),
        shown::Meaning::NoRoom => (Class::NoRoom, None),
        shown::Meaning::NotSold => (Class::NotSold, None),
        shown::Meaning::Exhausted => (Class::Exhausted, None),
    };
    // None is less than any time.
    Meaning { class, not_before: asked.max(wanted) }
}

fn shown_attempt<'a>(failed: &Failed<'a>, now: Timestamp) -> shown::Attempt<'a> {
    let sale = failed.sale;
    shown::Attempt {
        backend: sale.backend.as_str(),
        endpoint: sale.endpoint.as_str(),
        model: sale.model.as_str(),
        offer: sale.offer.as_str(),
        mode: match failed.mode {
            Mode::Realtime => shown::Mode::Realtime,
            Mode::Background => shown::Mode::Background,
            Mode::Batch => shown::Mode::Batch,
            Mode::Engine => shown::Mode::Engine,
        },
        ending: match failed.ending {
            Ending::Answered { status } => shown::Ending::Answered(*status),
            Ending::Failed { ran, code, message } => shown::Ending::Failed(shown::Failure {
                ran: match ran {
                    DidItRun::NotSent => shown::DidItRun::NotSent,
                    DidItRun::Refused => shown::DidItRun::Refused,
                    DidItRun::Unknown => shown::DidItRun::Unknown,
                    DidItRun::Ran => shown::DidItRun::Ran,
                },
                code,
                message,
            }),
        },
        body: failed.body.get(..BODY_MAX).unwrap_or(failed.body),
        attempts: failed.attempts.into(),
        retry_after_ms: failed.retry_after.map(|asked| asked.0),
        left_ms: failed.deadline.since(now).0,
    }
}
