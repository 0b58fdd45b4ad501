//! A data folder that nobody can write to for half an hour, while the daemon runs and is asked.

mod common;

use fault_simulation::unwritable;

#[test]
fn while_nothing_can_be_written_real_time_goes_on_and_the_rest_comes_back_by_itself() {
    let violations = unwritable(&common::plugins().unwrap()).unwrap();
    assert_eq!(violations, Vec::<String>::new());
}
