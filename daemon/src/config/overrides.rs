//! Environment variables that stand for keys: `OFFPEAK_SERVER__LISTEN` is `server.listen`.

use super::env::Env;
use super::error::{Place, Problem};
use super::node::{Entry, Node, Table, Value, parse_variable};

const PREFIX: &str = "OFFPEAK_";
/// Between the names of a path; one underscore belongs to a name.
const DIVIDER: &str = "__";

/// The variables that stand for keys, in order. Others that begin with the prefix belong to somebody else: a container
/// platform sets its own for a service of the name.
pub(super) fn variables(env: &(impl Env + ?Sized)) -> Vec<String> {
    let names = env.names().into_iter().filter_map(|name| name.into_string().ok());
    let mut names: Vec<String> =
        names.filter(|name| name.strip_prefix(PREFIX).is_some_and(|path| path.contains(DIVIDER))).collect();
    names.sort();
    names
}

/// Puts the variables into the tree, over what the file says.
pub(super) fn apply(root: &mut Table, env: &(impl Env + ?Sized)) -> Vec<Problem> {
    let put = |name: String| put(root, &name, env).err();
    variables(env).into_iter().filter_map(put).collect()
}

/// The variable that stands for a path of keys.
pub(super) fn variable_for(path: &str) -> String {
    format!("{PREFIX}{}", path.split('.').map(variable_part).collect::<Vec<_>>().join(DIVIDER))
}

/// What someone writes who forgets that the divider is two underscores.
pub(super) fn with_one_underscore(path: &str) -> String {
    variable_for(path).replace(DIVIDER, "_")
}

fn variable_part(key: &str) -> String {
    key.to_uppercase().replace('-', "_")
}

fn put(root: &mut Table, name: &str, env: &(impl Env + ?Sized)) -> Result<(), Problem> {
    let place = Place::Variable(name.into());
    let problem = |path: &[&str], message: String| Problem {
        place: place.clone(),
        path: path.join(".").to_lowercase(),
        message,
    };
    let parts: Vec<&str> = name.strip_prefix(PREFIX).unwrap_or_default().split(DIVIDER).collect();
    let Some((last, sections)) = parts.split_last() else { return Ok(()) };
    if parts.contains(&"") {
        let message = "a name is missing: it is OFFPEAK_<SECTION>__<KEY>, such as OFFPEAK_SERVER__LISTEN";
        return Err(problem(&[], message.to_owned()));
    }
    let Some(value) = env.get(name).map(std::ffi::OsString::into_string).and_then(Result::ok) else {
        return Err(problem(&parts, "the value is not UTF-8: set it to text".to_owned()));
    };
    let mut table = root;
    for (depth, part) in sections.iter().enumerate() {
        let entry = entry(table, part, &place, || Value::Table(Table::default()));
        table = match &mut entry.node.value {
            Value::Table(table) => table,
            other => {
                let path = parts.get(..=depth).unwrap_or(&parts);
                let message = format!(
                    "this is {} at {}, which has no keys of its own: give one or the other",
                    other.kind(),
                    entry.node.place
                );
                return Err(problem(path, message));
            }
        };
    }
    // Lists and inline tables are recognised here, since no text that a key takes looks like one.
    let structure =
        value.trim_start().starts_with(['[', '{']).then(|| parse_variable(&place, &value)).flatten();
    let value = structure.unwrap_or(Value::Variable(value));
    let node = Node { value, place: place.clone() };
    let entry = entry(table, last, &place, || Value::Flag(false));
    entry.place = place.clone();
    entry.node = node;
    Ok(())
}

/// The entry that a part of a variable's name means: one whose key differs in case and hyphens at most, else a new one.
fn entry<'t>(
    table: &'t mut Table,
    part: &str,
    place: &Place,
    value: impl FnOnce() -> Value,
) -> &'t mut Entry {
    let found = table.0.iter().position(|entry| variable_part(&entry.key) == part.to_uppercase());
    let index = found.unwrap_or_else(|| {
        let node = Node { value: value(), place: place.clone() };
        table.0.push(Entry { key: part.to_lowercase(), place: place.clone(), node });
        table.0.len() - 1
    });
    &mut table.0[index]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::config::node::parse;

    fn with(text: &str, variables: &[(&str, &str)]) -> (Table, Vec<String>) {
        let mut table = parse(&"t".into(), text).unwrap();
        let env: BTreeMap<_, _> = variables.iter().map(|&(k, v)| (k.to_owned(), v.to_owned())).collect();
        let problems = apply(&mut table, &env);
        (table, problems.iter().map(ToString::to_string).collect())
    }

    fn at<'t>(table: &'t Table, path: &[&str]) -> &'t Value {
        let (first, rest) = path.split_first().unwrap();
        match (&table.get(first).unwrap().node.value, rest) {
            (value, []) => value,
            (Value::Table(table), rest) => at(table, rest),
            (other, _) => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_variable_replaces_a_key_and_makes_one() {
        let variables = [
            ("OFFPEAK_SERVER__LISTEN", "b"),
            ("OFFPEAK_BACKENDS__MY_GPU__BASE_URL", "c"),
            ("OFFPEAK_BACKENDS__NEW__BASE_URL", "d"),
        ];
        let (table, problems) = with("server.listen = 'a'\n[backends.My-GPU]\n", &variables);
        assert_eq!(problems, Vec::<String>::new());
        for (path, expected) in [
            (["server", "listen"].as_slice(), "b"),
            (&["backends", "My-GPU", "base_url"], "c"),
            (&["backends", "new", "base_url"], "d"),
        ] {
            assert!(matches!(at(&table, path), Value::Variable(text) if text == expected), "{path:?}");
        }
    }

    #[test]
    fn what_stands_for_no_key_is_left_alone() {
        let foreign = [("OFFPEAK_PORT_8400_TCP", "x"), ("OFFPEAK_CONFIG", "x"), ("SERVER__LISTEN", "x")];
        let (table, problems) = with("", &foreign);
        assert!(table.0.is_empty() && problems.is_empty());
    }

    #[test]
    fn bad_names_are_told() {
        let variables = [("OFFPEAK_SERVER__", "x"), ("OFFPEAK_SERVER__LISTEN__PORT", "x")];
        let (_, problems) = with("server.listen = 'a'", &variables);
        assert_eq!(
            problems,
            [
                "OFFPEAK_SERVER__: a name is missing: it is OFFPEAK_<SECTION>__<KEY>, such as OFFPEAK_SERVER__LISTEN",
                "OFFPEAK_SERVER__LISTEN__PORT: server.listen: this is a text at t:1:17, which has no keys of its own: \
                 give one or the other",
            ]
        );
    }

    #[test]
    fn paths_have_their_variables() {
        assert_eq!(variable_for("backends.my-gpu.base_url"), "OFFPEAK_BACKENDS__MY_GPU__BASE_URL");
        assert_eq!(with_one_underscore("server.listen"), "OFFPEAK_SERVER_LISTEN");
    }
}
