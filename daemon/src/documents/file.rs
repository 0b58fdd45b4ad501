//! Files that clients uploaded for their jobs, and what was found in them on the way.

use offpeak_core::words::{Millis, TenantId, Timestamp};
use offpeak_store::Kind;
use serde::{Deserialize, Serialize};

use super::Kept;

/// What the id of an uploaded file begins with.
pub const PREFIX: &str = "file-";

/// How long a file is kept if its uploader does not say.
pub const KEPT: Millis = Millis::from_hours(24 * 30);

/// An uploaded file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Its number.
    pub number: u64,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name at the uploader's.
    pub name: String,
    /// Its size.
    pub bytes: u64,
    /// When it was there.
    pub created_at: Timestamp,
    /// When it goes.
    pub expires_at: Timestamp,
    /// It is one job's own and not shown: it goes when the job's requests stand in lanes.
    pub is_hidden: bool,
    /// What was found in it.
    pub check: Check,
}

/// What the lines of a file are.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Check {
    /// Its lines.
    pub lines: u64,
    /// The models that they name, with the first lines that do; no more than a few.
    pub models: Vec<Named>,
    /// The endpoints that they call, with the first lines that do; no more than a few.
    pub urls: Vec<Named>,
    /// What is wrong with it, by itself.
    pub problems: Vec<Problem>,
}

/// A name, and the first lines in which it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    /// The name.
    pub name: String,
    /// The lines, counted from 1; no more than a few.
    pub lines: Vec<u64>,
}

/// Something that is wrong with a job's input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// For programs.
    pub code: String,
    /// The line, counted from 1; none if it is the whole file.
    pub line: Option<u64>,
    /// For people.
    pub message: String,
    /// The member that is wrong.
    pub param: Option<String>,
}

impl Problem {
    /// Of the file as a whole.
    pub fn of_file(code: &str, message: impl Into<String>) -> Self {
        Self { code: code.to_owned(), line: None, message: message.into(), param: None }
    }
}

impl Kept for File {
    const KIND: Kind = Kind::File;

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn number(&self) -> u64 {
        self.number
    }
}

impl File {
    /// The name under which clients know it.
    pub fn id(&self) -> String {
        super::id(PREFIX, self.number)
    }
}
