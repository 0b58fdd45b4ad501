//! The configuration as it was written: a tree that remembers where each piece stands and in which order.

use std::sync::Arc;

use toml::Spanned;
use toml::de::{DeTable, DeValue};

use super::error::{Place, Problem};

/// A value and its place.
#[derive(Debug, Clone)]
pub(super) struct Node {
    pub(super) value: Value,
    pub(super) place: Place,
}

#[derive(Debug, Clone)]
pub(super) enum Value {
    Text(String),
    Integer(i128),
    Float(f64),
    Flag(bool),
    Datetime(String),
    List(Vec<Node>),
    Table(Table),
    /// From an environment variable: what it means depends on what is expected.
    Variable(String),
}

/// Entries in the order in which they were written.
#[derive(Debug, Clone, Default)]
pub(super) struct Table(pub(super) Vec<Entry>);

#[derive(Debug, Clone)]
pub(super) struct Entry {
    pub(super) key: String,
    /// Where the key stands.
    pub(super) place: Place,
    pub(super) node: Node,
}

impl Value {
    /// What it is, for "must be a text, not ..".
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) | Self::Variable(_) => "a text",
            Self::Integer(_) => "a whole number",
            Self::Float(number) if number.is_infinite() => "a number too large",
            Self::Float(_) => "a number with a fraction",
            Self::Flag(_) => "true or false",
            Self::Datetime(_) => "a date or time",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
        }
    }
}

impl Table {
    pub(super) fn get(&self, key: &str) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.key == key)
    }
}

/// Reads TOML. The problems are those of its syntax, all of them.
pub(super) fn parse(name: &Arc<str>, text: &str) -> Result<Table, Vec<Problem>> {
    let (table, errors) = DeTable::parse_recoverable(text);
    let lines = Lines { name, text };
    if errors.is_empty() {
        return Ok(lines.table(table.into_inner()));
    }
    // Only the message: the error's own `Display` quotes the line, in which there may be a secret.
    let problem = |error: &toml::de::Error| Problem {
        place: lines.place(error.span().map_or(text.len(), |span| span.start)),
        path: String::new(),
        message: format!("not TOML: {}", error.message().replace('\n', "; ")),
    };
    let mut problems: Vec<_> = errors.iter().map(problem).collect();
    problems.sort();
    // What follows on a line is mostly caused by what came first.
    problems.dedup_by_key(|problem| match problem.place {
        Place::File { line, .. } => line,
        _ => 0,
    });
    Err(problems)
}

/// Reads a list or table out of a variable's value. None if it is not one.
pub(super) fn parse_variable(place: &Place, text: &str) -> Option<Value> {
    let value = DeValue::parse(text.trim()).ok()?;
    let mut node = Lines { name: &"".into(), text }.node(value);
    node.set_place(place);
    Some(node.value)
}

impl Node {
    fn set_place(&mut self, place: &Place) {
        self.place = place.clone();
        match &mut self.value {
            Value::List(items) => items.iter_mut().for_each(|item| item.set_place(place)),
            Value::Table(table) => {
                for entry in &mut table.0 {
                    entry.place = place.clone();
                    entry.node.set_place(place);
                }
            }
            _ => {}
        }
    }
}

/// Turns offsets into lines and columns.
struct Lines<'a> {
    name: &'a Arc<str>,
    text: &'a str,
}

impl Lines<'_> {
    fn place(&self, offset: usize) -> Place {
        let before = self.text.get(..offset).unwrap_or(self.text);
        let (lines, last) = before
            .rsplit_once('\n')
            .map_or((0, before), |(above, last)| (above.matches('\n').count() + 1, last));
        Place::File { name: self.name.clone(), line: lines + 1, column: last.chars().count() + 1 }
    }

    fn table(&self, table: DeTable<'_>) -> Table {
        let mut entries: Vec<_> = table.into_iter().collect();
        entries.sort_by_key(|(key, _)| key.span().start);
        let entry = |(key, value): (Spanned<std::borrow::Cow<'_, str>>, _)| Entry {
            place: self.place(key.span().start),
            key: key.into_inner().into_owned(),
            node: self.node(value),
        };
        Table(entries.into_iter().map(entry).collect())
    }

    fn node(&self, value: Spanned<DeValue<'_>>) -> Node {
        let place = self.place(value.span().start);
        let value = match value.into_inner() {
            DeValue::String(text) => Value::Text(text.into_owned()),
            DeValue::Integer(number) => match i128::from_str_radix(number.as_str(), number.radix()) {
                Ok(number) => Value::Integer(number),
                Err(_) => Value::Float(f64::INFINITY),
            },
            DeValue::Float(number) => Value::Float(number.as_str().parse().unwrap_or(f64::NAN)),
            DeValue::Boolean(flag) => Value::Flag(flag),
            DeValue::Datetime(datetime) => Value::Datetime(datetime.to_string()),
            DeValue::Array(items) => Value::List(items.into_iter().map(|item| self.node(item)).collect()),
            DeValue::Table(table) => Value::Table(self.table(table)),
        };
        Node { value, place }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(table: &Table) -> Vec<&str> {
        table.0.iter().map(|entry| entry.key.as_str()).collect()
    }

    #[test]
    fn tables_keep_the_order_of_the_file() {
        let text = "[b.zebra]\nx = 1\n[a]\n[b.ant]\n[b.moose]\n";
        let table = parse(&"t".into(), text).unwrap();
        assert_eq!(keys(&table), ["b", "a"]);
        let Value::Table(b) = &table.get("b").unwrap().node.value else { panic!() };
        assert_eq!(keys(b), ["zebra", "ant", "moose"]);
    }

    #[test]
    fn places_count_lines_and_characters_from_one() {
        let table = parse(&"t".into(), "a = 1\n\u{e9} = 1\n\"\u{e9}\u{e9}\" = true\n");
        let problems = table.unwrap_err();
        assert_eq!(problems[0].place.to_string(), "t:2:1");
        let table = parse(&"t".into(), "a = 1\r\n \"\u{e9}\u{e9}\" = true\n").unwrap();
        let entry = &table.0[1];
        assert_eq!((entry.place.to_string(), entry.node.place.to_string()), ("t:2:2".into(), "t:2:9".into()));
    }

    #[test]
    fn every_mistake_of_syntax_is_told_without_quoting_the_line() {
        let problems = parse(&"t".into(), "api_key = sk-123\n[b\n").unwrap_err();
        let places: Vec<_> = problems.iter().map(|problem| problem.place.to_string()).collect();
        assert_eq!(places, ["t:1:11", "t:2:3"], "{problems:?}");
        assert!(!problems.iter().any(|problem| problem.message.contains("sk-123")), "{problems:?}");
    }
}
