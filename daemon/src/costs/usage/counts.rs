//! The counts in a provider's usage object.

use std::fmt;

use offpeak_core::usage::Usage;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

/// What usage objects counted. Several may be read, as a stream tells several times: the last word counts, member by
/// member.
#[derive(Debug, Clone, Default)]
pub(super) struct Counts {
    input: Option<u64>,
    output: Option<u64>,
    cached: Option<u64>,
    cache_written: Option<u64>,
    cache_written_1h: Option<u64>,
    audio_input: Option<u64>,
    reasoning: Option<u64>,
    audio_output: Option<u64>,
    /// Of messages: these stand beside the input.
    beside: Option<(u64, u64)>,
}

impl Counts {
    pub(super) fn read(&mut self, object: &[u8]) {
        let mut read = Numbers::default();
        let mut json = serde_json::Deserializer::from_slice(object);
        let walk = Walk { read: &mut read, at: At::Inside(Holder::Usage) };
        if walk.deserialize(&mut json).and_then(|()| json.end()).is_err() {
            return;
        }
        let put = |to: &mut Option<u64>, value: Option<u64>| *to = value.or(*to);
        put(&mut self.input, read.prompt.or(read.input));
        put(&mut self.output, read.completion.or(read.output));
        put(&mut self.cached, read.cached);
        put(&mut self.cache_written, read.cache_write);
        put(&mut self.audio_input, read.audio_input);
        put(&mut self.reasoning, read.reasoning);
        put(&mut self.audio_output, read.audio_output);
        put(&mut self.cache_written_1h, read.made_for_an_hour);
        if read.cache_read.is_some() || read.cache_made.is_some() {
            let before = self.beside.unwrap_or_default();
            self.beside = Some((read.cache_read.unwrap_or(before.0), read.cache_made.unwrap_or(before.1)));
        }
    }

    pub(super) fn usage(&self) -> Option<Usage> {
        if self.input.is_none() && self.output.is_none() {
            return None;
        }
        let hour = self.cache_written_1h.unwrap_or(0);
        let (read, written) = self.beside.unwrap_or_default();
        Some(Usage {
            input: self.input.unwrap_or(0).saturating_add(read).saturating_add(written),
            cached: self.cached.unwrap_or(0).saturating_add(read),
            cache_written: self.cache_written.unwrap_or(0).saturating_add(written.saturating_sub(hour)),
            cache_written_1h: hour.min(written),
            audio_input: self.audio_input.unwrap_or(0),
            output: self.output.unwrap_or(0),
            reasoning: self.reasoning.unwrap_or(0),
            audio_output: self.audio_output.unwrap_or(0),
        })
    }
}

/// The numbers of one object.
#[derive(Default)]
struct Numbers {
    prompt: Option<u64>,
    input: Option<u64>,
    completion: Option<u64>,
    output: Option<u64>,
    cached: Option<u64>,
    cache_write: Option<u64>,
    audio_input: Option<u64>,
    reasoning: Option<u64>,
    audio_output: Option<u64>,
    cache_read: Option<u64>,
    cache_made: Option<u64>,
    made_for_an_hour: Option<u64>,
}

/// An object whose members are looked at.
#[derive(Clone, Copy)]
enum Holder {
    Usage,
    InputDetails,
    OutputDetails,
    CacheMade,
}

/// Where a number goes.
type Slot = fn(&mut Numbers) -> &mut Option<u64>;

/// What the next value is.
enum At {
    Inside(Holder),
    Number(Slot),
}

impl Holder {
    /// What a member is, as the APIs name them: chat completions and embeddings (`prompt_tokens`), responses
    /// (`input_tokens` with the cached ones in it), messages (`input_tokens` without the cached ones). None if nobody asks.
    fn member(self, name: &str) -> Option<At> {
        let slot: Slot = match (self, name) {
            (Self::Usage, "prompt_tokens_details" | "input_tokens_details") => {
                return Some(At::Inside(Self::InputDetails));
            }
            (Self::Usage, "completion_tokens_details" | "output_tokens_details") => {
                return Some(At::Inside(Self::OutputDetails));
            }
            (Self::Usage, "cache_creation") => return Some(At::Inside(Self::CacheMade)),
            (Self::Usage, "prompt_tokens") => |read| &mut read.prompt,
            (Self::Usage, "input_tokens") => |read| &mut read.input,
            (Self::Usage, "completion_tokens") => |read| &mut read.completion,
            (Self::Usage, "output_tokens") => |read| &mut read.output,
            (Self::Usage, "cache_read_input_tokens") => |read| &mut read.cache_read,
            (Self::Usage, "cache_creation_input_tokens") => |read| &mut read.cache_made,
            (Self::InputDetails, "cached_tokens") => |read| &mut read.cached,
            (Self::InputDetails, "cache_write_tokens") => |read| &mut read.cache_write,
            (Self::InputDetails, "audio_tokens") => |read| &mut read.audio_input,
            (Self::OutputDetails, "reasoning_tokens") => |read| &mut read.reasoning,
            (Self::OutputDetails, "audio_tokens") => |read| &mut read.audio_output,
            (Self::CacheMade, "ephemeral_1h_input_tokens") => |read| &mut read.made_for_an_hour,
            _ => return None,
        };
        Some(At::Number(slot))
    }
}

/// Takes the numbers out of an object as it is parsed, without building anything of it. What has another type than it
/// should is passed over.
struct Walk<'a> {
    read: &'a mut Numbers,
    at: At,
}

impl<'de> DeserializeSeed<'de> for Walk<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<(), D::Error> {
        from.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Walk<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON")
    }

    fn visit_u64<E>(self, number: u64) -> Result<(), E> {
        if let At::Number(slot) = self.at {
            *slot(self.read) = Some(number);
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<(), A::Error> {
        let At::Inside(holder) = self.at else {
            while members.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
            return Ok(());
        };
        while let Some(at) = members.next_key_seed(Named(holder))? {
            match at {
                Some(at) => members.next_value_seed(Walk { read: &mut *self.read, at })?,
                None => drop(members.next_value::<IgnoredAny>()?),
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut elements: A) -> Result<(), A::Error> {
        while elements.next_element::<IgnoredAny>()?.is_some() {}
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

/// The name of a member.
struct Named(Holder);

impl<'de> DeserializeSeed<'de> for Named {
    type Value = Option<At>;

    fn deserialize<D: Deserializer<'de>>(self, from: D) -> Result<Option<At>, D::Error> {
        from.deserialize_str(self)
    }
}

impl Visitor<'_> for Named {
    type Value = Option<At>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<Option<At>, E> {
        Ok(self.0.member(name))
    }
}
