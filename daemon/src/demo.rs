//! `offpeak demo`: a simulated provider, the daemon, and a client's traffic, all on this machine, with a bill at the end.
//!
//! Nothing in the daemon knows that it is a demo: it gets a configuration and answers HTTP.

pub mod report;
pub mod traffic;

use std::collections::BTreeMap;
use std::io::{self, IsTerminal as _};
use std::net::SocketAddr;
use std::path::Path;

use provider_sim::{Handle, Provider, Server, Sim};
use tokio_util::sync::CancellationToken;

use crate::app::{App, StartError};
use crate::config::{Config, ConfigErrors};
use crate::demo::report::Report;
use crate::demo::traffic::{Plan, Traffic};

/// An hour at the simulated provider passes in a second.
const SPEED: u32 = 3600;

/// The key that the simulated provider asks for; the client never sees it.
const PROVIDER_KEY: &str = "sk-simulated-provider";

/// What to send.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// Real-time requests.
    pub realtime: usize,
    /// Deferrable requests.
    pub deferrable: usize,
    /// From which prompts, models and turnarounds follow.
    pub seed: u64,
    /// Leave everything running afterwards.
    pub keep: bool,
    /// The report as JSON.
    pub json: bool,
}

/// The demo could not be run.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The daemon.
    #[error("the daemon could not be started: {0}")]
    Start(#[from] StartError),
    /// Its configuration.
    #[error("the demo's configuration is wrong; please report this: {0}")]
    Config(#[from] ConfigErrors),
    /// Sockets or files.
    #[error("the demo needs a free loopback port and a temporary folder: {0}")]
    Io(#[from] io::Error),
    /// HTTP.
    #[error("a request of the demo failed: {0}")]
    Http(#[from] reqwest::Error),
}

/// Runs the demo; the report says whether every answer was there, once, and right.
pub async fn run(options: Options) -> Result<Report, DemoError> {
    let folder = tempfile::Builder::new().prefix("offpeak-demo-").tempdir()?;
    let (sim, provider) = start_provider(options.seed).await?;
    // Calls that go straight to a provider, for comparison, must not show on the bill.
    let (straight, _straight_provider) = start_provider(options.seed).await?;
    let daemon = Daemon::start(&sim, folder.path()).await?;
    let plan = Plan::new(options.realtime, options.deferrable, options.seed);
    let traffic = Traffic {
        daemon: format!("http://{}", daemon.data),
        straight: straight.url(),
        straight_key: PROVIDER_KEY,
        show_progress: io::stderr().is_terminal(),
    };
    eprintln!(
        "A simulated provider (an hour passes in a second) is running at {}, offpeak at http://{}; sending {} real-time \
         and {} deferrable requests.",
        sim.url(),
        daemon.data,
        plan.realtime.len(),
        plan.deferrable.len()
    );
    let seen = traffic.run(&plan).await?;
    let report = Report::new(&plan, &seen, &provider);
    if options.json {
        println!("{}", report.to_json());
    } else {
        println!("{report}");
    }
    if options.keep {
        keep(&daemon, &sim).await;
    }
    daemon.stop().await;
    Ok(report)
}

async fn start_provider(seed: u64) -> io::Result<(Handle, Provider)> {
    let provider = Sim::builder()
        .seed(seed)
        .speed(SPEED)
        .keys([PROVIDER_KEY])
        .models(traffic::MODELS)
        .track_executions(true)
        .build();
    let handle = Server::on_free_port(provider.clone()).await?;
    Ok((handle, provider))
}

/// The daemon, running.
struct Daemon {
    data: SocketAddr,
    admin: SocketAddr,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Daemon {
    async fn start(sim: &Handle, folder: &Path) -> Result<Self, DemoError> {
        let text = configuration(&sim.url(), folder);
        let env = BTreeMap::from([("DEMO_PROVIDER_KEY".to_owned(), PROVIDER_KEY.to_owned())]);
        let app = App::open(&Config::from_text("demo", &text, &env)?).await?;
        let (data, admin) = (app.data_address()?, app.admin_address()?);
        let stop = CancellationToken::new();
        let running = app.run(stop.clone());
        let task = tokio::spawn(async move {
            if let Err(error) = running.await {
                eprintln!("the daemon's store could not be closed: {error}");
            }
        });
        Ok(Self { data, admin, stop, task })
    }

    async fn stop(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            eprintln!("the daemon did not stop as it should: {error}");
        }
    }
}

/// What a user would write, with waits that fit a provider whose hours are seconds.
fn configuration(provider: &str, folder: &Path) -> String {
    let folder = toml::Value::String(folder.join("data").to_string_lossy().into_owned());
    format!(
        r#"
[server]
listen = "127.0.0.1:0"
admin = "127.0.0.1:0"
drain = "1s"

[store]
folder = {folder}

[access]
open = true

[backends.simulated]
provider = "openai"
base_url = "{provider}"
api_key = {{ env = "DEMO_PROVIDER_KEY" }}
models = ["gpt-*"]

[backends.simulated.lanes]
linger = "1s"

[backends.simulated.config]
poll_ms = 200
poll_max_ms = 500
retry_ms = 100
settle_ms = 500
"#
    )
}

async fn keep(daemon: &Daemon, sim: &Handle) {
    let (data, admin, provider) = (daemon.data, daemon.admin, sim.url());
    println!(
        r#"
Still running, until Ctrl-C. Try:

curl http://{data}/v1/chat/completions -H 'content-type: application/json' \
  -d '{{"model": "gpt-4o-mini", "messages": [{{"role": "user", "content": "now, please"}}]}}'

curl http://{data}/v1/chat/completions -H 'content-type: application/json' -H 'x-offpeak-sla: 24h' \
  -d '{{"model": "gpt-4o-mini", "messages": [{{"role": "user", "content": "whenever it is cheap"}}]}}'

python3 -c "
from openai import OpenAI
client = OpenAI(base_url='http://{data}/v1', api_key='any')
answer = client.chat.completions.create(model='gpt-4o-mini', messages=[{{'role': 'user', 'content': 'hello'}}],
                                        extra_headers={{'x-offpeak-sla': '24h'}})
print(answer.choices[0].message.content)"

curl http://{admin}/admin/v1/lanes        # what waits
curl http://{admin}/admin/v1/batches      # what is under way
curl http://{admin}/metrics               # what was counted
curl {provider}/sim/bill                  # what the provider charges"#
    );
    if let Err(error) = tokio::signal::ctrl_c().await {
        eprintln!("Ctrl-C cannot be caught ({error}), so that nothing is kept running.");
    }
}
