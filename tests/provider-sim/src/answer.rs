//! What the simulated models say: functions of the request, so that a client can check that an answer is its own.

use sha2::{Digest, Sha256};

use crate::ids::scatter;

/// Words of a prompt that go into its answer are cut to this many bytes.
const WORD_BYTES: usize = 24;
/// Bytes of text in one token, by this simulator's rule.
const TOKEN_BYTES: usize = 4;

/// Tokens of `text`: one for every 4 bytes of UTF-8 begun, at least one.
pub fn count_tokens(text: &str) -> u64 {
    text.len().div_ceil(TOKEN_BYTES).max(1) as u64
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// The answer was complete.
    Stop,
    /// The caller's limit on output tokens cut it.
    Length,
}

impl Finish {
    /// The wire's `finish_reason`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
        }
    }
}

/// An answer and its length.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The text, a prefix of [`expected_answer`].
    pub text: String,
    /// Its tokens, by [`count_tokens`].
    pub tokens: u64,
    /// Whether the limit cut it.
    pub finish: Finish,
}

/// The whole answer of `model` to `prompt`.
///
/// `echo H: W W W ...` where H is the first 8 bytes, in hexadecimal, of SHA-256 over the model's name, a line feed and
/// the prompt, and the Ws are the prompt's words (each cut to 24 bytes), repeated until the answer has 16 + d mod 48
/// words, d being byte 8 of that digest. A prompt without words gives the word `ok`.
/// For chat the prompt is the text of the last message of the user, text parts joined without a separator.
pub fn expected_answer(model: &str, prompt: &str) -> String {
    let digest = digest(model, prompt);
    let words = 16 + usize::from(digest[8] % 48);
    let mut text = format!("echo {:016x}:", first_eight(&digest));
    text.reserve(words * 12);
    let mut said = prompt.split_whitespace().cycle();
    for _ in 2..words {
        let word = said.next().unwrap_or("ok");
        text.push(' ');
        text.push_str(word.get(..word.floor_char_boundary(WORD_BYTES)).unwrap_or(word));
    }
    text
}

/// The answer of `model` to `prompt` within `max_tokens`: [`expected_answer`] cut to 4 bytes a token (never inside a
/// character).
pub fn answer(model: &str, prompt: &str, max_tokens: Option<u32>) -> Answer {
    let mut text = expected_answer(model, prompt);
    let limit = max_tokens
        .and_then(|max| usize::try_from(max).ok())
        .map_or(usize::MAX, |max| max.saturating_mul(TOKEN_BYTES));
    let finish = if text.len() > limit {
        text.truncate(text.floor_char_boundary(limit));
        Finish::Length
    } else {
        Finish::Stop
    };
    let tokens = count_tokens(&text);
    Answer { text, tokens, finish }
}

/// The answer of `model` to `prompt` with exactly this many tokens, as an engine gives it that was told to go on:
/// [`expected_answer`] again and again, with spaces between.
pub(crate) fn full_answer(model: &str, prompt: &str, tokens: u32) -> Answer {
    let piece = expected_answer(model, prompt) + " ";
    let len = usize::try_from(tokens).unwrap_or(usize::MAX).saturating_mul(TOKEN_BYTES);
    let mut text = piece.repeat(len / piece.len() + 1);
    text.truncate(text.floor_char_boundary(len));
    Answer { tokens: u64::from(tokens), text, finish: Finish::Length }
}

/// The embedding of `input` by `model`: a unit vector whose raw components are consecutive signed 16-bit numbers from
/// a `SplitMix64` sequence seeded by the digest of [`expected_answer`]. For an input of token numbers the text is
/// `tokens:` and the numbers joined by commas.
pub fn expected_embedding(model: &str, input: &str, dimensions: usize) -> Vec<f32> {
    let digest = digest(model, input);
    let mut state = first_eight(&digest);
    let mut vector = Vec::with_capacity(dimensions + 3);
    while vector.len() < dimensions {
        state = scatter(state);
        for pair in state.to_le_bytes().chunks_exact(2) {
            vector.push(f32::from(i16::from_le_bytes([pair[0], pair[1]])) / 32_768.0);
        }
    }
    vector.truncate(dimensions);
    let norm = vector.iter().map(|x| x * x).sum::<f32>().sqrt().max(f32::MIN_POSITIVE);
    for x in &mut vector {
        *x /= norm;
    }
    vector
}

/// The first eight bytes as a number, so that its hexadecimal digits are theirs.
fn first_eight(digest: &[u8; 32]) -> u64 {
    digest[..8].iter().fold(0, |n, byte| (n << 8) | u64::from(*byte))
}

fn digest(model: &str, prompt: &str) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(model);
    hash.update("\n");
    hash.update(prompt);
    hash.finalize().into()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn answers_tell_requests_apart() {
        let one = expected_answer("gpt-4o-mini", "What is 1+1?");
        assert!(one.starts_with("echo ") && one.contains(": What is 1+1? What is"), "{one}");
        assert_ne!(one, expected_answer("gpt-4o-mini", "What is 1+2?"));
        assert_ne!(one, expected_answer("gpt-5-mini", "What is 1+1?"));
        assert!(expected_answer("m", "").ends_with(" ok"));
    }

    #[test]
    fn embeddings_are_unit_vectors() {
        let vector = expected_embedding("m", "hello", 7);
        assert_eq!(vector.len(), 7);
        let norm: f32 = vector.iter().map(|x| x * x).sum();
        assert!((norm - 1.0).abs() < 1e-5, "{norm}");
        assert_ne!(vector, expected_embedding("m", "hallo", 7));
    }

    proptest! {
        #[test]
        fn a_full_answer_has_all_its_tokens(prompt in "\\PC{0,80}", max in 1_u32..400) {
            let full = full_answer("m", &prompt, max);
            prop_assert_eq!(count_tokens(&full.text), u64::from(max));
            let whole = expected_answer("m", &prompt);
            prop_assert!(full.text.starts_with(&whole) || whole.starts_with(&full.text));
        }

        #[test]
        fn a_limit_cuts_to_a_prefix(prompt in "\\PC{0,80}", max in 1_u32..100) {
            let whole = expected_answer("m", &prompt);
            let cut = answer("m", &prompt, Some(max));
            prop_assert!(whole.starts_with(&cut.text));
            prop_assert!(cut.tokens <= u64::from(max));
            prop_assert_eq!(cut.finish == Finish::Stop, cut.text == whole);
        }
    }
}
