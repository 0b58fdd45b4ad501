//! Tests of what belongs to a whole process, its environment and its log: such a test runs itself again, alone in a process
//! of its own.

use std::ffi::OsStr;
use std::process::Command;

/// Tells the test that it runs in a process of its own.
const MARK: &str = "BLACKBOX_AGAIN";

/// True in the process that [`run`] has started.
pub(crate) fn is_here() -> bool {
    std::env::var_os(MARK).is_some()
}

/// Runs the test of this name with these variables; it must pass. Returns what was written on standard error.
pub(crate) fn run<V: AsRef<OsStr>>(test: &str, variables: &[(&str, V)]) -> String {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args([test, "--exact", "--nocapture"]).env(MARK, "1");
    command.envs(variables.iter().map(|(name, value)| (name, value.as_ref())));
    let done = command.output().unwrap();
    let (said, log) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && said.contains("1 passed"), "{test} by itself: {said}\n{log}");
    log.into_owned()
}
