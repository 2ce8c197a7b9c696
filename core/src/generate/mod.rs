//! Codes made from patterns: the n-th code of a pattern is a keyed permutation of n, spelled out.
//!
//! Invariant: a number is reserved once and spells one code, so generated codes never collide with each other and
//! nothing has to be asked; what clashes is another's (imported, or of an overlapping pattern), and the book's primary
//! key says so. The same key, pattern and number give the same code for ever: golden vectors hold that.
//!
//! The way of a job: [`create::create`] reads the [`pattern`], holds it to the bounds of [`outlook`] and accepts the job →
//! [`step::step`] reserves numbers a [`wave`] at a time, puts them through the [`permutation`], and writes the codes as an
//! import does, two steps abreast where that is possible ([`crate::coupon::abreast`]). What can be told of a code without
//! looking it up is in [`form`]. To add an alphabet: [`alphabet`].

pub mod alphabet;
pub mod check;
pub mod create;
pub mod form;
pub mod outlook;
pub mod pattern;
pub mod permutation;
pub mod preview;
pub mod step;

mod abreast;
mod key;
mod speller;
mod wave;

/// The most codes of one job.
pub const MAX_CODES: i64 = 10_000_000;
