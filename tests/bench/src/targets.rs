//! What is put in the path: nothing, nginx, a bare proxy, offpeak. All have the same cores and the same upstream.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Context, Error};
use crate::process::Process;
use crate::talk::{KEY, free_port, is_up};

/// How long a process gets to become ready.
pub const READY_LIMIT: Duration = Duration::from_mins(1);

/// The variable from which the daemon's configuration takes the tenant's key.
const KEY_VARIABLE: &str = "BENCH_KEY";

/// The variable with the backend's credential.
const CREDENTIAL_VARIABLE: &str = "BENCH_CREDENTIAL";

/// Where to find the programs.
#[derive(Debug, Clone)]
pub struct Programs {
    /// The daemon, built for release.
    pub offpeak: PathBuf,
    /// nginx.
    pub nginx: PathBuf,
}

/// The upstream as a process of its own.
#[derive(Debug)]
pub struct Upstream {
    child: Child,
    /// Where it listens.
    pub address: SocketAddr,
}

/// A running daemon.
#[derive(Debug)]
pub struct Daemon {
    /// Its process.
    pub process: Process,
    /// The data plane.
    pub data: SocketAddr,
    /// The admin plane.
    pub admin: SocketAddr,
    /// From its start until `/readyz` answered.
    pub ready_after: Duration,
}

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    /// Master and workers.
    pub process: Process,
    /// `proxy_pass` with its defaults: answers are buffered.
    pub plain: SocketAddr,
    /// The same with `proxy_buffering off`, as streams need it.
    pub streaming: SocketAddr,
}

/// A running bare proxy.
#[derive(Debug)]
pub struct Bare {
    /// Its process: this very program with another command.
    pub process: Process,
    /// Where it listens.
    pub address: SocketAddr,
}

impl Bare {
    /// Starts it in front of an upstream.
    pub async fn start(folder: &Path, upstream: SocketAddr) -> Result<Self, Error> {
        let program = std::env::current_exe().context("looking for this program's own file")?;
        let address = free_port()?;
        let mut command = Command::new(program);
        command.arg("bare").args(["--listen", &address.to_string(), "--upstream", &upstream.to_string()]);
        let mut process = Process::start("the bare proxy", &mut command, &folder.join("bare.log"))?;
        wait_until_it_listens(&mut process, address).await?;
        Ok(Self { process, address })
    }
}

