//! Files that are uploaded in parts.

use offpeak_core::words::{Millis, TenantId, Timestamp};
use offpeak_store::Kind;
use serde::{Deserialize, Serialize};

use super::Kept;

/// What the id of an upload begins with.
pub const PREFIX: &str = "upload_";

/// What the id of a part begins with.
pub const PART_PREFIX: &str = "part_";

/// A file that is being uploaded in parts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upload {
    /// Its number.
    pub number: u64,
    /// Whose it is.
    pub tenant: TenantId,
    /// The file's name at the uploader's.
    pub name: String,
    /// The bytes of all parts.
    pub bytes: u64,
    /// How long the file is kept.
    pub kept: Millis,
    /// When it was begun.
    pub created_at: Timestamp,
    /// When it must be completed.
    pub expires_at: Timestamp,
    /// How it stands.
    pub status: Status,
}

/// How an upload stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Status {
    /// Parts are awaited.
    Pending,
    /// It is the file of this number.
    Completed(u64),
    /// Its client gave it up.
    Cancelled,
}

/// A part, which lies in the folder of files under its number until the upload is completed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Part {
    /// Its number.
    pub number: u64,
    /// Whose it is.
    pub tenant: TenantId,
    /// The number of its upload.
    pub upload: u64,
    /// Its size.
    pub bytes: u64,
    /// When it goes, if the upload is not completed before.
    pub expires_at: Timestamp,
}

impl Kept for Upload {
    const KIND: Kind = Kind::Upload;

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn number(&self) -> u64 {
        self.number
    }
}

impl Kept for Part {
    const KIND: Kind = Kind::Part;

    fn tenant(&self) -> &TenantId {
        &self.tenant
    }

    fn number(&self) -> u64 {
        self.number
    }
}

impl Upload {
    /// The name under which clients know it.
    pub fn id(&self) -> String {
        super::id(PREFIX, self.number)
    }

    /// The word of OpenAI's API for how it stands.
    pub fn status_at(&self, now: Timestamp) -> &'static str {
        match self.status {
            Status::Completed(_) => "completed",
            Status::Cancelled => "cancelled",
            Status::Pending if now < self.expires_at => "pending",
            Status::Pending => "expired",
        }
    }
}

impl Part {
    /// The name under which clients know it.
    pub fn id(&self) -> String {
        super::id(PART_PREFIX, self.number)
    }
}
