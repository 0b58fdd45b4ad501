//! The program: started, told to stop, killed, started again on the same folder and port.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Resource, Rlimit, Signal, getrlimit, kill_process, prlimit};

/// It is up within this, on a machine with much else to do.
const UP_WITHIN: Duration = Duration::from_mins(1);

/// A daemon that is killed when this is dropped.
pub(crate) struct Daemon {
    pub(crate) folder: PathBuf,
    config: PathBuf,
    log: PathBuf,
    key: String,
    data: u16,
    admin: u16,
    child: Option<Child>,
}

impl Daemon {
    /// `settings` is TOML, written as dotted keys, that goes before the rest.
    pub(crate) fn new(folder: &Path, provider: &str, key: &str, settings: &str) -> Self {
        let daemon = Self {
            folder: folder.to_owned(),
            config: folder.join("offpeak.toml"),
            log: folder.join("log"),
            key: key.to_owned(),
            data: free_port(),
            admin: free_port(),
            child: None,
        };
        let linger = if settings.contains("lanes.linger") { "" } else { "lanes.linger = \"100ms\"" };
        daemon.configure(&format!("{settings}\n{linger}\n{}", daemon.usual(provider)));
        daemon
    }

    fn usual(&self, provider: &str) -> String {
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins");
        format!(
            r#"
server.listen = "127.0.0.1:{data}"
server.admin = "127.0.0.1:{admin}"
store.folder = "{folder}/data"
retry.base = "20ms"
plugins.cache = "{cache}"
plugins.router.time_limit = "5s"
plugins.providers.openai.time_limit = "5s"
plugins.providers.anthropic.time_limit = "5s"
backends.simulated.provider = "openai"
backends.simulated.base_url = "{provider}"
backends.simulated.api_key.env = "PROVIDER_KEY"
backends.simulated.models = ["gpt-*"]
backends.simulated.config.poll_ms = 30
backends.simulated.config.poll_max_ms = 60
backends.simulated.config.retry_ms = 20
backends.simulated.config.retry_max_ms = 500
backends.simulated.config.settle_ms = 150
backends.claude.provider = "anthropic"
backends.claude.base_url = "{provider}"
backends.claude.api_key.env = "PROVIDER_KEY"
backends.claude.models = ["claude-*"]
backends.claude.config.poll_ms = 30
backends.claude.config.poll_max_ms = 60
backends.claude.config.retry_ms = 20
backends.claude.config.retry_max_ms = 500
backends.claude.config.settle_ms = 15
"#,
            data = self.data,
            admin = self.admin,
            folder = self.folder.display(),
            cache = cache.display()
        )
    }

    fn configure(&self, text: &str) {
        fs::write(&self.config, text).unwrap();
    }

    /// Changes the text of its configuration, which it reads when it is told to.
    pub(crate) fn reconfigure(&self, change: impl FnOnce(String) -> String) {
        self.configure(&change(fs::read_to_string(&self.config).unwrap()));
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.data)
    }

    pub(crate) const fn port(&self) -> u16 {
        self.data
    }

    /// Where the admin plane is.
    pub(crate) fn admin_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.admin)
    }

    /// Starts it, and waits until it takes connections.
    pub(crate) async fn start(&mut self) {
        self.start_after("").await;
    }

    /// Starts it from a shell that does this first, and waits until it takes connections.
    pub(crate) async fn start_after(&mut self, first: &str) {
        let child = self.spawn(first);
        let child = self.child.insert(child);
        let began = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", self.data)).await.is_err() {
            let ended = child.try_wait().unwrap();
            let is_late = began.elapsed() > UP_WITHIN;
            assert!(ended.is_none() && !is_late, "it is not up: {ended:?}\n{}", tail(&self.log));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// Starts it where it cannot come up; returns how it ended.
    pub(crate) fn fails_to_start(&self) -> ExitStatus {
        let mut child = self.spawn("");
        exit_of(&mut child, UP_WITHIN).unwrap_or_else(|| panic!("it is up, or hangs: {}", tail(&self.log)))
    }

    fn spawn(&self, first: &str) -> Child {
        let log = || File::options().create(true).append(true).open(&self.log).unwrap();
        Command::new("sh")
            .args(["-c", &format!("{first}\nexec \"$0\" \"$@\""), env!("CARGO_BIN_EXE_offpeak")])
            .args(["serve", "--config"])
            .arg(&self.config)
            .env("PROVIDER_KEY", &self.key)
            .stdin(Stdio::null())
            .stdout(log())
            .stderr(log())
            .spawn()
            .unwrap()
    }

    /// SIGKILL: it gets to do nothing more.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Sets the soft limit of a resource while it runs; none is the highest there is.
    pub(crate) fn limit(&self, resource: Resource, to: Option<u64>) {
        let hard = getrlimit(resource).maximum;
        prlimit(Some(self.pid()), resource, Rlimit { current: to.or(hard), maximum: hard }).unwrap();
    }

    fn pid(&self) -> Pid {
        Pid::from_child(self.child.as_ref().unwrap())
    }

    /// It ends by itself within this time.
    pub(crate) async fn ends_within(&mut self, limit: Duration) -> ExitStatus {
        let mut child = self.child.take().unwrap();
        let ended = tokio::task::spawn_blocking(move || exit_of(&mut child, limit)).await.unwrap();
        ended.unwrap_or_else(|| panic!("it has not ended within {limit:?}: {}", tail(&self.log)))
    }

    /// How often this stands in its log.
    pub(crate) fn says(&self, what: &str) -> usize {
        fs::read_to_string(&self.log).unwrap().matches(what).count()
    }

    /// Waits until this stands in its log so often.
    pub(crate) async fn said(&self, what: &str, times: usize) {
        crate::until(what, || self.says(what) >= times).await;
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
}

/// How a process ended; one that goes on after this time is killed.
fn exit_of(child: &mut Child, limit: Duration) -> Option<ExitStatus> {
    let began = Instant::now();
    while began.elapsed() < limit {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

/// A port that nobody uses now. Nobody else gets it soon: the system gives free ports in turn.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn tail(log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().rev().take(30).collect();
    lines.into_iter().rev().collect::<Vec<_>>().join("\n")
}
