//! The role that knows how a provider's wire looks and how its batch API is driven.

#[doc(inline)]
pub use crate::bindings::provider::exports::offpeak::plugin::providing::{
    Batch, BatchLimits, BodyPlan, Call, CredentialPlace, Decoded, Description, Effect, Ending, Event,
    Failure, Finish, Framing, Guest as Provider, Item, ItemFailure, ItemOutcome, ItemResponse, ItemResult,
    Member, Multipart, Prepared, Progress, ReadSummary, Reading, Refusal, Request, Response, Step, Surround,
    Upload,
};

/// Makes a component of a type that implements [`Provider`]. Call it once, at the top level of the crate.
#[macro_export]
macro_rules! export_provider {
    ($provider:ident) => {
        $crate::bindings::provider::export!($provider with_types_in $crate::bindings::provider);
    };
}
