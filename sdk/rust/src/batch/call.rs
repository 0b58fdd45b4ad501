//! What an event means for the call that was out.

use serde::{Deserialize, de::DeserializeOwned};

use crate::provider::{Event, Response};

/// What is shown of a body in which no error is found.
const SHOWN_CHARS: usize = 200;

/// An error as a provider words it.
pub trait ErrorBody: DeserializeOwned {
    /// One that has nothing but these words for people.
    fn of_message(message: String) -> Self;

    /// Reads the body of a call that was refused: its member `error`, or else its beginning as the message.
    fn of_body(body: &[u8]) -> Self {
        #[derive(Deserialize)]
        struct Body<E> {
            error: E,
        }
        match serde_json::from_slice::<Body<Self>>(body) {
            Ok(Body { error }) => error,
            Err(_) => Self::of_message(String::from_utf8_lossy(body).chars().take(SHOWN_CHARS).collect()),
        }
    }

    /// Its name for programs, if it has one.
    fn code(&self) -> Option<String>;

    /// Its words for people, if it has some.
    fn message(&self) -> Option<&str>;

    /// A 429 of this kind stays until somebody does something: no waiting helps.
    fn is_for_good(&self) -> bool {
        false
    }
}

/// What became of a call; `E` is how its provider words errors.
#[derive(Debug)]
pub enum Outcome<E> {
    /// It was done; the answer's body.
    Done(Vec<u8>),
    /// It was not done, and may be tried again.
    Later(Hindrance),
    /// Nobody knows whether it was done.
    Doubtful(Hindrance),
    /// It was not done and never will be.
    Refused {
        /// The answer's status.
        status: u16,
        /// Why.
        error: E,
    },
}

/// What stood in the way.
#[derive(Debug)]
pub struct Hindrance {
    /// For programs.
    pub code: String,
    /// For people.
    pub message: String,
    /// The provider wants to be left alone for so long.
    pub retry_after_ms: Option<u64>,
}

impl<E: ErrorBody> Outcome<E> {
    /// An event that is no answer to a call leaves the call's fate unknown.
    pub fn of(event: Event) -> Self {
        match event {
            Event::Answered(response) => Self::of_response(response),
            Event::NotSent(reason) => Self::Later(Hindrance::new("unreachable", &reason)),
            Event::Start | Event::Interrupted | Event::Waited | Event::Read(_) | Event::Cancel => {
                Self::Doubtful(Hindrance::new("interrupted", "the call was interrupted"))
            }
        }
    }

    fn of_response(response: Response) -> Self {
        if (200..300).contains(&response.status) {
            return Self::Done(response.body);
        }
        let error = E::of_body(&response.body);
        let hindrance = || Hindrance {
            code: error.code().unwrap_or_else(|| format!("http_{}", response.status)),
            message: error.message().unwrap_or_default().to_owned(),
            retry_after_ms: retry_after_ms(&response),
        };
        match response.status {
            // An overloaded server says 529 and would not have begun; but who in between says it is not known.
            408 | 500.. => Self::Doubtful(hindrance()),
            429 if error.is_for_good() => Self::Refused { status: 429, error },
            409 | 425 | 429 => Self::Later(hindrance()),
            status => Self::Refused { status, error },
        }
    }
}

impl Hindrance {
    /// One that says nothing of when.
    pub fn new(code: &str, message: &str) -> Self {
        Self { code: code.to_owned(), message: message.to_owned(), retry_after_ms: None }
    }
}

