//! Bending bytes: for tests of what bad days do to the corpus in `corpus/`.
//!
//! A file that once did harm goes into the corpus and stays there.

use std::{fs, path::Path};

use proptest::{collection::vec, prelude::*, sample::Index};

/// The files of a folder of the corpus, with their names.
pub(crate) fn corpus(folder: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus").join(folder);
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files
}

/// A range of bytes is replaced by something else.
#[derive(Debug, Clone)]
pub(crate) struct Bend {
    from: Index,
    to: Index,
    by: Vec<u8>,
}

pub(crate) fn any_bend() -> impl Strategy<Value = Bend> {
    let pieces = [
        "",
        "null",
        "[]",
        "{}",
        "-1",
        "1e400",
        "\"\\ud800\"",
        "\n\n",
        "\r",
        "data: {}\n\n",
        "\"type\":\"tool_use\"",
    ];
    let by = prop_oneof![
        proptest::sample::select(pieces.to_vec()).prop_map(|piece| piece.as_bytes().to_vec()),
        vec(any::<u8>(), 1..3)
    ];
    (any::<Index>(), any::<Index>(), any::<bool>(), by).prop_map(|(from, to, insert, by)| Bend {
        from,
        to: if insert { from } else { to },
        by,
    })
}

pub(crate) fn bent(mut bytes: Vec<u8>, bends: &[Bend]) -> Vec<u8> {
    for Bend { from, to, by } in bends {
        let (a, b) = (from.index(bytes.len() + 1), to.index(bytes.len() + 1));
        drop(bytes.splice(a.min(b)..a.max(b), by.iter().copied()));
    }
    bytes
}
