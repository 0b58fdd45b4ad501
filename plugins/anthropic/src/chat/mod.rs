//! OpenAI's chat completions on Anthropic's messages: requests one way, answers, streams and errors the other way.
//!
//! | file | holds |
//! | --- | --- |
//! | `request` | a chat-completions body becomes a messages body, or a refusal that names what cannot be said there |
//! | `conversation` | its messages; with `content`, their parts |
//! | `tools` | tools, and which of them the model may call |
//! | `answer` | a message becomes a `chat.completion` |
//! | `stream` | events become `chat.completion.chunk`s, whatever the cuts between the bytes |
//! | `sse` | lines and events of a stream |
//! | `error` | statuses and error bodies |
//! | `usage` | counted tokens |
//! | `json` | reading objects without overlooking a member, writing them without a tree |
//!
//! All of it is pure: bytes and values in, bytes and values out. The rule for requests is *faithful or refused*: what
//! would change the answer is translated or refused by its name, and what is left out is in the table of the plugin's
//! README.

pub mod answer;
mod content;
mod conversation;
pub mod error;
mod json;
pub mod request;
mod sse;
pub mod stream;
#[cfg(test)]
mod tests;
mod tools;
mod usage;

pub use json::Refusal;
