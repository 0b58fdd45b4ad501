//! Reading one value as what it should be. None means that the problem is written down.

use std::borrow::Cow;
use std::net::SocketAddr;
use std::num::NonZeroU32;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::time::Duration;

use offpeak_core::money::Money;
use offpeak_core::words::Millis;
use serde_json::{Map, Number, Value as Json};

use super::amounts::{self, Least, ShownSize};
use super::error::Place;
use super::node::{Node, Table, Value, parse_variable};
use super::secret::{Secret, SecretOrigin};
use super::section::{Context, Section};

/// A value that is there.
pub(super) struct Field<'a> {
    context: &'a Context<'a>,
    path: String,
    node: Cow<'a, Node>,
}

impl<'a> Field<'a> {
    pub(super) fn new(context: &'a Context<'a>, path: String, node: &'a Node) -> Self {
        Self { context, path, node: Cow::Borrowed(node) }
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn problem(&self, message: impl Into<String>) {
        self.context.problem(&self.node.place, &self.path, message);
    }

    /// For values that are wrong: says so and gives none.
    pub(super) fn refuse<T>(&self, message: impl Into<String>) -> Option<T> {
        self.problem(message);
        None
    }

    fn must_be<T>(&self, what: &str) -> Option<T> {
        self.refuse(format!("must be {what}, not {}", self.node.value.kind()))
    }

    pub(super) fn table(&self) -> Option<&'a Table> {
        match &self.node {
            Cow::Borrowed(Node { value: Value::Table(table), .. }) => Some(table),
            Cow::Borrowed(Node { value: Value::List(items), place }) if is_list_of_tables(items) => {
                let place = items.first().map_or(place, |item| &item.place);
                let message = format!(
                    "must be a table, not a list of tables: write [{path}] or [{path}.<name>] instead of [[{path}]]",
                    path = self.path
                );
                self.context.problem(place, &self.path, message);
                None
            }
            _ => self.must_be("a table"),
        }
    }

    pub(super) fn text(&self) -> Option<&str> {
        match &self.node.value {
            Value::Text(text) => Some(text),
            Value::Variable(text) => Some(text.trim()),
            _ => self.must_be("a text in quotes"),
        }
    }

    pub(super) fn path_buf(&self) -> Option<PathBuf> {
        match self.text()? {
            "" => self.refuse("must be a path, not an empty text"),
            text => Some(PathBuf::from(text)),
        }
    }

    /// The path of a file that must be there.
    pub(super) fn existing_file(&self) -> Option<PathBuf> {
        let path = self.path_buf()?;
        match std::fs::metadata(&path) {
            Ok(found) if found.is_file() => Some(path),
            Ok(_) => self.refuse(format!("{} is not a file: name a file", path.display())),
            Err(error) => {
                let from = if path.is_relative() {
                    ", which counts from the folder in which offpeak is started"
                } else {
                    ""
                };
                self.refuse(format!("cannot find {}: {error}; mend the path{from}", path.display()))
            }
        }
    }

    /// SHA-256 in hex; in lower case, as everything else that shows one.
    pub(super) fn sha256(&self) -> Option<String> {
        let text = self.text()?;
        if text.len() == 64 && text.chars().all(|c| c.is_ascii_hexdigit()) {
            return Some(text.to_ascii_lowercase());
        }
        self.refuse(
            "must be a SHA-256 in hex, 64 digits: `offpeak plugin check FILE` and `sha256sum FILE` tell it",
        )
    }

    pub(super) fn flag(&self) -> Option<bool> {
        match &self.node.value {
            Value::Flag(flag) => Some(*flag),
            Value::Variable(text) if text.trim() == "true" => Some(true),
            Value::Variable(text) if text.trim() == "false" => Some(false),
            Value::Variable(_) => self.refuse("must be true or false"),
            _ => self.must_be("true or false"),
        }
    }

    pub(super) fn number<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Option<T> {
        let number = match &self.node.value {
            Value::Integer(number) => *number,
            Value::Variable(text) => match text.trim().parse() {
                Ok(number) => number,
                Err(_) => return self.refuse("must be a whole number"),
            },
            Value::Text(text) if text.parse::<u64>().is_ok() => {
                return self.refuse("must be a whole number, not a text: leave out the quotes");
            }
            _ => return self.must_be("a whole number"),
        };
        let fits = u64::try_from(number).ok().filter(|number| range.contains(number));
        match fits.and_then(|number| T::try_from(number).ok()) {
            Some(number) => Some(number),
            None => self.refuse(format!("must be from {} to {}, not {number}", range.start(), range.end())),
        }
    }

