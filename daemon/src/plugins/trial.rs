//! An ordinary call of a plugin that is to come in another's place, before it does.

use offpeak_host::{AnyPlugin, PluginErrorKind};

use super::{LoadError, sample};

/// Whether a plugin that is to come in the place of `at_work` (or is new) bears an ordinary call: one that breaks at what all
/// its calls are like is not let in. The one at work is not tried: it works, or is known not to.
pub fn run<P: AnyPlugin>(
    fresh: &P,
    at_work: Option<&P>,
    function: &'static str,
    call: impl FnOnce(&P) -> sample::Said,
) -> Result<(), LoadError> {
    if at_work.is_some_and(|at_work| fresh.is_like(at_work)) {
        return Ok(());
    }
    match call(fresh) {
        Err(error) if is_broken(&error.kind) => {
            Err(LoadError::Crashes { asked: sample::asked(function), error })
        }
        Ok(_) => Ok(()),
        Err(error) => {
            let asked = sample::asked(function);
            tracing::warn!(plugin = %error.plugin, asked, %error, "a plugin is taken into use although it failed at an ordinary call");
            Ok(())
        }
    }
}

/// What it answers may be wrong for an ordinary call alone, and how long it takes is another matter on a busy machine.
const fn is_broken(kind: &PluginErrorKind) -> bool {
    matches!(
        kind,
        PluginErrorKind::Trap { .. } | PluginErrorKind::OutOfMemory { .. } | PluginErrorKind::CannotStart(_)
    )
}
