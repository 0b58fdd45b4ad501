//! Provider plugin for the Anthropic API.

pub mod chat;
