//! API keys: made here, shown once, and kept as a keyed hash.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use offpeak_core::words::{TenantId, Timestamp};
use offpeak_store::{Document, Kind, Order, Store, StoreError};
use ring::hmac;
use serde::{Deserialize, Serialize};
use subtle::ConstantTimeEq;

use crate::clock::Chance;
use crate::config::{DeferredLimits, Limits, QueueLimits};

/// What a key made here begins with, so that secret scanners and people know one when they see it.
pub const PREFIX: &str = "opk_";

/// The file in the store's folder that holds the secret of the hashes.
const SECRET_FILE: &str = "keys.secret";

/// How long the secret is.
const SECRET_BYTES: usize = 32;

/// Keys that there may be; a listing answers all of them.
const MOST: usize = 100_000;

/// With what keys are hashed: whoever has the database alone cannot try keys against it.
#[derive(Clone)]
pub struct Pepper(hmac::Key);

/// The secret of the hashes is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    /// The file, or its folder.
    #[error("{0}. Check who owns the folder and whether the disk is full")]
    Io(#[from] io::Error),
    /// Keys were made with a secret that is not there.
    #[error(
        "it has {bytes} of 32 bytes, and keys were made with it that nobody would be known by. Put it back from a backup of the \
         folder. If it is lost, `head -c 32 /dev/urandom > keys.secret` there makes another: the keys of before \
         stay unknown, and others can be made"
    )]
    Lost {
        /// What is left of it.
        bytes: usize,
    },
}

/// Writes the file so that it is there whole, after a power cut too, or not at all.
fn make(folder: &Path, secret: &[u8]) -> io::Result<()> {
    let (path, beside) = (folder.join(SECRET_FILE), folder.join(SECRET_FILE).with_extension("secret.tmp"));
    // What a start that was cut off has left would keep its own mode.
    match std::fs::remove_file(&beside) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        Ok(()) | Err(_) => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
    file.write_all(secret)?;
    file.sync_all()?;
    std::fs::rename(&beside, &path)?;
    File::open(folder)?.sync_all()
}

/// The hash of a key.
#[derive(Debug, Clone, Copy, Eq)]
pub struct Digest([u8; 32]);

impl PartialEq for Digest {
    /// Takes as long whatever differs.
    fn eq(&self, other: &Self) -> bool {
        self.0.ct_eq(&other.0).into()
    }
}

impl Digest {
    /// By which it is found in a table. The rest is compared in constant time.
    pub fn short(&self) -> u64 {
        self.0.iter().take(8).fold(0, |short, byte| (short << 8) | u64::from(*byte))
    }
}

impl Pepper {
    /// From the file in the store's folder; it is made the first time, readable by its owner alone. One that is too short is
    /// what a start that was cut off has left: where no key was made with it, it is made anew.
    pub fn open(folder: &Path, chance: &Chance, are_keys_made: bool) -> Result<Self, SecretError> {
        let path = folder.join(SECRET_FILE);
        let found = match std::fs::read(&path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        if let Some(secret) = found.first_chunk::<SECRET_BYTES>() {
            return Ok(Self::of(secret));
        }
        if are_keys_made {
            return Err(SecretError::Lost { bytes: found.len() });
        }
        let secret = random(chance);
        make(folder, &secret)?;
        Ok(Self::of(&secret))
    }

    /// With this secret.
    pub fn of(secret: &[u8]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, secret))
    }

    /// The hash of a key.
    pub fn hash(&self, key: &[u8]) -> Digest {
        let mut digest = [0; 32];
        for (to, from) in digest.iter_mut().zip(hmac::sign(&self.0, key).as_ref()) {
            *to = *from;
        }
        Digest(digest)
    }
}

/// What a key may be used for. An empty list allows everything that its tenant may.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Scopes {
    /// Names of models; `*` stands for anything.
    pub models: Vec<String>,
    /// Names of backends.
    pub backends: Vec<String>,
    /// Paths of endpoints.
    pub endpoints: Vec<String>,
    /// How requests may be run.
    pub sla: Vec<SlaScope>,
}

