//! Provider plugin for the Anthropic API.
