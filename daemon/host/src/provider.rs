//! The world `provider`: a provider's wire formats and batch protocol.

use crate::{
    Engine, HostError, Limits, PluginError, Source,
    bindings::provider::{Provider, ProviderPre},
    limits::{BATCH_STATE_BYTES, STREAM_STATE_BYTES},
    plugin::{Pace, Plugin, plugin_of},
    values::provider::{
        Answer, AnswerRef, Batch, BatchLimits, Call, Decoded, Description, Effect, Encoded, Event, Item,
        Offer, Prepared, Refusal, Rewritten, RewrittenChunk, Step,
    },
};

plugin_of!(ProviderPlugin, world Provider, "provider", "offpeak:plugin/providing@0.1.0", ProviderPre);

/// A plugin of the world `provider`, loaded with the configuration of one backend. Calls may come from many threads at
/// once. All times are milliseconds since 1970.
pub struct ProviderPlugin {
    plugin: Plugin<Provider>,
    description: Description,
}

impl ProviderPlugin {
    /// Loads a provider and asks it to describe itself. `config_json` is the plugin's own table as the text of one JSON
    /// object.
    pub fn load(
        engine: &Engine,
        name: &str,
        source: Source<'_>,
        config_json: String,
        limits: Limits,
        now_ms: u64,
    ) -> Result<Self, HostError> {
        let plugin = Plugin::<Provider>::load(engine, name, source, config_json, limits)?;
        let description = plugin.call(
            "describe",
            Pace::Step,
            now_ms,
            |store, world| world.offpeak_plugin_providing().call_describe(store),
            |_| Ok(()),
        )?;
        Ok(Self { plugin, description })
    }

    /// The ladder of offers for a model at an endpoint; empty if the provider does not sell it.
    pub fn offers(&self, endpoint: &str, model: &str, now_ms: u64) -> Result<Vec<Offer>, PluginError> {
        self.plugin.call(
            "offers",
            Pace::Request,
            now_ms,
            |store, world| world.offpeak_plugin_providing().call_offers(store, endpoint, model),
            |_| Ok(()),
        )
    }

    /// The limits of a batch under an offer; `None` if the offer is not a batch.
    pub fn limits(
        &self,
        endpoint: &str,
        model: &str,
        offer: &str,
        now_ms: u64,
    ) -> Result<Option<BatchLimits>, PluginError> {
        self.plugin.call(
            "limits",
            Pace::Request,
            now_ms,
            |store, world| world.offpeak_plugin_providing().call_limits(store, endpoint, model, offer),
            |_| Ok(()),
        )
    }

    /// What to send for a real-time call, or why it cannot be made at this provider. The answer depends on nothing but
    /// `call`, and may be kept.
    pub fn prepare(&self, call: &Call<'_>, now_ms: u64) -> Result<Result<Prepared, Refusal>, PluginError> {
        self.plugin.call(
            "prepare",
            Pace::Request,
            now_ms,
            |store, world| world.offpeak_plugin_providing().call_prepare(store, call.clone()),
            |answer| answer.as_ref().map_or(Ok(()), |prepared| check_path(&prepared.path)),
        )
    }

    /// A request's body, written anew, or why it cannot be said at this provider.
    pub fn rewrite_request(
        &self,
        call: &Call<'_>,
        body: &[u8],
        now_ms: u64,
    ) -> Result<Result<Rewritten, Refusal>, PluginError> {
        self.plugin.call(
            "rewrite-request",
            Pace::Step,
            now_ms,
            |store, world| world.offpeak_plugin_providing().call_rewrite_request(store, call.clone(), body),
            |answer| answer.as_ref().map_or(Ok(()), |rewritten| check_stream_state(&rewritten.notes)),
        )
    }

    /// A whole answer, written anew.
    pub fn rewrite_answer(
        &self,
        call: &Call<'_>,
        notes: &[u8],
        answer: AnswerRef<'_>,
        now_ms: u64,
    ) -> Result<Answer, PluginError> {
        self.plugin.call(
            "rewrite-answer",
            Pace::Step,
            now_ms,
            |store, world| {
                world.offpeak_plugin_providing().call_rewrite_answer(store, call.clone(), notes, answer)
            },
            |answer| match answer.status {
                200..=599 => Ok(()),
                status => Err(format!("{status} is not the status of an answer")),
            },
        )
    }

