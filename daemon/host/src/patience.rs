//! When a call is over its time: when its thread has worked that long, and not when the machine had no time for its thread.
//!
//! The ticker counts time on the wall, which costs a call nothing. Whether the thread worked is looked at when that time is
//! over, and for what follows it: who loops goes on looping, and an ordinary call is done as soon as it runs.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// So many times at most is a call waited for: a quarter of its limit each time, since whoever shares its thread waits too.
const EXTENSIONS: u32 = 80;

/// A call's time limit, and what was found when it was over.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Patience {
    limit: Duration,
    ticks: u64,
    /// What the thread had worked when the limit was over for the first time.
    worked: Option<Duration>,
    extended: u32,
}

impl Patience {
    /// For a call with this limit, which is so many ticks long.
    pub(crate) const fn new(limit: Duration, ticks: u64) -> Self {
        Self { limit, ticks, worked: None, extended: 0 }
    }

    /// The time is over by the ticker's clock. Says how many ticks more the call gets; none if it is over.
    pub(crate) fn more(&mut self) -> Option<u64> {
        self.more_for(thread_time())
    }

    fn more_for(&mut self, worked: Duration) -> Option<u64> {
        let before = *self.worked.get_or_insert(worked);
        let is_at_work = worked.saturating_sub(before) >= self.limit / 8;
        self.extended += 1;
        (!is_at_work && self.extended <= EXTENSIONS).then_some((self.ticks / 4).max(1))
    }
}

/// What this thread has worked since it began.
pub(crate) fn thread_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    // Neither is ever negative.
    let (seconds, nanos) = (u64::try_from(time.tv_sec), u32::try_from(time.tv_nsec));
    Duration::new(seconds.unwrap_or_default(), nanos.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_millis(50);

    /// How often a call is waited for whose thread works so long each time.
    fn extensions(each_ms: u64) -> u32 {
        let mut patience = Patience::new(LIMIT, 11);
        let mut worked = Duration::from_secs(7);
        (0..100)
            .take_while(|_| {
                let more = patience.more_for(worked);
                worked += Duration::from_millis(each_ms);
                assert!(more.is_none_or(|ticks| ticks == 2));
                more.is_some()
            })
            .count()
            .try_into()
            .unwrap()
    }

    #[test]
    fn who_loops_has_a_quarter_of_its_limit_more_and_who_could_not_run_is_waited_for() {
        assert_eq!(extensions(10), 1);
        assert_eq!(extensions(2), 4, "beside four others");
        assert_eq!(extensions(0), EXTENSIONS, "and not for ever");
    }

    #[test]
    fn a_thread_that_sleeps_does_not_work() {
        let before = thread_time();
        while thread_time() < before + Duration::from_millis(1) {
            std::hint::spin_loop();
        }
        let worked = thread_time();
        std::thread::park_timeout(Duration::from_millis(20));
        assert!(thread_time() < worked + Duration::from_millis(10));
    }
}
