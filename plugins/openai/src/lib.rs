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
#[cfg(test)]
mod corpus;
pub mod dialect;
mod lines;
mod protocol;
mod sale;
mod wire;

use offpeak_plugin::{
    Configured, Offer,
    provider::{
        Answer, Batch, BatchLimits, Call, Decoded, Description, Encoded, Event, Item, Prepared, Provider,
        Refusal, Rewritten, RewrittenChunk, Step,
    },
};

use config::{Checked, Config};
use protocol::{Context, background};

static CONFIG: Configured<Checked> = Configured::new();

fn config() -> &'static Config {
    CONFIG.get().config()
}

struct OpenAi;

impl Provider for OpenAi {
    fn describe() -> Description {
        let config = config(); // a wrong configuration is refused when the plugin is loaded
        Description {
            name: "openai".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            endpoints: config.dialect().endpoints.iter().map(|&endpoint| endpoint.to_owned()).collect(),
            credential: config.credential(),
            kept_headers: Vec::new(),
        }
    }

    fn offers(endpoint: String, model: String) -> Vec<Offer> {
        sale::offers(&endpoint, &model, config())
    }

    fn limits(endpoint: String, model: String, offer: String) -> Option<BatchLimits> {
        sale::limits(&endpoint, &model, &offer, config())
    }

    fn prepare(call: Call) -> Result<Prepared, Refusal> {
        sale::prepare(&call, config())
    }

    // Nothing is planned to be written anew; if it comes here all the same, it stays what it is.

    fn rewrite_request(_call: Call, body: Vec<u8>) -> Result<Rewritten, Refusal> {
        Ok(Rewritten { body, notes: Vec::new() })
    }

    fn rewrite_answer(_call: Call, _notes: Vec<u8>, answer: Answer) -> Answer {
        answer
    }

    fn rewrite_chunk(_call: Call, state: Vec<u8>, chunk: Vec<u8>, _last: bool) -> RewrittenChunk {
        RewrittenChunk { state, output: chunk }
    }

    fn batch_step(batch: Batch, state: Vec<u8>, event: Event) -> Result<Step, String> {
        protocol::batch_step(&state, event, Context::new(&batch, config())?)
    }

    fn encode_items(batch: Batch, items: Vec<Item>) -> Result<Encoded, String> {
        let context = Context::new(&batch, config())?;
        if let Some(window) = background::window(&batch.offer) {
            return Ok(Encoded { bytes: background::encode(window, &items, context)?, refused: Vec::new() });
        }
        let bytes = lines::encode(&lines::Style::of(&context), &items)?;
        Ok(Encoded { bytes, refused: Vec::new() })
    }

    fn decode_results(batch: Batch, _source: String, lines: Vec<Vec<u8>>) -> Result<Vec<Decoded>, String> {
        let context = Context::new(&batch, config())?;
        if background::window(&batch.offer).is_some() {
            return lines.iter().map(|line| background::decode(line, context)).collect();
        }
        let api = context.api;
        Ok(lines.iter().map(|line| lines::decode(line, api)).collect())
    }
}

offpeak_plugin::export_provider!(OpenAi);
