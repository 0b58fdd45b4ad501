//! The checks notice what they are there for: each promise is broken once, and the check of it says so.

mod common;

use fault_simulation::{Tampering, run_tampered};

#[test]
fn each_broken_promise_is_noticed() {
    let plugins = common::plugins().unwrap();
    assert_eq!(run_tampered(None, &plugins).violations, Vec::<String>::new());
    for (tampering, noticed) in Tampering::ALL {
        let outcome = run_tampered(Some(tampering), &plugins);
        let says_so = outcome.violations.iter().any(|violation| violation.contains(noticed));
        assert!(says_so, "{tampering:?}: {:#?}", outcome.violations);
    }
}
