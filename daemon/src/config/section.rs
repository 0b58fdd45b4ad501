//! Reading a section key by key. What is wrong is written down and reading goes on, so that all of it is told at once.
//!
//! A section knows the keys that it was asked for. So there is no second list of keys: what is in the file and nobody
//! asked for is unknown, and suggestions come from what was asked for.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::sync::Arc;

use super::env::Env;
use super::error::{Place, Problem};
use super::field::Field;
use super::node::{Entry, Table};
use super::overrides::variable_for;

/// What all sections share.
pub(super) struct Context<'a> {
    pub(super) env: &'a dyn Env,
    name: Arc<str>,
    problems: RefCell<Vec<Problem>>,
    warnings: RefCell<Vec<String>>,
    notes: RefCell<Vec<String>>,
    /// The paths that something asked for.
    asked: RefCell<BTreeSet<String>>,
    /// The environment variables that secrets came from.
    secrets: RefCell<BTreeSet<String>>,
}

/// A table of the configuration, there or not.
pub(super) struct Section<'a> {
    table: Option<&'a Table>,
    path: String,
    place: Place,
    /// Something is there that is no table; that is written down.
    is_broken: bool,
    known: RefCell<Vec<&'static str>>,
    pub(super) context: &'a Context<'a>,
}

impl<'a> Context<'a> {
    pub(super) fn new(name: Arc<str>, env: &'a dyn Env) -> Self {
        Self {
            env,
            name,
            problems: RefCell::default(),
            warnings: RefCell::default(),
            notes: RefCell::default(),
            asked: RefCell::default(),
            secrets: RefCell::default(),
        }
    }

    pub(super) fn problem(&self, place: &Place, path: &str, message: impl Into<String>) {
        let problem = Problem { place: place.clone(), path: path.to_owned(), message: message.into() };
        self.problems.borrow_mut().push(problem);
    }

    /// A mistake that has no place because something is missing.
    pub(super) fn problem_of_all(&self, path: &str, message: impl Into<String>) {
        self.problem(&self.whole(), path, message);
    }

    pub(super) fn warn(&self, warning: String) {
        self.warnings.borrow_mut().push(warning);
    }

    pub(super) fn note(&self, note: String) {
        self.notes.borrow_mut().push(note);
    }

    pub(super) fn used_for_secret(&self, variable: &str) {
        self.secrets.borrow_mut().insert(variable.to_owned());
    }

    pub(super) fn is_used_for_secret(&self, variable: &str) -> bool {
        self.secrets.borrow().contains(variable)
    }

    pub(super) fn asked(&self) -> BTreeSet<String> {
        self.asked.borrow().clone()
    }

    /// Problems, warnings, notes.
    pub(super) fn take_findings(&self) -> (Vec<Problem>, Vec<String>, Vec<String>) {
        (self.problems.take(), self.warnings.take(), self.notes.take())
    }

    pub(super) fn whole(&self) -> Place {
        Place::Whole(self.name.clone())
    }
}

impl<'a> Section<'a> {
    pub(super) fn root(context: &'a Context<'a>, table: &'a Table) -> Self {
        let place = context.whole();
        Self::of(context, String::new(), &place, table)
    }

    pub(super) fn of(context: &'a Context<'a>, path: String, place: &Place, table: &'a Table) -> Self {
        let (place, known) = (place.clone(), RefCell::default());
        Self { table: Some(table), path, place, is_broken: false, known, context }
    }

