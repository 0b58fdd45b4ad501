//! A data folder that nobody can write to for half an hour, while the daemon runs and is asked.

use std::path::Path;

use fault_simulation::{Plugins, unwritable};

#[test]
fn while_nothing_can_be_written_real_time_goes_on_and_the_rest_comes_back_by_itself() {
    let violations = unwritable(&plugins()).unwrap();
    assert_eq!(violations, Vec::<String>::new());
}

/// Compiled once for all tests.
fn plugins() -> Plugins {
    Plugins::kept_in(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins")).unwrap()
}
