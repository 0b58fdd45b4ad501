//! The engine behind it all, one's own or the model of one, and the way to a daemon before it.

use std::any::Any;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::sync::mpsc;

use provider_sim::{EngineOptions, Provider, Server, Sim};
use tokio::runtime::Builder;
use tokio::sync::oneshot;

use crate::error::{Context, Error};

/// The model of an engine that is simulated.
const SIMULATED: &str = "sim-7b";

/// A running daemon, and what keeps it so.
pub struct Door {
    /// The data plane.
    pub data: SocketAddr,
    /// The admin plane.
    pub admin: SocketAddr,
    /// Dropped, it ends.
    pub alive: Box<dyn Any + Send>,
}

/// An engine that runs somewhere.
#[derive(Debug, Clone)]
pub struct Real {
    /// Where, without a path.
    pub url: String,
    /// The model that it serves.
    pub model: String,
    /// Settings of the plugin for it, as lines of TOML.
    pub config: String,
}

/// What is measured.
#[derive(Debug)]
pub struct Engine {
    /// Where it listens.
    pub address: SocketAddr,
    /// What it is asked for.
    pub model: String,
    config: String,
    model_of_one: Option<ModelOfOne>,
}

/// A simulated engine on a thread of its own, so that it has its time whatever the load generator does.
#[derive(Debug)]
struct ModelOfOne {
    provider: Provider,
    // Dropped, the thread ends.
    _stop: oneshot::Sender<()>,
}

impl Engine {
    /// One that runs already.
    pub fn real(real: &Real) -> Result<Self, Error> {
        let Real { url, model, config } = real;
        let host = url.strip_prefix("http://").map(|host| host.trim_end_matches('/'));
        let host =
            host.ok_or_else(|| Error::WrongAnswer(format!("{url} does not begin with http:// (--engine)")))?;
        let mut addresses = host.to_socket_addrs().context(format!("looking for the engine at {url}"))?;
        let address = addresses.next();
        let address =
            address.ok_or_else(|| Error::WrongAnswer(format!("{url} has no address (--engine)")))?;
        Ok(Self { address, model: model.clone(), config: config.clone(), model_of_one: None })
    }

    /// The arithmetic of one, in real time.
    pub fn simulated(options: EngineOptions) -> Result<Self, Error> {
        let provider = Sim::builder().seed(1).speed(1).models([SIMULATED]).engine(options).build();
        let (tell, address) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let runtime = Builder::new_current_thread().enable_all().build().context("starting the engine")?;
        let served = provider.clone();
        std::thread::spawn(move || {
            runtime.block_on(async {
                let server = Server::on_free_port(served).await;
                if tell
                    .send(server.as_ref().map(provider_sim::Handle::addr).map_err(std::io::Error::kind))
                    .is_ok()
                {
                    // An error says that who held the other end is gone, which is what it waits for.
                    stopped.await.ok();
                }
            });
        });
        let address =
            address.recv().map_err(|_| Error::WrongAnswer("the engine did not start".to_owned()))?;
        let address = address.map_err(std::io::Error::from).context("starting the simulated engine")?;
        let model_of_one = Some(ModelOfOne { provider, _stop: stop });
        Ok(Self { address, model: SIMULATED.to_owned(), config: String::new(), model_of_one })
    }

    /// Whether it is only the model of one.
    pub const fn is_simulated(&self) -> bool {
        self.model_of_one.is_some()
    }

    /// Tokens that it has read and made; none if it is not simulated.
    pub fn tokens(&self) -> Option<u64> {
        let status = self.model_of_one.as_ref()?.provider.engine()?;
        Some(status.prompt_tokens + status.generated_tokens)
    }

    /// A daemon's settings for it: as they are by default, but for these lines.
    pub fn settings(&self, engine: &str, config: &str) -> String {
        format!(
            "[backends.engine]\nprovider = \"vllm\"\nbase_url = \"http://{}\"\nmodels = [\"*\"]\n\
             [backends.engine.engine]\n{engine}\n[backends.engine.config]\n{}\n{config}\n",
            self.address, self.config
        )
    }
}
