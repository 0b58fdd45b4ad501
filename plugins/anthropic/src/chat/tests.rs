//! The translation as a whole: there and back, cut anywhere, and nothing lost in silence.

mod answers;
mod corpus;
mod generate;
mod requests;
mod streams;
