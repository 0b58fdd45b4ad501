//! The items of a batch as the body of an upload, made while it is sent: bounded memory, whatever the batch's size.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::stream::{self, Stream};
use offpeak_core::extent::Range;
use offpeak_core::words::{Place, Seq};
use offpeak_host::values::provider::{self, Framing};
use offpeak_host::{PluginError, ProviderPlugin};
use offpeak_store::{BatchRecord, Selection};
use parking_lot::Mutex;

use crate::blocking::blocking;
use crate::damaged;
use crate::gateway::Gateway;
use crate::outcomes::{self, Attempt, Source};

/// Bodies that are in memory at once, in bytes.
const CHUNK_BYTES: usize = 1 << 20;

/// What the body is made of.
pub struct Items {
    /// Where the requests are, and the outcomes of those that are refused.
    pub gateway: Arc<Gateway>,
    /// What writes them.
    pub plugin: Arc<ProviderPlugin>,
    /// The batch's name at the provider.
    pub mark: String,
    /// The batch.
    pub record: BatchRecord,
    /// Its requests that had no outcome when they were last counted.
    pub waiting: u32,
    /// What is told which of them were written.
    pub written: Arc<Written>,
}

/// Which requests an upload had, in their order, for a provider that finds fault with some of its lines.
#[derive(Debug, Default)]
pub struct Written(Mutex<Vec<Range>>);

impl Written {
    /// Another upload begins.
    pub fn clear(&self) {
        self.0.lock().clear();
    }

    fn push(&self, place: Place) {
        let next = Seq(place.seq.0 + 1);
        let mut ranges = self.0.lock();
        match ranges.last_mut().filter(|last| last.lane == place.lane && last.to == place.seq) {
            Some(last) => last.to = next,
            None => ranges.push(Range { lane: place.lane, from: place.seq, to: next }),
        }
    }

    /// The request on this line, from 1.
    pub fn line(&self, line: u64) -> Option<Place> {
        let mut before = line.checked_sub(1)?;
        for range in self.0.lock().iter() {
            if before < range.len() {
                return Some(Place { lane: range.lane, seq: Seq(range.from.0 + before) });
            }
            before -= range.len();
        }
        None
    }
}

/// What stands around the encoded items.
pub struct Wrapping {
    before: Bytes,
    between: Bytes,
    after: Bytes,
    content_type: Option<String>,
}

impl Wrapping {
    /// As the plugin asked for. `random` tells one multipart body from what may stand in it.
    pub fn new(framing: &Framing, random: u128) -> Self {
        match framing {
            Framing::Lines => Self::plain("", "", ""),
            Framing::JsonArray(surround) => Self::plain(&surround.before, ",", &surround.after),
            Framing::Multipart(multipart) => Self::multipart(multipart, &boundary(random)),
        }
    }

    /// The content type that the framing brings with it.
    pub fn content_type(&self) -> Option<&str> {
        self.content_type.as_deref()
    }

    fn plain(before: &str, between: &'static str, after: &str) -> Self {
        Self {
            before: Bytes::copy_from_slice(before.as_bytes()),
            between: Bytes::from_static(between.as_bytes()),
            after: Bytes::copy_from_slice(after.as_bytes()),
            content_type: None,
        }
    }

    /// A multipart/form-data body (RFC 7578): the fields, then the file.
    fn multipart(multipart: &provider::Multipart, boundary: &str) -> Self {
        use std::fmt::Write as _;

        let mut before = String::new();
        let mut write = |part: std::fmt::Arguments<'_>| {
            // Writing to a String does not fail.
            if before.write_fmt(part).is_err() {
                tracing::error!("a multipart body could not be written");
            }
        };
        for (name, value) in &multipart.fields {
            let name = quoted(name);
            write(format_args!(
                "--{boundary}\r\ncontent-disposition: form-data; name=\"{name}\"\r\n\r\n{value}\r\n"
            ));
        }
        let (field, file) = (quoted(&multipart.file_field), quoted(&multipart.file_name));
        let kind = quoted(&multipart.content_type);
        write(format_args!(
            "--{boundary}\r\ncontent-disposition: form-data; name=\"{field}\"; filename=\"{file}\"\r\n\
             content-type: {kind}\r\n\r\n"
        ));
        let after = format!("\r\n--{boundary}--\r\n");
        let content_type = Some(format!("multipart/form-data; boundary={boundary}"));
        Self { content_type, ..Self::plain(&before, "", &after) }
    }
}

/// Names in a part's head may hold neither quotes nor line ends; they are escaped as browsers do.
fn quoted(text: &str) -> String {
    text.replace('"', "%22").replace('\r', "%0D").replace('\n', "%0A")
}

/// 128 random bits, which no body holds by chance.
fn boundary(random: u128) -> String {
    format!("offpeak-{random:032x}")
}

enum At {
    Before,
    Items { rest: Option<Selection>, is_first: bool },
    End,
}

