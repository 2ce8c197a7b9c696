//! The whole service, proved together.

mod access;
mod bad_input;
mod contract;
mod idempotency;
mod import;
mod imports;
mod life;
mod lists;
mod people;
