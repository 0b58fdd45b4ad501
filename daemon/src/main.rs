//! The binary: arguments, configuration, runtime, exit codes.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use offpeak::app::{self, App, Reloads};
use offpeak::config::{self, Config, Env, ProcessEnv, WithoutSecrets};
use offpeak::operate::client::{AdminArgs, OperateError};
use offpeak::operate::{costs, db, keys};
use offpeak::{asking, author, cli, demo, listen, telemetry};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// What shells add to a signal's number for a process that it ended.
const EXIT_BY_SIGNAL: i32 = 128;

/// Exit code for what the user has to mend: the configuration, an address in use (`EX_USAGE` of sysexits.h).
const EXIT_USAGE: u8 = 64;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// A batch gateway for LLM traffic: what must be answered now passes straight through, what can wait is answered before
/// its deadline in the cheapest way.
#[derive(Parser)]
#[command(
    version,
    after_help = "Begin with `offpeak demo`, which needs nothing; then write an offpeak.toml and run \
                                 `offpeak check`."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon until SIGTERM or Ctrl-C; what is deferred survives its end.
    Serve(ConfigArgs),
    /// Read the configuration, try its plugins, files and folders, and say what the daemon would do, without doing it.
    Check {
        #[command(flatten)]
        config: ConfigArgs,
        /// Print the understood configuration as JSON (no secrets), for scripts.
        #[arg(long)]
        json: bool,
        /// Check all else where the secrets are not, as in a pull request: no variable or file with a secret need be there.
        #[arg(long)]
        without_secrets: bool,
    },
    /// Ask a running daemon why a request, or a lane, is where it is, and what happens to it next.
    ///
    /// Exits with 1 if there is no such request or lane, or no daemon.
    Explain {
        /// A request's id as its ticket names it (dfr-0-1f), or a lane's number.
        about: String,
        #[command(flatten)]
        admin: AdminArgs,
        /// Print JSON, for scripts.
        #[arg(long)]
        json: bool,
    },
    /// Say what was spent, by whom and on what: the ledger of a running daemon.
    Costs(costs::Args),
    /// Make, list, rotate and revoke the API keys of tenants, at a running daemon.
    Keys(keys::Args),
    /// Check or compact the data folder of a daemon that is stopped.
    Db(db::Args),
    /// Begin plugins, look at them, list those of a running daemon, and reload them.
    #[command(subcommand)]
    Plugin(author::Command),
    /// See it work: a simulated provider, the daemon and a mix of traffic on this machine, then the provider's bill.
    ///
    /// Exits with 1 if any answer is missing, doubled or wrong.
    Demo {
        /// Real-time requests to send.
        #[arg(long, default_value_t = 500)]
        realtime: usize,
        /// Deferrable requests to send.
        #[arg(long, default_value_t = 5000)]
        deferrable: usize,
        /// From which prompts, models and turnarounds follow.
        #[arg(long, default_value_t = 7)]
        seed: u64,
        /// Leave everything running afterwards and print commands to try.
        #[arg(long)]
        keep: bool,
        /// Print the report as JSON, for scripts.
        #[arg(long)]
        json: bool,
    },
    #[command(flatten)]
    Client(cli::Command),
}

#[derive(Args)]
struct ConfigArgs {
    /// The configuration file. Without it: the one that `OFFPEAK_CONFIG` names, ./offpeak.toml, /etc/offpeak/offpeak.toml.
    #[arg(short, long, value_name = "FILE")]
    config: Option<PathBuf>,
}

fn main() -> ExitCode {
    let arguments = match Cli::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return refuse(&error),
    };
    match arguments.command {
        Command::Serve(args) => with_config(&args, &ProcessEnv, |config| serve(&config, args.config.clone())),
        Command::Check { config, json, without_secrets: true } => {
            with_config(&config, &WithoutSecrets, |config| check(&config, json))
        }
        Command::Check { config, json, without_secrets: false } => {
            with_config(&config, &ProcessEnv, |config| check(&config, json))
        }
        Command::Explain { about, admin, json } => explain(&admin.admin_url, &about, json),
        Command::Costs(args) => operate(costs::run(&args)),
        Command::Keys(args) => operate(keys::run(&args)),
        Command::Db(args) => look_after(&args),
        Command::Plugin(command) => run_plugin(&command),
        Command::Demo { realtime, deferrable, seed, keep, json } => {
            run_demo(demo::Options { realtime, deferrable, seed, keep, json })
        }
        Command::Client(command) => run_client(command),
    }
}

