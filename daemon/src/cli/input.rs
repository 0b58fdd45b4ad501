//! The user's file: what it is, before anything is sent.

use std::borrow::Cow;
use std::fs::{File, Metadata};
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::Deserialize;
use serde::de::IgnoredAny;
use sha2::{Digest as _, Sha256};

/// A first line beyond this is no request.
const LONGEST_LINE: usize = 64 << 20;
/// Read at once.
const CHUNK: usize = 1 << 20;

/// What a line looks like, for who has it wrong.
const EXAMPLE: &str = r#"{"custom_id": "1", "method": "POST", "url": "/v1/chat/completions", "body": {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "hello"}]}}"#;

/// A file that cannot be handed in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum InputError {
    /// The file system says no.
    #[error("cannot read {path}: {1}", path = .0.display())]
    Unreadable(PathBuf, #[source] io::Error),
    /// A folder, a pipe.
    #[error("{path} is not a file; submit reads it more than once, so that it must be one", path = .0.display())]
    NotAFile(PathBuf),
    /// Nothing in it.
    #[error("{path} is empty; each of its lines is to be a request such as\n{EXAMPLE}", path = .0.display())]
    Empty(PathBuf),
    /// The first line is no request.
    #[error("{}, line {line}: {problem}. Each line is a request such as\n{EXAMPLE}", path.display())]
    NotARequest {
        /// The file.
        path: PathBuf,
        /// From 1.
        line: u64,
        /// What is wrong with it.
        problem: String,
    },
    /// Somebody writes to it.
    #[error("{path} changed while it was being handed in; run the command again when it is finished", path = .0.display())]
    Changed(PathBuf),
}

/// A file of requests.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) path: PathBuf,
    pub(crate) size: u64,
    modified: Option<SystemTime>,
    /// SHA-256 in hexadecimal: what makes two files the same.
    pub(crate) sha256: String,
    /// Lines that are not blank.
    pub(crate) requests: u64,
    /// Where the requests go, by the first line.
    pub(crate) endpoint: String,
}

impl Input {
    /// Reads the whole file once.
    pub(crate) fn read(path: &Path) -> Result<Self, InputError> {
        let unreadable = |error| InputError::Unreadable(path.to_owned(), error);
        let mut file = File::open(path).map_err(unreadable)?;
        let metadata = file.metadata().map_err(unreadable)?;
        if !metadata.is_file() {
            return Err(InputError::NotAFile(path.to_owned()));
        }
        let mut scan = Scan::default();
        let mut hash = Sha256::new();
        let mut chunk = vec![0; CHUNK];
        let mut size = 0;
        loop {
            let read = match file.read(&mut chunk) {
                Ok(0) => break,
                Ok(read) => read,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(unreadable(error)),
            };
            let bytes = chunk.get(..read).unwrap_or_default();
            hash.update(bytes);
            scan.take(bytes);
            size += read as u64;
        }
        let (requests, line, first) = scan.end();
        let wrong = |problem| InputError::NotARequest { path: path.to_owned(), line, problem };
        let endpoint = match first {
            None => return Err(InputError::Empty(path.to_owned())),
            Some(first) => endpoint(&first).map_err(wrong)?,
        };
        let sha256 = format!("{:x}", hash.finalize());
        let input = Self {
            path: path.to_owned(),
            size,
            modified: metadata.modified().ok(),
            sha256,
            requests,
            endpoint,
        };
        if size == metadata.len() { Ok(input) } else { Err(InputError::Changed(path.to_owned())) }
    }

    /// Whether the file still is what was read.
    pub(crate) fn check_unchanged(&self, now: &Metadata) -> Result<(), InputError> {
        let same = now.len() == self.size && now.modified().ok() == self.modified;
        if same { Ok(()) } else { Err(InputError::Changed(self.path.clone())) }
    }

    /// The name under which it is uploaded; the API wants this ending.
    pub(crate) fn upload_name(&self) -> String {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let has_ending = self.path.extension().is_some_and(|extension| extension == "jsonl");
        if has_ending { name.into_owned() } else { format!("{name}.jsonl") }
    }
}

/// Counts lines and keeps the first that is not blank.
#[derive(Default)]
struct Scan {
    lines_ended: u64,
    requests: u64,
    first: Option<(u64, Vec<u8>)>,
    first_is_whole: bool,
    in_request: bool,
}

impl Scan {
    fn take(&mut self, bytes: &[u8]) {
        for piece in bytes.split_inclusive(|byte| *byte == b'\n') {
            if !self.in_request && piece.iter().any(|byte| !byte.is_ascii_whitespace()) {
                self.in_request = true;
                self.requests += 1;
            }
            if self.in_request && !self.first_is_whole {
                let (_, first) = self.first.get_or_insert_with(|| (self.lines_ended + 1, Vec::new()));
                let room = LONGEST_LINE.saturating_sub(first.len());
                first.extend_from_slice(piece.get(..room).unwrap_or(piece));
            }
            if piece.ends_with(b"\n") {
                self.first_is_whole |= self.in_request;
                self.in_request = false;
                self.lines_ended += 1;
            }
        }
    }

