//! The program: started, killed, started again on the same folder and port.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// It is up within this, on a machine with much else to do.
const UP_WITHIN: Duration = Duration::from_mins(1);

/// A daemon that is killed when this is dropped.
pub(crate) struct Daemon {
    config: PathBuf,
    log: PathBuf,
    key: String,
    data: u16,
    child: Option<Child>,
}

impl Daemon {
    /// `settings` is TOML, written as dotted keys, that goes before the rest.
    pub(crate) fn new(folder: &Path, provider: &str, key: &str, settings: &str) -> Self {
        let (data, admin) = (free_port(), free_port());
        let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("plugins");
        let config = folder.join("offpeak.toml");
        let text = format!(
            r#"
{settings}
server.listen = "127.0.0.1:{data}"
server.admin = "127.0.0.1:{admin}"
server.drain = "1s"
store.folder = "{folder}/data"
lanes.linger = "100ms"
retry.base = "20ms"
plugins.cache = "{cache}"
plugins.router.time_limit = "5s"
plugins.providers.openai.time_limit = "5s"
backends.simulated.provider = "openai"
backends.simulated.base_url = "{provider}"
backends.simulated.api_key.env = "PROVIDER_KEY"
backends.simulated.models = ["*"]
backends.simulated.config.poll_ms = 30
backends.simulated.config.poll_max_ms = 60
backends.simulated.config.retry_ms = 20
backends.simulated.config.retry_max_ms = 500
backends.simulated.config.settle_ms = 150
"#,
            folder = folder.display(),
            cache = cache.display()
        );
        fs::write(&config, text).unwrap();
        Self { config, log: folder.join("log"), key: key.to_owned(), data, child: None }
    }

    pub(crate) fn url(&self) -> String {
        format!("http://127.0.0.1:{}", self.data)
    }

    /// Starts it, and waits until it takes connections.
    pub(crate) async fn start(&mut self) {
        let log = || File::options().create(true).append(true).open(&self.log).unwrap();
        let child = Command::new(env!("CARGO_BIN_EXE_offpeak"))
            .args(["serve", "--config"])
            .arg(&self.config)
            .env("PROVIDER_KEY", &self.key)
            .stdin(Stdio::null())
            .stdout(log())
            .stderr(log())
            .spawn()
            .unwrap();
        let child = self.child.insert(child);
        let began = Instant::now();
        while tokio::net::TcpStream::connect(("127.0.0.1", self.data)).await.is_err() {
            let ended = child.try_wait().unwrap();
            let is_late = began.elapsed() > UP_WITHIN;
            assert!(ended.is_none() && !is_late, "it is not up: {ended:?}\n{}", tail(&self.log));
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// SIGKILL: it gets to do nothing more.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            child.kill().unwrap();
            child.wait().unwrap();
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
    }
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
