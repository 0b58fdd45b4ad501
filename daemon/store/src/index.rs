//! The index: what the log says, arranged for looking things up. Everything in it can be derived from the log.

pub(crate) mod apply;
pub(crate) mod check;
pub(crate) mod database;
pub(crate) mod extents;
pub(crate) mod lanes;
pub(crate) mod lookup;
pub(crate) mod outcomes;
pub(crate) mod query;
pub(crate) mod standings;
pub(crate) mod sweep;
pub(crate) mod tables;

pub(crate) use apply::Group;
pub(crate) use database::Index;
pub(crate) use lookup::View;