/// A class of SLAs that a key may ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum SlaScope {
    /// Answers now.
    Realtime,
    /// Answers later.
    Deferred,
}

/// A key as it is stored: all but the key itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its name in the admin plane and in logs.
    pub id: String,
    /// Whose it is.
    pub tenant: TenantId,
    /// What people call it.
    pub label: String,
    /// Its hash, in hexadecimal.
    pub(super) hash: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// From then on it is not accepted.
    #[serde(default)]
    pub expires_at: Option<Timestamp>,
    /// When it was revoked.
    #[serde(default)]
    pub revoked_at: Option<Timestamp>,
    /// The key that came in its place.
    #[serde(default)]
    pub replaced_by: Option<String>,
    /// What it may be used for.
    #[serde(default)]
    pub scopes: Scopes,
    /// Limits of its own, beside those of its tenant.
    #[serde(default)]
    pub limits: Limits,
    /// How fast its deferred work leaves, within its tenant's rates.
    #[serde(default)]
    pub deferred: DeferredLimits,
    /// How much of its deferred work may wait, within what its tenant may have waiting.
    #[serde(default)]
    pub queue: QueueLimits,
}

/// What a new key is to be.
#[derive(Debug, Clone, Default)]
pub struct NewKey {
    /// Whose it is.
    pub tenant: String,
    /// What people call it.
    pub label: String,
    /// From then on it is not accepted.
    pub expires_at: Option<Timestamp>,
    /// What it may be used for.
    pub scopes: Scopes,
    /// Limits of its own.
    pub limits: Limits,
    /// How fast its deferred work leaves.
    pub deferred: DeferredLimits,
    /// How much of it may wait.
    pub queue: QueueLimits,
}

impl Record {
    /// A new key, with the key itself, which is not kept.
    pub fn make(pepper: &Pepper, chance: &Chance, new: NewKey, now: Timestamp) -> (Self, String) {
        let key = format!("{PREFIX}{}", URL_SAFE_NO_PAD.encode(random(chance)));
        let record = Self {
            id: format!("key-{:011x}{:06x}", now.0, chance.bits() & 0xff_ffff),
            tenant: TenantId::from(new.tenant),
            label: new.label,
            hash: hex(&pepper.hash(key.as_bytes())),
            created_at: now,
            expires_at: new.expires_at,
            revoked_at: None,
            replaced_by: None,
            scopes: new.scopes,
            limits: new.limits,
            deferred: new.deferred,
            queue: new.queue,
        };
        (record, key)
    }

    /// Its hash; none if the stored text is damaged.
    pub fn digest(&self) -> Option<Digest> {
        let mut digest = [0; 32];
        if self.hash.len() != 64 {
            return None;
        }
        for (index, byte) in digest.iter_mut().enumerate() {
            *byte = u8::from_str_radix(self.hash.get(index * 2..index * 2 + 2)?, 16).ok()?;
        }
        Some(Digest(digest))
    }

    /// Whether it is accepted at this time.
    pub fn is_accepted(&self, now: Timestamp) -> bool {
        self.revoked_at.is_none() && self.expires_at.is_none_or(|expires_at| now < expires_at)
    }

    /// As it is stored.
    pub fn document(&self) -> Document {
        // A record is plain text and numbers, which always can be written.
        let value = serde_json::to_vec(self).unwrap_or_default();
        Document { kind: Kind::ApiKey, key: self.id.clone().into(), value: Some(value.into()) }
    }
}

fn random(chance: &Chance) -> [u8; 32] {
    let mut bytes = [0; 32];
    for (to, from) in bytes.iter_mut().zip([chance.wide(), chance.wide()].map(u128::to_le_bytes).concat()) {
        *to = from;
    }
    bytes
}

