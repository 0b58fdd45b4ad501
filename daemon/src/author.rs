//! `offpeak plugin`: for those who write plugins, those who are handed one, and those who run some.

pub mod bench;
pub mod build;
pub mod cases;
pub mod check;
mod compiled;
pub mod new;

use clap::Subcommand;

use crate::operate::client::OperateError;
use crate::operate::plugins;

/// `EX_USAGE` of sysexits.h: the command must be mended.
const USAGE: u8 = 64;

/// The plugin must be mended, or its tools.
const FAILED: u8 = 1;

/// What a plugin's author does.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Begin a plugin: a folder that builds and passes its own tests at once.
    New(new::Args),
    /// Build the component of a plugin's folder, with the tools of its language: Rust, Python, JavaScript, TypeScript, Go or C.
    ///
    /// Says which tool is missing and how to get it. In Python, JavaScript and C the folder's tests run first; in Rust `cargo test` does that.
    Build(build::Args),
    /// Say what a component is, whether it starts within its limits, and how long its calls take.
    ///
    /// Nothing is taken into use: the component runs here, with no network, no files and no credentials, as it would in the
    /// daemon. Exits with 1 if the daemon would not take it into use, or if one of its calls fails.
    Check(check::Args),
    /// Run golden cases against a component: what goes in, and what must come out. Exits with 1 if something else does.
    ///
    /// Cases are TOML or JSON. A provider's are transcripts: what it would have answered stands in them, and nothing is sent
    /// anywhere. A difference is shown by its place, with what was expected (-) and what came out (+).
    Test(cases::Args),
    /// Measure a component: calls a second, their times, memory of an instance, time to start.
    Bench(bench::Args),
    /// List the plugins of a running daemon, with what their calls took.
    List(plugins::Args),
    /// Have a running daemon read the files of its plugins again, without a restart.
    ///
    /// All plugins are loaded beside those at work, and taken into use between two requests; if one of them cannot be
    /// loaded, nothing changes. Batches under way go on with the plugin that they began with.
    Reload(plugins::Args),
}

/// What a command came to.
pub enum Done {
    /// It has said all that there is to say.
    Exit(u8),
    /// This goes to standard output, or an error to standard error.
    Told(Result<String, OperateError>),
}

/// Runs a command.
pub async fn run(command: &Command) -> Done {
    match command {
        Command::New(args) => match new::run(args) {
            Ok(text) => Done::Told(Ok(text)),
            Err(error) => {
                eprintln!("offpeak: {error}");
                Done::Exit(USAGE)
            }
        },
        Command::Build(args) => match build::run(args) {
            Ok(text) => Done::Told(Ok(text)),
            Err(error) => {
                eprintln!("offpeak: {error}");
                Done::Exit(FAILED)
            }
        },
        Command::Check(args) => Done::Exit(check::run(args)),
        Command::Test(args) => Done::Exit(cases::run(args)),
        Command::Bench(args) => Done::Exit(bench::run(args)),
        Command::List(args) => Done::Told(plugins::list(args).await),
        Command::Reload(args) => Done::Told(plugins::reload(args).await),
    }
}
