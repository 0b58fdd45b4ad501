//! Adaptive against fixed numbers of deferred requests at once, over a bursty day: the daemon's own sizing before the engine's
//! own arithmetic, in virtual time. The same seed gives the same day and the same figures.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use offpeak_core::sizing::{Look, Sizing, SizingTerms};
use offpeak_core::words::{Millis, Timestamp};
use provider_sim::{EngineModel, EngineOptions, Prompt, Submission};
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use serde::Serialize;

use crate::report::{Table, Target, figure, thousands};

const SECOND: u64 = 1_000_000;

/// How often the engine is looked at.
const LOOK_EVERY: u64 = SECOND;

/// Until the first token, real-time calls should take no longer.
const TARGET: Millis = Millis(150);

/// Deferred requests at once, at most.
const MOST: u64 = 512;

/// What is fixed where it is not adaptive.
const FIXED: [u64; 4] = [8, 32, 128, 512];

/// Of those that run, so many in a hundred may wait: the bundled plugin's rule.
const QUEUE_PERCENT: u64 = 10;

/// Fuller than this in thousandths, the cache takes no more: the same.
const CACHE_MAX: f64 = 0.95;

/// How many deferred requests there are at once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Policy {
    /// As many as the daemon decides.
    Adaptive,
    /// Always as many.
    Fixed(u64),
}

/// What a policy came to.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Run {
    /// Which.
    pub policy: Policy,
    /// Real-time calls that had a first token.
    pub realtime: usize,
    /// Until then, in milliseconds: the median and the 99th percentile.
    pub first_token_ms: [f64; 2],
    /// The share of them within the target.
    pub within_target: f64,
    /// Tokens of deferred requests that were answered.
    pub deferred_tokens: u64,
    /// All tokens a second, to what the engine does with deferred work alone.
    pub efficiency: f64,
    /// The share of the time in which it worked.
    pub utilisation: f64,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The length of the day.
    pub seconds: u64,
    /// Without real-time calls: tokens a second.
    pub peak: f64,
    /// By policy; the first has no deferred work.
    pub runs: Vec<Run>,
}

/// Runs the day with each policy.
pub fn run(day: Duration) -> Report {
    let seconds = day.as_secs().max(60);
    let arrivals = arrivals(seconds);
    let peak = peak(seconds.min(900));
    let policies = [Policy::Fixed(0), Policy::Adaptive].into_iter().chain(FIXED.map(Policy::Fixed));
    let runs = policies.map(|policy| Day::new(policy).go(&arrivals, seconds, peak)).collect();
    Report { seconds, peak, runs }
}

/// Tokens a second of a saturated engine that has nothing but deferred work.
fn peak(seconds: u64) -> f64 {
    let mut day = Day::new(Policy::Fixed(MOST));
    day.go(&[], seconds, 1.0);
    day.tokens_per_second(seconds)
}

/// When real-time calls come, and what they are: quiet by night and busy by day, with bursts of minutes.
fn arrivals(seconds: u64) -> Vec<(u64, Prompt)> {
    let mut chance = StdRng::seed_from_u64(6);
    let mut arrivals = Vec::new();
    let (mut burst_left, mut burst) = (0_u64, 0.0);
    for second in 0..seconds {
        #[expect(clippy::cast_precision_loss, reason = "seconds of a day")]
        let hour = second as f64 / seconds as f64 * std::f64::consts::TAU;
        let daily = 4.0 * (1.0 - hour.cos());
        if burst_left > 0 {
            burst_left -= 1;
        } else if chance.random_bool(1.0 / 400.0) {
            (burst_left, burst) = (chance.random_range(30..180), chance.random_range(5.0..16.0));
        }
        let rate = daily + if burst_left > 0 { burst } else { 0.0 };
        let mut at = gap(&mut chance, rate);
        while at < 1.0 {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "less than a million"
            )]
            let within = (at * 1e6) as u64;
            let prompt = Prompt {
                tokens: chance.random_range(20..200),
                generate: chance.random_range(20..100),
                capped: true,
            };
            arrivals.push((second * SECOND + within, prompt));
            at += gap(&mut chance, rate);
        }
    }
    arrivals
}

/// Seconds between two that come by chance.
fn gap(chance: &mut StdRng, rate: f64) -> f64 {
    if rate <= 0.0 { f64::INFINITY } else { -(1.0 - chance.random::<f64>()).ln() / rate }
}

/// One day with one policy.
struct Day {
    policy: Policy,
    engine: EngineModel,
    sizing: Sizing,
    ceiling: u64,
    chance: StdRng,
    next_call: u64,
    deferred: HashMap<u64, u64>,
    /// Real-time calls that have no token yet, with when they came.
    awaited: HashMap<u64, u64>,
    realtime: HashSet<u64>,
    begun: u64,
    slowest: Option<u64>,
    first_tokens: Vec<u64>,
    deferred_tokens: u64,
}

