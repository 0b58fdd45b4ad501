//! What things cost: the price book, the cost policy, and the ledger.
//!
//! An outcome of deferred work is charged where it is recorded, and its entry goes into the same commit. A real-time
//! answer is charged after it has passed: [`meter`] reads what the provider counted from the bytes on their way, and the
//! [`ledger`]'s task prices and writes many at a time.

pub mod book;
pub mod calibrations;
pub mod ledger;
pub mod meter;
pub mod policy;
pub mod report;
pub mod usage;

use std::sync::{Arc, OnceLock};

use offpeak_core::calibrate::Learnt;
use offpeak_core::money::Money;
use offpeak_core::outcome::DidItRun;
use offpeak_core::usage::Usage;
use offpeak_core::words::{BackendId, Endpoint, Mode, ModelId, OfferName, TenantId};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

pub use calibrations::Calibrations;
pub use ledger::{Entry, Ledger};
pub use policy::Costs;

/// What was bought, and where: what outcomes of one kind have in common.
#[derive(Debug)]
pub struct Sale {
    /// The backend.
    pub backend: BackendId,
    /// Its provider plugin, by which prices are found.
    pub provider: String,
    /// What was called.
    pub endpoint: Endpoint,
    /// The model.
    pub model: ModelId,
    /// The offer.
    pub offer: OfferName,
    /// Its mode.
    pub mode: Mode,
    /// Its price in thousandths of the standard one.
    pub permille: u32,
    /// What its answers usually take.
    pub learnt: Arc<Learnt>,
    /// What a token of input and of output costs, roughly: by the book as it was when it was first asked.
    pub rough: OnceLock<(Money, Money)>,
    /// Whether the policy has a price for it, and of which prices that was said.
    pub priced: Mutex<Option<(u64, bool)>>,
}

/// Why a request was sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Purpose {
    /// For the first time.
    First,
    /// Again, after an attempt that failed.
    Retry,
    /// In real time, because a batch would have been too late.
    Rescue,
}

impl Purpose {
    /// The word as users see it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::First => "first",
            Self::Retry => "retry",
            Self::Rescue => "rescue",
        }
    }
}

/// What is known of an attempt before it is priced.
#[derive(Debug, Clone)]
pub struct Taken {
    /// Whose request it was.
    pub tenant: TenantId,
    /// Why it was sent.
    pub purpose: Purpose,
    /// Whether it ran.
    pub ran: DidItRun,
    /// The answer's status; none if there was no answer.
    pub status: Option<u16>,
    /// The tier that the provider says it charged.
    pub tier: Option<String>,
    /// What was counted, or estimated.
    pub usage: Option<Usage>,
    /// The provider did not tell; this is reckoned.
    pub estimated: bool,
    /// Nobody gets the answer.
    pub wasted: bool,
    /// The time that it took of an engine.
    pub took: Took,
}

/// The time that a request took, and with how many it shared it: what an instance's price is divided by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Took {
    /// How long it took.
    pub ms: u64,
    /// Requests that ran at once, on average, this one included; 1 where that is not known.
    pub together: u32,
}

impl Took {
    /// Where nobody counts time.
    pub const NO_TIME: Self = Self { ms: 0, together: 1 };

    /// So long, with so many at once.
    pub fn new(took: std::time::Duration, together: u64) -> Self {
        let ms = u64::try_from(took.as_millis()).unwrap_or(u64::MAX);
        Self { ms, together: u32::try_from(together).unwrap_or(u32::MAX).max(1) }
    }
}

/// What an attempt cost.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Charge {
    /// Who pays.
    pub tenant: TenantId,
    /// What the provider charges.
    pub cost: Money,
    /// What it would have been in real time.
    pub realtime: Money,
    /// There is a price for it.
    pub priced: bool,
}

/// A sale that outcomes share.
pub type SharedSale = Arc<Sale>;
