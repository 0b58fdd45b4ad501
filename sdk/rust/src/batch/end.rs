//! How a batch ends, in a form that a protocol's state can keep.

use serde::{Deserialize, Serialize};

use crate::{
    DidItRun,
    provider::{Effect, Ending, Failure, Finish},
};

/// How it ends.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum End {
    /// It came to its end, and its results are read.
    Finished {
        /// In which way.
        how: How,
        /// What to think of items without a result.
        missing: Ran,
    },
    /// It came to nothing.
    Failed {
        /// Whether its items ran.
        ran: Ran,
        /// The same batch may succeed later.
        temporary: bool,
        /// The provider wants to be left alone for so long.
        retry_after_s: Option<u32>,
        /// Why, for programs.
        code: String,
        /// Why, for people.
        message: String,
    },
}

/// In which way a batch came to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum How {
    /// As it should.
    Completed,
    /// Its window was over.
    Expired,
    /// It was stopped.
    Cancelled,
}

/// Whether something ran that has no result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ran {
    /// It never left.
    NotSent,
    /// The provider did not run it.
    Refused,
    /// Nobody knows.
    Unknown,
}

impl End {
    /// What the daemon is told.
    pub fn effect(&self) -> Effect {
        match self {
            Self::Finished { how, missing } => Effect::Finished(Finish {
                ending: match how {
                    How::Completed => Ending::Completed,
                    How::Expired => Ending::Expired,
                    How::Cancelled => Ending::Cancelled,
                },
                missing: (*missing).into(),
            }),
            Self::Failed { ran, temporary, retry_after_s, code, message } => Effect::Failed(Failure {
                ran: (*ran).into(),
                temporary: *temporary,
                retry_after_s: *retry_after_s,
                code: code.clone(),
                message: message.clone(),
            }),
        }
    }

    /// A failure. Texts are cut, because they are stored.
    pub fn failed(ran: Ran, temporary: bool, code: &str, message: &str) -> Self {
        const CODE_CHARS: usize = 100;
        const MESSAGE_CHARS: usize = 1000;
        Self::Failed {
            ran,
            temporary,
            retry_after_s: None,
            code: code.chars().take(CODE_CHARS).collect(),
            message: message.chars().take(MESSAGE_CHARS).collect(),
        }
    }

    /// The same, if it is a failure, with the time for which the provider wants to be left alone.
    #[must_use]
    pub fn after_ms(self, asked_ms: Option<u64>) -> Self {
        match self {
            Self::Failed { ran, temporary, code, message, .. } => {
                let retry_after_s = asked_ms.and_then(|ms| u32::try_from(ms.div_ceil(1000)).ok());
                Self::Failed { ran, temporary, retry_after_s, code, message }
            }
            Self::Finished { .. } => self,
        }
    }
}

impl From<DidItRun> for Ran {
    fn from(ran: DidItRun) -> Self {
        match ran {
            DidItRun::NotSent => Self::NotSent,
            DidItRun::Refused => Self::Refused,
            // What ran and has no result is as good as unknown.
            DidItRun::Unknown | DidItRun::Ran => Self::Unknown,
        }
    }
}

impl From<Ran> for DidItRun {
    fn from(ran: Ran) -> Self {
        match ran {
            Ran::NotSent => Self::NotSent,
            Ran::Refused => Self::Refused,
            Ran::Unknown => Self::Unknown,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failure_is_cut_to_what_may_be_stored_and_says_when() {
        let long = "x".repeat(5000);
        let end = End::failed(Ran::NotSent, true, &long, &long);
        let Effect::Failed(failure) = end.clone().effect() else { panic!("{end:?}") };
        assert_eq!((failure.code.len(), failure.message.len(), failure.retry_after_s), (100, 1000, None));
        let Effect::Failed(failure) = end.after_ms(Some(1001)).effect() else { panic!() };
        assert_eq!((failure.retry_after_s, failure.temporary), (Some(2), true));
    }

    #[test]
    fn an_end_is_stored_under_names_that_do_not_change() {
        let end = End::Finished { how: How::Expired, missing: Ran::Refused };
        assert_eq!(
            serde_json::to_string(&end).unwrap(),
            r#"{"Finished":{"how":"Expired","missing":"Refused"}}"#
        );
    }
}