/// How long the provider wants to be left alone. Dates are not read: one's own pauses are long enough where one is sent.
fn retry_after_ms(response: &Response) -> Option<u64> {
    const DAY_MS: f64 = 86_400_000.0;
    let value = |name: &str| {
        let header = response.headers.iter().find(|header| header.name.eq_ignore_ascii_case(name))?;
        header.value.trim().parse::<f64>().ok().filter(|value| value.is_finite() && *value >= 0.0)
    };
    let ms = value("retry-after-ms").or_else(|| value("retry-after").map(|seconds| seconds * 1000.0))?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 0 to a day")]
    Some(ms.ceil().min(DAY_MS) as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Header;

    /// The error is a text, and is the code; "pay" is for good.
    #[derive(Deserialize)]
    struct Plain(String);

    impl ErrorBody for Plain {
        fn of_message(message: String) -> Self {
            Self(message)
        }

        fn code(&self) -> Option<String> {
            (!self.0.is_empty()).then(|| self.0.clone())
        }

        fn message(&self) -> Option<&str> {
            None
        }

        fn is_for_good(&self) -> bool {
            self.0 == "pay"
        }
    }

    fn response(status: u16, headers: &[(&str, &str)], body: &str) -> Outcome<Plain> {
        let header = |(name, value): &(&str, &str)| Header { name: (*name).into(), value: (*value).into() };
        let headers = headers.iter().map(header).collect();
        Outcome::of(Event::Answered(Response { status, headers, body: body.as_bytes().to_vec() }))
    }

    #[test]
    fn an_error_is_found_in_a_body_or_the_body_is_shown() {
        assert_eq!(Plain::of_body(br#"{"error": "pay", "more": 1}"#).0, "pay");
        assert_eq!(Plain::of_body(br#"{"error": 1}"#).0, r#"{"error": 1}"#);
        assert_eq!(Plain::of_body(b"<html>\xff").0, "<html>\u{fffd}");
        assert_eq!(Plain::of_body("\u{e9}".repeat(1_000).as_bytes()).0.chars().count(), SHOWN_CHARS);
    }

    #[test]
    fn a_status_tells_whether_it_was_done() {
        for (status, body, expected) in [
            (200, "", "done"),
            (201, "", "done"),
            (301, "", "refused"),
            (400, "", "refused"),
            (401, "", "refused"),
            (404, "", "refused"),
            (408, "", "doubtful http_408"),
            (409, "", "later http_409"),
            (413, "", "refused"),
            (429, "", "later http_429"),
            (429, "slow down", "later slow down"),
            (429, "pay", "refused"),
            (500, "", "doubtful http_500"),
            (503, "oops", "doubtful oops"),
            (529, "", "doubtful http_529"),
            (599, "", "doubtful http_599"),
        ] {
            let name = match response(status, &[], body) {
                Outcome::Done(_) => "done".to_owned(),
                Outcome::Later(hindrance) => format!("later {}", hindrance.code),
                Outcome::Doubtful(hindrance) => format!("doubtful {}", hindrance.code),
                Outcome::Refused { status: told, .. } => {
                    assert_eq!(told, status);
                    "refused".to_owned()
                }
            };
            assert_eq!(name, expected, "{status}");
        }
    }

    #[test]
    fn what_is_no_answer_leaves_the_fate_unknown_unless_nothing_was_sent() {
        for event in [Event::Start, Event::Interrupted, Event::Waited, Event::Cancel] {
            assert!(matches!(Outcome::<Plain>::of(event), Outcome::Doubtful(_)));
        }
        assert!(matches!(Outcome::<Plain>::of(Event::NotSent("no route".into())), Outcome::Later(_)));
    }

    #[test]
    fn the_providers_wish_is_read() {
        for (headers, expected) in [
            (&[("Retry-After", "7")][..], Some(7_000)),
            (&[("retry-after", "0.25")], Some(250)),
            (&[("retry-after", "9"), ("retry-after-ms", "12")], Some(12)),
            (&[("retry-after", "1e30")], Some(86_400_000)),
            (&[("retry-after", "-1")], None),
            (&[("retry-after", "Fri, 31 Dec 2026 23:59:59 GMT")], None),
            (&[], None),
        ] {
            let Outcome::Later(hindrance) = response(429, headers, "") else { panic!("not later") };
            assert_eq!(hindrance.retry_after_ms, expected, "{headers:?}");
        }
    }
}
