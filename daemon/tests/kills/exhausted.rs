//! What the program does where it cannot write.

use crate::KEY;
use crate::daemon::Daemon;

/// A folder that nobody can write to, root included.
#[test]
fn a_folder_that_cannot_be_written_to_is_said_at_once() {
    offpeak::upstream::install_crypto();
    let folder = tempfile::tempdir().unwrap();
    let daemon = Daemon::new(folder.path(), "http://127.0.0.1:9", KEY, "");
    let data = format!("store.folder = \"{}/data\"", folder.path().display());
    daemon.reconfigure(|text| text.replace(&data, "store.folder = \"/proc/offpeak\""));
    assert_eq!(daemon.fails_to_start().code(), Some(64));
    assert_eq!(daemon.says("offpeak cannot start: the store could not be opened"), 1);
}
