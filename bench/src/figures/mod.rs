//! One file per group of figures.

pub(crate) mod assign;
pub(crate) mod distribute;
pub(crate) mod draw;
pub(crate) mod generate;
pub(crate) mod import;
pub(crate) mod memory;
pub(crate) mod poll;
pub(crate) mod sweep;
pub(crate) mod till;
