//! Lines and events of a stream, whatever the cuts between its bytes.

use serde::{Deserialize, Serialize};

/// The most bytes of a line, and of an event. Anthropic's events are a hundred times smaller. The bound keeps the stored
/// state of a stream well below the 1 MiB that it may have.
const EVENT_BYTES_MAX: usize = 192 * 1024;

/// What is kept between two pieces of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Events {
    /// The bytes of a character that has not ended; at most three.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    torn: Vec<u8>,
    /// A line that has not ended.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    line: String,
    /// The data of an event that has not ended.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    data: String,
    /// There was a line of data, though it may have been empty.
    #[serde(default)]
    has_data: bool,
    /// The last line ended with a carriage return, to which a line feed may belong.
    #[serde(default)]
    after_return: bool,
}

/// A stream that is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Broken {
    /// An event is larger than anything that is believed to be one.
    TooLarge,
    /// There is a control character, which JSON cannot have.
    ControlCharacter,
}

impl Events {
    /// Takes the next bytes and hands the data of each event that ends in them to `take`. Bytes that are no UTF-8 are
    /// replaced, as the standard has it.
    pub(super) fn push(&mut self, bytes: &[u8], mut take: impl FnMut(&str)) -> Result<(), Broken> {
        let mut bytes = bytes;
        while !self.torn.is_empty() && !bytes.is_empty() {
            bytes = self.mend(bytes, &mut take)?;
        }
        for chunk in bytes.utf8_chunks() {
            self.text(chunk.valid(), &mut take)?;
            let invalid = chunk.invalid();
            let ends_here = invalid.as_ptr_range().end == bytes.as_ptr_range().end;
            if ends_here && is_torn(invalid) {
                self.torn = invalid.to_vec();
            } else if !invalid.is_empty() {
                self.text("\u{fffd}", &mut take)?;
            }
        }
        Ok(())
    }

    /// Adds one byte to the torn character; what is left of `bytes` comes back.
    fn mend<'b>(&mut self, bytes: &'b [u8], take: &mut impl FnMut(&str)) -> Result<&'b [u8], Broken> {
        let Some((first, rest)) = bytes.split_first() else { return Ok(bytes) };
        let mut torn = std::mem::take(&mut self.torn);
        torn.push(*first);
        match std::str::from_utf8(&torn) {
            Ok(text) => {
                self.text(text, take)?;
                Ok(rest)
            }
            Err(error) if error.error_len().is_none() => {
                self.torn = torn;
                Ok(rest)
            }
            // The byte belongs to the next character.
            Err(_) => {
                self.text("\u{fffd}", take)?;
                Ok(bytes)
            }
        }
    }

    /// Everything up to the first control character counts, so that cuts change nothing.
    fn text(&mut self, text: &str, take: &mut impl FnMut(&str)) -> Result<(), Broken> {
        let is_control = |byte: u8| byte < 0x20 && !matches!(byte, b'\n' | b'\r' | b'\t');
        match text.bytes().position(is_control) {
            None => self.lines(text, take),
            Some(at) => {
                self.lines(text.split_at(at).0, take)?;
                Err(Broken::ControlCharacter)
            }
        }
    }

    fn lines(&mut self, text: &str, take: &mut impl FnMut(&str)) -> Result<(), Broken> {
        let mut text = text;
        if self.after_return && !text.is_empty() {
            self.after_return = false;
            text = text.strip_prefix('\n').unwrap_or(text);
        }
        while let Some(end) = text.find(['\n', '\r']) {
            let (line, rest) = text.split_at(end);
            if line.len() > EVENT_BYTES_MAX {
                return Err(Broken::TooLarge);
            }
            if self.line.is_empty() {
                self.end_line(line, take);
            } else {
                let mut whole = std::mem::take(&mut self.line);
                whole.push_str(line);
                self.end_line(&whole, take);
            }
            text = rest.strip_prefix("\r\n").or_else(|| rest.strip_prefix('\n')).unwrap_or_else(|| {
                let rest = rest.strip_prefix('\r').unwrap_or(rest);
                self.after_return = rest.is_empty();
                rest
            });
            self.check_size()?;
        }
        self.line.push_str(text);
        self.check_size()
    }

    fn check_size(&self) -> Result<(), Broken> {
        if self.line.len() + self.data.len() > EVENT_BYTES_MAX { Err(Broken::TooLarge) } else { Ok(()) }
    }

    /// The names of events are not read: the data tells its type itself.
    fn end_line(&mut self, line: &str, take: &mut impl FnMut(&str)) {
        if line.is_empty() {
            if std::mem::take(&mut self.has_data) {
                take(&self.data);
                self.data.clear();
            }
            return;
        }
        let Some(value) = line.strip_prefix("data").filter(|rest| rest.is_empty() || rest.starts_with(':'))
        else {
            return;
        };
        let value = value.strip_prefix(':').unwrap_or(value);
        if self.has_data {
            self.data.push('\n');
        }
        self.data.push_str(value.strip_prefix(' ').unwrap_or(value));
        self.has_data = true;
    }
}

