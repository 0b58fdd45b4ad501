//! Progress for people, on standard error; silent where nobody looks.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use indicatif::{HumanBytes, HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::cli::failure::Failure;
use crate::cli::pace::Pace;
use crate::cli::wire::{Cost, Job, Status};

const UPLOAD: &str = "uploading {bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left";
const FETCH: &str = "fetching {bytes} {bytes_per_sec} {msg}";
const WATCH: &str = "{bar:30} {human_pos}/{human_len} {msg}";
const WAIT: &str = "{spinner} {msg}";

/// Between two turns of a bar that shows that we live.
const TICK: Duration = Duration::from_millis(250);

/// One line that changes, if standard error is a terminal.
#[derive(Debug)]
pub(crate) struct Screen {
    bar: ProgressBar,
    is_live: bool,
}

impl Screen {
    /// A screen that shows nothing yet.
    pub(crate) fn new() -> Self {
        let is_live = io::stderr().is_terminal();
        let target = if is_live { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        Self { bar: ProgressBar::with_draw_target(None, target), is_live }
    }

    /// Something that matters also to who reads a log.
    pub(crate) fn warn(&self, text: &str) {
        self.bar.suspend(|| complain(text));
    }

    /// Something that only a person at the terminal wants to know.
    pub(crate) fn note(&self, text: &str) {
        if self.is_live {
            // A terminal that has gone has nobody before it.
            self.bar.suspend(|| drop(writeln!(io::stderr(), "{text}")));
        }
    }

    /// An upload of so many bytes begins.
    pub(crate) fn begin_upload(&self, bytes: u64) {
        self.style(UPLOAD);
        self.bar.set_length(bytes);
    }

    /// A download begins.
    pub(crate) fn begin_fetch(&self, what: &str) {
        self.style(FETCH);
        self.bar.set_message(format!("({what})"));
    }

    /// Bytes have gone, or come.
    pub(crate) fn bytes(&self, count: usize) {
        self.bar.inc(count as u64);
    }

    /// The bar, to be moved from within a stream.
    pub(crate) fn counter(&self) -> ProgressBar {
        self.bar.clone()
    }

    /// Watching begins.
    pub(crate) fn begin_watch(&self) {
        self.style(WAIT);
        self.bar.enable_steady_tick(TICK);
    }

    /// How far the job is, `now` in seconds since 1970.
    pub(crate) fn show(&self, job: &Job, pace: &Pace, now: u64) {
        let counts = job.counts();
        if job.status == Status::InProgress && counts.total > 0 {
            self.set_template(WATCH);
            self.bar.set_length(counts.total);
            self.bar.set_position(counts.finished());
        } else {
            self.set_template(WAIT);
        }
        self.bar.set_message(progress(job, pace, now));
    }

    /// Takes the line away.
    pub(crate) fn clear(&self) {
        self.bar.disable_steady_tick();
        self.bar.finish_and_clear();
    }

    fn style(&self, template: &str) {
        self.bar.reset();
        self.bar.disable_steady_tick();
        self.bar.set_message("");
        self.set_template(template);
    }

    fn set_template(&self, template: &str) {
        // The templates stand above; one that were wrong would leave the bar as it was.
        if let Ok(style) = ProgressStyle::with_template(template) {
            self.bar.set_style(style);
        }
    }
}

/// Prints what was asked for. Who reads no further, as `head` does, has read enough.
pub(crate) fn print(text: &str) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    match writeln!(out, "{}", text.trim_end()).and_then(|()| out.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(Failure::Write(PathBuf::from("the standard output"), error))
        }
        _ => Ok(()),
    }
}

/// Says what is wrong. Where even that cannot be written, the exit code has to do.
pub(crate) fn complain(text: &str) {
    drop(writeln!(io::stderr(), "offpeak: {text}"));
}

