//! `offpeak submit`: a file becomes a job, once, and its results become files.
//!
//! Every step is remembered on disk before the next one, and each may be cut off: the same command goes on from there.
//! Whether a job was made that could not be remembered is found out at the daemon, never assumed.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use offpeak_core::sla::parse_duration;

use crate::cli::client::{CallError, Client, ConnectArgs};
use crate::cli::download::fetch;
use crate::cli::failed::{self, Files};
use crate::cli::failure::Failure;
use crate::cli::input::{Input, InputError};
use crate::cli::memory::{Key, Memory, MemoryError, Stage};
use crate::cli::patience::persist;
use crate::cli::report::{self, Report};
use crate::cli::screen::{Screen, bytes, complain, count, print};
use crate::cli::upload::upload;
use crate::cli::watch::watch;
use crate::cli::wire::{Job, NewJob, Page, Status};

pub(crate) const EXAMPLES: &str = "\
Examples:
  offpeak submit requests.jsonl --watch                within a day, at the price for that
  offpeak submit requests.jsonl --window 2h --watch    within two hours
  offpeak submit requests.jsonl --out answers          hand in and go; later the same command fetches the answers
  offpeak submit requests.jsonl --failed --watch       once that is over: only what has no answer, again

The answers go to requests.output.jsonl, what has none to requests.errors.jsonl; both name requests by custom_id.";

/// The mark of a file's content in the metadata of its job.
const MARK: &str = "offpeak_submit_sha256";

/// Jobs asked for at once.
const PAGE: usize = 100;
/// Pages of the list that are searched for a job of the same file, the newest first.
const PAGES: usize = 20;

/// A result that looks whole and has too few lines is fetched so often.
const FETCHES: u32 = 3;

/// After a call that may have made a job, the daemon gets so long to show it.
const SETTLE: Duration = Duration::from_secs(1);

/// What to hand in.
#[derive(Debug, clap::Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of the command line")]
pub struct Args {
    /// The file: one request a line, as OpenAI's batch API takes it. The endpoint is found in its first line.
    file: PathBuf,
    /// Within which time the answers must be there, such as 30m, 8h, 24h or 7d. The longer, the cheaper.
    #[arg(long, default_value = "24h", value_parser = window)]
    window: String,
    /// The folder for the answers. Without it: the file's own.
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    /// Wait until the job has ended, with progress, and fetch the answers.
    #[arg(short, long)]
    watch: bool,
    /// Make a new job even though there is one of this file and window.
    #[arg(long)]
    again: bool,
    /// Hand in only what has no answer: the requests that stand in the errors that an earlier command fetched, as they are in
    /// the file now. They are written to a file of their own, requests.failed.jsonl for requests.jsonl.
    #[arg(long)]
    failed: bool,
    /// Write the answers over files of the same names that are of another job.
    #[arg(long)]
    overwrite: bool,
    /// Print the outcome as JSON, for scripts.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    connect: ConnectArgs,
}

fn window(text: &str) -> Result<String, String> {
    parse_duration(text).map(|_| text.to_owned()).map_err(|error| error.to_string())
}

/// Runs the command.
pub(crate) async fn run(args: Args) -> Result<(), Failure> {
    let screen = Screen::new();
    let json = args.json;
    let mut submission = Submission::open(args, &screen).await?;
    let ended = tokio::select! {
        ended = submission.run() => ended,
        _ = tokio::signal::ctrl_c() => Err(Failure::Interrupted(submission.what_now())),
    };
    screen.clear();
    let report = ended?;
    print(&if json { report.to_json() } else { report.to_string() })?;
    if report.is_good() { Ok(()) } else { Err(Failure::NotAllAnswered) }
}

/// One command at work.
struct Submission<'s> {
    args: Args,
    input: Input,
    client: Client,
    memory: Memory,
    output: PathBuf,
    errors: PathBuf,
    screen: &'s Screen,
    /// An earlier command made the job.
    resumed: bool,
    /// The daemon has answered this command.
    met: Cell<bool>,
    /// Held until there is a job: two commands at once are not to make two.
    lock: Option<fs::File>,
}

impl<'s> Submission<'s> {
    async fn open(mut args: Args, screen: &'s Screen) -> Result<Self, Failure> {
        let client = Client::new(&args.connect)?;
        let folder = match &args.out {
            Some(folder) => folder.clone(),
            None => folder_of(&args.file).to_owned(),
        };
        if args.failed {
            args.file = pick_failed(&args, &folder, screen).await?;
        }
        let path = args.file.clone();
        let (input, lock) = blocking(move || Ok((Input::read(&path)?, lock(&path)?))).await?;
        fs::create_dir_all(&folder).map_err(|error| Failure::Write(folder.clone(), error))?;
        let key = Key {
            url: client.address().to_owned(),
            sha256: input.sha256.clone(),
            window: args.window.clone(),
        };
        let mut memory = Memory::open(&folder, key)?;
        if args.again && !is_on_its_way(memory.stage()) {
            memory.set(Stage::New)?;
        }
        let resumed = matches!(memory.stage(), Stage::Submitted { .. } | Stage::Fetched { .. });
        let result = |kind: &str| folder.join(result_name(&args.file, kind));
        let (output, errors) = (result("output"), result("errors"));
        Ok(Self { args, input, client, memory, output, errors, screen, resumed, met: Cell::new(false), lock })
    }

