//! Seeds that every run of the tests plays, and those that once found something.

mod common;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};

use fault_simulation::{FAULTS, Outcome, run};

/// How many seeds where nobody says otherwise.
const SEEDS: u64 = 2000;

/// With so many, each kind of fault must have occurred.
const ENOUGH: u64 = 400;

/// How many of them are played twice, to see that nothing depends on anything but the seed.
const TWICE: u64 = 8;

/// Seeds that found something, with what it was. They stay.
const FOUND: [(u64, &str); 13] = [
    (
        106,
        "the file of a message batch was removed when the store failed, and the job was there after a restart",
    ),
    (152, "a job's window was over while its line was tried in real time, and those tries were on no record"),
    (
        261,
        "results that can never be read are an error at once, which was taken for one that nothing explains",
    ),
    (293, "the same, of a held call"),
    (303, "the same, of several"),
    (432, "our own batch was taken for another's, and made again"),
    (443, "the same"),
    (587, "an error because of results that can never be read"),
    (724, "the same"),
    (968, "our own batch was taken for another's because of a stray line"),
    (1502, "answers missing from a stopped batch's results were taken for requests that it did not run"),
    (2186, "an error because of results that can never be read, under the name that it has on record"),
    (14679, "a batch answered between two tries of a rescue, and those tries were on no record"),
];

#[test]
fn seeds_break_no_promise_and_have_every_kind_of_fault() {
    let seeds: u64 = std::env::var("OFFPEAK_SEEDS").ok().map_or(SEEDS, |text| text.parse().unwrap());
    let plugins = common::plugins().unwrap();
    let next = AtomicU64::new(0);
    let play = || {
        let mut broken = Vec::new();
        let mut counts = BTreeMap::new();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed >= seeds {
                return (broken, counts);
            }
            let outcome = run(seed, &plugins, false);
            for (what, times) in &outcome.counts {
                *counts.entry(*what).or_insert(0) += times;
            }
            if !outcome.violations.is_empty() {
                broken.push(complaint(&outcome));
            }
        }
    };
    let played: Vec<(Vec<String>, BTreeMap<&str, u64>)> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..2).map(|_| scope.spawn(play)).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let broken: Vec<&str> = played.iter().flat_map(|(broken, _)| broken).map(String::as_str).collect();
    assert!(broken.is_empty(), "{} seeds of {seeds}:\n{}", broken.len(), broken.join("\n"));
    let occurred = |what: &str| played.iter().any(|(_, counts)| counts.contains_key(what));
    let missing: Vec<&&str> = FAULTS.iter().filter(|what| !occurred(what)).collect();
    assert!(seeds < ENOUGH || missing.is_empty(), "never in {seeds} seeds: {missing:?}");
}

#[test]
fn seeds_that_found_something_stay_mended() {
    let plugins = common::plugins().unwrap();
    for (seed, what) in FOUND {
        let outcome = run(seed, &plugins, false);
        assert!(outcome.violations.is_empty(), "{what}: {}", complaint(&outcome));
    }
}

#[test]
fn a_run_depends_on_nothing_but_its_seed() {
    let plugins = common::plugins().unwrap();
    for seed in 1000..1000 + TWICE {
        let (first, second) = (run(seed, &plugins, false), run(seed, &plugins, false));
        assert_eq!(first.hash, second.hash, "seed {seed}: {}", first.replay());
    }
}

fn complaint(outcome: &Outcome) -> String {
    let few: Vec<&str> = outcome.violations.iter().take(5).map(String::as_str).collect();
    format!("seed {}:\n  {}\n  replay: {}", outcome.seed, few.join("\n  "), outcome.replay())
}