/// What stands beside the bar.
fn progress(job: &Job, pace: &Pace, now: u64) -> String {
    let counts = job.counts();
    let mut parts = Vec::new();
    match job.status {
        Status::Validating => parts.push("the file is being checked".to_owned()),
        Status::Finalizing => parts.push("the results are being written".to_owned()),
        Status::Cancelling => parts.push("being cancelled".to_owned()),
        _ => {}
    }
    if counts.failed > 0 {
        parts.push(format!("{} failed", HumanCount(counts.failed)));
    }
    if job.status == Status::InProgress {
        if let Some(rate) = pace.per_second() {
            parts.push(per_time(rate));
        }
        if let Some(left) = pace.time_for(counts.total.saturating_sub(counts.finished())) {
            parts.push(format!("about {} left", short(left)));
        }
        if let Some(due) = job.expires_at {
            parts.push(format!("due in {}", short(Duration::from_secs(due.saturating_sub(now)))));
        }
    }
    if let Some(cost) = job.cost {
        parts.push(format!("{} so far", self::cost(&cost)));
    }
    parts.join(", ")
}

/// What it cost, beside what it would have cost.
pub(crate) fn cost(cost: &Cost) -> String {
    let realtime =
        if cost.realtime == cost.spent { String::new() } else { format!(" (real time: {})", cost.realtime) };
    let unpriced = match cost.unpriced {
        0 => String::new(),
        answers => format!(" and {} without a price", HumanCount(answers)),
    };
    format!("{}{realtime}{unpriced}", cost.spent)
}

/// A rate with a unit in which it is no tiny fraction.
fn per_time(per_second: f64) -> String {
    match per_second {
        rate if rate >= 1.0 => format!("{rate:.0}/s"),
        rate if rate * 60.0 >= 1.0 => format!("{:.0}/min", rate * 60.0),
        rate => format!("{:.1}/h", rate * 3600.0),
    }
}

/// A duration in its two largest units, such as `3h 12m`.
pub(crate) fn short(duration: Duration) -> String {
    let text = humantime::format_duration(Duration::from_secs(duration.as_secs())).to_string();
    text.split(' ').take(2).collect::<Vec<_>>().join(" ")
}

/// A number of bytes as people write it.
pub(crate) fn bytes(count: u64) -> String {
    HumanBytes(count).to_string()
}

/// A number with its thousands apart.
pub(crate) fn count(count: u64) -> String {
    HumanCount(count).to_string()
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn job(text: &str) -> Job {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn the_line_says_what_is_known() {
        let begun = Instant::now();
        let mut pace = Pace::default();
        let checked = job(r#"{"id": "b", "status": "validating"}"#);
        assert_eq!(progress(&checked, &pace, 0), "the file is being checked");
        let running = job(r#"{"id": "b", "status": "in_progress", "expires_at": 8000,
                "request_counts": {"total": 5000, "completed": 1000, "failed": 2}}"#);
        assert_eq!(progress(&running, &pace, 400), "2 failed, due in 2h 6m");
        pace.observe(begun, 0);
        pace.observe(begun + Duration::from_secs(10), 1002);
        assert_eq!(progress(&running, &pace, 400), "2 failed, 100/s, about 39s left, due in 2h 6m");
        let paid = job(r#"{"id": "b", "status": "finalizing",
                "offpeak_cost": {"cost_usd": "0.25", "realtime_cost_usd": "0.5", "unpriced": 3}}"#);
        assert_eq!(
            progress(&paid, &pace, 400),
            "the results are being written, $0.25 (real time: $0.50) and 3 without a price so far"
        );
    }

    #[test]
    fn rates_and_durations_fit_their_size() {
        assert_eq!([per_time(41.4), per_time(0.5), per_time(0.001)], ["41/s", "30/min", "3.6/h"]);
        let seconds = |seconds| short(Duration::from_secs(seconds));
        assert_eq!([seconds(0), seconds(61), seconds(90_061)], ["0s", "1m 1s", "1day 1h"]);
    }
}
