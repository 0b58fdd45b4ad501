//! Processes under measurement: started, watched through `/proc`, and ended.

use std::fs::{self, File};
use std::io::{Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde::Serialize;

use crate::error::{Context, Error};

/// The unit of times in `/proc/<pid>/stat`: `USER_HZ`, which Linux fixes at 100 for all programs.
const TICK: Duration = Duration::from_millis(10);

/// How long a process gets to end by itself.
const END_LIMIT: Duration = Duration::from_secs(10);

/// How much of a log is shown when something went wrong, in bytes.
const TAIL: u64 = 2000;

/// A running program. Dropping it ends it.
#[derive(Debug)]
pub struct Process {
    name: &'static str,
    child: Child,
    log: PathBuf,
    // Its workers, if it has any.
    workers: Vec<u32>,
}

/// Resident memory in bytes.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Memory {
    /// Now.
    pub resident: u64,
    /// Of that, what is the process's own: neither files that are mapped nor memory shared with others.
    pub own: u64,
    /// The most there ever was.
    pub peak: u64,
}

impl Process {
    /// Starts a program. What it writes goes to `log`, at whose end it begins.
    pub fn start(name: &'static str, command: &mut Command, log: &Path) -> Result<Self, Error> {
        let open = || {
            File::options().create(true).append(true).open(log).context(format!("opening {}", log.display()))
        };
        let child = command
            .stdin(Stdio::null())
            .stdout(open()?)
            .stderr(open()?)
            .spawn()
            .context(format!("starting {name} ({})", command.get_program().display()))?;
        Ok(Self { name, child, log: log.to_owned(), workers: Vec::new() })
    }

    /// Its process id.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Looks for the processes that it has started, so that their time and memory count as its own.
    pub fn adopt_workers(&mut self) -> Result<usize, Error> {
        let parent = self.id();
        let running = fs::read_dir("/proc").context("reading /proc")?.flatten();
        self.workers = running
            .filter_map(|entry| entry.file_name().to_str()?.parse().ok())
            .filter(|&pid: &u32| Stat::of(pid).is_ok_and(|stat| stat.parent == parent))
            .collect();
        Ok(self.workers.len())
    }

    /// Processor time used so far, in the program and in the kernel on its behalf.
    pub fn processor_time(&self) -> Result<Duration, Error> {
        self.all().map(|pid| Ok(Stat::of(pid)?.time)).sum()
    }

    /// Its memory.
    pub fn memory(&self) -> Result<Memory, Error> {
        let mut all = Memory { resident: 0, own: 0, peak: 0 };
        for pid in self.all() {
            let path = format!("/proc/{pid}/status");
            let status = fs::read_to_string(&path).context(format!("reading {path}"))?;
            all.resident += kib(&status, "VmRSS") << 10;
            all.own += kib(&status, "RssAnon") << 10;
            all.peak += kib(&status, "VmHWM") << 10;
        }
        Ok(all)
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// What to say when it did not get ready.
    pub fn not_ready(&self, limit: Duration) -> Error {
        let tail = tail(&self.log).unwrap_or_else(|error| error.to_string());
        Error::NotReady { name: self.name, limit, log: self.log.clone(), tail }
    }

    /// Ends it as a power cut would: with SIGKILL.
    pub fn kill(mut self) -> Result<(), Error> {
        self.child.kill().context(format!("killing {}", self.name))?;
        self.child.wait().context(format!("waiting for {}", self.name))?;
        Ok(())
    }

    fn all(&self) -> impl Iterator<Item = u32> {
        std::iter::once(self.id()).chain(self.workers.iter().copied())
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        let Some(pid) = i32::try_from(self.id()).ok().and_then(Pid::from_raw) else { return };
        if !self.is_running() || kill_process(pid, Signal::TERM).is_err() {
            return;
        }
        let until = Instant::now() + END_LIMIT;
        while self.is_running() {
            if Instant::now() > until {
                eprintln!("warning: {} does not stop; killing it", self.name);
                drop(self.child.kill());
                drop(self.child.wait());
                return;
            }
            thread::sleep(Duration::from_millis(5));
        }
    }
}

struct Stat {
    parent: u32,
    time: Duration,
}

impl Stat {
    /// Fields 4, 14 and 15 of `proc_pid_stat(5)`. Field 2 is the program's name in brackets and may hold anything.
    fn of(pid: u32) -> Result<Self, Error> {
        let path = format!("/proc/{pid}/stat");
        let stat = fs::read_to_string(&path).context(format!("reading {path}"))?;
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_ascii_whitespace().collect();
        let field =
            |number: usize| fields.get(number - 3).and_then(|field| field.parse().ok()).unwrap_or_default();
        Ok(Self { parent: field(4), time: TICK * (field(14) + field(15)) })
    }
}

fn kib(status: &str, name: &str) -> u64 {
    status
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':')?.trim().strip_suffix(" kB")?.parse().ok())
        .unwrap_or_default()
}

fn tail(log: &Path) -> std::io::Result<String> {
    let mut file = File::open(log)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(String::from_utf8_lossy(&tail).into_owned())
}