    /// How many requests, and the first with its line number.
    fn end(self) -> (u64, u64, Option<Vec<u8>>) {
        match self.first {
            Some((line, first)) => (self.requests, line, Some(first)),
            None => (0, 1, None),
        }
    }
}

/// What is read of a line; whether its body is right is for the daemon to say.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    custom_id: Option<Cow<'a, str>>,
    url: Option<String>,
    body: Option<IgnoredAny>,
    params: Option<IgnoredAny>,
    messages: Option<IgnoredAny>,
}

/// The endpoint that a line names, or what is wrong with the line.
fn endpoint(line: &[u8]) -> Result<String, String> {
    let text = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line).trim_ascii();
    if line.len() >= LONGEST_LINE {
        return Err(format!("it has more than {} MiB", LONGEST_LINE >> 20));
    }
    if text.first() == Some(&b'[') {
        return Err(
            "this is one JSON array, not a request a line (`jq -c '.[]' FILE` makes lines of it)".to_owned()
        );
    }
    let line: Line<'_> = serde_json::from_slice(text).map_err(|error| match error.classify() {
        serde_json::error::Category::Eof => {
            "the line ends in the middle of the JSON; a request stands on one line (`jq -c . FILE` makes it so)"
                .to_owned()
        }
        _ => format!("this is not a request in JSON ({error})"),
    })?;
    let missing = |name: &str, means: &str| format!("it has no {name}, {means}");
    match line {
        Line { params: Some(_), url: None, .. } => Err(
            "this is a request for Anthropic's batches, which have no files; send it with Anthropic's SDK to \
             /v1/messages/batches"
                .to_owned(),
        ),
        Line { messages: Some(_), body: None, .. } => {
            Err("this is a bare request; it belongs into the line's body".to_owned())
        }
        Line { custom_id: None, .. } => Err(missing("custom_id", "by which you find the answer")),
        Line { body: None, .. } => Err(missing("body", "the request itself")),
        Line { url: Some(url), .. } => Ok(url),
        Line { url: None, .. } => Err(missing("url", "the endpoint, such as /v1/chat/completions")),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(content: &[u8]) -> Result<Input, InputError> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("requests.jsonl");
        fs::write(&path, content).unwrap();
        Input::read(&path)
    }

    fn problem(content: &str) -> String {
        read(content.as_bytes()).unwrap_err().to_string()
    }

    #[test]
    fn the_first_line_tells_where_to() {
        let input = read(format!("\u{feff}{EXAMPLE}\r\n\r\n{EXAMPLE}\n{EXAMPLE}").as_bytes()).unwrap();
        assert_eq!((input.endpoint.as_str(), input.requests), ("/v1/chat/completions", 3));
        assert_eq!(input.upload_name(), "requests.jsonl");
        assert_eq!(input.sha256.len(), 64);
        let other = read(format!("\n \n{EXAMPLE}").as_bytes()).unwrap();
        assert_eq!(other.requests, 1);
        assert_ne!(other.sha256, input.sha256);
    }

    #[test]
    fn mistakes_are_told_with_their_line() {
        for (content, expected) in [
            ("", "is empty"),
            (" \n\r\n", "is empty"),
            ("\n{\n", "line 2: the line ends in the middle"),
            ("[{}]", "line 1: this is one JSON array"),
            ("hello", "line 1: this is not a request"),
            (r#"{"custom_id": "a", "params": {}}"#, "Anthropic"),
            (r#"{"model": "m", "messages": []}"#, "bare request"),
            (r#"{"url": "/v1/x", "body": {}}"#, "no custom_id"),
            (r#"{"custom_id": "a", "url": "/v1/x"}"#, "no body"),
            (r#"{"custom_id": "a", "body": {}}"#, "no url"),
        ] {
            let problem = problem(content);
            assert!(problem.contains(expected), "{content:?}: {problem}");
        }
    }

    #[test]
    fn lines_are_counted_wherever_the_file_is_cut_into_pieces() {
        let content = b"\n{\"a\": 1}\r\n  \n{\"b\"\n: 2}";
        for cut in 0..content.len() {
            let mut scan = Scan::default();
            scan.take(&content[..cut]);
            scan.take(&content[cut..]);
            assert_eq!(scan.end(), (3, 2, Some(b"{\"a\": 1}\r\n".to_vec())), "cut at {cut}");
        }
    }

    #[test]
    fn a_folder_is_no_file() {
        let folder = tempfile::tempdir().unwrap();
        assert!(matches!(Input::read(folder.path()).unwrap_err(), InputError::NotAFile(_)));
        let missing = folder.path().join("none.jsonl");
        assert!(matches!(Input::read(&missing).unwrap_err(), InputError::Unreadable(..)));
    }

    #[test]
    fn a_file_that_changes_is_noticed() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("requests.txt");
        fs::write(&path, EXAMPLE).unwrap();
        let input = Input::read(&path).unwrap();
        assert_eq!(input.upload_name(), "requests.txt.jsonl");
        input.check_unchanged(&fs::metadata(&path).unwrap()).unwrap();
        fs::write(&path, format!("{EXAMPLE}\n{EXAMPLE}")).unwrap();
        assert!(input.check_unchanged(&fs::metadata(&path).unwrap()).is_err());
    }
}
