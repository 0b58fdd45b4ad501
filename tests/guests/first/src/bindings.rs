//! What wit-bindgen makes of the first version: the copy in `wit/` beside this crate, and not the contract of today.

#![allow(
    missing_docs,
    unreachable_pub,
    unsafe_code,
    unsafe_op_in_unsafe_fn,
    clippy::all,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    reason = "generated code keeps its own style"
)]

wit_bindgen::generate!({
    inline: "
        package offpeak:first;
        world all {
            import offpeak:plugin/host@0.1.0;
            export offpeak:plugin/routing@0.1.0;
            export offpeak:plugin/providing@0.1.0;
            export offpeak:plugin/adapting@0.1.0;
            export offpeak:plugin/judging@0.1.0;
            export offpeak:plugin/costing@0.1.0;
        }
    ",
    path: "wit",
    generate_all,
});

export!(First with_types_in self);

use crate::First;
