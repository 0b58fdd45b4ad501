//! Budgets of tenants: what is set aside for calls under way, and what the ledger says is spent.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use offpeak_core::budget::{Allowance, Budget, Over, Period, Told};
use offpeak_core::money::Money;
use offpeak_core::scheduler::Funds;
use offpeak_core::words::{TenantId, Timestamp};
use parking_lot::Mutex;

use crate::alerts::{Alert, Alerts};
use crate::reply::Refusal;

/// The budget of one tenant. Each has one, as long as the daemon runs, whether there is a limit or not: so a limit that comes
/// or changes finds what was spent and what is under way. The lock is held for a few additions.
pub struct Purse {
    tenant: TenantId,
    budget: Mutex<Budget>,
    /// There is a limit. Without one nothing is set aside.
    is_limited: AtomicBool,
    alerts: Alerts,
    /// From when it counts.
    since: Timestamp,
    /// What the ledger has from before that is in it.
    is_remembered: AtomicBool,
}

/// What was spent in a period before a purse began to count.
#[derive(Debug, Clone, Copy)]
pub struct Before {
    /// The present one of these.
    pub period: Period,
    /// By the ledger.
    pub spent: Money,
    /// The largest share that was told of, in percent.
    pub told: u8,
}

/// Money set aside for a call. Settled with what the call cost, or given back as it is dropped.
pub struct Reservation {
    purse: Arc<Purse>,
    amount: Money,
}

impl Purse {
    /// Nothing is spent, and nothing is limited.
    pub fn new(tenant: TenantId, alerts: Alerts, now: Timestamp) -> Arc<Self> {
        Arc::new(Self {
            tenant,
            budget: Mutex::default(),
            is_limited: AtomicBool::new(false),
            alerts,
            since: now,
            is_remembered: AtomicBool::new(false),
        })
    }

    /// Whose it is.
    pub const fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    /// From when it counts.
    pub const fn since(&self) -> Timestamp {
        self.since
    }

    /// It has what was spent before it began to count.
    pub fn is_remembered(&self) -> bool {
        self.is_remembered.load(Ordering::Acquire)
    }

    /// There is a limit.
    pub fn is_limited(&self) -> bool {
        self.is_limited.load(Ordering::Acquire)
    }

    /// What was spent before it began to count, once and for all.
    pub fn remember(&self, before: &[Before], now: Timestamp) {
        let mut budget = self.budget.lock();
        if !self.is_remembered.swap(true, Ordering::AcqRel) {
            for before in before {
                budget.remember(before.period, before.spent, before.told, now);
            }
        }
    }

    /// From now on so much may be spent.
    pub fn set(&self, allowance: Allowance, now: Timestamp) {
        let is_limited = allowance.day.is_some() || allowance.month.is_some();
        let mut budget = self.budget.lock();
        self.is_limited.store(is_limited, Ordering::Release);
        self.tell(&budget.set(allowance, now));
    }

    /// Sets money aside.
    pub fn reserve(self: &Arc<Self>, amount: Money, now: Timestamp) -> Result<Reservation, Refusal> {
        let purse = self.clone();
        if !self.is_limited() {
            return Ok(Reservation { purse, amount: Money::ZERO });
        }
        self.budget.lock().reserve(amount, now).map_err(|over| refused(over, now))?;
        Ok(Reservation { purse, amount })
    }

    /// Money was spent for which none was set aside.
    pub fn spend(&self, amount: Money, now: Timestamp) {
        let mut budget = self.budget.lock();
        self.tell(&budget.spend(amount, now));
    }

    /// What deferred work under way will cost.
    pub fn defer(&self, amount: Money) {
        self.budget.lock().defer(amount);
    }

    /// What a hard budget leaves for deferred work.
    pub fn funds(&self, now: Timestamp) -> Option<Funds> {
        self.budget.lock().funds(now).map(|(left, until)| Funds { left, until })
    }

    /// What is spent and allowed in each period.
    pub fn standing(&self, now: Timestamp) -> Vec<(Period, Money, Money)> {
        self.budget.lock().standing(now)
    }

    /// Under the lock, so that a larger share comes after a smaller one.
    fn tell(&self, told: &[Told]) {
        for told in told {
            tracing::warn!(
                tenant = %self.tenant,
                period = told.period.as_str(),
                percent = told.percent,
                spent = %told.spent,
                allowed = %told.allowed,
                "a share of a budget is reached"
            );
            self.alerts.tell(Alert { tenant: self.tenant.clone(), told: *told });
        }
    }
}

impl Reservation {
    /// The call is over and cost this.
    pub fn settle(self, cost: Money, now: Timestamp) {
        self.purse.spend(cost, now);
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if self.amount != Money::ZERO {
            self.purse.budget.lock().release(self.amount);
        }
    }
}

/// OpenAI's API says it so, too. Trying again at once does not help, and SDKs are told that.
fn refused(over: Over, now: Timestamp) -> Refusal {
    let seconds = over.until.since(now).0.div_ceil(1000);
    let message = format!(
        "The tenant's budget for this {} is used up. It begins anew in {seconds} s; offpeak's operator can raise it.",
        over.period.as_str()
    );
    let no_retry = (HeaderName::from_static("x-should-retry"), HeaderValue::from_static("false"));
    let refusal = Refusal::new(StatusCode::TOO_MANY_REQUESTS, "insufficient_quota", message);
    Refusal { headers: Some(Box::new(HeaderMap::from_iter([no_retry]))), ..refusal }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Timestamp = Timestamp(0);

    #[test]
    fn what_is_dropped_is_given_back_and_what_is_settled_is_spent() {
        let allowance = Allowance { day: Some(Money(100)), month: None, is_hard: true };
        let purse = Purse::new("t".into(), Alerts::none(), NOW);
        let unlimited = purse.reserve(Money(1 << 40), NOW).unwrap();
        purse.set(allowance, NOW);
        drop(unlimited);
        let first = purse.reserve(Money(60), NOW).unwrap();
        let refusal = purse.reserve(Money(60), NOW).err().unwrap();
        assert_eq!(
            (refusal.code.as_ref(), refusal.headers.map_or(0, |headers| headers.len())),
            ("insufficient_quota", 1)
        );
        drop(first);
        purse.reserve(Money(60), NOW).unwrap().settle(Money(50), NOW);
        assert!(purse.reserve(Money(51), NOW).is_err());
        assert!(purse.reserve(Money(50), NOW).is_ok());
        assert_eq!(purse.standing(NOW), [(Period::Day, Money(50), Money(100))]);
    }

    #[test]
    fn what_was_before_is_remembered_once() {
        let purse = Purse::new("t".into(), Alerts::none(), NOW);
        purse.spend(Money(10), NOW);
        for _ in 0..2 {
            purse.remember(&[Before { period: Period::Day, spent: Money(5), told: 0 }], NOW);
        }
        purse.set(Allowance { day: Some(Money(100)), month: None, is_hard: true }, NOW);
        assert_eq!(purse.standing(NOW), [(Period::Day, Money(15), Money(100))]);
    }
}
