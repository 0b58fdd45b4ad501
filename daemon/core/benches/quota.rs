//! What a quota's check costs, over many tenants: `cargo bench -p offpeak-core --bench quota`.
//!
//! Each check takes a request and tokens from three rates and a place, and settles them, as a real-time call does.

use std::hint::black_box;
use std::time::Instant;

use offpeak_core::quota::{Demand, Pace, Quota, QuotaLimits};

const TENANTS: usize = 10_000;

/// A test run makes only some.
const CHECKS: [usize; 2] = [10_000, 4_000_000];

fn main() {
    let limits = QuotaLimits {
        requests: Some(Pace::new(1_000_000, 1_000_000)),
        input: Some(Pace::new(900_000_000, 900_000_000)),
        output: Some(Pace::new(900_000_000, 900_000_000)),
        at_once: Some(1000),
    };
    let quotas: Vec<Quota> = std::iter::repeat_with(|| Quota::new(limits)).take(TENANTS).collect();
    let is_bench = std::env::args().any(|argument| argument == "--bench");
    let checks = CHECKS[usize::from(is_bench)];
    let demand = Demand { input: 500, output: 100 };
    let took = Demand { input: 510, output: 80 };
    let started = Instant::now();
    let (mut admitted, mut state) = (0_u64, 0_u64);
    for _ in 0..checks {
        // A walk over all tenants in an order that no cache foresees (Knuth's MMIX generator, of which the high bits are good).
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let tenant = usize::try_from(state >> 33).unwrap_or(0) % TENANTS;
        let now = u64::try_from(started.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let Some(quota) = quotas.get(tenant) else { continue };
        if black_box(quota.take(demand, now)).is_ok() {
            admitted += 1;
            quota.settle(demand, took, now);
        }
    }
    let nanos = started.elapsed().as_nanos() / checks as u128;
    println!(
        "{nanos} ns a check with its settling and the clock, {TENANTS} tenants, {admitted} of {checks} admitted"
    );
}
