//! The role that decides what an outcome cost, whom it is charged to, and what it would have cost in real time.

#[doc(inline)]
pub use crate::bindings::cost_policy::exports::offpeak::plugin::costing::{
    Charge, Description, Guest as CostPolicy, Outcome, Purpose, Rate, Sale, Usage,
};

/// Makes a component of a type that implements [`CostPolicy`]. Call it once, at the top level of the crate.
#[macro_export]
macro_rules! export_cost_policy {
    ($policy:ident) => {
        const _: () = {
            use $crate::cost_policy::{Charge, CostPolicy, Description, Outcome, Sale};

            struct Exported;

            impl CostPolicy for Exported {
                fn describe() -> Description {
                    $crate::log_panics();
                    <$policy as CostPolicy>::describe()
                }

                fn assess(sale: Sale, outcomes: Vec<Outcome>) -> Result<Vec<Charge>, String> {
                    $crate::log_panics();
                    <$policy as CostPolicy>::assess(sale, outcomes)
                }
            }

    $crate::bindings::cost_policy::export!(Exported with_types_in $crate::bindings::cost_policy);
        };
    };
}
