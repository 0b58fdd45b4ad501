//! What jobs cost.

use std::ops::AddAssign;

use offpeak_core::money::Money;
use offpeak_core::words::TenantId;
use offpeak_store::Kind;
use serde::{Deserialize, Serialize};

use super::{Job, Kept};

/// What some answers cost, as the ledger has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Spent {
    /// What the provider charges.
    pub cost: Money,
    /// What it would have been in real time.
    pub realtime: Money,
    /// Answers whose price nobody knows; they are not in the amounts.
    pub unpriced: u64,
}

impl AddAssign for Spent {
    fn add_assign(&mut self, other: Self) {
        self.cost += other.cost;
        self.realtime += other.realtime;
        self.unpriced += other.unpriced;
    }
}

/// What a job cost that has ended. A document of its own beside the job: what was written before there were such is read as
/// ever.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobCost {
    tenant: TenantId,
    number: u64,
    /// In sum.
    pub spent: Spent,
}

impl JobCost {
    /// Of a job.
    pub fn of(job: &Job, spent: Spent) -> Self {
        Self { tenant: job.tenant.clone(), number: job.number, spent }
    }
}

impl Kept for JobCost {
    const KIND: Kind = Kind::JobCost;

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn number(&self) -> u64 {
        self.number
    }
}
