//! Files of a corpus, and what becomes of them on a bad day: cut, with pieces missing, doubled, turned round, or changed.
//!
//! Each crate that reads what others wrote has a folder `corpus/` with files as they come. A file that once did harm goes
//! there and stays there.

#![expect(clippy::unwrap_used, clippy::missing_panics_doc, reason = "a helper that fails fails its test")]

use std::{fs, path::Path};

use proptest::{
    prelude::*,
    sample::select,
    strategy::ValueTree,
    test_runner::{RngAlgorithm, TestRng, TestRunner},
};

/// Pieces that readers of JSON and of lines have stumbled over.
const PIECES: [&[u8]; 19] = [
    b"null",
    b"[]",
    b"{}",
    b"-1",
    b"1e400",
    b"18446744073709551616",
    b"\"\"",
    b"\"\\ud800\"",
    b",",
    b"}",
    b"[[[[[[[[",
    b"\xef\xbb\xbf",
    b"\\",
    b"\n",
    b"\n\n",
    b"\r\n",
    b"\r",
    b"\0",
    b"\xff",
];

/// The files of a folder of a crate's corpus, with their names. `manifest` is the crate's own `CARGO_MANIFEST_DIR`.
pub fn corpus(manifest: &str, folder: &str) -> Vec<(String, Vec<u8>)> {
    let folder = Path::new(manifest).join("corpus").join(folder);
    let entries = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap());
    let mut files: Vec<(String, Vec<u8>)> = entries
        .map(|entry| (entry.file_name().into_string().unwrap(), fs::read(entry.path()).unwrap()))
        .collect();
    files.sort();
    assert!(!files.is_empty(), "{} is empty", folder.display());
    files
}

/// A place in bytes of any length: the part of them that stands before it, in 2^-32.
type Place = u32;

/// One way to bend bytes.
#[derive(Debug, Clone)]
pub enum Bend {
    /// The end is missing.
    Cut(Place),
    /// A part is missing.
    Remove(Place, Place),
    /// A part comes again, right there.
    Repeat(Place, Place),
    /// A byte is another one.
    Overwrite(Place, u8),
    /// Something stands in between.
    Insert(Place, Vec<u8>),
    /// Something stands in the place of a part.
    Replace(Place, Place, Vec<u8>),
    /// The beginning stands at the end.
    Rotate(Place),
}

/// Any way. `pieces` are what may be put in, beside what all readers have stumbled over.
pub fn any_bend(pieces: &[&'static [u8]]) -> impl Strategy<Value = Bend> + use<> {
    let place = any::<Place>;
    let piece = select([&PIECES, pieces].concat()).prop_map(<[u8]>::to_vec);
    prop_oneof![
        1 => place().prop_map(Bend::Cut),
        2 => (place(), place()).prop_map(|(from, to)| Bend::Remove(from, to)),
        1 => (place(), place()).prop_map(|(from, to)| Bend::Repeat(from, to)),
        3 => (place(), any::<u8>()).prop_map(|(at, byte)| Bend::Overwrite(at, byte)),
        3 => (place(), piece.clone()).prop_map(|(at, piece)| Bend::Insert(at, piece)),
        1 => (place(), place(), piece).prop_map(|(from, to, piece)| Bend::Replace(from, to, piece)),
        1 => place().prop_map(Bend::Rotate),
    ]
}

/// The bytes, bent in these ways one after the other.
pub fn bent(mut bytes: Vec<u8>, bends: &[Bend]) -> Vec<u8> {
    for bend in bends {
        let places = bytes.len() as u64 + 1;
        let place = |place: &Place| usize::try_from((u64::from(*place) * places) >> 32).unwrap();
        let range = |a: &Place, b: &Place| place(a).min(place(b))..place(a).max(place(b));
        match bend {
            Bend::Cut(at) => bytes.truncate(place(at)),
            Bend::Remove(from, to) => drop(bytes.drain(range(from, to))),
            Bend::Repeat(from, to) => {
                let range = range(from, to);
                let (end, piece) = (range.end, bytes[range].to_vec());
                drop(bytes.splice(end..end, piece));
            }
            Bend::Overwrite(at, byte) => {
                let at = place(at);
                if let Some(old) = bytes.get_mut(at) {
                    *old = *byte;
                }
            }
            Bend::Insert(at, piece) => {
                let at = place(at);
                drop(bytes.splice(at..at, piece.iter().copied()));
            }
            Bend::Replace(from, to, piece) => {
                let range = range(from, to);
                drop(bytes.splice(range, piece.iter().copied()));
            }
            Bend::Rotate(at) => {
                let at = place(at);
                bytes.rotate_left(at);
            }
        }
    }
    bytes
}

/// The bytes, bent once or a few times in ways that follow from the seed.
pub fn bent_by(seed: u64, bytes: Vec<u8>, pieces: &[&'static [u8]]) -> Vec<u8> {
    let mut whole = [0; 32];
    whole[..8].copy_from_slice(&seed.to_le_bytes());
    let dice = TestRng::from_seed(RngAlgorithm::ChaCha, &whole);
    let mut runner = TestRunner::new_with_rng(ProptestConfig::default(), dice);
    let bends = proptest::collection::vec(any_bend(pieces), 1..=3).new_tree(&mut runner).unwrap();
    bent(bytes, &bends.current())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn a_seed_says_how() {
        let bytes = || br#"{"a": [1, 2, 3], "b": "some text"}"#.to_vec();
        let all: Vec<Vec<u8>> = (0..200).map(|seed| bent_by(seed, bytes(), &[b"--"])).collect();
        assert_eq!(all[7], bent_by(7, bytes(), &[b"--"]));
        assert!(all.iter().collect::<BTreeSet<_>>().len() > 150, "they differ");
        assert!(all.iter().filter(|bent| **bent == bytes()).count() < 10, "few are as they were");
    }

    #[test]
    fn each_way_does_what_it_says() {
        let at = |place: u64, of: u64| Place::try_from((place << 32).div_ceil(of)).unwrap();
        for (bend, expected) in [
            (Bend::Cut(at(2, 5)), "ab"),
            (Bend::Remove(at(3, 5), at(1, 5)), "ad"),
            (Bend::Repeat(at(0, 5), at(2, 5)), "ababcd"),
            (Bend::Overwrite(at(1, 5), b'x'), "axcd"),
            (Bend::Overwrite(at(4, 5), b'x'), "abcd"),
            (Bend::Insert(at(4, 5), b"x".to_vec()), "abcdx"),
            (Bend::Replace(at(1, 5), at(3, 5), b"x".to_vec()), "axd"),
            (Bend::Rotate(at(1, 5)), "bcda"),
        ] {
            assert_eq!(bent(b"abcd".to_vec(), std::slice::from_ref(&bend)), expected.as_bytes(), "{bend:?}");
        }
        assert_eq!(bent(Vec::new(), &[Bend::Rotate(at(0, 1)), Bend::Cut(at(0, 1))]), b"");
    }
}
