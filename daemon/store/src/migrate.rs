//! The schema's version, and the way from older ones to this.
//!
//! The version stands in the index and in every segment's header. An index is migrated when it is opened, step by
//! step, each step in one durable transaction together with the version that it leads to. Segments are never
//! rewritten: whoever changes the log's format keeps reading the old one until its segments are swept.

use redb::{Database, ReadableDatabase, TableError, WriteTransaction};

use crate::error::StoreError;
use crate::index::tables::{DOCUMENTS, META, meta};

/// The version that this build writes.
pub(crate) const SCHEMA: u32 = 4;

/// Leads from one version to the next.
pub(crate) type Step = fn(&WriteTransaction) -> Result<(), StoreError>;

/// `STEPS[n]` leads from version `n + 1` to `n + 2`.
pub(crate) const STEPS: &[Step] = &[add_documents, allow_headers, allow_removed_lanes];

/// Version 2 has documents.
fn add_documents(transaction: &WriteTransaction) -> Result<(), StoreError> {
    transaction.open_table(DOCUMENTS)?;
    Ok(())
}

/// Version 3 may have headers in lanes' keys and in batches. What has none stays as it was.
#[expect(clippy::unnecessary_wraps, reason = "a step is fallible, though this one does nothing")]
fn allow_headers(_: &WriteTransaction) -> Result<(), StoreError> {
    Ok(())
}

/// Version 4 may have gaps in the numbers of lanes, and records of the log that say which were removed.
#[expect(clippy::unnecessary_wraps, reason = "a step is fallible, though this one does nothing")]
fn allow_removed_lanes(_: &WriteTransaction) -> Result<(), StoreError> {
    Ok(())
}

/// Refuses what a later version wrote.
pub(crate) fn check(found: u32) -> Result<(), StoreError> {
    if found <= SCHEMA { Ok(()) } else { Err(StoreError::SchemaTooNew { found, known: SCHEMA }) }
}

/// The version of an index; `None` if it is new.
pub(crate) fn version(database: &Database) -> Result<Option<u32>, StoreError> {
    let table = match database.begin_read()?.open_table(META) {
        Err(TableError::TableDoesNotExist(_)) => return Ok(None),
        other => other?,
    };
    let Some(found) = table.get(meta::SCHEMA)? else { return Ok(None) };
    u32::try_from(found.value()).map(Some).map_err(|_| StoreError::IndexDamaged("schema version"))
}

/// Brings an index of version `found` to the version after the last of the steps.
pub(crate) fn migrate(database: &Database, found: u32, steps: &[Step]) -> Result<(), StoreError> {
    let first = usize::try_from(found).ok().and_then(|found| found.checked_sub(1));
    let first = first.ok_or(StoreError::IndexDamaged("schema version"))?;
    for (version, step) in (found + 1..).zip(steps.iter().skip(first)) {
        tracing::info!(version, "migrating the index");
        let transaction = database.begin_write()?;
        step(&transaction)?;
        transaction.open_table(META)?.insert(meta::SCHEMA, u64::from(version))?;
        transaction.commit()?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use redb::backends::InMemoryBackend;
    use redb::{ReadableTable, TableDefinition};

    use super::*;

    const OLD: TableDefinition<'_, u32, u32> = TableDefinition::new("old");
    const NEW: TableDefinition<'_, u32, u64> = TableDefinition::new("new");

    fn widen(transaction: &WriteTransaction) -> Result<(), StoreError> {
        let (old, mut new) = (transaction.open_table(OLD)?, transaction.open_table(NEW)?);
        for row in old.iter()? {
            let (key, value) = row?;
            new.insert(key.value(), u64::from(value.value()))?;
        }
        Ok(())
    }

    fn double(transaction: &WriteTransaction) -> Result<(), StoreError> {
        let mut new = transaction.open_table(NEW)?;
        let value = new.get(7)?.map_or(0, |value| value.value());
        new.insert(7, 2 * value)?;
        Ok(())
    }

    fn fail(_: &WriteTransaction) -> Result<(), StoreError> {
        Err(StoreError::IndexDamaged("a test"))
    }

    fn old_index() -> Database {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        let transaction = database.begin_write().unwrap();
        transaction.open_table(META).unwrap().insert(meta::SCHEMA, 1).unwrap();
        transaction.open_table(OLD).unwrap().insert(7, 21).unwrap();
        transaction.commit().unwrap();
        database
    }

    fn seven(database: &Database) -> u64 {
        database.begin_read().unwrap().open_table(NEW).unwrap().get(7).unwrap().unwrap().value()
    }

    #[test]
    fn steps_are_taken_in_order_and_once() {
        let database = old_index();
        migrate(&database, 1, &[widen]).unwrap();
        assert_eq!(version(&database).unwrap(), Some(2));
        migrate(&database, 2, &[widen, double]).unwrap();
        assert_eq!((version(&database).unwrap(), seven(&database)), (Some(3), 42));
        migrate(&database, 3, &[widen, double]).unwrap();
        assert_eq!((version(&database).unwrap(), seven(&database)), (Some(3), 42));
    }

    #[test]
    fn an_index_without_documents_gets_room_for_them() {
        let database = old_index();
        migrate(&database, 1, STEPS).unwrap();
        assert_eq!(version(&database).unwrap(), Some(SCHEMA));
        assert!(database.begin_read().unwrap().open_table(DOCUMENTS).is_ok());
    }

    #[test]
    fn a_step_that_fails_leaves_the_version_before_it() {
        let database = old_index();
        assert!(migrate(&database, 1, &[widen, fail, double]).is_err());
        assert_eq!((version(&database).unwrap(), seven(&database)), (Some(2), 21));
    }

    #[test]
    fn a_new_index_has_no_version_and_a_later_one_is_refused() {
        let database = Database::builder().create_with_backend(InMemoryBackend::new()).unwrap();
        assert_eq!(version(&database).unwrap(), None);
        assert!(check(SCHEMA).is_ok());
        assert!(matches!(check(SCHEMA + 1), Err(StoreError::SchemaTooNew { .. })));
    }
}
