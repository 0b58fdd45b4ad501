//! What the daemon says, as far as the commands read it. Fields that are missing or new do no harm.

use std::collections::BTreeMap;

use offpeak_core::money::Money;
use serde::{Deserialize, Serialize};

/// A job, as `/v1/batches` shows it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Job {
    pub(crate) id: String,
    pub(crate) status: Status,
    #[serde(default)]
    pub(crate) endpoint: String,
    #[serde(default)]
    pub(crate) completion_window: String,
    #[serde(default)]
    pub(crate) input_file_id: String,
    pub(crate) output_file_id: Option<String>,
    pub(crate) error_file_id: Option<String>,
    #[serde(default)]
    pub(crate) request_counts: Option<Counts>,
    #[serde(default)]
    pub(crate) created_at: u64,
    pub(crate) expires_at: Option<u64>,
    pub(crate) errors: Option<Errors>,
    pub(crate) usage: Option<Usage>,
    #[serde(default)]
    pub(crate) metadata: Option<BTreeMap<String, String>>,
    /// What it has cost so far; only offpeak says it.
    #[serde(default, rename = "offpeak_cost")]
    pub(crate) cost: Option<Cost>,
}

/// What a job has cost, in dollars.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub(crate) struct Cost {
    #[serde(rename = "cost_usd", with = "dollars")]
    pub(crate) spent: Money,
    /// What it would have been in real time.
    #[serde(rename = "realtime_cost_usd", with = "dollars")]
    pub(crate) realtime: Money,
    /// Answers without a price, which are not in the amounts.
    #[serde(default)]
    pub(crate) unpriced: u64,
}

/// Amounts as decimal numbers in texts.
mod dollars {
    use offpeak_core::money::Money;
    use serde::{Deserialize, Deserializer, Serializer, de};

    pub(super) fn serialize<S: Serializer>(money: &Money, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&money.to_decimal())
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Money, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(de::Error::custom)
    }
}

impl Job {
    /// Its counts; zeros while there are none.
    pub(crate) fn counts(&self) -> Counts {
        self.request_counts.unwrap_or_default()
    }
}

/// How far a job is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Status {
    /// The file is being checked.
    Validating,
    /// The file was refused; nothing of it was run.
    Failed,
    /// Requests are answered.
    InProgress,
    /// The results are being written.
    Finalizing,
    /// Every request has its answer or its error.
    Completed,
    /// The window is over, and some requests were not run.
    Expired,
    /// What is under way is being finished.
    Cancelling,
    /// It was stopped.
    Cancelled,
    /// Something that a newer daemon says.
    #[serde(other)]
    Unknown,
}

impl Status {
    /// Nothing will change any more.
    pub(crate) fn is_final(self) -> bool {
        match self {
            Self::Failed | Self::Completed | Self::Expired | Self::Cancelled => true,
            Self::Validating | Self::InProgress | Self::Finalizing | Self::Cancelling | Self::Unknown => {
                false
            }
        }
    }

    /// For people and scripts, as the API spells it.
    pub(crate) fn as_str(self) -> &'static str {
        match self {
            Self::Validating => "validating",
            Self::Failed => "failed",
            Self::InProgress => "in_progress",
            Self::Finalizing => "finalizing",
            Self::Completed => "completed",
            Self::Expired => "expired",
            Self::Cancelling => "cancelling",
            Self::Cancelled => "cancelled",
            Self::Unknown => "unknown",
        }
    }
}

/// How many requests a job has, and how they ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub(crate) struct Counts {
    pub(crate) total: u64,
    pub(crate) completed: u64,
    pub(crate) failed: u64,
}

impl Counts {
    /// Requests that have ended, either way.
    pub(crate) fn finished(self) -> u64 {
        self.completed.saturating_add(self.failed)
    }
}

/// Why a file was refused.
#[derive(Debug, Clone, Default, Deserialize)]
pub(crate) struct Errors {
    #[serde(default)]
    pub(crate) data: Vec<LineError>,
}

/// What is wrong with one line, or with the file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) struct LineError {
    pub(crate) code: Option<String>,
    pub(crate) line: Option<u64>,
    pub(crate) message: Option<String>,
    pub(crate) param: Option<String>,
}

/// Tokens that a job has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize, Serialize)]
pub(crate) struct Usage {
    #[serde(default)]
    pub(crate) input_tokens: u64,
    #[serde(default)]
    pub(crate) output_tokens: u64,
}

/// A file, as `/v1/files` shows it.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct File {
    pub(crate) id: String,
    pub(crate) bytes: u64,
}

/// A page of a list.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Page<T> {
    pub(crate) data: Vec<T>,
    #[serde(default)]
    pub(crate) has_more: bool,
}

/// What makes a job of a file.
#[derive(Debug, Serialize)]
pub(crate) struct NewJob<'a> {
    pub(crate) input_file_id: &'a str,
    pub(crate) endpoint: &'a str,
    pub(crate) completion_window: &'a str,
    pub(crate) metadata: BTreeMap<&'static str, &'a str>,
}

/// An error in OpenAI's form.
#[derive(Debug, Deserialize)]
pub(crate) struct ErrorBody {
    pub(crate) error: ErrorObject,
}

/// Its inside.
#[derive(Debug, Deserialize)]
pub(crate) struct ErrorObject {
    pub(crate) message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_or_new_does_no_harm() {
        let job: Job =
            serde_json::from_str(r#"{"id": "batch_1", "status": "thinking", "new": [1]}"#).unwrap();
        assert_eq!((job.status, job.counts()), (Status::Unknown, Counts::default()));
        assert!(!job.status.is_final());
    }
}