fn hex(digest: &Digest) -> String {
    digest.0.iter().fold(String::with_capacity(64), |hex, byte| hex + &format!("{byte:02x}"))
}

/// All keys of the store, the oldest first. What cannot be read is left out, with a line in the log.
pub async fn all(store: &Store) -> Result<Vec<Record>, StoreError> {
    use std::ops::Bound::Unbounded;

    let found = store.documents(Kind::ApiKey, (Unbounded, Unbounded), Order::Ascending, MOST).await?;
    let read = |(key, value): (Bytes, Bytes)| match serde_json::from_slice::<Record>(&value) {
        Ok(record) => Some(record),
        Err(error) => {
            tracing::error!(id = %String::from_utf8_lossy(&key), %error, "a stored key cannot be read and is not accepted");
            None
        }
    };
    Ok(found.into_iter().filter_map(read).collect())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_not_in_what_is_stored_and_its_hash_is_found_again() {
        let pepper = Pepper::of(b"secret");
        let new = NewKey { tenant: "t".into(), ..NewKey::default() };
        let (record, key) = Record::make(&pepper, &Chance::system(), new, Timestamp(1000));
        let stored = record.document().value.unwrap();
        assert!(key.starts_with(PREFIX) && key.len() == 47);
        assert!(!String::from_utf8_lossy(&stored).contains(key.trim_start_matches(PREFIX)));
        let read: Record = serde_json::from_slice(&stored).unwrap();
        assert_eq!(read, record);
        assert_eq!(read.digest(), Some(pepper.hash(key.as_bytes())));
        assert_ne!(read.digest(), Some(Pepper::of(b"other").hash(key.as_bytes())));
        assert_eq!(Record { hash: "00".repeat(31) + "\u{e9}", ..read }.digest(), None);
    }

    #[test]
    fn expired_and_revoked_keys_are_not_accepted() {
        let (record, _) = Record::make(&Pepper::of(b"s"), &Chance::system(), NewKey::default(), Timestamp(0));
        assert!(record.is_accepted(Timestamp(5)));
        let expiring = Record { expires_at: Some(Timestamp(5)), ..record.clone() };
        assert!(expiring.is_accepted(Timestamp(4)) && !expiring.is_accepted(Timestamp(5)));
        assert!(!Record { revoked_at: Some(Timestamp(1)), ..record }.is_accepted(Timestamp(1)));
    }

    #[test]
    fn the_secret_is_made_once_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let open = |are_keys_made| Pepper::open(folder.path(), &Chance::system(), are_keys_made);
        let first = open(false).unwrap().hash(b"k");
        assert_eq!(open(true).unwrap().hash(b"k"), first);
        assert_eq!(open(false).unwrap().hash(b"k"), first);
        let mode = std::fs::metadata(folder.path().join(SECRET_FILE)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        let names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
        assert_eq!(names, [SECRET_FILE]);
    }

    #[test]
    fn what_a_start_that_was_cut_off_has_left_is_made_anew_unless_keys_hang_on_it() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(SECRET_FILE);
        let open = |are_keys_made| Pepper::open(folder.path(), &Chance::system(), are_keys_made);
        for left in [&b""[..], b"short"] {
            std::fs::write(&path, left).unwrap();
            std::fs::write(folder.path().join("keys.secret.tmp"), "of the first try").unwrap();
            let lost = open(true).err().unwrap().to_string();
            assert!(
                lost.contains(&format!("{} of 32 bytes", left.len())) && lost.contains("backup"),
                "{lost}"
            );
            assert_eq!(std::fs::read(&path).unwrap(), left, "nothing has changed");
            let made = open(false).unwrap().hash(b"k");
            assert_eq!(open(true).unwrap().hash(b"k"), made);
        }
        std::fs::remove_file(&path).unwrap();
        assert!(open(true).err().unwrap().to_string().contains("0 of 32 bytes"));
    }
}
