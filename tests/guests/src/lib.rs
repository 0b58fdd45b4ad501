//! Plugins that misbehave on demand, as WebAssembly components, for tests of whoever calls plugins.
//!
//! The model's name says what a guest does in a call, so that one instance of it can be well-behaved before and after. The
//! names are in [`router`], [`provider`] and [`retry`]; any other name gets an ordinary answer.

/// What the router guest does when `route` is called for a model of this name, or when it is to describe itself and its
/// setting `describe` is the name of a mischief.
pub mod router {
    /// The component (world `router`).
    pub const COMPONENT: &[u8] = include_bytes!(env!("OFFPEAK_GUEST_ROUTER"));

    /// Never answers.
    pub const LOOP: &str = "loop";
    /// Allocates until there is no more.
    pub const ALLOCATE: &str = "allocate";
    /// Panics, with a message of its own.
    pub const PANIC: &str = "panic";
    /// Calls itself without end.
    pub const RECURSE: &str = "recurse";
    /// Chooses a backend that nobody offered.
    pub const UNKNOWN_BACKEND: &str = "unknown-backend";
    /// Chooses an offer that the backend does not have.
    pub const UNKNOWN_OFFER: &str = "unknown-offer";
    /// Rejects with a status that is none.
    pub const ODD_STATUS: &str = "odd-status";
    /// Names a lane of 8 MiB.
    pub const HUGE_ANSWER: &str = "huge-answer";
    /// Logs a thousand lines of 64 KiB, then answers.
    pub const LOG_FLOOD: &str = "log-flood";
    /// Calls the daemon without end: for its settings, for the time, and for lines in the log.
    pub const CALL_FLOOD: &str = "call-flood";
    /// Logs one line of 16 MiB, then answers.
    pub const LOG_HUGE: &str = "log-huge";
    /// As the setting `describe`: wants to see 200,000 headers.
    pub const HUGE_LIST: &str = "huge-list";
    /// Keeps 8 MiB for ever, then answers.
    pub const LEAK: &str = "leak";
    /// Names a lane after the number of calls that this instance has answered.
    pub const COUNT: &str = "count";
    /// Names a lane after the time, read at the start and at the end of much work.
    pub const NOW: &str = "now";
    /// Names a lane after its configuration, as JSON.
    pub const CONFIG: &str = "config";
    /// Names a lane after all that it was told.
    pub const ECHO: &str = "echo";
}

/// What the retry guest decides when an attempt for a model of this name has failed.
pub mod retry {
    /// The component (world `retry-policy`).
    pub const COMPONENT: &[u8] = include_bytes!(env!("OFFPEAK_GUEST_RETRY"));

    /// Never answers.
    pub const LOOP: &str = "loop";
    /// Panics, with a message of its own.
    pub const PANIC: &str = "panic";
    /// Another backend is tried.
    pub const ELSEWHERE: &str = "elsewhere";
    /// It is run in real time next.
    pub const RUN_NOW: &str = "run-now";
    /// It is given up.
    pub const PERMANENT: &str = "permanent";
}

/// What the provider guest does when it is called for a model of this name.
pub mod provider {
    /// The component (world `provider`).
    pub const COMPONENT: &[u8] = include_bytes!(env!("OFFPEAK_GUEST_PROVIDER"));

    /// Never answers.
    pub const LOOP: &str = "loop";
    /// Panics, with a message of its own.
    pub const PANIC: &str = "panic";
    /// Panics, also where it is asked what it sells.
    pub const PANIC_ALWAYS: &str = "panic-always";
    /// Sells a hundred thousand offers.
    pub const MANY_OFFERS: &str = "many-offers";
    /// Answers that it cannot do it.
    pub const REFUSE: &str = "refuse";
    /// Refuses items with the body `odd`.
    pub const REFUSE_ODD: &str = "refuse-odd";
    /// Refuses an item that nobody asked for.
    pub const REFUSE_FOREIGN: &str = "refuse-foreign";
    /// Plans to write bodies and answers anew.
    pub const REWRITE: &str = "rewrite";
    /// Writes an answer with a status that is none.
    pub const ODD_STATUS: &str = "odd-status";
    /// Wants a state of 64 KiB and one byte to be kept, or for a stream one of 1 MiB and a byte.
    pub const HUGE_STATE: &str = "huge-state";
    /// Names a path that leads to another host when it is put behind a base URL.
    pub const FOREIGN_PATH: &str = "foreign-path";
    /// Decodes one result less than there are lines.
    pub const FEWER_RESULTS: &str = "fewer-results";
    /// Gives every result the same id.
    pub const SAME_ID: &str = "same-id";
    /// Its batches answer every request that there may be, of their own and of others.
    pub const THIEF: &str = "thief";

    /// Answers with anything that the contract's types allow; the number says what.
    pub fn dream(number: u64) -> String {
        format!("dream-{number:x}")
    }
}

/// An engine's plugin that sells idle time as `night`, and answers at once as `standard` and as `flex`. Each call says in the
/// header `x-offer` what it is bought as.
pub mod night {
    /// The component (worlds `engine` and `provider`).
    pub const COMPONENT: &[u8] = include_bytes!(env!("OFFPEAK_GUEST_NIGHT"));
}

/// A component that was built against the first version of the contract, `offpeak:plugin@0.1.0`, without the SDK.
pub mod first {
    /// The component: all five worlds at once.
    pub const COMPONENT: &[u8] = include_bytes!(env!("OFFPEAK_GUEST_FIRST"));
}
