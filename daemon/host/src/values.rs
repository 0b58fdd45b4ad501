//! The records that travel to and from plugins, as wit/ defines and explains them.
//!
//! What goes to a plugin borrows, what comes from one is owned.

/// Values of the world `router`.
pub mod router {
    pub use crate::bindings::router::exports::offpeak::plugin::routing::{
        BodyNeed, Candidate, Choice, Decision, Description, Envelope, Header, Offer, Rejection, Sla, Tag,
    };
    pub use crate::bindings::router::offpeak::plugin::types::Mode;
}

/// Values of the world `provider`.
pub mod provider {
    pub use crate::bindings::provider::exports::offpeak::plugin::providing::{
        AnswerParam as AnswerRef, AnswerPlan, AnswerResult as Answer, Batch, BatchLimits, BodyPlan, Call,
        CredentialPlace, Decoded, Description, DidItRun, Effect, Encoded, Ending, Event, Failure, Finish,
        Framing, HeaderParam as HeaderRef, HeaderResult as Header, Item, ItemFailure, ItemOutcome,
        ItemResponse, ItemResult, Member, Multipart, Offer, Prepared, Progress, ReadSummary, Reading,
        ReadingForm, Refusal, RefusedItem, Request, Response, Rewritten, RewrittenChunk, Step, Surround,
        Upload,
    };
    pub use crate::bindings::provider::offpeak::plugin::types::Mode;
}

/// Values of the world `cost-policy`.
pub mod cost {
    pub use crate::bindings::cost::exports::offpeak::plugin::costing::{
        Charge, Description, DidItRun, Mode, Outcome, Purpose, Rate, Sale, Usage,
    };
}

/// Values of the world `retry-policy`.
pub mod retry {
    pub use crate::bindings::retry::exports::offpeak::plugin::judging::{
        Attempt, Description, DidItRun, Ending, Failure, Meaning, Mode,
    };
}

/// Values of the world `engine`.
pub mod adapter {
    pub use crate::bindings::adapter::exports::offpeak::plugin::adapting::{
        Description, Load, Look, Sight, State, UnderWay,
    };
}

impl From<provider::Mode> for router::Mode {
    fn from(mode: provider::Mode) -> Self {
        match mode {
            provider::Mode::Realtime => Self::Realtime,
            provider::Mode::Background => Self::Background,
            provider::Mode::Batch => Self::Batch,
            provider::Mode::Engine => Self::Engine,
        }
    }
}

/// An offer that a provider made, as a router is shown it.
impl<'a> From<&'a provider::Offer> for router::Offer<'a> {
    fn from(offer: &'a provider::Offer) -> Self {
        Self {
            name: &offer.name,
            mode: offer.mode.into(),
            price_permille: offer.price_permille,
            window_ms: offer.window_ms,
            usual_ms: offer.usual_ms,
        }
    }
}
