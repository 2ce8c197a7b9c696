//! The whole service, proved together.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it does not expect is to fail"
)]

mod access;
mod bad_input;
mod cli;
mod contract;
mod crash;
mod distributions;
mod exports;
mod generate;
mod hangup;
mod idempotency;
mod import;
mod imports;
mod life;
mod lists;
mod matrix;
mod metrics;
mod pages;
mod people;
mod plans;
mod pools;
mod processes;
mod proofs;
mod queue;
mod races;
mod readme;
mod retention;
mod schedules;
mod schema;
mod stats;
mod sweeps;
mod truth;
mod undo;