    pub(super) fn non_zero(&self) -> Option<NonZeroU32> {
        self.number(1..=u64::from(u32::MAX)).and_then(NonZeroU32::new)
    }

    pub(super) fn size<T: TryFrom<u64>>(&self, range: RangeInclusive<u64>) -> Option<T> {
        let bytes = match &self.node.value {
            Value::Integer(number) => u64::try_from(*number).map_err(|_| amounts::BadAmount::NotASize),
            Value::Text(text) | Value::Variable(text) => amounts::size(text),
            _ => return self.must_be("a size such as \"64MiB\", or a number of bytes"),
        };
        let bytes = match bytes {
            Ok(bytes) => bytes,
            Err(error) => return self.refuse(format!("must be {error}")),
        };
        match Some(bytes).filter(|bytes| range.contains(bytes)).and_then(|bytes| T::try_from(bytes).ok()) {
            Some(bytes) => Some(bytes),
            None => self.refuse(format!(
                "must be from {} to {}, not {}",
                ShownSize(*range.start()),
                ShownSize(*range.end()),
                ShownSize(bytes)
            )),
        }
    }

    /// Dollars: a whole number, or a text, since a number with a fraction would not be kept to the digit.
    pub(super) fn money(&self) -> Option<Money> {
        let text = match &self.node.value {
            Value::Integer(number) => number.to_string(),
            Value::Text(text) | Value::Variable(text) => text.clone(),
            _ => return self.must_be("dollars, as a whole number or in quotes such as \"12.50\""),
        };
        match text.parse::<Money>() {
            Ok(money) if money >= Money::ZERO => Some(money),
            Ok(_) => self.refuse("must not be below zero"),
            Err(error) => self.refuse(error.to_string()),
        }
    }

    pub(super) fn millis(&self, least: Least) -> Option<Millis> {
        let (Value::Text(text) | Value::Variable(text)) = &self.node.value else {
            return self.must_be("a duration in quotes, such as \"30s\"");
        };
        match amounts::duration(text, least) {
            Ok(millis) => Some(millis),
            Err(error) => self.refuse(format!("must be {error}, not \"{text}\"")),
        }
    }

    pub(super) fn duration(&self, least: Least) -> Option<Duration> {
        self.millis(least).map(Duration::from)
    }

    /// An address to listen on.
    pub(super) fn address(&self) -> Option<SocketAddr> {
        let text = self.text()?;
        if let Ok(address) = text.parse() {
            return Some(address);
        }
        let (host, port) = text.rsplit_once(':').unwrap_or((text, "8400"));
        let port = port.parse().unwrap_or(8400_u16);
        let suggested = if host.is_empty() { "0.0.0.0" } else { "127.0.0.1" };
        self.refuse(format!(
            "must be an IP address and a port, such as \"{suggested}:{port}\", not \"{text}\""
        ))
    }

    /// One of a few words.
    pub(super) fn choice<T: Copy>(&self, words: [(&str, T); 2]) -> Option<T> {
        let text = self.text()?;
        match words.iter().find(|(word, _)| *word == text) {
            Some((_, value)) => Some(*value),
            None => self.refuse(format!("must be \"{}\" or \"{}\", not \"{text}\"", words[0].0, words[1].0)),
        }
    }

