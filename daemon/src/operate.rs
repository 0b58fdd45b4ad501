//! The operator's side of the program: commands that ask a running daemon through its admin plane.

pub mod client;
pub mod costs;
pub mod keys;
pub mod table;
