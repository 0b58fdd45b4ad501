//! Seeds that every run of the tests plays, and those that once found something.

use std::sync::atomic::{AtomicU64, Ordering};

use fault_simulation::{Plugins, run};

/// How many seeds where nobody says otherwise.
const SEEDS: u64 = 120;

/// How many of them are played twice, to see that nothing depends on anything but the seed.
const TWICE: u64 = 8;

/// Seeds that found something, with what it was. They stay.
const FOUND: [(u64, &str); 1] = [(
    106,
    "the file of a message batch was removed when the store failed, and the job was there after a restart",
)];

#[test]
fn seeds_break_no_promise() {
    let seeds: u64 = std::env::var("OFFPEAK_SEEDS").ok().map_or(SEEDS, |text| text.parse().unwrap());
    let plugins = Plugins::new().unwrap();
    let next = AtomicU64::new(0);
    let play = || {
        let mut broken = Vec::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return broken;
            }
            let outcome = run(seed, &plugins, false);
            if !outcome.violations.is_empty() {
                broken.push(format!("{outcome:#?}\nreplay: {}", outcome.replay()));
            }
        }
    };
    let broken: Vec<String> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(play)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(broken.is_empty(), "{}", broken.join("\n"));
}

#[test]
fn seeds_that_found_something_stay_mended() {
    let plugins = Plugins::new().unwrap();
    for (seed, what) in FOUND {
        let outcome = run(seed, &plugins, false);
        assert!(outcome.violations.is_empty(), "{what}: {outcome:#?}\nreplay: {}", outcome.replay());
    }
}

#[test]
fn a_run_depends_on_nothing_but_its_seed() {
    let plugins = Plugins::new().unwrap();
    for seed in 1000..1000 + TWICE {
        let (first, second) = (run(seed, &plugins, false), run(seed, &plugins, false));
        assert_eq!(first.hash, second.hash, "seed {seed}");
    }
}
