//! Looking at a job until it has ended.

use std::time::{Duration, Instant};

use crate::cli::client::Client;
use crate::cli::failure::Failure;
use crate::cli::pace::Pace;
use crate::cli::patience::persist;
use crate::cli::screen::Screen;
use crate::cli::wire::Job;
use crate::clock::Clock;

/// The shortest time between two looks, at the beginning.
const SHORTEST: Duration = Duration::from_millis(250);
/// The longest; a job of a day needs no closer look.
const LONGEST: Duration = Duration::from_secs(10);

/// Looks at `job` until it has ended; returns it as it is then, or none if it is gone.
pub(crate) async fn watch(client: &Client, job: Job, screen: &Screen) -> Result<Option<Job>, Failure> {
    let begun = Instant::now();
    let mut pace = Pace::default();
    let mut job = job;
    screen.begin_watch();
    loop {
        pace.observe(Instant::now(), job.counts().finished());
        screen.show(&job, &pace, Clock::System.now().0 / 1000);
        if job.status.is_final() {
            return Ok(Some(job));
        }
        tokio::time::sleep(between_looks(begun.elapsed())).await;
        match persist(screen, async || Ok(client.job(&job.id).await?)).await? {
            Some(now) => job = now,
            None => return Ok(None),
        }
    }
}

/// The longer it takes, the less often is looked.
fn between_looks(watched: Duration) -> Duration {
    (watched / 20).clamp(SHORTEST, LONGEST)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_become_rarer() {
        assert_eq!(between_looks(Duration::ZERO), SHORTEST);
        assert_eq!(between_looks(Duration::from_mins(1)), Duration::from_secs(3));
        assert_eq!(between_looks(Duration::from_hours(3)), LONGEST);
    }
}
