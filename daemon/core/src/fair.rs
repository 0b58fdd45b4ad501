//! Whose turn it is: tenants that share a backend get their share of it, by weight, counted in tokens.
//!
//! Start-time fair queueing: each tenant has a clock that runs on by what it was given, divided by its weight, and the one
//! with the slowest clock is next. Who was idle does not save up: its clock is set to where the others are.

use std::collections::BTreeMap;

use crate::words::TenantId;

/// The weight of a tenant of which nothing else is said.
pub const USUAL_WEIGHT: u32 = 100;

/// What everybody was given.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Shares {
    clocks: BTreeMap<TenantId, u64>,
    /// The clock of whoever's turn it was last.
    now: u64,
}

impl Shares {
    /// Where a tenant's clock stands. The smaller, the sooner it is its turn.
    #[must_use]
    pub fn clock(&self, tenant: &TenantId) -> u64 {
        self.clocks.get(tenant).copied().unwrap_or(0).max(self.now)
    }

    /// Whose turn it is among those that want something.
    pub fn next<'a>(&mut self, among: impl Iterator<Item = &'a TenantId>) -> Option<&'a TenantId> {
        let (clock, next) = among.map(|tenant| (self.clock(tenant), tenant)).min()?;
        self.now = clock;
        self.clocks.retain(|_, other| *other > clock);
        Some(next)
    }

    /// A tenant was given something of this cost.
    pub fn give(&mut self, tenant: &TenantId, cost: u64, weight: u32) {
        let by = cost.max(1).saturating_mul(u64::from(USUAL_WEIGHT)) / u64::from(weight.max(1));
        self.clocks.insert(tenant.clone(), self.clock(tenant).saturating_add(by.max(1)));
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tenant(n: usize) -> TenantId {
        format!("t{n}").into()
    }

    fn next(shares: &mut Shares, among: &[usize]) -> usize {
        let tenants: Vec<TenantId> = among.iter().map(|n| tenant(*n)).collect();
        let next = shares.next(tenants.iter()).unwrap();
        among[tenants.iter().position(|tenant| tenant == next).unwrap()]
    }

    #[test]
    fn a_crowd_does_not_delay_a_few() {
        let mut shares = Shares::default();
        for _ in 0..1_000 {
            next(&mut shares, &[0]);
            shares.give(&tenant(0), 500, USUAL_WEIGHT);
        }
        // The newcomer is served in turn from the first moment, and has no credit from the time it was away.
        let served: Vec<usize> = (0..6)
            .map(|_| {
                let n = next(&mut shares, &[0, 1]);
                shares.give(&tenant(n), 500, USUAL_WEIGHT);
                n
            })
            .collect();
        assert_eq!(served.iter().filter(|n| **n == 1).count(), 3, "{served:?}");
    }

    proptest! {
        /// Tenants that always want more get what their weights say, within one helping each, whatever the helpings are.
        #[test]
        fn shares_follow_weights(
            weights in prop::collection::vec(1_u32..1000, 2..6),
            costs in prop::collection::vec(1_u64..5_000, 200..400),
        ) {
            let mut shares = Shares::default();
            let all: Vec<usize> = (0..weights.len()).collect();
            let mut given = vec![0_u64; weights.len()];
            for cost in costs {
                let n = next(&mut shares, &all);
                shares.give(&tenant(n), cost, weights[n]);
                given[n] += cost;
            }
            for a in &all {
                for b in &all {
                    let of = |n: usize| given[n] * u64::from(USUAL_WEIGHT) / u64::from(weights[n]);
                    let helping = |n: usize| 5_000 * u64::from(USUAL_WEIGHT) / u64::from(weights[n]) + 400;
                    prop_assert!(of(*a) <= of(*b) + helping(*a) + helping(*b), "{given:?}");
                }
            }
        }

        /// Whoever comes late waits for at most one helping of each of the others.
        #[test]
        fn nobody_waits_long(costs in prop::collection::vec((0_usize..4, 1_u64..5_000), 0..200)) {
            let mut shares = Shares::default();
            for (n, cost) in costs {
                let n = next(&mut shares, &[n, (n + 1) % 4]);
                shares.give(&tenant(n), cost, USUAL_WEIGHT);
            }
            let late = 9;
            for waited in 0..5 {
                let n = next(&mut shares, &[0, 1, 2, 3, late]);
                if n == late {
                    break;
                }
                shares.give(&tenant(n), 5_000, USUAL_WEIGHT);
                prop_assert!(waited < 4);
            }
        }
    }
}