/// The beginning of a character whose other bytes may follow.
fn is_torn(bytes: &[u8]) -> bool {
    std::str::from_utf8(bytes).is_err_and(|error| error.error_len().is_none())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The events in pieces, up to where the stream breaks.
    fn events(pieces: &[&[u8]]) -> (Vec<String>, Result<(), Broken>) {
        let mut events = Events::default();
        let mut all = Vec::new();
        let result = pieces.iter().try_for_each(|piece| events.push(piece, |data| all.push(data.to_owned())));
        (all, result)
    }

    fn whole_events(pieces: &[&[u8]]) -> Vec<String> {
        let (all, result) = events(pieces);
        result.unwrap();
        all
    }

    #[test]
    fn data_is_found_among_all_else() {
        let stream = "\u{feff}event: x\ndata: one\n\n: comment\n\ndata:two\r\ndata:  three\r\n\r\nid: 7\rdata\r\rdatum: x\n\n";
        assert_eq!(whole_events(&[stream.as_bytes()]), ["one", "two\n three", ""]);
        assert!(whole_events(&[b"data: not ended\n"]).is_empty());
    }

    #[test]
    fn what_is_no_text_is_replaced() {
        assert_eq!(whole_events(&[b"data: \xff\xc3\n\n"]), ["\u{fffd}\u{fffd}"]);
        assert_eq!(whole_events(&[b"data: \xe2\x82", b"\xacx\n\n"]), ["\u{20ac}x"]);
        assert_eq!(whole_events(&[b"data: \xe2\x82", b"x\n\n"]), ["\u{fffd}x"]);
    }

    #[test]
    fn an_event_without_an_end_is_too_large() {
        let mut large = Events::default();
        let piece = vec![b'x'; 64 * 1024];
        let pushed = (0..1000).take_while(|_| large.push(&piece, |_| {}).is_ok()).count();
        assert_eq!(pushed, 3);
        assert_eq!(
            events(&[b"data: a\n\n\x00data: b\n\n"]),
            (vec!["a".to_owned()], Err(Broken::ControlCharacter))
        );
    }

    proptest! {
        #[test]
        fn cuts_change_nothing(
            bytes in proptest::collection::vec(
                prop_oneof![
                    6 => proptest::sample::select(&b"data: \n\n\r\r:x"[..]),
                    1 => proptest::sample::select(&b"\xe2\x82\xac\xf0\x9f\x98\x80\xff"[..]),
                    1 => any::<u8>()
                ],
                0..200,
            ),
            cuts in proptest::collection::vec(any::<proptest::sample::Index>(), 0..6),
        ) {
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut begin = 0;
            for cut in cuts {
                pieces.push(&bytes[begin..cut]);
                begin = cut;
            }
            pieces.push(&bytes[begin..]);
            prop_assert_eq!(events(&pieces), events(&[&bytes]));
            let single: Vec<&[u8]> = bytes.chunks(1).collect();
            prop_assert_eq!(events(&single), events(&[&bytes]));
        }
    }
}
