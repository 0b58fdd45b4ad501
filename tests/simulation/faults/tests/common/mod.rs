//! What all of these tests begin with.

use std::path::Path;

use fault_simulation::{Plugins, PluginsError};

/// The bundled plugins, compiled once for all tests.
pub(crate) fn plugins() -> Result<Plugins, PluginsError> {
    Plugins::kept_in(&Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins"))
}
