//! Provider plugin for the OpenAI API and those that speak it.
//!
//! | file | holds |
//! | --- | --- |
//! | `config` | the plugin's table in the daemon's configuration |
//! | `dialect` | what differs between providers that speak this API |
//! | `sale` | offers, limits, and how a real-time call is sent |
//! | `lines` | the lines of a batch's files |
//! | `protocol` | the batch protocol as a state machine |
//! | `wire` | the provider's JSON objects |
//!
//! This file is the border to the daemon; all else are pure functions.

pub mod config;
pub mod dialect;
mod lines;
pub mod protocol;
mod sale;
mod wire;

use offpeak_plugin::{
    Configured, Offer,
    provider::{
        Batch, BatchLimits, Call, CredentialPlace, Decoded, Description, Event, Item, Prepared, Provider,
        Refusal, Step,
    },
};

use config::Config;
use dialect::{Dialect, OPENAI};
use protocol::Context;

static CONFIG: Configured<Config> = Configured::new();
const DIALECT: &Dialect = &OPENAI;

struct OpenAi;

impl Provider for OpenAi {
    fn describe() -> Description {
        CONFIG.get(); // a wrong configuration is refused when the plugin is loaded
        Description {
            name: "openai".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            endpoints: DIALECT.endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(),
            credential: CredentialPlace::Bearer,
        }
    }

    fn offers(endpoint: String, model: String) -> Vec<Offer> {
        sale::offers(&endpoint, &model, CONFIG.get(), DIALECT)
    }

    fn limits(endpoint: String, _model: String, offer: String) -> Option<BatchLimits> {
        sale::limits(&endpoint, &offer, CONFIG.get(), DIALECT)
    }

    fn prepare(call: Call) -> Result<Prepared, Refusal> {
        sale::prepare(&call, CONFIG.get(), DIALECT)
    }

    fn batch_step(batch: Batch, state: Vec<u8>, event: Event) -> Result<Step, String> {
        protocol::batch_step(&state, event, Context { batch: &batch, config: CONFIG.get(), dialect: DIALECT })
    }

    fn encode_items(batch: Batch, items: Vec<Item>) -> Result<Vec<u8>, String> {
        lines::encode(&batch.endpoint, &items)
    }

    fn decode_results(_batch: Batch, _source: String, lines: Vec<Vec<u8>>) -> Result<Vec<Decoded>, String> {
        Ok(lines.iter().map(|line| lines::decode(line, DIALECT)).collect())
    }
}

offpeak_plugin::export_provider!(OpenAi);