/// Help and version are no mistakes; anything else is the user's to mend.
fn refuse(error: &clap::Error) -> ExitCode {
    let is_mistake = error.use_stderr();
    match error.print() {
        Ok(()) if is_mistake => ExitCode::from(EXIT_USAGE),
        Ok(()) => ExitCode::SUCCESS,
        Err(_) => ExitCode::FAILURE,
    }
}

#[tokio::main]
async fn run_client(command: cli::Command) -> ExitCode {
    ExitCode::from(cli::run(command).await)
}

fn with_config(args: &ConfigArgs, env: &impl Env, run: impl FnOnce(Config) -> ExitCode) -> ExitCode {
    match Config::load(args.config.as_deref(), env) {
        Ok(config) => run(config),
        Err(errors) => {
            eprintln!("{errors}");
            ExitCode::from(EXIT_USAGE)
        }
    }
}

fn check(config: &Config, json: bool) -> ExitCode {
    if let Err(error) = app::check(config) {
        eprintln!("offpeak could not start: {error}");
        return ExitCode::from(EXIT_USAGE);
    }
    if !json {
        print!("{}", config::describe(config));
        return ExitCode::SUCCESS;
    }
    match serde_json::to_string_pretty(config) {
        Ok(text) => println!("{text}"),
        Err(error) => {
            eprintln!("the configuration cannot be written as JSON: {error}");
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}

#[tokio::main(flavor = "current_thread")]
async fn run_plugin(command: &author::Command) -> ExitCode {
    match author::run(command).await {
        author::Done::Exit(code) => ExitCode::from(code),
        author::Done::Told(told) => tell(told),
    }
}

/// Runs an operator's command: its text goes to standard output, an error to standard error.
#[tokio::main(flavor = "current_thread")]
async fn operate(command: impl Future<Output = Result<String, OperateError>>) -> ExitCode {
    tell(command.await)
}

fn tell(told: Result<String, OperateError>) -> ExitCode {
    match told {
        Ok(text) => {
            print!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("offpeak: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

/// Runs a command on a data folder.
fn look_after(args: &db::Args) -> ExitCode {
    match db::run(args) {
        Ok(done) => {
            print!("{}", done.text);
            ExitCode::from(done.exit_code)
        }
        Err(error) => {
            eprintln!("offpeak: {error}");
            ExitCode::from(error.exit_code())
        }
    }
}

#[tokio::main]
async fn explain(admin: &str, about: &str, json: bool) -> ExitCode {
    let told = match asking::explain(admin, about).await {
        Ok(told) => told,
        Err(error) => {
            eprintln!("{error}");
            return ExitCode::FAILURE;
        }
    };
    if !json {
        print!("{}", told.text());
        return ExitCode::SUCCESS;
    }
    match serde_json::to_string_pretty(&told) {
        Ok(text) => {
            println!("{text}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("the explanation cannot be written as JSON: {error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn run_demo(options: demo::Options) -> ExitCode {
    raise_file_limit();
    match demo::run(options).await {
        Ok(report) => ExitCode::from(report.exit_code()),
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}

#[tokio::main]
async fn serve(config: &Config, path: Option<PathBuf>) -> ExitCode {
    telemetry::init_logging(&config.log);
    refuse_huge_pages();
    let config = &within_file_limit(config.clone(), raise_file_limit());
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    let app = match App::open(config).await {
        Ok(app) => app,
        Err(error) => {
            eprintln!("offpeak cannot start: {error}");
            return ExitCode::from(EXIT_USAGE);
        }
    };
    if let (Ok(data), Ok(admin)) = (app.data_address(), app.admin_address()) {
        tracing::info!(%data, %admin, "offpeak is ready");
    }
    let stop = CancellationToken::new();
    match StopSignals::new() {
        Ok(signals) => drop(tokio::spawn(stop_on_signal(stop.clone(), signals))),
        Err(error) => tracing::error!(%error, "signals cannot be caught; they end offpeak at once"),
    }
    tokio::spawn(reload_on_signal(path, app.reloads()));
    match app.run(stop).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("offpeak stopped, but the store could not be closed cleanly: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Each held call needs a file handle; the usual soft limit of 1,024 is a relic, and the hard limit is the system's word.
/// Returns how many files may be open; none if there is no limit.
fn raise_file_limit() -> Option<u64> {
    use rustix::process::{Resource, getrlimit, setrlimit};

    let mut limit = getrlimit(Resource::Nofile);
    let before = limit.current;
    limit.current = limit.maximum;
    if let Err(error) = setrlimit(Resource::Nofile, limit) {
        tracing::warn!(%error, "the limit of open files could not be raised; it bounds the calls that can be held");
        return before;
    }
    limit.current
}

/// Connections for which there would be no file handles wait before they are accepted: those that were accepted, the calls to
/// backends and the store do not run out of them.
fn within_file_limit(mut config: Config, files: Option<u64>) -> Config {
    let Some(files) = files else { return config };
    let most = listen::connections_with(files);
    if config.server.max_connections > most {
        tracing::warn!(
            files,
            connections = most,
            "server.max_connections is {}, and the limit of open files is too low for that; raise it (ulimit -n, LimitNOFILE)",
            config.server.max_connections
        );
        config.server.max_connections = most;
    }
    config
}

/// The allocator asks for huge pages, of 2 MiB, and most of each would lie idle: ten thousand held calls took nearly twice
/// the memory, and jobs three times. Memory in use is small and scattered here, so that they make nothing faster.
fn refuse_huge_pages() {
    #[cfg(target_os = "linux")]
    if let Err(error) = rustix::thread::disable_transparent_huge_pages(true) {
        tracing::warn!(%error, "huge pages could not be refused; more memory will be resident than is used");
    }
}

/// SIGHUP reads the configuration again. A wrong one changes nothing.
async fn reload_on_signal(path: Option<PathBuf>, reloads: Reloads) {
    let mut hangups = match signal(SignalKind::hangup()) {
        Ok(hangups) => hangups,
        Err(error) => {
            tracing::error!(%error, "SIGHUP cannot be caught; a changed configuration needs a restart");
            return;
        }
    };
    while hangups.recv().await.is_some() {
        match Config::load(path.as_deref(), &ProcessEnv) {
            Ok(config) => {
                if let Err(error) = reloads.apply(&config).await {
                    tracing::error!(%error, "the configuration was read again and could not be taken in");
                    reloads.refused(error.to_string());
                }
            }
            Err(errors) => {
                tracing::error!("the configuration is wrong and was not taken in: {errors}");
                reloads.refused(errors.to_string());
            }
        }
    }
}

/// The first SIGTERM or SIGINT stops in good order. A second one ends the process where it stands, as SIGKILL would: whoever
/// sends it does not want to wait, and what was acknowledged is on disk.
async fn stop_on_signal(stop: CancellationToken, mut signals: StopSignals) {
    signals.next().await;
    tracing::info!("stopping; deferred work is safe on disk. A second signal stops at once");
    stop.cancel();
    let code = signals.next().await;
    tracing::warn!("stopped at once; deferred work is safe on disk");
    std::process::exit(code);
}

/// SIGTERM and SIGINT, as they come.
struct StopSignals {
    terminated: Signal,
    interrupted: Signal,
}

impl StopSignals {
    fn new() -> std::io::Result<Self> {
        let (terminated, interrupted) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminated, interrupted })
    }

    /// The next one, as the exit code of a process that it ends.
    async fn next(&mut self) -> i32 {
        let kind = tokio::select! {
            _ = self.terminated.recv() => SignalKind::terminate(),
            _ = self.interrupted.recv() => SignalKind::interrupt(),
        };
        EXIT_BY_SIGNAL + kind.as_raw_value()
    }
}
