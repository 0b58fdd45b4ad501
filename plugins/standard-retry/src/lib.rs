//! The default retry policy: tells what passes from what does not, and both from what the account may not spend and what the
//! provider does not sell.
//!
//! What it decides is in [`judge`], a pure function; this file is the border to the daemon.

mod error_body;
mod judge;

pub use judge::judge;

use offpeak_plugin::{
    Configured,
    retry_policy::{Attempt, Description, Meaning, RetryPolicy},
};

/// The policy's table in the daemon's configuration: codes or types of errors that mean something else at your provider than
/// they do elsewhere.
#[derive(Debug, Clone, PartialEq, Eq, Default, serde::Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// These pass.
    pub temporary: Vec<String>,
    /// These do not.
    pub permanent: Vec<String>,
    /// These are worth a try at another backend.
    pub elsewhere: Vec<String>,
    /// After these, the next attempt is made in real time.
    pub run_now: Vec<String>,
}

static CONFIG: Configured<Config> = Configured::new();

struct StandardRetry;

impl RetryPolicy for StandardRetry {
    fn describe() -> Description {
        CONFIG.get(); // a wrong configuration is refused when the plugin is loaded
        Description { name: "standard-retry".to_owned(), version: env!("CARGO_PKG_VERSION").to_owned() }
    }

    fn judge(attempt: Attempt) -> Meaning {
        judge(&attempt, CONFIG.get())
    }
}

offpeak_plugin::export_retry_policy!(StandardRetry);
