//! Jobs: what clients submitted as one piece.

use std::sync::Arc;

use offpeak_core::extent::Range;
use offpeak_core::job::{Close, End, Life, Stage};
use offpeak_core::words::{Millis, TenantId, Timestamp};
use offpeak_store::Kind;
use serde::{Deserialize, Serialize};

use super::Kept;
use super::file::Problem;

/// Through which API a job came, and so how it is shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Api {
    /// /v1/batches
    OpenAi,
    /// /v1/messages/batches
    Anthropic,
}

/// A job.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// Its number.
    pub number: u64,
    /// Whose it is.
    pub tenant: TenantId,
    /// Through which API it came.
    pub api: Api,
    /// Its stages.
    pub life: Life,
    /// The number of the file that holds its requests.
    pub input: u64,
    /// What its requests call.
    pub endpoint: String,
    /// Headers of the call that change the meaning of its requests.
    pub headers: Vec<(String, String)>,
    /// The model, if all its requests name the same.
    pub model: Option<String>,
    /// The window as the client wrote it.
    pub window: String,
    /// The client's own notes.
    pub metadata: Vec<(String, String)>,
    /// How long its output is kept, if the client said so.
    pub output_kept: Option<Millis>,
    /// Its requests, as far as its input has them.
    pub total: u64,
    /// How far its requests stand in lanes.
    pub expansion: Expansion,
    /// Where they stand.
    pub ranges: Vec<Range>,
    /// Why it failed.
    pub problems: Vec<Problem>,
    /// What it came to, when it has ended.
    pub sums: Option<Sums>,
    /// The client removed the file of the answers.
    pub is_output_deleted: bool,
    /// The client removed the file of the errors.
    pub are_errors_deleted: bool,
    /// By this the client recognises a job that it submitted before.
    pub idempotency: Option<[u8; 16]>,
    /// What tells its requests from others, where they came in the call itself; zeros otherwise.
    pub digest: [u8; 16],
    /// The API key whose own limits for deferred work its requests take; empty if it has none.
    pub api_key: Arc<str>,
}

/// How much of a job's input stands in lanes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Expansion {
    /// Lines.
    pub lines: u64,
    /// Bytes.
    pub bytes: u64,
}

/// What a job came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Sums {
    /// Requests that were answered well.
    pub succeeded: u64,
    /// Requests that were answered badly.
    pub errored: u64,
    /// Requests that were cancelled.
    pub cancelled: u64,
    /// Requests whose time was over.
    pub expired: u64,
    /// Bytes of the file of the answers.
    pub output_bytes: u64,
    /// Bytes of the file of the errors.
    pub error_bytes: u64,
    /// What the model did for it.
    pub usage: Usage,
}

/// Tokens, as the answers say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// Of the questions.
    pub input: u64,
    /// Of these, those that the provider had in its cache.
    pub cached: u64,
    /// Of the answers.
    pub output: u64,
    /// Of these, those that were thought and not said.
    pub reasoning: u64,
}

impl Sums {
    /// All requests that have no good answer.
    pub const fn failed(&self) -> u64 {
        self.errored + self.cancelled + self.expired
    }
}

impl Kept for Job {
    const KIND: Kind = Kind::Job;
    /// `api_key`.
    const LACKING_BEFORE: &'static [u8] = &[0];

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn number(&self) -> u64 {
        self.number
    }
}

impl Api {
    /// What the id of a job begins with.
    pub const fn prefix(self) -> &'static str {
        match self {
            Self::OpenAi => "batch_",
            Self::Anthropic => "msgbatch_",
        }
    }
}

impl Job {
    /// The name under which clients know it.
    pub fn id(&self) -> String {
        super::id(self.api.prefix(), self.number)
    }

    /// Until when its answers can be read; none while it has not ended.
    pub fn output_until(&self, kept: Millis) -> Option<Timestamp> {
        self.life.ended_at.map(|ended| ended.after(self.output_kept.map_or(kept, |asked| asked.min(kept))))
    }

    /// It ended without having been run.
    pub fn has_failed(&self) -> bool {
        self.life.stage == Stage::Ended(End::Failed)
    }

    /// The word of OpenAI's API for where it stands.
    pub const fn status(&self) -> &'static str {
        match self.life.stage {
            Stage::Validating => "validating",
            Stage::InProgress => "in_progress",
            Stage::Finalizing(Close::Finished | Close::WindowOver) => "finalizing",
            Stage::Finalizing(Close::Cancelled) => "cancelling",
            Stage::Ended(End::Failed) => "failed",
            Stage::Ended(End::Completed) => "completed",
            Stage::Ended(End::Expired) => "expired",
            Stage::Ended(End::Cancelled) => "cancelled",
        }
    }
}
