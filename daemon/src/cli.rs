//! The client's side of the program: `offpeak submit`, `jobs` and `cancel` talk to a running daemon.
//!
//! They use the files and batches of its OpenAI-shaped API and nothing else, so that they work against whatever speaks
//! that API. What a command prints goes to standard output; progress and warnings go to standard error.

pub mod submit;
pub mod jobs;
pub mod cancel;
mod watch;
mod download;
mod upload;
mod report;
mod memory;
mod failed;
mod input;
mod pace;
mod patience;
mod screen;
mod client;
mod wire;
mod failure;

use clap::Subcommand;

use crate::upstream::install_crypto;

/// What a user with a file of requests does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Hand in a file of requests, one JSON object a line, and get the answers in files.
    ///
    /// The file is what OpenAI's batch API takes: each line has `custom_id`, `method`, `url` and `body`. The same command again
    /// goes on where it was: it never makes a second job of the same file and window unless --again is given.
    ///
    /// Exit codes: 0 all requests were answered (or, without --watch, the job is on its way); 1 the job ended and some
    /// request failed, expired or was cancelled, or the file was refused; 64 something in the command or the file must be
    /// mended; 69 the daemon cannot be reached; 74 a file cannot be written; 77 the key was not accepted; 130 Ctrl-C.
    #[command(after_help = submit::EXAMPLES)]
    Submit(submit::Args),
    /// List the jobs that were handed in, or show one.
    Jobs(jobs::Args),
    /// Stop a job; what is answered already stays and can be fetched.
    Cancel(cancel::Args),
}

/// Runs a command and returns the exit code.
pub async fn run(command: Command) -> u8 {
    install_crypto();
    let done = match command {
        Command::Submit(args) => submit::run(args).await,
        Command::Jobs(args) => jobs::run(args).await,
        Command::Cancel(args) => cancel::run(args).await,
    };
    match done {
        Ok(()) => 0,
        Err(failure) => {
            if let Some(text) = failure.text() {
                screen::complain(&text);
            }
            failure.exit_code()
        }
    }
}
