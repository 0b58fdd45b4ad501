//! Provider plugin for the Anthropic API, for its own clients and for those of OpenAI's chat completions.
//!
//! | file | holds |
//! | --- | --- |
//! | `config` | the plugin's table in the daemon's configuration |
//! | `sale` | offers, limits, and how a real-time call is sent |
//! | `lines` | the items of a batch, and the lines of its results |
//! | `protocol` | the batch protocol as a state machine |
//! | `rewrite` | where the translation meets calls, streams and batches |
//! | `chat` | the translation between chat completions and messages |
//! | `wire` | the provider's JSON objects |
//!
//! This file is the border to the daemon; all else are pure functions.

#[cfg(test)]
mod bad_days;
#[cfg(test)]
mod bend;
pub mod chat;
pub mod config;
mod lines;
mod protocol;
mod rewrite;
mod sale;
mod wire;

use offpeak_plugin::{
    Configured, Offer, now_ms,
    provider::{
        Answer, Batch, BatchLimits, Call, CredentialPlace, Decoded, Description, Encoded, Event, Item,
        Prepared, Provider, Refusal, RefusedItem, Rewritten, RewrittenChunk, Step,
    },
};

use config::Config;
use protocol::Context;
use sale::CHAT;

static CONFIG: Configured<Config> = Configured::new();

struct Anthropic;

impl Provider for Anthropic {
    fn describe() -> Description {
        CONFIG.get(); // a wrong configuration is refused when the plugin is loaded
        Description {
            name: "anthropic".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            endpoints: sale::ENDPOINTS.map(str::to_owned).to_vec(),
            credential: CredentialPlace::Header("x-api-key".to_owned()),
            kept_headers: sale::KEPT_HEADERS.map(str::to_owned).to_vec(),
        }
    }

    fn offers(endpoint: String, _model: String) -> Vec<Offer> {
        sale::offers(&endpoint, CONFIG.get())
    }

    fn limits(endpoint: String, _model: String, offer: String) -> Option<BatchLimits> {
        sale::limits(&endpoint, &offer, CONFIG.get())
    }

    fn prepare(call: Call) -> Result<Prepared, Refusal> {
        sale::prepare(&call, CONFIG.get())
    }

    fn rewrite_request(_call: Call, body: Vec<u8>) -> Result<Rewritten, Refusal> {
        rewrite::request(&body, CONFIG.get(), now_ms())
    }

    fn rewrite_answer(_call: Call, _notes: Vec<u8>, answer: Answer) -> Answer {
        rewrite::whole(&answer, now_ms())
    }

    fn rewrite_chunk(_call: Call, state: Vec<u8>, chunk: Vec<u8>, last: bool) -> RewrittenChunk {
        rewrite::chunk(&state, &chunk, last, now_ms())
    }

    fn batch_step(batch: Batch, state: Vec<u8>, event: Event) -> Result<Step, String> {
        protocol::batch_step(&state, event, Context { batch: &batch, config: CONFIG.get() })
    }

    fn encode_items(batch: Batch, items: Vec<Item>) -> Result<Encoded, String> {
        let bodies: usize = items.iter().map(|item| item.body.len()).sum();
        let mut bytes = Vec::with_capacity(bodies + items.len() * (lines::overhead_bytes() as usize));
        let mut refused = Vec::new();
        for mut item in items {
            if batch.endpoint == CHAT {
                match rewrite::request(&item.body, CONFIG.get(), now_ms()) {
                    Ok(rewritten) => item.body = rewritten.body,
                    Err(refusal) => {
                        refused.push(RefusedItem { id: item.id, refusal });
                        continue;
                    }
                }
            }
            lines::push(&mut bytes, &batch.mark, &item)?;
        }
        Ok(Encoded { bytes, refused })
    }

    fn decode_results(batch: Batch, _source: String, lines: Vec<Vec<u8>>) -> Result<Vec<Decoded>, String> {
        let understood = lines.iter().map(|line| lines::decode(line, &batch.mark));
        Ok(if batch.endpoint == CHAT {
            understood.map(|decoded| rewrite::result(decoded, now_ms())).collect()
        } else {
            understood.collect()
        })
    }
}

offpeak_plugin::export_provider!(Anthropic);