    /// Goes from stage to stage until there is something to say.
    async fn run(&mut self) -> Result<Report, Failure> {
        loop {
            match self.memory.stage().clone() {
                Stage::New => self.begin().await?,
                Stage::Uploaded { file_id } => self.make_job(&file_id).await?,
                Stage::Submitted { job_id } => {
                    drop(self.lock.take());
                    if let Some(report) = self.follow(&job_id).await? {
                        return Ok(report);
                    }
                }
                Stage::Fetched { report } => {
                    let is_there = |path: &Option<PathBuf>| path.as_ref().is_none_or(|path| path.is_file());
                    if is_there(&report.output) && is_there(&report.errors) {
                        return Ok(Report { resumed: self.resumed, ..*report });
                    }
                    self.memory.set(Stage::Submitted { job_id: report.id })?;
                }
            }
        }
    }

    /// Takes up the job that there is of this file already, or uploads the file.
    async fn begin(&mut self) -> Result<(), Failure> {
        if !self.args.overwrite
            && let Some(path) = [&self.output, &self.errors].into_iter().find(|path| path.exists())
        {
            return Err(Failure::InTheWay(path.clone()));
        }
        let known = self.ask(async || Ok(self.find_job(|job| self.is_of_this_file(job)).await?)).await?;
        if let Some(job) = known.filter(|_| !self.args.again) {
            self.screen.note(&format!(
                "This file is handed in already, as {}; going on with that (--again makes a new job).",
                job.id
            ));
            self.resumed = true;
            return Ok(self.memory.set(Stage::Submitted { job_id: job.id })?);
        }
        let what = format!("{} requests, {}", count(self.input.requests), bytes(self.input.size));
        self.screen.note(&format!("Handing in {what}, for {}.", self.input.endpoint));
        let file = self.ask(async || upload(&self.client, &self.input, self.screen).await).await?;
        Ok(self.memory.set(Stage::Uploaded { file_id: file.id })?)
    }

    /// Makes the job of the uploaded file, unless it was made.
    async fn make_job(&mut self, file_id: &str) -> Result<(), Failure> {
        let mut unsure = false;
        let job = self
            .ask(async || {
                if unsure {
                    tokio::time::sleep(SETTLE).await;
                }
                if let Some(job) = self.find_job(|job| job.input_file_id == file_id).await? {
                    return Ok(Some(job));
                }
                if self.client.file(file_id).await?.is_none() {
                    return Ok(None);
                }
                unsure = true;
                Ok(Some(self.client.create(&self.new_job(file_id)).await?))
            })
            .await?;
        Ok(self.memory.set(match job {
            Some(job) => Stage::Submitted { job_id: job.id },
            // It was uploaded long ago and is gone.
            None => Stage::New,
        })?)
    }

    fn new_job<'j>(&'j self, file_id: &'j str) -> NewJob<'j> {
        NewJob {
            input_file_id: file_id,
            endpoint: &self.input.endpoint,
            completion_window: &self.args.window,
            metadata: BTreeMap::from([(MARK, self.input.sha256.as_str())]),
        }
    }

    /// Looks at the job, waits for its end if that is wanted, and fetches what it gave. None: look at the stage again.
    async fn follow(&mut self, job_id: &str) -> Result<Option<Report>, Failure> {
        let gone = || Failure::JobGone(job_id.to_owned());
        let found = self.ask(async || Ok(self.client.job(job_id).await?)).await?;
        let mut job: Job = found.ok_or_else(gone)?;
        if !job.status.is_final() {
            if !self.args.watch {
                return Ok(Some(self.report(&job)));
            }
            self.screen.note(&format!("{job_id}: watching. Ctrl-C leaves it running."));
            job = watch(&self.client, job, self.screen).await?.ok_or_else(gone)?;
        }
        let mut report = self.report(&job);
        if job.status == Status::Failed {
            // Nothing was run: handing the file in anew costs nothing.
            self.memory.set(Stage::New)?;
            return Ok(Some(report));
        }
        report.output =
            self.fetch(job.output_file_id.as_deref(), &self.output, job.counts().completed).await?;
        report.errors = self.fetch(job.error_file_id.as_deref(), &self.errors, job.counts().failed).await?;
        if let Some(path) = report.errors.clone() {
            report.reasons =
                blocking(move || report::reasons(&path).map_err(|e| Failure::Write(path, e))).await?;
        }
        self.memory.set(Stage::Fetched { report: Box::new(report) })?;
        Ok(None)
    }

    /// Fetches one of the results, if there is one.
    async fn fetch(
        &self,
        file_id: Option<&str>,
        path: &Path,
        expected: u64,
    ) -> Result<Option<PathBuf>, Failure> {
        let Some(file_id) = file_id else { return Ok(None) };
        for tries_left in (0..FETCHES).rev() {
            let lines = self.ask(async || fetch(&self.client, file_id, path, self.screen).await).await?;
            if lines >= expected {
                break;
            }
            if tries_left == 0 {
                return Err(Failure::Incomplete { path: path.to_owned(), lines, expected });
            }
        }
        Ok(Some(path.to_owned()))
    }

