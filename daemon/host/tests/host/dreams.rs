//! Answers out of thin air: whatever a component returns within the contract's types, the host either hands it on as far as it
//! is harmless, or says what is wrong with it; nothing panics, and the next call goes on.

use offpeak_guests::provider::dream;
use offpeak_host::{
    Limits, PluginError, PluginErrorKind,
    values::provider::{AnswerRef, Effect, Event, Item, Response},
};
use proptest::prelude::*;

use super::{NOW_MS, batch, call, provider_with, unhurried};

/// As much of a batch's state as is kept, and of a stream's.
const STATES: (usize, usize) = (64 << 10, 1 << 20);

/// It is the answer of a function that may refuse, or an error that says what is wrong.
fn is_told<T>(answer: Result<T, PluginError>) -> Result<Option<T>, TestCaseError> {
    match answer {
        Ok(answer) => Ok(Some(answer)),
        Err(PluginError { kind: PluginErrorKind::BadAnswer(_) | PluginErrorKind::Refused(_), .. }) => {
            Ok(None)
        }
        Err(error) => Err(TestCaseError::fail(error.to_string())),
    }
}

fn is_path(path: &str) -> bool {
    path.starts_with('/') && !path.contains(|c: char| c.is_control() || c.is_whitespace())
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_comes_out_of_a_component_is_harmless_or_refused(number in any::<u64>(), lines in 0..5_usize) {
        let provider = &*PROVIDER;
        let model = &*dream(number);
        let (call, batch) = (call(model), batch(model));
        is_told(provider.offers(call.endpoint, model, NOW_MS))?;
        is_told(provider.limits(call.endpoint, model, "batch", NOW_MS))?;
        if let Some(Ok(prepared)) = is_told(provider.prepare(&call, NOW_MS))? {
            prop_assert!(is_path(&prepared.path), "{:?}", prepared.path);
        }
        if let Some(Ok(rewritten)) = is_told(provider.rewrite_request(&call, b"{}", NOW_MS))? {
            prop_assert!(rewritten.notes.len() <= STATES.1);
        }
        let answer = AnswerRef { status: 200, content_type: None, body: b"{}" };
        if let Some(answer) = is_told(provider.rewrite_answer(&call, b"", answer, NOW_MS))? {
            prop_assert!((200..600).contains(&answer.status));
        }
        if let Some(chunk) = is_told(provider.rewrite_chunk(&call, b"", b"x", true, NOW_MS))? {
            prop_assert!(chunk.state.len() <= STATES.1);
        }
        let answered = Event::Answered(Response { status: 200, headers: &[], body: b"{}" });
        if let Some(step) = is_told(provider.batch_step(&batch, b"", &answered, NOW_MS))? {
            prop_assert!(step.state.len() <= STATES.0);
            match &step.effect {
                Effect::Call(request) => prop_assert!(is_path(&request.path)),
                Effect::Upload(upload) => prop_assert!(is_path(&upload.path)),
                Effect::Read(reading) => prop_assert!(is_path(&reading.path)),
                Effect::Wait(_) | Effect::Results(_) | Effect::Finished(_) | Effect::Failed(_) => {}
            }
        }
        let items = [Item { id: "0-0", body: b"{}" }, Item { id: "0-1", body: b"{}" }];
        if let Some(encoded) = is_told(provider.encode_items(&batch, &items, NOW_MS))? {
            prop_assert!(encoded.refused.iter().all(|refused| items.iter().any(|item| item.id == refused.id)));
        }
        let read = vec![&b"line"[..]; lines];
        if let Some(decoded) = is_told(provider.decode_results(&batch, "output", &read, NOW_MS))? {
            prop_assert_eq!(decoded.len(), lines);
        }
        prop_assert!(provider.offers(call.endpoint, "gpt", NOW_MS).is_ok());
    }
}

#[test]
fn there_are_dreams_of_all_kinds() {
    let (mut good, mut refusals, mut bad) = (0, 0, 0);
    for number in 0..300 {
        // What keeps failing is taken out of use; what fails now and then is not.
        assert!(PROVIDER.offers("/v1/chat/completions", "gpt", NOW_MS).is_ok());
        match PROVIDER.prepare(&call(&dream(number)), NOW_MS) {
            Ok(Ok(_)) => good += 1,
            Ok(Err(_)) => refusals += 1,
            Err(_) => bad += 1,
        }
    }
    assert!(good > 10 && refusals > 10 && bad > 10, "{good} {refusals} {bad}");
}

/// All cases share an instance, so that one's answer would be seen by the next.
static PROVIDER: std::sync::LazyLock<offpeak_host::ProviderPlugin> =
    std::sync::LazyLock::new(|| provider_with(unhurried(Limits::provider())));
