//! What wit-bindgen makes of `wit/`. The words that worlds share are generated once, so that all speak of the same types.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    reason = "generated code keeps its own style"
)]

/// The types all worlds share, and what the daemon offers to plugins.
pub mod base {
    wit_bindgen::generate!({
        inline: "
            package offpeak:sdk;
            world base {
                import offpeak:plugin/types@0.1.0;
                import offpeak:plugin/host@0.1.0;
            }
        ",
        path: "../../wit",
        generate_all,
        generate_unused_types: true,
        additional_derives: [PartialEq, Eq],
        runtime_path: "::offpeak_plugin::bindings::rt",
    });
}

/// The world `router`.
#[cfg(feature = "router")]
pub mod router {
    wit_bindgen::generate!({
        world: "offpeak:plugin/router",
        path: "../../wit",
        with: {
            "offpeak:plugin/types@0.1.0": crate::bindings::base::offpeak::plugin::types,
            "offpeak:plugin/host@0.1.0": crate::bindings::base::offpeak::plugin::host,
        },
        additional_derives: [PartialEq, Eq],
        runtime_path: "::offpeak_plugin::bindings::rt",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "::offpeak_plugin::bindings::router",
    });
}

/// The world `provider`.
#[cfg(feature = "provider")]
pub mod provider {
    wit_bindgen::generate!({
        world: "offpeak:plugin/provider",
        path: "../../wit",
        with: {
            "offpeak:plugin/types@0.1.0": crate::bindings::base::offpeak::plugin::types,
            "offpeak:plugin/host@0.1.0": crate::bindings::base::offpeak::plugin::host,
        },
        additional_derives: [PartialEq, Eq],
        runtime_path: "::offpeak_plugin::bindings::rt",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "::offpeak_plugin::bindings::provider",
    });
}

/// The world `cost-policy`.
#[cfg(feature = "cost-policy")]
pub mod cost_policy {
    wit_bindgen::generate!({
        world: "offpeak:plugin/cost-policy",
        path: "../../wit",
        with: {
            "offpeak:plugin/types@0.1.0": crate::bindings::base::offpeak::plugin::types,
            "offpeak:plugin/host@0.1.0": crate::bindings::base::offpeak::plugin::host,
        },
        additional_derives: [PartialEq, Eq],
        runtime_path: "::offpeak_plugin::bindings::rt",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "::offpeak_plugin::bindings::cost_policy",
    });
}

/// The world `engine`.
#[cfg(feature = "engine")]
pub mod engine {
    wit_bindgen::generate!({
        world: "offpeak:plugin/engine",
        path: "../../wit",
        with: {
            "offpeak:plugin/host@0.1.0": crate::bindings::base::offpeak::plugin::host,
        },
        additional_derives: [PartialEq, Eq],
        runtime_path: "::offpeak_plugin::bindings::rt",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "::offpeak_plugin::bindings::engine",
    });
}

/// The world `retry-policy`.
#[cfg(feature = "retry-policy")]
pub mod retry_policy {
    wit_bindgen::generate!({
        world: "offpeak:plugin/retry-policy",
        path: "../../wit",
        with: {
            "offpeak:plugin/types@0.1.0": crate::bindings::base::offpeak::plugin::types,
            "offpeak:plugin/host@0.1.0": crate::bindings::base::offpeak::plugin::host,
        },
        additional_derives: [PartialEq, Eq],
        runtime_path: "::offpeak_plugin::bindings::rt",
        pub_export_macro: true,
        export_macro_name: "export",
        default_bindings_module: "::offpeak_plugin::bindings::retry_policy",
    });
}

pub use wit_bindgen::rt;
