//! What the log has and the index perhaps not yet.

use std::collections::{HashMap, HashSet, VecDeque};

use offpeak_core::words::Place;

use crate::index::lookup::KeyRow;
use crate::log::Position;

/// What the log has and the index perhaps not yet.
#[derive(Debug, Default)]
pub(crate) struct Overlay {
    keys: HashMap<[u8; 16], KeyRow>,
    outcomes: HashSet<Place>,
    /// Settled groups and what each added.
    groups: VecDeque<(Position, Added)>,
    /// What the group under construction added.
    current: Added,
}

#[derive(Debug, Default)]
struct Added {
    /// Keys, with what stood there before.
    keys: Vec<([u8; 16], KeyRow, Option<KeyRow>)>,
    outcomes: Vec<Place>,
}

impl Overlay {
    pub(crate) fn add_key(&mut self, key: [u8; 16], row: KeyRow) {
        let before = self.keys.insert(key, row);
        self.current.keys.push((key, row, before));
    }

    pub(crate) fn add_outcome(&mut self, place: Place) {
        self.outcomes.insert(place);
        self.current.outcomes.push(place);
    }

    pub(crate) fn key(&self, key: &[u8; 16]) -> Option<KeyRow> {
        self.keys.get(key).copied()
    }

    pub(crate) fn has_outcome(&self, place: Place) -> bool {
        self.outcomes.contains(&place)
    }

    /// The group under construction is written and ends there.
    pub(crate) fn settle(&mut self, upto: Position) {
        if !self.current.keys.is_empty() || !self.current.outcomes.is_empty() {
            self.groups.push_back((upto, std::mem::take(&mut self.current)));
        }
    }

    /// The group under construction was not written.
    pub(crate) fn take_back(&mut self) {
        let added = std::mem::take(&mut self.current);
        for (key, _, before) in added.keys.into_iter().rev() {
            match before {
                Some(row) => self.keys.insert(key, row),
                None => self.keys.remove(&key),
            };
        }
        for place in added.outcomes {
            self.outcomes.remove(&place);
        }
    }

    /// The index has everything up to there.
    pub(crate) fn trim(&mut self, applied: Position) {
        while self.groups.front().is_some_and(|(upto, _)| *upto <= applied) {
            let Some((_, added)) = self.groups.pop_front() else { break };
            for (key, row, _) in added.keys {
                // A later group may have given the key to another request.
                if self.keys.get(&key) == Some(&row) {
                    self.keys.remove(&key);
                }
            }
            for place in added.outcomes {
                self.outcomes.remove(&place);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use offpeak_core::words::{LaneId, Seq};

    use super::*;

    fn at(seq: u64) -> Place {
        Place { lane: LaneId(0), seq: Seq(seq) }
    }

    fn key_row(seq: u64) -> KeyRow {
        KeyRow { body_hash: 1, place: at(seq), expires: 9 }
    }

    fn upto(offset: u32) -> Position {
        Position { segment: 1, offset }
    }

    #[test]
    fn it_forgets_what_the_index_has() {
        let mut overlay = Overlay::default();
        overlay.add_outcome(at(0));
        overlay.settle(upto(100));
        overlay.add_outcome(at(1));
        overlay.settle(upto(200));
        overlay.trim(upto(150));
        assert_eq!((overlay.has_outcome(at(0)), overlay.has_outcome(at(1))), (false, true));
        overlay.trim(upto(200));
        assert!(!overlay.has_outcome(at(1)));
    }

    #[test]
    fn what_is_taken_back_was_never_there() {
        let mut overlay = Overlay::default();
        overlay.add_key([1; 16], key_row(0));
        overlay.settle(upto(100));
        overlay.add_key([1; 16], key_row(1));
        overlay.add_key([2; 16], key_row(2));
        overlay.add_outcome(at(0));
        overlay.take_back();
        assert_eq!(overlay.key(&[1; 16]), Some(key_row(0)));
        assert_eq!(overlay.key(&[2; 16]), None);
        assert!(!overlay.has_outcome(at(0)));
    }

    #[test]
    fn a_key_given_again_outlives_its_first_group() {
        let mut overlay = Overlay::default();
        overlay.add_key([1; 16], key_row(0));
        overlay.settle(upto(100));
        overlay.add_key([1; 16], key_row(1));
        overlay.settle(upto(200));
        overlay.trim(upto(100));
        assert_eq!(overlay.key(&[1; 16]), Some(key_row(1)));
        overlay.trim(upto(200));
        assert_eq!(overlay.key(&[1; 16]), None);
    }
}
