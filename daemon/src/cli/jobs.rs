//! `offpeak jobs`: what was handed in, and how far it is.

use std::time::Duration;

use offpeak_core::money::Money;
use serde_json::Value;

use crate::cli::client::{CallError, Client, ConnectArgs};
use crate::cli::failure::Failure;
use crate::cli::report::ago;
use crate::cli::screen::{count, print, short};
use crate::cli::wire::{Cost, Job, Page};
use crate::clock::Clock;

/// The most that one call lists.
const PAGE: usize = 100;

/// What to show.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// One job; without it the newest ones are listed.
    id: Option<String>,
    /// How many jobs to list.
    #[arg(short = 'n', long, default_value_t = 20, value_name = "COUNT")]
    limit: usize,
    /// Print the jobs as the API shows them, for scripts: a list, or the one job.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let client = Client::new(&args.connect)?;
    let jobs =
        match &args.id {
            Some(id) => {
                let job = client.job::<Value>(id).await?;
                vec![job.ok_or_else(|| {
                    Failure::Usage(format!("there is no job {id}; `offpeak jobs` lists them"))
                })?]
            }
            None => list(&client, args.limit).await?,
        };
    if args.json {
        let shown = if args.id.is_some() { jobs.into_iter().next().unwrap_or_default() } else { jobs.into() };
        return print(&format!("{shown:#}"));
    }
    let jobs = jobs.into_iter().map(|job| understood(&client, job)).collect::<Result<Vec<_>, _>>()?;
    if jobs.is_empty() {
        return print("No jobs. `offpeak submit FILE` makes one.");
    }
    print(&table(&jobs, Clock::System.now().0 / 1000))
}

async fn list(client: &Client, limit: usize) -> Result<Vec<Value>, Failure> {
    let mut jobs: Vec<Value> = Vec::new();
    while jobs.len() < limit {
        let after = jobs.last().and_then(|job| job["id"].as_str());
        let page: Page<Value> = client.jobs((limit - jobs.len()).min(PAGE), after).await?;
        let (has_more, is_empty) = (page.has_more, page.data.is_empty());
        jobs.extend(page.data);
        if !has_more || is_empty {
            break;
        }
    }
    Ok(jobs)
}

fn understood(client: &Client, job: Value) -> Result<Job, CallError> {
    serde_json::from_value(job).map_err(|error| CallError::Strange {
        url: client.address().to_owned(),
        message: format!("a job in the list: {error}"),
    })
}

/// A line a job, `now` in seconds since 1970.
fn table(jobs: &[Job], now: u64) -> String {
    let mut rows = vec![
        ["JOB", "STATUS", "DONE", "FAILED", "COST", "REAL TIME", "WINDOW", "MADE", "DUE", "ENDPOINT"]
            .map(String::from),
    ];
    rows.extend(jobs.iter().map(|job| {
        let counts = job.counts();
        let due = match job.expires_at.filter(|_| !job.status.is_final()) {
            Some(at) => format!("in {}", short(Duration::from_secs(at.saturating_sub(now)))),
            None => String::new(),
        };
        let money = |amount: fn(&Cost) -> Money| {
            job.cost.as_ref().map(|cost| amount(cost).to_string()).unwrap_or_default()
        };
        [
            job.id.clone(),
            job.status.as_str().to_owned(),
            format!("{}/{}", count(counts.finished()), count(counts.total)),
            count(counts.failed),
            money(|cost| cost.spent),
            money(|cost| cost.realtime),
            job.completion_window.clone(),
            ago(job.created_at, now),
            due,
            job.endpoint.clone(),
        ]
    }));
    let width = |column: usize| rows.iter().map(|row| row[column].chars().count()).max().unwrap_or_default();
    let widths: [usize; 10] = std::array::from_fn(width);
    let line = |row: &[String; 10]| {
        let cells = row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}"));
        format!("{}\n", cells.collect::<Vec<_>>().join("  ").trim_end())
    };
    rows.iter().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_stand_under_each_other() {
        let jobs: Vec<Job> = serde_json::from_str(
            r#"[{"id": "batch_1", "status": "in_progress", "completion_window": "24h", "created_at": 1000,
                 "expires_at": 4700, "endpoint": "/v1/embeddings",
                 "offpeak_cost": {"cost_usd": "0.25", "realtime_cost_usd": "0.5", "unpriced": 0},
                 "request_counts": {"total": 50000, "completed": 1233, "failed": 1}},
                {"id": "batch_long", "status": "completed", "created_at": 500, "expires_at": 4700}]"#,
        )
        .unwrap();
        assert_eq!(
            table(&jobs, 1100),
            "JOB         STATUS       DONE          FAILED  COST   REAL TIME  WINDOW  MADE        DUE    ENDPOINT\n\
             batch_1     in_progress  1,234/50,000  1       $0.25  $0.50      24h     1m 40s ago  in 1h  /v1/embeddings\n\
             batch_long  completed    0/0           0                                 10m ago\n"
        );
    }
}
