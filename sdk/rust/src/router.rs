//! The role that decides how a request is run: backend and offer, or a rejection.

#[doc(inline)]
pub use crate::bindings::router::exports::offpeak::plugin::routing::{
    BodyNeed, Candidate, Choice, Decision, Description, Envelope, Guest as Router, Rejection, Sla, Tag,
};

/// Makes a component of a type that implements [`Router`]. Call it once, at the top level of the crate.
#[macro_export]
macro_rules! export_router {
    ($router:ident) => {
        const _: () = {
            use $crate::router::{Candidate, Decision, Description, Envelope, Router};

            struct Exported;

            impl Router for Exported {
                fn describe() -> Description {
                    $crate::log_panics();
                    <$router as Router>::describe()
                }

                fn route(envelope: Envelope, candidates: Vec<Candidate>) -> Decision {
                    $crate::log_panics();
                    <$router as Router>::route(envelope, candidates)
                }
            }

    $crate::bindings::router::export!(Exported with_types_in $crate::bindings::router);
        };
    };
}