impl Day {
    fn new(policy: Policy) -> Self {
        let sizing = Sizing::new(SizingTerms { most: MOST, target: TARGET, peak: None });
        let ceiling = match policy {
            Policy::Adaptive => 0,
            Policy::Fixed(number) => number,
        };
        Self {
            policy,
            engine: EngineModel::new(EngineOptions::default(), 0),
            sizing,
            ceiling,
            chance: StdRng::seed_from_u64(7),
            next_call: 0,
            deferred: HashMap::new(),
            awaited: HashMap::new(),
            realtime: HashSet::new(),
            begun: 0,
            slowest: None,
            first_tokens: Vec::new(),
            deferred_tokens: 0,
        }
    }

    fn go(&mut self, arrivals: &[(u64, Prompt)], seconds: u64, peak: f64) -> Run {
        let end = seconds * SECOND;
        let (mut now, mut next_look) = (0, 0);
        let mut arrivals = arrivals.iter().copied().peekable();
        while now < end {
            self.engine.advance(now);
            self.see(now);
            while let Some((_, prompt)) = arrivals.next_if(|(at, _)| *at <= now) {
                self.ask(prompt, now);
            }
            if now >= next_look {
                self.look(now);
                next_look = now + LOOK_EVERY;
            }
            while (self.deferred.len() as u64) < self.ceiling {
                self.defer(now);
            }
            let arrival = arrivals.peek().map_or(end, |(at, _)| *at);
            let wake = self.engine.wake_at().unwrap_or(end);
            now = arrival.min(next_look).min(wake).max(now + 1);
        }
        self.sum_up(seconds, peak)
    }

    /// First tokens, and what has ended.
    fn see(&mut self, now: u64) {
        if !self.awaited.is_empty() {
            for (call, tokens) in self.engine.progress() {
                if tokens > 0 {
                    self.first_token(call, now);
                }
            }
        }
        for call in self.engine.take_finished() {
            if let Some(tokens) = self.deferred.remove(&call) {
                self.deferred_tokens += tokens;
            } else {
                self.first_token(call, now);
                self.realtime.remove(&call);
            }
        }
    }

    fn first_token(&mut self, call: u64, now: u64) {
        let Some(came) = self.awaited.remove(&call) else { return };
        let took = now - came;
        self.first_tokens.push(took);
        self.slowest = self.slowest.max(Some(took));
    }

    fn ask(&mut self, prompt: Prompt, now: u64) {
        let call = self.submit(prompt, true, now);
        self.awaited.insert(call, now);
        self.realtime.insert(call);
        self.begun += 1;
    }

    fn defer(&mut self, now: u64) {
        let prompt = Prompt {
            tokens: self.chance.random_range(20..200),
            generate: self.chance.random_range(50..300),
            capped: true,
        };
        let call = self.submit(prompt, false, now);
        self.deferred.insert(call, prompt.tokens + prompt.generate);
    }

    fn submit(&mut self, prompt: Prompt, streams: bool, now: u64) -> u64 {
        let call = self.next_call;
        self.next_call += 1;
        let submission = Submission { call, prompts: vec![prompt], priority: 0, streams };
        // Its queue has no bound here.
        self.engine.submit(submission, now).ok();
        call
    }

    /// What the daemon does at each look, with what the plugin makes of the engine's metrics.
    fn look(&mut self, now: u64) {
        let (begun, slowest) = (std::mem::take(&mut self.begun), self.slowest.take());
        if self.policy != Policy::Adaptive {
            return;
        }
        let (running, waiting) = (self.engine.running() as u64, self.engine.waiting() as u64);
        let queue = (running * QUEUE_PERCENT).div_ceil(100).max(1);
        let room = match waiting {
            _ if self.engine.cache_usage() >= CACHE_MAX => Some(0),
            0 => None,
            waiting => Some(queue.saturating_sub(waiting)),
        };
        let stats = self.engine.stats();
        let look = Look {
            is_ready: true,
            waiting: Some(waiting),
            room,
            tokens: Some(stats.prompt_tokens + stats.generated_tokens),
            realtime: begun.max(self.realtime.len() as u64),
            latency: slowest.map(|us| Millis((us / 1000).max(1))),
            deferred: self.deferred.len() as u64,
            in_a_call: 1,
        };
        self.ceiling = self.sizing.look(&look, Timestamp(now / 1000));
    }

