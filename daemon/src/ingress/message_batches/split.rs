//! Finds the requests of a message batch in its body while that arrives: one JSON object with an array of any length,
//! of which never more than one element is in memory.

/// A body that is not what it must be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BadBody {
    /// Not the right kind of JSON.
    #[error("the body must be a JSON object with an array \"requests\" ({0})")]
    NotABatch(&'static str),
    /// One element is too large.
    #[error("a request is longer than {0} bytes, which is the largest")]
    TooLong(usize),
}

/// Where the body is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before the object.
    Start,
    /// Before a member's name or the object's end.
    Name,
    /// In a member's name.
    InName,
    /// Between a member's name and its value.
    Colon,
    /// In the value of another member.
    Other,
    /// In the array, before its first element.
    First,
    /// In the array, behind an element.
    AfterElement,
    /// In the array, behind a comma.
    Next,
    /// In an element.
    Element,
    /// After a member's value.
    AfterValue,
    /// After the object.
    End,
}

/// Cuts a body into the elements of its array.
pub struct Splitter {
    at: At,
    nesting: Nesting,
    name: Vec<u8>,
    has_requests: bool,
    /// The beginning of an element whose end has not arrived.
    partial: Vec<u8>,
    most: usize,
}

/// How deep a value is nested, and whether a text is open.
#[derive(Debug, Default)]
struct Nesting {
    depth: u32,
    is_text: bool,
    is_escaped: bool,
}

impl Nesting {
    /// Takes a byte of the value in; true if the value is complete with it. A value without brackets or quotes is
    /// complete where something follows it, which the caller sees.
    fn takes(&mut self, byte: u8) -> bool {
        if self.is_text {
            match byte {
                _ if self.is_escaped => self.is_escaped = false,
                b'\\' => self.is_escaped = true,
                b'"' => {
                    self.is_text = false;
                    return self.depth == 0;
                }
                _ => {}
            }
            return false;
        }
        match byte {
            b'"' => self.is_text = true,
            b'{' | b'[' => self.depth += 1,
            b'}' | b']' => {
                self.depth = self.depth.saturating_sub(1);
                return self.depth == 0;
            }
            _ => {}
        }
        false
    }
}

impl Splitter {
    /// Elements of at most so many bytes.
    pub fn new(most: usize) -> Self {
        Self {
            at: At::Start,
            nesting: Nesting::default(),
            name: Vec::new(),
            has_requests: false,
            partial: Vec::new(),
            most,
        }
    }

    /// Takes in what has arrived; each element that it completes goes to `found`.
    pub fn push<E: From<BadBody>>(
        &mut self,
        data: &[u8],
        found: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut rest = data;
        while let Some((&byte, after)) = rest.split_first() {
            if self.at == At::Element {
                rest = self.element(rest, found)?;
                continue;
            }
            rest = after;
            self.structure(byte)?;
            if self.at == At::Element {
                // The byte belongs to it.
                rest = self.begin_element(byte, rest);
            }
        }
        Ok(())
    }

    /// Whether the body was whole.
    pub fn finish(&self) -> Result<(), BadBody> {
        match self.at {
            At::End if self.has_requests => Ok(()),
            At::End => Err(BadBody::NotABatch("there is no \"requests\"")),
            _ => Err(BadBody::NotABatch("it ends too early")),
        }
    }