/// The body, piece by piece. An error breaks the upload off; the plugin is told that its outcome is unknown.
pub fn stream(items: Items, wrapping: Wrapping) -> impl Stream<Item = io::Result<Bytes>> + Send {
    let everything = Selection::from(items.record.ranges.clone());
    stream::try_unfold(
        (items, wrapping, At::Before, Some(everything)),
        |(items, wrapping, at, selection)| async {
            match at {
                At::Before => {
                    let piece = wrapping.before.clone();
                    let next = At::Items { rest: selection, is_first: true };
                    Ok(Some((piece, (items, wrapping, next, None))))
                }
                At::Items { rest: None, .. } => {
                    let piece = wrapping.after.clone();
                    Ok(Some((piece, (items, wrapping, At::End, None))))
                }
                At::Items { rest: Some(selection), is_first } => {
                    let (encoded, rest) = items.encode(selection).await?;
                    let is_empty = encoded.is_empty();
                    let piece = if is_first || is_empty || wrapping.between.is_empty() {
                        Bytes::from(encoded)
                    } else {
                        [&wrapping.between[..], &encoded[..]].concat().into()
                    };
                    let next = At::Items { rest, is_first: is_first && is_empty };
                    Ok(Some((piece, (items, wrapping, next, None))))
                }
                At::End => Ok(None),
            }
        },
    )
}

impl Items {
    /// The next requests, as the plugin writes them. Those that have an outcome already (cancelled, say) are left out.
    async fn encode(&self, selection: Selection) -> io::Result<(Vec<u8>, Option<Selection>)> {
        let chunk = damaged::sound(&self.gateway, selection, CHUNK_BYTES).await.map_err(io::Error::other)?;
        let ids: Vec<String> = chunk.entries.iter().map(|entry| entry.place.to_string()).collect();
        let items: Vec<provider::Item<'_>> = ids
            .iter()
            .zip(&chunk.entries)
            .map(|(id, entry)| provider::Item { id, body: &entry.body })
            .collect();
        if items.is_empty() {
            return Ok((Vec::new(), chunk.rest));
        }
        let encoded = self.written(&items).map_err(|error| {
            tracing::error!(batch = %self.record.id, %error, "the items of a batch could not be written");
            io::Error::other(error)
        })?;
        let refused = encoded.refused.iter().filter_map(|refused| {
            let entry = chunk.entries.iter().zip(&ids).find(|(_, id)| **id == refused.id)?.0;
            Some(outcomes::refused(entry.place, entry.origin, &self.record, &refused.refusal))
        });
        let refused: Vec<Attempt> = refused.collect();
        if !refused.is_empty() {
            // Before the upload ends: what is without an outcome afterwards is what the provider has.
            let source = Source::batch(&self.gateway, &self.record);
            outcomes::record(&self.gateway, &source, refused).await.map_err(io::Error::other)?;
        }
        let is_written = |id: &String| encoded.refused.iter().all(|refused| refused.id != *id);
        for (entry, _) in chunk.entries.iter().zip(&ids).filter(|(_, id)| is_written(id)) {
            self.written.push(entry.place);
        }
        Ok((encoded.bytes, chunk.rest))
    }

    fn written(&self, items: &[provider::Item<'_>]) -> Result<provider::Encoded, PluginError> {
        let kept = super::kept_headers(&self.record);
        let only = super::only(&self.record);
        let batch = super::view(&self.record, &self.mark, self.waiting, only.as_deref(), &kept);
        let now = self.gateway.clock.now().0;
        blocking(|| self.plugin.encode_items(&batch, items, now))
    }
}

#[cfg(test)]
mod tests {
    use offpeak_core::words::LaneId;

    use super::*;

    #[test]
    fn the_lines_of_an_upload_are_known_by_their_numbers() {
        let written = Written::default();
        let places: Vec<Place> = [(1, 5), (1, 6), (1, 8), (2, 0), (1, 9)]
            .into_iter()
            .map(|(lane, seq)| Place { lane: LaneId(lane), seq: Seq(seq) })
            .collect();
        for place in &places {
            written.push(*place);
        }
        let found: Vec<Place> = (1..=5).filter_map(|line| written.line(line)).collect();
        assert_eq!(found, places);
        assert_eq!((written.line(0), written.line(6)), (None, None));
        written.clear();
        assert_eq!(written.line(1), None);
    }

    #[test]
    fn a_multipart_body_has_its_fields_before_the_file() {
        let multipart = provider::Multipart {
            fields: vec![("purpose".into(), "batch".into())],
            file_field: "file".into(),
            file_name: "a\"b\r\n.jsonl".into(),
            content_type: "application/jsonl".into(),
        };
        let wrapping = Wrapping::multipart(&multipart, "B");
        assert_eq!(
            wrapping.before,
            "--B\r\ncontent-disposition: form-data; name=\"purpose\"\r\n\r\nbatch\r\n\
             --B\r\ncontent-disposition: form-data; name=\"file\"; filename=\"a%22b%0D%0A.jsonl\"\r\n\
             content-type: application/jsonl\r\n\r\n"
        );
        assert_eq!(wrapping.after, "\r\n--B--\r\n");
        assert_eq!(wrapping.content_type(), Some("multipart/form-data; boundary=B"));
    }
}