    #[expect(clippy::cast_precision_loss, reason = "tokens of a day are far below 2^52")]
    fn tokens_per_second(&self, seconds: u64) -> f64 {
        let stats = self.engine.stats();
        (stats.prompt_tokens + stats.generated_tokens) as f64 / seconds as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "microseconds of a day are far below 2^52")]
    fn sum_up(&mut self, seconds: u64, peak: f64) -> Run {
        self.first_tokens.sort_unstable();
        let times = &self.first_tokens;
        let quantile = |permille: usize| {
            let at = (times.len() * permille / 1000).min(times.len().saturating_sub(1));
            times.get(at).map_or(f64::NAN, |us| *us as f64 / 1e3)
        };
        let within = times.partition_point(|us| *us <= TARGET.0 * 1000);
        Run {
            policy: self.policy,
            realtime: times.len(),
            first_token_ms: [quantile(500), quantile(990)],
            within_target: within as f64 / times.len().max(1) as f64,
            deferred_tokens: self.deferred_tokens,
            efficiency: self.tokens_per_second(seconds) / peak,
            utilisation: self.engine.stats().busy_us as f64 / (seconds * SECOND) as f64,
        }
    }
}

impl Policy {
    fn name(self) -> String {
        match self {
            Self::Adaptive => "adaptive".to_owned(),
            Self::Fixed(0) => "no deferred work".to_owned(),
            Self::Fixed(number) => format!("always {number}"),
        }
    }
}

impl Report {
    fn of(&self, policy: Policy) -> Option<&Run> {
        self.runs.iter().find(|run| run.policy == policy)
    }

    /// The figures as Markdown.
    #[expect(clippy::cast_precision_loss, reason = "tokens of a day are far below 2^52")]
    pub fn markdown(&self) -> String {
        let mut table = Table::new([
            "deferred requests at once",
            "first token p50 ms",
            "p99 ms",
            "within the target",
            "deferred tokens",
            "efficiency",
            "utilisation",
        ]);
        for run in &self.runs {
            table.row([
                run.policy.name(),
                figure(run.first_token_ms[0]),
                figure(run.first_token_ms[1]),
                format!("{:.1}%", run.within_target * 100.0),
                thousands(run.deferred_tokens as f64),
                figure(run.efficiency),
                figure(run.utilisation),
            ]);
        }
        format!(
            "A day of {} hours with bursts, {} real-time calls, target {} ms until the first token (virtual time):\n\n{}",
            figure(self.seconds as f64 / 3600.0),
            thousands(self.runs.first().map_or(0.0, |run| run.realtime as f64)),
            TARGET.0,
            table.markdown()
        )
    }

    /// What was wanted of these figures.
    #[expect(clippy::cast_precision_loss, reason = "tokens of a day are far below 2^52")]
    pub fn targets(&self) -> Vec<Target> {
        let Some(adaptive) = self.of(Policy::Adaptive) else { return Vec::new() };
        // The most that a fixed number does whose calls are in time as often.
        let as_good = |run: &&Run| {
            matches!(run.policy, Policy::Fixed(number) if number > 0)
                && run.within_target >= adaptive.within_target
        };
        let best = self.runs.iter().filter(as_good).map(|run| run.deferred_tokens).max();
        let mut targets = vec![
            Target::at_most("first token p99, adaptive", adaptive.first_token_ms[1], TARGET.0 as f64, "ms"),
            Target::at_least("efficiency over the day, adaptive", adaptive.efficiency, 0.8, ""),
        ];
        if let Some(best) = best {
            let ratio = adaptive.deferred_tokens as f64 / best.max(1) as f64;
            let what = "deferred tokens, adaptive, to the best fixed number that is as often in time";
            targets.push(Target::at_least(what, ratio, 1.0, ""));
        }
        targets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_day_is_the_same_each_time_and_adapting_beats_what_is_as_good_for_real_time_calls() {
        let day = Duration::from_mins(12);
        let report = run(day);
        assert_eq!(report, run(day));
        let of = |policy| *report.of(policy).unwrap();
        let (adaptive, none) = (of(Policy::Adaptive), of(Policy::Fixed(0)));
        assert!(none.realtime > 1000 && none.deferred_tokens == 0, "{none:?}");
        // It gets more done than few, and harms less than many.
        assert!(adaptive.deferred_tokens > of(Policy::Fixed(8)).deferred_tokens, "{report:?}");
        assert!(adaptive.within_target > of(Policy::Fixed(512)).within_target, "{report:?}");
        assert!(of(Policy::Fixed(512)).first_token_ms[1] > of(Policy::Fixed(8)).first_token_ms[1]);
        assert!(report.markdown().lines().filter(|line| line.starts_with("| ")).count() == 8);
    }
}
