//! Plays seeds, and says which of them break a promise.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::Parser;
use fault_simulation::{FAULTS, Outcome, Plugins, run};
use parking_lot::Mutex;

/// Plays the whole daemon against a simulated provider, on virtual time, with crashes and faults drawn from seeds.
///
/// Exits with 1 if a seed breaks a promise, and prints the command that replays it.
#[derive(Debug, Parser)]
#[command(version)]
struct Args {
    /// Play this one seed.
    #[arg(long, conflicts_with_all = ["seeds", "minutes"])]
    seed: Option<u64>,
    /// Print what happens, step by step.
    #[arg(long)]
    tell: bool,
    /// Print the daemon's log as well; the value is a filter such as "debug".
    #[arg(long, value_name = "FILTER")]
    log: Option<String>,
    /// The first seed.
    #[arg(long, default_value_t = 0)]
    from: u64,
    /// How many seeds.
    #[arg(long, default_value_t = 1000)]
    seeds: u64,
    /// Go on for so many minutes instead.
    #[arg(long)]
    minutes: Option<u64>,
    /// Seeds at the same time.
    #[arg(long, default_value_t = 2)]
    threads: u64,
    /// Play each seed twice and compare: what happens must depend on nothing but the seed.
    #[arg(long)]
    twice: bool,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(filter) = &args.log {
        let filter = tracing_subscriber::EnvFilter::new(filter);
        tracing_subscriber::fmt().with_env_filter(filter).without_time().init();
    }
    let plugins = match Plugins::new() {
        Ok(plugins) => plugins,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    let play = |seed| {
        let mut outcome = run(seed, &plugins, args.tell);
        if args.twice {
            let again = run(seed, &plugins, false);
            if again.hash != outcome.hash {
                outcome.violations.push("two runs of it differ".to_owned());
            }
        }
        outcome
    };
    if let Some(seed) = args.seed {
        let outcome = play(seed);
        report(&outcome);
        println!("seed {seed}: hash {:016x}", outcome.hash);
        return if outcome.violations.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE };
    }
    let began = Instant::now();
    let deadline = args.minutes.map(|minutes| began + Duration::from_mins(minutes));
    let (next, broken) = (AtomicU64::new(args.from), AtomicU64::new(0));
    let (counts, slowest) = (Mutex::new(BTreeMap::new()), Mutex::new((Duration::ZERO, 0)));
    let work = || {
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            let is_enough = match deadline {
                Some(deadline) => Instant::now() >= deadline,
                None => seed >= args.from.saturating_add(args.seeds),
            };
            if is_enough {
                next.fetch_sub(1, Ordering::Relaxed);
                return;
            }
            let since = Instant::now();
            let outcome = play(seed);
            let mut slow = slowest.lock();
            *slow = (*slow).max((since.elapsed(), seed));
            drop(slow);
            let mut all = counts.lock();
            for (what, times) in &outcome.counts {
                *all.entry(*what).or_insert(0) += times;
            }
            drop(all);
            if !outcome.violations.is_empty() {
                broken.fetch_add(1, Ordering::Relaxed);
                report(&outcome);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..args.threads {
            scope.spawn(work);
        }
    });
    let played = next.load(Ordering::Relaxed) - args.from;
    let broken = broken.load(Ordering::Relaxed);
    let counts = counts.into_inner();
    for (what, times) in &counts {
        println!("{times:>12}  {what}");
    }
    for what in FAULTS.iter().filter(|what| !counts.contains_key(*what)) {
        println!("{:>12}  {what}", "never");
    }
    let (time, seed) = slowest.into_inner();
    println!("the slowest seed was {seed}: {time:.1?}");
    println!("{played} seeds in {:.0?}; {broken} broke a promise", began.elapsed());
    if broken == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn report(outcome: &Outcome) {
    if outcome.violations.is_empty() {
        return;
    }
    let mut text = format!("seed {}:\n", outcome.seed);
    for violation in outcome.violations.iter().take(5) {
        let shown: String = violation.chars().take(1500).collect();
        text.extend(["  ", shown.as_str(), "\n"]);
    }
    text.extend(["  replay: ", outcome.replay().as_str(), "\n"]);
    eprint!("{text}");
}
