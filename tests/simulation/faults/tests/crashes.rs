//! Each call to the provider as a crash point: the daemon dies just before it has its effect, or just after, and comes back.

use std::collections::BTreeMap;

use fault_simulation::{Crash, Outcome, Plugins, run_crash};

/// A batch of files takes so many calls at least: upload, creation, a look, results, two deletions. A message batch has no
/// files, but a look at what was there before.
const CALLS_AT_LEAST: [u64; 2] = [6, 4];

/// A run that breaks no promise; none if there was no such call any more.
fn played(crash: Crash, plugins: &Plugins) -> Option<BTreeMap<&'static str, u64>> {
    let Outcome { violations, counts, .. } = run_crash(&crash, plugins, false);
    assert!(violations.is_empty(), "{crash:?}: {violations:#?}");
    let happened = counts.keys().any(|what| what.starts_with("daemon: dies"));
    happened.then_some(counts)
}

#[test]
fn a_crash_at_any_call_leaves_one_batch_one_answer_each_and_no_file() {
    let plugins = Plugins::new().unwrap();
    for (of_messages, least) in [false, true].into_iter().zip(CALLS_AT_LEAST) {
        for (is_before, loses_power) in [(false, false), (true, false), (false, true), (true, true)] {
            let at = |call| Crash { of_messages, call, is_before, loses_power, are_cancelled: false };
            let mut calls = 0;
            while let Some(counts) = played(at(calls + 1), &plugins) {
                calls += 1;
                assert!(counts["(batches at the provider)"] >= 1);
                assert!(!counts.contains_key("(files left at the provider)"), "{:?}", at(calls));
            }
            assert!(calls >= least, "{:?} was the last", at(calls));
        }
    }
}

/// The file is there, the batch is not, and nobody wants it any more.
#[test]
fn an_upload_that_a_crash_left_without_a_batch_is_cleaned_up() {
    let plugins = Plugins::new().unwrap();
    for loses_power in [false, true] {
        // Between the upload's effect and its answer, and when the batch is about to be created.
        for (call, is_before) in [(1, false), (2, true)] {
            let crash = Crash { of_messages: false, call, is_before, loses_power, are_cancelled: true };
            let counts = played(crash, &plugins).unwrap();
            assert!(!counts.contains_key("(batches at the provider)"), "{crash:?}: {counts:#?}");
            assert!(!counts.contains_key("(files left at the provider)"), "{crash:?}: {counts:#?}");
            assert!(counts["client: cancels"] >= 1, "{crash:?}");
        }
    }
}
