//! Each call to the provider as a crash point: the daemon dies just before it has its effect, or just after, and comes back.

mod common;

use fault_simulation::{Crash, run_crash};

/// A batch of files takes so many calls at least: upload, creation, a look, results, two deletions. A message batch has no
/// files, but a look at what was there before.
const CALLS_AT_LEAST: [u64; 2] = [6, 4];

/// What is uploaded before a crash is found after it and used: each batch has one file, whatever comes between the upload
/// and the creation, and in the end none is left.
#[test]
fn a_crash_at_any_call_leaves_one_batch_one_answer_each_and_no_file() {
    let plugins = common::plugins().unwrap();
    for (of_messages, least) in [false, true].into_iter().zip(CALLS_AT_LEAST) {
        for (is_before, loses_power) in [(false, false), (true, false), (false, true), (true, true)] {
            for call in 1.. {
                let crash = Crash { of_messages, call, is_before, loses_power };
                let outcome = run_crash(&crash, &plugins, false);
                assert!(outcome.violations.is_empty(), "{crash:?}: {:#?}", outcome.violations);
                let count = |what: &str| outcome.counts.get(what).copied().unwrap_or(0);
                let batches = count("(batches at the provider)");
                let uploads = if of_messages { 0 } else { batches };
                assert!(batches > 0, "{crash:?}: {:#?}", outcome.counts);
                assert_eq!(count("(files uploaded)"), uploads, "{crash:?}: {:#?}", outcome.counts);
                assert_eq!(count("(files left at the provider)"), 0, "{crash:?}");
                if !outcome.counts.keys().any(|what| what.starts_with("daemon: dies")) {
                    // There are no more calls than that.
                    assert!(call > least, "{crash:?}");
                    break;
                }
            }
        }
    }
}
