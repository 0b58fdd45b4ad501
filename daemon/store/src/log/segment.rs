//! A segment file's header.
//!
//! ```text
//! bytes  what
//!  0..8  "OFFPKLOG"
//!  8..12 schema version
//! 12..16 the segment's number
//! 16..24 the store's random id
//! 24..28 crc32 of the bytes before
//! 28..64 zero
//! ```
//! Records follow. After the last one the file ends, or has zeros up to the length that was reserved for it.

use bytes::BufMut;

use crate::codec::Take;
use crate::error::StoreError;

/// Where records begin.
pub(crate) const HEADER: u32 = 64;
const MAGIC: [u8; 8] = *b"OFFPKLOG";

/// Makes checksums differ from store to store, segment to segment and place to place, so that no stale bytes and
/// nothing that a client puts into a body can pass for a record where the log is searched for one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Seed(u32);

impl Seed {
    pub(crate) fn new(install: u64, segment: u32) -> Self {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&install.to_le_bytes());
        hasher.update(&segment.to_le_bytes());
        Self(hasher.finalize())
    }

    /// A hasher for the record that begins there.
    pub(crate) fn hasher(self, offset: u32) -> crc32fast::Hasher {
        crc32fast::Hasher::new_with_initial(self.0 ^ offset)
    }
}

/// What a segment file's header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) schema: u32,
    pub(crate) segment: u32,
    pub(crate) install: u64,
}

impl Header {
    pub(crate) fn encode(self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(HEADER as usize);
        bytes.put_slice(&MAGIC);
        bytes.put_u32_le(self.schema);
        bytes.put_u32_le(self.segment);
        bytes.put_u64_le(self.install);
        bytes.put_u32_le(crc32fast::hash(&bytes));
        bytes.resize(HEADER as usize, 0);
        bytes
    }

    /// `None` if it is damaged.
    pub(crate) fn decode(bytes: &[u8]) -> Option<Self> {
        let (covered, rest) = bytes.split_at_checked(24)?;
        let mut take = Take(covered);
        if take.array()? != MAGIC || Take(rest).u32()? != crc32fast::hash(covered) {
            return None;
        }
        Some(Self { schema: take.u32()?, segment: take.u32()?, install: take.u64()? })
    }

    /// This version can read the segment.
    pub(crate) fn check_schema(self) -> Result<(), StoreError> {
        crate::migrate::check(self.schema)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_is_read_and_a_damaged_one_refused() {
        let header = Header { schema: 1, segment: 9, install: 77 };
        let bytes = header.encode();
        assert_eq!(bytes.len(), HEADER as usize);
        assert_eq!(Header::decode(&bytes), Some(header));
        for at in 0..28 {
            let mut damaged = bytes.clone();
            damaged[at] ^= 1;
            assert_eq!(Header::decode(&damaged), None, "byte {at}");
        }
        assert_eq!(Header::decode(&bytes[..20]), None);
    }

    #[test]
    fn a_later_schema_is_refused() {
        let header = Header { schema: u32::MAX, segment: 1, install: 1 };
        assert!(matches!(header.check_schema(), Err(StoreError::SchemaTooNew { found: u32::MAX, .. })));
    }
}
