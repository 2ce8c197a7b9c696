//! The whole service, proved together.

#![allow(
    clippy::unwrap_used,
    reason = "a test that meets what it does not expect is to fail"
)]

mod abreast;
mod access;
mod accounts;
mod bad_input;
mod batches;
mod bulk;
mod cli;
mod contract;
mod crash;
mod cuts;
mod deploy;
mod distributions;
mod exports;
mod files;
mod generate;
mod hangup;
mod history;
mod idempotency;
mod import;
mod imports;
mod job_desk;
mod life;
mod lists;
mod manners;
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
mod schedule_preview;
mod schedules;
mod schema;
mod spellings;
mod stats;
mod sweeps;
mod trail;
mod truth;
mod undo;
mod withdrawals;
