//! Budgets of tenants: what is set aside for calls under way, and what the ledger says is spent.

use std::sync::Arc;

use http::StatusCode;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use offpeak_core::budget::{Allowance, Budget, Over, Period, Told};
use offpeak_core::money::Money;
use offpeak_core::scheduler::Funds;
use offpeak_core::words::{TenantId, Timestamp};
use parking_lot::Mutex;

use crate::alerts::{Alert, Alerts};
use crate::reply::Refusal;

/// The budget of one tenant. The lock is held for a few additions.
pub struct Purse {
    tenant: TenantId,
    budget: Mutex<Budget>,
    alerts: Alerts,
}

/// Money set aside for a call. Settled with what the call cost, or given back as it is dropped.
pub struct Reservation {
    purse: Arc<Purse>,
    amount: Money,
}

impl Purse {
    /// Nothing is spent. None without a limit.
    pub fn new(tenant: TenantId, allowance: Allowance, alerts: Alerts) -> Option<Arc<Self>> {
        let has_limit = allowance.day.is_some() || allowance.month.is_some();
        has_limit.then(|| Arc::new(Self { tenant, budget: Mutex::new(Budget::new(allowance)), alerts }))
    }

    /// What the ledger says was spent in the present period.
    pub fn remember(&self, period: Period, spent: Money, now: Timestamp) {
        self.budget.lock().remember(period, spent, now);
    }

    /// Sets money aside.
    pub fn reserve(self: &Arc<Self>, amount: Money, now: Timestamp) -> Result<Reservation, Refusal> {
        self.budget.lock().reserve(amount, now).map_err(|over| refused(over, now))?;
        Ok(Reservation { purse: self.clone(), amount })
    }

    /// Money was spent for which none was set aside.
    pub fn spend(&self, amount: Money, now: Timestamp) {
        let told = self.budget.lock().spend(amount, now);
        self.tell(&told);
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
        self.purse.budget.lock().release(self.amount);
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
        let purse = Purse::new("t".into(), allowance, Alerts::none()).unwrap();
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
        assert!(Purse::new("t".into(), Allowance::default(), Alerts::none()).is_none());
    }
}