    /// Makes a call, patiently; but whom nobody has heard of yet is most likely not there at all.
    async fn ask<T>(&self, mut call: impl AsyncFnMut() -> Result<T, Failure>) -> Result<T, Failure> {
        persist(self.screen, async || match call().await {
            Err(Failure::Call(error @ CallError::Unreachable { .. })) if !self.met.get() => {
                Err(Failure::NobodyThere(error))
            }
            called => {
                self.met.set(true);
                called
            }
        })
        .await
    }

    fn report(&self, job: &Job) -> Report {
        Report::new(job, &self.args.file, self.resumed)
    }

    fn is_of_this_file(&self, job: &Job) -> bool {
        let mark = job.metadata.as_ref().and_then(|metadata| metadata.get(MARK));
        let may_go_on = !matches!(job.status, Status::Failed | Status::Cancelling | Status::Cancelled);
        may_go_on && mark == Some(&self.input.sha256) && job.completion_window == self.memory.key().window
    }

    /// The newest job that is wanted.
    async fn find_job(&self, is_wanted: impl Fn(&Job) -> bool) -> Result<Option<Job>, CallError> {
        let mut after: Option<String> = None;
        for _ in 0..PAGES {
            let page: Page<Job> = self.client.jobs(PAGE, after.as_deref()).await?;
            let last = page.data.last().map(|job| job.id.clone());
            if let Some(job) = page.data.into_iter().find(&is_wanted) {
                return Ok(Some(job));
            }
            if !page.has_more || last.is_none() {
                break;
            }
            after = last;
        }
        Ok(None)
    }

    /// What a user who pressed Ctrl-C may want to know.
    fn what_now(&self) -> &'static str {
        match self.memory.stage() {
            Stage::New => "stopped; nothing was handed in",
            Stage::Uploaded { .. } => {
                "stopped while the job was being made; the same command finds out whether it was, and goes on"
            }
            Stage::Submitted { .. } | Stage::Fetched { .. } => {
                "stopped watching; the job goes on, and so does the same command (`offpeak jobs` shows the job, \
                 `offpeak cancel` stops it)"
            }
        }
    }
}

/// The file of those requests that have no answer yet.
async fn pick_failed(args: &Args, folder: &Path, screen: &Screen) -> Result<PathBuf, Failure> {
    let result = |kind: &str| folder.join(result_name(&args.file, kind));
    let picked = result("failed");
    let files = Files {
        requests: args.file.clone(),
        answers: result("output"),
        errors: result("errors"),
        picked: picked.clone(),
    };
    let overwrite = args.overwrite;
    let found = blocking(move || failed::pick(&files, overwrite)).await?;
    screen.note(&format!(
        "{} requests have no answer; they are in {}.",
        count(found as u64),
        picked.display()
    ));
    Ok(picked)
}

/// A file that is uploaded and not yet a job is no earlier job: `--again` goes on with it.
fn is_on_its_way(stage: &Stage) -> bool {
    matches!(stage, Stage::Uploaded { .. })
}

/// Where a file is.
fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or_else(|| Path::new("."))
}

/// `requests.output.jsonl` for `requests.jsonl`.
fn result_name(file: &Path, kind: &str) -> String {
    format!("{}.{kind}.jsonl", file.file_stem().unwrap_or_default().to_string_lossy())
}

/// Locks the file against another command that hands it in; waits for that one.
fn lock(path: &Path) -> Result<Option<fs::File>, Failure> {
    let file = fs::File::open(path).map_err(|error| InputError::Unreadable(path.to_owned(), error))?;
    match file.try_lock() {
        Ok(()) => return Ok(Some(file)),
        Err(fs::TryLockError::WouldBlock) => {}
        // Some network file systems have no locks; then the daemon's list of jobs is what tells.
        Err(fs::TryLockError::Error(_)) => return Ok(None),
    }
    complain("another command is handing in this file; waiting for it");
    file.lock().map_err(|error| MemoryError::File(path.to_owned(), error))?;
    Ok(Some(file))
}

/// Runs what waits for the disk beside the tasks that wait for the network.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Failure::Usage(format!("offpeak is being stopped ({error})"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_stand_beside_the_file() {
        for (file, folder, output) in [
            ("requests.jsonl", ".", "requests.output.jsonl"),
            ("a/b.c.jsonl", "a", "b.c.output.jsonl"),
            ("/x/plain", "/x", "plain.output.jsonl"),
        ] {
            let file = Path::new(file);
            assert_eq!((folder_of(file), result_name(file, "output").as_str()), (Path::new(folder), output));
        }
    }

    #[test]
    fn windows_are_durations() {
        for good in ["24h", "30m", "1h30m", "7d"] {
            assert_eq!(window(good).as_deref(), Ok(good));
        }
        for bad in ["", "soon", "0s", "24", "realtime"] {
            assert!(window(bad).is_err(), "{bad}");
        }
    }
}
