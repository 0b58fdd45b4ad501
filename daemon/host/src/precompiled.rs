//! The one place of the workspace that is `unsafe`: machine code that was kept on disk becomes part of the process.

#![expect(unsafe_code, reason = "wasmtime cannot check machine code; the cache vouches for it instead")]

use std::path::Path;

use wasmtime::{Engine, component::Component};

/// A file of the cache that may be trusted as much as this program's own executable. Only [`crate::cache`] makes one,
/// after it has seen that nobody else can write the file or its folder and that the checksum is the one noted when
/// this program wrote it.
pub(crate) struct Vouched<'a>(pub(crate) &'a Path);

/// Maps a compiled component into memory.
pub(crate) fn map(engine: &Engine, file: &Vouched<'_>) -> wasmtime::Result<Component> {
    // SAFETY: `deserialize_file` needs a file that `serialize` wrote and that does not change while it is mapped.
    // `Vouched` stands for the first: the file and its folder belong to this user and are writable by nobody else, and
    // length and checksum are those noted at writing. For the second, the cache replaces files by renaming and never
    // writes into one that has its final name. wasmtime itself refuses files of other versions and settings.
    unsafe { Component::deserialize_file(engine, file.0) }
}
