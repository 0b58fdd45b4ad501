//! The role that decides what a failed attempt means.

#[doc(inline)]
pub use crate::bindings::retry_policy::exports::offpeak::plugin::judging::{
    Attempt, Description, Ending, Failure, Guest as RetryPolicy, Meaning,
};

/// Makes a component of a type that implements [`RetryPolicy`]. Call it once, at the top level of the crate.
#[macro_export]
macro_rules! export_retry_policy {
    ($policy:ident) => {
        const _: () = {
            use $crate::retry_policy::{Attempt, Description, Meaning, RetryPolicy};

            struct Exported;

            impl RetryPolicy for Exported {
                fn describe() -> Description {
                    $crate::log_panics();
                    <$policy as RetryPolicy>::describe()
                }

                fn judge(attempt: Attempt) -> Meaning {
                    $crate::log_panics();
                    <$policy as RetryPolicy>::judge(attempt)
                }
            }

    $crate::bindings::retry_policy::export!(Exported with_types_in $crate::bindings::retry_policy);
        };
    };
}
