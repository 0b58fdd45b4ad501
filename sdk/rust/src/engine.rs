//! The role that knows a self-hosted engine: what its metrics mean, and how much more deferred work it can take.

#[doc(inline)]
pub use crate::bindings::engine::exports::offpeak::plugin::adapting::{
    Description, Guest as Engine, Load, Look, Sight, State, UnderWay,
};

/// Makes a component of a type that implements [`Engine`]. Call it once, at the top level of the crate; a crate may call
/// [`export_provider!`](crate::export_provider) as well, and its component then takes both roles.
#[macro_export]
macro_rules! export_engine {
    ($engine:ident) => {
        const _: () = {
            use $crate::engine::{Description, Engine, Load, Look, Sight, UnderWay};

            struct Exported;

            impl Engine for Exported {
                fn describe() -> Description {
                    $crate::log_panics();
                    <$engine as Engine>::describe()
                }

                fn looks() -> Vec<Look> {
                    $crate::log_panics();
                    <$engine as Engine>::looks()
                }

                fn interpret(sights: Vec<Sight>, under_way: UnderWay) -> Result<Load, String> {
                    $crate::log_panics();
                    <$engine as Engine>::interpret(sights, under_way)
                }
            }

    $crate::bindings::engine::export!(Exported with_types_in $crate::bindings::engine);
        };
    };
}