    /// The field of a key, if it is there.
    pub(super) fn get(&self, key: &'static str) -> Option<Field<'a>> {
        self.known.borrow_mut().push(key);
        let path = self.path_of(key);
        self.context.asked.borrow_mut().insert(path.clone());
        let entry = self.table?.get(key)?;
        Some(Field::new(self.context, path, &entry.node))
    }

    /// The field of a key without which nothing goes.
    pub(super) fn required(&self, key: &'static str, example: &str) -> Option<Field<'a>> {
        let field = self.get(key);
        if field.is_none() && self.is_there() {
            self.context.problem(
                &self.place,
                &self.path_of(key),
                format!("this is missing: add it, such as {key} = {example}"),
            );
        }
        field
    }

    /// A section within this one; an empty one if it is not there.
    pub(super) fn section(&self, key: &'static str) -> Self {
        let field = self.get(key);
        let place = self
            .table
            .and_then(|table| table.get(key))
            .map_or_else(|| self.place.clone(), |e| e.place.clone());
        let table = field.as_ref().and_then(Field::table);
        let is_broken = field.is_some() && table.is_none();
        Self {
            table,
            path: self.path_of(key),
            place,
            is_broken,
            known: RefCell::default(),
            context: self.context,
        }
    }

    /// The sections that users name themselves, in the order of the file.
    pub(super) fn named(&self) -> Vec<(&'a str, Section<'a>)> {
        let entries = self.table.map(|table| table.0.as_slice()).unwrap_or_default();
        let section = |entry: &'a Entry| {
            let path = self.path_of(&entry.key);
            self.check_name(&entry.key, &path, &entry.place);
            let table = Field::new(self.context, path.clone(), &entry.node).table()?;
            Some((entry.key.as_str(), Section::of(self.context, path, &entry.place, table)))
        };
        entries.iter().filter_map(section).collect()
    }

    /// Names stand in paths, headers, metrics and environment variables.
    fn check_name(&self, name: &str, path: &str, place: &Place) {
        let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
        if name.is_empty() || name.len() > 64 || !name.chars().all(fits) {
            self.context.problem(
                place,
                path,
                "a name is 1 to 64 letters, digits, hyphens and underscores: rename it",
            );
        }
    }

    pub(super) fn is_there(&self) -> bool {
        self.table.is_some()
    }

    /// Nothing is written here, not even something wrong.
    pub(super) fn is_empty(&self) -> bool {
        !self.is_broken && self.table.is_none_or(|table| table.0.is_empty())
    }

    pub(super) fn path_of(&self, key: &str) -> String {
        if self.path.is_empty() { key.to_owned() } else { format!("{}.{key}", self.path) }
    }

    pub(super) fn problem(&self, message: impl Into<String>) {
        self.context.problem(&self.place, &self.path, message);
    }

    /// Everything that is known has been asked for: the rest is a mistake.
    pub(super) fn finish(self) {
        let known = self.known.borrow();
        for entry in self.table.map(|table| table.0.as_slice()).unwrap_or_default() {
            if !known.contains(&entry.key.as_str()) {
                let message = match &entry.place {
                    Place::Variable(name) => self.unknown_variable(name, &entry.key, &known),
                    _ => unknown_key(&entry.key, &known),
                };
                self.context.problem(&entry.place, &self.path_of(&entry.key), message);
            }
        }
    }

    fn unknown_variable(&self, name: &str, key: &str, known: &[&'static str]) -> String {
        let path_to = |key: &str| variable_for(&self.path_of(key));
        match (nearest(key, known), name.strip_prefix(&path_to(key))) {
            (Some(near), Some(behind)) => format!("unknown key; did you mean `{}{behind}`?", path_to(near)),
            _ => unknown_key(key, known),
        }
    }
}

fn unknown_key(key: &str, known: &[&str]) -> String {
    match nearest(key, known) {
        Some(near) => format!("unknown key; did you mean `{near}`?"),
        None => format!("unknown key; the keys here are {}", known.join(", ")),
    }
}

/// What was probably meant: alike from the start on, or one slip away.
pub(super) fn nearest<'k>(word: &str, known: &[&'k str]) -> Option<&'k str> {
    let word = word.to_lowercase().replace('-', "_");
    let alike = |known: &&str| strsim::jaro_winkler(&word, known);
    let best = known.iter().max_by(|a, b| alike(a).total_cmp(&alike(b)))?;
    (alike(best) > 0.84 || strsim::osa_distance(&word, best) <= 1).then_some(*best)
}
