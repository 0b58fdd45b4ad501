//! The operator's side of the program: commands that ask a running daemon through its admin plane, and `db`, which looks
//! after the folder of one that is stopped.

pub mod client;
pub mod costs;
pub mod db;
pub mod keys;
pub mod plugins;
pub mod table;