async fn wait_until_it_listens(process: &mut Process, address: SocketAddr) -> Result<(), Error> {
    let until = Instant::now() + READY_LIMIT;
    while std::net::TcpStream::connect(address).is_err() {
        if Instant::now() > until || !process.is_running() {
            return Err(process.not_ready(READY_LIMIT));
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}

impl Upstream {
    /// Starts this very program with another command.
    pub fn start(threads: usize) -> Result<Self, Error> {
        let program = std::env::current_exe().context("looking for this program's own file")?;
        let mut child = Command::new(program)
            .args(["upstream", "--threads", &threads.to_string()])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the upstream")?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out).read_line(&mut line).context("reading the upstream's address")?;
        }
        let address = line.trim().parse();
        let address = address
            .map_err(|_| Error::WrongAnswer(format!("the upstream said {line:?}, not its address")))?;
        Ok(Self { child, address })
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

impl Nginx {
    /// Starts nginx in a folder of its own.
    pub async fn start(
        program: &Path,
        folder: &Path,
        upstream: SocketAddr,
        workers: usize,
    ) -> Result<Self, Error> {
        let folder = folder.join(format!("nginx-{workers}"));
        fs::create_dir_all(&folder).context("making a folder for nginx")?;
        let (plain, streaming) = (free_port()?, free_port()?);
        let file = folder.join("nginx.conf");
        fs::write(&file, nginx_config(&folder, upstream, workers, plain, streaming))
            .context("writing nginx.conf")?;
        let log = folder.join("log");
        let mut command = Command::new(program);
        command.arg("-p").arg(&folder).arg("-c").arg(&file);
        let mut process = Process::start("nginx", &mut command, &log)?;
        wait_until_it_listens(&mut process, streaming).await?;
        process.adopt_workers()?;
        Ok(Self { process, plain, streaming })
    }
}

/// No limits and no logs that would make it slower than it is.
fn nginx_config(
    folder: &Path,
    upstream: SocketAddr,
    workers: usize,
    plain: SocketAddr,
    streaming: SocketAddr,
) -> String {
    let folder = folder.display();
    let temporary = ["client_body", "proxy", "fastcgi", "scgi", "uwsgi"]
        .map(|kind| format!("  {kind}_temp_path {folder}/{kind};\n"))
        .concat();
    let server = |listen: SocketAddr, more: &str| {
        format!(
            "  server {{\n    listen {listen} backlog=4096;\n    location / {{\n      proxy_pass http://upstream;\n      \
             proxy_http_version 1.1;\n      proxy_set_header Connection \"\";\n{more}    }}\n  }}\n"
        )
    };
    format!(
        "daemon off;\npid {folder}/pid;\nerror_log stderr warn;\nworker_processes {workers};\n\
         events {{\n  worker_connections 8192;\n}}\nhttp {{\n  access_log off;\n  tcp_nodelay on;\n{temporary}  \
         keepalive_requests 1000000000;\n  \
         upstream upstream {{\n    server {upstream};\n    keepalive 1024;\n    keepalive_requests 1000000000;\n  }}\n\
         {}{}}}\n",
        server(plain, ""),
        server(streaming, "      proxy_buffering off;\n"),
    )
}

/// How a daemon is set up.
#[derive(Debug, Clone)]
pub struct Setup<'a> {
    /// The daemon's program.
    pub program: &'a Path,
    /// Configuration and log go here.
    pub folder: &'a Path,
    /// The data folder.
    pub store: &'a Path,
    /// Precompiled plugins.
    pub plugin_cache: &'a Path,
    /// The one backend.
    pub upstream: SocketAddr,
}

impl Setup<'_> {
    /// Starts the daemon and waits until it is ready. Nothing departs: a lane's first request would have to wait for a day.
    pub async fn start(&self) -> Result<Daemon, Error> {
        let upstream = self.upstream;
        self.start_with(&format!(
            "[backends.openai]\nbase_url = \"http://{upstream}\"\nmodels = [\"gpt-*\"]\n\
             api_key = {{ env = \"{CREDENTIAL_VARIABLE}\" }}\n[lanes]\nlinger = \"24h\"\n"
        ))
        .await
    }

    /// Starts it with backends and lanes as these lines say.
    pub async fn start_with(&self, settings: &str) -> Result<Daemon, Error> {
        let (data, admin) = (free_port()?, free_port()?);
        let file = self.folder.join("offpeak.toml");
        let config = format!("{}{settings}", self.config(data, admin));
        fs::write(&file, config).context("writing offpeak.toml")?;
        let log = self.folder.join("log");
        let mut command = Command::new(self.program);
        command.arg("serve").arg("--config").arg(&file);
        command.env(KEY_VARIABLE, KEY).env(CREDENTIAL_VARIABLE, "sk-upstream-0123456789abcdef");
        let began = Instant::now();
        let mut process = Process::start("offpeak", &mut command, &log)?;
        while !is_up(admin, "/readyz").await {
            if began.elapsed() > READY_LIMIT || !process.is_running() {
                return Err(process.not_ready(READY_LIMIT));
            }
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        Ok(Daemon { process, data, admin, ready_after: began.elapsed() })
    }

    /// As in production: keys are checked, the quota counts, the router plugin decides.
    fn config(&self, data: SocketAddr, admin: SocketAddr) -> String {
        let (store, plugin_cache) = (self.store.display(), self.plugin_cache.display());
        format!(
            "[server]\nlisten = \"{data}\"\nadmin = \"{admin}\"\ndrain = \"1s\"\n\
             [store]\nfolder = \"{store}\"\n\
             [tenants.bench]\nkeys = [{{ env = \"{KEY_VARIABLE}\" }}]\nrequests_per_minute = 4000000000\n\
             max_queued = 10000000\nmax_queued_bytes = \"1TB\"\n\
             [plugins]\ncache = \"{plugin_cache}\"\n\
             [log]\nlevel = \"info\"\n"
        )
    }
}