    /// The items of a list; of a variable, what stands between its commas.
    pub(super) fn items(&self) -> Option<Vec<Field<'a>>> {
        let item = |index: usize, node| Field { path: format!("{}[{index}]", self.path), node, ..*self };
        match &self.node {
            Cow::Borrowed(Node { value: Value::List(items), .. }) => {
                Some(items.iter().enumerate().map(|(i, node)| item(i, Cow::Borrowed(node))).collect())
            }
            node => match &node.value {
                Value::Variable(text) => {
                    let variable = |text: &str| Value::Variable(text.trim().to_owned());
                    let node = |text| Node { value: variable(text), place: self.node.place.clone() };
                    let texts = text.split(',').enumerate();
                    Some(texts.map(|(i, text)| item(i, Cow::Owned(node(text)))).collect())
                }
                _ => self.must_be("a list in brackets"),
            },
        }
    }

    /// A list of texts none of which is empty, with at least one.
    pub(super) fn texts(&self) -> Option<Vec<String>> {
        let items = self.items()?;
        if items.is_empty() {
            return self.refuse("must name at least one");
        }
        let text = |item: &Field<'_>| match item.text()? {
            "" => item.refuse("must not be empty: remove it or fill it in"),
            text => Some(text.to_owned()),
        };
        let texts: Vec<_> = items.iter().map(text).collect();
        texts.into_iter().collect()
    }

    /// A list of numbers from 1 on, each greater than the one before; at most sixteen.
    pub(super) fn ascending(&self) -> Option<Vec<u64>> {
        let items = self.items()?;
        let numbers: Vec<Option<u64>> = items.iter().map(|item| item.number(1..=1 << 32)).collect();
        let numbers: Vec<u64> = numbers.into_iter().collect::<Option<_>>()?;
        let is_ascending = numbers.windows(2).all(|pair| matches!(pair, [a, b] if a < b));
        match (is_ascending, numbers.len()) {
            (true, ..=16) => Some(numbers),
            (true, _) => self.refuse("must have at most 16 numbers"),
            (false, _) => self.refuse("must be in ascending order, such as [64, 256, 1024]"),
        }
    }

    /// A secret: where it comes from stands in the configuration, or a variable overrides it with the secret itself.
    pub(super) fn secret(&self) -> Option<Secret> {
        let secret = match (&self.node.value, &self.node.place) {
            (Value::Variable(text), Place::Variable(name)) => {
                self.context.used_for_secret(name);
                Secret::checked(Some(text), SecretOrigin::Env(name.to_string()))
            }
            (Value::Table(_), _) => return self.secret_from_table(),
            _ => {
                return self.refuse(
                    "a secret does not stand in the configuration itself: write { env = \"NAME_OF_A_VARIABLE\" } or \
                     { file = \"/path/of/a/file\" }, and put it there",
                );
            }
        };
        secret.map_err(|error| self.problem(error.to_string())).ok()
    }

    fn secret_from_table(&self) -> Option<Secret> {
        let section = Section::of(self.context, self.path.clone(), &self.node.place, self.table()?);
        let (env, file) = (section.get("env"), section.get("file"));
        let is_empty = section.is_empty();
        section.finish();
        let (at, secret) = match (&env, &file) {
            (Some(env), None) => {
                let name = env.text()?;
                self.context.used_for_secret(name);
                (env, Secret::from_env(name, self.context.env))
            }
            (None, Some(file)) => (file, Secret::from_file(Path::new(file.text()?), self.context.env)),
            (Some(_), Some(_)) => return self.refuse("has env and file: keep the one that holds the secret"),
            (None, None) if !is_empty => return None,
            (None, None) => {
                return self.refuse("must say where the secret is: env = \"..\" or file = \"..\"");
            }
        };
        secret.map_err(|error| at.problem(error.to_string())).ok()
    }

    /// Refuses members of a free table that are zero. `why` follows upon "must be above zero: ".
    pub(super) fn refuse_zeros(&self, names: &[&str], why: &str) {
        let Value::Table(table) = &self.node.value else { return };
        for entry in names.iter().filter_map(|name| table.get(name)) {
            let is_zero = match &entry.node.value {
                Value::Integer(number) => *number == 0,
                Value::Variable(text) => text.trim().parse() == Ok(0),
                _ => false,
            };
            if is_zero {
                let path = format!("{}.{}", self.path, entry.key);
                self.context.problem(&entry.node.place, &path, format!("must be above zero: {why}"));
            }
        }
    }

    /// A free table as the text of a JSON object.
    pub(super) fn json(&self) -> Option<String> {
        Some(Json::Object(self.json_table(self.table()?)?).to_string())
    }

    fn json_table(&self, table: &Table) -> Option<Map<String, Json>> {
        let member = |entry: &super::node::Entry| Some((entry.key.clone(), self.json_value(&entry.node)?));
        let members: Vec<_> = table.0.iter().map(member).collect();
        members.into_iter().collect()
    }

    fn json_value(&self, node: &Node) -> Option<Json> {
        match &node.value {
            Value::Text(text) | Value::Datetime(text) => Some(Json::String(text.clone())),
            Value::Integer(number) => Number::from_i128(*number).map(Json::Number),
            Value::Float(number) => Number::from_f64(*number).map(Json::Number),
            Value::Flag(flag) => Some(Json::Bool(*flag)),
            Value::List(items) => {
                let items: Vec<_> = items.iter().map(|item| self.json_value(item)).collect();
                return items.into_iter().collect::<Option<_>>().map(Json::Array);
            }
            Value::Table(table) => return self.json_table(table).map(Json::Object),
            // A number or flag if it reads as one, else text.
            Value::Variable(text) => match parse_variable(&node.place, text) {
                Some(value) => return self.json_value(&Node { value, place: node.place.clone() }),
                None => Some(Json::String(text.clone())),
            },
        }
        .or_else(|| {
            let message = "holds a number that JSON cannot: write it as a text";
            self.context.problem(&node.place, &self.path, message);
            None
        })
    }
}

fn is_list_of_tables(items: &[Node]) -> bool {
    !items.is_empty() && items.iter().all(|item| matches!(item.value, Value::Table(_)))
}
