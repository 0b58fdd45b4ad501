//! The open index file: made, migrated, closed and opened again after the disk ran full.

use std::sync::Arc;

use parking_lot::RwLock;
use redb::{Database, Durability};

use super::lookup::View;
use super::tables::{self, META, meta};
use crate::disk::Disk;
use crate::error::StoreError;
use crate::log::Position;
use crate::migrate::{self, SCHEMA, STEPS};

/// The open index file.
#[derive(Debug)]
pub(crate) struct Index {
    disk: Arc<dyn Disk>,
    cache_bytes: usize,
    /// Or why it is not open.
    database: RwLock<Result<Arc<Database>, StoreError>>,
}

impl Index {
    /// Opens the index file. The flag says that it is new and has nothing in it.
    pub(crate) fn open(disk: Arc<dyn Disk>, cache_bytes: usize) -> Result<(Self, bool), StoreError> {
        let (database, is_new) = open_database(disk.as_ref(), cache_bytes)?;
        let index = Self { disk, cache_bytes, database: RwLock::new(Ok(Arc::new(database))) };
        Ok((index, is_new))
    }

    /// Makes the tables of a new index.
    pub(crate) fn create(&self, install: u64, start: Position) -> Result<(), StoreError> {
        let database = self.database()?;
        let mut transaction = database.begin_write()?;
        transaction.set_quick_repair(true);
        tables::create_all(&transaction)?;
        {
            let mut table = transaction.open_table(META)?;
            table.insert(meta::SCHEMA, u64::from(SCHEMA))?;
            table.insert(meta::INSTALL, install)?;
            table.insert(meta::SEGMENT, u64::from(start.segment))?;
            table.insert(meta::OFFSET, u64::from(start.offset))?;
            table.insert(meta::NEXT_LANE, 0)?;
            table.insert(meta::NEXT_BATCH, 1)?;
        }
        Ok(transaction.commit()?)
    }

    /// The open database.
    pub(crate) fn database(&self) -> Result<Arc<Database>, StoreError> {
        self.database.read().clone()
    }

    /// The index as it is now.
    pub(crate) fn view(&self) -> Result<View, StoreError> {
        View::new(self.database()?)
    }

    /// Opens the file again after [`Index::close`], as it was when it was last made durable. Nobody sees it before
    /// it is [published](Index::publish).
    pub(crate) fn reopen(&self) -> Result<Arc<Database>, StoreError> {
        Ok(Arc::new(open_database(self.disk.as_ref(), self.cache_bytes)?.0))
    }

    /// Lets everybody see the file that was opened again.
    pub(crate) fn publish(&self, database: Arc<Database>) {
        *self.database.write() = Ok(database);
    }

    /// Closes the file; later calls get `why`. Fails if somebody is reading it just now.
    pub(crate) fn close(&self, why: StoreError) -> Result<(), StoreError> {
        let mut place = self.database.write();
        match std::mem::replace(&mut *place, Err(why)).map(Arc::try_unwrap) {
            // What it could not write is written again after it is opened.
            Ok(Ok(database)) => drop(database),
            Ok(Err(shared)) => {
                *place = Ok(shared);
                return Err(std::io::Error::from(std::io::ErrorKind::ResourceBusy).into());
            }
            Err(_) => {}
        }
        Ok(())
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.disk.index_bytes()
    }

    /// Makes everything durable that was committed before.
    pub(crate) fn make_durable(&self) -> Result<(), StoreError> {
        let mut transaction = self.database()?.begin_write()?;
        transaction.set_durability(Durability::Immediate)?;
        // Saves the state of the allocator too, so that opening after a crash need not walk the whole file.
        transaction.set_quick_repair(true);
        Ok(transaction.commit()?)
    }
}

/// Opens the file, whatever its version.
pub(crate) fn open_as_it_is(disk: &dyn Disk, cache_bytes: usize) -> Result<Database, StoreError> {
    let mut builder = Database::builder();
    builder.set_cache_size(cache_bytes);
    builder.set_repair_callback(|repair| {
        tracing::debug!(progress = repair.progress(), "the index is being repaired");
    });
    contained(|| Ok(disk.open_index(&builder)?))
}

/// Does something with an index that may be damaged: redb trusts some of its pages and panics where they are not as it
/// wrote them, and a disk that changes bytes must not end the program.
pub(crate) fn contained<T>(work: impl FnOnce() -> Result<T, StoreError>) -> Result<T, StoreError> {
    // What was being worked on is dropped, not used again.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work))
        .unwrap_or(Err(StoreError::IndexDamaged("its pages")))
}

fn open_database(disk: &dyn Disk, cache_bytes: usize) -> Result<(Database, bool), StoreError> {
    let database = open_as_it_is(disk, cache_bytes)?;
    let version = migrate::version(&database)?;
    if let Some(found) = version {
        migrate::check(found)?;
        migrate::migrate(&database, found, STEPS)?;
    }
    Ok((database, version.is_none()))
}
