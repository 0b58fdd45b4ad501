//! What `bindgen!` makes of wit/: the records, and the typed calls of each world's exports.
//!
//! The worlds here have a world's exports and not its imports, which are linked by hand in [`crate::imports`]. Values that
//! travel to a plugin borrow (`&str`, `&[u8]`), so that a call copies them once: into the plugin's memory.

#![allow(
    missing_docs,
    dead_code,
    unsafe_code,
    unreachable_pub,
    clippy::all,
    clippy::pedantic,
    clippy::restriction,
    reason = "generated code"
)]

pub mod router {
    wasmtime::component::bindgen!({
        path: "../../wit",
        inline: "
            package offpeak:called;
            world router { export offpeak:plugin/routing@0.1.0; }
        ",
        ownership: Borrowing { duplicate_if_necessary: true },
        additional_derives: [PartialEq],
    });
}

pub mod provider {
    wasmtime::component::bindgen!({
        path: "../../wit",
        inline: "
            package offpeak:called;
            world provider { export offpeak:plugin/providing@0.1.0; }
        ",
        ownership: Borrowing { duplicate_if_necessary: true },
        additional_derives: [PartialEq],
    });
}

pub mod cost {
    wasmtime::component::bindgen!({
        path: "../../wit",
        inline: "
            package offpeak:called;
            world cost-policy { export offpeak:plugin/costing@0.1.0; }
        ",
        // Of the shared words this world uses few; the others would be generated wrongly.
        with: { "offpeak:plugin/types@0.1.0": crate::bindings::provider::offpeak::plugin::types },
        ownership: Borrowing { duplicate_if_necessary: true },
        additional_derives: [PartialEq],
    });
}

pub mod retry {
    wasmtime::component::bindgen!({
        path: "../../wit",
        inline: "
            package offpeak:called;
            world retry-policy { export offpeak:plugin/judging@0.1.0; }
        ",
        with: { "offpeak:plugin/types@0.1.0": crate::bindings::provider::offpeak::plugin::types },
        ownership: Borrowing { duplicate_if_necessary: true },
        additional_derives: [PartialEq],
    });
}

pub mod adapter {
    wasmtime::component::bindgen!({
        path: "../../wit",
        inline: "
            package offpeak:called;
            world engine { export offpeak:plugin/adapting@0.1.0; }
        ",
        ownership: Borrowing { duplicate_if_necessary: true },
        additional_derives: [PartialEq],
    });
}
