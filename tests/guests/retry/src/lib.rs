//! A retry policy that decides what the model's name says. The names are explained in `offpeak-guests`.

use std::hint::black_box;

use offpeak_plugin::retry_policy::{Attempt, Description, Meaning, RetryPolicy};

struct Misfit;

impl RetryPolicy for Misfit {
    fn describe() -> Description {
        Description { name: "misfit".into(), version: "1".into() }
    }

    fn judge(attempt: Attempt) -> Meaning {
        match attempt.model.as_str() {
            "loop" => loop {
                black_box(attempt.attempts);
            },
            "panic" => panic!("told to"),
            "elsewhere" => Meaning::Elsewhere,
            "run-now" => Meaning::RunNow,
            "permanent" => Meaning::Permanent,
            _ => Meaning::Temporary(None),
        }
    }
}

offpeak_plugin::export_retry_policy!(Misfit);