    fn begin_element<'d>(&mut self, first: u8, rest: &'d [u8]) -> &'d [u8] {
        self.nesting = Nesting::default();
        self.nesting.takes(first);
        self.partial.clear();
        self.partial.push(first);
        rest
    }

    /// As much of an element as there is.
    fn element<'d, E: From<BadBody>>(
        &mut self,
        data: &'d [u8],
        found: &mut impl FnMut(&[u8]) -> Result<(), E>,
    ) -> Result<&'d [u8], E> {
        let end = data.iter().position(|byte| self.nesting.takes(*byte));
        let (piece, rest) = data.split_at(end.map_or(data.len(), |end| end + 1));
        if self.partial.len() + piece.len() > self.most {
            return Err(BadBody::TooLong(self.most).into());
        }
        self.partial.extend_from_slice(piece);
        if end.is_some() {
            found(&self.partial)?;
            self.partial.clear();
            self.at = At::AfterElement;
        }
        Ok(rest)
    }

    /// A byte outside of elements.
    fn structure(&mut self, byte: u8) -> Result<(), BadBody> {
        self.at = match (self.at, byte) {
            (At::InName | At::Other | At::Element, _) => self.within(byte)?,
            _ if byte.is_ascii_whitespace() => return Ok(()),
            (At::Start, b'{') | (At::AfterValue, b',') => At::Name,
            (At::Start, _) => return Err(BadBody::NotABatch("it does not begin with {")),
            (At::Name, b'"') => {
                self.name.clear();
                self.nesting = Nesting { is_text: true, ..Nesting::default() };
                At::InName
            }
            (At::Name | At::AfterValue, b'}') => At::End,
            (At::Name, _) => return Err(BadBody::NotABatch("a member's name is missing")),
            (At::Colon, b':') => return Ok(()),
            (At::Colon, byte) => self.begin_value(byte)?,
            (At::First | At::Next, b'{') => At::Element,
            (At::First | At::AfterElement, b']') => At::AfterValue,
            (At::AfterElement, b',') => At::Next,
            (At::First | At::Next, _) => {
                return Err(BadBody::NotABatch("each of its requests must be an object"));
            }
            (At::AfterElement, _) => {
                return Err(BadBody::NotABatch("a comma is missing between its requests"));
            }
            (At::AfterValue | At::End, _) => {
                return Err(BadBody::NotABatch("something follows where nothing may"));
            }
        };
        Ok(())
    }

    /// A byte within something that is passed over or collected.
    fn within(&mut self, byte: u8) -> Result<At, BadBody> {
        match self.at {
            At::InName => self.in_name(byte),
            At::Other => Ok(self.in_other(byte)),
            other => Ok(other),
        }
    }

    fn in_name(&mut self, byte: u8) -> Result<At, BadBody> {
        if self.nesting.takes(byte) {
            return Ok(At::Colon);
        }
        if self.name.len() >= 64 {
            return Err(BadBody::NotABatch("a member's name is too long"));
        }
        self.name.push(byte);
        Ok(At::InName)
    }

    fn begin_value(&mut self, byte: u8) -> Result<At, BadBody> {
        if self.name == b"requests" {
            if byte != b'[' {
                return Err(BadBody::NotABatch("\"requests\" is not an array"));
            }
            if std::mem::replace(&mut self.has_requests, true) {
                return Err(BadBody::NotABatch("\"requests\" is there twice"));
            }
            return Ok(At::First);
        }
        self.nesting = Nesting::default();
        self.nesting.takes(byte);
        Ok(At::Other)
    }

    fn in_other(&mut self, byte: u8) -> At {
        let is_flat = self.nesting.depth == 0 && !self.nesting.is_text;
        match byte {
            b',' if is_flat => At::Name,
            b'}' if is_flat => At::End,
            _ if self.nesting.takes(byte) => At::AfterValue,
            _ => At::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn split(pieces: &[&[u8]]) -> Result<Vec<String>, BadBody> {
        let mut splitter = Splitter::new(200);
        let mut found = Vec::new();
        for piece in pieces {
            splitter.push::<BadBody>(piece, &mut |element| {
                found.push(String::from_utf8(element.to_vec()).unwrap());
                Ok(())
            })?;
        }
        splitter.finish()?;
        Ok(found)
    }

    #[test]
    fn elements_come_as_they_are() {
        let body = br#" { "x" : [1,{"requests":[2]}], "y":"}]\"", "n": 12 , "requests" : [ {"a":"]}\\"} , {"b":[{}]}],"z":null } "#;
        assert_eq!(split(&[body]).unwrap(), [r#"{"a":"]}\\"}"#, r#"{"b":[{}]}"#]);
        assert_eq!(split(&[br#"{"requests":[]}"#]).unwrap(), [""; 0]);
    }

    #[test]
    fn everything_else_is_refused() {
        for body in [
            "",
            "[]",
            "{}",
            r#"{"requests":{}}"#,
            r#"{"requests":[1]}"#,
            r#"{"requests":[{}"#,
            r#"{"requests":[{}]"#,
            r#"{"requests":[{}{}]}"#,
            r#"{"requests":[{},,{}]}"#,
            r#"{"requests":[{},]}"#,
            r#"{"requests":[],"requests":[]}"#,
            r#"{"requests":[]} x"#,
            r"{requests:[]}",
        ] {
            assert!(split(&[body.as_bytes()]).is_err(), "{body}");
        }
        let long = format!(r#"{{"requests":[{{"a":"{}"}}]}}"#, "x".repeat(300));
        assert_eq!(split(&[long.as_bytes()]), Err(BadBody::TooLong(200)));
    }

    proptest! {
        #[test]
        fn wherever_the_network_cuts_the_same_is_found(
            elements in prop::collection::vec(r#"\{"[a-z]{0,5}":("[a-z\[\]{}, ]{0,9}"|\[[0-9]{0,3}\]|\{\})\}"#, 0..6),
            cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..8),
        ) {
            let body = format!("{{\"m\": {{}},\"requests\":[{}] }}", elements.join(" ,")).into_bytes();
            let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(body.len() + 1)).collect();
            cuts.sort_unstable();
            let mut pieces = Vec::new();
            let mut from = 0;
            for cut in cuts.into_iter().chain([body.len()]) {
                pieces.push(&body[from..cut]);
                from = cut;
            }
            prop_assert_eq!(split(&pieces).unwrap(), elements);
        }
    }
}
