//! What of a file has no answer, as a file of its own, so that only that is handed in again.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fs::{self, File};
use std::io::{BufRead as _, BufReader, ErrorKind, Write as _};
use std::path::{Path, PathBuf};

use serde::Deserialize;

use crate::cli::failure::Failure;
use crate::cli::input::InputError;

/// Where everything is.
pub(crate) struct Files {
    /// The requests.
    pub(crate) requests: PathBuf,
    /// Those that have an answer. There may be none.
    pub(crate) answers: PathBuf,
    /// Those that have none.
    pub(crate) errors: PathBuf,
    /// The file that is made.
    pub(crate) picked: PathBuf,
}

/// The member by which lines belong together.
#[derive(Deserialize)]
struct Line<'a> {
    #[serde(borrow)]
    custom_id: Cow<'a, str>,
}

/// Writes the requests without an answer, as they stand in the file of requests now: who has mended them there hands in the
/// mended ones. Returns how many they are.
pub(crate) fn pick(files: &Files, overwrite: bool) -> Result<usize, Failure> {
    let mut failed = HashSet::new();
    match each_line(&files.errors, |id, _| {
        failed.insert(id.to_owned());
    }) {
        Err(Failure::Input(InputError::Unreadable(path, error))) if error.kind() == ErrorKind::NotFound => {
            return Err(Failure::Usage(format!(
                "there is no {}: the file has not been handed in with these results, they have not been fetched yet \
                 (--watch without --failed does), or all requests have an answer",
                path.display()
            )));
        }
        read => read?,
    }
    // The errors may be older than the answers.
    if files.answers.exists() {
        each_line(&files.answers, |id, _| {
            failed.remove(id);
        })?;
    }
    let mut text = Vec::new();
    let mut found = HashSet::new();
    each_line(&files.requests, |id, line| {
        if let Some(id) = failed.get(id) {
            text.extend_from_slice(line);
            text.push(b'\n');
            found.insert(id.as_str());
        }
    })?;
    if found.is_empty() {
        return Err(Failure::Usage(format!(
            "none of the requests of {} failed by {}: there is nothing to hand in again",
            files.requests.display(),
            files.errors.display()
        )));
    }
    if found.len() < failed.len() {
        return Err(Failure::Usage(format!(
            "{} of the {} requests without an answer are not in {} any more: their custom_ids must stay as they were",
            failed.len() - found.len(),
            failed.len(),
            files.requests.display()
        )));
    }
    write(&files.picked, &text, overwrite)?;
    Ok(found.len())
}

/// Reads a file line by line; what has no `custom_id` is passed over.
fn each_line(path: &Path, mut take: impl FnMut(&str, &[u8])) -> Result<(), Failure> {
    let unreadable = |error| InputError::Unreadable(path.to_owned(), error);
    let mut file = BufReader::new(File::open(path).map_err(unreadable)?);
    let mut line = Vec::new();
    while file.read_until(b'\n', &mut line).map_err(unreadable)? > 0 {
        let text = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(&line).trim_ascii();
        if let Ok(Line { custom_id }) = serde_json::from_slice(text) {
            take(&custom_id, text);
        }
        line.clear();
    }
    Ok(())
}

/// Writes the file at once, but not over another one.
fn write(path: &Path, text: &[u8], overwrite: bool) -> Result<(), Failure> {
    let failed = |error| Failure::Write(path.to_owned(), error);
    match fs::read(path) {
        Ok(there) if there == text => return Ok(()),
        Ok(_) if !overwrite => return Err(Failure::InTheWay(path.to_owned())),
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(failed(error)),
        Ok(_) | Err(_) => {}
    }
    let folder = path.parent().unwrap_or_else(|| Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
    file.write_all(text).map_err(failed)?;
    file.persist(path).map_err(|error| failed(error.error))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(id: &str, more: &str) -> String {
        format!("{{\"custom_id\": \"{id}\", \"body\": {{{more}}}}}")
    }

    /// A folder with these files; each is left out if it has no text.
    fn files(requests: &str, answers: &str, errors: &str) -> (tempfile::TempDir, Files) {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let files = Files {
            requests: path("in.jsonl"),
            answers: path("in.output.jsonl"),
            errors: path("in.errors.jsonl"),
            picked: path("in.failed.jsonl"),
        };
        for (path, text) in [(&files.requests, requests), (&files.answers, answers), (&files.errors, errors)]
        {
            if !text.is_empty() {
                fs::write(path, text).unwrap();
            }
        }
        (folder, files)
    }

    fn all(ids: &[&str]) -> String {
        ids.iter().map(|id| line(id, "") + "\n").collect()
    }

    #[test]
    fn only_what_has_no_answer_is_picked_as_it_stands_now() {
        let mended = line("c", "\"mended\": true");
        let requests =
            format!("\u{feff}{}\r\n\n{}\n{mended}\n{}", line("a", ""), line("b", ""), line("d", ""));
        let (_folder, files) = files(&requests, &all(&["b", "d"]), &all(&["a", "c", "d"]));
        for _ in 0..2 {
            assert_eq!(pick(&files, false).unwrap(), 2, "what is there already is no other file");
        }
        assert_eq!(fs::read_to_string(&files.picked).unwrap(), format!("{}\n{mended}\n", line("a", "")));
        fs::write(&files.errors, all(&["a"])).unwrap();
        assert!(matches!(pick(&files, false), Err(Failure::InTheWay(_))));
        assert_eq!(pick(&files, true).unwrap(), 1);
        assert_eq!(fs::read_to_string(&files.picked).unwrap(), line("a", "") + "\n");
    }

    #[test]
    fn where_nothing_is_to_be_picked_it_says_why() {
        for (requests, answers, errors, said) in [
            (all(&["a"]), String::new(), String::new(), "not been fetched yet"),
            (all(&["a"]), all(&["a"]), all(&["a"]), "nothing to hand in again"),
            (all(&["a", "b"]), String::new(), all(&["a", "x"]), "1 of the 2 requests"),
        ] {
            let (_folder, files) = files(&requests, &answers, &errors);
            let failure = pick(&files, false).unwrap_err().to_string();
            assert!(failure.contains(said), "{failure}");
            assert!(!files.picked.exists());
        }
    }
}
