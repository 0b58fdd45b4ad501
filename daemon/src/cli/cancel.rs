//! `offpeak cancel`: stops a job.

use serde_json::Value;

use crate::cli::client::{CallError, Client, ConnectArgs};
use crate::cli::failure::Failure;
use crate::cli::screen::print;
use crate::cli::wire::{Job, Status};

/// What to stop.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// The job, as `offpeak submit` and `offpeak jobs` name it.
    id: String,
    /// Print the job as the API shows it, for scripts.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let client = Client::new(&args.connect)?;
    let cancelled: Value = match client.cancel(&args.id).await {
        Err(CallError::NotFound { .. }) => {
            return Err(Failure::Usage(format!("there is no job {}; `offpeak jobs` lists them", args.id)));
        }
        other => other?,
    };
    if args.json {
        return print(&format!("{cancelled:#}"));
    }
    let job: Job = serde_json::from_value(cancelled).map_err(|error| CallError::Strange {
        url: client.address().to_owned(),
        message: error.to_string(),
    })?;
    let counts = job.counts();
    let state = match job.status {
        Status::Cancelling => "is being cancelled; what is under way may still be answered, and charged",
        Status::Cancelled => "is cancelled",
        _ => job.status.as_str(),
    };
    print(&format!("{}: {state} ({} of {} done)", job.id, counts.finished(), counts.total))
}
