//! Which policy keeps deadlines over a batch API, and at what price? Replays thousands of simulated days over the daemon's
//! own planning code, several policies side by side, and prints a table; with a path, writes a plot there as SVG.
//!
//! `cargo run --release -p offpeak-study -- --help` says more.

mod plot;
mod policy;
mod provider;
mod scenario;
mod world;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use rayon::prelude::*;

use policy::Policy;
use scenario::Scenario;
use world::{DAYS, Sums};

/// Which policy keeps deadlines over a batch API, and at what price.
///
/// Replays thousands of simulated days over the daemon's own planning code, several policies side by side, and prints a table.
/// Exits with 1 if offpeak's policy misses a target.
#[derive(Debug, Parser)]
#[command(version)]
struct Cli {
    /// Runs of each policy in each scenario.
    #[arg(default_value_t = 100, value_parser = clap::value_parser!(u64).range(1..))]
    runs: u64,
    /// Where to write a plot, as SVG.
    #[arg(value_name = "PLOT.SVG")]
    plot: Option<PathBuf>,
}

/// What a policy came to in a scenario.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Row {
    /// Where.
    pub scenario: Scenario,
    /// Who.
    pub policy: Policy,
    /// What.
    pub sums: Sums,
}

impl Row {
    /// The share of requests without an answer in time.
    #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
    pub(crate) fn missed(&self) -> f64 {
        (self.sums.requests - self.sums.met) as f64 / self.sums.requests.max(1) as f64
    }

    /// The cost, relative to everything at the list price.
    #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
    pub(crate) fn cost(&self) -> f64 {
        self.sums.cost as f64 / (self.sums.requests.max(1) * 1000) as f64
    }

    #[expect(clippy::cast_precision_loss, reason = "a number of requests")]
    fn waste(&self) -> f64 {
        self.sums.waste as f64 / self.sums.cost.max(1) as f64
    }
}

/// The same seeds for each policy, so that all meet the same weather.
fn study(runs: u64) -> Vec<Row> {
    let jobs: Vec<(Scenario, Policy, u64)> = Scenario::ALL
        .into_iter()
        .flat_map(|scenario| Policy::ALL.map(|policy| (scenario, policy)))
        .flat_map(|(scenario, policy)| (0..runs).map(move |seed| (scenario, policy, seed)))
        .collect();
    let sums: Vec<Sums> =
        jobs.par_iter().map(|(scenario, policy, seed)| world::run(*scenario, *policy, *seed)).collect();
    let mut rows: Vec<Row> = Vec::new();
    for ((scenario, policy, _), sums) in jobs.into_iter().zip(sums) {
        match rows.last_mut() {
            Some(row) if row.scenario == scenario && row.policy == policy => row.sums.add(sums),
            _ => rows.push(Row { scenario, policy, sums }),
        }
    }
    rows
}

fn print(rows: &[Row], runs: u64) {
    println!(
        "{} simulated days for each line: {runs} runs of {DAYS} days. Cost is relative to everything in real time.\n",
        runs * DAYS
    );
    println!("| scenario | policy | requests | deadlines met | cost | of that, paid twice |");
    println!("| --- | --- | ---: | ---: | ---: | ---: |");
    for row in rows {
        println!(
            "| {} | {} | {} | {:.4}% | {:.2}% | {:.2}% |",
            row.scenario.name(),
            row.policy.name(),
            row.sums.requests,
            100.0 * (1.0 - row.missed()),
            100.0 * row.cost(),
            100.0 * row.waste(),
        );
    }
}

/// What the daemon's policy has to reach, in sentences about what it did not.
fn missed_targets(rows: &[Row]) -> Vec<String> {
    let find = |scenario, policy| rows.iter().find(|row| row.scenario == scenario && row.policy == policy);
    let mut missed = Vec::new();
    for scenario in Scenario::ALL {
        let Some((own, lead)) = find(scenario, Policy::Offpeak).zip(find(scenario, Policy::FixedLead)) else {
            continue;
        };
        let name = scenario.name();
        let (late_at_most, cost_at_most) = match scenario {
            Scenario::Healthy | Scenario::SlowTail => (0.0001, 0.51),
            Scenario::Stalls | Scenario::Expiry => (0.001, lead.cost()),
            // These have no target; they are shown.
            Scenario::Storms | Scenario::TightQuota | Scenario::Flex => continue,
        };
        if own.missed() > late_at_most {
            missed.push(format!("{name}: {:.4}% of the deadlines were missed", 100.0 * own.missed()));
        }
        if own.cost() > cost_at_most {
            missed.push(format!(
                "{name}: it cost {:.2}%, and at most {:.2}% was wanted",
                100.0 * own.cost(),
                100.0 * cost_at_most
            ));
        }
    }
    missed
}

fn main() -> ExitCode {
    let Cli { runs, plot } = Cli::parse();
    let rows = study(runs);
    print(&rows, runs);
    if let Some(path) = plot
        && let Err(error) = std::fs::write(&path, plot::svg(&rows))
    {
        eprintln!("{}: {error}; name a file that can be written for the plot", path.display());
        return ExitCode::FAILURE;
    }
    let missed = missed_targets(&rows);
    for target in &missed {
        eprintln!("missed target: {target}");
    }
    if missed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_short_study_meets_the_targets() {
        let rows = study(2);
        assert_eq!(rows.len(), Scenario::ALL.len() * Policy::ALL.len());
        assert_eq!(missed_targets(&rows), [""; 0]);
        let never =
            rows.iter().find(|row| row.scenario == Scenario::Stalls && row.policy == Policy::NeverEscalate);
        assert!(never.is_some_and(|row| row.missed() > 0.01), "the weather is worth a policy");
    }

    #[test]
    fn the_same_seed_gives_the_same_run() {
        let once = world::run(Scenario::Stalls, Policy::Offpeak, 5);
        let again = world::run(Scenario::Stalls, Policy::Offpeak, 5);
        assert_eq!((once.met, once.cost, once.requests), (again.met, again.cost, again.requests));
        assert!(once.requests > 1000);
    }
}
