//! Inference servers of one's own: vLLM, and others that speak OpenAI's API.
//!
//! It takes two roles. As a provider it says how calls look; as an engine adapter, what the server's metrics mean.
//!
//! | file | holds |
//! | --- | --- |
//! | `config` | the plugin's table in the daemon's configuration |
//! | `kind` | what differs between servers |
//! | `sale` | offers, and how a call is sent |
//! | `exposition` | numbers from a page of metrics |
//! | `load` | what they mean |
//!
//! This file is the border to the daemon; all else are pure functions.

pub mod config;
mod exposition;
pub mod kind;
pub mod load;
pub mod sale;

use offpeak_plugin::{
    Configured, Offer,
    engine::{self, Engine, Load, Look, Sight, UnderWay},
    provider::{
        self, Answer, Batch, BatchLimits, Call, CredentialPlace, Decoded, Encoded, Event, Item, Prepared,
        Provider, Refusal, Rewritten, RewrittenChunk, Step,
    },
};

use config::Config;

static CONFIG: Configured<Config> = Configured::new();

const NAME: &str = "vllm";
const NO_BATCHES: &str = "an engine has no batch API; its deferred requests are sent one by one";

struct Vllm;

impl Engine for Vllm {
    fn describe() -> engine::Description {
        CONFIG.get(); // a wrong configuration is refused when the plugin is loaded
        engine::Description { name: NAME.to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }

    fn looks() -> Vec<Look> {
        load::looks(CONFIG.get())
    }

    fn interpret(sights: Vec<Sight>, under_way: UnderWay) -> Result<Load, String> {
        Ok(load::interpret(&sights, under_way, CONFIG.get()))
    }
}

impl Provider for Vllm {
    fn describe() -> provider::Description {
        let kind = CONFIG.get().kind();
        provider::Description {
            name: NAME.to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            endpoints: kind.endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(),
            credential: CredentialPlace::Bearer,
            kept_headers: Vec::new(),
        }
    }

    fn offers(endpoint: String, _model: String) -> Vec<Offer> {
        sale::offers(&endpoint, CONFIG.get())
    }

    fn limits(_endpoint: String, _model: String, _offer: String) -> Option<BatchLimits> {
        None
    }

    fn prepare(call: Call) -> Result<Prepared, Refusal> {
        sale::prepare(&call, CONFIG.get())
    }

    fn rewrite_request(_call: Call, body: Vec<u8>) -> Result<Rewritten, Refusal> {
        Ok(Rewritten { body, notes: Vec::new() })
    }

    fn rewrite_answer(_call: Call, _notes: Vec<u8>, answer: Answer) -> Answer {
        sale::check_answer(answer)
    }

    fn rewrite_chunk(_call: Call, state: Vec<u8>, chunk: Vec<u8>, _last: bool) -> RewrittenChunk {
        RewrittenChunk { state, output: chunk }
    }

    fn batch_step(_batch: Batch, _state: Vec<u8>, _event: Event) -> Result<Step, String> {
        Err(NO_BATCHES.to_owned())
    }

    fn encode_items(_batch: Batch, _items: Vec<Item>) -> Result<Encoded, String> {
        Err(NO_BATCHES.to_owned())
    }

    fn decode_results(_batch: Batch, _source: String, _lines: Vec<Vec<u8>>) -> Result<Vec<Decoded>, String> {
        Err(NO_BATCHES.to_owned())
    }
}

offpeak_plugin::export_engine!(Vllm);
offpeak_plugin::export_provider!(Vllm);
