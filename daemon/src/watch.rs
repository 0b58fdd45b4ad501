//! Looks at the files of plugins from time to time, and has a changed one taken into use.
//!
//! Looking is size and time of change, which works on every file system. A file that is being written is left alone until it has
//! looked the same twice. What cannot be loaded changes nothing, is told in the log, and is not tried again before it changes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use crate::config::{self, PluginSource};
use crate::gateway::Gateway;

/// What tells a file from what it was before, without reading it. None if there is no file now.
type Look = Option<(u64, SystemTime)>;

/// Files, and how they looked.
type Sight = Vec<(PathBuf, Look)>;

/// While it is not wanted, a configuration that was read again may want it after this time.
const ASKED_EVERY: Duration = Duration::from_secs(1);

/// Decides when there is something to take into use.
struct Watcher {
    /// What was taken into use, or tried.
    taken: Sight,
    /// What was seen last.
    before: Sight,
}

impl Watcher {
    fn new(sight: Sight) -> Self {
        Self { taken: sight.clone(), before: sight }
    }

    /// Whether what is seen now is to be taken into use: it is something new, nothing is missing, and nothing has moved since
    /// it was looked at before.
    fn sees(&mut self, now: Sight) -> bool {
        let is_still = now == self.before;
        self.before = now;
        let is_whole = self.before.iter().all(|(_, look)| look.is_some());
        let is_new = is_still && is_whole && self.before != self.taken;
        if is_new {
            self.taken.clone_from(&self.before);
        }
        is_new
    }
}

/// Looks as often as the configuration in use says, until the daemon stops.
pub async fn run(gateway: Arc<Gateway>) {
    let (mut pause, named) = wanted(&gateway).await;
    let mut watcher = Watcher::new(look(named).await);
    loop {
        tokio::select! {
            biased;
            () = gateway.stopping.cancelled() => return,
            () = tokio::time::sleep(pause.unwrap_or(ASKED_EVERY)) => {}
        }
        let (now, named) = wanted(&gateway).await;
        if pause.is_none() && now.is_some() {
            // Nobody has looked until now: what stands there is loaded anew, which changes nothing where nothing has changed.
            watcher = Watcher::new(Sight::new());
        }
        pause = now;
        if pause.is_none() || !watcher.sees(look(named).await) {
            continue;
        }
        match gateway.reload_plugins(None).await {
            Ok(reloaded) => {
                let changed = reloaded.iter().filter(|told| told.changed).count();
                tracing::info!(changed, "files of plugins have changed; they were loaded anew");
            }
            Err(error) => {
                tracing::error!(
                    %error,
                    "files of plugins have changed, and cannot be taken into use: nothing has changed, and the plugins that \
                     were at work go on"
                );
            }
        }
    }
}

/// How often the configuration in use has its files looked at, and which they are.
async fn wanted(gateway: &Gateway) -> (Option<Duration>, Vec<PathBuf>) {
    let chosen = gateway.plugins.chosen.lock().await;
    (chosen.watch, files(&chosen))
}

/// The files that the configuration names, each once.
fn files(plugins: &config::Plugins) -> Vec<PathBuf> {
    let routers = plugins.routers.iter().map(|named| &named.router.source);
    let policies = [&plugins.router.source, &plugins.retry_policy.source, &plugins.cost_policy.source];
    let providers = plugins.providers.iter().map(|provider| &provider.source);
    let sources = routers.chain(policies).chain(providers);
    let mut files: Vec<_> = sources
        .filter_map(|source| match source {
            PluginSource::Bundled => None,
            PluginSource::File(path) => Some(path.clone()),
        })
        .collect();
    files.sort();
    files.dedup();
    files
}

async fn look(files: Vec<PathBuf>) -> Sight {
    let look = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        Some((found.len(), found.modified().ok()?))
    };
    let looked = tokio::task::spawn_blocking(move || {
        files.into_iter().map(|path| (look(&path), path)).map(|(look, path)| (path, look)).collect()
    });
    looked.await.unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sight(looks: &[(&str, Option<u64>)]) -> Sight {
        let look = |bytes: u64| (bytes, SystemTime::UNIX_EPOCH + Duration::from_secs(bytes));
        looks.iter().map(|(path, bytes)| (PathBuf::from(path), bytes.map(look))).collect()
    }

    #[test]
    fn a_change_is_taken_once_it_stands_still() {
        let mut watcher = Watcher::new(sight(&[("a", Some(1)), ("b", Some(1))]));
        assert!(!watcher.sees(sight(&[("a", Some(1)), ("b", Some(1))])), "nothing is new");
        assert!(!watcher.sees(sight(&[("a", Some(2)), ("b", Some(1))])), "it may still be written");
        assert!(!watcher.sees(sight(&[("a", Some(3)), ("b", Some(1))])), "it is");
        assert!(watcher.sees(sight(&[("a", Some(3)), ("b", Some(1))])));
        assert!(!watcher.sees(sight(&[("a", Some(3)), ("b", Some(1))])), "once, whatever came of it");
    }

    #[test]
    fn a_file_that_is_missing_is_waited_for() {
        let mut watcher = Watcher::new(sight(&[("a", Some(1))]));
        for _ in 0..3 {
            assert!(!watcher.sees(sight(&[("a", None)])));
        }
        assert!(!watcher.sees(sight(&[("a", Some(1))])), "it came back as it was");
        assert!(!watcher.sees(sight(&[("a", Some(1))])));
    }
}