    /// A part of a streamed answer, written anew.
    pub fn rewrite_chunk(
        &self,
        call: &Call<'_>,
        state: &[u8],
        chunk: &[u8],
        last: bool,
        now_ms: u64,
    ) -> Result<RewrittenChunk, PluginError> {
        self.plugin.call(
            "rewrite-chunk",
            Pace::Request,
            now_ms,
            |store, world| {
                world.offpeak_plugin_providing().call_rewrite_chunk(store, call.clone(), state, chunk, last)
            },
            |rewritten| check_stream_state(&rewritten.state),
        )
    }

    /// One step of the batch protocol; `state` is empty at the start.
    pub fn batch_step(
        &self,
        batch: &Batch<'_>,
        state: &[u8],
        event: &Event<'_>,
        now_ms: u64,
    ) -> Result<Step, PluginError> {
        self.plugin
            .call(
                "batch-step",
                Pace::Step,
                now_ms,
                |store, world| {
                    world.offpeak_plugin_providing().call_batch_step(
                        store,
                        batch.clone(),
                        state,
                        event.clone(),
                    )
                },
                |answer| answer.as_ref().map_or(Ok(()), check_step),
            )?
            .map_err(|reason| self.plugin.refused("batch-step", &reason))
    }

    /// Items as they stand in an upload, and those that cannot.
    pub fn encode_items(
        &self,
        batch: &Batch<'_>,
        items: &[Item<'_>],
        now_ms: u64,
    ) -> Result<Encoded, PluginError> {
        self.plugin
            .call(
                "encode-items",
                Pace::Step,
                now_ms,
                |store, world| {
                    world.offpeak_plugin_providing().call_encode_items(store, batch.clone(), items)
                },
                |answer| answer.as_ref().map_or(Ok(()), |encoded| check_refused(encoded, items)),
            )?
            .map_err(|reason| self.plugin.refused("encode-items", &reason))
    }

    /// What lines of a reading turned out to be: one answer for each line, in order.
    pub fn decode_results(
        &self,
        batch: &Batch<'_>,
        source: &str,
        lines: &[&[u8]],
        now_ms: u64,
    ) -> Result<Vec<Decoded>, PluginError> {
        self.plugin
            .call(
                "decode-results",
                Pace::Step,
                now_ms,
                |store, world| {
                    world.offpeak_plugin_providing().call_decode_results(store, batch.clone(), source, lines)
                },
                |answer| match answer {
                    Ok(decoded) if decoded.len() != lines.len() => {
                        Err(format!("{} answers for {} lines", decoded.len(), lines.len()))
                    }
                    _ => Ok(()),
                },
            )?
            .map_err(|reason| self.plugin.refused("decode-results", &reason))
    }
}

fn check_step(step: &Step) -> Result<(), String> {
    if step.state.len() > BATCH_STATE_BYTES {
        return Err(format!("a state of {} bytes; at most {BATCH_STATE_BYTES} are kept", step.state.len()));
    }
    match &step.effect {
        Effect::Call(request) => check_path(&request.path),
        Effect::Upload(upload) => check_path(&upload.path),
        Effect::Read(reading) => check_path(&reading.path),
        Effect::Wait(_) | Effect::Results(_) | Effect::Finished(_) | Effect::Failed(_) => Ok(()),
    }
}

fn check_stream_state(state: &[u8]) -> Result<(), String> {
    if state.len() > STREAM_STATE_BYTES {
        return Err(format!("a state of {} bytes; at most {STREAM_STATE_BYTES} are kept", state.len()));
    }
    Ok(())
}

/// A refusal is an item's outcome, so it must be about one that was asked for.
fn check_refused(encoded: &Encoded, items: &[Item<'_>]) -> Result<(), String> {
    let is_asked = |id: &str| items.iter().any(|item| item.id == id);
    match encoded.refused.iter().find(|refused| !is_asked(&refused.id)) {
        Some(refused) => Err(format!("it refused the item {:?}, which was not among them", refused.id)),
        None => Ok(()),
    }
}

/// A path is put behind the base URL as it is: without the "/" it could name another host.
fn check_path(path: &str) -> Result<(), String> {
    if path.starts_with('/') && !path.chars().any(|c| c.is_control() || c.is_whitespace()) {
        Ok(())
    } else {
        Err(format!("the path {path:?} does not begin with \"/\", or has blanks in it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_stays_below_the_base_url() {
        assert!(check_path("/v1/files?purpose=batch&limit=100").is_ok());
        for path in ["", "v1/files", "@elsewhere.test/", ".elsewhere.test/", "/a b", "/a\r\nhost: b"] {
            assert!(check_path(path).is_err(), "{path:?}");
        }
    }
}
