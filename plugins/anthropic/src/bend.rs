//! What becomes of the corpus in `corpus/` on a bad day.

use bending::Bend;
use proptest::prelude::*;

/// Pieces that a reader of this API's streams and messages may stumble over.
const PIECES: [&[u8]; 2] = [b"data: {}\n\n", b"\"type\":\"tool_use\""];

pub(crate) use bending::bent;

/// The files of a folder of the corpus, with their names.
pub(crate) fn corpus(folder: &str) -> Vec<(String, Vec<u8>)> {
    bending::corpus(env!("CARGO_MANIFEST_DIR"), folder)
}

pub(crate) fn any_bend() -> impl Strategy<Value = Bend> {
    bending::any_bend(&PIECES)
}
