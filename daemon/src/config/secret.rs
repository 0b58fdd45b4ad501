//! Credentials: where they come from may be shown, what they are never is.

use std::fmt;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use serde::Serialize;
use subtle::ConstantTimeEq;

use super::env::Env;

/// A secret larger than this is some other file.
const MAX_BYTES: u64 = 64 << 10;

/// An API key. `Debug`, `Display` and serialisation do not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    value: Box<str>,
    origin: SecretOrigin,
}

/// Where a secret comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum SecretOrigin {
    /// The environment variable of this name.
    Env(String),
    /// This file.
    File(PathBuf),
}

/// Why there is no secret to be had.
#[derive(Debug, thiserror::Error)]
pub(super) enum BadSecret {
    #[error("the environment variable {0} is not set: set it for the daemon, or name another one")]
    NotSet(String),
    #[error("cannot read {}: {source}; mend the path or the file's permissions", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{0} is larger than 64 KiB: that is not a secret")]
    TooLarge(SecretOrigin),
    #[error("{0} is empty: put the secret there")]
    Empty(SecretOrigin),
    #[error(
        "{0} holds control characters or is not UTF-8: put the secret there alone, without further lines"
    )]
    NotText(SecretOrigin),
}

impl Secret {
    pub(super) fn from_env(name: &str, env: &(impl Env + ?Sized)) -> Result<Self, BadSecret> {
        let origin = SecretOrigin::Env(name.to_owned());
        if !env.has_secrets() {
            return Ok(Self::absent(origin));
        }
        let value = env.get(name).ok_or_else(|| BadSecret::NotSet(name.to_owned()))?;
        Self::checked(value.to_str(), origin)
    }

    pub(super) fn from_file(path: &Path, env: &(impl Env + ?Sized)) -> Result<Self, BadSecret> {
        let origin = SecretOrigin::File(path.to_owned());
        if !env.has_secrets() {
            return Ok(Self::absent(origin));
        }
        let unreadable = |source| BadSecret::Unreadable { path: path.to_owned(), source };
        let mut bytes = Vec::new();
        let file = std::fs::File::open(path).map_err(unreadable)?;
        file.take(MAX_BYTES + 1).read_to_end(&mut bytes).map_err(unreadable)?;
        if bytes.len() as u64 > MAX_BYTES {
            return Err(BadSecret::TooLarge(origin));
        }
        Self::checked(std::str::from_utf8(&bytes).ok(), origin)
    }

    /// What stands in a secret's place where there are none: another one for each origin, so that two of the same are noticed.
    fn absent(origin: SecretOrigin) -> Self {
        Self { value: format!("absent: {origin}").into(), origin }
    }

    /// Trimmed, since files end with a line feed. What could break out of a header is refused.
    pub(super) fn checked(value: Option<&str>, origin: SecretOrigin) -> Result<Self, BadSecret> {
        match value.map(str::trim) {
            None => Err(BadSecret::NotText(origin)),
            Some("") => Err(BadSecret::Empty(origin)),
            Some(value) if value.contains(char::is_control) => Err(BadSecret::NotText(origin)),
            Some(value) => Ok(Self { value: value.into(), origin }),
        }
    }

    /// The secret itself. Whoever calls this sees to it that it is not logged.
    pub fn expose(&self) -> &str {
        &self.value
    }

    /// Whether `candidate` is the secret, in a time that does not depend on where they differ.
    pub fn matches(&self, candidate: &str) -> bool {
        self.value.as_bytes().ct_eq(candidate.as_bytes()).into()
    }

    /// Where it comes from.
    pub fn origin(&self) -> &SecretOrigin {
        &self.origin
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[secret]")
    }
}

impl Serialize for Secret {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.origin.serialize(serializer)
    }
}

impl fmt::Display for SecretOrigin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Env(name) => write!(f, "the environment variable {name}"),
            Self::File(path) => write!(f, "the file {}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn from_file(path: &Path) -> Result<Secret, BadSecret> {
        Secret::from_file(path, &BTreeMap::new())
    }

    #[test]
    fn where_secrets_are_not_at_hand_each_origin_has_its_own_stand_in() {
        let env = super::super::env::WithoutSecrets;
        let of = |name| Secret::from_env(name, &env).unwrap();
        let file = Secret::from_file(Path::new("/nowhere/at/all"), &env).unwrap();
        assert_eq!(of("ONE_THAT_NOBODY_SET"), of("ONE_THAT_NOBODY_SET"));
        assert_ne!(of("ONE_THAT_NOBODY_SET"), of("ANOTHER_ONE"));
        assert_ne!(of("ANOTHER_ONE"), file);
        assert_eq!(file.origin(), &SecretOrigin::File("/nowhere/at/all".into()));
    }

    fn in_env(value: &str) -> Result<Secret, BadSecret> {
        Secret::from_env("KEY", &BTreeMap::from([("KEY".to_owned(), value.to_owned())]))
    }

    #[test]
    fn nothing_shows_it() {
        let secret = in_env("sk-123").unwrap();
        assert_eq!(format!("{secret} {secret:?}"), "[secret] [secret]");
        assert_eq!(serde_json::to_string(&secret).unwrap(), r#"{"env":"KEY"}"#);
        assert_eq!(secret.expose(), "sk-123");
    }

    #[test]
    fn it_is_compared_whole() {
        let secret = in_env("sk-123").unwrap();
        assert!(secret.matches("sk-123"));
        for other in ["", "sk-12", "sk-1234", "sk-124"] {
            assert!(!secret.matches(other), "{other}");
        }
    }

    #[test]
    fn it_is_trimmed_and_must_be_one_line_of_text() {
        assert_eq!(in_env(" sk-123\r\n").unwrap().expose(), "sk-123");
        assert!(matches!(in_env(" \n"), Err(BadSecret::Empty(_))));
        assert!(matches!(in_env("sk-1\nsk-2"), Err(BadSecret::NotText(_))));
        let none = Secret::from_env("KEY", &BTreeMap::new());
        assert!(matches!(none, Err(BadSecret::NotSet(name)) if name == "KEY"));
    }

    #[test]
    fn it_is_read_from_a_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("key");
        std::fs::write(&path, "sk-123\n").unwrap();
        let secret = from_file(&path).unwrap();
        assert_eq!(secret.expose(), "sk-123");
        assert_eq!(secret.origin(), &SecretOrigin::File(path.clone()));
        std::fs::write(&path, b"sk-\xff").unwrap();
        assert!(matches!(from_file(&path), Err(BadSecret::NotText(_))));
        std::fs::write(&path, vec![b'x'; 70_000]).unwrap();
        assert!(matches!(from_file(&path), Err(BadSecret::TooLarge(_))));
        assert!(matches!(from_file(folder.path()), Err(BadSecret::Unreadable { .. })));
        assert!(matches!(from_file(&folder.path().join("none")), Err(BadSecret::Unreadable { .. })));
    }
}
