//! The role that knows how a provider's wire looks and how its batch API is driven.

#[doc(inline)]
pub use crate::bindings::provider::exports::offpeak::plugin::providing::{
    Answer, AnswerPlan, Batch, BatchLimits, BodyPlan, Call, CredentialPlace, Decoded, Description, Effect,
    Encoded, Ending, Event, Failure, Finish, Framing, Guest as Provider, Item, ItemFailure, ItemOutcome,
    ItemResponse, ItemResult, Member, Multipart, Prepared, Progress, ReadSummary, Reading, ReadingForm,
    Refusal, RefusedItem, Request, Response, Rewritten, RewrittenChunk, Step, Surround, Upload,
};

/// Makes a component of a type that implements [`Provider`]. Call it once, at the top level of the crate.
#[macro_export]
macro_rules! export_provider {
    ($provider:ident) => {
        const _: () = {
            use $crate::Offer;
            use $crate::provider::{
                Answer, Batch, BatchLimits, Call, Decoded, Description, Encoded, Event, Item, Prepared,
                Provider, Refusal, Rewritten, RewrittenChunk, Step,
            };

            struct Exported;

            impl Provider for Exported {
                fn describe() -> Description {
                    $crate::log_panics();
                    <$provider as Provider>::describe()
                }

                fn offers(endpoint: String, model: String) -> Vec<Offer> {
                    $crate::log_panics();
                    <$provider as Provider>::offers(endpoint, model)
                }

                fn limits(endpoint: String, model: String, offer: String) -> Option<BatchLimits> {
                    $crate::log_panics();
                    <$provider as Provider>::limits(endpoint, model, offer)
                }

                fn prepare(call: Call) -> Result<Prepared, Refusal> {
                    $crate::log_panics();
                    <$provider as Provider>::prepare(call)
                }

                fn rewrite_request(call: Call, body: Vec<u8>) -> Result<Rewritten, Refusal> {
                    $crate::log_panics();
                    <$provider as Provider>::rewrite_request(call, body)
                }

                fn rewrite_answer(call: Call, notes: Vec<u8>, answer: Answer) -> Answer {
                    $crate::log_panics();
                    <$provider as Provider>::rewrite_answer(call, notes, answer)
                }

                fn rewrite_chunk(call: Call, state: Vec<u8>, chunk: Vec<u8>, last: bool) -> RewrittenChunk {
                    $crate::log_panics();
                    <$provider as Provider>::rewrite_chunk(call, state, chunk, last)
                }

                fn batch_step(batch: Batch, state: Vec<u8>, event: Event) -> Result<Step, String> {
                    $crate::log_panics();
                    <$provider as Provider>::batch_step(batch, state, event)
                }

                fn encode_items(batch: Batch, items: Vec<Item>) -> Result<Encoded, String> {
                    $crate::log_panics();
                    <$provider as Provider>::encode_items(batch, items)
                }

                fn decode_results(
                    batch: Batch,
                    source: String,
                    lines: Vec<Vec<u8>>,
                ) -> Result<Vec<Decoded>, String> {
                    $crate::log_panics();
                    <$provider as Provider>::decode_results(batch, source, lines)
                }
            }

    $crate::bindings::provider::export!(Exported with_types_in $crate::bindings::provider);
        };
    };
}
