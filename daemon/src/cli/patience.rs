//! Asking again while the daemon is away: it may be restarting, and a laptop may have lost its network for a while.

use std::time::{Duration, Instant};

use crate::cli::failure::Failure;
use crate::cli::screen::Screen;

/// So long without an answer, and the command ends; the same command goes on from there.
const LIMIT: Duration = Duration::from_hours(1);
/// Before the first new try; each further wait is twice as long.
const FIRST_WAIT: Duration = Duration::from_millis(500);
/// No wait that the daemon did not ask for is longer.
const LONGEST_WAIT: Duration = Duration::from_secs(20);

/// Makes a call until it is answered, or refused for good, or the patience is at its end.
pub(crate) async fn persist<T>(
    screen: &Screen,
    mut call: impl AsyncFnMut() -> Result<T, Failure>,
) -> Result<T, Failure> {
    let mut lost: Option<Instant> = None;
    let mut tries = 0;
    loop {
        let failure = match call().await {
            Ok(done) => {
                if lost.is_some() {
                    screen.warn("the daemon answers again");
                }
                return Ok(done);
            }
            Err(failure) => failure,
        };
        let Failure::Call(error) = &failure else { return Err(failure) };
        let wait = wait(tries, error.retry_after());
        let since = *lost.get_or_insert_with(Instant::now);
        if !error.is_passing() || since.elapsed() + wait > LIMIT {
            return Err(failure);
        }
        if tries == 0 {
            screen.warn(&format!("{error}; trying again"));
        }
        tries += 1;
        tokio::time::sleep(wait).await;
    }
}

/// How long to wait after so many tries.
fn wait(tries: u32, asked: Option<Duration>) -> Duration {
    let own = FIRST_WAIT.saturating_mul(2_u32.saturating_pow(tries)).min(LONGEST_WAIT);
    own.max(asked.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_grow_to_a_bound_and_heed_the_daemon() {
        assert_eq!(wait(0, None), FIRST_WAIT);
        assert_eq!(wait(2, None), FIRST_WAIT * 4);
        assert_eq!(wait(40, None), LONGEST_WAIT);
        assert_eq!(wait(0, Some(Duration::from_secs(40))), Duration::from_secs(40));
        assert_eq!(wait(3, Some(Duration::from_millis(1))), FIRST_WAIT * 8);
    }
}
